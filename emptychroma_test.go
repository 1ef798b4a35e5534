package backup_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// An object store keeps no empty directory. A snapshot of an empty Chroma directory
// that went through one is valid, and a restore makes the directory.
func TestEmptyChromaDirectoryThatWasLost(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	require.NoError(t, os.RemoveAll(s.ChromaPath))
	require.NoError(t, os.Mkdir(s.ChromaPath, 0o755))
	m := s.Create()
	require.True(t, m.ChromaSnapshotIncluded)
	require.NoError(t, os.Remove(s.SnapshotPath(m.Stamp, "chroma")))
	require.NoError(t, os.Remove(s.ChromaPath))
	report, err := backup.ValidateBackup(t.Context(), s.Options, m.Stamp)
	require.NoError(t, err)
	require.True(t, *report.ChromaOK)
	s.Restore(m.Stamp)
	entries, err := os.ReadDir(s.ChromaPath)
	require.NoError(t, err)
	require.Empty(t, entries)
	backuptest.Write(t, s.InChroma("file"), "since")
	s.Restore(m.Stamp)
	require.NoFileExists(t, s.InChroma("file"))
	s.RequireNoRemains()
}
