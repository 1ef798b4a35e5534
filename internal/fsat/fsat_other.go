//go:build !linux && !darwin

package fsat

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// Dir is an open directory.
type Dir struct {
	root *os.Root
	path string
}

// File is an open regular file.
type File struct {
	f        *os.File
	path     string
	writable bool
}

func join(dir, name string) string { return dir + string(filepath.Separator) + name }

func withPath(err error, path string) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return &fs.PathError{Op: pe.Op, Path: path, Err: pe.Err}
	}
	return err
}

func checkName(op, dir, name string) error {
	if name == "." || !filepath.IsLocal(name) || filepath.Base(name) != name {
		return &fs.PathError{Op: op, Path: join(dir, name), Err: fs.ErrInvalid}
	}
	return nil
}

// OpenDir opens a directory by its path, following symbolic links: the caller
// trusts the path, but not the entries below it.
func OpenDir(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Dir{root: root, path: path}, nil
}

// OpenDir opens the directory name in d and refuses a link.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	if err := checkName("open", d.path, name); err != nil {
		return nil, err
	}
	full := join(d.path, name)
	before, err := d.root.Lstat(name)
	if err != nil {
		return nil, withPath(err, full)
	}
	if !before.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: full, Err: errors.New("not a directory")}
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, withPath(err, full)
	}
	after, err := root.Stat(".")
	if err != nil || !os.SameFile(before, after) {
		root.Close()
		return nil, &fs.PathError{Op: "open", Path: full, Err: errors.New("replaced while it was opened")}
	}
	return &Dir{root: root, path: full}, nil
}

// Reopen opens the same directory again.
func (d *Dir) Reopen() (*Dir, error) {
	root, err := d.root.OpenRoot(".")
	if err != nil {
		return nil, withPath(err, d.path)
	}
	return &Dir{root: root, path: d.path}, nil
}

// Path returns the path the directory was opened by; it is for messages only.
func (d *Dir) Path() string { return d.path }

// Close closes the directory. A second call does nothing.
func (d *Dir) Close() error {
	if d == nil || d.root == nil {
		return nil
	}
	root := d.root
	d.root = nil
	return root.Close()
}

func infoOf(st fs.FileInfo) Info {
	return Info{Mode: st.Mode(), Size: st.Size(), Allocated: st.Size(), Mtime: Time{st.ModTime().Unix(), int64(st.ModTime().Nanosecond())}, UID: -1, GID: -1}
}

// Stat describes the open directory itself.
func (d *Dir) Stat() (Info, error) {
	st, err := d.root.Stat(".")
	if err != nil {
		return Info{}, withPath(err, d.path)
	}
	return infoOf(st), nil
}

// Lstat describes the entry name and follows no link.
func (d *Dir) Lstat(name string) (Info, error) {
	if err := checkName("lstat", d.path, name); err != nil {
		return Info{}, err
	}
	st, err := d.root.Lstat(name)
	if err != nil {
		return Info{}, withPath(err, join(d.path, name))
	}
	return infoOf(st), nil
}

// Stat describes the file at path, following links.
func Stat(path string) (Info, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Info{}, err
	}
	return infoOf(st), nil
}

// ReadDir returns the directory's entries in path order (see sortEntries).
func (d *Dir) ReadDir() ([]Entry, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, withPath(err, d.path)
	}
	defer f.Close()
	list, err := f.ReadDir(-1)
	if err != nil {
		return nil, withPath(err, d.path)
	}
	entries := make([]Entry, 0, len(list))
	for _, e := range list {
		entries = append(entries, Entry{Name: e.Name(), Type: e.Type()})
	}
	sortEntries(entries)
	return entries, nil
}

func (d *Dir) openFile(name string, flags int, perm fs.FileMode) (*File, error) {
	if err := checkName("open", d.path, name); err != nil {
		return nil, err
	}
	full := join(d.path, name)
	if flags&os.O_CREATE == 0 {
		st, err := d.root.Lstat(name)
		if err != nil {
			return nil, withPath(err, full)
		}
		if !st.Mode().IsRegular() {
			return nil, &fs.PathError{Op: "open", Path: full, Err: errors.New("not a regular file")}
		}
	}
	f, err := d.root.OpenFile(name, flags, perm.Perm())
	if err != nil {
		return nil, withPath(err, full)
	}
	return &File{f: f, path: full, writable: flags&os.O_RDWR != 0}, nil
}

// Open opens the regular file name for reading and refuses a link.
func (d *Dir) Open(name string) (*File, error) { return d.openFile(name, os.O_RDONLY, 0) }

// Create makes the regular file name, which must not exist, and opens it for
// reading and writing.
func (d *Dir) Create(name string, perm fs.FileMode) (*File, error) {
	return d.openFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
}

// OpenRW opens the existing regular file name for reading and writing.
func (d *Dir) OpenRW(name string) (*File, error) { return d.openFile(name, os.O_RDWR, 0) }

// OpenFile opens the file at path for reading, following links.
func OpenFile(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &File{f: f, path: path}, nil
}

// Mkdir makes the directory name.
func (d *Dir) Mkdir(name string, perm fs.FileMode) error {
	if err := checkName("mkdir", d.path, name); err != nil {
		return err
	}
	return withPath(d.root.Mkdir(name, perm.Perm()), join(d.path, name))
}

// Remove unlinks the file name, or the empty directory name.
func (d *Dir) Remove(name string, dir bool) error {
	if err := checkName("remove", d.path, name); err != nil {
		return err
	}
	return withPath(d.root.Remove(name), join(d.path, name))
}

// Rename moves oldName to newName in dst and replaces nothing that it sees: the
// check that newName does not exist comes just before the move, so what somebody
// makes in between is replaced, if it is a file or, on Unix, an empty directory
// (rename(2)). Windows moves nothing that is open without FILE_SHARE_DELETE, and
// no directory in which anything is open.
func (d *Dir) Rename(oldName string, dst *Dir, newName string) error {
	if _, err := dst.Lstat(newName); err == nil {
		return &fs.PathError{Op: "rename", Path: join(dst.path, newName), Err: fs.ErrExist}
	}
	return d.Replace(oldName, dst, newName)
}

// Replace moves oldName over newName in dst, replacing a file there. Paths are
// resolved again here, as in Link: [os.Root] has no call that moves something
// from one root to another.
func (d *Dir) Replace(oldName string, dst *Dir, newName string) error {
	if err := checkName("rename", d.path, oldName); err != nil {
		return err
	}
	if err := checkName("rename", dst.path, newName); err != nil {
		return err
	}
	return os.Rename(join(d.path, oldName), join(dst.path, newName))
}

// Link makes newName in dst another name of the file oldName.
func (d *Dir) Link(oldName string, dst *Dir, newName string) error {
	if err := checkName("link", d.path, oldName); err != nil {
		return err
	}
	if err := checkName("link", dst.path, newName); err != nil {
		return err
	}
	return os.Link(join(d.path, oldName), join(dst.path, newName))
}

// Chown is not supported on this platform and does nothing: what root restores
// belongs to root.
func (d *Dir) Chown(name string, uid, gid int) error { return nil }

// Chmod sets the mode of the open directory.
func (d *Dir) Chmod(mode fs.FileMode) error { return withPath(d.root.Chmod(".", mode.Perm()), d.path) }

// Chtimes sets the access and modification time of the entry name to mtime.
func (d *Dir) Chtimes(name string, mtime Time) error {
	t := time.Unix(mtime.Sec, mtime.Nsec)
	return withPath(d.root.Chtimes(name, t, t), join(d.path, name))
}

// CanSyncFS reports whether SyncFS works here. It returns false on this platform.
func (d *Dir) CanSyncFS() bool { return false }

// SyncFS is not supported on this platform.
func (d *Dir) SyncFS() error {
	return &fs.PathError{Op: "syncfs", Path: d.path, Err: errors.ErrUnsupported}
}

// Sync does nothing. Windows has no call that makes a directory's entries
// durable; FreeBSD's fsync(2) does, but is not used.
func (d *Dir) Sync() error { return nil }

// Space is not supported on this platform.
func (d *Dir) Space() (free int64, inodes int64, clones bool, err error) {
	return 0, 0, false, &fs.PathError{Op: "statfs", Path: d.path, Err: errors.ErrUnsupported}
}

// Path returns the path the file was opened by; it is for messages only.
func (f *File) Path() string { return f.path }

// Stat describes the open file.
func (f *File) Stat() (Info, error) {
	st, err := f.f.Stat()
	if err != nil {
		return Info{}, withPath(err, f.path)
	}
	return infoOf(st), nil
}

// Close closes the file. A second call does nothing.
func (f *File) Close() error {
	if f == nil || f.f == nil {
		return nil
	}
	file := f.f
	f.f = nil
	return withPath(file.Close(), f.path)
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) { return f.f.Read(p) }

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Write implements io.Writer.
func (f *File) Write(p []byte) (int, error) { return f.f.Write(p) }

// WriteAt implements io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (int, error) { return f.f.WriteAt(p, off) }

// Truncate sets the file's size.
func (f *File) Truncate(size int64) error { return withPath(f.f.Truncate(size), f.path) }

// Chmod sets the file's mode.
func (f *File) Chmod(mode fs.FileMode) error { return withPath(f.f.Chmod(mode.Perm()), f.path) }

// Sync makes the file's data and metadata durable. Windows flushes only through
// a handle that may write (FlushFileBuffers), so there a file that was opened for
// reading is opened again.
func (f *File) Sync() error {
	if runtime.GOOS != "windows" || f.writable {
		return withPath(f.f.Sync(), f.path)
	}
	mine, err := f.f.Stat()
	if err != nil {
		return withPath(err, f.path)
	}
	again, err := os.OpenFile(f.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer again.Close()
	if there, err := again.Stat(); err != nil || !os.SameFile(mine, there) {
		return &fs.PathError{Op: "sync", Path: f.path, Err: errors.New("replaced while it was open")}
	}
	return again.Sync()
}

// StartWriteback is not supported on this platform and does nothing.
func (f *File) StartWriteback(off, n int64) {}

// WaitWriteback is not supported on this platform and does nothing.
func (f *File) WaitWriteback(off, n int64) error { return nil }

// A Copier copies file contents. It may be used by several goroutines.
type Copier struct{}

// Copy fills dst, which is new and empty, with the first size bytes of src by
// reading and writing. It returns how many bytes it could copy; fewer than
// size means that src became shorter.
func (c *Copier) Copy(ctx context.Context, dst, src *File, info Info, done func(int64)) (int64, error) {
	return copyReadWrite(ctx, dst, src, 0, info.Size, done)
}

func (c *Copier) mayClone() bool { return false }

// SameMount always returns true on this platform, where mounts cannot be
// compared. A rename between file systems fails by itself.
func SameMount(a, b *Dir) (bool, error) { return true, nil }

// IsMountPoint always returns false on this platform. What is mounted below a
// directory is copied with it.
func (d *Dir) IsMountPoint(name string) (bool, error) { return false, nil }

// CheckRemovable always returns nil on this platform.
func (d *Dir) CheckRemovable(ctx context.Context, name string) error { return nil }

// Access always returns nil on this platform.
func Access(path string, write bool) error { return nil }

// IsUnwritable always returns false on this platform.
func IsUnwritable(path string) bool { return false }

// CheckAttributes always returns nil on this platform.
func (d *Dir) CheckAttributes(ctx context.Context, name string) error { return nil }

// IsRemote always returns false on this platform.
func IsRemote(string) bool { return false }

// Identify returns which file the entry name is, which it does not open, and what
// IsMountPoint returns.
func (d *Dir) Identify(name string) (id ID, mounted bool, err error) {
	info, err := d.Lstat(name)
	return info.ID(), false, err
}
