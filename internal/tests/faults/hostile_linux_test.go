package faults

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var (
	swaps      = flag.Int("swaps", 30, "how many snapshots to take of a directory in which entries are swapped")
	manyFiles  = flag.Int("files", 3000, "files in the Chroma directory that has many")
	sparseSize = flag.Int64("sparse", 256<<20, "size of the sparse file")
)

// TestSwappedBackupDirectory replaces a directory of the library by a link to
// another place, at every moment at which the host can, or a sample of them.
// Nothing may be written to that place, and nothing in it may be taken for a part
// of a snapshot.
func TestSwappedBackupDirectory(t *testing.T) {
	for _, victim := range []string{"snapshots", "staging", "staging/db", "staging/config", "staging/chroma"} {
		t.Run("victim "+victim, func(t *testing.T) {
			every := 4
			if *injectAll {
				every = 1
			}
			for moment, met := int(*seed)%every, true; met; moment += every {
				met = swapBackupDirectory(t, victim, moment)
			}
		})
	}
}

// swapBackupDirectory reports whether there was such a moment. Moments are counted
// in reports of progress.
func swapBackupDirectory(t *testing.T, victim string, moment int) (met bool) {
	s := newStore(t, memoryDir(t), "wal")
	s.ChromaPath = filepath.Join(s.Dir, "small")
	require.NoError(t, os.MkdirAll(filepath.Join(s.ChromaPath, "sub"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "sub", "file"), []byte("data"), 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(s.BackupDir, "snapshots"), 0o700))
	outside := filepath.Join(s.Dir, "outside")
	for _, name := range []string{"config/x", "chroma/y", "backup-metadata.json", "SHA256SUMS"} {
		path := filepath.Join(outside, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte("another's"), 0o600))
	}
	for _, dir := range []string{"capture", "."} { // into which SQLite would fold its WAL
		require.NoError(t, os.MkdirAll(filepath.Join(outside, dir), 0o700))
		makeDatabase(t, filepath.Join(outside, dir, "capture.db"), "wal")
	}
	before := backuptest.ReadTree(t, outside)

	swapped := false
	opts := s.Options
	opts.Clock = backuptest.Noon // it stands still, so that no report is dropped
	opts.OnProgress = func(p backup.Progress) {
		if p.Share == 1 { // the snapshot exists
			return
		}
		if moment--; moment != -1 {
			return
		}
		met = true
		path := filepath.Join(s.BackupDir, victim)
		if rest, ok := strings.CutPrefix(victim, "staging"); ok {
			staging := s.Staging()
			if len(staging) == 0 {
				return
			}
			path = staging[0] + rest
		}
		if err := os.Rename(path, filepath.Join(s.Dir, "moved")); err == nil {
			require.NoError(t, os.Symlink(outside, path))
			swapped = true
		}
	}
	meta, err := backup.CreateRuntimeBackup(context.Background(), opts)
	require.Equal(t, before, backuptest.ReadTree(t, outside), "written outside")
	if err == nil {
		// The directory could also be replaced a moment later, so it is enough
		// that validate notices it.
		_, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: s.BackupDir}, meta.Stamp)
		if swapped && victim != "snapshots" {
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
		}
	}
	return met
}

// TestSwappedSource exchanges files of the Chroma directory with links, FIFOs and
// directories all the time. The target of a link must not get into a snapshot, and
// opening a FIFO must not wait for its other end.
func TestSwappedSource(t *testing.T) {
	s := newStore(t, memoryDir(t), "wal")
	secret := filepath.Join(s.Dir, "secret")
	require.NoError(t, os.MkdirAll(filepath.Join(secret, "x"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(secret, "file"), []byte("secret"), 0o644))
	aside := filepath.Join(s.Dir, "aside")
	require.NoError(t, os.Mkdir(aside, 0o755))
	for _, name := range []string{"a", "b", "c", "d"} {
		require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, name), []byte("open"), 0o644))
	}
	require.NoError(t, os.Mkdir(filepath.Join(s.ChromaPath, "e"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "e", "file"), []byte("open"), 0o644))
	require.NoError(t, os.Symlink(filepath.Join(secret, "file"), filepath.Join(aside, "a")))
	require.NoError(t, unix.Mkfifo(filepath.Join(aside, "b"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(aside, "c"), 0o755))
	require.NoError(t, os.Symlink("loop", filepath.Join(aside, "d")))
	require.NoError(t, os.Symlink(secret, filepath.Join(aside, "e")))

	var ended atomic.Bool
	swapped := make(chan error, 1)
	go func() {
		for i := 0; !ended.Load(); i++ {
			name := string(rune('a' + i%5))
			for range 2 { // there and back
				if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(s.ChromaPath, name),
					unix.AT_FDCWD, filepath.Join(aside, name), unix.RENAME_EXCHANGE); err != nil {
					swapped <- err
					return
				}
			}
		}
		swapped <- nil
	}()
	ends := map[string]int{}
	for range *swaps {
		o := do(t, s.createCmd())
		if o.code == 0 {
			dir := s.SnapshotPath(o.stamp(t))
			for _, file := range contents(t, dir) {
				require.False(t, bytes.Contains(file, []byte("secret")))
			}
			s.RequireValid()
			require.NoError(t, os.RemoveAll(dir))
			ends["done"]++
			continue
		}
		require.Equal(t, 2, o.code)
		require.Regexp(t, failure, o.stderr)
		require.Empty(t, s.Stamps())
		require.Empty(t, s.Staging())
		_, what, _ := strings.Cut(o.stderr, s.ChromaPath)
		for _, known := range []string{"source changed", "unsupported kind"} {
			if strings.Contains(o.stderr, known) {
				what = known
			}
		}
		ends[what]++
	}
	ended.Store(true)
	require.NoError(t, <-swapped)
	t.Logf("%d attempts: %v", *swaps, ends)
}

// contents reads all files below dir.
func contents(t *testing.T, dir string) (all [][]byte) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all = append(all, data)
		return err
	}))
	return all
}

// TestForeignUser runs the command as a user who lacks one right.
func TestForeignUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	const nobody = 65534
	for _, test := range []struct {
		name string
		take func(s *store) (path string, err error) // takes the right away; path must be in the error
	}{
		{"database", func(s *store) (string, error) { return s.DatabasePath, os.Chmod(s.DatabasePath, 0o600) }},
		{"directory of the database", func(s *store) (string, error) {
			return filepath.Dir(s.DatabasePath), os.Chmod(filepath.Dir(s.DatabasePath), 0o700)
		}},
		{"registry", func(s *store) (string, error) { return s.RegistryPath, os.Chmod(s.RegistryPath, 0o600) }},
		{"file of Chroma", func(s *store) (string, error) {
			path := filepath.Join(s.ChromaPath, "chroma.sqlite3")
			return path, os.Chmod(path, 0o600)
		}},
		{"directory of Chroma", func(s *store) (string, error) {
			path := filepath.Join(s.ChromaPath, "closed", "a")
			return path, os.Chmod(path, 0o700)
		}},
		{"backup directory", func(s *store) (string, error) { return s.BackupDir, os.Chmod(s.BackupDir, 0o755) }},
		{"snapshots", func(s *store) (string, error) {
			path := filepath.Join(s.BackupDir, "snapshots")
			return path, os.Mkdir(path, 0o700)
		}},
		{"none", func(s *store) (string, error) { return "", nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t, memoryDir(t), "wal")
			require.NoError(t, os.Mkdir(s.BackupDir, 0o777))
			require.NoError(t, filepath.WalkDir(s.Dir, func(path string, entry fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				if strings.HasPrefix(path, filepath.Dir(s.DatabasePath)) && !strings.HasPrefix(path, s.ChromaPath) {
					// Reading a database needs the right to write to its directory.
					return os.Chmod(path, 0o777)
				}
				return os.Chmod(path, 0o755)
			}))
			require.NoError(t, os.Chmod(s.BackupDir, 0o777))
			path, err := test.take(s)
			require.NoError(t, err)

			cmd := s.createCmd()
			require.NoError(t, os.Chmod(filepath.Dir(cmd.Path), 0o755))
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			o := do(t, cmd)
			if path == "" {
				o.requireDone(t)
				s.RequireValid()
				return
			}
			require.Equal(t, 2, o.code, o.stderr)
			require.Regexp(t, failure, o.stderr)
			require.Contains(t, o.stderr, path)
			require.Empty(t, s.Staging())
			if test.name != "snapshots" {
				require.Empty(t, s.Stamps())
			}
		})
	}
}

// TestReadOnlyDisk runs the command where nothing can be written.
func TestReadOnlyDisk(t *testing.T) {
	parent := memoryDir(t)
	dir := mountTmpfs(48<<20)(t, parent)
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			s := newStore(t, filepath.Join(dir, mode), mode)
			stamp := do(t, s.createCmd()).requireDone(t).stamp(t)
			remount := func(how string) {
				out, err := exec.Command("mount", "-o", "remount,"+how, dir).CombinedOutput()
				require.NoError(t, err, "%s", out)
			}
			remount("ro")
			defer remount("rw")
			before := backuptest.ReadTree(t, dir)
			o := do(t, s.createCmd())
			require.Equal(t, 2, o.code)
			require.Regexp(t, failure, o.stderr)
			require.Contains(t, o.stderr, "read-only file system")
			do(t, s.validateCmd(stamp)).requireDone(t)
			require.Equal(t, before, backuptest.ReadTree(t, dir))

			// Now only the store is on the read-only disk.
			s.BackupDir = filepath.Join(parent, "backups-"+mode)
			do(t, s.createCmd()).requireDone(t)
			s.RequireValid()
			require.Equal(t, before, backuptest.ReadTree(t, dir))
		})
	}
}

// TestDeepTree has 200 nested directories, so that their path is longer than the
// system takes, and names of all kinds of bytes.
func TestDeepTree(t *testing.T) {
	s := newStore(t, memoryDir(t), "wal")
	names := []string{strings.Repeat("n", 255), "new\nline", "\xff\xfe not UTF-8", `back\slash`, "-rf", " ", "*", "snapshots", "..."}
	fd, err := unix.Open(s.ChromaPath, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	const levels = 200
	for i := range levels {
		name := names[i%len(names)]
		file, err := unix.Openat(fd, "file"+name[:min(len(name), 250)], unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		require.NoError(t, err)
		require.NoError(t, unix.Close(file))
		require.NoError(t, unix.Mkdirat(fd, name, 0o700))
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(fd))
		fd = next
	}
	require.NoError(t, unix.Close(fd))
	stamp := do(t, s.createCmd()).requireDone(t).stamp(t)
	do(t, s.validateCmd(stamp)).requireDone(t)
	manifest, err := os.ReadFile(filepath.Join(s.SnapshotPath(stamp), "SHA256SUMS"))
	require.NoError(t, err)
	require.Greater(t, bytes.Count(manifest, []byte("\n")), levels)

	t.Run("with few descriptors", func(t *testing.T) {
		s.T = t
		for _, limit := range []uint64{16, 32, 64, 128, 1024} {
			cmd := s.createCmd()
			cmd.Args = append([]string{"prlimit", fmt.Sprintf("--nofile=%d:%d", limit, limit), cmd.Path}, cmd.Args[1:]...)
			if cmd.Path, err = exec.LookPath("prlimit"); err != nil {
				t.Skip("no prlimit")
			}
			o := do(t, cmd)
			t.Logf("%d descriptors: exit %d", limit, o.code)
			if o.code != 0 {
				require.Equal(t, 2, o.code, o.stderr)
				require.Regexp(t, failure, o.stderr)
				require.Contains(t, o.stderr, "too many open files")
			}
			require.Subset(t, []string{}, s.Staging(), o.stderr)
		}
		require.Greater(t, len(s.RequireValid()), 1)
	})
}

// TestSparseFile checks that holes stay holes.
func TestSparseFile(t *testing.T) {
	s := newStore(t, memoryDir(t), "wal")
	name := filepath.Join(s.ChromaPath, "sparse")
	f, err := os.Create(name)
	require.NoError(t, err)
	for _, at := range []int64{0, *sparseSize / 2, *sparseSize - 5} {
		_, err = f.WriteAt([]byte("data\n"), at)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	stamp := do(t, s.createCmd()).requireDone(t).stamp(t)
	do(t, s.validateCmd(stamp)).requireDone(t)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(s.SnapshotPath(stamp), "chroma", "sparse"), &st))
	require.Equal(t, *sparseSize, st.Size)
	require.Less(t, st.Blocks*512, int64(1<<20))
}

// TestManyFiles takes and checks a snapshot of many files.
func TestManyFiles(t *testing.T) {
	s := newStore(t, memoryDir(t), "wal").addFiles(*manyFiles)
	stamp := do(t, s.createCmd()).requireDone(t).stamp(t)
	do(t, s.validateCmd(stamp)).requireDone(t)
	require.Equal(t, contents(t, s.ChromaPath), contents(t, filepath.Join(s.SnapshotPath(stamp), "chroma")))
}
