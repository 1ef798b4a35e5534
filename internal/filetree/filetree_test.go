package filetree

import (
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
)

// The names are such that the order of paths differs from that of their
// elements.
var treeFiles = []string{"1", "a!", "a/2", "a/b/3", "a/b/4", "a0", "s-/f", "s/f"}

// newTree returns a new directory with treeFiles and the empty directory
// a/empty in it.
func newTree(t *testing.T) *fsat.Dir {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "a", "empty"), 0o755))
	for _, file := range treeFiles {
		path := filepath.Join(root, filepath.FromSlash(file))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("content of "+file), 0o644))
	}
	return openDir(t, root)
}

func openDir(t *testing.T, path string) *fsat.Dir {
	t.Helper()
	dir, err := fsat.OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

// scanAll returns what Scan finds, and checks that it comes in order.
func scanAll(t *testing.T, root *fsat.Dir, o ScanOptions) map[string]File {
	t.Helper()
	var paths []string
	found := map[string]File{}
	require.NoError(t, Scan(t.Context(), root, o, func(f *File) error {
		paths = append(paths, f.Path)
		found[f.Path] = *f
		return nil
	}))
	require.IsIncreasing(t, append([]string{""}, paths...))
	require.Len(t, found, len(paths))
	return found
}

func TestScan(t *testing.T) {
	root := newTree(t)
	var lastFiles, lastBytes, size int64
	found := scanAll(t, root, ScanOptions{
		Hash: true, Sync: true, Writeback: true,
		Skip:     func(path string) bool { return path == "s" },
		Progress: func(_ string, files, bytes int64) { lastFiles, lastBytes = files, bytes },
	})
	want := slices.DeleteFunc(slices.Clone(treeFiles), func(path string) bool { return path == "s/f" })
	for _, path := range want {
		require.Equal(t, sha256.Sum256([]byte("content of "+path)), found[path].Sum, path)
		size += found[path].Info.Size
	}
	empty := found["a/empty/"]
	require.True(t, empty.IsDir())
	require.Len(t, found, len(want)+1)
	require.EqualValues(t, len(want), lastFiles)
	require.Equal(t, size, lastBytes)

	for path, f := range scanAll(t, root, ScanOptions{}) {
		require.Zero(t, f.Sum, path)
	}
}

func TestScanIrregularFiles(t *testing.T) {
	root := newTree(t)
	if err := os.Symlink("1", filepath.Join(root.Path(), "link")); err != nil {
		t.Skip("links cannot be made here:", err)
	}
	secret, err := root.Lstat("a0")
	require.NoError(t, err)
	found := scanAll(t, root, ScanOptions{Hash: true, Forbidden: secret.SameFile})
	for path, f := range found {
		irregular := path == "link" || path == "a0" && secret.Ino != 0
		require.Equal(t, irregular, f.Irregular, path)
		require.Equal(t, irregular || f.IsDir(), f.Sum == filehash.Sum{}, path)
	}
}

func TestScanEndsWithTheFirstError(t *testing.T) {
	root := newTree(t)
	failure := errors.New("failure")
	calls := 0
	err := Scan(t.Context(), root, ScanOptions{Hash: true}, func(*File) error { calls++; return failure })
	require.ErrorIs(t, err, failure)
	require.Equal(t, 1, calls)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = Scan(ctx, root, ScanOptions{Hash: true}, func(*File) error { return nil })
	require.ErrorIs(t, err, context.Canceled)
}

// copyInto copies newTree to the directory "copy" of a new directory, which it
// returns, and replaces every kept sum with a wrong one. So a scan shows which
// of them it used.
func copyInto(t *testing.T, keepSums bool) (root *fsat.Dir, copied *Copied, wrong filehash.Sum) {
	t.Helper()
	src := newTree(t)
	root = openDir(t, t.TempDir())
	require.NoError(t, root.Mkdir("copy", 0o700))
	require.NoError(t, root.Mkdir("before", 0o700)) // is no directory of the copy
	require.NoError(t, os.WriteFile(filepath.Join(root.Path(), "before", "1"), nil, 0o600))
	dst := openDir(t, filepath.Join(root.Path(), "copy"))
	copied, err := Copy(t.Context(), src, dst, CopyOptions{KeepSums: keepSums})
	require.NoError(t, err)
	require.EqualValues(t, len(treeFiles), copied.Files)
	require.EqualValues(t, len(treeFiles)*len("content of ")+len(strings.Join(treeFiles, "")), copied.Bytes)
	copy(wrong[:], "wrong")
	for _, dir := range copied.dirs {
		for i := range dir.sums {
			dir.sums[i].sum = wrong
		}
	}
	return root, copied, wrong
}

// countKept returns how many sums Copy kept, and skips the test if there are
// none: the file system clones, so that no content was in memory, or files have
// no inode numbers. Elsewhere the first files may lack one, because cloning is
// tried with them.
func countKept(t *testing.T, copied *Copied) (n int) {
	t.Helper()
	for _, dir := range copied.dirs {
		for _, kept := range dir.sums {
			if kept.print != 0 {
				n++
			}
		}
	}
	if n == 0 {
		t.Skip("no sums are kept here")
	}
	return n
}

// Scan uses every sum that Copy kept, however often the copy is scanned, but
// not for a file that was touched since.
func TestScanOfCopied(t *testing.T) {
	root, copied, wrong := copyInto(t, true)
	n := countKept(t, copied)
	o := ScanOptions{Hash: true, Copied: copied, CopiedAt: "copy/"}
	var kept []string
	for path, f := range scanAll(t, root, o) {
		if f.Sum == wrong {
			kept = append(kept, path)
		}
	}
	slices.Sort(kept)
	require.Len(t, kept, n)

	touched := kept[n/2]
	require.NoError(t, os.WriteFile(filepath.Join(root.Path(), touched), []byte("CONTENT"), 0o644))
	for path, f := range scanAll(t, root, o) {
		content := "content of " + strings.TrimPrefix(path, "copy/")
		switch {
		case path == touched:
			require.Equal(t, sha256.Sum256([]byte("CONTENT")), f.Sum, path)
		case slices.Contains(kept, path):
			require.Equal(t, wrong, f.Sum, path)
		case path == "before/1":
			require.Equal(t, sha256.Sum256(nil), f.Sum, path)
		case !f.IsDir():
			require.Equal(t, sha256.Sum256([]byte(content)), f.Sum, path)
		}
	}

	used := 0
	dst := openDir(t, filepath.Join(root.Path(), "copy"))
	for _, f := range scanAll(t, dst, ScanOptions{Hash: true, Copied: copied}) {
		if f.Sum == wrong {
			used++
		}
	}
	require.Equal(t, n-1, used, "with an empty CopiedAt the root is the copy")
}

// Changes that put the walk of the copy out of step with the records cost
// hashes and yield no wrong one.
func TestScanOfCopiedOutOfStep(t *testing.T) {
	for name, change := range map[string]func(dst string) error{
		"new directory":     func(dst string) error { return os.MkdirAll(filepath.Join(dst, "0", "new"), 0o755) },
		"lost directory":    func(dst string) error { return os.RemoveAll(filepath.Join(dst, "a")) },
		"new file":          func(dst string) error { return os.WriteFile(filepath.Join(dst, "0"), nil, 0o644) },
		"renamed directory": func(dst string) error { return os.Rename(filepath.Join(dst, "a"), filepath.Join(dst, "z")) },
	} {
		t.Run(name, func(t *testing.T) {
			root, copied, wrong := copyInto(t, true)
			countKept(t, copied)
			dst := filepath.Join(root.Path(), "copy")
			require.NoError(t, change(dst))
			rewritten := []byte("CONTENT")
			for path, f := range scanAll(t, root, ScanOptions{}) {
				if !f.IsDir() {
					require.NoError(t, os.WriteFile(filepath.Join(root.Path(), path), rewritten, 0o644))
				}
			}
			for path, f := range scanAll(t, root, ScanOptions{Hash: true, Copied: copied, CopiedAt: "copy/"}) {
				require.NotEqual(t, wrong, f.Sum, path)
				require.True(t, f.IsDir() || f.Sum == sha256.Sum256(rewritten), path)
			}
		})
	}
}

func TestScanWithoutKeptSums(t *testing.T) {
	root, copied, _ := copyInto(t, false)
	for path, f := range scanAll(t, root, ScanOptions{Hash: true, Copied: copied, CopiedAt: "copy/"}) {
		if rel, ok := strings.CutPrefix(path, "copy/"); ok && !f.IsDir() {
			require.Equal(t, sha256.Sum256([]byte("content of "+rel)), f.Sum, path)
		}
	}
}

// Scan takes the hash of the Follower's file from it, or from the file if the
// Follower has none.
func TestScanWithFollower(t *testing.T) {
	for _, complete := range []bool{true, false} {
		root := newTree(t)
		follower, err := filehash.Follow(t.Context(), root, "1", func(head []byte) error { head[0] = 'P'; return nil })
		require.NoError(t, err)
		info, err := root.Lstat("1")
		require.NoError(t, err)
		if info.Ino == 0 {
			t.Skip("files cannot be told apart here")
		}
		follower.Advance(info.Size)
		if complete {
			follower.Done()
		} else {
			follower.Stop()
		}
		follower.Seal(info)
		var hashed, size int64
		found := scanAll(t, root, ScanOptions{Hash: true, Writeback: true, Follower: follower,
			Progress: func(_ string, _, bytes int64) { hashed = bytes }})
		want := "content of 1"
		if complete {
			want = "Pontent of 1"
		}
		require.Equal(t, sha256.Sum256([]byte(want)), found["1"].Sum)
		for f := range maps.Values(found) {
			size += f.Info.Size
		}
		require.Equal(t, size, hashed)
	}
}

func TestCopyForbidden(t *testing.T) {
	src := newTree(t)
	secret, err := src.Lstat("a0")
	require.NoError(t, err)
	if secret.Ino == 0 {
		t.Skip("files cannot be told apart here")
	}
	_, err = Copy(t.Context(), src, openDir(t, t.TempDir()), CopyOptions{Forbidden: secret.SameFile})
	require.ErrorIs(t, err, errdefs.ErrUnsupportedFile)
	require.ErrorContains(t, err, "a0")
}

func TestSize(t *testing.T) {
	root := newTree(t)
	bytes, files, err := Size(t.Context(), root, nil)
	require.NoError(t, err)
	require.EqualValues(t, len(treeFiles)+len([]string{"a", "a/b", "a/empty", "s", "s-"}), files)
	var want int64
	for _, f := range scanAll(t, root, ScanOptions{}) {
		want += f.Info.Allocated
	}
	require.Equal(t, want, bytes)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = Size(ctx, root, nil)
	require.ErrorIs(t, err, context.Canceled)
}
