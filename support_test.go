package backup_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
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
	s := &store{t: t, dir: dir, Options: storeIn(dir)}
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "config"), 0o755))
	makeDatabase(t, s.DatabasePath, "_pragma=journal_mode(wal)")
	require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{\r\n  \"projects\": [\"α\"]\r\n}\r\n"), 0o640))
	require.NoError(t, backuptest.WriteChroma(s.ChromaPath))
	return s
}

// storeIn gives the options for the machine store in dir.
func storeIn(dir string) backup.Options {
	return backup.Options{
		DatabasePath:  filepath.Join(dir, "data", "atocore.db"),
		RegistryPath:  filepath.Join(dir, "config", "project-registry.json"),
		ChromaPath:    filepath.Join(dir, "data", "chroma"),
		BackupDir:     filepath.Join(dir, "backups"),
		IncludeChroma: true,
	}
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
	fillDatabase(t, db)
	require.NoError(t, db.Close())
}

func fillDatabase(t *testing.T, db *sql.DB) {
	t.Helper()
	_, err := db.Exec(`CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
		CREATE TABLE transfer (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL, note TEXT NOT NULL);
		CREATE INDEX transfer_amount ON transfer (amount)`)
	require.NoError(t, err)
	for i := range accounts {
		_, err := db.Exec("INSERT INTO account VALUES (?, 0)", i)
		require.NoError(t, err)
	}
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

// createWith takes a snapshot with these options.
func createWith(t *testing.T, opts backup.Options) (*backup.Metadata, error) {
	t.Helper()
	return backup.CreateRuntimeBackup(context.Background(), opts)
}

// createFails tries to take a snapshot and returns why it could not. Nothing
// may be left of the attempt.
func (s *store) createFails() error {
	s.t.Helper()
	m, err := backup.CreateRuntimeBackup(context.Background(), s.Options)
	require.Error(s.t, err)
	require.Nil(s.t, m)
	s.requireNoSnapshot()
	return err
}

// requireNoSnapshot checks that there is neither a snapshot nor staging.
func (s *store) requireNoSnapshot() {
	s.t.Helper()
	s.requireNoStaging()
	entries, err := os.ReadDir(s.snapshot(""))
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(s.t, err)
	}
	require.Empty(s.t, entries, "a snapshot is visible")
}

// record makes the store log into what it returns.
func (s *store) record() *logRecord {
	log := new(logRecord)
	s.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey && a.Value.Any() == slog.LevelInfo {
				return slog.Attr{}
			}
			return a
		},
	}))
	return log
}

// A logRecord holds what was logged, a line a message: the message and its
// fields, after the level if that is not INFO.
type logRecord struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logRecord) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logRecord) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

func (l *logRecord) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(l.text.String(), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.Replace(lines[i], "msg=", "", 1)
	}
	return lines
}

// removeAll removes what is at path, which must be there.
func (s *store) removeAll(path string) {
	s.t.Helper()
	_, err := os.Lstat(path)
	require.NoError(s.t, err)
	require.NoError(s.t, os.RemoveAll(path))
}

// write makes the file path anew.
func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

// A treeFile is what readTree sees of a file.
type treeFile struct {
	mode  fs.FileMode
	size  int64 // of a regular file
	mtime int64
	sum   [sha256.Size]byte // of a regular file's content, or of a link's target
}

// readTree describes dir and everything below it by slash-separated path.
func readTree(t *testing.T, dir string) map[string]treeFile {
	t.Helper()
	tree := map[string]treeFile{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		file := treeFile{mode: info.Mode(), mtime: info.ModTime().UnixNano()}
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			file.size, file.sum = int64(len(data)), sha256.Sum256(data)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			file.sum = sha256.Sum256([]byte(target))
		}
		rel, err := filepath.Rel(dir, path)
		tree[filepath.ToSlash(rel)] = file
		return err
	}))
	return tree
}

// countTransfers tells how many transfers a database copy holds.
func countTransfers(t *testing.T, path string) (n int) {
	t.Helper()
	requireSound(t, path)
	db := openDB(t, path, "mode=ro", "immutable=1")
	defer db.Close()
	require.NoError(t, db.QueryRow("SELECT count(*) FROM transfer").Scan(&n))
	return n
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Size()
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
		_, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: s.BackupDir}, snapshot.Stamp)
		require.NoError(s.t, err)
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
