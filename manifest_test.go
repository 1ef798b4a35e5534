package backup_test

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// awkwardFiles makes files of names that tools get wrong in a directory.
func awkwardFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	names = append(awkwardNames(t), "...", "SHA256SUMS", "backup-metadata.json")
	for _, name := range names {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
	}
	return names
}

// GNU coreutils write the same lines, whatever the names are.
func TestManifestIsThatOfCoreutils(t *testing.T) {
	tool, err := exec.LookPath("sha256sum")
	if err != nil || runtime.GOOS != "linux" {
		t.Skip("there is no sha256sum of GNU coreutils")
	}
	store := newSmallStore(t)
	names := awkwardFiles(t, store.ChromaPath)
	s := &specimen{t: t, stamp: store.create().Stamp, Options: backup.Options{BackupDir: store.BackupDir}}
	s.requireProblems()

	lines := strings.SplitAfter(string(s.read(manifestFile)), "\n")
	for _, name := range names {
		name = "chroma/" + name
		cmd := exec.Command(tool, "--", name)
		cmd.Dir = s.path("")
		line, err := cmd.Output()
		require.NoError(t, err)
		require.Contains(t, lines, string(line))
	}
}

// Every file has its line, in the order that readers insist on, and whatever
// is done to one with an awkward name is found.
func TestManifestOfAwkwardNames(t *testing.T) {
	store := newSmallStore(t)
	names := awkwardFiles(t, store.ChromaPath)
	s := &specimen{t: t, stamp: store.create().Stamp, Options: backup.Options{BackupDir: store.BackupDir}}
	s.requireProblems()
	var named []string
	require.NoError(t, backup.EachManifestEntry(s.read(manifestFile), func(sum [sha256.Size]byte, name string) {
		require.Equal(t, sha256.Sum256(s.read(name)), sum)
		named = append(named, name)
	}))
	require.Len(t, named, len(names)+12)
	for _, name := range names {
		name = "chroma/" + name
		good := s.read(name)
		s.flip(name, len(good)-1)
		require.Equal(t, []string{"file_changed: " + name}, brief(s.validate().Problems))
		s.remove(name)
		require.Contains(t, brief(s.validate().Problems), "file_missing: "+name)
		s.write(name, good)
	}
}
