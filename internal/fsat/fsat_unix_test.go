//go:build unix

package fsat_test

import (
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/fsat"
)

// Opening a FIFO does not wait for a writer, and its type is told.
func TestOpenDoesNotBlock(t *testing.T) {
	dir, path := open(t)
	require.NoError(t, unix.Mkfifo(filepath.Join(path, "fifo"), 0o600))
	f, err := dir.Open("fifo")
	require.NoError(t, err)
	info, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, fs.ModeNamedPipe, info.Mode.Type())
	require.NoError(t, f.Close())
	f, err = fsat.OpenFile(filepath.Join(path, "fifo"))
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// One lock at a time, or many shared ones; it ends with the descriptor.
func TestLock(t *testing.T) {
	a, path := open(t)
	b, err := fsat.OpenDir(path)
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, a.TryLock())
	require.ErrorIs(t, b.TryLock(), fsat.ErrLocked)
	require.ErrorIs(t, b.TryRLock(), fsat.ErrLocked)
	require.NoError(t, a.Unlock())
	require.NoError(t, b.TryRLock())
	require.NoError(t, a.TryRLock())
	require.ErrorIs(t, a.TryLock(), fsat.ErrLocked)
	require.NoError(t, a.Close())
	require.NoError(t, b.TryLock())
}

// Modes are those asked for, whatever the umask, and times exact.
func TestModesAndTimes(t *testing.T) {
	dir, path := open(t)
	for _, mode := range []fs.FileMode{0, 0o400, 0o644, 0o777, 0o755 | fs.ModeSetuid, 0o755 | fs.ModeSetgid, 0o777 | fs.ModeSticky} {
		require.NoError(t, dir.Mkdir("d", 0o700))
		sub, err := dir.OpenDir("d")
		require.NoError(t, err)
		require.NoError(t, sub.Chmod(mode))
		info, err := sub.Stat()
		require.NoError(t, err)
		require.Equal(t, mode|fs.ModeDir, info.Mode)
		require.NoError(t, sub.Close())
		require.NoError(t, dir.Remove("d", true))

		f, err := dir.Create("f", 0o600)
		require.NoError(t, err)
		require.NoError(t, f.Chmod(mode))
		info, err = dir.Lstat("f")
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode)
		require.NoError(t, f.Close())
		require.NoError(t, dir.Remove("f", false))
	}
	write(t, "x", path, "f")
	require.NoError(t, os.Symlink("f", filepath.Join(path, "link")))
	for _, at := range []fsat.Time{
		{}, {Sec: 1700000000, Nsec: 123456789}, {Sec: -5, Nsec: 999999999}, {Sec: -86400 * 365, Nsec: 1},
		{Sec: 1 << 33, Nsec: 7}, {Sec: 13569465600, Nsec: 999999999}, // in 2242 and 2400
	} {
		if strconv.IntSize == 32 && at.Sec > math.MaxInt32 {
			require.ErrorIs(t, dir.Chtimes("f", at), syscall.ERANGE)
			require.NoError(t, new(fsat.Unkept).Times(dir.Chtimes("f", at)))
			continue
		}
		require.NoError(t, dir.Chtimes("f", at))
		info, err := dir.Lstat("f")
		require.NoError(t, err)
		require.Equal(t, at, info.Mtime)
		require.NoError(t, dir.Chtimes("link", fsat.Time{Sec: at.Sec + 1, Nsec: at.Nsec}))
		info, err = dir.Lstat("f")
		require.NoError(t, err)
		require.Equal(t, at, info.Mtime, "the link was followed")
		require.NoError(t, dir.Chtimes(".", at))
		info, err = dir.Stat()
		require.NoError(t, err)
		require.Equal(t, at, info.Mtime)
	}
}

// Unchanged notices what a writer does.
func TestUnchanged(t *testing.T) {
	dir, path := open(t)
	stat := func() fsat.Info {
		info, err := dir.Lstat("f")
		require.NoError(t, err)
		return info
	}
	write(t, "x", path, "f")
	require.NoError(t, os.Link(filepath.Join(path, "f"), filepath.Join(path, "old")))
	was := stat()
	require.True(t, was.Unchanged(stat()))
	require.True(t, was.SameFile(stat()))
	require.EqualValues(t, 2, was.Links)
	require.NoError(t, dir.Chtimes("f", fsat.Time{Nsec: 5}))
	require.False(t, was.Unchanged(stat()))
	require.True(t, was.SameFile(stat()))
	write(t, "y", path, "g")
	require.NoError(t, dir.Replace("g", dir, "f"))
	require.False(t, was.SameFile(stat()))
	require.False(t, fsat.Info{}.SameFile(fsat.Info{}), "without inode numbers no two files are known to be the same")
}

func TestSpace(t *testing.T) {
	dir, _ := open(t)
	free, inodes, _, err := dir.Space()
	require.NoError(t, err)
	require.Positive(t, free)
	require.NotZero(t, inodes)
	same, err := fsat.SameMount(dir, dir)
	require.NoError(t, err)
	require.True(t, same)
}
