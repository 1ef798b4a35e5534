package backup_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func TestCaptureThroughTheHostsHandle(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	db := backuptest.OpenDB(t, s.DatabasePath)
	require.NoError(t, backuptest.Transfer(context.Background(), db, 1, 2, 5))
	s.DB = db
	m := s.Create()
	backuptest.RequireSound(t, m.DBSnapshotPath)
	require.NoError(t, backuptest.Transfer(context.Background(), db, 1, 2, 5), "the handle works on")
}

// memoryStore makes a store whose database is in memory, in a pool of one
// connection: losing that loses the database.
func memoryStore(t *testing.T) *backuptest.Store {
	s := backuptest.NewStore(t)
	require.NoError(t, os.Remove(s.DatabasePath))
	db, err := sql.Open("sqlite", ":memory:")
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	backuptest.FillDatabase(t, db)
	s.DB = db
	return s
}

func TestCaptureOfADatabaseInMemory(t *testing.T) {
	t.Parallel()
	s := memoryStore(t)
	m := s.Create()
	backuptest.RequireSound(t, m.DBSnapshotPath)
	require.Equal(t, filepath.Base(s.DatabasePath), filepath.Base(m.DBSnapshotPath))
	require.NoFileExists(t, s.DatabasePath)
	require.NoError(t, backuptest.Transfer(context.Background(), s.DB, 1, 2, 5))
}

func TestDatabaseInMemorySurvivesAFailedCapture(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		fail func(s *backuptest.Store, cancel func())
		want error
	}{
		{"panic", func(s *backuptest.Store, _ func()) {
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseDatabase && p.Bytes > 0 {
					panic("of the host")
				}
			}
		}, backup.ErrPanic},
		{"cancelled before", func(s *backuptest.Store, cancel func()) {
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseDatabase {
					cancel()
				}
			}
		}, context.Canceled},
		{"cancelled within", func(s *backuptest.Store, cancel func()) {
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
			require.NoError(t, backuptest.Transfer(context.Background(), s.DB, 1, 2, 5), "the database is still there, with no transaction open")
			s.OnProgress = nil
			backuptest.RequireSound(t, s.Create().DBSnapshotPath)
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
	s := backuptest.NewStore(t)
	other := filepath.Join(s.Dir, "other.db")
	backuptest.MakeDatabase(t, other)
	for _, tt := range []struct {
		name string
		db   *sql.DB
		path string
	}{
		{"another file", backuptest.OpenDB(t, other), s.DatabasePath},
		{"a file, and a path that is none", backuptest.OpenDB(t, other), filepath.Join(s.Dir, "none.db")},
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
	s := backuptest.NewStore(t)
	s.DB = backuptest.OpenDB(t, s.DatabasePath)
	require.NoError(t, s.DB.Close())
	_, err := backup.CreateRuntimeBackup(context.Background(), s.Options)
	require.ErrorContains(t, err, "closed")
}
