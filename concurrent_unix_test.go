//go:build unix

package backup_test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// A stopped process is not a dead one.
func TestStagingOfAStoppedProcess(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	c := startCreate(s, backup.PhaseHash)
	require.NoError(t, c.cmd.Process.Signal(syscall.SIGSTOP))
	before := stagings(t, s)
	require.Len(t, before, 1)
	s.create()
	require.Equal(t, before, stagings(t, s))

	require.NoError(t, c.cmd.Process.Signal(syscall.SIGCONT))
	c.tell("go on")
	stamp := c.hear()
	c.wait()
	_, err := backup.ValidateBackup(t.Context(), s.Options, stamp)
	require.NoError(t, err)
}
