package mounts

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

func TestMain(m *testing.M) {
	backuptest.Play(roles)
	code := m.Run()
	if builtIn != "" {
		os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// A system is a file system of the table. mount mounts it until the test ends
// and returns the directory in which a store is made. populate creates the store;
// mount calls it where the file system wants its files before it is mounted.
type system struct {
	name  string
	mount func(t *testing.T, populate func(dir string)) (dir string)
}

var systems = []system{
	{"tmpfs", func(t *testing.T, populate func(string)) string {
		dir := t.TempDir()
		backuptest.MountTmpfs(t, dir, "size=64m")
		return filled(dir, populate)
	}},
	{"ext4", image("mkfs.ext4", "ext4", 64, "-q", "-F")},
	{"XFS", image("mkfs.xfs", "xfs", 320, "-q", "-f")},
	{"btrfs", image("mkfs.btrfs", "btrfs", 128, "-q", "-f", "--mixed")},
	{"bind", func(t *testing.T, populate func(string)) string {
		source, dir := t.TempDir(), t.TempDir()
		backuptest.MountBind(t, source, dir)
		return filled(dir, populate)
	}},
	{"overlay", func(t *testing.T, populate func(string)) string {
		return overlay(t, t.TempDir(), populate, "")
	}},
	{"overlay of two", func(t *testing.T, populate func(string)) string {
		lower := t.TempDir()
		backuptest.MountTmpfs(t, lower, "size=64m")
		return overlay(t, lower, populate, ",xino=off")
	}},
	{"bindfs", func(t *testing.T, populate func(string)) string {
		source, dir := t.TempDir(), t.TempDir()
		server(t, dir, "bindfs", source, dir)
		return filled(dir, populate)
	}},
	{"ntfs-3g", func(t *testing.T, populate func(string)) string {
		dir := t.TempDir()
		server(t, dir, "ntfs-3g", makeImage(t, 64, "mkfs.ntfs", "-Q", "-F", "-q"), dir)
		return filled(dir, populate)
	}},
	{"exfat-fuse", func(t *testing.T, populate func(string)) string {
		dir := t.TempDir()
		server(t, dir, "mount.exfat-fuse", makeImage(t, 64, "mkfs.exfat"), dir)
		return filled(dir, populate)
	}},
	{"FUSE", fuse()},
	{"FUSE that hides removed files", fuse("hide")},
	{"FUSE without links", fuse("hide", "link=EPERM")},
	{"FUSE without statfs", fuse("statfs=ENOSYS")},
	{"FUSE with a statfs of zeros", fuse("statfs=zeros")},
	{"FUSE without blocks", fuse("statfs=nobytes")},
	{"FUSE without free inodes", fuse("statfs=nofree")},
	{"FUSE without chmod and utimens", fuse("chmod=ENOSYS", "utimens=ENOSYS")},
	{"FUSE that forbids chmod, chown and utimens", fuse("chmod=EPERM", "chown=EPERM", "utimens=EPERM")},
	{"FUSE that supports no chmod and utimens", fuse("chmod=EOPNOTSUPP", "utimens=EINVAL")},
}

func filled(dir string, populate func(string)) string {
	populate(dir)
	return dir
}

func fuse(faults ...string) func(*testing.T, func(string)) string {
	return func(t *testing.T, populate func(string)) string {
		source, dir := t.TempDir(), t.TempDir()
		populate(source)
		backuptest.MountFuse(t, source, dir, faults...)
		return dir
	}
}

// overlay mounts an overlay over lower, in which the store is.
func overlay(t *testing.T, lower string, populate func(string), options string) string {
	populate(lower)
	over := t.TempDir()
	dir := t.TempDir()
	upper, work := filepath.Join(over, "upper"), filepath.Join(over, "work")
	require.NoError(t, os.Mkdir(upper, 0o755))
	require.NoError(t, os.Mkdir(work, 0o755))
	mount(t, "overlay", dir, "overlay", "lowerdir="+lower+",upperdir="+upper+",workdir="+work+options)
	return dir
}

func mount(t *testing.T, source, target, kind, options string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, 0, options); err != nil {
		t.Skipf("cannot mount %s here: %v", kind, err)
	}
	t.Cleanup(func() { unmountNow(t, target) })
}

func unmountNow(t *testing.T, target string) {
	if err := unix.Unmount(target, unix.MNT_DETACH); err != unix.EINVAL {
		require.NoError(t, err)
	}
}

// server mounts dir by a program that serves it.
func server(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	path := tool(t, program)
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Skipf("%s: %v: %s", program, err, out)
	}
	t.Cleanup(func() { unmountNow(t, dir) })
}

func tool(t *testing.T, name string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// makeImage makes a file system in a file of so many MiB.
func makeImage(t *testing.T, size int64, mkfs string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	program := tool(t, mkfs)
	backuptest.Write(t, path, "")
	require.NoError(t, os.Truncate(path, size<<20))
	out, err := exec.Command(program, append(args, path)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return path
}

// image mounts a file system in a file by a loop device. The store is at its root,
// so that a lost+found is beside it.
func image(mkfs, kind string, size int64, args ...string) func(*testing.T, func(string)) string {
	return func(t *testing.T, populate func(string)) string {
		path, dir := makeImage(t, size, mkfs, args...), t.TempDir()
		if out, err := exec.Command("mount", "-t", kind, "-o", "loop", path, dir).CombinedOutput(); err != nil {
			t.Skipf("mount: %v: %s", err, out)
		}
		t.Cleanup(func() { unmountNow(t, dir) })
		return filled(dir, populate)
	}
}
