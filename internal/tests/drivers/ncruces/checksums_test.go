package ncruces

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"
	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// openChecksummed opens a database whose pages carry checksums. It reports a page
// with a wrong one as an error when it reads it.
func openChecksummed(path string) (*sql.DB, error) {
	db, err := driver.Open(path, func(c *sqlite3.Conn) error { return c.EnableChecksums("main") })
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

// vacuumWithoutChecksums returns a function for Options.Capture that uses a driver
// without these checksums.
func vacuumWithoutChecksums(live string) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		db, err := backuptest.Open(live, "mode=ro") // must not checkpoint the WAL
		if err != nil {
			return err
		}
		defer db.Close()
		_, err = db.ExecContext(ctx, "VACUUM INTO ?", path)
		return err
	}
}

// requireReadable reads all of a database through the driver.
func requireReadable(t *testing.T, path string, rows int) {
	t.Helper()
	db, err := open(path)
	require.NoError(t, err)
	defer db.Close()
	var text string
	require.NoError(t, db.QueryRow("PRAGMA integrity_check").Scan(&text))
	require.Equal(t, "ok", text)
	var n int
	require.NoError(t, db.QueryRow("SELECT count(*) FROM t WHERE length(x) = 20000").Scan(&n))
	require.Equal(t, rows, n)
}

// The driver can read the snapshot of a database whose pages carry checksums, and
// the live database, before and after a restore, however the snapshot is taken and
// whatever is in the WAL.
func TestPageChecksums(t *testing.T) {
	for _, mode := range []string{"delete", "wal"} {
		for _, killed := range []bool{false, true} {
			for _, way := range []string{"files", "online", "handle", "capture", "capture that writes none"} {
				t.Run(fmt.Sprint(mode, ", killed ", killed, ", ", way), func(t *testing.T) {
					dir := t.TempDir()
					opts := backup.Options{DatabasePath: filepath.Join(dir, "a.db"), BackupDir: filepath.Join(dir, "backups"), OnlineBackup: way == "online"}
					live, err := openChecksummed(opts.DatabasePath)
					require.NoError(t, err)
					defer live.Close()
					_, err = live.Exec("PRAGMA journal_mode=" + mode + "; PRAGMA wal_autocheckpoint=0; CREATE TABLE t (x)")
					require.NoError(t, err)
					for range 5 {
						_, err := live.Exec("INSERT INTO t VALUES (randomblob(20000))")
						require.NoError(t, err)
					}
					if killed { // what a killed process leaves
						opts.DatabasePath = filepath.Join(dir, "left.db")
						for _, suffix := range []string{"", "-wal"} {
							data, err := os.ReadFile(filepath.Join(dir, "a.db") + suffix)
							if err == nil {
								err = os.WriteFile(opts.DatabasePath+suffix, data, 0o600)
							}
							require.True(t, err == nil || suffix != "" && os.IsNotExist(err), err)
						}
					}
					if way == "handle" {
						if opts.DB, err = openChecksummed(opts.DatabasePath); err == nil {
							defer opts.DB.Close()
						}
						require.NoError(t, err)
					}
					if way == "capture" {
						db, err := openChecksummed(opts.DatabasePath)
						require.NoError(t, err)
						defer db.Close()
						capture := Capture(db)
						opts.Capture = func(ctx context.Context, path string) error {
							return errors.Join(capture(ctx, path), db.Close())
						}
					}
					if way == "capture that writes none" {
						opts.Capture = vacuumWithoutChecksums(opts.DatabasePath)
					}
					meta, err := backup.CreateRuntimeBackup(t.Context(), opts)
					require.NoError(t, err)
					opened := filepath.Join(dir, "copy.db")
					data, err := os.ReadFile(meta.DBSnapshotPath)
					require.NoError(t, err)
					require.EqualValues(t, 8, data[20])
					require.NoError(t, os.WriteFile(opened, data, 0o600))
					requireReadable(t, opened, 5)
					if opts.DB != nil {
						require.NoError(t, opts.DB.Close())
						opts.DB = nil
					}
					require.NoError(t, live.Close())
					if mode == "delete" { // or the database may be equal to the snapshot, and is left alone
						changed, err := openChecksummed(opts.DatabasePath)
						require.NoError(t, err)
						_, err = changed.Exec("INSERT INTO t VALUES ('later')")
						require.NoError(t, err)
						require.NoError(t, changed.Close())
					}

					result, err := backup.RestoreRuntimeBackup(t.Context(), opts, meta.Stamp)
					require.NoError(t, err)
					requireReadable(t, opts.DatabasePath, 5)
					safety := backuptest.CopyOf(t, filepath.Join(opts.BackupDir, "snapshots", result.SafetyStamp, "db", filepath.Base(opts.DatabasePath)))
					requireReadable(t, safety, 5)
				})
			}
		}
	}
}
