package backup_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/fsat"
)

// awkwardFiles creates files with names that tools get wrong, and returns the names.
func awkwardFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	names = append(backuptest.AwkwardNames(t), "...", "SHA256SUMS", "backup-metadata.json")
	for _, name := range names {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
	}
	return names
}

// GNU sha256sum writes the same lines, whatever the names are.
func TestManifestIsThatOfCoreutils(t *testing.T) {
	tool, err := exec.LookPath("sha256sum")
	if err != nil || runtime.GOOS != "linux" {
		t.Skip("there is no sha256sum of GNU coreutils")
	}
	store := backuptest.NewSmallStore(t)
	names := awkwardFiles(t, store.ChromaPath)
	s := store.CreateSnapshot()
	s.RequireProblems()

	lines := strings.SplitAfter(string(s.Read(backuptest.ManifestFile)), "\n")
	for _, name := range names {
		name = "chroma/" + name
		cmd := exec.Command(tool, "--", name)
		cmd.Dir = s.Path("")
		line, err := cmd.Output()
		require.NoError(t, err)
		require.Contains(t, lines, string(line))
	}
}

// Every file has its line, in ascending order of the names, and damage to files with
// awkward names is found.
func TestManifestOfAwkwardNames(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	names := awkwardFiles(t, store.ChromaPath)
	s := store.CreateSnapshot()
	s.RequireProblems()
	require.Equal(t, s.Manifest(), string(s.Read(backuptest.ManifestFile)))
	require.Len(t, s.Files(), len(names)+12)
	for _, name := range names {
		name = "chroma/" + name
		good := s.Read(name)
		s.Flip(name, len(good)-1)
		require.Equal(t, []string{"file_changed: " + name}, backuptest.Brief(s.Validate().Problems))
		s.Remove(name)
		require.Contains(t, backuptest.Brief(s.Validate().Problems), "file_missing: "+name)
		s.Write(name, good)
	}
}

// A path can be longer than a line of the manifest may be. Such a file is rejected,
// because a snapshot with it would never validate.
func TestManifestHasALineForEveryPath(t *testing.T) {
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("paths are not that long here")
	}
	const longest = 64<<10 - len("\n") - 64 - len("  ") // bytes of a path in a line
	for name, size := range map[string]int{"just short enough": longest, "too long": longest + 1} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			dir, err := fsat.OpenDir(s.ChromaPath)
			require.NoError(t, err)
			left := size - len("chroma/")
			for left > 255 {
				name := strings.Repeat("d", min(255, left-2))
				left -= len(name) + 1
				require.NoError(t, dir.Mkdir(name, 0o755))
				next, err := dir.OpenDir(name)
				require.NoError(t, err)
				require.NoError(t, dir.Close())
				dir = next
			}
			f, err := dir.Create(strings.Repeat("f", left), 0o644)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.NoError(t, dir.Close())

			_, err = backup.CreateRuntimeBackup(t.Context(), s.Options)
			if size > longest {
				require.ErrorIs(t, err, backup.ErrUnsupportedFile)
				require.Less(t, len(err.Error()), 1000)
				return
			}
			require.NoError(t, err) // the store checks at the end that it validates
		})
	}
}
