package restorer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

// A filePart is a file: the registry, or the database together with the files
// that SQLite keeps beside it.
type filePart struct {
	place
	name       string
	from       string // its place in the snapshot
	isDatabase bool

	staged *fsat.File // the new database, open
}

// sidecars returns the names of the files that SQLite keeps beside a database.
func (p *filePart) sidecars() (names []string) {
	if p.isDatabase {
		for _, suffix := range sqlitedb.SidecarSuffixes {
			names = append(names, p.name+suffix)
		}
	}
	return names
}

func (p *filePart) stage(ctx context.Context, r *Replacement) error {
	if err := fsat.MkdirAll(p.dir); err != nil {
		return err
	}
	dst, err := p.create(oldDirName)
	if err != nil {
		return err
	}
	defer dst.Close()
	srcDir, err := r.Snapshot.OpenDir(path.Dir(p.from))
	if err != nil {
		return err
	}
	defer srcDir.Close()
	src, err := srcDir.Open(path.Base(p.from))
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	f, err := dst.Create(p.name, 0o600)
	if err != nil {
		return err
	}
	defer func() { // when OnStage panics too
		if p.staged == nil {
			f.Close()
		}
	}()
	if err := p.copyFile(ctx, r, f, src, info); err != nil {
		return err
	}
	if err := p.setOwnerAndMode(dst, f, info); err != nil {
		return err
	}
	if p.isDatabase {
		// The new database will be read through this descriptor, because
		// closing another one would drop the lock on it.
		p.staged = f
	}
	return dst.Chtimes(p.name, info.MtimeNano)
}

func (p *filePart) copyFile(ctx context.Context, r *Replacement, dst, src *fsat.File, info fsat.Info) error {
	var copier fsat.Copier
	n, err := copier.Copy(ctx, dst, src, info, func(n int64) {
		r.Bytes += n
		r.OnStage(src.Path(), r.Files, r.Bytes)
	})
	if err != nil {
		return err
	}
	if n != info.Size {
		return fmt.Errorf("%w: %s became shorter", errdefs.ErrSourceChanged, src.Path())
	}
	r.Files++
	return nil
}

// setOwnerAndMode gives the new file the owner of the file that it replaces. A
// database gets the mode of that file, too; a registry gets the snapshot's.
func (p *filePart) setOwnerAndMode(dir *fsat.Dir, f *fsat.File, info fsat.Info) error {
	mode := info.Mode.Perm()
	old, oldErr := fsat.Stat(p.path())
	if p.isDatabase && oldErr == nil {
		mode = old.Mode.Perm()
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if oldErr != nil {
		return nil
	}
	return filetree.ChownLike(dir, p.name, old)
}

func (p *filePart) path() string { return filepath.Join(p.dir, p.name) }

// swap moves the files beside the old file away before the new file comes: an
// old WAL beside a new database would be applied to it. The name itself always
// refers to a file, so that nobody who opens the database meanwhile creates an
// empty one.
func (p *filePart) swap() error {
	d, err := p.open(oldDirName)
	if err != nil {
		return err
	}
	defer d.close()
	for _, sidecar := range p.sidecars() {
		if err := d.live.Move(sidecar, d.old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := fsat.SyncAll(d.old, d.live); err != nil {
		return err
	}
	if !p.had {
		if err := d.new.Rename(p.name, d.live, p.name); err != nil {
			return err
		}
		return fsat.SyncAll(d.live, d.new)
	}
	if err := d.live.Link(p.name, d.old, p.name); err != nil {
		// On a file system without hard links the name is free for a moment.
		if err := d.live.Move(p.name, d.old); err != nil {
			return err
		}
	}
	if err := d.old.Sync(); err != nil {
		return err
	}
	if err := d.new.Replace(p.name, d.live, p.name); err != nil {
		return err
	}
	return fsat.SyncAll(d.live, d.new)
}

func (p *filePart) verify(ctx context.Context, r *Replacement) error {
	f := p.staged
	if f == nil {
		var err error
		if f, err = fsat.OpenFile(p.path()); err != nil {
			return err
		}
		defer f.Close()
	}
	there, err := fsat.Stat(p.path())
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.ID() != there.ID() {
		return fmt.Errorf("%w: %s was replaced", errDiffers, p.path())
	}
	want, ok := r.sumOf(p.from)
	sum, err := filehash.ReadAt(ctx, f, info.Size)
	if err != nil {
		return err
	}
	if !ok || sum != want {
		return differs(p.path())
	}
	return nil
}

func (r *Replacement) sumOf(path string) (sum [sha256.Size]byte, ok bool) {
	for _, entry := range r.Contents {
		if entry.Path == path {
			return entry.Sum, true
		}
	}
	return sum, false
}

func (p *filePart) undo() error {
	d, err := p.open(oldDirName)
	if err != nil {
		return err
	}
	defer d.close()
	if d.staging == nil || d.new == nil || d.old == nil {
		return nil
	}
	if p.had {
		// If the file is not in old/, it was not moved yet, or is back already.
		// If it still has both names, rename(2) does nothing.
		if moved, err := d.old.Has(p.name); err != nil {
			return err
		} else if moved {
			if err := d.old.Replace(p.name, d.live, p.name); err != nil {
				return err
			}
		}
	} else if waiting, err := d.new.Has(p.name); err != nil {
		return err
	} else if !waiting {
		if err := d.live.Move(p.name, d.new); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, sidecar := range p.sidecars() {
		err := d.old.Move(sidecar, d.live)
		if errors.Is(err, fs.ErrExist) {
			// Somebody who opened the old database meanwhile has created it. The
			// content of ours was moved into the database before the swap,
			// unless the database was broken.
			info, lerr := d.old.Lstat(sidecar)
			if lerr == nil && (sidecar == p.name+"-shm" || info.Size == 0) {
				continue
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fsat.SyncAll(d.live, d.old, d.new)
}

func (p *filePart) discard() error {
	if _, err := p.clean(""); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (p *filePart) finish(setAside bool) (kept string, err error) {
	if !setAside {
		return p.clean("")
	}
	return p.clean(p.dir)
}

func (p *filePart) close() { p.staged.Close() }
