package backuptest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// A Store is a machine store in a directory of its own.
type Store struct {
	T   *testing.T
	Dir string
	// Options configure every call on the store; a test may change them.
	backup.Options
}

// OptionsIn returns the options for the machine store in dir.
func OptionsIn(dir string) backup.Options {
	return backup.Options{
		DatabasePath:  filepath.Join(dir, "data", "atocore.db"),
		RegistryPath:  filepath.Join(dir, "config", "project-registry.json"),
		ChromaPath:    filepath.Join(dir, "data", "chroma"),
		BackupDir:     filepath.Join(dir, "backups"),
		IncludeChroma: true,
	}
}

// NewStore creates a machine store: a WAL database with balanced accounts, a
// registry and a real Chroma directory. When the test ends, every visible
// snapshot must validate and no staging may be left.
func NewStore(t *testing.T) *Store {
	t.Helper()
	s := NewBareStore(t)
	t.Cleanup(func() { s.RequireClean() })
	return s
}

// NewBareStore is NewStore for tests that damage snapshots: it checks nothing
// at the end.
func NewBareStore(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	s := &Store{T: t, Dir: dir, Options: OptionsIn(dir)}
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "config"), 0o755))
	MakeDatabase(t, s.DatabasePath, "_pragma=journal_mode(wal)")
	require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{\r\n  \"projects\": [\"α\"]\r\n}\r\n"), 0o640))
	require.NoError(t, WriteChroma(s.ChromaPath))
	return s
}

// NewSmallStore is NewBareStore with a small Chroma database, because the
// check of the real one takes SQLite a while under the race detector.
func NewSmallStore(t *testing.T) *Store {
	t.Helper()
	s := NewBareStore(t)
	database := s.InChroma("chroma.sqlite3")
	require.NoError(t, os.Remove(database))
	MakeDatabase(t, database)
	return s
}

// Create takes a snapshot, which must succeed.
func (s *Store) Create() *backup.Metadata {
	s.T.Helper()
	m, err := backup.CreateRuntimeBackup(context.Background(), s.Options)
	require.NoError(s.T, err)
	return m
}

// CreateSnapshot takes a snapshot, which must succeed, and returns it as one
// that can be damaged.
func (s *Store) CreateSnapshot() *Snapshot {
	s.T.Helper()
	return s.Snapshot(s.Create().Stamp)
}

// CreateFails tries to take a snapshot, which must fail and leave nothing, and
// returns the error.
func (s *Store) CreateFails() error {
	s.T.Helper()
	m, err := backup.CreateRuntimeBackup(context.Background(), s.Options)
	require.Error(s.T, err)
	require.Nil(s.T, m)
	s.RequireNoSnapshot()
	return err
}

// Restore restores a snapshot, which must succeed.
func (s *Store) Restore(stamp string) *backup.RestoreResult {
	s.T.Helper()
	r, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, stamp)
	require.NoError(s.T, err)
	return r
}

// Snapshot returns the store's snapshot as one that can be damaged.
func (s *Store) Snapshot(stamp string) *Snapshot {
	return &Snapshot{T: s.T, Stamp: stamp, Options: backup.Options{BackupDir: s.BackupDir}}
}

// SnapshotPath returns a path in a snapshot.
func (s *Store) SnapshotPath(stamp string, elem ...string) string {
	return filepath.Join(append([]string{s.BackupDir, "snapshots", stamp}, elem...)...)
}

// InChroma returns the path of a file of the Chroma directory, whose name has
// slashes.
func (s *Store) InChroma(name string) string {
	return filepath.Join(s.ChromaPath, filepath.FromSlash(name))
}

// Stamps returns the stamps of the visible snapshots, in their order.
func (s *Store) Stamps() (stamps []string) {
	s.T.Helper()
	list, err := backup.ListRuntimeBackups(context.Background(), backup.Options{BackupDir: s.BackupDir})
	require.NoError(s.T, err)
	for _, snapshot := range list {
		stamps = append(stamps, snapshot.Stamp)
	}
	return stamps
}

// Staging returns the paths in the backup directory that have the form of
// staging.
func (s *Store) Staging() []string {
	s.T.Helper()
	found, err := filepath.Glob(filepath.Join(s.BackupDir, ".atocore-staging-*"))
	require.NoError(s.T, err)
	return found
}

// Disturb changes the registry and the Chroma directory a little, so that neither
// is what any snapshot has: a restore leaves alone what is equal.
func (s *Store) Disturb() {
	s.T.Helper()
	f, err := os.OpenFile(s.RegistryPath, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(s.T, err)
	_, err = f.WriteString("\n")
	s.Must(err, f.Close(), os.WriteFile(s.InChroma("disturbed"), nil, 0o600))
}

// Must checks that none of the errors is set.
func (s *Store) Must(errs ...error) {
	s.T.Helper()
	require.NoError(s.T, errors.Join(errs...))
}

// RemoveAll removes path, which must exist, and everything below it.
func (s *Store) RemoveAll(path string) {
	s.T.Helper()
	_, err := os.Lstat(path)
	require.NoError(s.T, err)
	require.NoError(s.T, os.RemoveAll(path))
}

// RequireClean checks that every visible snapshot validates and that nothing
// but snapshots is left in the backup directory.
func (s *Store) RequireClean() {
	s.T.Helper()
	s.RequireValid()
	s.RequireNoStaging()
}

// RequireValid checks that every visible snapshot validates, and returns their
// stamps.
func (s *Store) RequireValid() []string {
	s.T.Helper()
	stamps := s.Stamps()
	for _, stamp := range stamps {
		_, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: s.BackupDir}, stamp)
		require.NoError(s.T, err)
	}
	return stamps
}

// RequireNoStaging checks that nothing but snapshots, what is recorded about them
// and the state of repositories elsewhere is left in the backup directory.
func (s *Store) RequireNoStaging() {
	s.T.Helper()
	entries, err := os.ReadDir(s.BackupDir)
	if os.IsNotExist(err) {
		return
	}
	require.NoError(s.T, err)
	for _, entry := range entries {
		require.Contains(s.T, []string{"snapshots", "records", ".atocore-offsite"}, entry.Name(), "left in the backup directory")
	}
	s.requireOnlyState()
	drafts, err := filepath.Glob(filepath.Join(s.BackupDir, "records", ".*"))
	require.NoError(s.T, err)
	require.Empty(s.T, drafts, "left beside the records")
}

// requireOnlyState checks that the state of repositories elsewhere has nothing in
// it that a push or a pull left behind.
func (s *Store) requireOnlyState() {
	s.T.Helper()
	for _, place := range []struct{ pattern, name string }{
		{"*", `^[0-9a-f]{64}$`},
		{"*/*", `^(cache|location|[0-9a-f]{16})$`},
		{"*/????????????????/*", `^(index\.json|lock|pending\.json|tmp|tree)$`},
		{"*/????????????????/tmp/*", `^$`}, // none
		{"*/????????????????/tree/*", `^(files|large|recipe\.json)$`},
	} {
		found, err := filepath.Glob(filepath.Join(s.BackupDir, ".atocore-offsite", place.pattern))
		require.NoError(s.T, err)
		for _, path := range found {
			require.Regexp(s.T, place.name, filepath.Base(path), "left in the state: %s", path)
		}
	}
}

// RequireNoSnapshot checks that there is neither a snapshot nor staging.
func (s *Store) RequireNoSnapshot() {
	s.T.Helper()
	s.RequireNoStaging()
	entries, err := os.ReadDir(s.SnapshotPath(""))
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(s.T, err)
	}
	require.Empty(s.T, entries, "a snapshot is visible")
}

// RequireNoRemains checks that a restore left nothing in the store.
func (s *Store) RequireNoRemains() {
	s.T.Helper()
	require.NoError(s.T, filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
		require.NotContains(s.T, d.Name(), "atocore-restore", "left by a restore: %s", path)
		return err
	}))
}

// Write creates the file path or replaces its content.
func Write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

// CopyOf copies a file to a directory of its own and returns its new path, so
// that a test can open the copy and leave the original alone.
func CopyOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	to := filepath.Join(t.TempDir(), filepath.Base(path))
	require.NoError(t, os.WriteFile(to, data, 0o600))
	return to
}

// FileSize returns the size of a file.
func FileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Size()
}
