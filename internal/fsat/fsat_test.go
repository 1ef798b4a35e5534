package fsat_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/fsat"
)

// open opens a new directory for a test.
func open(t *testing.T) (dir *fsat.Dir, path string) {
	t.Helper()
	path = t.TempDir()
	dir, err := fsat.OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir, path
}

func write(t *testing.T, content string, elem ...string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(elem...), []byte(content), 0o644))
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	require.NoError(t, err)
	return string(data)
}

// Every method takes one path element, so that no caller's mistake leads out
// of the directory. Nothing is done with any other name.
func TestNamesAreOneElement(t *testing.T) {
	dir, path := open(t)
	write(t, "x", path, "file")
	require.NoError(t, os.Mkdir(filepath.Join(path, "sub"), 0o755))
	write(t, "x", path, "sub", "file")
	before := list(t, path)
	for _, name := range []string{"", ".", "..", "/", "sub/file", "sub/", "/etc", "../x", "sub/..", "./file", "a\x00", "\x00"} {
		for method, call := range map[string]func() error{
			"OpenDir":   func() error { _, err := dir.OpenDir(name); return err },
			"Lstat":     func() error { _, err := dir.Lstat(name); return err },
			"Open":      func() error { _, err := dir.Open(name); return err },
			"OpenRW":    func() error { _, err := dir.OpenRW(name); return err },
			"Create":    func() error { _, err := dir.Create(name, 0o600); return err },
			"Mkdir":     func() error { return dir.Mkdir(name, 0o700) },
			"Remove":    func() error { return dir.Remove(name, false) },
			"RemoveDir": func() error { return dir.Remove(name, true) },
			"Rename":    func() error { return dir.Rename(name, dir, "new") },
			"RenameTo":  func() error { return dir.Rename("file", dir, name) },
			"Replace":   func() error { return dir.Replace(name, dir, "new") },
			"ReplaceTo": func() error { return dir.Replace("file", dir, name) },
		} {
			err := call()
			var pathErr *fs.PathError
			require.ErrorAs(t, err, &pathErr, "%s(%q)", method, name)
			require.NotErrorIs(t, err, fs.ErrNotExist, "%s(%q)", method, name)
			require.Equal(t, before, list(t, path), "%s(%q)", method, name)
		}
	}
}

// list names everything below path.
func list(t *testing.T, path string) (all []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(path, func(name string, _ fs.DirEntry, err error) error {
		all = append(all, name)
		return err
	}))
	return all
}

// Rename replaces nothing, not even an empty directory, which rename(2) would.
func TestRenameReplacesNothing(t *testing.T) {
	for _, kind := range []string{"file", "empty directory", "directory", "dangling link"} {
		t.Run(kind, func(t *testing.T) {
			dir, path := open(t)
			require.NoError(t, dir.Mkdir("target", 0o755))
			target, err := dir.OpenDir("target")
			require.NoError(t, err)
			defer target.Close()
			there := filepath.Join(path, "target", "name")
			switch kind {
			case "file":
				write(t, "old", there)
			case "dangling link":
				require.NoError(t, os.Symlink("nowhere", there))
			default:
				require.NoError(t, os.Mkdir(there, 0o755))
				if kind == "directory" {
					write(t, "old", there, "file")
				}
			}
			require.NoError(t, os.Mkdir(filepath.Join(path, "dir"), 0o755))
			write(t, "new", path, "file")
			before := list(t, path)
			require.ErrorIs(t, dir.Rename("dir", target, "name"), fs.ErrExist)
			require.ErrorIs(t, dir.Rename("file", target, "name"), fs.ErrExist)
			require.Equal(t, before, list(t, path))
			if kind == "file" {
				require.Equal(t, "old", read(t, there))
			}

			require.NoError(t, dir.Rename("dir", target, "free"))
			require.NoError(t, dir.Rename("file", target, "free too"))
			require.Equal(t, "new", read(t, path, "target", "free too"))
			require.ErrorIs(t, dir.Rename("gone", target, "x"), fs.ErrNotExist)
		})
	}
}

// Replace does replace a file.
func TestReplace(t *testing.T) {
	dir, path := open(t)
	write(t, "old", path, "there")
	write(t, "new", path, "file")
	require.NoError(t, dir.Replace("file", dir, "there"))
	require.Equal(t, "new", read(t, path, "there"))
	require.NoFileExists(t, filepath.Join(path, "file"))
}

// Create makes a file that was not there, and writes through no link.
func TestCreateIsExclusive(t *testing.T) {
	dir, path := open(t)
	write(t, "old", path, "file")
	require.NoError(t, os.Symlink(filepath.Join(path, "victim"), filepath.Join(path, "dangling")))
	require.NoError(t, os.Symlink("file", filepath.Join(path, "link")))
	for _, name := range []string{"file", "dangling", "link"} {
		_, err := dir.Create(name, 0o600)
		require.ErrorIs(t, err, fs.ErrExist, name)
	}
	require.NoFileExists(t, filepath.Join(path, "victim"))
	require.Equal(t, "old", read(t, path, "file"))
}

// No link is followed below an open directory.
func TestLinksAreNotFollowed(t *testing.T) {
	dir, path := open(t)
	outside := t.TempDir()
	write(t, "secret", outside, "file")
	require.NoError(t, os.Symlink(outside, filepath.Join(path, "dir")))
	require.NoError(t, os.Symlink(filepath.Join(outside, "file"), filepath.Join(path, "file")))
	_, err := dir.OpenDir("dir")
	require.Error(t, err)
	_, err = dir.Open("file")
	require.Error(t, err)
	_, err = dir.OpenRW("file")
	require.Error(t, err)
	info, err := dir.Lstat("file")
	require.NoError(t, err)
	require.Equal(t, fs.ModeSymlink, info.Mode.Type())
	require.NoError(t, dir.Remove("dir", false))
	require.FileExists(t, filepath.Join(outside, "file"))
}

// ReadDir returns entries in the order in which a walk visits files by the byte
// order of their paths, and names everything with its type.
func TestReadDirOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		dir, path := open(t)
		var want []string
		var fill func(at, prefix string, depth int)
		fill = func(at, prefix string, depth int) {
			for range 1 + random.IntN(8) {
				name := randomName(random)
				full := filepath.Join(at, name)
				if _, err := os.Lstat(full); err == nil {
					continue
				}
				if depth < 3 && random.IntN(2) == 0 {
					require.NoError(t, os.Mkdir(full, 0o755))
					fill(full, prefix+name+"/", depth+1)
				} else {
					write(t, "", full)
					want = append(want, prefix+name)
				}
			}
		}
		fill(path, "", 0)
		slices.Sort(want)

		var got []string
		var walk func(dir *fsat.Dir, prefix string)
		walk = func(dir *fsat.Dir, prefix string) {
			entries, err := dir.ReadDir()
			require.NoError(t, err)
			again, err := dir.ReadDir()
			require.NoError(t, err)
			require.Equal(t, entries, again, "a second reading differs")
			for _, entry := range entries {
				if !entry.Type.IsDir() {
					got = append(got, prefix+entry.Name)
					continue
				}
				sub, err := dir.OpenDir(entry.Name)
				require.NoError(t, err)
				walk(sub, prefix+entry.Name+"/")
				require.NoError(t, sub.Close())
			}
		}
		walk(dir, "")
		require.Equal(t, want, got)
	}
}

// randomName is short, and of characters around "/", where orders differ.
func randomName(random *rand.Rand) string {
	const letters = "-.!~0aA "
	for {
		var b strings.Builder
		for range 1 + random.IntN(3) {
			b.WriteByte(letters[random.IntN(len(letters))])
		}
		if name := b.String(); name != "." && name != ".." && strings.TrimRight(name, ". ") == name {
			return name
		}
	}
}

// ComparePaths agrees with the order of whole paths for every pair of names.
func TestComparePaths(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	below := []string{"", "\x01", "a", "\xff", "-"}
	for range 3000 {
		a, b := randomName(random), randomName(random)
		aDir, bDir := random.IntN(2) == 0, random.IntN(2) == 0
		if a == b && aDir == bDir {
			require.Zero(t, fsat.ComparePaths(a, aDir, b, bDir))
			continue
		}
		if a == b {
			continue // a name cannot be both
		}
		// Whatever is in the directories.
		for _, x := range below {
			for _, y := range below {
				path := func(name string, dir bool, rest string) string {
					if dir {
						return name + "/" + rest
					}
					return name
				}
				want := strings.Compare(path(a, aDir, x), path(b, bDir, y))
				got := fsat.ComparePaths(a, aDir, b, bDir)
				require.Equal(t, want < 0, got < 0, "%q %q", a, b)
				require.Equal(t, want > 0, got > 0, "%q %q", a, b)
			}
		}
	}
}

// More entries than one system call returns.
func TestReadDirOfManyEntries(t *testing.T) {
	dir, path := open(t)
	const n = 1000
	for i := range n {
		write(t, "", path, fmt.Sprintf("%s-%d", strings.Repeat("x", 50+i%50), i))
	}
	want, err := os.ReadDir(path)
	require.NoError(t, err)
	got, err := dir.ReadDir()
	require.NoError(t, err)
	require.Len(t, got, n)
	for i := range got { // os.ReadDir sorts by name, and there are no directories
		require.Equal(t, want[i].Name(), got[i].Name)
	}
	empty, _ := open(t)
	got, err = empty.ReadDir()
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestFileReadsAndWrites(t *testing.T) {
	dir, path := open(t)
	f, err := dir.Create("f", 0o600)
	require.NoError(t, err)
	n, err := f.Write([]byte("hello "))
	require.NoError(t, err)
	require.Equal(t, 6, n)
	n, err = f.WriteAt([]byte("world"), 6)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	buf := make([]byte, 20)
	n, err = f.ReadAt(buf, 6)
	require.Equal(t, io.EOF, err)
	require.Equal(t, "world", string(buf[:n]))
	require.NoError(t, f.Truncate(8))
	require.NoError(t, f.Sync())
	info, err := f.Stat()
	require.NoError(t, err)
	require.EqualValues(t, 8, info.Size)
	require.NoError(t, f.Close())
	require.NoError(t, f.Close(), "a second time")
	require.Equal(t, "hello wo", read(t, path, "f"))

	f, err = dir.Open("f")
	require.NoError(t, err)
	defer f.Close()
	data, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, "hello wo", string(data))
	_, err = f.Write([]byte("x"))
	require.Error(t, err, "it was opened for reading")
	_, err = f.Write(nil)
	require.NoError(t, err)
}

// Closing twice must not close another file that has the same number by then.
func TestSecondCloseDoesNothing(t *testing.T) {
	dir, path := open(t)
	write(t, "x", path, "f")
	for range 10 {
		f, err := dir.Open("f")
		require.NoError(t, err)
		require.NoError(t, f.Close())
		other, err := os.Open(filepath.Join(path, "f"))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		_, err = io.ReadAll(other)
		require.NoError(t, err)
		require.NoError(t, other.Close())
	}
	require.NoError(t, (*fsat.File)(nil).Close())
	require.NoError(t, (*fsat.Dir)(nil).Close())
}

func TestErrorsNameThePath(t *testing.T) {
	dir, path := open(t)
	_, err := dir.Open("gone")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, filepath.Join(path, "gone"))
	_, err = fsat.OpenDir(filepath.Join(path, "gone"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, filepath.Join(path, "gone"))
	_, err = fsat.Stat(filepath.Join(path, "gone"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, dir.Remove("gone", false), fs.ErrNotExist)
	require.NoError(t, dir.Mkdir("there", 0o755))
	require.ErrorIs(t, dir.Mkdir("there", 0o755), fs.ErrExist)
}

func TestCopyOfEverySize(t *testing.T) {
	dir, path := open(t)
	content := make([]byte, 9<<20)
	_, err := rand.NewChaCha8([32]byte{}).Read(content)
	require.NoError(t, err)
	var copier fsat.Copier
	for i, size := range []int{0, 1, 4095, 4096, 4097, 64 << 10, 256 << 10, 256<<10 + 1, 8<<20 - 1, 8 << 20, 8<<20 + 1, 9 << 20} {
		write(t, string(content[:size]), path, "src")
		n, reported := copyFile(t, &copier, dir, dir, "src", string(rune('a'+i)), int64(size))
		require.EqualValues(t, size, n)
		require.EqualValues(t, size, reported)
		require.True(t, string(content[:size]) == read(t, path, string(rune('a'+i))), "%d bytes differ", size)
	}
}

// copyFile copies the first size bytes of a file.
func copyFile(t *testing.T, copier *fsat.Copier, from, to *fsat.Dir, name, copyName string, size int64) (n, reported int64) {
	t.Helper()
	src, err := from.Open(name)
	require.NoError(t, err)
	defer src.Close()
	info, err := src.Stat()
	require.NoError(t, err)
	info.Size = size
	dst, err := to.Create(copyName, 0o600)
	require.NoError(t, err)
	defer dst.Close()
	n, err = copier.Copy(context.Background(), dst, src, info, func(n int64) { reported += n })
	require.NoError(t, err)
	return n, reported
}

// Unchanged looks at each of these fields. The time of the last change of the
// inode is the one that a writer cannot set back.
func TestUnchangedLooksAtEachField(t *testing.T) {
	was := fsat.Info{Dev: 1, Ino: 2, Size: 3, Mtime: fsat.Time{Sec: 4}, Ctime: fsat.Time{Nsec: 5}}
	require.True(t, was.Unchanged(was))
	for name, change := range map[string]func(*fsat.Info){
		"device": func(i *fsat.Info) { i.Dev++ },
		"inode":  func(i *fsat.Info) { i.Ino++ },
		"size":   func(i *fsat.Info) { i.Size++ },
		"mtime":  func(i *fsat.Info) { i.Mtime.Nsec++ },
		"ctime":  func(i *fsat.Info) { i.Ctime.Sec++ },
	} {
		is := was
		change(&is)
		require.False(t, was.Unchanged(is), name)
	}
}
