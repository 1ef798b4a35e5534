package backup_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A panic of the host does not hide that staging could not be removed after it.
func TestPanicAndStagingThatCannotBeRemoved(t *testing.T) {
	s := backuptest.NewBareStore(t)
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseSeal {
			backuptest.MountTmpfs(t, filepath.Join(s.Staging()[0], "config"), "size=4k")
			panic("oops")
		}
	}
	_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
	require.ErrorIs(t, err, backup.ErrPanic)
	require.ErrorContains(t, err, "oops")
	require.ErrorContains(t, err, "remove staging: remove "+s.Staging()[0])
	require.ErrorContains(t, err, "config: it is a mount point")
	require.Empty(t, s.Stamps())
}

// A panic says nothing about a backup directory that was missing at first.
func TestPanicBesideAMissingBackupDirectory(t *testing.T) {
	s := backuptest.NewBareStore(t)
	s.InitDB = func(context.Context) error { panic("oops") }
	_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
	require.ErrorIs(t, err, backup.ErrPanic)
	require.NotContains(t, err.Error(), "no such file")
	s.RequireNoSnapshot()
}
