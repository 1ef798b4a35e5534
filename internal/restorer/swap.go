package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/atocore/backup/internal/fsat"
)

// A swapper is a part of the live store that changes places with the new one,
// which waits in a staging directory on the same file system:
//
//	<dir>/<staging>/new      what is going into place
//	<dir>/<staging>/old      what was there before
//
// Each step is one rename, durable before the next that relies on it, and where
// everything is tells how far a swap came. So undo needs nothing but the
// directories, and can itself be cut off and done again.
type swapper interface {
	// stage makes the staging directory and opens new/ in it.
	stage() (*fsat.Dir, error)
	// sync makes all that was staged durable.
	sync(ctx context.Context) error
	// swap puts new in the place of old.
	swap() error
	// undo brings old back, from any state.
	undo() error
	// clean removes the staging directory, or gives old the name setAside
	// first. It returns where that is; empty if there was no old.
	clean(setAside string) (string, error)
}

const (
	newDirName = "new"
	oldDirName = "old"
	// partDirName is old/ while it is being filled.
	partDirName = "old.part"
)

// A fileSwap swaps one file and what SQLite keeps beside it.
type fileSwap struct {
	dir, name string
	sidecars  []string // suffixes
	staging   string
	had       bool // there was such a file before
}

// A treeSwap swaps all entries of a directory, so that one which is a mount
// point, or which a link leads to, stays what it is.
type treeSwap struct {
	dir     string
	staging string
	had     bool // there was such a directory before
}

// swapDirs are the directories that a swap works with.
type swapDirs struct{ live, staging, new, old *fsat.Dir }

func (d *swapDirs) close() {
	for _, dir := range []*fsat.Dir{d.live, d.staging, d.new, d.old} {
		dir.Close()
	}
}

// openSwap opens what there is of a swap's directories.
func openSwap(live, staging, old string) (_ *swapDirs, err error) {
	d := new(swapDirs)
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.live, err = fsat.OpenDir(live); err != nil {
		return nil, err
	}
	if d.staging, err = openIfThere(d.live, staging); err != nil || d.staging == nil {
		return d, err
	}
	if d.new, err = openIfThere(d.staging, newDirName); err != nil {
		return nil, err
	}
	d.old, err = openIfThere(d.staging, old)
	return d, err
}

func openIfThere(parent *fsat.Dir, name string) (*fsat.Dir, error) {
	dir, err := parent.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return dir, err
}

// makeStaging makes the staging directory in live with its two directories,
// and returns new/.
func makeStaging(live, staging, old string) (*fsat.Dir, error) {
	dir, err := fsat.OpenDir(live)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := dir.Mkdir(staging, 0o700); err != nil {
		return nil, err
	}
	root, err := dir.OpenDir(staging)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, name := range []string{newDirName, old} {
		if err := root.Mkdir(name, 0o700); err != nil {
			return nil, err
		}
	}
	return root.OpenDir(newDirName)
}

// syncStaging makes a staging directory and its name durable.
func syncStaging(ctx context.Context, live, staging string) error {
	dir, err := fsat.OpenDir(live)
	if err != nil {
		return err
	}
	defer dir.Close()
	root, err := dir.OpenDir(staging)
	if err != nil {
		return err
	}
	defer root.Close()
	files := scan{root: root, sync: true}
	if err := files.run(ctx, func(*scannedFile) error { return nil }); err != nil {
		return err
	}
	return dir.Sync()
}

func syncAll(dirs ...*fsat.Dir) error {
	for _, dir := range dirs {
		if dir != nil {
			if err := dir.Sync(); err != nil {
				return err
			}
		}
	}
	return nil
}

// move renames one entry and replaces nothing. Moving a directory writes to
// it, to its "..", so a read-only one is made writable for that.
func move(src *fsat.Dir, name string, dst *fsat.Dir) error {
	err := src.Rename(name, dst, name)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	dir, derr := src.OpenDir(name)
	if derr != nil {
		return err
	}
	defer dir.Close()
	info, derr := dir.Stat()
	if derr != nil || info.Mode&0o200 != 0 {
		return err
	}
	if derr := dir.Chmod(info.Mode | 0o200); derr != nil {
		return err
	}
	err = src.Rename(name, dst, name)
	return errors.Join(err, dir.Chmod(info.Mode))
}

// moveAll moves every entry of src but the one called except.
func moveAll(src, dst *fsat.Dir, except string) error {
	entries, err := src.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name == except {
			continue
		}
		if err := move(src, entry.Name, dst); err != nil {
			return err
		}
	}
	return syncAll(dst, src)
}

func exists(dir *fsat.Dir, name string) (bool, error) {
	_, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (s *fileSwap) stage() (*fsat.Dir, error) { return makeStaging(s.dir, s.staging, oldDirName) }

func (s *fileSwap) sync(ctx context.Context) error { return syncStaging(ctx, s.dir, s.staging) }

// swap moves what SQLite keeps beside the old file away before the new file
// comes: an old WAL beside a new database would be applied to it. The name
// itself is never without a file, so that nobody who comes meanwhile makes an
// empty database.
func (s *fileSwap) swap() error {
	d, err := openSwap(s.dir, s.staging, oldDirName)
	if err != nil {
		return err
	}
	defer d.close()
	for _, suffix := range s.sidecars {
		if err := move(d.live, s.name+suffix, d.old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := syncAll(d.old, d.live); err != nil {
		return err
	}
	if !s.had {
		if err := d.new.Rename(s.name, d.live, s.name); err != nil {
			return err
		}
		return syncAll(d.live, d.new)
	}
	if err := d.live.Link(s.name, d.old, s.name); err != nil {
		// A file system without hard links: the name is free for a moment.
		if err := move(d.live, s.name, d.old); err != nil {
			return err
		}
	}
	if err := d.old.Sync(); err != nil {
		return err
	}
	if err := d.new.Replace(s.name, d.live, s.name); err != nil {
		return err
	}
	return syncAll(d.live, d.new)
}

func (s *fileSwap) undo() error {
	d, err := openSwap(s.dir, s.staging, oldDirName)
	if err != nil {
		return err
	}
	defer d.close()
	if d.staging == nil || d.new == nil || d.old == nil {
		return nil
	}
	if s.had {
		// If it is not in old/, it never left, or is back already. If it still
		// has both names, nothing happens (rename(2)).
		if there, err := exists(d.old, s.name); err != nil {
			return err
		} else if there {
			if err := d.old.Replace(s.name, d.live, s.name); err != nil {
				return err
			}
		}
	} else if waiting, err := exists(d.new, s.name); err != nil {
		return err
	} else if !waiting {
		if err := move(d.live, s.name, d.new); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, suffix := range s.sidecars {
		err := move(d.old, s.name+suffix, d.live)
		if errors.Is(err, fs.ErrExist) {
			// Made by somebody who opened the old database meanwhile. Ours were
			// emptied into the database before, unless that was broken.
			info, lerr := d.old.Lstat(s.name + suffix)
			if lerr == nil && (suffix == "-shm" || info.Size == 0) {
				continue
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncAll(d.live, d.old, d.new)
}

func (s *fileSwap) clean(setAside string) (string, error) {
	return cleanStaging(s.dir, s.staging, s.dir, setAside)
}

// cleanStaging removes the staging directory in live. If setAside is not empty
// and there is anything in old/, that becomes the directory setAside in parent
// first.
func cleanStaging(live, staging, parent, setAside string) (kept string, err error) {
	d, err := openSwap(live, staging, oldDirName)
	if err != nil {
		return "", err
	}
	defer d.close()
	if d.staging == nil {
		return "", nil
	}
	if setAside != "" && d.old != nil {
		entries, err := d.old.ReadDir()
		if err != nil {
			return "", err
		}
		if len(entries) > 0 {
			dst, err := fsat.OpenDir(parent)
			if err != nil {
				return "", err
			}
			defer dst.Close()
			if same, err := fsat.SameMount(d.live, dst); err != nil {
				return "", err
			} else if !same { // a mount point: there is no other place
				dst.Close()
				if dst, err = d.live.Reopen(); err != nil {
					return "", err
				}
				defer dst.Close()
			}
			err = d.staging.Rename(oldDirName, dst, setAside)
			if isReadOnly(err) { // in the parent; here staging could be made
				dst.Close()
				if dst, err = d.live.Reopen(); err != nil {
					return "", err
				}
				defer dst.Close()
				err = d.staging.Rename(oldDirName, dst, setAside)
			}
			if err != nil {
				return "", err
			}
			if err := syncAll(dst, d.staging); err != nil {
				return "", err
			}
			kept = filepath.Join(dst.Path(), setAside)
		}
	}
	// Without old/ there is nothing to be undone. So it goes first: a new file
	// that is not in new/ any more would be looked for in the live place, if
	// this were cut off in an undo.
	if err := removeTree(context.Background(), d.staging, oldDirName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept, err
	}
	if err := removeTree(context.Background(), d.live, staging); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept, err
	}
	return kept, d.live.Sync()
}

func (s *treeSwap) stage() (*fsat.Dir, error) {
	if err := makeDir(s.dir); err != nil {
		return nil, err
	}
	return makeStaging(s.dir, s.staging, partDirName)
}

func (s *treeSwap) sync(ctx context.Context) error { return syncStaging(ctx, s.dir, s.staging) }

// swap moves all old entries to old.part/, calls that old/, and then moves the
// new ones in: which of the two names there is tells which half was cut off.
func (s *treeSwap) swap() error {
	d, err := openSwap(s.dir, s.staging, partDirName)
	if err != nil {
		return err
	}
	defer d.close()
	if err := moveAll(d.live, d.old, s.staging); err != nil {
		return err
	}
	if err := d.staging.Rename(partDirName, d.staging, oldDirName); err != nil {
		return err
	}
	if err := d.staging.Sync(); err != nil {
		return err
	}
	return moveAll(d.new, d.live, "")
}

func (s *treeSwap) undo() error {
	d, err := openSwap(s.dir, s.staging, oldDirName)
	if errors.Is(err, fs.ErrNotExist) && !s.had {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.close()
	if d.staging == nil {
		return nil
	}
	if d.old != nil { // the second half
		if err := moveAll(d.live, d.new, s.staging); err != nil {
			return err
		}
		if err := d.staging.Rename(oldDirName, d.staging, partDirName); err != nil {
			return err
		}
		if err := d.staging.Sync(); err != nil {
			return err
		}
		d.old.Close()
		d.old = nil
	}
	part, err := openIfThere(d.staging, partDirName)
	if err != nil || part == nil {
		return err
	}
	defer part.Close()
	return moveAll(part, d.live, "")
}

func (s *treeSwap) clean(setAside string) (string, error) {
	kept, err := cleanStaging(s.dir, s.staging, filepath.Dir(s.dir), setAside)
	if errors.Is(err, fs.ErrNotExist) && !s.had {
		return kept, nil
	}
	return kept, err
}

// removeEmpty removes the directory of a tree that was not there before and
// did not come to be. What somebody else has put there since stays: a link, a
// mount point, files.
func (s *treeSwap) removeEmpty() error {
	if s.had {
		return nil
	}
	parent, err := fsat.OpenDir(filepath.Dir(s.dir))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	defer parent.Close()
	err = parent.Remove(filepath.Base(s.dir), true)
	for _, stays := range []error{nil, fs.ErrNotExist, fs.ErrExist, syscall.ENOTEMPTY, syscall.ENOTDIR, syscall.EBUSY} {
		if errors.Is(err, stays) {
			return parent.Sync()
		}
	}
	return fmt.Errorf("remove the new Chroma directory: %w", err)
}
