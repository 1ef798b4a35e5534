package backup_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// No stamp leads out of snapshots/, causes a panic, or is taken for a snapshot
// that does not exist.
func FuzzValidateStamp(f *testing.F) {
	dir := f.TempDir()
	require.NoError(f, os.MkdirAll(filepath.Join(dir, "snapshots", "real"), 0o755))
	require.NoError(f, os.WriteFile(filepath.Join(dir, "snapshots", "file"), nil, 0o600))
	for _, seed := range []string{
		"20261124T115419Z", "20261124T115419Z-002", "real", "file", "REAL", "", ".", "..", "../x", "real/", "real/.", "./real", "/etc", "a\x00b",
		"\xff", "\n", `..\x`, "C:", "real:stream", "CON", strings.Repeat("a", 255), strings.Repeat("a", 256), "20261124T115419Z-99999999999999999999",
		"20261124T115419.5Z", "20261124T115419.5Z-002", "20261124T115419Z-0002", "…",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, stamp string) {
		report, err := backup.ValidateBackup(t.Context(), backup.Options{BackupDir: dir}, stamp)
		require.ErrorIs(t, err, backup.ErrInvalidBackup)
		backuptest.RequireReport(t, report, err)
		rel, err := filepath.Rel(filepath.Join(dir, "snapshots"), report.Path)
		require.NoError(t, err)
		require.True(t, filepath.IsLocal(rel))
		if stamp != "real" && runtime.GOOS == "linux" {
			require.False(t, report.Exists)
		}
	})
}
