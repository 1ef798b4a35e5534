package fsat_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/fsat"
)

func mount(t *testing.T, source, target, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(target, unix.MNT_DETACH)) })
}

// Mount points are found, of files and directories, of another file system and
// of the same one, and nothing else is taken for one.
func TestIsMountPoint(t *testing.T) {
	dir, path := open(t)
	at := func(name string) string { return filepath.Join(path, name) }
	for _, name := range []string{"dir", "bound-dir", "other-system", "source-dir"} {
		require.NoError(t, os.Mkdir(at(name), 0o755))
	}
	for _, name := range []string{"file", "bound-file", "bound-other", "source-file"} {
		write(t, name, path, name)
	}
	mount(t, "tmpfs", at("other-system"), "tmpfs", 0, "")
	write(t, "x", path, "other-system", "file")
	mount(t, at("source-dir"), at("bound-dir"), "", unix.MS_BIND, "")
	mount(t, at("source-file"), at("bound-file"), "", unix.MS_BIND, "")
	mount(t, at("other-system/file"), at("bound-other"), "", unix.MS_BIND, "")
	for _, name := range []string{"bound-dir", "bound-file", "none"} {
		require.NoError(t, os.Symlink(name, at("link-to-"+name)))
	}
	for name, want := range map[string]bool{
		"dir": false, "file": false, "source-dir": false, "source-file": false,
		"bound-dir": true, "other-system": true, "bound-file": true, "bound-other": true,
		"link-to-bound-dir": false, "link-to-bound-file": false, "link-to-none": false,
	} {
		is, err := dir.IsMountPoint(name)
		require.NoError(t, err, name)
		require.Equal(t, want, is, name)
	}
	mounted, err := dir.OpenDir("other-system")
	require.NoError(t, err)
	defer mounted.Close()
	is, err := mounted.IsMountPoint("file")
	require.NoError(t, err)
	require.False(t, is, "it is on a mount of its directory's")
	for _, name := range []string{"none", ".", "", "dir/sub"} {
		_, err = dir.IsMountPoint(name)
		require.Error(t, err, name)
	}
	_, err = dir.IsMountPoint("none")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, at("none"))
}

func TestStatNoSync(t *testing.T) {
	dir, path := open(t)
	write(t, "x", path, "f")
	require.NoError(t, os.Symlink("f", filepath.Join(path, "link")))
	f, err := dir.Open("f")
	require.NoError(t, err)
	defer f.Close()
	want, err := dir.Lstat("f")
	require.NoError(t, err)
	for _, path := range []string{filepath.Join(path, "f"), filepath.Join(path, "link"), fmt.Sprint("/proc/self/fd/", f.Descriptor())} {
		id, err := fsat.StatNoSync(path)
		require.NoError(t, err)
		require.Equal(t, want.ID(), id, path)
	}
	_, err = fsat.StatNoSync(filepath.Join(path, "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// A file on a mount whose server does not answer is identified all the same.
func TestStatNoSyncOfADeadMount(t *testing.T) {
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	path := t.TempDir()
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)
	if err := unix.Mount("dead", path, "fuse", 0, options); err != nil {
		unix.Close(server)
		t.Skipf("cannot mount here: %v", err)
	}
	opened, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // asks no server
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := fsat.StatNoSync(fmt.Sprint("/proc/self/fd/", opened))
		ended <- err
	}()
	select {
	case err = <-ended:
	case <-time.After(10 * time.Second):
		err = fmt.Errorf("it waits for the server")
	}
	// Without its server the mount fails each call, so that a waiting one ends.
	require.NoError(t, unix.Close(server))
	require.NoError(t, unix.Close(opened))
	require.NoError(t, unix.Unmount(path, unix.MNT_DETACH))
	require.NoError(t, err)
}
