package drivers

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A Host is a service that has a database open with the driver under test.
type Host struct {
	// Capture is that of Options.
	Capture func(ctx context.Context, path string) error
	// Exec runs one statement on a connection that Capture does not use. For
	// a database in memory that has a single connection, it is the same.
	Exec func(statement string) error
	// Close closes the database.
	Close func() error
}

// A Starter starts a host whose database is at path, or is named by it.
type Starter func(path string) (*Host, error)

// RunCapture runs the tests of Options.Capture with one driver and one kind of
// database. onDisk says that there is a file at the path.
func RunCapture(t *testing.T, start Starter, onDisk bool) {
	t.Run("restored", func(t *testing.T) { testCaptureAndRestore(t, start, onDisk) })
	t.Run("cancelled", func(t *testing.T) { testCaptureCancelled(t, start) })
	t.Run("the driver fails", func(t *testing.T) { testCaptureFails(t, start) })
	t.Run("nothing is written", func(t *testing.T) { testCaptureWritesNothing(t, start) })
}

// startFilled starts a host with 10,000 rows in a new database, and returns it with
// the options of its store.
func startFilled(t *testing.T, start Starter) (*Host, backup.Options) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "odd %# 'name'")
	require.NoError(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "live.db")
	h, err := start(path)
	require.NoError(t, err)
	t.Cleanup(func() { h.Close() })
	for _, statement := range []string{
		"CREATE TABLE memory (id INTEGER PRIMARY KEY, text TEXT)",
		`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 10000)
			INSERT INTO memory SELECT i, hex(randomblob(20)) FROM n`,
	} {
		require.NoError(t, h.Exec(statement))
	}
	return h, backup.Options{Capture: h.Capture, DatabasePath: path, BackupDir: filepath.Join(dir, "backups?")}
}

func requireNothingMade(t *testing.T, opts backup.Options) {
	t.Helper()
	list, err := backup.ListRuntimeBackups(t.Context(), opts)
	require.NoError(t, err)
	require.Empty(t, list)
	left, err := filepath.Glob(filepath.Join(opts.BackupDir, ".atocore-staging*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func testCaptureAndRestore(t *testing.T, start Starter, onDisk bool) {
	h, opts := startFilled(t, start)
	var before []byte
	if onDisk {
		data, err := os.ReadFile(opts.DatabasePath)
		require.NoError(t, err)
		before = data
	}
	meta, err := backup.CreateRuntimeBackup(t.Context(), opts)
	require.NoError(t, err)
	if onDisk {
		after, err := os.ReadFile(opts.DatabasePath)
		require.NoError(t, err)
		require.Equal(t, before, after)
	} else {
		require.NoFileExists(t, opts.DatabasePath)
	}
	_, err = backup.ValidateBackup(t.Context(), opts, meta.Stamp)
	require.NoError(t, err)
	require.NoError(t, h.Exec("DELETE FROM memory WHERE id > 5000"), "the host goes on")

	restored := backup.Options{DatabasePath: filepath.Join(t.TempDir(), "restored.db"), BackupDir: opts.BackupDir}
	_, err = backup.RestoreRuntimeBackup(t.Context(), restored, meta.Stamp)
	require.NoError(t, err)
	require.Equal(t, 10000, countRows(t, restored.DatabasePath))
	db := backuptest.OpenDB(t, restored.DatabasePath)
	defer db.Close()
	var distinct int
	require.NoError(t, db.QueryRow("SELECT count(DISTINCT text) FROM memory WHERE length(text) = 40").Scan(&distinct))
	require.Equal(t, 10000, distinct)
}

func testCaptureCancelled(t *testing.T, start Starter) {
	h, opts := startFilled(t, start)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opts.Capture = func(ctx context.Context, path string) error {
		cancel()
		return h.Capture(ctx, path)
	}
	_, err := backup.CreateRuntimeBackup(ctx, opts)
	require.ErrorIs(t, err, context.Canceled)
	requireNothingMade(t, opts)
	require.NoError(t, h.Exec("DELETE FROM memory WHERE id = 1"))
	opts.Capture = h.Capture
	_, err = backup.CreateRuntimeBackup(t.Context(), opts)
	require.NoError(t, err, "the host can capture again")
}

func testCaptureFails(t *testing.T, start Starter) {
	h, opts := startFilled(t, start)
	require.NoError(t, h.Close())
	_, err := backup.CreateRuntimeBackup(t.Context(), opts)
	require.Error(t, err)
	require.NotErrorIs(t, err, backup.ErrSourceInvalid, "it is the driver's error that is returned")
	requireNothingMade(t, opts)
}

func testCaptureWritesNothing(t *testing.T, start Starter) {
	dir := t.TempDir()
	opts := backup.Options{DatabasePath: filepath.Join(dir, "live.db"), BackupDir: filepath.Join(dir, "backups")}
	h, err := start(opts.DatabasePath)
	require.NoError(t, err)
	defer h.Close()
	opts.Capture = h.Capture // of an empty database
	_, err = backup.CreateRuntimeBackup(t.Context(), opts)
	require.ErrorIs(t, err, backup.ErrSourceInvalid)
	opts.Capture = func(context.Context, string) error { return nil }
	_, err = backup.CreateRuntimeBackup(t.Context(), opts)
	require.ErrorIs(t, err, backup.ErrSourceInvalid)
	requireNothingMade(t, opts)
}

// CapturingHost is a role for Main: a service that holds a write lock on its
// database while it takes a snapshot. The arguments are the path of the database
// and the backup directory. With capture, Options.Capture is set.
func CapturingHost(start Starter, capture bool) backuptest.Role {
	return func(p *backuptest.Parent, args []string) error {
		h, err := start(args[0])
		if err != nil {
			return err
		}
		defer h.Close()
		for _, statement := range []string{"BEGIN IMMEDIATE", "INSERT INTO memory VALUES (NULL, 'not committed')"} {
			if err := h.Exec(statement); err != nil {
				return err
			}
		}
		p.Say("locked")
		p.Hear()
		opts := backup.Options{DatabasePath: args[0], BackupDir: args[1]}
		if capture {
			opts.Capture = h.Capture
		}
		m, err := backup.CreateRuntimeBackup(context.Background(), opts)
		if err != nil {
			return err
		}
		p.Say(m.Stamp)
		p.Hear()
		if err := h.Exec("COMMIT"); err != nil {
			return err
		}
		p.Say("committed")
		return nil
	}
}

// RunLocks checks that the host of a role keeps its locks, in both journal modes.
func RunLocks(t *testing.T, role string) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) { testLocks(t, role, mode) })
	}
}
