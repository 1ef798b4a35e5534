package drill

import (
	"cmp"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/sqlitedb"
)

// The restored database is opened and checked.
func TestDrillChecksTheRestoredDatabase(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good ?%#.db")
	backuptest.MakeDatabase(t, filepath.Join(dir, "good.db"))
	require.NoError(t, os.Rename(filepath.Join(dir, "good.db"), good))
	check := func(path string) error {
		checked, err := checkDatabase(t.Context(), path, sqlitedb.CheckOptions{Kind: sqlitedb.IntegrityCheck, Limit: 1})
		return cmp.Or(err, objection(checked))
	}
	require.NoError(t, check(good))

	data, err := os.ReadFile(good)
	require.NoError(t, err)
	bad := filepath.Join(dir, "bad.db")
	require.NoError(t, os.WriteFile(bad, append(data[:len(data)/2:len(data)/2], make([]byte, len(data)/2)...), 0o600))
	require.Error(t, check(bad))
	require.NoError(t, os.WriteFile(bad, []byte("not a database, and long enough to be recognized as such"), 0o600))
	require.Error(t, check(bad))
	require.Error(t, check(filepath.Join(dir, "absent")))
	require.NoFileExists(t, filepath.Join(dir, "absent"))
}

func TestScratchIsRemovedWithReadOnlyDirectories(t *testing.T) {
	scratch, err := newScratch(t.Context(), t.TempDir())
	require.NoError(t, err)
	dir := scratch.path()
	for _, name := range []string{"a/b", "c"} {
		sub := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(sub, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(sub, "file"), nil, 0o400))
		require.NoError(t, os.Chmod(sub, 0o500))
	}
	require.NoError(t, os.Chmod(filepath.Join(dir, "a"), 0o100))
	require.NoError(t, scratch.remove())
	require.NoDirExists(t, dir)
}
