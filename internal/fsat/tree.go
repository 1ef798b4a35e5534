package fsat

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// MkdirAll creates the directory path and its missing parents with mode 0700,
// and makes each of them durable.
func MkdirAll(path string) error {
	return MkdirAllWith(path, func(*Dir, string) error { return nil })
}

// MkdirAllWith is MkdirAll that calls made for each directory that it has
// created, with its parent and its name, before that is made durable.
func MkdirAllWith(path string, made func(parent *Dir, name string) error) error {
	info, err := Stat(path)
	if err == nil {
		if !info.Mode.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("a file of this name exists")}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if parent := filepath.Dir(path); parent != path {
		if err := MkdirAllWith(parent, made); err != nil {
			return err
		}
	}
	mkdirErr := os.Mkdir(path, 0o700)
	if mkdirErr != nil {
		if again, statErr := Stat(path); statErr != nil || !again.Mode.IsDir() {
			return mkdirErr
		}
	}
	parent, err := OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer parent.Close()
	if mkdirErr == nil {
		if err := made(parent, filepath.Base(path)); err != nil {
			return err
		}
	}
	return parent.Sync()
}

// errMountPoint means that an entry cannot be removed because something is
// mounted on it.
var errMountPoint = errors.New("it is a mount point")

// ErrStillOpen is returned by RemoveTree if nothing is left but files that were
// removed while somebody had them open: a FUSE server or NFS client keeps such a
// file under another name until it is closed, and its directory with it.
var ErrStillOpen = errors.New("a file that was removed is still open")

// IsHiddenName reports whether name is one that libfuse (hide_node in lib/fuse.c)
// or the Linux NFS client (nfs_sillyrename in fs/nfs/unlink.c) gives to a file that
// was removed while it was open.
func IsHiddenName(name string) bool {
	return strings.HasPrefix(name, ".fuse_hidden") || strings.HasPrefix(name, ".nfs")
}

// RemoveTree removes the directory name and everything below it. It follows no
// link and refuses to enter a mount point. What cannot be removed stays, and the
// rest is removed nevertheless; the error is that of the first. If ctx ends,
// part of the tree is left. The error matches ErrStillOpen if that alone keeps
// the tree from being gone.
func (d *Dir) RemoveTree(ctx context.Context, name string) error {
	r := removal{begun: true}
	return r.tree(ctx, d, name)
}

// RemoveTreeUnlessRefused works like RemoveTree, except that it ends if the
// first entry that it tries to remove cannot be removed. It calls begin after it
// has removed the first.
func (d *Dir) RemoveTreeUnlessRefused(ctx context.Context, name string, begin func()) error {
	r := removal{begin: begin}
	return r.tree(ctx, d, name)
}

// A removal is the removal of one tree.
type removal struct {
	begun bool // something was removed, or is taken to have been
	begin func()
}

// remove removes one entry of d.
func (r *removal) remove(d *Dir, name string, dir bool) error {
	err := d.Remove(name, dir)
	if err == nil && !r.begun {
		r.begun = true
		r.begin()
	}
	return err
}

// tree removes the directory name in d.
func (r *removal) tree(ctx context.Context, d *Dir, name string) error {
	dir, err := d.OpenDir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	same, err := SameMount(d, dir)
	if err != nil {
		return err
	}
	if !same {
		return &fs.PathError{Op: "remove", Path: dir.Path(), Err: errMountPoint}
	}
	info, err := dir.Stat()
	if err != nil {
		return err
	}
	if info.Mode.Perm()&0o700 != 0o700 { // a copied directory may be read-only
		if err := dir.Chmod(info.Mode | 0o700); err != nil {
			return err
		}
	}
	entries, err := dir.ReadDir()
	if err != nil {
		return err
	}
	var first, open error
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if entry.Type.IsDir() {
			err = r.tree(ctx, dir, entry.Name)
		} else {
			err = r.remove(dir, entry.Name, false)
		}
		switch {
		case err == nil || errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, ErrStillOpen), errors.Is(err, syscall.EBUSY) && IsHiddenName(entry.Name):
			open = err
			continue
		case !r.begun || ctx.Err() != nil:
			return err
		}
		if first == nil {
			first = err
		}
	}
	if first != nil {
		return first
	}
	err = r.remove(d, name, true)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
		left, readErr := dir.ReadDir()
		other := func(entry Entry) bool { return !IsHiddenName(entry.Name) && (open == nil || !entry.Type.IsDir()) }
		if readErr == nil && len(left) > 0 && !slices.ContainsFunc(left, other) {
			return fmt.Errorf("%w: %s/%s", ErrStillOpen, dir.Path(), left[0].Name)
		}
	}
	return err
}

// Move renames the entry name from d to dst and replaces nothing. Moving a
// directory writes to it, namely to its "..", so a read-only directory is made
// writable for the time of the move.
func (d *Dir) Move(name string, dst *Dir) error {
	err := d.Rename(name, dst, name)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	dir, openErr := d.OpenDir(name)
	if openErr != nil {
		return err
	}
	defer dir.Close()
	info, statErr := dir.Stat()
	if statErr != nil || info.Mode&0o200 != 0 {
		return err
	}
	if chmodErr := dir.Chmod(info.Mode | 0o200); chmodErr != nil {
		return err
	}
	err = d.Rename(name, dst, name)
	return errors.Join(err, dir.Chmod(info.Mode))
}

// MoveAll moves every entry of d to dst, and then syncs both.
func (d *Dir) MoveAll(dst *Dir) error {
	entries, err := d.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := d.Move(entry.Name, dst); err != nil {
			return err
		}
	}
	return SyncAll(dst, d)
}

// MoveApart moves the directory name from d to dst by moving what is in it, file
// by file, and makes that durable. It is for a directory that rename(2) does not
// move: one that comes from a lower layer of an overlay (EXDEV;
// Documentation/filesystems/overlayfs.rst, "Renaming directories"). It can be
// repeated after an interruption, and be undone by moving the other way: what is
// in dst already stays there, and nothing is replaced. A file that is in both is
// passed to conflict, with the directory in dst, which has to move that one away;
// if conflict is nil, the error matches fs.ErrExist. So it does if name is there
// and is no directory.
func (d *Dir) MoveApart(name string, dst *Dir, conflict func(dir *Dir, name string) error) error {
	src, err := d.OpenDir(name)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	to, made, err := dst.makeLike(name, src, info)
	if err != nil {
		return err
	}
	defer to.Close()
	if info.Mode&0o300 != 0o300 { // to take something out of a directory is to write to it
		if err := src.Chmod(info.Mode | 0o700); err != nil {
			return err
		}
	}
	entries, err := src.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		err := src.Move(entry.Name, to)
		switch {
		case err == nil:
			continue
		case entry.Type.IsDir() && (errors.Is(err, syscall.EXDEV) || errors.Is(err, fs.ErrExist)):
			err = src.MoveApart(entry.Name, to, conflict)
		}
		if errors.Is(err, fs.ErrExist) && conflict != nil {
			if err = conflict(to, entry.Name); err == nil {
				err = src.Move(entry.Name, to)
			}
		}
		if err != nil {
			return err
		}
	}
	if made {
		var unkept Unkept
		if err := errors.Join(unkept.Modes(to.Chmod(info.Mode)), unkept.Times(to.Chtimes(".", info.Mtime))); err != nil {
			return err
		}
	}
	// The entries must be in dst before they are gone from d.
	if err := SyncAll(to, dst, src); err != nil {
		return err
	}
	return d.Remove(name, true)
}

// makeLike creates the directory name with the owner, the mode and the attributes
// of src, which info describes, and opens it, or opens the one that is there.
func (d *Dir) makeLike(name string, src *Dir, info Info) (_ *Dir, made bool, err error) {
	err = d.Mkdir(name, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, false, err
	}
	made = err == nil
	dir, openErr := d.OpenDir(name)
	if openErr != nil {
		if made {
			err = openErr
		}
		return nil, false, err // fs.ErrExist if something else is there
	}
	if made {
		err = d.likeOwner(name, info)
		if err == nil {
			d.likeAttributes(name, src)
			err = new(Unkept).Modes(dir.Chmod(info.Mode | 0o700))
		}
		if err != nil {
			dir.Close()
			return nil, false, err
		}
	}
	return dir, made, nil
}

// likeOwner gives the entry name the owner that info has, as far as this user may
// do that.
func (d *Dir) likeOwner(name string, info Info) error {
	own, err := d.Lstat(name)
	if err != nil || own.UID == info.UID && own.GID == info.GID {
		return err
	}
	if err := d.Chown(name, info.UID, info.GID); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// likeAttributes gives the entry name the extended attributes and ACLs of src, as
// far as the file system and this user can do that.
func (d *Dir) likeAttributes(name string, src *Dir) {
	attrs, err := src.Attributes(".")
	if err != nil {
		return
	}
	for attr, value := range attrs {
		_ = d.SetAttribute(name, attr, value)
	}
	for _, attr := range []string{AccessACL, DefaultACL} { // d may have passed one on
		if _, has := attrs[attr]; !has {
			_ = d.RemoveAttribute(name, attr)
		}
	}
}

// SyncAll syncs the directories in order and skips nil ones. It ends with the
// first error.
func SyncAll(dirs ...*Dir) error {
	for _, dir := range dirs {
		if dir != nil {
			if err := dir.Sync(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Has reports whether d has an entry called name, of whatever type.
func (d *Dir) Has(name string) (bool, error) {
	_, err := d.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// OpenIfExists opens the directory name in d, or returns nil if there is none.
func (d *Dir) OpenIfExists(name string) (*Dir, error) {
	dir, err := d.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return dir, err
}
