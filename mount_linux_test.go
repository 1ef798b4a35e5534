package backup_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// If one rename cannot publish, it is said before anything is copied.
func TestSnapshotsOnAnotherFileSystem(t *testing.T) {
	for name, mount := range map[string]func(t *testing.T, s *backuptest.Store, target string){
		"another file system": func(t *testing.T, s *backuptest.Store, target string) { backuptest.MountTmpfs(t, target, "") },
		"another mount of one": func(t *testing.T, s *backuptest.Store, target string) {
			backuptest.MountBind(t, filepath.Join(s.Dir, "config"), target)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewBareStore(t)
			require.NoError(t, os.MkdirAll(s.SnapshotPath(""), 0o700))
			mount(t, s, s.SnapshotPath(""))
			s.Locker = backup.LockerFunc(nil) // calling it would panic
			s.OnProgress = func(p backup.Progress) { require.Equal(t, backup.PhaseInit, p.Phase) }
			_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
			require.ErrorIs(t, err, backup.ErrCrossDevice)
			require.ErrorContains(t, err, s.SnapshotPath(""))
			require.Empty(t, s.Staging())
		})
	}
}

// The backup directory may be on another file system than the store, and the
// parts of the store on others still.
func TestStoreOnOtherFileSystems(t *testing.T) {
	s := backuptest.NewStore(t)
	require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
	backuptest.MountTmpfs(t, s.BackupDir, "")
	// While the cleanup of backuptest.NewStore validates it is unmounted already.
	_, err := backup.ValidateBackup(t.Context(), s.Options, s.Create().Stamp)
	require.NoError(t, err)
}

// What cannot fit is told before anything is copied; a disk that has room for
// a part of it only is the same.
func TestNotEnoughSpace(t *testing.T) {
	for name, options := range map[string]string{"bytes": "size=1m", "inodes": "nr_inodes=12"} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewBareStore(t)
			require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
			backuptest.MountTmpfs(t, s.BackupDir, options)
			require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "large"), make([]byte, 2<<20), 0o600))
			s.Locker = backup.LockerFunc(nil) // calling it would panic
			err := s.CreateFails()
			require.ErrorIs(t, err, backup.ErrNoSpace)
			require.ErrorContains(t, err, s.BackupDir)
		})
	}
}

// What is mounted below the Chroma directory is not Chroma's.
func TestTreeWithMountPoint(t *testing.T) {
	for name, mount := range map[string]func(t *testing.T, s *backuptest.Store){
		"another file system": func(t *testing.T, s *backuptest.Store) { backuptest.MountTmpfs(t, s.InChroma("b/c"), "") },
		"another mount of one": func(t *testing.T, s *backuptest.Store) {
			backuptest.MountBind(t, filepath.Join(s.Dir, "config"), s.InChroma("b/c"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTree(t)
			mount(t, s)
			err := s.CreateFails()
			require.ErrorIs(t, err, backup.ErrUnsupportedFile)
			require.ErrorContains(t, err, s.InChroma("b/c")+" is a mount point")
		})
	}
	t.Run("a file", func(t *testing.T) {
		s := newTree(t)
		other := filepath.Join(s.Dir, "other")
		require.NoError(t, os.Mkdir(other, 0o755))
		backuptest.MountTmpfs(t, other, "")
		backuptest.Write(t, filepath.Join(other, "file"), "x")
		backuptest.MountBind(t, filepath.Join(other, "file"), s.InChroma("b/3"))
		err := s.CreateFails()
		require.ErrorIs(t, err, backup.ErrUnsupportedFile)
		require.ErrorContains(t, err, s.InChroma("b/3")+" is a mount point")
	})
	t.Run("the root", func(t *testing.T) {
		s := newTree(t)
		backuptest.MountTmpfs(t, s.ChromaPath, "")
		backuptest.Write(t, s.InChroma("file"), "x")
		require.EqualValues(t, 1, s.Create().ChromaSnapshotFiles)
	})
}
