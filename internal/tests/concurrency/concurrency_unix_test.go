//go:build unix

package concurrency

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A process that is stopped is not dead, so its staging is left alone.
func TestStagingOfAStoppedProcess(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	c := startCreate(s, backup.PhaseHash)
	require.NoError(t, c.Cmd.Process.Signal(syscall.SIGSTOP))
	before := s.Staging()
	require.Len(t, before, 1)
	s.Create()
	require.Equal(t, before, s.Staging())

	require.NoError(t, c.Cmd.Process.Signal(syscall.SIGCONT))
	c.Tell("go on")
	stamp := c.Hear()
	c.Wait()
	_, err := backup.ValidateBackup(t.Context(), s.Options, stamp)
	require.NoError(t, err)
}
