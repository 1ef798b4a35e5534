package backuptest

import (
	"crypto/sha256"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A File describes one entry of a tree for ReadTree.
type File struct {
	Mode    fs.FileMode
	Size    int64             // of a regular file
	ModTime int64             // in nanoseconds since 1970
	Sum     [sha256.Size]byte // of a regular file's content, or of a link's target
}

// ReadTree describes root, which may be a file, and everything below it. The
// keys are paths relative to root, with slashes; that of root is ".".
func ReadTree(t *testing.T, root string) map[string]File {
	t.Helper()
	tree := map[string]File{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		file := File{Mode: info.Mode(), ModTime: info.ModTime().UnixNano()}
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			file.Size, file.Sum = int64(len(data)), sha256.Sum256(data)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			file.Sum = sha256.Sum256([]byte(target))
		}
		rel, err := filepath.Rel(root, path)
		tree[filepath.ToSlash(rel)] = file
		return err
	}))
	return tree
}

// AwkwardNames returns file names that a careless reader or writer of text
// gets wrong, as far as the file system takes them.
func AwkwardNames(t *testing.T) []string {
	t.Helper()
	names := []string{" two leading spaces", "-rf", "#1", "100%", "ünïcödé 日本", strings.Repeat("n", 255)}
	if runtime.GOOS == "windows" {
		return names
	}
	names = append(names, "new\nline", "trailing newline\n", `back\slash`, `\n`, "carriage\rreturn", "*star", "tab\t", "\x01\x7f", "quote'\"")
	probe := filepath.Join(t.TempDir(), "\xff\xfe")
	if os.WriteFile(probe, nil, 0o600) == nil { // Darwin's file systems refuse it
		names = append(names, "bytes \xff\xc3 here", "\xed\xa0\x80")
	}
	return names
}
