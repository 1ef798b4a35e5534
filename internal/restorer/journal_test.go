package restorer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/fsat"
)

func openDir(t *testing.T, path string) *fsat.Dir {
	t.Helper()
	dir, err := fsat.OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

// newJournal begins a journal in a new directory.
func newJournal(t *testing.T) (j *Journal, path string) {
	t.Helper()
	dir := t.TempDir()
	j = &Journal{
		id: "0123456789abcdef", stamp: "20261124T120000Z",
		Live:        Places{Database: "/db\xff", Registry: `/"registry"`, Chroma: "/chroma\n"},
		hadRegistry: true, setAside: true,
		chromaMode: 0o755, chromaMtime: -1,
	}
	require.NoError(t, j.begin(openDir(t, dir)))
	return j, filepath.Join(dir, JournalName)
}

func TestJournalForm(t *testing.T) {
	_, path := newJournal(t)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, `{"version":1,"id":"0123456789abcdef","stamp":"20261124T120000Z",`+
		`"db_path":"/db\udcff","registry_path":"/\"registry\"","chroma_path":"/chroma\n",`+
		`"had_db":false,"had_registry":true,"had_chroma":false,"set_aside":true,`+
		`"chroma_mode":493,"chroma_mtime_ns":-1}`+"\n", string(text))
}

func TestJournalIsReadAsItWasWritten(t *testing.T) {
	j, path := newJournal(t)
	for _, state := range []State{StateStaging, StateSwapping, StateDone} {
		if state != StateStaging {
			require.NoError(t, j.advance(state))
		}
		require.Equal(t, state, j.State())
		read, err := ReadJournal(path)
		require.NoError(t, err)
		defer read.Close()
		require.Equal(t, path, filepath.Join(read.dir.Path(), read.name))
		read.dir = j.dir
		require.Equal(t, j, read)
	}
}

// A line that is incomplete, or that writing "done" left uncertain, does not
// count.
func TestJournalStates(t *testing.T) {
	_, path := newJournal(t)
	first, err := os.ReadFile(path)
	require.NoError(t, err)
	whole := string(first)
	for text, want := range map[string]State{
		"":                           StateEmpty,
		`{"version":1,`:              StateEmpty,
		strings.TrimSpace(whole):     StateEmpty,
		whole:                        StateStaging,
		whole + "swapp":              StateStaging,
		whole + "swapping":           StateStaging,
		whole + "done\n":             StateStaging,
		whole + "swapping\n":         StateSwapping,
		whole + "swapping\ndone":     StateSwapping,
		whole + "swapping\ndone\n":   StateDone,
		whole + "swapping\ndone\nun": StateSwapping,
		whole + lineSwapping + lineDone + lineUndo: StateSwapping,
	} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		j, err := ReadJournal(path)
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, j.State(), "%q", text)
		j.Close()
	}
}

// If writing "done" failed, the line may be on disk, so undoing withdraws it
// first.
func TestUncertainDoneIsWithdrawn(t *testing.T) {
	j, path := newJournal(t)
	require.NoError(t, j.advance(StateSwapping))
	require.NoError(t, j.add(lineDone))
	j.doneUncertain = true
	j.Live = Places{Database: filepath.Join(t.TempDir(), "missing", "db")}
	require.Error(t, j.RollBack(), "the old store can't be brought back")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(text), lineSwapping+lineDone+lineUndo))
	j, err = ReadJournal(path)
	require.NoError(t, err)
	defer j.Close()
	require.Equal(t, StateSwapping, j.State())
}

func TestStrangeJournals(t *testing.T) {
	_, path := newJournal(t)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	whole := string(text)
	for name, text := range map[string]string{
		"rubbish":          "rubbish\n",
		"no object":        "[]\n",
		"no fields":        "{}\n",
		"binary":           "\x00\x01\n",
		"too large":        string(make([]byte, maxJournalSize+1)),
		"later version":    strings.Replace(whole, `"version":1`, `"version":2`, 1),
		"version 1.0":      strings.Replace(whole, `"version":1`, `"version":1.0`, 1),
		"hostile id":       strings.Replace(whole, "0123456789abcdef", "../../x", 1),
		"a field twice":    strings.Replace(whole, `"had_db"`, `"id":"0123456789abcdef","had_db"`, 1),
		"a field missing":  strings.Replace(whole, `"had_db":false,`, "", 1),
		"negative mode":    strings.Replace(whole, "493", "-493", 1),
		"a truncated time": strings.Replace(whole, `:-1}`, `:-}`, 1),
	} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := ReadJournal(path)
		require.ErrorContains(t, err, path, name)
	}
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	_, err = ReadJournal(path)
	require.ErrorIs(t, err, fsat.ErrNotRegular)
}

func TestNoJournal(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, JournalName), filepath.Join(dir, "missing", JournalName)} {
		j, err := ReadJournal(path)
		require.NoError(t, err)
		require.Nil(t, j)
	}
}

func TestPending(t *testing.T) {
	backups, live, link := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "link.db")
	require.NoError(t, os.Symlink(filepath.Join(live, "atocore.db"), link))
	require.Equal(t, []string{filepath.Join(backups, JournalName)}, JournalPaths(backups, ""))
	require.NoError(t, os.WriteFile(filepath.Join(live, "atocore.db"), nil, 0o600))
	paths := JournalPaths(backups, link)
	require.Equal(t, []string{filepath.Join(backups, JournalName), filepath.Join(fsat.RealPath(live), JournalName)}, paths)

	pending, err := Pending(paths)
	require.NoError(t, err)
	require.Empty(t, pending)
	for _, path := range []string{paths[1], paths[0]} {
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		pending, err = Pending(paths)
		require.NoError(t, err)
		require.Equal(t, path, pending)
	}
}
