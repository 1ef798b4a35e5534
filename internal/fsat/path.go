package fsat

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ID identifies a file. Two Infos with the same nonzero ID describe the same
// inode.
type ID struct{ Dev, Ino uint64 }

// ID returns the file's device and inode number.
func (i Info) ID() ID { return ID{i.Dev, i.Ino} }

// maxLinks is how many links with a missing target RealPath follows, as many as
// Linux follows in one path (path_resolution(7)).
const maxLinks = 40

// RealPath resolves the symbolic links in path, those included whose targets
// are missing: it returns where a file would be created through them. If there
// are too many links, or if they lead to each other in a circle, it returns
// path.
func RealPath(path string) string {
	const separator = string(filepath.Separator)
	dir, rest := path, "" // together they are what is still to be resolved
	for links := 0; ; {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			// Nothing is cleaned here: after a link, ".." is not the parent of its
			// name but of its target.
			parent, name := filepath.Split(strings.TrimRight(dir, separator))
			if name == "" {
				return path
			}
			dir, rest = cmp.Or(parent, "."), name+separator+rest
			continue
		}
		if rest == "" {
			return real
		}
		name, others, _ := strings.Cut(rest, separator)
		target, err := os.Readlink(filepath.Join(real, name))
		if err != nil {
			return filepath.Join(real, rest)
		}
		if links++; links > maxLinks {
			return path
		}
		if !filepath.IsAbs(target) {
			target = real + separator + target
		}
		dir, rest = target, others
	}
}

// Within reports whether path is dir or lies below it. Both are absolute.
func Within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// IsBelow reports whether the slash-separated relative path is dir or lies
// below it.
func IsBelow(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// Nearest opens path or its nearest ancestor that exists.
func Nearest(path string) (*Dir, error) {
	for {
		dir, err := OpenDir(path)
		parent := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || parent == path {
			return dir, err
		}
		path = parent
	}
}

// IsSymlink reports whether path itself is a symbolic link.
func IsSymlink(path string) (bool, error) {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0, err
}

// Exists reports whether there is a file of any kind at path, which it follows
// if it is a link. It returns false if that cannot be determined.
func Exists(path string) bool {
	_, err := Stat(path)
	return err == nil
}

// HasEntries reports whether there is anything in the directory at path, but for
// entries whose names skip returns true for, if it is not nil. A directory that
// cannot be read counts as having entries, one that does not exist as having none.
func HasEntries(path string, skip func(name string) bool) bool {
	dir, err := OpenDir(path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer dir.Close()
	entries, err := dir.ReadDir()
	return err != nil || slices.ContainsFunc(entries, func(entry Entry) bool { return skip == nil || !skip(entry.Name) })
}

// Cause returns an error's text without the operation and the path of an
// *fs.PathError.
func Cause(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return err.Error()
}
