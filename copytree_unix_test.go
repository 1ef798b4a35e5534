//go:build unix

package backup_test

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/fsat"
)

// mknod makes a file by call, which is unix.Mknod. A device number is an int
// there, on FreeBSD a uint64.
func mknod[Dev int | uint64](call func(string, uint32, Dev) error, path string, mode uint32, dev uint64) error {
	return call(path, mode, Dev(dev))
}

// Files that are neither directories nor regular are rejected and not opened:
// opening a FIFO would hang. The error names them.
func TestTreeOfUnsupportedFiles(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, path string) error
		what string
	}{
		{"FIFO", func(_ *testing.T, path string) error { return unix.Mkfifo(path, 0o644) }, "a FIFO"},
		{"socket", func(t *testing.T, path string) error {
			t.Chdir(filepath.Dir(path)) // the path of a socket may have only about 100 bytes
			l, err := net.Listen("unix", filepath.Base(path))
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		}, "a socket"},
		{"link to a file", func(_ *testing.T, path string) error { return os.Symlink("3", path) }, "a symbolic link"},
		{"link to a directory", func(_ *testing.T, path string) error { return os.Symlink("..", path) }, "a symbolic link"},
		{"link out of the tree", func(_ *testing.T, path string) error { return os.Symlink("/etc/passwd", path) }, "a symbolic link"},
		{"link to nothing", func(_ *testing.T, path string) error { return os.Symlink("nothing", path) }, "a symbolic link"},
		{"loop of links", func(_ *testing.T, path string) error { return os.Symlink(filepath.Base(path), path) }, "a symbolic link"},
		{"device", func(t *testing.T, path string) error {
			if err := mknod(unix.Mknod, path, unix.S_IFCHR|0o666, unix.Mkdev(1, 3)); err != nil {
				t.Skip("creating a device needs root:", err)
			}
			return nil
		}, "a device"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTree(t)
			path := s.InChroma("b/odd one\n")
			require.NoError(t, tt.make(t, path))
			err := s.CreateFails()
			require.ErrorIs(t, err, backup.ErrUnsupportedFile)
			require.ErrorContains(t, err, path+" is "+tt.what)
		})
	}
}

// A file may be replaced by a FIFO after its directory was read.
func TestTreeFileTurnsIntoFIFO(t *testing.T) {
	s := newTree(t)
	s.Clock = backuptest.Noon // it stands still, so that no report is dropped
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseChroma && p.Files == 5 {
			require.NoError(t, os.Remove(s.InChroma("1")))
			require.NoError(t, unix.Mkfifo(s.InChroma("1"), 0o644))
		}
	}
	require.ErrorIs(t, s.CreateFails(), backup.ErrSourceChanged)
}

// A hard link to the live database is rejected and not opened: closing it would drop
// the host's locks. So would closing one to its -shm.
func TestTreeWithHardLinkToDatabase(t *testing.T) {
	t.Parallel()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		t.Run("atocore.db"+suffix, func(t *testing.T) {
			s := newTree(t)
			db := backuptest.OpenDB(t, s.DatabasePath)
			conn, err := db.Conn(t.Context())
			require.NoError(t, err)
			defer conn.Close()
			_, err = conn.ExecContext(t.Context(), "BEGIN IMMEDIATE; UPDATE account SET balance = balance")
			require.NoError(t, err)
			require.NoError(t, os.Link(s.DatabasePath+suffix, s.InChroma("b/link")))
			other := backuptest.Start(t, "try-lock", s.DatabasePath)
			require.Equal(t, "refused", other.Ask("BEGIN EXCLUSIVE"))

			err = s.CreateFails()
			require.ErrorIs(t, err, backup.ErrUnsupportedFile)
			require.ErrorContains(t, err, s.InChroma("b/link"))
			require.Equal(t, "refused", other.Ask("BEGIN EXCLUSIVE"), "the host's locks are gone")
			require.Equal(t, "refused", other.Ask("PRAGMA journal_mode=delete"), "the host's locks are gone")
		})
	}
}

// Hard links to other files are copied as files.
func TestTreeWithHardLinks(t *testing.T) {
	s := newTree(t)
	require.NoError(t, os.Link(s.InChroma("1"), s.InChroma("b/1")))
	meta := s.Create()
	require.Equal(t, backuptest.ReadTree(t, s.ChromaPath), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
}

// A path may be longer than the system accepts in one call.
func TestTreeOfGreatDepth(t *testing.T) {
	t.Parallel()
	const levels = 220
	s := newTree(t)
	name := strings.Repeat("d", 25)
	dir, err := fsat.OpenDir(s.ChromaPath)
	require.NoError(t, err)
	for range levels {
		require.NoError(t, dir.Mkdir(name, 0o755))
		next, err := dir.OpenDir(name)
		require.NoError(t, err)
		require.NoError(t, dir.Close())
		dir = next
	}
	f, err := dir.Create("bottom", 0o644)
	require.NoError(t, err)
	_, err = f.Write([]byte("deep down"))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, dir.Close())

	meta := s.Create()
	require.EqualValues(t, 6, meta.ChromaSnapshotFiles)
	sums, err := os.ReadFile(filepath.Join(meta.BackupRoot, "SHA256SUMS"))
	require.NoError(t, err)
	path := "chroma/" + strings.Repeat(name+"/", levels) + "bottom"
	require.Greater(t, len(path), unix.PathMax)
	require.Contains(t, string(sums), fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte("deep down")), path))
}

// Holes are not filled.
func TestTreeOfSparseFiles(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	s := newTree(t)
	for name, at := range map[string][]int64{
		"all hole": nil, "data first": {0}, "data last": {size - 5}, "data in the middle": {2 << 20, 2<<20 + 8192, 4 << 20}, "odd": {1, 4097, size/2 + 1},
	} {
		f, err := os.Create(s.InChroma("b/" + name))
		require.NoError(t, err)
		require.NoError(t, f.Truncate(size))
		for _, off := range at {
			_, err := f.WriteAt([]byte("12345"), off)
			require.NoError(t, err)
		}
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
		if allocated(t, s.InChroma("b/"+name)) > size/2 {
			t.Skip("this file system has no holes")
		}
	}
	meta := s.Create()
	require.Equal(t, backuptest.ReadTree(t, s.ChromaPath), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
	entries, err := os.ReadDir(s.InChroma("b"))
	require.NoError(t, err)
	for _, entry := range entries {
		if !entry.IsDir() {
			require.LessOrEqual(t, allocated(t, filepath.Join(meta.ChromaSnapshotPath, "b", entry.Name())), int64(64<<10), entry.Name())
		}
	}
	require.EqualValues(t, 5*size+len("content of 1")+2*len("content of b/c/4")+2*len("content of a/2"), meta.ChromaSnapshotBytes)
}

// allocated returns the size of the blocks of a file.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// The umask has no effect on the modes in a snapshot, and is not changed.
func TestUmask(t *testing.T) {
	s := newTree(t)
	require.NoError(t, os.Chmod(s.InChroma("1"), 0o666))
	require.NoError(t, os.Chmod(s.InChroma("a"), 0o777))
	for _, mask := range []int{0, 0o027, 0o077} {
		old := unix.Umask(mask)
		meta, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
		after := unix.Umask(old)
		require.NoError(t, err)
		require.Equal(t, mask, after)
		require.Equal(t, backuptest.ReadTree(t, s.ChromaPath), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
		tree := backuptest.ReadTree(t, meta.BackupRoot)
		for _, path := range []string{"SHA256SUMS", "backup-metadata.json", "db/atocore.db"} {
			require.Equal(t, "-rw-------", tree[path].Mode.String(), path)
		}
		for _, path := range []string{".", "db", "config"} {
			require.Equal(t, "drwx------", tree[path].Mode.String(), path)
		}
	}
}
