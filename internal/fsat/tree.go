package fsat

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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

// RemoveTree removes the directory name and everything below it. It follows no
// link and refuses to enter a mount point. What cannot be removed stays, and the
// rest is removed nevertheless; the error is that of the first. If ctx ends,
// part of the tree is left.
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
	var first error
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if entry.Type.IsDir() {
			err = r.tree(ctx, dir, entry.Name)
		} else {
			err = r.remove(dir, entry.Name, false)
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !r.begun || ctx.Err() != nil {
			return err
		}
		if first == nil {
			first = err
		}
	}
	if first != nil {
		return first
	}
	return r.remove(d, name, true)
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

// MoveAll moves every entry of d but the one called except to dst, and then
// syncs both.
func (d *Dir) MoveAll(dst *Dir, except string) error {
	entries, err := d.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name == except {
			continue
		}
		if err := d.Move(entry.Name, dst); err != nil {
			return err
		}
	}
	return SyncAll(dst, d)
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
