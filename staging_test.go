package backup_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

const staleName = ".atocore-staging-0123456789abcdef"

// Staging of a dead process is removed whatever is in it, and nothing that it
// points to.
func TestStaleStagingIsRemoved(t *testing.T) {
	s := backuptest.NewStore(t)
	outside := filepath.Join(s.Dir, "outside")
	require.NoError(t, os.Mkdir(outside, 0o755))
	backuptest.Write(t, filepath.Join(outside, "precious"), "do not remove")
	stale := filepath.Join(s.BackupDir, staleName)
	deep := filepath.Join(stale, "chroma", "a", "b", "c")
	require.NoError(t, os.MkdirAll(deep, 0o755))
	backuptest.Write(t, filepath.Join(deep, "file"), "x")
	require.NoError(t, os.Symlink(outside, filepath.Join(deep, "link")))
	require.NoError(t, os.Symlink(outside, filepath.Join(stale, "link")))
	require.NoError(t, os.Link(filepath.Join(outside, "precious"), filepath.Join(deep, "hard")))
	// As a killed create leaves a copy of read-only directories.
	for _, dir := range []string{deep, filepath.Dir(deep), stale} {
		require.NoError(t, os.Chmod(dir, 0o500))
	}
	before := backuptest.ReadTree(t, outside)

	log := s.Record()
	s.Create()
	require.NoDirExists(t, stale)
	require.Equal(t, before, backuptest.ReadTree(t, outside))
	require.Equal(t, "stale_staging_removed path="+stale, log.Lines()[0])
}

// What is no staging directory of ours is not touched, though its name comes
// near.
func TestWhatLooksLikeStagingIsLeft(t *testing.T) {
	s := backuptest.NewBareStore(t)
	require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
	for _, name := range []string{
		".atocore-staging-",
		".atocore-staging-0123456789abcde",   // 15 digits
		".atocore-staging-0123456789abcdef0", // 17
		".atocore-staging-0123456789ABCDEF",
		".atocore-staging-0123456789abcdeg",
		"atocore-staging-0123456789abcdef",
		".atocore-staging-0123456789abcdef.bak",
		"other",
	} {
		dir := filepath.Join(s.BackupDir, name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		backuptest.Write(t, filepath.Join(dir, "file"), name)
	}
	backuptest.Write(t, filepath.Join(s.BackupDir, ".atocore-staging-1111111111111111"), "a file")
	outside := filepath.Join(s.Dir, "outside")
	require.NoError(t, os.Mkdir(outside, 0o755))
	backuptest.Write(t, filepath.Join(outside, "precious"), "do not remove")
	require.NoError(t, os.Symlink(outside, filepath.Join(s.BackupDir, ".atocore-staging-2222222222222222")))
	before := backuptest.ReadTree(t, s.BackupDir)

	log := s.Record()
	s.Create()
	after := backuptest.ReadTree(t, s.BackupDir)
	for path, file := range before {
		if path != "." { // its time changed
			require.Equal(t, file, after[path], path)
		}
	}
	require.FileExists(t, filepath.Join(outside, "precious"))
	require.Len(t, log.Lines(), 1)
}

// Staging that cannot be removed does not fail a backup, and is told of.
func TestStaleStagingThatCannotBeRemoved(t *testing.T) {
	s := backuptest.NewBareStore(t)
	stale := filepath.Join(s.BackupDir, staleName)
	require.NoError(t, os.MkdirAll(filepath.Join(stale, "db"), 0o700))
	outside := filepath.Join(s.Dir, "outside")
	require.NoError(t, os.Mkdir(outside, 0o700))
	backuptest.Write(t, filepath.Join(outside, "precious"), "do not remove")
	backuptest.MountBind(t, outside, filepath.Join(stale, "db"))

	log := s.Record()
	s.Create()
	require.DirExists(t, stale)
	require.FileExists(t, filepath.Join(outside, "precious"), "what was mounted in the staging directory is gone")
	require.Contains(t, log.Lines()[0], "level=WARN stale_staging_left path="+stale)
	require.Len(t, log.Lines(), 2)
}

// BackupDir may be a link, snapshots/ may not: a list and a validation would
// not follow it either.
func TestLinksInTheBackupDirectory(t *testing.T) {
	s := backuptest.NewStore(t)
	real := filepath.Join(s.Dir, "disk", "backups")
	require.NoError(t, os.MkdirAll(real, 0o700))
	require.NoError(t, os.Symlink(real, s.BackupDir))
	meta := s.Create()
	require.DirExists(t, filepath.Join(real, "snapshots", meta.Stamp))

	s = backuptest.NewStore(t)
	require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
	require.NoError(t, os.Symlink(real, filepath.Join(s.BackupDir, "snapshots")))
	_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
	require.ErrorContains(t, err, filepath.Join(s.BackupDir, "snapshots"))
	require.Empty(t, s.Staging())
	entries, err := os.ReadDir(real)
	require.NoError(t, err)
	require.Len(t, entries, 1, "something was made through the link")
	s.RemoveAll(filepath.Join(s.BackupDir, "snapshots"))

	backuptest.Write(t, filepath.Join(s.BackupDir, "snapshots"), "a file")
	_, err = backup.CreateRuntimeBackup(t.Context(), s.Options)
	require.ErrorContains(t, err, filepath.Join(s.BackupDir, "snapshots"))
	s.RemoveAll(filepath.Join(s.BackupDir, "snapshots"))
}

// A backup directory that cannot be read or written names itself.
func TestBackupDirectoryWithoutRights(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("rights do not hold root back")
	}
	for _, mode := range []fs.FileMode{0, 0o500, 0o300} {
		s := backuptest.NewStore(t)
		require.NoError(t, os.Mkdir(s.BackupDir, mode))
		_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
		require.ErrorIs(t, err, fs.ErrPermission)
		require.ErrorContains(t, err, s.BackupDir)
		require.NoError(t, os.Chmod(s.BackupDir, 0o700))
		require.Empty(t, s.Staging())
	}
}
