package restorer

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/fsat"
)

const id = "0123456789abcdef"

// newJournal returns a journal of a restore of all parts in a new directory,
// which is not created yet.
func newJournal(t *testing.T) *Journal {
	t.Helper()
	dir := fsat.RealPath(t.TempDir())
	j := &Journal{
		Stamp: "20261124T120000Z", BackupDir: filepath.Join(dir, "backups"), Started: time.Date(2026, 11, 24, 12, 0, 0, 5000, time.UTC),
		Live: Places{Database: filepath.Join(dir, "db"), Registry: filepath.Join(dir, "registry"), Chroma: filepath.Join(dir, "chroma")},
		id:   id,
	}
	j.had.database, j.had.registry, j.had.chroma = true, true, true
	require.NoError(t, os.Mkdir(j.BackupDir, 0o700))
	t.Cleanup(j.Close)
	return j
}

// headerOf returns the first line of a journal, without its checksum.
func headerOf(t *testing.T, j *Journal) string {
	t.Helper()
	require.NoError(t, j.create(t.Context()))
	data, err := os.ReadFile(j.Path())
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(data), "\n")
	return line[:strings.LastIndexByte(line, ' ')]
}

// sealed returns the lines with their checksums: CRC-32C of all lines up to the
// own one, without their checksums.
func sealed(lines ...string) string {
	var text, summed strings.Builder
	for _, line := range lines {
		summed.WriteString(line + "\n")
		sum := crc32.Checksum([]byte(summed.String()), crc32.MakeTable(crc32.Castagnoli))
		fmt.Fprintf(&text, "%s %08x\n", line, sum)
	}
	return text.String()
}

// whole are the lines of a restore that is done, and undone those of one that was
// undone after its swap. Both set something aside.
var (
	whole = []string{
		"safety 20261124T120000Z-002", "swapping", "begin chroma", "out chroma", "end chroma",
		"begin config", "out config", "end config", "begin db", "out db", "end db",
		"done", "cleaned chroma", "cleaned config", "cleaned db",
	}
	undone = slices.Concat(slices.Clone(whole[:11]), []string{
		"undo", "aside db", "undone db", "undone config", "aside chroma", "cleared chroma", "undone chroma",
		"cleaned chroma", "cleaned config", "cleaned db",
	})
)

func TestJournalForm(t *testing.T) {
	j := newJournal(t)
	j.Live = Places{Database: filepath.Join(filepath.Dir(j.Live.Database), "db\xff"), Registry: `/"registry"`, Chroma: "/chroma\n"}
	j.had.chroma = false
	j.inPlace.registry = true
	dir := filepath.Dir(j.Live.Database)
	header := `{"version":2,"id":"0123456789abcdef","started_at":"2026-11-24T12:00:00.000005+00:00","stamp":"20261124T120000Z",` +
		`"backup_dir":"` + dir + `/backups","db_path":"` + dir + `/db\udcff","registry_path":"/\"registry\"","chroma_path":"/chroma\n",` +
		`"had_db":true,"had_registry":true,"had_chroma":false,"db_in_place":false,"registry_in_place":true,"db_left":false}`
	require.Equal(t, header, headerOf(t, j))
	for _, line := range whole {
		require.NoError(t, j.write(line))
	}
	text, err := os.ReadFile(filepath.Join(dir, JournalName))
	require.NoError(t, err)
	require.Equal(t, sealed(append([]string{header}, whole...)...), string(text))
}

func TestJournalIsReadAsItWasWritten(t *testing.T) {
	for _, lines := range [][]string{whole, undone} {
		j := newJournal(t)
		headerOf(t, j)
		for i := 0; ; i++ {
			data, err := os.ReadFile(j.Path())
			require.NoError(t, err)
			read := new(Journal)
			require.NoError(t, read.parse(data))
			require.Len(t, read.parts, 3)
			read.parts, read.dir, read.file = nil, j.dir, j.file
			require.Equal(t, j, read)
			if i == len(lines) {
				break
			}
			require.NoError(t, j.write(lines[i]), lines[i])
		}
	}
}

func TestJournalStates(t *testing.T) {
	j := newJournal(t)
	header := headerOf(t, j)
	requireState := func(want State, lines ...string) *Journal {
		t.Helper()
		j := new(Journal)
		require.NoError(t, j.parse([]byte(sealed(append([]string{header}, lines...)...))))
		require.Equal(t, want, j.State(), lines)
		return j
	}
	for i := range len(whole) + 1 {
		want := StateDone
		switch {
		case i < 2:
			want = StateStaging
		case i < 11:
			want = StateSwapping
		case i == 11:
			want = StateSwapped
		}
		j := requireState(want, whole[:i]...)
		require.Equal(t, i > 0, j.Safety() == "20261124T120000Z-002")
		require.False(t, j.KeepsOld())
	}
	for i := 12; i <= len(undone); i++ {
		requireState(StateUndoing, undone[:i]...)
	}
	kept := requireState(StateStaging, "keep-old")
	require.True(t, kept.KeepsOld())
	require.Empty(t, kept.Safety())
	inUse := requireState(StateStaging, "safety-in-use 20261124T120000Z-002")
	require.Equal(t, "20261124T120000Z-002", inUse.Safety())
	require.True(t, inUse.SavedInUse())
	require.False(t, kept.SavedInUse())
	require.False(t, requireState(StateStaging, whole[0]).SavedInUse())
	requireState(StateSwapping, "swapping")        // into an empty place
	requireState(StateUndoing, "safety s", "undo") // never written so, but harmless
	require.Equal(t, id, kept.ID())
}

// Only what a restore can write after the lines so far is accepted.
func TestLinesOutOfPlace(t *testing.T) {
	j := newJournal(t)
	header := headerOf(t, j)
	all := slices.Concat(whole, undone, []string{
		"keep-old", "safety-in-use 20261124T120000Z-002", "safety-in-use", "safety-in-use a/b", "aside chroma", "aside config", "cleared db", "cleared config", "cleared chroma",
		"begin", "end", "end db db", "begin x", "safety", "safety a/b", "safety ..", "keep-old x", "swapping x", "done db", "undo db", "x", "", " ",
		"Done", "done ", "out\tdb",
	})
	slices.Sort(all)
	all = slices.Compact(all)
	// What may follow, other than the next line of the sequence.
	others := func(lines []string) (may []string) {
		last := ""
		if len(lines) > 0 {
			last = lines[len(lines)-1]
		}
		has := func(line string) bool { return slices.Contains(lines, line) }
		if !has("done") && !has("undo") {
			may = append(may, "undo")
		}
		if len(lines) == 0 {
			may = append(may, "keep-old", "safety-in-use 20261124T120000Z-002", "swapping")
		}
		switch last {
		case "end db":
			may = append(may, "done")
		case "begin config", "begin db": // where no file was before, there is none to move out
			may = append(may, "end"+strings.TrimPrefix(last, "begin"))
		}
		if has("undo") {
			for _, part := range []string{"chroma", "config", "db"} {
				if !has("undone "+part) && !has("cleared "+part) {
					may = append(may, "aside "+part, "cleared "+part)
				}
				may = append(may, "undone "+part)
			}
		}
		if has("done") || has("undone chroma") && has("undone config") && has("undone db") {
			may = append(may, "cleaned chroma", "cleaned config", "cleaned db")
		}
		return slices.DeleteFunc(may, has)
	}
	for _, sequence := range [][]string{whole, undone} {
		for i := range len(sequence) + 1 {
			before := append([]string{header}, sequence[:i]...)
			may := others(sequence[:i])
			if i < len(sequence) {
				may = append(may, sequence[i])
			}
			for _, line := range all {
				j := new(Journal)
				err := j.parse([]byte(sealed(append(slices.Clone(before), line)...)))
				if slices.Contains(may, line) {
					require.NoError(t, err, "%q after %q", line, sequence[:i])
				} else {
					require.ErrorIs(t, err, ErrNotJournal, "%q after %q", line, sequence[:i])
				}
			}
		}
	}
}

// A journal that was written in part counts up to its last whole line, whatever
// the disk made of the rest.
func TestTornJournals(t *testing.T) {
	j := newJournal(t)
	header := headerOf(t, j)
	for _, lines := range [][]string{whole, undone} {
		text := sealed(append([]string{header}, lines...)...)
		for n := range len(text) {
			want := new(Journal)
			require.NoError(t, want.parse([]byte(text[:strings.LastIndexByte(text[:n], '\n')+1])))
			for _, tail := range []string{"", "\x00", strings.Repeat("\x00", 300), "\xff"} {
				if n < len(text) && text[n] == '\n' && tail != "" {
					continue // a whole line whose end is wrong: see TestEveryBit
				}
				got := new(Journal)
				require.NoError(t, got.parse([]byte(text[:n]+tail)), "%d bytes and %q", n, tail)
				require.Equal(t, want, got)
				require.Equal(t, !strings.Contains(text[:n], "\n"), got.State() == StateEmpty)
			}
		}
	}
}

// Each single bit counts: the last line may have been acted upon, whatever became
// of it.
func TestEveryBit(t *testing.T) {
	j := newJournal(t)
	header := headerOf(t, j)
	for _, lines := range [][]string{whole, undone} {
		for i := range len(lines) + 1 {
			text := []byte(sealed(append([]string{header}, lines[:i]...)...))
			first := 0
			if i > 0 { // the lines before were flipped already
				first = len(sealed(append([]string{header}, lines[:i-1]...)...))
			}
			for bit := 8 * first; bit < 8*len(text); bit++ {
				flipped := bytes.Clone(text)
				flipped[bit/8] ^= 1 << (bit % 8)
				require.ErrorIs(t, new(Journal).parse(flipped), ErrNotJournal, "bit %d of %q", bit, text)
			}
		}
	}
}

// If writing "done" failed, the line may be on disk. The next line takes its
// place, so that an undo that is interrupted is not taken for a restore that was
// done.
func TestUncertainDoneIsWithdrawn(t *testing.T) {
	j := newJournal(t)
	headerOf(t, j)
	for _, line := range whole[:11] {
		require.NoError(t, j.write(line))
	}
	before, err := os.ReadFile(j.Path())
	require.NoError(t, err)
	line, _ := seal(j.sum, "done")
	_, err = j.file.WriteAt([]byte(line), j.size)
	require.NoError(t, err)
	j.parts = j.makeParts(Places{})
	_, err = j.RollBack(t.Context())
	require.ErrorIs(t, err, ErrStagingMissing)

	for _, part := range []string{"chroma", "config", "db"} { // now it can begin
		require.NoError(t, os.MkdirAll(filepath.Join(map[string]string{
			"chroma": j.Live.Chroma, "config": filepath.Dir(j.Live.Registry), "db": filepath.Dir(j.Live.Database),
		}[part], j.stagingName(part), "x"), 0o700))
	}
	_, err = j.RollBack(t.Context())
	require.ErrorIs(t, err, ErrStagingMissing, "new/ and old/")
	text, err := os.ReadFile(j.Path())
	require.NoError(t, err)
	undo, _ := seal(j.sumAfter(t, before), "undo")
	require.Equal(t, string(before)+undo, string(text))
	read := new(Journal)
	require.NoError(t, read.parse(text))
	require.Equal(t, StateUndoing, read.State())
}

// sumAfter returns the checksum of a journal's text.
func (*Journal) sumAfter(t *testing.T, text []byte) uint32 {
	t.Helper()
	j := new(Journal)
	require.NoError(t, j.parse(text))
	return j.sum
}

func TestStrangeJournals(t *testing.T) {
	j := newJournal(t)
	header := headerOf(t, j)
	replace := func(old, new string) string {
		require.Contains(t, header, old)
		return sealed(strings.Replace(header, old, new, 1))
	}
	dir := filepath.Dir(j.Live.Database)
	for name, text := range map[string]string{
		"rubbish":             "rubbish\n",
		"no checksum":         header + "\n",
		"checksum in capital": strings.ToUpper(sealed("{}")),
		"no object":           sealed("[]"),
		"no fields":           sealed("{}"),
		"binary":              "\x00\x01\n",
		"an empty line":       "\n",
		"earlier version":     replace(`"version":2`, `"version":1`),
		"later version":       replace(`"version":2`, `"version":3`),
		"version 2.0":         replace(`"version":2`, `"version":2.0`),
		"hostile id":          replace(id, "../../x"),
		"short id":            replace(id, "0123"),
		"a field twice":       replace(`"had_db"`, `"id":"`+id+`","had_db"`),
		"a field missing":     replace(`"had_db":true,`, ""),
		"another type":        replace(`"had_db":true`, `"had_db":1`),
		"no time":             replace(`"started_at":"`, `"started_at":"x`),
		"relative path":       replace(`"db_path":"`+dir, `"db_path":"x`),
		"unclean path":        replace(`"registry_path":"`, `"registry_path":"/..`),
		"unclean end":         replace(`/chroma"`, `/chroma/"`),
		"no database":         replace(`"db_path":"`+dir+`/db"`, `"db_path":""`),
		"two first lines":     sealed(header, header),
		"a line twice":        sealed(header, "swapping", "swapping"),
		"lines of another":    sealed(header) + sealed("swapping"),
	} {
		require.NoError(t, os.WriteFile(j.Path(), []byte(text), 0o600))
		j.Close()
		_, err := OpenJournal(j.Live.Database)
		require.ErrorIs(t, err, ErrNotJournal, name)
		require.ErrorContains(t, err, j.Path(), name)
		now, err := os.ReadFile(j.Path())
		require.NoError(t, err)
		require.Equal(t, text, string(now))
	}
	require.NoError(t, os.WriteFile(j.Path(), make([]byte, maxJournalSize+1), 0o600))
	_, err := OpenJournal(j.Live.Database)
	require.ErrorIs(t, err, ErrNotJournal)
	require.ErrorIs(t, err, fsat.ErrTooLarge)

	// The journal of another directory, copied here.
	require.NoError(t, os.WriteFile(j.Path(), []byte(replace(`"db_path":"`+dir, `"db_path":"/elsewhere`)), 0o600))
	_, err = OpenJournal(j.Live.Database)
	require.ErrorIs(t, err, ErrNotJournal)
	require.ErrorContains(t, err, "/elsewhere")

	require.NoError(t, os.Remove(j.Path()))
	require.NoError(t, os.Mkdir(j.Path(), 0o700))
	_, err = OpenJournal(j.Live.Database)
	require.ErrorIs(t, err, ErrNotJournal)
	require.ErrorIs(t, err, fsat.ErrNotRegular)
}

func TestNoJournal(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "db"), filepath.Join(dir, "missing", "db")} {
		j, err := OpenJournal(path)
		require.NoError(t, err)
		require.Nil(t, j)
	}
}

// One restore at a time works with a journal. Nobody replaces one.
func TestJournalIsLocked(t *testing.T) {
	j := newJournal(t)
	header := headerOf(t, j)
	_, err := OpenJournal(j.Live.Database)
	require.ErrorIs(t, err, fsat.ErrLocked)
	second := &Journal{Live: j.Live, id: id}
	require.ErrorIs(t, second.create(t.Context()), os.ErrExist)

	j.Close()
	read, err := OpenJournal(j.Live.Database)
	require.NoError(t, err)
	defer read.Close()
	require.ErrorIs(t, second.create(t.Context()), os.ErrExist)
	data, err := os.ReadFile(j.Path())
	require.NoError(t, err)
	require.Equal(t, sealed(header), string(data))
}

// Those who look for a journal lock it for moments. That must not make a restore
// fail that is just writing one.
func TestReadersDoNotKeepAJournalFromBeingWritten(t *testing.T) {
	database := filepath.Join(fsat.RealPath(t.TempDir()), "db")
	dir := openDir(t, filepath.Dir(database))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// As pendingAt does, but in a tight loop.
				if f, err := dir.Open(JournalName); err == nil {
					_ = f.TryRLock()
					f.Close()
				}
			}
		})
	}
	for range 300 {
		j := &Journal{Live: Places{Database: database}, id: id}
		require.NoError(t, j.create(t.Context()))
		require.NoError(t, j.removeFile())
		j.Close()
	}
	close(stop)
	readers.Wait()
}

// A journal that cannot be written to its end is removed again.
func TestJournalThatCannotBeCreated(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	j := &Journal{Live: Places{Database: filepath.Join(dir, "file", "db")}, id: id}
	require.Error(t, j.create(t.Context()))
	j.Live.Database = filepath.Join(dir, "new", "db")
	require.NoError(t, j.create(t.Context()))
	j.Close()
	require.FileExists(t, filepath.Join(dir, "new", JournalName))
}
