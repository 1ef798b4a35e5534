package restorer

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/fsat"
)

func TestPointerForm(t *testing.T) {
	j := newJournal(t)
	headerOf(t, j)
	require.NoError(t, j.writePointer())
	data, err := os.ReadFile(filepath.Join(j.BackupDir, JournalName))
	require.NoError(t, err)
	require.Equal(t, sealed(`{"version":2,"journal":"`+j.Path()+`","db_path":"`+j.Live.Database+`","dir":"`+describeDir(j.Path())+`"}`), string(data))
	p, err := readPointer(j.BackupDir)
	require.NoError(t, err)
	require.Equal(t, &pointer{j.Path(), j.Live.Database, describeDir(j.Path())}, p)
}

// A pointer to a journal that is gone is stale, unless another directory may be in
// the place of the journal's.
func TestStalePointers(t *testing.T) {
	j := newJournal(t)
	j.BackupDir = t.TempDir()
	require.True(t, PointerIsStale(j.BackupDir), "there is none")
	headerOf(t, j)
	require.NoError(t, j.writePointer())
	require.False(t, PointerIsStale(j.BackupDir), "the journal is there")
	require.NoError(t, os.Remove(j.Path()))
	require.True(t, PointerIsStale(j.BackupDir))
	dir := filepath.Dir(j.Path())
	require.NoError(t, os.Rename(dir, dir+".volume"))
	require.False(t, PointerIsStale(j.BackupDir), "the directory is missing")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.False(t, PointerIsStale(j.BackupDir), "it is another directory")
}

func TestStrangePointers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, JournalName)
	good := `{"version":2,"journal":"/x/` + JournalName + `","db_path":"/x/db"}`
	for name, text := range map[string]string{
		"rubbish":         "rubbish\n",
		"no checksum":     good + "\n",
		"two lines":       sealed(good, good),
		"something after": sealed(good) + "x",
		"later version":   sealed(strings.Replace(good, "2", "3", 1)),
		"no version":      sealed(strings.Replace(good, `"version":2,`, "", 1)),
		"no journal":      sealed(`{"version":2,"db_path":"/x"}`),
		"relative":        sealed(strings.Replace(good, "/x/", "x/", 1)),
		"unclean":         sealed(strings.Replace(good, "/x/", "/x/../", 1)),
		"another file":    sealed(strings.Replace(good, JournalName, "passwd", 1)),
		"a number":        sealed(strings.Replace(good, `"/x/db"`, "7", 1)),
	} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := readPointer(dir)
		require.ErrorIs(t, err, ErrNotJournal, name)
		require.ErrorContains(t, err, path, name)
		_, err = FindPending(dir, "")
		require.ErrorIs(t, err, ErrNotJournal, name)
		require.NoError(t, removePointer(dir, "/x/"+JournalName))
		require.FileExists(t, path, name)
	}
	whole := []byte(sealed(good))
	for bit := range 8 * len(whole) {
		flipped := bytes.Clone(whole)
		flipped[bit/8] ^= 1 << (bit % 8)
		require.NoError(t, os.WriteFile(path, flipped, 0o600))
		_, err := readPointer(dir)
		require.ErrorIs(t, err, ErrNotJournal, "bit %d", bit)
	}
	require.NoError(t, os.WriteFile(path, make([]byte, maxJournalSize+1), 0o600))
	_, err := readPointer(dir)
	require.ErrorIs(t, err, fsat.ErrTooLarge)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Symlink("/etc/passwd", path))
	_, err = readPointer(dir)
	require.ErrorIs(t, err, fsat.ErrNotRegular)
}

// A pointer that was not written to its end leads nowhere: nothing had been begun.
// It is removed with its journal.
func TestTornPointers(t *testing.T) {
	j := newJournal(t)
	headerOf(t, j)
	require.NoError(t, j.writePointer())
	path := filepath.Join(j.BackupDir, JournalName)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for n := range len(whole) {
		require.NoError(t, os.WriteFile(path, whole[:n], 0o600))
		p, err := readPointer(j.BackupDir)
		require.NoError(t, err)
		require.Nil(t, p)
		require.NoError(t, removePointer(j.BackupDir, j.Path()))
		require.NoFileExists(t, path)
	}
	require.NoError(t, os.WriteFile(path, whole[:9], 0o600))
	require.NoError(t, j.writePointer(), "it is replaced")
	now, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, whole, now)
	require.NoError(t, j.remove())
	require.NoFileExists(t, path)
	require.NoFileExists(t, j.Path())
}

func TestRemovePointer(t *testing.T) {
	j := newJournal(t)
	headerOf(t, j)
	require.NoError(t, j.writePointer())
	path := filepath.Join(j.BackupDir, JournalName)
	require.NoError(t, removePointer(j.BackupDir, "/elsewhere/"+JournalName))
	require.FileExists(t, path)
	require.NoError(t, removePointer(filepath.Join(j.BackupDir, "missing"), j.Path()))
	require.NoError(t, removePointer(j.BackupDir, j.Path()))
	require.NoFileExists(t, path)
	require.NoError(t, removePointer(j.BackupDir, j.Path()))
}

func TestFindPending(t *testing.T) {
	j := newJournal(t)
	link := filepath.Join(t.TempDir(), "link.db")
	require.NoError(t, os.Symlink(j.Live.Database, link))
	find := func(backupDir, database string) *Pending {
		t.Helper()
		p, err := FindPending(backupDir, database)
		require.NoError(t, err)
		return p
	}
	for _, database := range []string{"", j.Live.Database, link, filepath.Join(j.BackupDir, "missing", "db")} {
		require.Nil(t, find(j.BackupDir, database))
	}
	headerOf(t, j)
	for _, database := range []string{j.Live.Database, link} {
		require.Equal(t, &Pending{Journal: j.Path(), Running: true}, find(j.BackupDir, database))
		require.Equal(t, &Pending{Journal: j.Path(), Running: true}, find("/missing", database))
	}
	require.Nil(t, find(j.BackupDir, ""))

	require.NoError(t, j.writePointer())
	running := &Pending{Journal: j.Path(), Database: j.Live.Database, Running: true}
	require.Equal(t, running, find(j.BackupDir, ""))
	require.Equal(t, running, find(j.BackupDir, "/elsewhere/db"))
	j.Close()
	cutOff := &Pending{Journal: j.Path(), Database: j.Live.Database}
	require.Equal(t, cutOff, find(j.BackupDir, ""))
	require.Equal(t, &Pending{Journal: j.Path()}, find(j.BackupDir, link))

	// The journal is gone: with its volume, unless the database is there.
	require.NoError(t, os.Remove(j.Path()))
	require.Equal(t, &Pending{Journal: j.Path(), Database: j.Live.Database, Missing: true}, find(j.BackupDir, ""))
	require.NoError(t, os.WriteFile(j.Live.Database, nil, 0o600))
	require.Nil(t, find(j.BackupDir, ""))
	require.NoError(t, os.Remove(j.Live.Database))

	// What is called like a journal and is none is not opened.
	require.NoError(t, os.Mkdir(j.Path(), 0o700))
	require.Equal(t, cutOff, find(j.BackupDir, ""))
}

func TestRemains(t *testing.T) {
	dir := t.TempDir()
	live := Places{Database: filepath.Join(dir, "db", "atocore.db"), Registry: filepath.Join(dir, "config", "registry.json"), Chroma: filepath.Join(dir, "chroma")}
	require.Empty(t, Remains(live))
	require.Empty(t, Remains(Places{}))
	var want []string
	for _, place := range []string{"chroma", "config", "db"} {
		want = append(want, filepath.Join(dir, place, RemainsPrefix+id+"-"+place))
		for _, name := range []string{RemainsPrefix + id + "-" + place, "x", RemainsPrefix, RemainsPrefix + id, RemainsPrefix + "0123-db", RemainsPrefix + strings.ToUpper(id) + "-db", RemainsPrefix + id + "-DB"} {
			require.NoError(t, os.MkdirAll(filepath.Join(dir, place, name), 0o700))
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, place, RemainsPrefix+id+"-file"), nil, 0o600))
		require.NoError(t, os.MkdirAll(filepath.Join(dir, place, "x", RemainsPrefix+id+"-db"), 0o700))
	}
	require.Equal(t, want, Remains(live))
	live.Registry = filepath.Join(dir, "db", "registry.json")
	require.Equal(t, []string{want[0], want[2]}, Remains(live), "each once")
}
