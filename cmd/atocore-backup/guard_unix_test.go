//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package main

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A process that the command is starting has a duplicate of the guard's
// descriptor for a moment. The guard is released all the same.
func TestGuardIsReleasedThoughItsDescriptorHasADuplicate(t *testing.T) {
	guard := filepath.Join(t.TempDir(), "guard")
	unlock, err := flockGuard(guard, t.Logf).Lock(t.Context())
	require.NoError(t, err)
	duplicate := -1
	var want syscall.Stat_t
	require.NoError(t, syscall.Stat(guard, &want))
	for fd := 0; fd < 1000 && duplicate < 0; fd++ {
		var st syscall.Stat_t
		if syscall.Fstat(fd, &st) == nil && st.Ino == want.Ino && st.Dev == want.Dev {
			duplicate, err = syscall.Dup(fd)
			require.NoError(t, err)
		}
	}
	require.GreaterOrEqual(t, duplicate, 0, "the guard's descriptor was not found")
	defer syscall.Close(duplicate)

	f, err := openGuard(guard)
	require.NoError(t, err)
	defer f.Close()
	require.ErrorIs(t, flock(f), errGuardHeld)
	unlock()
	require.NoError(t, flock(f))
}
