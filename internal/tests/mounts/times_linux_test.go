package mounts

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

// Times that do not fit into 64 bits of nanoseconds, which end in 2262, survive
// the copy and the restore, of files and of directories. A tmpfs keeps them; not
// every file system does.
func TestTimesBeyond2262(t *testing.T) {
	s := newStore(t, systems[0])
	late := time.Date(2400, 1, 1, 0, 0, 0, 123456789, time.UTC)
	paths := []string{s.RegistryPath, s.InChroma("segment/data.bin"), s.InChroma("segment"), s.ChromaPath}
	for _, path := range paths {
		at, err := unix.TimeToTimespec(late) // os.Chtimes has nanoseconds alone
		if err != nil {
			t.Skip("this system has no such times")
		}
		require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, 0))
	}
	stamp := s.Create().Stamp
	copies := []string{"config/" + filepath.Base(s.RegistryPath), "chroma/segment/data.bin", "chroma/segment", "chroma"}
	for _, name := range copies {
		paths = append(paths, s.SnapshotPath(stamp, filepath.FromSlash(name)))
	}
	require.NoError(t, os.RemoveAll(s.InChroma("segment")))
	backuptest.Write(t, s.RegistryPath, "{}")
	s.Restore(stamp)
	for _, path := range paths {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, late, info.ModTime().UTC(), path)
	}
}
