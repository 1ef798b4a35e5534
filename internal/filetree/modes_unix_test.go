//go:build linux || darwin

package filetree

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/errdefs"
)

// The copy of a file gives nobody the rights of the user who copies it.
func TestCopyDropsSetuid(t *testing.T) {
	src, dst := newTree(t), openDir(t, t.TempDir())
	at := func(root, path string) string { return filepath.Join(root, filepath.FromSlash(path)) }
	const all = fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky
	for path, mode := range map[string]fs.FileMode{
		"1": 0o755 | fs.ModeSetuid, "a!": 0o750 | fs.ModeSetgid, "a/2": 0o777 | fs.ModeSetuid | fs.ModeSetgid, "s/f": 0o644,
		".": 0o700 | fs.ModeSetuid, "a": 0o755 | all, "a/empty": 0o755 | fs.ModeSetuid, "a/b": 0o750 | fs.ModeSetgid,
	} {
		require.NoError(t, os.Chmod(at(src.Path(), path), mode))
	}
	_, err := Copy(t.Context(), src, dst, CopyOptions{KeepSums: true})
	require.NoError(t, err)
	for path, want := range map[string]fs.FileMode{
		"1": 0o755, "a!": 0o750, "a/2": 0o777, "s/f": 0o644,
		".": 0o700, "a": 0o755 | fs.ModeSetgid | fs.ModeSticky, "a/empty": 0o755, "a/b": 0o750 | fs.ModeSetgid,
	} {
		info, err := os.Lstat(at(dst.Path(), path))
		require.NoError(t, err)
		require.Equal(t, want, info.Mode()&^fs.ModeDir, path)
	}
	info, err := os.Lstat(at(src.Path(), "1"))
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&fs.ModeSetuid, "the source has been changed")
}

// A file whose copy lacks the bits is not taken for one that was written to.
func TestChangeBesideASetuidFile(t *testing.T) {
	src, dst := newTree(t), openDir(t, t.TempDir())
	require.NoError(t, os.Chmod(filepath.Join(src.Path(), "1"), 0o755|fs.ModeSetuid))
	_, err := Copy(t.Context(), src, dst, CopyOptions{Progress: func(path string, _, _ int64) {
		if path == src.Path() { // all is copied
			require.NoError(t, os.WriteFile(filepath.Join(src.Path(), "a0"), []byte("written"), 0o600))
		}
	}})
	require.ErrorIs(t, err, errdefs.ErrSourceChanged)
	require.ErrorContains(t, err, "/a0 was written to")
}

// A file that becomes setuid while the tree is copied has changed.
func TestFileBecomesSetuid(t *testing.T) {
	src, dst := newTree(t), openDir(t, t.TempDir())
	_, err := Copy(t.Context(), src, dst, CopyOptions{Progress: func(path string, _, _ int64) {
		if path == src.Path() {
			require.NoError(t, os.Chmod(filepath.Join(src.Path(), "1"), 0o644|fs.ModeSetuid))
		}
	}})
	require.ErrorIs(t, err, errdefs.ErrSourceChanged)
}
