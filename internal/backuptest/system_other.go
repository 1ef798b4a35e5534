//go:build !linux

package backuptest

import "testing"

// MountBind skips the test: it is for Linux.
func MountBind(t *testing.T, _, _ string) { skipMount(t) }

// MountReadOnly skips the test: it is for Linux.
func MountReadOnly(t *testing.T, _, _ string) { skipMount(t) }

// MountTmpfs skips the test: it is for Linux.
func MountTmpfs(t *testing.T, _, _ string) { skipMount(t) }

// Unmount skips the test: it is for Linux.
func Unmount(t *testing.T, _ string) { skipMount(t) }

func skipMount(t *testing.T) {
	t.Helper()
	t.Skip("the mounts of this test are those of Linux")
}

// LocksOn returns nothing: only Linux lists locks.
func LocksOn(*testing.T, string) []string { return nil }

// OpenFiles returns nothing: it is implemented for Linux only.
func OpenFiles(*testing.T) []string { return nil }

// SetAttribute skips the test: it is for Linux.
func SetAttribute(t *testing.T, _ string, _ int) (clear func()) {
	skipMount(t)
	return nil
}
