//go:build unix

package backup_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Times that do not fit into 64 bits of nanoseconds, which end in 2262, survive
// the copy and the restore, of files and of directories.
func TestTimesBeyond2262(t *testing.T) {
	s := newTree(t)
	late := time.Date(2400, 1, 1, 0, 0, 0, 123456789, time.UTC)
	paths := []string{s.RegistryPath, s.InChroma("b/3"), s.InChroma("b"), s.ChromaPath}
	for _, path := range paths {
		require.NoError(t, os.Chtimes(path, late, late))
		info, err := os.Stat(path)
		require.NoError(t, err)
		if !info.ModTime().Equal(late) {
			t.Skipf("this file system makes it %s", info.ModTime())
		}
	}
	stamp := s.Create().Stamp
	require.NoError(t, os.Remove(s.InChroma("b/3")))
	require.NoError(t, os.Remove(s.RegistryPath))
	s.Restore(stamp)
	for _, path := range append(paths, s.SnapshotPath(stamp, "config", filepath.Base(s.RegistryPath)), s.SnapshotPath(stamp, "chroma", "b", "3")) {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, late, info.ModTime().UTC(), path)
	}
}
