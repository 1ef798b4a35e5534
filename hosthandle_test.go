package backup_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

func TestCaptureThroughTheHostsHandle(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	db := openDB(t, s.DatabasePath)
	require.NoError(t, transfer(context.Background(), db, 1, 2, 5))
	s.DB = db
	m := s.create()
	requireSound(t, m.DBSnapshotPath)
	require.NoError(t, transfer(context.Background(), db, 1, 2, 5), "the handle works on")
}

// memoryStore makes a store whose database is in memory, in a pool of one
// connection: losing that loses the database.
func memoryStore(t *testing.T) *store {
	s := newStore(t)
	require.NoError(t, os.Remove(s.DatabasePath))
	db, err := sql.Open("sqlite", ":memory:")
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	fillDatabase(t, db)
	s.DB = db
	return s
}

func TestCaptureOfADatabaseInMemory(t *testing.T) {
	t.Parallel()
	s := memoryStore(t)
	m := s.create()
	requireSound(t, m.DBSnapshotPath)
	require.Equal(t, filepath.Base(s.DatabasePath), filepath.Base(m.DBSnapshotPath))
	require.NoFileExists(t, s.DatabasePath)
	require.NoError(t, transfer(context.Background(), s.DB, 1, 2, 5))
}

func TestDatabaseInMemorySurvivesAFailedCapture(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		fail func(s *store, cancel func())
		want error
	}{
		{"panic", func(s *store, _ func()) {
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseDatabase && p.Bytes > 0 {
					panic("of the host")
				}
			}
		}, backup.ErrPanic},
		{"cancelled before", func(s *store, cancel func()) {
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseDatabase {
					cancel()
				}
			}
		}, context.Canceled},
		{"cancelled within", func(s *store, cancel func()) {
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseDatabase && p.Bytes > 0 {
					cancel()
				}
			}
		}, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := memoryStore(t)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			tt.fail(s, cancel)
			_, err := backup.CreateRuntimeBackup(ctx, s.Options)
			require.ErrorIs(t, err, tt.want)
			require.NoError(t, transfer(context.Background(), s.DB, 1, 2, 5), "the database is still there, with no transaction open")
			s.OnProgress = nil
			requireSound(t, s.create().DBSnapshotPath)
		})
	}
}

func TestHandleInsideATransactionIsRefused(t *testing.T) {
	t.Parallel()
	s := memoryStore(t)
	_, err := s.DB.Exec("BEGIN")
	require.NoError(t, err)
	_, err = backup.CreateRuntimeBackup(context.Background(), s.Options)
	require.ErrorContains(t, err, "within a transaction")
	_, err = s.DB.Exec("COMMIT")
	require.NoError(t, err, "the host's transaction is left to the host")
}

func TestHandleOfAnotherFileIsRefused(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	other := filepath.Join(s.dir, "other.db")
	makeDatabase(t, other)
	for _, tt := range []struct {
		name string
		db   *sql.DB
		path string
	}{
		{"another file", openDB(t, other), s.DatabasePath},
		{"a file, and a path that is none", openDB(t, other), filepath.Join(s.dir, "none.db")},
		{"in memory, and a path that is a file", memoryStore(t).DB, s.DatabasePath},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := s.Options
			opts.DB, opts.DatabasePath = tt.db, tt.path
			_, err := backup.CreateRuntimeBackup(context.Background(), opts)
			require.ErrorIs(t, err, backup.ErrInvalidOptions)
		})
	}
}

func TestClosedHandleIsAnError(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.DB = openDB(t, s.DatabasePath)
	require.NoError(t, s.DB.Close())
	_, err := backup.CreateRuntimeBackup(context.Background(), s.Options)
	require.ErrorContains(t, err, "closed")
}
