package faults

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// TestDiskFillsUpWhereSQLiteWrites fills the disk just before SQLite writes to the
// copy: when it folds a WAL into it, in the online backup, and when it runs VACUUM
// INTO for a host. A full disk is ENOSPC there as everywhere. A restore whose
// safety snapshot has no room for that reason replaces nothing.
func TestDiskFillsUpWhereSQLiteWrites(t *testing.T) {
	parent := memoryDir(t)
	dir := mountTmpfs(48<<20)(t, parent)
	s := newStore(t, parent, "wal")
	s.RegistryPath, s.ChromaPath, s.IncludeChroma = "", "", false
	s.BackupDir = filepath.Join(dir, "backups")
	snapshot := s.Create()

	// A writer that died left a WAL with much in it.
	db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=wal_autocheckpoint(0)")
	_, err := db.Exec("CREATE TABLE filler (a); INSERT INTO filler VALUES (randomblob(4000000)); INSERT INTO filler VALUES (randomblob(4000000))")
	require.NoError(t, err)
	backuptest.KeepWAL(t, db, s.DatabasePath)

	fail := func(t *testing.T, at backup.Phase, left int64, call func(opts backup.Options) error) {
		t.Helper()
		filled, empty := false, func() error { return nil }
		opts := s.Options
		opts.OnProgress = func(p backup.Progress) {
			if p.Phase == at && !filled {
				filled = true
				var err error
				empty, err = fill(dir, left)
				require.NoError(t, err)
			}
		}
		err := call(opts)
		require.NoError(t, empty())
		require.True(t, filled)
		require.ErrorIs(t, err, unix.ENOSPC)
		require.NotErrorIs(t, err, backup.ErrNoSpace, "it was found before SQLite wrote")
		require.ErrorContains(t, err, "disk is full", "it is not SQLite that found it")
		require.Empty(t, s.Staging())
		require.Equal(t, []string{snapshot.Stamp}, s.Stamps())
	}
	create := func(opts backup.Options) error {
		_, err := backup.CreateRuntimeBackup(context.Background(), opts)
		return err
	}
	t.Run("fold", func(t *testing.T) { fail(t, backup.PhaseSeal, 0, create) })
	t.Run("online backup", func(t *testing.T) {
		fail(t, backup.PhaseDatabase, 1<<20, func(opts backup.Options) error {
			opts.OnlineBackup = true
			return create(opts)
		})
	})
	t.Run("restore", func(t *testing.T) {
		fail(t, backup.PhaseDatabase, 1<<20, func(opts backup.Options) error {
			opts.OnlineBackup = true
			_, err := backup.RestoreRuntimeBackup(context.Background(), opts, snapshot.Stamp)
			return err
		})
		s.RequireNoRemains()
		n := 0
		require.NoError(t, backuptest.OpenDB(t, s.DatabasePath).QueryRow("SELECT count(*) FROM filler").Scan(&n))
		require.Equal(t, 2, n)
	})
}
