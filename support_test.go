package backup_test

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/testchroma"
)

// A store is a machine store in a directory of its own.
type store struct {
	t   *testing.T
	dir string
	// Options configure every call for it; a test may change them.
	backup.Options
}

// newStore makes a machine store: a WAL database with balanced accounts, a
// registry and a real Chroma directory. When the test ends, every visible
// snapshot must validate and no staging may be left.
func newStore(t *testing.T) *store {
	t.Helper()
	s := newBareStore(t)
	t.Cleanup(func() { s.requireClean() })
	return s
}

// newBareStore is newStore for tests that damage snapshots.
func newBareStore(t *testing.T) *store {
	t.Helper()
	dir := t.TempDir()
	s := &store{t: t, dir: dir, Options: backup.Options{
		DatabasePath:  filepath.Join(dir, "data", "atocore.db"),
		RegistryPath:  filepath.Join(dir, "config", "project-registry.json"),
		ChromaPath:    filepath.Join(dir, "data", "chroma"),
		BackupDir:     filepath.Join(dir, "backups"),
		IncludeChroma: true,
	}}
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "config"), 0o755))
	makeDatabase(t, s.DatabasePath, "_pragma=journal_mode(wal)")
	require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{\r\n  \"projects\": [\"α\"]\r\n}\r\n"), 0o640))
	require.NoError(t, testchroma.WriteTo(s.ChromaPath))
	return s
}

// openDB opens a database for the test's own use, with a pool of one.
func openDB(t *testing.T, path string, params ...string) *sql.DB {
	t.Helper()
	u := url.URL{Scheme: "file", Path: path}
	db, err := sql.Open("sqlite", u.String()+"?"+strings.Join(append(params, "_pragma=busy_timeout(30000)"), "&"))
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

const accounts = 100

// makeDatabase makes a database in which the balances of all accounts add up
// to 0. transfer keeps that within its transactions.
func makeDatabase(t *testing.T, path string, params ...string) {
	t.Helper()
	db := openDB(t, path, params...)
	_, err := db.Exec(`CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
		CREATE TABLE transfer (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL, note TEXT NOT NULL);
		CREATE INDEX transfer_amount ON transfer (amount)`)
	require.NoError(t, err)
	for i := range accounts {
		_, err := db.Exec("INSERT INTO account VALUES (?, 0)", i)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
}

// transfer moves an amount between two accounts in one transaction and records
// it.
func transfer(ctx context.Context, db *sql.DB, from, to, amount int) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, q := range []struct{ id, change int }{{from, -amount}, {to, amount}} {
		if _, err := tx.ExecContext(ctx, "UPDATE account SET balance = balance + ? WHERE id = ?", q.change, q.id); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO transfer (amount, note) VALUES (?, hex(randomblob(100)))", amount); err != nil {
		return err
	}
	return tx.Commit()
}

// create takes a snapshot that must succeed.
func (s *store) create() *backup.Metadata {
	s.t.Helper()
	m, err := backup.CreateRuntimeBackup(context.Background(), s.Options)
	require.NoError(s.t, err)
	return m
}

// snapshot gives a path in a snapshot.
func (s *store) snapshot(stamp string, elem ...string) string {
	return filepath.Join(append([]string{s.BackupDir, "snapshots", stamp}, elem...)...)
}

// requireSound checks a database copy: SQLite's own check, and the accounts'.
func requireSound(t *testing.T, path string) {
	t.Helper()
	db := openDB(t, path, "mode=ro", "immutable=1")
	defer db.Close()
	var text string
	require.NoError(t, db.QueryRow("PRAGMA integrity_check").Scan(&text))
	require.Equal(t, "ok", text)
	var sum, n int
	require.NoError(t, db.QueryRow("SELECT sum(balance), count(*) FROM account").Scan(&sum, &n))
	require.Zero(t, sum, "the copy is torn: the balances do not add up")
	require.Equal(t, accounts, n)
}

// requireClean checks that every visible snapshot validates and that nothing
// but snapshots is left in the backup directory.
func (s *store) requireClean() {
	s.t.Helper()
	list, err := backup.ListRuntimeBackups(context.Background(), backup.Options{BackupDir: s.BackupDir})
	require.NoError(s.t, err)
	for _, snapshot := range list {
		report, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: s.BackupDir}, snapshot.Stamp)
		require.NoError(s.t, err, fmt.Sprint(report))
	}
	s.requireNoStaging()
}

// requireNoStaging checks that nothing but snapshots is left in the backup
// directory.
func (s *store) requireNoStaging() {
	s.t.Helper()
	entries, err := os.ReadDir(s.BackupDir)
	if os.IsNotExist(err) {
		return
	}
	require.NoError(s.t, err)
	for _, entry := range entries {
		require.Equal(s.t, "snapshots", entry.Name(), "left in the backup directory")
	}
}
