package backuptest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// MountBind shows the file or directory source at target too, until the test
// ends. Like the other mounts it skips the test where mounting is not allowed.
func MountBind(t *testing.T, source, target string) {
	t.Helper()
	mount(t, source, target, "", unix.MS_BIND, "")
}

// MountOverlay shows the directory lower at target as the lower layer of an
// overlay, until the test ends. Nothing that happens there gets into lower.
func MountOverlay(t *testing.T, lower, target string) {
	t.Helper()
	over := t.TempDir()
	upper, work := filepath.Join(over, "upper"), filepath.Join(over, "work")
	require.NoError(t, os.Mkdir(upper, 0o755))
	require.NoError(t, os.Mkdir(work, 0o755))
	mount(t, "overlay", target, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work)
}

// MountReadOnly is MountBind of a directory in which nothing can be written
// through target.
func MountReadOnly(t *testing.T, source, target string) {
	t.Helper()
	MountBind(t, source, target)
	require.NoError(t, unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

// MountTmpfs mounts a new tmpfs at target, until the test ends.
func MountTmpfs(t *testing.T, target, options string) {
	t.Helper()
	mount(t, "tmpfs", target, "tmpfs", 0, "")
	require.NoError(t, unix.Mount("tmpfs", target, "tmpfs", unix.MS_REMOUNT, options))
}

// Unmount ends a mount before the test does. target may have been moved with
// its directory since.
func Unmount(t *testing.T, target string) {
	t.Helper()
	require.NoError(t, unix.Unmount(target, 0))
}

func mount(t *testing.T, source, target, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() {
		// A test may have unmounted it, moved it, or removed its directory.
		err := unix.Unmount(target, unix.MNT_DETACH)
		if err != unix.EINVAL && err != unix.ENOENT {
			require.NoError(t, err)
		}
	})
}

// LocksOn returns the kernel's list of the locks on a database and its -shm.
// There must be some.
func LocksOn(t *testing.T, path string) (locks []string) {
	t.Helper()
	// The table is read in pieces while other processes change it, so that
	// lines come twice or are missed. Hence it is read more than once.
	var data []byte
	for range 3 {
		more, err := os.ReadFile("/proc/locks")
		require.NoError(t, err)
		data = append(data, more...)
	}
	for _, file := range []string{path, path + "-shm"} {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err == unix.ENOENT {
			continue
		} else {
			require.NoError(t, err)
		}
		inode := fmt.Sprintf(":%d", st.Ino)
		for line := range strings.Lines(string(data)) {
			// number: POSIX ADVISORY READ pid major:minor:inode start end
			fields := strings.Fields(line)
			if len(fields) == 8 && fields[1] == "POSIX" && strings.HasSuffix(fields[5], inode) {
				locks = append(locks, strings.Join(fields[1:], " "))
			}
		}
	}
	slices.Sort(locks)
	locks = slices.Compact(locks)
	require.NotEmpty(t, locks, "the host holds no lock, so there is nothing to lose")
	return locks
}

// OpenFiles returns the paths of the files that this process has open, sorted.
func OpenFiles(t *testing.T) (files []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, entry := range entries {
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err == nil { // one of them was ReadDir's own
			files = append(files, target)
		}
	}
	slices.Sort(files)
	return files
}

// SetAttribute sets an attribute of chattr(1) on the file or directory at path
// (unix.STATX_ATTR_IMMUTABLE or unix.STATX_ATTR_APPEND), until the test ends. It
// skips the test where that is not possible. The function that it returns clears
// the attribute before that.
func SetAttribute(t *testing.T, path string, attribute int) (clear func()) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	before, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, before|attribute)
	}
	if err != nil {
		f.Close()
		t.Skipf("no attributes here: %v", err)
	}
	done := false
	undo := func() {
		if !done {
			require.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, before))
			require.NoError(t, f.Close())
		}
		done = true
	}
	t.Cleanup(undo)
	return undo
}
