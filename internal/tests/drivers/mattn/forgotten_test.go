//go:build cgo

package mattn

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A host that forgets Options.DB is warned once in each call, if it has the
// database open: its locks are lost then.
func TestForgottenDBIsWarnedOf(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("what this process has open is known on Linux only")
	}
	s := backuptest.NewStore(t)
	// A program, since a test binary does not know what it was built from.
	host := filepath.Join(t.TempDir(), "host")
	out, err := exec.Command("go", "build", "-o", host, "./host").CombinedOutput()
	require.NoError(t, err, string(out))
	warnings := func(mode string) int {
		out, err := exec.Command(host, mode, s.DatabasePath, s.BackupDir).CombinedOutput()
		require.NoError(t, err, string(out))
		return strings.Count(string(out), "msg=database_open_by_another_sqlite path="+s.DatabasePath+" library=github.com/mattn/go-sqlite3")
	}
	require.Equal(t, 0, warnings("closed"))
	require.Equal(t, 2, warnings("open"))
	require.Equal(t, 0, warnings("given"))
}

// A pool whose connection to a database in memory is in use opens another one,
// which is empty.
func TestEmptyDatabaseInMemoryIsRefused(t *testing.T) {
	db, err := open(":memory:")
	require.NoError(t, err)
	defer db.Close()
	conn, err := db.Conn(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.ExecContext(t.Context(), "CREATE TABLE t (x)")
	require.NoError(t, err)
	dir := t.TempDir()
	_, err = backup.CreateRuntimeBackup(t.Context(), backup.Options{
		DB: db, DatabasePath: filepath.Join(dir, "a.db"), BackupDir: filepath.Join(dir, "backups"),
	})
	require.ErrorIs(t, err, backup.ErrSourceInvalid)
}
