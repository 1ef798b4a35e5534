package backup_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
)

// mountBind shows the directory source at target too.
func mountBind(t *testing.T, source, target string) {
	t.Helper()
	mount(t, source, target, "", unix.MS_BIND)
}

// mountTmpfs mounts a file system of its own at target.
func mountTmpfs(t *testing.T, target, options string) {
	t.Helper()
	mount(t, "tmpfs", target, "tmpfs", 0)
	require.NoError(t, unix.Mount("tmpfs", target, "tmpfs", unix.MS_REMOUNT, options))
}

// If one rename cannot publish, it is said before anything is copied.
func TestSnapshotsOnAnotherFileSystem(t *testing.T) {
	for name, mount := range map[string]func(t *testing.T, s *store, target string){
		"another file system":  func(t *testing.T, s *store, target string) { mountTmpfs(t, target, "") },
		"another mount of one": func(t *testing.T, s *store, target string) { mountBind(t, filepath.Join(s.dir, "config"), target) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newBareStore(t)
			require.NoError(t, os.MkdirAll(s.snapshot(""), 0o700))
			mount(t, s, s.snapshot(""))
			s.Locker = backup.LockerFunc(nil) // calling it would panic
			s.OnProgress = func(p backup.Progress) { require.Equal(t, backup.PhaseInit, p.Phase) }
			_, err := createWith(t, s.Options)
			require.ErrorIs(t, err, backup.ErrCrossDevice)
			require.ErrorContains(t, err, s.snapshot(""))
			require.Empty(t, stagings(t, s))
		})
	}
}

// The backup directory may be on another file system than the store, and the
// parts of the store on others still.
func TestStoreOnOtherFileSystems(t *testing.T) {
	s := newStore(t)
	require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
	mountTmpfs(t, s.BackupDir, "")
	// While the cleanup of newStore validates it is unmounted already.
	_, err := backup.ValidateBackup(t.Context(), s.Options, s.create().Stamp)
	require.NoError(t, err)
}

// What cannot fit is told before anything is copied; a disk that has room for
// a part of it only is the same.
func TestNotEnoughSpace(t *testing.T) {
	for name, options := range map[string]string{"bytes": "size=1m", "inodes": "nr_inodes=12"} {
		t.Run(name, func(t *testing.T) {
			s := newBareStore(t)
			require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
			mountTmpfs(t, s.BackupDir, options)
			require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "large"), make([]byte, 2<<20), 0o600))
			s.Locker = backup.LockerFunc(nil) // calling it would panic
			err := s.createFails()
			require.ErrorIs(t, err, backup.ErrNoSpace)
			require.ErrorContains(t, err, s.BackupDir)
		})
	}
}

// What is mounted below the Chroma directory is not Chroma's.
func TestTreeWithMountPoint(t *testing.T) {
	for name, mount := range map[string]func(t *testing.T, s *store){
		"another file system":  func(t *testing.T, s *store) { mountTmpfs(t, s.chroma("b/c"), "") },
		"another mount of one": func(t *testing.T, s *store) { mountBind(t, filepath.Join(s.dir, "config"), s.chroma("b/c")) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTree(t)
			mount(t, s)
			err := s.createFails()
			require.ErrorIs(t, err, backup.ErrUnsupportedFile)
			require.ErrorContains(t, err, s.chroma("b/c")+" is a mount point")
		})
	}
	t.Run("a file", func(t *testing.T) {
		s := newTree(t)
		other := filepath.Join(s.dir, "other")
		require.NoError(t, os.Mkdir(other, 0o755))
		mountTmpfs(t, other, "")
		write(t, filepath.Join(other, "file"), "x")
		mountBind(t, filepath.Join(other, "file"), s.chroma("b/3"))
		err := s.createFails()
		require.ErrorIs(t, err, backup.ErrUnsupportedFile)
		require.ErrorContains(t, err, s.chroma("b/3")+" is a mount point")
	})
	t.Run("the root", func(t *testing.T) {
		s := newTree(t)
		mountTmpfs(t, s.ChromaPath, "")
		write(t, s.chroma("file"), "x")
		require.EqualValues(t, 1, s.create().ChromaSnapshotFiles)
	})
}
