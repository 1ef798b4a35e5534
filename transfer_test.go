package backup_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// export returns the archive of a snapshot.
func export(t *testing.T, opts backup.Options, stamp string) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, backup.ExportRuntimeBackup(t.Context(), opts, stamp, &b))
	return b.Bytes()
}

// emptyPlace returns options for a backup directory that does not exist.
func emptyPlace(t *testing.T) backup.Options {
	return backup.Options{BackupDir: filepath.Join(t.TempDir(), "backups")}
}

// An exported snapshot is imported as it was, and exported again to the same
// bytes.
func TestExportAndImport(t *testing.T) {
	for name, store := range map[string]func(*testing.T) *backuptest.Store{
		"whole store": backuptest.NewStore, "without Chroma": backuptest.NewSmallStore, "bare": backuptest.NewBareStore,
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			meta := s.Create()
			data := export(t, s.Options, meta.Stamp)
			require.Equal(t, data, export(t, s.Options, meta.Stamp), "the same snapshot, other bytes")

			opts := emptyPlace(t)
			imported, err := backup.ImportRuntimeBackup(t.Context(), opts, bytes.NewReader(data))
			require.NoError(t, err)
			require.Equal(t, meta, imported)
			require.Equal(t, backuptest.ReadTree(t, s.SnapshotPath(meta.Stamp)), backuptest.ReadTree(t, filepath.Join(opts.BackupDir, "snapshots", meta.Stamp)))
			require.Equal(t, data, export(t, opts, meta.Stamp))
			report, err := backup.ValidateBackup(t.Context(), opts, meta.Stamp)
			require.NoError(t, err)
			require.True(t, report.Valid)

			s.Options.BackupDir = opts.BackupDir
			s.RequireNoStaging()
			require.NoError(t, os.Remove(s.DatabasePath))
			s.Restore(meta.Stamp)
			backuptest.RequireSound(t, s.DatabasePath)
		})
	}
}

var _ = context.Background
var _ = errors.Is
var _ fs.FileMode
