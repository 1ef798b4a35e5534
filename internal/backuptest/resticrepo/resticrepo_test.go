package resticrepo_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest/resticrepo"
)

func TestMake(t *testing.T) {
	if _, err := exec.LookPath("restic"); err != nil {
		t.Skip("restic is not installed")
	}
	dir := filepath.Join(t.TempDir(), "repo")
	require.NoError(t, resticrepo.Make(dir))
	for _, args := range [][]string{{"backup", "."}, {"check"}, {"snapshots"}} {
		cmd := exec.CommandContext(t.Context(), "restic", args...)
		cmd.Env = append(os.Environ(), "RESTIC_REPOSITORY="+dir, "RESTIC_PASSWORD="+resticrepo.Password, "RESTIC_CACHE_DIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}
