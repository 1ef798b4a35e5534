// Package drivers takes snapshots through the handles of hosts that use another
// SQLite driver than the library does. It is a separate module, so that the
// library does not depend on these drivers.
package drivers

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// An Opener opens a database with the driver under test.
type Opener func(dsn string) (*sql.DB, error)

// Main is the TestMain of a driver's package. capturing are further roles.
func Main(m *testing.M, open Opener, capturing backuptest.Roles) {
	roles := backuptest.Roles{"host": func(p *backuptest.Parent, args []string) error {
		return host(p, open, args[0], args[1])
	}, "restoring": func(p *backuptest.Parent, args []string) error {
		return restoring(p, open, args[0], args[1], args[2])
	}}
	maps.Copy(roles, capturing)
	backuptest.Main(m, roles)
}

// host is a service that holds a write lock on its database, takes a snapshot
// through another connection of its pool, and then still holds the lock. It says
// a line at each stage and waits for one.
func host(p *backuptest.Parent, open Opener, path, backupDir string) error {
	ctx := context.Background()
	db, err := open(path)
	if err != nil {
		return err
	}
	defer db.Close()
	writer, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	if _, err := writer.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if _, err := writer.ExecContext(ctx, "INSERT INTO memory VALUES (NULL, 'not committed')"); err != nil {
		return err
	}
	p.Say("locked")
	p.Hear()
	m, err := backup.CreateRuntimeBackup(ctx, backup.Options{DB: db, DatabasePath: path, BackupDir: backupDir})
	if err != nil {
		return err
	}
	p.Say(m.Stamp)
	p.Hear()
	if _, err := writer.ExecContext(ctx, "COMMIT"); err != nil {
		return err
	}
	p.Say("committed")
	return nil
}

// restoring is a service that restores its database while it uses it, with a
// transaction that is not committed before it goes offline, and holds a write lock
// from resume on. It says a line at each stage and waits for one.
func restoring(p *backuptest.Parent, open Opener, path, backupDir, stamp string) error {
	ctx := context.Background()
	var db *sql.DB
	var writer *sql.Conn
	begin := func() (err error) {
		if db, err = open(path); err != nil {
			return err
		}
		if writer, err = db.Conn(ctx); err != nil {
			return err
		}
		for _, statement := range []string{"BEGIN IMMEDIATE", "INSERT INTO memory VALUES (NULL, 'late')"} {
			if _, err := writer.ExecContext(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	}
	end := func() error {
		_, err := writer.ExecContext(ctx, "COMMIT")
		return errors.Join(err, writer.Close(), db.Close())
	}
	if err := begin(); err != nil {
		return err
	}
	staged := false
	result, err := backup.RestoreRuntimeBackup(ctx, backup.Options{
		DB: db, DatabasePath: path, BackupDir: backupDir,
		OnProgress: func(progress backup.Progress) {
			if progress.Phase == backup.PhaseVerify && !staged {
				staged = true
				p.Say("staged")
				p.Hear()
			}
		},
		Offline: func(context.Context) (func(context.Context) error, error) {
			return func(context.Context) error { return begin() }, end()
		},
	}, stamp)
	if err != nil {
		return err
	}
	p.Say(strings.Join(result.SetAside, ", "))
	p.Hear()
	if err := end(); err != nil {
		return err
	}
	p.Say("committed")
	return nil
}

// makeDatabase creates a database of 10,000 rows.
func makeDatabase(t *testing.T, path, mode string) {
	db := backuptest.OpenDB(t, path)
	_, err := db.Exec("PRAGMA journal_mode=" + mode + `; CREATE TABLE memory (id INTEGER PRIMARY KEY, text TEXT);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 10000)
		INSERT INTO memory SELECT i, hex(randomblob(20)) FROM n`)
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

// requireLocked checks that another process holds the write lock.
func requireLocked(t *testing.T, path string) {
	t.Helper()
	db := backuptest.OpenDB(t, path, "_pragma=busy_timeout(0)")
	defer db.Close()
	_, err := db.Exec("BEGIN IMMEDIATE")
	require.Equal(t, 5 /* SQLITE_BUSY */, backuptest.SQLiteCode(err), "the host has lost its lock: %v", err)
}

func countRows(t *testing.T, path string) (n int) {
	t.Helper()
	db := backuptest.OpenDB(t, path, "mode=ro", "immutable=1")
	defer db.Close()
	require.NoError(t, db.QueryRow("SELECT count(*) FROM memory").Scan(&n))
	return n
}

// Run runs all tests with one driver.
func Run(t *testing.T, open Opener) {
	t.Run("locks of the host survive", func(t *testing.T) { RunLocks(t, "host") })
	t.Run("restore of a database in use", testRestoring)
	t.Run("database in memory", func(t *testing.T) { testMemory(t, open) })
	t.Run("cancelled while the pool is busy", func(t *testing.T) { testCancelled(t, open) })
}

func testLocks(t *testing.T, role, mode string) {
	dir := t.TempDir()
	path, backupDir := filepath.Join(dir, "live.db"), filepath.Join(dir, "backups")
	makeDatabase(t, path, mode)
	host := backuptest.Start(t, role, path, backupDir)
	require.Equal(t, "locked", host.Hear())
	requireLocked(t, path)
	stamp := host.Ask("take a snapshot")
	_, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: backupDir}, stamp)
	require.NoError(t, err)
	requireLocked(t, path)
	require.Equal(t, "committed", host.Ask("commit"))
	host.Wait()
	require.Equal(t, 10000, countRows(t, filepath.Join(backupDir, "snapshots", stamp, "db", "live.db")))
}

// Neither the safety snapshot nor what follows resume drops a lock of the driver.
func testRestoring(t *testing.T) {
	dir := t.TempDir()
	path, backupDir := filepath.Join(dir, "live.db"), filepath.Join(dir, "backups")
	makeDatabase(t, path, "wal")
	m, err := backup.CreateRuntimeBackup(context.Background(), backup.Options{DatabasePath: path, BackupDir: backupDir})
	require.NoError(t, err)
	// Another file: this process keeps a descriptor of the one that it has read.
	require.NoError(t, os.Rename(backuptest.CopyOf(t, path), path))
	host := backuptest.Start(t, "restoring", path, backupDir, m.Stamp)
	require.Equal(t, "staged", host.Hear())
	requireLocked(t, path)
	aside := host.Ask("go offline")
	requireLocked(t, path)
	require.Equal(t, "committed", host.Ask("commit"))
	host.Wait()
	require.Equal(t, 10001, countRows(t, path))
	require.Equal(t, 10001, countRows(t, filepath.Join(aside, "live.db")))
}

func testMemory(t *testing.T, open Opener) {
	db, err := open(":memory:")
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec("CREATE TABLE memory (id INTEGER PRIMARY KEY, text TEXT)")
	require.NoError(t, err)
	_, err = db.Exec("INSERT INTO memory VALUES (1, 'hello')")
	require.NoError(t, err)
	opts := backup.Options{DB: db, DatabasePath: "state.db", BackupDir: filepath.Join(t.TempDir(), "odd ?%# 'name'")}
	m, err := backup.CreateRuntimeBackup(context.Background(), opts)
	require.NoError(t, err)
	_, err = backup.ValidateBackup(context.Background(), opts, m.Stamp)
	require.NoError(t, err)
	require.NoFileExists(t, "state.db")
	_, err = db.Exec("INSERT INTO memory VALUES (2, 'the handle still works')")
	require.NoError(t, err)
}

func testCancelled(t *testing.T, open Opener) {
	dir := t.TempDir()
	path := filepath.Join(dir, "live.db")
	makeDatabase(t, path, "wal")
	db, err := open(path)
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	busy, err := db.Conn(context.Background())
	require.NoError(t, err)
	defer busy.Close()
	ctx, cancel := context.WithCancel(context.Background())
	opts := backup.Options{DB: db, DatabasePath: path, BackupDir: filepath.Join(dir, "backups"),
		OnProgress: func(p backup.Progress) {
			if p.Phase == backup.PhaseWait {
				cancel()
			}
		}}
	_, err = backup.CreateRuntimeBackup(ctx, opts)
	require.ErrorIs(t, err, context.Canceled)
	list, err := backup.ListRuntimeBackups(context.Background(), opts)
	require.NoError(t, err)
	require.Empty(t, list)
}
