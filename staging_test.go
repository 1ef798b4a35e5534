package backup_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const staleName = ".atocore-staging-0123456789abcdef"

// Staging of a dead process is removed whatever is in it, and nothing that it
// points to.
func TestStaleStagingIsRemoved(t *testing.T) {
	s := newStore(t)
	outside := filepath.Join(s.dir, "outside")
	require.NoError(t, os.Mkdir(outside, 0o755))
	write(t, filepath.Join(outside, "precious"), "do not remove")
	stale := filepath.Join(s.BackupDir, staleName)
	deep := filepath.Join(stale, "chroma", "a", "b", "c")
	require.NoError(t, os.MkdirAll(deep, 0o755))
	write(t, filepath.Join(deep, "file"), "x")
	require.NoError(t, os.Symlink(outside, filepath.Join(deep, "link")))
	require.NoError(t, os.Symlink(outside, filepath.Join(stale, "link")))
	require.NoError(t, os.Link(filepath.Join(outside, "precious"), filepath.Join(deep, "hard")))
	// As a killed create leaves a copy of read-only directories.
	for _, dir := range []string{deep, filepath.Dir(deep), stale} {
		require.NoError(t, os.Chmod(dir, 0o500))
	}
	before := readTree(t, outside)

	log := s.record()
	s.create()
	require.NoDirExists(t, stale)
	require.Equal(t, before, readTree(t, outside))
	require.Equal(t, "stale_staging_removed path="+stale, log.lines()[0])
}

// What is no staging directory of ours is not touched, though its name comes
// near.
func TestWhatLooksLikeStagingIsLeft(t *testing.T) {
	s := newBareStore(t)
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
		write(t, filepath.Join(dir, "file"), name)
	}
	write(t, filepath.Join(s.BackupDir, ".atocore-staging-1111111111111111"), "a file")
	outside := filepath.Join(s.dir, "outside")
	require.NoError(t, os.Mkdir(outside, 0o755))
	write(t, filepath.Join(outside, "precious"), "do not remove")
	require.NoError(t, os.Symlink(outside, filepath.Join(s.BackupDir, ".atocore-staging-2222222222222222")))
	before := readTree(t, s.BackupDir)

	log := s.record()
	s.create()
	after := readTree(t, s.BackupDir)
	for path, file := range before {
		if path != "." { // its time changed
			require.Equal(t, file, after[path], path)
		}
	}
	require.FileExists(t, filepath.Join(outside, "precious"))
	require.Len(t, log.lines(), 1)
}

// Staging that cannot be removed does not fail a backup, and is told of.
func TestStaleStagingThatCannotBeRemoved(t *testing.T) {
	s := newBareStore(t)
	stale := filepath.Join(s.BackupDir, staleName)
	require.NoError(t, os.MkdirAll(filepath.Join(stale, "db"), 0o700))
	outside := filepath.Join(s.dir, "outside")
	require.NoError(t, os.Mkdir(outside, 0o700))
	write(t, filepath.Join(outside, "precious"), "do not remove")
	mountBind(t, outside, filepath.Join(stale, "db"))

	log := s.record()
	s.create()
	require.DirExists(t, stale)
	require.FileExists(t, filepath.Join(outside, "precious"), "what was mounted in the staging directory is gone")
	require.Contains(t, log.lines()[0], "level=WARN stale_staging_left path="+stale)
	require.Len(t, log.lines(), 2)
}

// BackupDir may be a link, snapshots/ may not: a list and a validation would
// not follow it either.
func TestLinksInTheBackupDirectory(t *testing.T) {
	s := newStore(t)
	real := filepath.Join(s.dir, "disk", "backups")
	require.NoError(t, os.MkdirAll(real, 0o700))
	require.NoError(t, os.Symlink(real, s.BackupDir))
	meta := s.create()
	require.DirExists(t, filepath.Join(real, "snapshots", meta.Stamp))

	s = newStore(t)
	require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
	require.NoError(t, os.Symlink(real, filepath.Join(s.BackupDir, "snapshots")))
	_, err := createWith(t, s.Options)
	require.ErrorContains(t, err, filepath.Join(s.BackupDir, "snapshots"))
	require.Empty(t, stagings(t, s))
	entries, err := os.ReadDir(real)
	require.NoError(t, err)
	require.Len(t, entries, 1, "something was made through the link")
	s.removeAll(filepath.Join(s.BackupDir, "snapshots"))

	write(t, filepath.Join(s.BackupDir, "snapshots"), "a file")
	_, err = createWith(t, s.Options)
	require.ErrorContains(t, err, filepath.Join(s.BackupDir, "snapshots"))
	s.removeAll(filepath.Join(s.BackupDir, "snapshots"))
}

// A backup directory that cannot be read or written names itself.
func TestBackupDirectoryWithoutRights(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("rights do not hold root back")
	}
	for _, mode := range []fs.FileMode{0, 0o500, 0o300} {
		s := newStore(t)
		require.NoError(t, os.Mkdir(s.BackupDir, mode))
		_, err := createWith(t, s.Options)
		require.ErrorIs(t, err, fs.ErrPermission)
		require.ErrorContains(t, err, s.BackupDir)
		require.NoError(t, os.Chmod(s.BackupDir, 0o700))
		require.Empty(t, stagings(t, s))
	}
}
