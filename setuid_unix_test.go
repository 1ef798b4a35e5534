//go:build linux || darwin

package backup_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// requireNoSetuid checks that no file below root gives others its owner's rights.
func requireNoSetuid(t *testing.T, root string) {
	t.Helper()
	for path, file := range backuptest.ReadTree(t, root) {
		if file.Mode.IsDir() {
			require.Zero(t, file.Mode&fs.ModeSetuid, path)
		} else {
			require.Zero(t, file.Mode&(fs.ModeSetuid|fs.ModeSetgid), path)
		}
	}
}

// A program of one user does not become a program of the user who takes the
// snapshot, or who restores it: neither has the bits that make it run with its
// owner's rights. An old snapshot may still have them.
func TestSetuidIsDropped(t *testing.T) {
	s := backuptest.NewStore(t)
	program := s.InChroma("program")
	backuptest.Write(t, program, "#!/bin/sh\n")
	require.NoError(t, os.Mkdir(s.InChroma("shared"), 0o755))
	special := func(root string) {
		t.Helper()
		require.NoError(t, os.Chmod(filepath.Join(root, "program"), 0o755|fs.ModeSetuid|fs.ModeSetgid))
		require.NoError(t, os.Chmod(filepath.Join(root, "shared"), 0o755|fs.ModeSetuid|fs.ModeSetgid))
	}
	special(s.ChromaPath)

	m := s.Create()
	requireNoSetuid(t, m.ChromaSnapshotPath)
	made := backuptest.ReadTree(t, m.ChromaSnapshotPath)
	require.EqualValues(t, 0o755, made["program"].Mode)
	require.Equal(t, 0o755|fs.ModeDir|fs.ModeSetgid, made["shared"].Mode)
	s.RequireValid()

	// Restored over the store, and elsewhere, from a snapshot that has them.
	special(m.ChromaSnapshotPath)
	s.RequireValid()
	s.Disturb() // what is equal is left alone
	s.Restore(m.Stamp)
	requireNoSetuid(t, s.ChromaPath)
	require.Equal(t, made["program"], backuptest.ReadTree(t, s.ChromaPath)["program"])

	elsewhere := backuptest.OptionsIn(t.TempDir())
	elsewhere.BackupDir = s.BackupDir
	_, err := backup.RestoreRuntimeBackup(t.Context(), elsewhere, m.Stamp)
	require.NoError(t, err)
	requireNoSetuid(t, elsewhere.ChromaPath)
	require.Equal(t, made["shared"].Mode, backuptest.ReadTree(t, elsewhere.ChromaPath)["shared"].Mode)
}
