package fsat_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

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

// The descriptors of a file are found by the descriptor's process and number,
// whatever its names are.
func TestIsOpenAs(t *testing.T) {
	dir, path := open(t)
	write(t, "x", path, "f")
	write(t, "x", path, "other")
	for _, link := range []string{"link", "hard"} {
		require.NoError(t, map[string]func(a, b string) error{"link": os.Symlink, "hard": os.Link}[link](filepath.Join(path, "f"), filepath.Join(path, link)))
	}
	f, err := dir.Open("hard")
	require.NoError(t, err)
	defer f.Close()
	isOpen := func(name string) bool {
		file, err := fsat.Stat(filepath.Join(path, name))
		require.NoError(t, err)
		return fsat.IsOpenAs(os.Getpid(), fmt.Sprint(f.Descriptor()), filepath.Join(path, name), file.ID())
	}
	require.True(t, isOpen("f"))
	require.True(t, isOpen("link"))
	require.False(t, isOpen("other"))
	want, err := f.Stat()
	require.NoError(t, err)
	require.False(t, fsat.IsOpenAs(os.Getpid(), "12345", path, want.ID()))
	require.True(t, fsat.IsOpenAs(os.Getpid(), fmt.Sprint(f.Descriptor()), filepath.Join(path, "replaced"), want.ID()))
}
