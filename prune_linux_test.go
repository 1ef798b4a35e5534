package backup_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// What is mounted in a snapshot is none of its files. The snapshot is out of
// sight, and the rest of it goes when nothing is mounted there.
func TestPruneEntersNoMountPoint(t *testing.T) {
	for name, m := range map[string]struct {
		kind  string
		flags uintptr
	}{"tmpfs": {kind: "tmpfs"}, "bind": {flags: unix.MS_BIND}} {
		t.Run(name, func(t *testing.T) {
			s := newSnapshotSet(t)
			stamps := s.putDays(2)
			target := s.SnapshotPath(stamps[0], "mounted")
			require.NoError(t, os.Mkdir(target, 0o755))
			if err := unix.Mount(t.TempDir(), target, m.kind, m.flags, ""); err != nil {
				t.Skipf("cannot mount here: %v", err)
			}
			backuptest.Write(t, filepath.Join(target, "keep"), "precious")
			t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })

			result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
			require.ErrorContains(t, err, "is a mount point")
			require.Equal(t, stamps[:1], result.Removed)
			require.Equal(t, stamps[1:], s.Stamps())
			target = filepath.Join(s.Staging()[0], "mounted")
			require.FileExists(t, filepath.Join(target, "keep"))

			require.NoError(t, unix.Unmount(target, 0))
			s.prune(backup.Retention{KeepLast: 1})
			s.RequireNoStaging()
		})
	}
}

// One snapshot that cannot be removed does not keep the others.
func TestPruneGoesOnAfterAFailure(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(5)
	for _, stamp := range []string{stamps[0], stamps[2]} {
		dir := s.SnapshotPath(stamp)
		if os.Getuid() != 0 {
			require.NoError(t, os.Chmod(dir, 0o500))
			t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
		} else { // who is stopped by no permission
			if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
				t.Skipf("cannot mount here: %v", err)
			}
			t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
		}
	}
	result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
	var pathErr *fs.PathError
	require.ErrorAs(t, err, &pathErr)
	require.ErrorContains(t, err, stamps[0], "it names the snapshot")
	require.ErrorContains(t, err, "the first of 2 that could not be removed")
	require.Equal(t, []string{stamps[3], stamps[1]}, result.Removed)
	reason := "not removed: " + pathErr.Err.Error()
	require.Equal(t, []backup.PassedSnapshot{{stamps[0], reason}, {stamps[2], reason}}, result.Passed)
	require.Equal(t, []string{stamps[0], stamps[2], stamps[4]}, s.Stamps())
}
