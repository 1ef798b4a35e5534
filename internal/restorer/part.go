package restorer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/fsat"
)

// A part is one part of the live store, which is swapped with the new one. The
// new part waits in a staging directory on the same file system:
//
//	<dir>/<staging>/new      the new part
//	<dir>/<staging>/old      the old part, moved away
//
// Each step of a swap is one rename, made durable before the next step that
// relies on it. The directory layout alone shows how far a swap got, so undo
// needs no other state and can be restarted.
type part interface {
	// stage creates the staging directory and copies the snapshot's part to new/.
	stage(ctx context.Context, r *Replacement) error
	// sync makes everything that was staged durable.
	sync(ctx context.Context) error
	// swap puts the new part in the place of the old one.
	swap() error
	// verify compares the part that is in place with the snapshot.
	verify(ctx context.Context, r *Replacement) error
	// undo brings the old part back, from any state of a swap.
	undo() error
	// discard removes what stage has created. The old part is in place.
	discard() error
	// finish removes the staging directory with the old part in it, or sets the
	// old part aside first. Then it returns where that is, or an empty path if
	// there was no old part.
	finish(setAside bool) (kept string, err error)
	// close closes what stage has left open.
	close()
}

const (
	newDirName = "new"
	oldDirName = "old"
	// incompleteDirName is the name of old/ while it is being filled.
	incompleteDirName = "old.incomplete"
)

// A place is where a part is swapped.
type place struct {
	dir      string // the directory in which it is swapped
	staging  string // the name of the staging directory in dir
	setAside string // the name of old/ if it is kept
	had      bool   // whether the part existed before
}

// swapDirs are the directories that a swap works with. Those that do not exist
// are nil.
type swapDirs struct{ live, staging, new, old *fsat.Dir }

func (d *swapDirs) close() {
	for _, dir := range []*fsat.Dir{d.live, d.staging, d.new, d.old} {
		dir.Close()
	}
}

// open opens the directories of a swap that exist. old is the name of the one
// for the old part.
func (p *place) open(old string) (_ *swapDirs, err error) {
	d := new(swapDirs)
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.live, err = fsat.OpenDir(p.dir); err != nil {
		return nil, err
	}
	if d.staging, err = d.live.OpenIfExists(p.staging); err != nil || d.staging == nil {
		return d, err
	}
	if d.new, err = d.staging.OpenIfExists(newDirName); err != nil {
		return nil, err
	}
	d.old, err = d.staging.OpenIfExists(old)
	return d, err
}

// create creates the staging directory with new/ and the directory old in it,
// and returns new/.
func (p *place) create(old string) (*fsat.Dir, error) {
	dir, err := fsat.OpenDir(p.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := dir.Mkdir(p.staging, 0o700); err != nil {
		return nil, err
	}
	root, err := dir.OpenDir(p.staging)
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

// sync makes the staging directory and its name durable.
func (p *place) sync(ctx context.Context) error {
	dir, err := fsat.OpenDir(p.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	root, err := dir.OpenDir(p.staging)
	if err != nil {
		return err
	}
	defer root.Close()
	err = filetree.Scan(ctx, root, filetree.ScanOptions{Sync: true}, func(*filetree.File) error { return nil })
	if err != nil {
		return err
	}
	return dir.Sync()
}

// clean removes the staging directory. If keepIn is not empty and there is
// anything in old/, old/ is moved to that directory first; then clean returns
// its new path.
func (p *place) clean(keepIn string) (kept string, err error) {
	d, err := p.open(oldDirName)
	if err != nil {
		return "", err
	}
	defer d.close()
	if d.staging == nil {
		return "", nil
	}
	if keepIn != "" && d.old != nil {
		if kept, err = p.keepOld(d, keepIn); err != nil {
			return "", err
		}
	}
	// Without old/ there is nothing to undo, so it is removed first. Otherwise,
	// if this is an undo and is interrupted, the next undo would not find the
	// new file in new/ and would look for it in the live place.
	if err := d.staging.RemoveTree(context.Background(), oldDirName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept, err
	}
	if err := d.live.RemoveTree(context.Background(), p.staging); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kept, err
	}
	return kept, d.live.Sync()
}

// keepOld moves old/, unless it is empty, to the directory parent, or to the
// live directory if no rename leads to parent. It returns the new path.
func (p *place) keepOld(d *swapDirs, parent string) (string, error) {
	entries, err := d.old.ReadDir()
	if err != nil || len(entries) == 0 {
		return "", err
	}
	dst, err := fsat.OpenDir(parent)
	if err != nil {
		return "", err
	}
	defer func() { dst.Close() }()
	if same, err := fsat.SameMount(d.live, dst); err != nil {
		return "", err
	} else if !same { // the live directory is a mount point
		dst.Close()
		if dst, err = d.live.Reopen(); err != nil {
			return "", err
		}
	}
	err = d.staging.Rename(oldDirName, dst, p.setAside)
	if fsat.IsReadOnly(err) {
		// parent is. The live directory is not: the staging directory could be
		// created in it.
		dst.Close()
		if dst, err = d.live.Reopen(); err != nil {
			return "", err
		}
		err = d.staging.Rename(oldDirName, dst, p.setAside)
	}
	if err != nil {
		return "", err
	}
	if err := fsat.SyncAll(dst, d.staging); err != nil {
		return "", err
	}
	return filepath.Join(dst.Path(), p.setAside), nil
}

func differs(path string) error { return fmt.Errorf("%w: %s", errDiffers, path) }
