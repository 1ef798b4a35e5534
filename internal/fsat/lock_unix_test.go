//go:build linux || darwin

package fsat_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/fsat"
)

// duplicate duplicates the one descriptor of the file that this process has, as
// fork(2) does, until the test ends.
func duplicate(t *testing.T, file fsat.Info) {
	t.Helper()
	found := -1
	for fd := range 1000 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Ino == file.Ino && uint64(st.Dev) == file.Dev {
			require.Negative(t, found, "the file is open twice")
			found = fd
		}
	}
	require.GreaterOrEqual(t, found, 0)
	copied, err := unix.FcntlInt(uintptr(found), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(copied) })
}

// A lock ends with Close although a process that is being started has a
// duplicate of the descriptor.
func TestCloseEndsTheLock(t *testing.T) {
	for name, lock := range map[string]func(*fsat.Dir) error{"exclusive": (*fsat.Dir).TryLock, "shared": (*fsat.Dir).TryRLock} {
		t.Run(name+" of a directory", func(t *testing.T) {
			a, path := open(t)
			require.NoError(t, lock(a))
			info, err := a.Stat()
			require.NoError(t, err)
			duplicate(t, info)
			b, err := fsat.OpenDir(path)
			require.NoError(t, err)
			defer b.Close()
			require.ErrorIs(t, b.TryLock(), fsat.ErrLocked)
			require.NoError(t, a.Close())
			require.NoError(t, b.TryLock())
		})
	}
	for name, lock := range map[string]func(*fsat.File) error{"exclusive": (*fsat.File).TryLock, "shared": (*fsat.File).TryRLock} {
		t.Run(name+" of a file", func(t *testing.T) {
			dir, _ := open(t)
			a, err := dir.Create("f", 0o600)
			require.NoError(t, err)
			defer a.Close()
			require.NoError(t, lock(a))
			info, err := a.Stat()
			require.NoError(t, err)
			duplicate(t, info)
			b, err := dir.Open("f")
			require.NoError(t, err)
			defer b.Close()
			require.ErrorIs(t, b.TryLock(), fsat.ErrLocked)
			require.NoError(t, a.Close())
			require.NoError(t, b.TryLock())
		})
	}
}
