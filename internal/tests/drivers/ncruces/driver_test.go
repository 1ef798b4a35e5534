package ncruces

import (
	"database/sql"
	"net/url"
	"path/filepath"
	"testing"

	_ "github.com/ncruces/go-sqlite3/driver"
	_ "github.com/ncruces/go-sqlite3/vfs/adiantum"
	_ "github.com/ncruces/go-sqlite3/vfs/memdb"
	_ "github.com/ncruces/go-sqlite3/vfs/xts"
	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/tests/drivers"
)

func open(dsn string) (*sql.DB, error) { return sql.Open("sqlite3", dsn) }

func TestMain(m *testing.M) {
	drivers.Main(m, open, backuptest.Roles{"capturing": drivers.CapturingHost(startIn(""), true)})
}

func TestDriver(t *testing.T) { drivers.Run(t, open) }

// startIn returns a function that starts a host whose database is in a VFS. That of
// an empty query is a plain file.
func startIn(query string) drivers.Starter {
	return func(path string) (*drivers.Host, error) {
		db, err := open((&url.URL{Scheme: "file", Path: path, RawQuery: query}).String())
		if err != nil {
			return nil, err
		}
		return drivers.SQLHost(db, false, Capture(db))
	}
}

// With Options.Capture, a snapshot is made of a database in whatever VFS. It is
// plain; that of an encrypted database is not written to the encrypted file.
func TestCapture(t *testing.T) {
	for _, vfs := range []struct {
		name, query string
		onDisk      bool
	}{
		{"file", "", true},
		{"memdb", "vfs=memdb", false},
		{"adiantum", "vfs=adiantum&textkey=secret", true},
		{"xts", "vfs=xts&textkey=secret", true},
	} {
		t.Run(vfs.name, func(t *testing.T) { drivers.RunCapture(t, startIn(vfs.query), vfs.onDisk) })
	}
	t.Run("locks of the host survive", func(t *testing.T) { drivers.RunLocks(t, "capturing") })
}

// VACUUM INTO, which Options.DB uses, writes through the VFS of the source. So for
// a VFS of the driver's own it fails, and makes nothing.
func TestHandleOfAnotherVFSIsRefused(t *testing.T) {
	for name, query := range map[string]string{"memdb": "vfs=memdb", "adiantum": "vfs=adiantum&textkey=secret"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			opts := backup.Options{DatabasePath: filepath.Join(dir, "a.db"), BackupDir: filepath.Join(dir, "backups")}
			db, err := open((&url.URL{Scheme: "file", Path: opts.DatabasePath, RawQuery: query}).String())
			require.NoError(t, err)
			defer db.Close()
			_, err = db.Exec("CREATE TABLE memory (text TEXT)")
			require.NoError(t, err)
			opts.DB = db
			_, err = backup.CreateRuntimeBackup(t.Context(), opts)
			require.Error(t, err)
			if name == "memdb" {
				require.ErrorIs(t, err, backup.ErrSourceInvalid)
				require.ErrorContains(t, err, "set Options.Capture")
			}
			list, err := backup.ListRuntimeBackups(t.Context(), backup.Options{BackupDir: opts.BackupDir})
			require.NoError(t, err)
			require.Empty(t, list)
		})
	}
}

// The driver reads a snapshot that is copied into an encrypted database again.
func TestSnapshotIsEncryptedAgain(t *testing.T) {
	dir := t.TempDir()
	plain, encrypted := filepath.Join(dir, "plain.db"), filepath.Join(dir, "encrypted.db")
	h, err := startIn("")(plain)
	require.NoError(t, err)
	require.NoError(t, h.Exec("CREATE TABLE memory (text TEXT)"))
	require.NoError(t, h.Exec("INSERT INTO memory VALUES ('hello')"))
	require.NoError(t, h.Close())
	db, err := open((&url.URL{Scheme: "file", Path: encrypted, RawQuery: "vfs=adiantum&textkey=secret"}).String())
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, Encrypt(t.Context(), db, plain))
	var text string
	require.NoError(t, db.QueryRow("SELECT text FROM memory").Scan(&text))
	require.Equal(t, "hello", text)
}
