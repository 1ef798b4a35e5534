//go:build amd64 || arm64

package faults

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var restoreCuts = flag.Int("restore-cuts", 8, "how often to cut the power in restores on each file system")

func init() { roles["create"] = beCreate }

// beCreate takes a snapshot of the store in args[0] and says its stamp.
func beCreate(p *backuptest.Parent, args []string) error {
	m, err := backup.CreateRuntimeBackup(context.Background(), backuptest.OptionsIn(args[0]))
	if err == nil {
		p.Say(m.Stamp)
	}
	return err
}

// changing are the calls that change files or make changes durable.
var changing = []string{
	"openat", "mkdirat", "renameat", "renameat2", "linkat", "unlinkat", "write", "pwrite64", "copy_file_range",
	"ioctl", "ftruncate", "fchmod", "fchown", "fchownat", "utimensat", "fsync", "fdatasync", "syncfs",
}

const markedFiles = 40

// A cutStore is a store whose power is cut. Its places are on one disk, or each
// on a disk of its own.
type cutStore struct {
	*backuptest.Store
	disks  []*disk
	random *rand.Rand
	stamps map[string]string // of the snapshots, by what they hold

	profiles map[string]*profile
	cuts     map[string]int // how often the power was cut, by kind of run and phase
	outcomes map[string]int
}

// A profile describes the runs of a kind: how many calls they make in each
// phase. A phase is named after the line that was written last to the journal.
type profile struct {
	calls map[string]int
	queue []string // the phases that are cut next
}

// A moment is before a call of a phase. If there are fewer, it is before the first
// call of the next phase.
type moment struct {
	phase string
	call  int
}

// afterEnd is the phase when a run has ended.
const afterEnd = "after the end"

func newCutStore(t *testing.T, kind string, apart bool) *cutStore {
	t.Helper()
	c := &cutStore{
		Store:    &backuptest.Store{T: t},
		random:   random(t),
		stamps:   map[string]string{},
		profiles: map[string]*profile{},
		cuts:     map[string]int{},
		outcomes: map[string]int{},
	}
	where := memoryDir(t)
	add := func(name string) string {
		dir := filepath.Join(where, name)
		require.NoError(t, os.Mkdir(dir, 0o700))
		d := newDisk(t, dir, kind, 96<<20)
		c.disks = append(c.disks, d)
		place := filepath.Join(d.mountedAt, "in")
		require.NoError(t, os.Mkdir(place, 0o700))
		return place
	}
	if apart {
		c.Dir = filepath.Join(where, "store")
		require.NoError(t, os.Mkdir(c.Dir, 0o700))
		for _, name := range []string{"data", "config", "data/chroma", "backups"} {
			require.NoError(t, os.Symlink(add(filepath.Base(name)), filepath.Join(c.Dir, name)))
		}
	} else {
		c.Dir = add("whole")
	}
	c.Options = backuptest.OptionsIn(c.Dir)
	for _, id := range []string{"A", "B"} {
		c.write(id)
		c.stamps[id] = strings.TrimSpace(do(t, backuptest.Command(t, "create", c.Dir)).requireDone(t).stdout)
	}
	return c
}

// clear removes the live store, but no directory that is a link.
func (c *cutStore) clear() {
	c.T.Helper()
	for _, dir := range []string{c.ChromaPath, filepath.Dir(c.DatabasePath), filepath.Dir(c.RegistryPath)} {
		linked := len(c.disks) > 1
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		require.NoError(c.T, err)
		for _, entry := range entries {
			if entry.Type()&fs.ModeSymlink == 0 {
				require.NoError(c.T, os.RemoveAll(filepath.Join(dir, entry.Name())))
			}
		}
		if !linked {
			require.NoError(c.T, os.Remove(dir))
		}
	}
}

// rubbish is the content of a broken database.
func rubbish(id string) string { return strings.Repeat("rubbish of "+id+" ", 1000) }

// write writes a store in which every part names id. In the database, id is only in
// the WAL. If id begins with "broken", the database is not one; if it begins with
// "empty", there is nothing.
func (c *cutStore) write(id string) {
	t := c.T
	t.Helper()
	c.clear()
	if strings.HasPrefix(id, "empty") {
		return
	}
	for _, dir := range []string{filepath.Dir(c.DatabasePath), filepath.Dir(c.RegistryPath), c.ChromaPath} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
	for i := range markedFiles {
		segment := filepath.Join(c.ChromaPath, fmt.Sprintf("segment-%s-%d", id, i%4))
		require.NoError(t, os.MkdirAll(segment, 0o755))
		backuptest.Write(t, filepath.Join(segment, fmt.Sprint(i)), id)
		if i%8 == 0 {
			backuptest.Write(t, filepath.Join(c.ChromaPath, fmt.Sprint(i)), id)
		}
	}
	backuptest.Write(t, c.RegistryPath, `"`+id+`"`)
	if strings.HasPrefix(id, "broken") {
		backuptest.Write(t, c.DatabasePath, rubbish(id))
		backuptest.Write(t, c.DatabasePath+"-wal", rubbish(id))
		return
	}
	db := backuptest.OpenDB(t, c.DatabasePath, "_pragma=journal_mode(wal)", "_pragma=synchronous(off)")
	_, err := db.Exec(`CREATE TABLE mark (id TEXT); PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO mark VALUES ('` + id + `')`)
	require.NoError(t, err)
	backuptest.KeepWAL(t, db, c.DatabasePath)
}

// read returns the id that all parts of a store or a snapshot name.
func read(t *testing.T, database, registry, chroma string) (id string) {
	t.Helper()
	if _, err := os.Stat(database); errors.Is(err, fs.ErrNotExist) {
		for _, path := range []string{registry, database + "-wal", database + "-journal"} {
			require.NoFileExists(t, path)
		}
		entries, err := os.ReadDir(chroma)
		require.True(t, err == nil || errors.Is(err, fs.ErrNotExist))
		require.Empty(t, entries)
		return "empty"
	}
	data, err := os.ReadFile(registry)
	require.NoError(t, err)
	id = strings.Trim(string(data), `"`)
	files := 0
	require.NoError(t, filepath.WalkDir(chroma+"/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if filepath.Clean(path) != chroma {
				require.True(t, strings.HasPrefix(d.Name(), "segment-"+id+"-"), "%s in the store %s", path, id)
			}
			return nil
		}
		files++
		data, err := os.ReadFile(path)
		require.Equal(t, id, string(data), path)
		return err
	}))
	require.Equal(t, markedFiles+markedFiles/8, files)
	if strings.HasPrefix(id, "broken") {
		for _, path := range []string{database, database + "-wal"} {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, rubbish(id), string(data), path)
		}
		return id
	}
	db := backuptest.OpenDB(t, backuptest.CopyWithWAL(t, database))
	defer db.Close()
	var inDatabase string
	require.NoError(t, db.QueryRow("SELECT id FROM mark").Scan(&inDatabase))
	require.Equal(t, id, inDatabase)
	backuptest.RequireIntegrity(t, db)
	return id
}

// concerns reports whether a call works on one of the disks.
func (c *cutStore) concerns(call *call) bool {
	if call.name() == "openat" && call.args[2]&unix.O_CREAT == 0 {
		return false
	}
	path := call.fd(0)
	return slices.ContainsFunc(c.disks, func(d *disk) bool { return strings.HasPrefix(path, d.mountedAt+"/") })
}

// A run is what was seen of a restore, or of what recovers from one.
type run struct {
	outcome
	calls   map[string]int
	phase   string
	acted   bool
	syncing bool   // the last call was a sync of the journal
	decided string // "new" or "old" if the journal says so, durably
	idle    bool   // there was nothing to recover from
}

// run makes a call in a role and does act at a moment of it.
func (c *cutStore) run(role, stamp string, at moment, act func(*call)) *run {
	c.T.Helper()
	r := &run{calls: map[string]int{}, phase: "begin"}
	journal := filepath.Join(c.real(filepath.Dir(c.DatabasePath)), ".atocore-restore.journal")
	r.outcome = intercept(c.T, backuptest.Command(c.T, role, c.Dir, stamp), changing, func(call *call) verdict {
		if r.acted || !c.concerns(call) {
			return 0
		}
		r.see(call, journal)
		if n := r.calls[at.phase]; n > 0 && (n == at.call || r.phase != at.phase) {
			r.acted = true
			act(call)
		}
		if call.name() == "unlinkat" && filepath.Join(call.fd(0), call.text(1)) == journal {
			r.phase = "removed"
		}
		if call.name() == "pwrite64" && call.fd(0) == journal {
			r.phase = strings.TrimPrefix(lineEvent(strings.SplitN(call.text(1), "\n", 2)[0]), "line ")
		}
		return 0
	})
	require.NotContains(c.T, r.stderr, "panic")
	return r
}

// see counts a call. What comes after the sync of a line shows that the line is
// durable.
func (r *run) see(call *call, journal string) {
	r.calls[r.phase]++
	if r.syncing {
		switch r.phase {
		case "done":
			r.decided = "new"
		case "undo":
			r.decided = "old"
		}
	}
	r.syncing = call.name() == "fsync" && call.fd(0) == journal
}

// real returns a directory of the store with links resolved.
func (c *cutStore) real(dir string) string {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return dir
}

// next returns the next moment for a run of a kind, from a phase that only admits.
func (c *cutStore) next(kind string, only func(phase string) bool) moment {
	p := c.profiles[kind]
	for {
		for i, phase := range p.queue {
			if only == nil || only(phase) {
				p.queue = slices.Delete(p.queue, i, i+1)
				return moment{phase, 1 + c.random.IntN(max(1, p.calls[phase]))}
			}
		}
		more := append(slices.Sorted(maps.Keys(p.calls)), afterEnd)
		c.random.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
		p.queue = append(p.queue, more...)
	}
}

// cutIn makes a call and cuts the power of all disks in it. Each disk may have
// written out everything that it was given, or nothing but what it was told to
// sync.
func (c *cutStore) cutIn(kind, role, stamp string, at moment) *run {
	c.T.Helper()
	writtenOut := make([]bool, len(c.disks))
	for i := range writtenOut {
		writtenOut[i] = c.random.IntN(2) == 0
	}
	var delay time.Duration
	if c.random.IntN(3) == 0 {
		delay = time.Duration(1 + c.random.IntN(1_000_000))
	}
	cut := make(chan error, 1)
	cutAll := func() {
		var errs []error
		for _, d := range c.disks {
			errs = append(errs, d.cut())
		}
		cut <- errors.Join(errs...)
	}
	r := c.run(role, stamp, at, func(call *call) {
		for i, d := range c.disks {
			if writtenOut[i] {
				d.sync()
			}
		}
		if delay == 0 {
			cutAll() // the process waits
			return
		}
		time.AfterFunc(delay, func() {
			// The power of all disks is cut at once: while it is, the process must not
			// go on with those that still have some.
			_ = unix.Kill(int(call.pid), unix.SIGSTOP)
			cutAll()
			_ = unix.Kill(int(call.pid), unix.SIGCONT)
		})
	})
	if !r.acted {
		r.phase = afterEnd
		cutAll()
	}
	c.cuts[kind+": "+r.phase]++
	require.NoError(c.T, <-cut)
	for _, d := range c.disks {
		d.unmount()
		d.mount()
	}
	return r
}

// The kinds of runs whose power is cut. before is the store that is to be replaced.
// A recovery finds what a restore left that was killed, or whose power was cut, in
// one of the phases in left; the last one leaves most to be done.
var cutKinds = []struct {
	name, before string
	weight       int
	left         []string // nil: it is the restore itself that is cut
}{
	{"restore", "live", 4, nil},
	{"restore over a broken store", "broken", 2, nil},
	{"restore into an empty place", "empty", 2, nil},
	{"undo", "live", 3, duringSwap},
	{"undo to a broken store", "broken", 1, duringSwap},
	{"undo to an empty place", "empty", 1, duringSwap},
	{"undo before the swap", "live", 1, []string{"{", "safety STAMP"}},
	{"finish", "live", 2, afterSwap},
	{"finish over a broken store", "broken", 1, afterSwap},
}

var (
	duringSwap = []string{"swapping", "begin chroma", "out chroma", "end chroma", "begin config", "out config", "end config", "out db", "begin db"}
	afterSwap  = []string{"cleaned db", "cleaned config", "cleaned chroma", "done", "end db"}
)

// TestPowerCutInRestore cuts the power in all phases of restores, and of the calls
// that recover from restores which were killed or whose power was cut; some of these
// find what another one left that was killed. Afterwards,
// one more call makes the store wholly old or wholly new; if it is new, the old one
// is in the safety snapshot, or was set aside.
func TestPowerCutInRestore(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for _, apart := range []bool{false, true} {
			name := kind + ", one disk"
			if apart {
				name = kind + ", four disks"
			}
			t.Run(name, func(t *testing.T) { cutRestores(t, kind, apart) })
		}
	}
}

func cutRestores(t *testing.T, kind string, apart bool) {
	c := newCutStore(t, kind, apart)
	var order []int
	for i, k := range cutKinds {
		order = append(order, slices.Repeat([]int{i}, k.weight)...)
	}
	c.random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for i := range (*restoreCuts + 1) / 2 {
		c.cutOnce(i, order[i%len(order)])
	}
	for _, phase := range slices.Sorted(maps.Keys(c.cuts)) {
		t.Logf("%4d cuts in %s", c.cuts[phase], phase)
	}
	t.Logf("afterwards: %v", c.outcomes)
}

// cutOnce cuts the power in the i-th run, of a kind, and checks what is left.
func (c *cutStore) cutOnce(i, kind int) {
	k := cutKinds[kind]
	old, target := fmt.Sprintf("%s-%d", k.before, i), []string{"A", "B"}[i%2]
	if k.before == "empty" {
		old = "empty"
	}
	restore := "restore " + k.before
	if c.profiles[restore] == nil {
		c.prepare(old)
		c.learn(restore, c.run("restore", c.stamps[target], moment{}, nil))
	}
	if k.left != nil && c.profiles[k.name] == nil {
		c.prepare(old)
		c.leave(restore, target, func(phase string) bool { return phase == k.left[len(k.left)-1] }, false)
		c.learn(k.name, c.run("recover", "", moment{}, nil))
	}

	c.prepare(old)
	var decided []string
	var last *run
	var at moment
	if k.left == nil {
		at = c.next(restore, nil)
		last = c.cutIn(k.name, "restore", c.stamps[target], at)
	} else {
		// Half of the time there is as much to recover from as can be.
		left := k.left
		if c.random.IntN(2) == 0 {
			left = left[len(left)-1:]
		}
		first := c.leave(restore, target, func(phase string) bool { return slices.Contains(left, phase) }, c.random.IntN(2) == 0)
		decided = append(decided, first.decided)
		if c.random.IntN(3) == 0 {
			killed := c.run("recover", "", c.next(k.name, nil), killCaller)
			decided = append(decided, killed.decided)
		}
		at = c.next(k.name, nil)
		last = c.cutIn(k.name, "recover", "", at)
		last.idle = last.stdout == ""
	}
	decided = append(decided, last.decided)
	c.requireWhole(fmt.Sprintf("%s, cut before call %d in phase %q", k.name, at.call, at.phase), old, target, decided, last)
	c.reset()
}

// prepare writes the store that is to be replaced, durably.
func (c *cutStore) prepare(old string) {
	c.T.Helper()
	c.write(old)
	for _, d := range c.disks {
		d.sync()
	}
}

// leave begins a restore and kills it, or cuts the power, in one of the phases
// that are admitted.
func (c *cutStore) leave(restore, target string, only func(phase string) bool, cut bool) *run {
	c.T.Helper()
	at := c.next(restore, only)
	if cut {
		return c.cutIn("(before) "+restore, "restore", c.stamps[target], at)
	}
	r := c.run("restore", c.stamps[target], at, killCaller)
	require.True(c.T, r.acted)
	return r
}

func killCaller(call *call) { _ = unix.Kill(int(call.pid), unix.SIGKILL) }

// learn records how many calls a run made that was not cut.
func (c *cutStore) learn(kind string, r *run) {
	c.T.Helper()
	require.Equal(c.T, 0, r.code, r.stderr)
	c.profiles[kind] = &profile{calls: r.calls}
	c.reset()
}

// requireWhole recovers from what a cut has left and checks that nothing is lost.
func (c *cutStore) requireWhole(where, old, target string, decided []string, last *run) {
	t := c.T
	t.Helper()
	if _, err := backup.ListRuntimeBackups(context.Background(), c.Options); err != nil {
		require.ErrorIs(t, err, backup.ErrRestoreUnfinished, where)
	}
	o := do(t, backuptest.Command(t, "recover", c.Dir))
	require.Equal(t, 0, o.code, "%s: %s", where, o.stderr)
	said := strings.TrimSpace(o.stdout)

	id := read(t, c.DatabasePath, c.RegistryPath, c.ChromaPath)
	outcome := "new"
	if id == old {
		outcome = "old"
	} else {
		require.Equal(t, target, id, where)
	}
	c.outcomes[outcome]++
	for _, before := range decided {
		require.Contains(t, []string{"", outcome}, before, "%s: the journal had said so", where)
	}
	if last.code == 0 && last.phase == afterEnd && !last.idle {
		// An idle call is one that found no journal. One that was killed when it had
		// just removed it may not have done so durably, but it had nothing left to do.
		require.Empty(t, said, "%s: the last call had returned", where)
	}
	require.Equal(t, map[string]string{"": outcome, "finished": "new", "undone": "old"}[said], outcome, where)

	saved := map[string]bool{}
	list, err := backup.ListRuntimeBackups(context.Background(), c.Options)
	require.NoError(t, err, where)
	for _, snapshot := range list {
		_, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: c.BackupDir}, snapshot.Stamp)
		require.NoError(t, err, where)
		m := snapshot.Metadata
		if m.SafetyOf != "" {
			saved[read(t, m.DBSnapshotPath, m.RegistrySnapshotPath, m.ChromaSnapshotPath)] = true
		}
	}
	for _, stamp := range c.stamps {
		require.DirExists(t, c.SnapshotPath(stamp), where)
	}
	aside := c.remains(where)
	switch {
	case outcome == "old":
		require.Empty(t, aside, where)
		require.False(t, said == "undone" && len(saved) > 0, "%s: the safety snapshot is left", where)
	case strings.HasPrefix(old, "broken"):
		require.Len(t, aside, 3, where)
		require.Equal(t, old, read(t, filepath.Join(aside["atocore.db"], "atocore.db"),
			filepath.Join(aside["project-registry.json"], "project-registry.json"), aside[filepath.Base(c.real(c.ChromaPath))]), where)
	case old != "empty":
		require.True(t, saved[old], "%s: no safety snapshot holds the store that was replaced", where)
	}
}

// remains checks that no staging of a restore is left and returns the paths of
// what was set aside, by the part's name.
func (c *cutStore) remains(where string) map[string]string {
	c.T.Helper()
	aside := map[string]string{}
	for _, d := range c.disks {
		require.NoError(c.T, filepath.WalkDir(d.mountedAt, func(path string, entry fs.DirEntry, err error) error {
			require.NotContains(c.T, entry.Name(), "atocore-restore", "%s: %s", where, path)
			if name, _, ok := strings.Cut(entry.Name(), ".set-aside-"); ok {
				aside[name] = path
			}
			return err
		}))
	}
	return aside
}

// reset removes safety snapshots and what was set aside.
func (c *cutStore) reset() {
	c.T.Helper()
	for _, path := range c.remains("reset") {
		require.NoError(c.T, os.RemoveAll(path))
	}
	list, err := backup.ListRuntimeBackups(context.Background(), c.Options)
	require.NoError(c.T, err)
	for _, snapshot := range list {
		if snapshot.Metadata.SafetyOf != "" {
			require.NoError(c.T, os.RemoveAll(snapshot.Path))
		}
	}
}
