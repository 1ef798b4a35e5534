package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// newTree is backuptest.NewStore with a Chroma directory of five small files.
func newTree(t *testing.T) *backuptest.Store {
	t.Helper()
	s := backuptest.NewStore(t)
	s.RemoveAll(s.ChromaPath)
	for _, dir := range []string{"", "a", "a/empty", "b", "b/c"} {
		require.NoError(t, os.Mkdir(s.InChroma(dir), 0o755))
	}
	for _, file := range []string{"1", "a/2", "b/3", "b/c/4", "b/c/5"} {
		backuptest.Write(t, s.InChroma(file), "content of "+file)
	}
	return s
}

// Any change to the Chroma directory while it is copied is noticed, and the error
// names what changed. The change is made when everything is copied and before it
// is compared.
func TestTreeChangedWhileCopied(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(s *backuptest.Store)
		mention string
	}{
		{"grown", func(s *backuptest.Store) { s.Must(appendTo(s.InChroma("b/3"), "more")) }, "b/3"},
		{"shrunk", func(s *backuptest.Store) { s.Must(os.Truncate(s.InChroma("b/3"), 3)) }, "b/3"},
		{"emptied", func(s *backuptest.Store) { s.Must(os.Truncate(s.InChroma("1"), 0)) }, "chroma/1"},
		{"rewritten with the same size", func(s *backuptest.Store) { backuptest.Write(s.T, s.InChroma("b/3"), "CONTENT of b/3") }, "b/3"},
		{"rewritten with the same time", func(s *backuptest.Store) {
			info, err := os.Stat(s.InChroma("b/c/5"))
			s.Must(err)
			backuptest.Write(s.T, s.InChroma("b/c/5"), "CONTENT of b/c/5")
			s.Must(os.Chtimes(s.InChroma("b/c/5"), info.ModTime(), info.ModTime()))
		}, "b/c"},
		{"touched", func(s *backuptest.Store) {
			s.Must(os.Chtimes(s.InChroma("1"), backuptest.Noon.Time, backuptest.Noon.Time))
		}, "chroma/1"},
		{"replaced", func(s *backuptest.Store) {
			backuptest.Write(s.T, s.InChroma("new"), "content of 1")
			s.Must(os.Rename(s.InChroma("new"), s.InChroma("1")))
		}, "chroma"},
		{"swapped", func(s *backuptest.Store) {
			s.Must(os.Rename(s.InChroma("b/c/4"), s.InChroma("x")),
				os.Rename(s.InChroma("b/c/5"), s.InChroma("b/c/4")),
				os.Rename(s.InChroma("x"), s.InChroma("b/c/5")))
		}, "chroma"},
		{"file appeared", func(s *backuptest.Store) { backuptest.Write(s.T, s.InChroma("b/new"), "") }, "b/new appeared"},
		{"file appeared at the end", func(s *backuptest.Store) { backuptest.Write(s.T, s.InChroma("zzz"), "") }, "zzz appeared"},
		{"file vanished", func(s *backuptest.Store) { s.Must(os.Remove(s.InChroma("b/c/4"))) }, "b/c/4 vanished"},
		{"last file vanished", func(s *backuptest.Store) { s.Must(os.Remove(s.InChroma("a/2"))) }, "a/2 vanished"},
		{"directory appeared", func(s *backuptest.Store) { s.Must(os.Mkdir(s.InChroma("a/new"), 0o755)) }, "a/new appeared"},
		{"empty directory vanished", func(s *backuptest.Store) { s.Must(os.Remove(s.InChroma("a/empty"))) }, "a/empty vanished"},
		{"directory vanished", func(s *backuptest.Store) { s.Must(os.RemoveAll(s.InChroma("b/c"))) }, "b/c vanished"},
		{"renamed", func(s *backuptest.Store) { s.Must(os.Rename(s.InChroma("b/3"), s.InChroma("b/33"))) }, "b/3"},
		{"directory renamed", func(s *backuptest.Store) { s.Must(os.Rename(s.InChroma("b/c"), s.InChroma("b/d"))) }, "b/"},
		{"directory replaced by an equal one", func(s *backuptest.Store) {
			s.Must(os.Rename(s.InChroma("b/c"), filepath.Join(s.Dir, "away")), os.Mkdir(s.InChroma("b/c"), 0o755))
			backuptest.Write(s.T, s.InChroma("b/c/4"), "content of b/c/4")
			backuptest.Write(s.T, s.InChroma("b/c/5"), "content of b/c/5")
		}, "b/c"},
		{"file turned into a directory", func(s *backuptest.Store) { s.Must(os.Remove(s.InChroma("b/3")), os.Mkdir(s.InChroma("b/3"), 0o755)) }, "b/3"},
		{"directory turned into a file", func(s *backuptest.Store) {
			s.Must(os.Remove(s.InChroma("a/empty")))
			backuptest.Write(s.T, s.InChroma("a/empty"), "")
		}, "a/empty"},
		{"moved to another directory", func(s *backuptest.Store) { s.Must(os.Rename(s.InChroma("1"), s.InChroma("b/1"))) }, "1"},
		{"mode changed", func(s *backuptest.Store) { s.Must(os.Chmod(s.InChroma("1"), 0o640)) }, "chroma/1"},
		{"directory's mode changed", func(s *backuptest.Store) { s.Must(os.Chmod(s.InChroma("b/c"), 0o700)) }, "b/c"},
		{"all vanished", func(s *backuptest.Store) { s.Must(os.RemoveAll(s.ChromaPath)) }, "chroma"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if runtime.GOOS == "windows" {
				t.Skip("files that are open cannot be changed like this on Windows")
			}
			s := newTree(t)
			done := false
			s.Clock = backuptest.Noon // it stands still, so that no report is dropped
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseChroma && p.Files == 5 && !done {
					done = true
					tt.change(s)
				}
			}
			err := s.CreateFails()
			require.True(t, done)
			require.ErrorIs(t, err, backup.ErrSourceChanged)
			require.ErrorContains(t, err, tt.mention)
		})
	}
}

// appendTo appends text to a file.
func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// A file that changes while it is copied is noticed.
func TestFileChangedBetweenPieces(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"grows":            func(path string) error { return appendTo(path, "more") },
		"shrinks":          func(path string) error { return os.Truncate(path, 1<<20) },
		"is emptied":       func(path string) error { return os.Truncate(path, 0) },
		"vanishes":         os.Remove,
		"is written into":  func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("y"), 24<<20), 0) },
		"is moved":         func(path string) error { return os.Rename(path, path+"2") },
		"becomes a hole":   func(path string) error { return errors.Join(os.Truncate(path, 0), os.Truncate(path, 24<<20)) },
		"shrinks, regrows": func(path string) error { return errors.Join(os.Truncate(path, 10<<20), os.Truncate(path, 24<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := backuptest.NewStore(t)
			s.RemoveAll(s.ChromaPath)
			require.NoError(t, os.Mkdir(s.ChromaPath, 0o755))
			large := s.InChroma("large")
			require.NoError(t, os.WriteFile(large, bytes.Repeat([]byte("x"), 24<<20), 0o644))
			done := false
			s.Clock = backuptest.Noon // no report is left out
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseChroma && p.Path == large && !done {
					done = true
					require.NoError(t, change(large))
				}
			}
			for { // on a busy machine the file may be copied between two reports
				meta, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
				if done {
					require.ErrorIs(t, err, backup.ErrSourceChanged)
					break
				}
				require.NoError(t, err)
				s.RemoveAll(meta.BackupRoot)
			}
			s.RequireNoSnapshot()
		})
	}
}

// A change before the copy begins is no error.
func TestTreeChangedBeforeItIsCopied(t *testing.T) {
	s := newTree(t)
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseRegistry {
			backuptest.Write(t, s.InChroma("late"), "in time")
		}
	}
	meta := s.Create()
	require.Equal(t, backuptest.ReadTree(t, s.ChromaPath), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
}

// File names may have any bytes.
func TestTreeNames(t *testing.T) {
	t.Parallel()
	s := newTree(t)
	for _, name := range backuptest.AwkwardNames(t) {
		require.NoError(t, os.Mkdir(s.InChroma(name), 0o755))
		backuptest.Write(t, filepath.Join(s.InChroma(name), name), name)
		backuptest.Write(t, filepath.Join(s.InChroma("b"), name), name)
	}
	// Names that sort differently as paths and as elements of paths.
	for _, name := range []string{"s", "s-", "s.x", "s0"} {
		require.NoError(t, os.Mkdir(s.InChroma(name), 0o755))
		backuptest.Write(t, filepath.Join(s.InChroma(name), "f"), "")
		backuptest.Write(t, s.InChroma(name+"!"), "")
	}
	meta := s.Create()
	require.Equal(t, backuptest.ReadTree(t, s.ChromaPath), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
}

// Modes and times are kept, those of read-only directories included, and a failed
// call can remove such copies. For setuid bits see TestSetuidIsDropped.
func TestTreeModes(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	s := newTree(t)
	mtime := time.Unix(-1, 5) // before 1970
	for path, mode := range map[string]fs.FileMode{
		"1": 0o400, "a/2": 0o777, "b/3": 0o640, "b/c/4": 0o755, "b/c/5": 0o444,
		"a/empty": 0o500, "b": 0o555, "b/c": 0o755 | fs.ModeSetgid | fs.ModeSticky, "a": 0o511,
	} {
		require.NoError(t, os.Chmod(s.InChroma(path), mode))
		require.NoError(t, os.Chtimes(s.InChroma(path), mtime, mtime))
		mtime = mtime.Add(time.Hour + 1)
	}
	before := backuptest.ReadTree(t, s.ChromaPath)
	writable := func(root string) {
		require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if d.IsDir() {
				err = errors.Join(err, os.Chmod(path, 0o755))
			}
			return err
		}))
	}
	t.Cleanup(func() { writable(s.Dir) })

	ctx, cancel := context.WithCancel(t.Context())
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseHash {
			cancel()
		}
	}
	_, err := backup.CreateRuntimeBackup(ctx, s.Options)
	require.ErrorIs(t, err, context.Canceled)
	s.RequireNoSnapshot()

	s.OnProgress = nil
	meta := s.Create()
	require.Equal(t, before, backuptest.ReadTree(t, meta.ChromaSnapshotPath))
}

// Hundreds of directories are copied, with files of many small sizes.
func TestTreeShapes(t *testing.T) {
	t.Parallel()
	s := newTree(t)
	for i := range 300 {
		dir := s.InChroma(fmt.Sprintf("dir-%d/%d", i%20, i))
		require.NoError(t, os.MkdirAll(dir, 0o755))
		if i%3 > 0 {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte{byte(i)}, i*i), 0o644))
		}
	}
	meta := s.Create()
	require.Equal(t, backuptest.ReadTree(t, s.ChromaPath), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
	require.EqualValues(t, 5+200, meta.ChromaSnapshotFiles)
}

// A hash that was taken while a file was copied counts only if the copy has not
// been changed since: the manifest must be that of the published files.
func TestCopyTouchedBeforeItIsHashed(t *testing.T) {
	s := newTree(t)
	files := []string{"1", "a/2", "b/3", "b/c/4", "b/c/5"}
	s.OnProgress = func(p backup.Progress) {
		if p.Phase != backup.PhaseSeal {
			return
		}
		for _, file := range files {
			f, err := os.OpenFile(filepath.Join(filepath.Dir(p.Path), "chroma", file), os.O_WRONLY, 0)
			s.Must(err)
			_, err = f.WriteString("X")
			s.Must(err)
			s.Must(f.Close())
		}
	}
	meta := s.Create()
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(meta.ChromaSnapshotPath, file))
		require.NoError(t, err)
		require.Equal(t, "Xontent of "+file, string(content))
	}
}

// The copy has the bytes, modes and times of the directory.
func TestChromaCopy(t *testing.T) {
	s := backuptest.NewStore(t)
	// Times and modes that no new file has.
	n := int64(0)
	require.NoError(t, filepath.WalkDir(s.ChromaPath, func(path string, d fs.DirEntry, err error) error {
		n++
		mtime := time.Unix(1600000000+n, 123456789+n)
		return errors.Join(err,
			os.Chmod(path, map[bool]fs.FileMode{true: 0o751, false: 0o640}[d.IsDir()]),
			os.Chtimes(path, mtime, mtime))
	}))
	before := backuptest.ReadTree(t, s.ChromaPath)
	require.Len(t, before, 1+2+9)
	meta := s.Create()
	require.Equal(t, before, backuptest.ReadTree(t, meta.ChromaSnapshotPath))
	require.Equal(t, before, backuptest.ReadTree(t, s.ChromaPath), "the source was changed")
}

// The Chroma directory itself may be a link or empty, but not a file.
func TestChromaRoot(t *testing.T) {
	t.Parallel()
	t.Run("a link to a directory", func(t *testing.T) {
		s := backuptest.NewStore(t)
		require.NoError(t, os.Rename(s.ChromaPath, filepath.Join(s.Dir, "elsewhere")))
		require.NoError(t, os.Symlink("../elsewhere", s.ChromaPath))
		meta := s.Create()
		require.Equal(t, backuptest.ReadTree(t, filepath.Join(s.Dir, "elsewhere")), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
		require.True(t, backuptest.ReadTree(t, meta.BackupRoot)["chroma"].Mode.IsDir())
	})
	t.Run("a dangling link", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.RemoveAll(s.ChromaPath)
		require.NoError(t, os.Symlink("../elsewhere", s.ChromaPath))
		err := s.CreateFails()
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.ErrorContains(t, err, s.ChromaPath)
	})
	t.Run("a file", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.ChromaPath = s.RegistryPath
		require.ErrorContains(t, s.CreateFails(), s.ChromaPath)
	})
	t.Run("empty", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.RemoveAll(s.ChromaPath)
		require.NoError(t, os.Mkdir(s.ChromaPath, 0o755))
		meta := s.Create()
		require.True(t, meta.ChromaSnapshotIncluded)
		require.Zero(t, meta.ChromaSnapshotFiles)
		require.DirExists(t, meta.ChromaSnapshotPath)
	})
}

// A snapshot of 1,000 files or more, which one syncfs makes durable instead of an
// fsync of each, is complete.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	for dir := range 4 {
		path := filepath.Join(s.ChromaPath, fmt.Sprint("dir-", dir))
		require.NoError(t, os.Mkdir(path, 0o755))
		for file := range 250 {
			require.NoError(t, os.WriteFile(filepath.Join(path, fmt.Sprint(file)), fmt.Appendf(nil, "%d", file), 0o644))
		}
	}
	meta := s.Create()
	require.EqualValues(t, 1009, meta.ChromaSnapshotFiles)
	require.Equal(t, backuptest.ReadTree(t, s.ChromaPath), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
}

// A mount point below the Chroma directory is rejected. The directory itself may be
// one.
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
