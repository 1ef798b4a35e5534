package faults

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var intrusions = flag.Int("intrusions", 40, "how many snapshots to take while a writer ignores the guard")

func init() { roles["intrude"] = beIntruder }

// An intruder changes the files of a directory, one after the other. Everything
// it does follows from its seed, so that a second intruder of the same seed goes
// through every state in which the directory ever was.
type intruder struct {
	random *rand.Rand
	step   int
	files  map[string]version

	// The last step, and the files before it.
	last   change
	before map[string]version
}

// A version of a file is the step that wrote it, and its size.
type version struct{ step, size int }

// bytes returns the content of a file of that version.
func (v version) bytes() []byte {
	data := make([]byte, v.size)
	_, _ = rand.NewChaCha8([32]byte(fmt.Appendf(nil, "%016d%016d", v.step, v.size))).Read(data)
	copy(data, fmt.Sprintf("%019d\n", v.step))
	return data
}

// A change is what one step does.
type change struct {
	kind     string
	name, to string
	version
}

func newIntruder(seed uint64) *intruder {
	return &intruder{random: rand.New(rand.NewPCG(seed, 1)), files: map[string]version{}}
}

func (in *intruder) anyName() string {
	return fmt.Sprintf("dir%d/file%d", in.random.IntN(3), in.random.IntN(5))
}

// next decides on a step.
func (in *intruder) next() change {
	in.before = maps.Clone(in.files)
	in.last = in.decide()
	return in.last
}

func (in *intruder) decide() change {
	in.step++
	c := change{name: in.anyName(), to: in.anyName(), version: version{in.step, 100 + in.random.IntN(400_000)}}
	old, there := in.files[c.name]
	choice := in.random.IntN(10)
	switch {
	case !there:
		c.kind = "add"
	case choice < 4:
		c.kind, c.size = "overwrite", old.size // the change that is hardest to notice
	case choice < 5:
		c.kind = "replace"
	case choice < 7:
		c.kind = "truncate"
	case choice < 8 || c.to == c.name:
		c.kind = "remove"
		delete(in.files, c.name)
		return c
	default:
		c.kind = "rename"
		delete(in.files, c.name)
		in.files[c.to] = old
		return c
	}
	in.files[c.name] = c.version
	return c
}

// piece is how much is written at once. The kernel gives a file the time at which
// a write begins, so the library cannot notice the part of a write that comes
// after its first look at the file.
const piece = 4096

// isPartial reports whether data is the content of the file at some moment during
// the change.
func (c change) isPartial(old version, data []byte) bool {
	var before []byte
	switch c.kind {
	case "overwrite":
		before = old.bytes()
	case "add", "truncate":
	default:
		return false
	}
	after, n := c.bytes(), 0
	for n < len(data) && n < len(after) && data[n] == after[n] {
		n++
	}
	return bytes.Equal(data[n:], before[min(n, len(before)):])
}

// do makes the change in dir. It writes in pieces and calls pause between them.
func (c change) do(dir string, pause func()) error {
	name := filepath.Join(dir, c.name)
	flags := os.O_WRONLY | os.O_CREATE
	switch c.kind {
	case "remove":
		return os.Remove(name)
	case "rename":
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, c.to)), 0o755); err != nil {
			return err
		}
		return os.Rename(name, filepath.Join(dir, c.to))
	case "replace":
		// Written outside, so that only whole files are ever seen.
		if err := os.WriteFile(dir+".new", c.bytes(), 0o644); err != nil {
			return err
		}
		return os.Rename(dir+".new", name)
	case "truncate":
		flags |= os.O_TRUNC
	case "add":
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(name, flags, 0o644)
	if err != nil {
		return err
	}
	for data := c.bytes(); len(data) > 0; {
		n := min(len(data), piece)
		if _, err := f.Write(data[:n]); err != nil {
			return errors.Join(err, f.Close())
		}
		data = data[n:]
		pause()
	}
	return f.Close()
}

// beIntruder changes the directory args[0], with the seed args[1], until it is told
// to stop, and says how many steps it made.
func beIntruder(p *backuptest.Parent, args []string) error {
	dir := args[0]
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	var between time.Duration
	if !fineClock(filepath.Dir(dir)) {
		// Two writes within one tick of the file system's clock look the same.
		// The library does not promise to notice them.
		between = 20 * time.Millisecond
	}
	in, idle := newIntruder(seed), rand.New(rand.NewPCG(seed, 2))
	for !p.Heard() {
		for range 1 + idle.IntN(5) {
			if err := in.next().do(dir, func() { time.Sleep(between / 10) }); err != nil {
				return err
			}
			time.Sleep(between)
		}
		time.Sleep(time.Duration(idle.IntN(30)) * time.Millisecond)
	}
	p.Say(fmt.Sprint(in.step))
	return nil
}

// fineClock reports whether two writes in a row give a file different times.
func fineClock(dir string) bool {
	path := filepath.Join(dir, "clock")
	defer os.Remove(path)
	var times [2]time.Time
	for i := range times {
		if err := os.WriteFile(path, []byte("tick"), 0o600); err != nil {
			return false
		}
		info, err := os.Stat(path)
		if err != nil {
			return false
		}
		times[i] = info.ModTime()
	}
	return times[0] != times[1]
}

// TestBrokenGuard takes snapshots while another process adds, overwrites,
// truncates, replaces, renames and removes files of the Chroma directory all
// the time. Each attempt must end in ErrSourceChanged, or in a copy of the
// directory as it was at one moment. That may be a moment in the middle of a
// change, if the writer paused there: only the guard can prevent that.
func TestBrokenGuard(t *testing.T) {
	s := newStore(t, t.TempDir(), "wal")
	s.ChromaPath = filepath.Join(s.Dir, "written-to")
	require.NoError(t, os.Mkdir(s.ChromaPath, 0o755))
	writer := backuptest.Start(t, "intrude", s.ChromaPath, fmt.Sprint(*seed))

	model := newIntruder(*seed)
	caught, right := 0, 0
	for range *intrusions {
		meta, err := backup.CreateRuntimeBackup(context.Background(), s.Options)
		if err != nil {
			require.ErrorIs(t, err, backup.ErrSourceChanged)
			require.Empty(t, s.Staging())
			require.Empty(t, s.Stamps())
			caught++
			continue
		}
		model.requireOnce(t, filepath.Join(meta.BackupRoot, "chroma"))
		s.RequireValid()
		require.NoError(t, os.RemoveAll(meta.BackupRoot))
		right++
	}
	t.Logf("%d attempts: %d noticed the writer, %d are right; it made %s steps", *intrusions, caught, right, writer.Ask("stop"))
	writer.Wait()
	require.Positive(t, caught, "the writer was never in the way")
}

// requireOnce checks that the files in dir are those of one moment, not before
// that of in, and advances in to that moment.
func (in *intruder) requireOnce(t *testing.T, dir string) {
	t.Helper()
	found, last := map[string]version{}, 0
	torn, tornData := "", []byte(nil)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		v := version{size: len(data)}
		if len(data) >= 20 {
			v.step, _ = strconv.Atoi(string(data[:19]))
		}
		last = max(last, v.step)
		if v.step == 0 || !bytes.Equal(v.bytes(), data) {
			require.Empty(t, torn, "two files are torn")
			torn, tornData = rel, data
			return nil
		}
		found[rel] = v
		return nil
	})
	require.NoError(t, err)
	for {
		if torn == "" && maps.Equal(in.files, found) {
			return
		}
		if torn != "" && torn == in.last.name {
			rest := maps.Clone(in.before)
			delete(rest, torn)
			if maps.Equal(rest, found) && in.last.isPartial(in.before[torn], tornData) {
				return
			}
		}
		// Steps that only remove and rename leave no trace of their number.
		require.LessOrEqual(t, in.step, last+1000, "the directory was never like the copy: torn %q, whole %v", torn, found)
		in.next()
	}
}
