package fsat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// fallbacks are copiers that have found out that calls do not work.
func fallbacks() map[string]*Copier {
	noClone, noRange, noAlloc, noSeek := new(Copier), new(Copier), new(Copier), new(Copier)
	noClone.noClone.Store(true)
	noRange.noClone.Store(true)
	noRange.noRange.Store(true)
	noAlloc.noClone.Store(true)
	noAlloc.noAlloc.Store(true)
	noSeek.noClone.Store(true)
	noSeek.noSeek.Store(true)
	return map[string]*Copier{
		"all calls": new(Copier), "no clone": noClone, "read and write": noRange, "no fallocate": noAlloc, "no seek": noSeek,
	}
}

// places are pairs of directories: on one file system, and on two if there is
// a second one to write to.
func places(t *testing.T) map[string][2]*Dir {
	t.Helper()
	openAt := func(path string) *Dir {
		dir, err := OpenDir(path)
		require.NoError(t, err)
		t.Cleanup(func() { dir.Close() })
		return dir
	}
	one := openAt(t.TempDir())
	all := map[string][2]*Dir{"one file system": {one, one}}
	if shm, err := os.MkdirTemp("/dev/shm", "fsat"); err == nil {
		t.Cleanup(func() { os.RemoveAll(shm) })
		two := openAt(shm)
		all["to another file system"] = [2]*Dir{one, two}
		all["from another file system"] = [2]*Dir{two, one}
		all["in memory"] = [2]*Dir{two, two}
	}
	return all
}

// Every way of copying produces the same bytes, with holes anywhere.
func TestEveryWayOfCopying(t *testing.T) {
	const size = 8<<20 + 123
	sources := map[string]func(f *os.File) error{
		"dense": func(f *os.File) error {
			_, err := f.Write(bytes.Repeat([]byte("0123456789abcdef!"), size/17+1))
			return err
		},
		"hole": func(*os.File) error { return nil },
		"data at both ends": func(f *os.File) error {
			_, err := f.Write([]byte("begin"))
			_, err2 := f.WriteAt([]byte("end"), size-3)
			return errors.Join(err, err2)
		},
		"zeros that are written": func(f *os.File) error { _, err := f.Write(make([]byte, 3<<20)); return err },
		"data in the middle":     func(f *os.File) error { _, err := f.WriteAt(bytes.Repeat([]byte("x"), 10000), 5<<20); return err },
		"checkered": func(f *os.File) (err error) {
			for off := int64(0); off < size-4096; off += 128 << 10 {
				_, werr := f.WriteAt(bytes.Repeat([]byte("c"), 4096), off)
				err = errors.Join(err, werr)
			}
			return err
		},
	}
	for place, dirs := range places(t) {
		for name, fill := range sources {
			path := filepath.Join(dirs[0].Path(), name)
			f, err := os.Create(path)
			require.NoError(t, err)
			require.NoError(t, fill(f))
			require.NoError(t, f.Truncate(size))
			require.NoError(t, f.Close())
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			for way, copier := range fallbacks() {
				t.Run(fmt.Sprint(place, "/", name, "/", way), func(t *testing.T) {
					src, err := dirs[0].Open(name)
					require.NoError(t, err)
					defer src.Close()
					info, err := src.Stat()
					require.NoError(t, err)
					dst, err := dirs[1].Create("copy", 0o600)
					require.NoError(t, err)
					defer dst.Close()
					var reported int64
					n, err := copier.Copy(t.Context(), dst, src, info, func(n int64) { reported += n })
					require.NoError(t, err)
					require.EqualValues(t, size, n)
					require.EqualValues(t, size, reported)
					got, err := os.ReadFile(filepath.Join(dirs[1].Path(), "copy"))
					require.NoError(t, err)
					require.True(t, bytes.Equal(want, got), "the bytes differ")
					made, err := dst.Stat()
					require.NoError(t, err)
					if info.Allocated == 0 {
						require.Zero(t, made.Allocated, "holes were filled")
					}
					require.NoError(t, dirs[1].Remove("copy", false))
				})
			}
			require.NoError(t, os.Remove(path))
		}
	}
}

// A source that is shorter or longer than it was when it was looked at.
func TestCopyOfChangedSize(t *testing.T) {
	const looked = 700 << 10
	for place, dirs := range places(t) {
		for way, copier := range fallbacks() {
			for name, change := range map[string]func(path string) (is, want int64){
				"emptied":  func(string) (int64, int64) { return 0, 0 },
				"shrunk":   func(string) (int64, int64) { return 300<<10 + 1, 300<<10 + 1 },
				"one less": func(string) (int64, int64) { return looked - 1, looked - 1 },
				"grown":    func(string) (int64, int64) { return looked + 5000, looked },
			} {
				for _, sparse := range []bool{false, true} {
					t.Run(fmt.Sprint(place, "/", way, "/", name, "/sparse=", sparse), func(t *testing.T) {
						path := filepath.Join(dirs[0].Path(), "src")
						if sparse {
							require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
							require.NoError(t, os.Truncate(path, looked))
						} else {
							require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("x"), looked), 0o600))
						}
						src, err := dirs[0].Open("src")
						require.NoError(t, err)
						defer src.Close()
						info, err := src.Stat()
						require.NoError(t, err)
						is, want := change(path)
						require.NoError(t, os.Truncate(path, is))
						dst, err := dirs[1].Create("copy", 0o600)
						require.NoError(t, err)
						defer dst.Close()
						n, err := copier.Copy(t.Context(), dst, src, info, nil)
						require.NoError(t, err)
						require.Equal(t, want, n)
						got, err := dst.Stat()
						require.NoError(t, err)
						if n == looked {
							require.EqualValues(t, looked, got.Size)
						}
						require.NoError(t, dirs[1].Remove("copy", false))
						require.NoError(t, dirs[0].Remove("src", false))
					})
				}
			}
		}
	}
}

// A copy ends within one piece after ctx is done.
func TestCopyIsCancelled(t *testing.T) {
	dir, err := OpenDir(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, os.WriteFile(filepath.Join(dir.Path(), "src"), bytes.Repeat([]byte("x"), 3*copyStep), 0o600))
	src, err := dir.Open("src")
	require.NoError(t, err)
	defer src.Close()
	info, err := src.Stat()
	require.NoError(t, err)
	for way, copier := range fallbacks() {
		if way == "all calls" {
			continue // a clone is one piece
		}
		t.Run(way, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			dst, err := dir.Create("copy", 0o600)
			require.NoError(t, err)
			defer dst.Close()
			n, err := copier.Copy(ctx, dst, src, info, func(int64) { cancel() })
			require.ErrorIs(t, err, context.Canceled)
			require.LessOrEqual(t, n, int64(copyStep))
			require.NoError(t, dir.Remove("copy", false))
		})
	}
}

// A small file is copied like any other, and what was written is known unless
// it did not pass through memory.
func TestCopySmall(t *testing.T) {
	for place, dirs := range places(t) {
		for way, copier := range fallbacks() {
			for _, tt := range []struct {
				name         string
				looked, is   int64 // its size when it was looked at, and when it is read
				data         int   // bytes of it that are no hole
				want         int64
				neverContent bool
			}{
				{name: "empty"},
				{name: "one byte", looked: 1, is: 1, data: 1, want: 1},
				{name: "as large as may be", looked: SmallFile, is: SmallFile, data: SmallFile, want: SmallFile},
				{name: "shrunk", looked: 5000, is: 4999, data: 4999, want: 4999},
				{name: "emptied", looked: 5000, want: 0},
				{name: "grown", looked: 5000, is: 5001, data: 5001, want: 5000},
				{name: "a hole", looked: SmallFile, is: SmallFile, want: SmallFile, neverContent: true},
			} {
				t.Run(fmt.Sprint(place, "/", way, "/", tt.name), func(t *testing.T) {
					path := filepath.Join(dirs[0].Path(), "src")
					require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("x"), tt.data), 0o600))
					require.NoError(t, os.Truncate(path, tt.is))
					src, err := dirs[0].Open("src")
					require.NoError(t, err)
					defer src.Close()
					info, err := src.Stat()
					require.NoError(t, err)
					info.Size = tt.looked
					if !tt.neverContent {
						info.Allocated = tt.looked
					}
					dst, err := dirs[1].Create("copy", 0o600)
					require.NoError(t, err)
					defer dst.Close()
					content, n, err := copier.CopySmall(t.Context(), dst, src, info, make([]byte, SmallFile))
					require.NoError(t, err)
					require.Equal(t, tt.want, n)
					got, err := os.ReadFile(filepath.Join(dirs[1].Path(), "copy"))
					require.NoError(t, err)
					source, err := os.ReadFile(path)
					require.NoError(t, err)
					require.True(t, bytes.Equal(source[:tt.want], got[:tt.want]), "the bytes differ")
					if content != nil {
						require.False(t, tt.neverContent)
						require.True(t, bytes.Equal(content, got), "it did not write what it says")
					}
					require.NoError(t, dirs[1].Remove("copy", false))
					require.NoError(t, dirs[0].Remove("src", false))
				})
			}
		}
	}
}

// A clone has the size that the source had at that moment. If it is longer than
// it was when it was looked at, the copy is cut: the caller knows how much it
// asked for.
func TestCloneIsLongerThanWanted(t *testing.T) {
	dir, err := OpenDir(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	for size, want := range map[int64]int64{5: 5, 10: 10, 15: 10} { // of 10 bytes that the clone has
		dst, err := dir.Create("clone", 0o600)
		require.NoError(t, err)
		_, err = dst.Write([]byte("0123456789"))
		require.NoError(t, err)
		reported := int64(0)
		n, err := new(Copier).cloned(dst, size, func(n int64) { reported += n })
		require.NoError(t, err)
		require.Equal(t, want, n)
		require.Equal(t, want, reported)
		info, err := dst.Stat()
		require.NoError(t, err)
		require.Equal(t, want, info.Size)
		require.NoError(t, dst.Close())
		require.NoError(t, dir.Remove("clone", false))
	}
}

// A disk that is too full for a copy is found before anything is written to it.
func TestCopyToAFullDisk(t *testing.T) {
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	defer func() { require.NoError(t, unix.Unmount(small, unix.MNT_DETACH)) }()
	path := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(path, "src"), make([]byte, 4<<20), 0o600))
	from, err := OpenDir(path)
	require.NoError(t, err)
	defer from.Close()
	to, err := OpenDir(small)
	require.NoError(t, err)
	defer to.Close()
	src, err := from.Open("src")
	require.NoError(t, err)
	defer src.Close()
	info, err := src.Stat()
	require.NoError(t, err)
	info.Allocated = info.Size // whatever the file system makes of zeros
	dst, err := to.Create("copy", 0o600)
	require.NoError(t, err)
	defer dst.Close()
	n, err := new(Copier).Copy(t.Context(), dst, src, info, nil)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, "fallocate "+filepath.Join(small, "copy"))
	require.Zero(t, n)
	made, err := dst.Stat()
	require.NoError(t, err)
	require.Zero(t, made.Size)
}
