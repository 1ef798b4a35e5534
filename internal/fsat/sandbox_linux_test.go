package fsat

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func openTemp(t *testing.T) *Dir {
	t.Helper()
	dir, err := OpenDir(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

// make makes a file of a kind in dir.
func (d *Dir) make(t *testing.T, name, kind string) {
	t.Helper()
	path := filepath.Join(d.path, name)
	switch kind {
	case "file":
		require.NoError(t, os.WriteFile(path, []byte(kind), 0o600))
	case "link":
		require.NoError(t, os.Symlink("nothing", path))
	case "fifo":
		require.NoError(t, unix.Mkfifo(path, 0o600))
	case "directory":
		require.NoError(t, os.Mkdir(path, 0o700))
	case "full directory":
		require.NoError(t, os.MkdirAll(filepath.Join(path, "sub"), 0o700))
	}
}

// A move by older calls moves everything that a rename moves, and replaces
// nothing.
func TestRenameInSteps(t *testing.T) {
	kinds := []string{"file", "link", "fifo", "directory", "full directory"}
	for _, kind := range kinds {
		for _, there := range append(kinds, "nothing") {
			t.Run(kind+" over "+there, func(t *testing.T) {
				src, dst := openTemp(t), openTemp(t)
				src.make(t, "old", kind)
				before, err := src.Lstat("old")
				require.NoError(t, err)
				if there != "nothing" {
					dst.make(t, "new", there)
					in, err := dst.Lstat("new")
					require.NoError(t, err)
					err = src.renameInSteps("old", dst, "new")
					require.ErrorIs(t, err, fs.ErrExist)
					now, err := dst.Lstat("new")
					require.NoError(t, err)
					require.Equal(t, in, now)
					_, err = src.Lstat("old")
					require.NoError(t, err)
					return
				}
				require.NoError(t, src.renameInSteps("old", dst, "new"))
				after, err := dst.Lstat("new")
				require.NoError(t, err)
				require.True(t, before.SameFile(after))
				require.Equal(t, before.Links, after.Links)
				_, err = src.Lstat("old")
				require.ErrorIs(t, err, fs.ErrNotExist)
				require.ErrorIs(t, src.renameInSteps("old", dst, "other"), fs.ErrNotExist)
			})
		}
	}
}

// A file whose old name cannot be removed keeps only that.
func TestRenameInStepsIsTakenBack(t *testing.T) {
	src, dst := openTemp(t), openTemp(t)
	src.make(t, "old", "file")
	const appendOnly = 0x20 // FS_APPEND_FL: nothing is removed from the directory
	flags, err := unix.IoctlGetInt(src.fd, unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(src.fd, unix.FS_IOC_SETFLAGS, flags|appendOnly)
	}
	if err != nil {
		t.Skipf("no directory can be made append-only here: %v", err)
	}
	defer func() { require.NoError(t, unix.IoctlSetPointerInt(src.fd, unix.FS_IOC_SETFLAGS, flags)) }()
	require.ErrorIs(t, src.Rename("old", dst, "new"), fs.ErrPermission)
	require.ErrorIs(t, src.renameInSteps("old", dst, "new"), fs.ErrPermission)
	_, err = dst.Lstat("new")
	require.ErrorIs(t, err, fs.ErrNotExist)
	info, err := src.Lstat("old")
	require.NoError(t, err)
	require.EqualValues(t, 1, info.Links)
}

// A move that was cut off between its two steps is completed in either direction,
// and nothing else that exists is taken for one.
func TestRenameCompletesAMove(t *testing.T) {
	src, dst := openTemp(t), openTemp(t)
	src.make(t, "f", "file")
	half := func() {
		t.Helper()
		require.NoError(t, src.Link("f", dst, "f"))
	}
	names := func(d *Dir) (names []string) {
		t.Helper()
		entries, err := d.ReadDir()
		require.NoError(t, err)
		for _, entry := range entries {
			names = append(names, entry.Name)
		}
		return names
	}
	half()
	require.NoError(t, dst.Rename("f", src, "f")) // back
	require.Equal(t, []string{"f"}, names(src))
	require.Empty(t, names(dst))
	half()
	require.NoError(t, src.Rename("f", dst, "f"))
	require.Empty(t, names(src))
	require.Equal(t, []string{"f"}, names(dst))

	require.ErrorIs(t, dst.Rename("f", dst, "f"), fs.ErrExist, "to itself")
	require.NoError(t, dst.Link("f", dst, "hard"))
	require.ErrorIs(t, dst.Rename("hard", dst, "f"), fs.ErrExist, "in one directory")
	require.Equal(t, []string{"f", "hard"}, names(dst))
	again, err := dst.Reopen()
	require.NoError(t, err)
	defer again.Close()
	require.ErrorIs(t, dst.Rename("f", again, "f"), fs.ErrExist, "in one directory that was opened twice")
	src.make(t, "f", "file")
	require.ErrorIs(t, src.Rename("f", dst, "f"), fs.ErrExist, "another file")
}

// Without statx, mount points are found by the numbers of the mounts. The file is
// not opened for that: no lock of this process on it is dropped.
func TestMountsWithoutStatx(t *testing.T) {
	dir := openTemp(t)
	for name, kind := range map[string]string{
		"dir": "directory", "bound-dir": "directory", "file": "file", "bound-file": "file", "tmpfs": "directory", "link": "link", "fifo": "fifo",
	} {
		dir.make(t, name, kind)
	}
	for to, from := range map[string]string{"bound-dir": "dir", "bound-file": "file", "tmpfs": ""} {
		at, kind, flags := filepath.Join(dir.path, to), "", uintptr(unix.MS_BIND)
		if from == "" {
			kind, flags = "tmpfs", 0
		}
		if err := unix.Mount(filepath.Join(dir.path, from), at, kind, flags, ""); err != nil {
			t.Skipf("cannot mount here: %v", err)
		}
		t.Cleanup(func() { require.NoError(t, unix.Unmount(at, unix.MNT_DETACH)) })
	}
	locked, err := dir.OpenRW("file")
	require.NoError(t, err)
	defer locked.Close()
	require.NoError(t, unix.FcntlFlock(uintptr(locked.fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	for name, want := range map[string]bool{
		"dir": false, "file": false, "link": false, "fifo": false, "bound-dir": true, "bound-file": true, "tmpfs": true,
	} {
		_, is, err := dir.identifyWithoutStatx(name)
		require.NoError(t, err, name)
		require.Equal(t, want, is, name)
		if info, err := dir.Lstat(name); err == nil && info.Mode.IsDir() {
			sub, err := dir.OpenDir(name)
			require.NoError(t, err)
			same, err := sameMountWithoutStatx(dir, sub)
			require.NoError(t, err, name)
			require.Equal(t, !want, same, name)
			require.NoError(t, sub.Close())
		}
	}
	_, _, err = dir.identifyWithoutStatx("none")
	require.ErrorIs(t, err, fs.ErrNotExist)
	info, err := locked.Stat()
	require.NoError(t, err)
	locks, err := os.ReadFile("/proc/locks")
	require.NoError(t, err)
	require.True(t, strings.Contains(string(locks), fmt.Sprintf(":%d 0 EOF", info.Ino)), "the lock was dropped")
}

// Calls that work are not taken for refused.
func TestNothingIsRefusedHere(t *testing.T) {
	dir := openTemp(t)
	if err := unix.Syncfs(dir.fd); err != nil {
		t.Skipf("it is: %v", err)
	}
	require.Equal(t, !IsRemote(dir.path), dir.CanSyncFS())
	for _, err := range []error{unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP} {
		require.False(t, isRefusal(err, func() error { return renameNoReplace(-1, "a", -1, "b") }))
		require.False(t, isRefusal(err, func() error { return unix.SyncFileRange(-1, 0, 0, unix.SYNC_FILE_RANGE_WRITE) }))
		require.True(t, isRefusal(err, func() error { return err }))
	}
	require.False(t, isRefusal(unix.EIO, func() error { return unix.EIO }))
	require.False(t, isRefusal(nil, func() error { return nil }))
}
