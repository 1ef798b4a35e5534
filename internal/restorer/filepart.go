package restorer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
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
	// inPlace is set for a file that is a mount point of its own, over which
	// nothing can be renamed (rename(2), EBUSY). Its content is replaced.
	inPlace bool

	seen   seen         // the new file, as it was compared in new/
	staged *fsat.File   // the new database, open
	opened []*fsat.File // live files that are kept open
	judged fsat.ID      // the live file that isStaged compared
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

func (p *filePart) path() string { return filepath.Join(p.dir, p.name) }

func (p *filePart) stage(ctx context.Context, r *Replacement) error {
	d, err := p.create()
	if err != nil {
		return err
	}
	defer d.close()
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
	f, err := d.new.Create(p.name, 0o600)
	if err != nil {
		return err
	}
	defer func() { // when OnStage panics too
		if p.staged == nil {
			f.Close()
		}
	}()
	err = copyFile(ctx, f, src, info, func(n int64) {
		r.Bytes += n
		r.OnStage(src.Path(), r.Files, r.Bytes)
	})
	if err != nil {
		return err
	}
	r.Files++
	if err := p.dress(d, f, info, r); err != nil {
		return err
	}
	if p.isDatabase {
		// The new database will be read through this descriptor, because
		// closing another one would drop the lock on it.
		p.staged = f
	}
	if err := r.unkept.Times(d.new.Chtimes(p.name, info.Mtime)); err != nil {
		return err
	}
	sum, ok := r.sumOf(p.from)
	if !ok {
		return differs(p.from)
	}
	return p.seal(ctx, d, []format.Entry{{Sum: sum, Path: p.name}})
}

// copyFile fills the empty file dst with what src holds.
func copyFile(ctx context.Context, dst, src *fsat.File, info fsat.Info, done func(int64)) error {
	var copier fsat.Copier
	n, err := copier.Copy(ctx, dst, src, info, done)
	if err == nil && n != info.Size {
		err = fmt.Errorf("%w: %s became shorter", errdefs.ErrSourceChanged, src.Path())
	}
	return err
}

// dress gives the new file the owner, the attributes and the ACL of the file that
// it replaces, or those that the directory has for new files. A database gets the
// mode of the file that it replaces, too; a registry gets the snapshot's.
func (p *filePart) dress(d *swapDirs, f *fsat.File, info fsat.Info, r *Replacement) error {
	mode := info.Mode.Perm()
	old, oldErr := d.live.Lstat(p.name)
	if p.isDatabase && oldErr == nil {
		mode = old.Mode.Perm()
	}
	if err := r.unkept.Modes(f.Chmod(mode)); err != nil {
		return err
	}
	if p.inPlace && oldErr == nil { // the file stays what it is
		r.dresser(p.part).Saw(old)
		return nil
	}
	return r.dresser(p.part).File(d.new, p.name, d.live, p.name, mode)
}

// swap moves the files beside the old file away before the new file comes: an
// old WAL beside a new database would be applied to it.
func (p *filePart) swap(j *Journal) error {
	d, err := p.open()
	if err != nil {
		return err
	}
	defer d.close()
	if err := j.write("begin " + p.part); err != nil {
		return err
	}
	if err := p.recordOwner(d); err != nil {
		return err
	}
	for _, sidecar := range p.sidecars() {
		if err := d.live.Move(sidecar, d.old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := fsat.SyncAll(d.old, d.live); err != nil {
		return err
	}
	if err := p.replace(j, d); err != nil {
		return err
	}
	return j.write("end " + p.part)
}

// ownerName is the file in the staging directory that recordOwner writes.
const ownerName = "owner"

// recordOwner records what the old database looks like, if there is a file with
// content beside it. That is so only if SQLite could not read the database;
// otherwise the content was moved into it. If somebody writes to the database
// while that file is in old/, the two don't belong together any more.
func (p *filePart) recordOwner(d *swapDirs) error {
	for _, sidecar := range p.sidecars() {
		info, err := d.live.Lstat(sidecar)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !p.hasContent(sidecar, info) {
			continue
		}
		if err != nil {
			return err
		}
		owner, err := p.owner(d)
		if err != nil {
			return err
		}
		f, err := d.staging.Create(ownerName, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write([]byte(owner)); err != nil {
			return err
		}
		return errors.Join(f.Sync(), d.staging.Sync())
	}
	return nil
}

// hasContent reports whether a file beside a database has content of it. The
// -shm is only an index of the WAL (sqlite.org/walformat.html).
func (p *filePart) hasContent(sidecar string, info fsat.Info) bool {
	return info.Size > 0 && sidecar != p.name+"-shm"
}

// owner describes the live database as far as writing to it changes that.
func (p *filePart) owner(d *swapDirs) (string, error) {
	info, err := d.live.Lstat(p.name)
	if errors.Is(err, fs.ErrNotExist) {
		return "none", nil
	}
	return fmt.Sprintf("inode %d, %d bytes, written at %d.%09d", info.Ino, info.Size, info.Mtime.Sec, info.Mtime.Nsec), err
}

// isOwner reports whether the live database is still what recordOwner found. If
// an overwritten file was filled again, that cannot be seen and is assumed.
func (p *filePart) isOwner(d *swapDirs, replaced bool) (bool, error) {
	recorded, err := d.staging.ReadSmall(ownerName, 200, nil, nil)
	if errors.Is(err, fs.ErrNotExist) || err == nil && p.inPlace && replaced {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	owner, err := p.owner(d)
	return owner == string(recorded), err
}

// replace puts the new file in the place of the old one, which is saved in
// old/. The name always refers to a file, so that nobody who opens the database
// meanwhile creates an empty one.
func (p *filePart) replace(j *Journal, d *swapDirs) error {
	switch {
	case p.inPlace:
		return p.overwrite(j, d)
	case !p.had:
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
	if err := j.write("out " + p.part); err != nil {
		return err
	}
	if err := d.new.Replace(p.name, d.live, p.name); err != nil {
		return err
	}
	return fsat.SyncAll(d.live, d.new)
}

// overwrite copies the old file to old/ and the new content into the old file.
func (p *filePart) overwrite(j *Journal, d *swapDirs) error {
	ctx := context.Background() // it is not cancelled half-way
	live, err := p.openLive(d.live.OpenRW)
	if err != nil {
		return err
	}
	if err := copyTo(ctx, d.old, p.name, live); err != nil {
		return err
	}
	if err := p.dressCopy(d.old, p.name, d.live); err != nil {
		return err
	}
	if err := j.write("out " + p.part); err != nil {
		return err
	}
	return p.fill(ctx, live, d.new)
}

// openLive opens the live file and keeps it open until the end: closing it
// would drop this process's locks on the database (fcntl(2), "Advisory record
// locking").
func (p *filePart) openLive(open func(name string) (*fsat.File, error)) (*fsat.File, error) {
	live, err := open(p.name)
	if err == nil {
		p.opened = append(p.opened, live)
	}
	return live, err
}

// copyTo copies src to the new file name in dir, durably.
func copyTo(ctx context.Context, dir *fsat.Dir, name string, src *fsat.File) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dir.Remove(name, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // of an earlier attempt
	}
	f, err := dir.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := copyFile(ctx, f, src, info, nil); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return dir.Sync()
}

// dressCopy gives a copy of the live file, which may be set aside in the end, the
// mode, the owner and the attributes of that file, durably.
func (p *filePart) dressCopy(dir *fsat.Dir, name string, live *fsat.Dir) error {
	info, err := live.Lstat(p.name)
	if err != nil {
		return err
	}
	if err := new(filetree.Dresser).File(dir, name, live, p.name, info.Mode.Perm()); err != nil {
		return err
	}
	return dir.Sync()
}

// fill replaces the content of the live file by that of the file in dir,
// durably. The file in dir stays.
func (p *filePart) fill(ctx context.Context, live *fsat.File, dir *fsat.Dir) error {
	src, err := dir.Open(p.name)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if err := live.Truncate(0); err != nil {
		return err
	}
	if err := copyFile(ctx, live, src, info, nil); err != nil {
		return err
	}
	return live.Sync()
}

func (p *filePart) verify(ctx context.Context, r *Replacement) error {
	f := p.staged
	if f == nil || p.inPlace {
		dir, err := fsat.OpenDir(p.dir)
		if err != nil {
			return err
		}
		defer dir.Close()
		if f, err = p.openLive(dir.Open); err != nil {
			return err
		}
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

// check also asks for the mount of a file that is a mount point: what it hides is
// not the store.
func (p *filePart) check(j *Journal) error {
	if err := p.place.check(j); err != nil {
		return err
	}
	if !p.inPlace || !j.reached("begin", p.part) || j.done || j.reached("undone", p.part) {
		return nil
	}
	live, err := fsat.OpenDir(p.dir)
	if err != nil {
		return err
	}
	defer live.Close()
	mounted, err := live.IsMountPoint(p.name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !mounted {
		return fmt.Errorf("%s was a mount point when the restore began; is it mounted?", p.path())
	}
	return nil
}

func (p *filePart) matches(ctx context.Context) (bool, error) {
	d, err := p.open()
	if err != nil {
		return false, err
	}
	defer d.close()
	return p.isStaged(ctx, d)
}

func (p *filePart) isThere() (bool, error) { return fsat.Exists(p.path()), nil }

// isStaged reports whether the live file is what was staged, and nothing beside
// it holds what somebody wrote since.
func (p *filePart) isStaged(ctx context.Context, d *swapDirs) (bool, error) {
	for _, sidecar := range p.sidecars() {
		info, err := d.live.Lstat(sidecar)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return false, err
		case p.hasContent(sidecar, info):
			return false, nil
		}
	}
	info, err := d.live.Lstat(p.name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode.IsRegular() {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	live, err := p.openLive(d.live.Open)
	if err != nil {
		return false, err
	}
	if info, err = live.Stat(); err != nil {
		return false, err
	}
	p.judged = info.ID()
	sums, err := p.sums(d.staging)
	if err != nil {
		return false, err
	}
	sum, err := filehash.ReadAt(ctx, live, info.Size)
	if err != nil {
		return false, err
	}
	want, ok := sums[p.name]
	return ok && sum == want, nil
}

func (p *filePart) undo(ctx context.Context, j *Journal) error {
	if !j.reached("begin", p.part) || j.reached("undone", p.part) {
		return nil
	}
	d, err := p.open()
	if err != nil {
		return err
	}
	defer d.close()
	if err := p.settleAside(d.live); err != nil {
		return err
	}
	replaced, err := p.isReplaced(ctx, j, d)
	if err != nil {
		return err
	}
	if replaced {
		if err := p.clear(ctx, j, d); err != nil {
			return err
		}
	}
	if err := p.putBack(j, d, replaced); err != nil {
		return err
	}
	return j.write("undone " + p.part)
}

// isReplaced reports whether the live name may lead to another file than the
// old one or, if that is overwritten, to another content.
func (p *filePart) isReplaced(ctx context.Context, j *Journal, d *swapDirs) (bool, error) {
	switch {
	case p.inPlace && !j.reached("out", p.part):
		return false, nil
	case p.inPlace:
		live, err := p.openLive(d.live.Open)
		if err != nil {
			return false, err
		}
		same, err := sameContent(ctx, live, d.old, p.name)
		return !same, err
	case !p.had:
		waiting, err := d.new.Lstat(p.name)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		// A move that was cut off between its two steps has left both names (see
		// fsat.Dir.Rename).
		live, err := d.live.Lstat(p.name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil && live.SameFile(waiting), err
	}
	old, err := d.old.Lstat(p.name)
	if errors.Is(err, fs.ErrNotExist) { // not saved yet, or back already
		return false, nil
	}
	if err != nil {
		return false, err
	}
	live, err := d.live.Lstat(p.name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return err != nil || !live.SameFile(old), nil
}

// clear makes room for the old file. What is live and is not what was staged is
// set aside together with the files beside it: a WAL must never meet another
// database.
func (p *filePart) clear(ctx context.Context, j *Journal, d *swapDirs) error {
	// The comparison is repeated after an interruption: somebody may have
	// written meanwhile. If an overwritten file was cleared before, what it holds
	// is not what was staged.
	toAside := j.reached("aside", p.part) || j.reached("cleared", p.part)
	if !toAside {
		staged, err := p.isStaged(ctx, d)
		if err != nil {
			return err
		}
		if !staged {
			if err := j.write("aside " + p.part); err != nil {
				return err
			}
			toAside = true
		}
	}
	dst := d.new
	if toAside {
		var err error
		if dst, err = p.aside(d.live); err != nil {
			return err
		}
		defer dst.Close()
		if err := p.save(ctx, d, dst); err != nil {
			return err
		}
	}
	for _, sidecar := range p.sidecars() {
		err := moveFree(d.live, sidecar, dst)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := fsat.SyncAll(dst, d.live); err != nil || !p.inPlace || j.reached("cleared", p.part) {
		return err
	}
	return j.write("cleared " + p.part)
}

// save makes the live file, if there is one, a file of dst as well. What is there
// by an earlier attempt stays.
func (p *filePart) save(ctx context.Context, d *swapDirs, dst *fsat.Dir) error {
	live := d.live
	now, err := live.Lstat(p.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if p.inPlace {
		return p.saveContent(ctx, d, dst)
	}
	p.judged = now.ID()
	for to, n := p.name, 1; ; to, n = fmt.Sprintf("%s.%d", p.name, n), n+1 {
		saved, err := dst.Lstat(to)
		switch {
		case err == nil && saved.SameFile(now): // by an earlier attempt
			return nil
		case err == nil:
			continue
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if err := live.Link(p.name, dst, to); err != nil {
			return live.Rename(p.name, dst, to)
		}
		return nil
	}
}

// saveContent copies the live file to dst, unless an earlier attempt has.
func (p *filePart) saveContent(ctx context.Context, d *swapDirs, dst *fsat.Dir) error {
	live, err := p.openLive(d.live.Open)
	if err != nil {
		return err
	}
	const saved = "saved"
	if err := copyTo(ctx, d.staging, saved, live); err != nil {
		return err
	}
	if err := p.dressCopy(d.staging, saved, d.live); err != nil {
		return err
	}
	for to, n := p.name, 1; ; to, n = fmt.Sprintf("%s.%d", p.name, n), n+1 {
		err := d.staging.Rename(saved, dst, to)
		if err == nil {
			return fsat.SyncAll(dst, d.staging)
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		if same, err := sameContent(ctx, live, dst, to); err != nil || same {
			return err
		}
	}
}

// sameContent reports whether the file name in dir has the content of f.
func sameContent(ctx context.Context, f *fsat.File, dir *fsat.Dir, name string) (bool, error) {
	other, err := dir.Open(name)
	if err != nil {
		return false, err
	}
	defer other.Close()
	return sameFiles(ctx, f, other)
}

// sameFiles reports whether two files have the same content.
func sameFiles(ctx context.Context, f, other *fsat.File) (bool, error) {
	var sums [2]filehash.Sum
	for i, f := range []*fsat.File{f, other} {
		info, err := f.Stat()
		if err != nil {
			return false, err
		}
		if sums[i], err = filehash.ReadAt(ctx, f, info.Size); err != nil {
			return false, err
		}
	}
	return sums[0] == sums[1], nil
}

// putBack brings the old file back, and then the files beside it.
func (p *filePart) putBack(j *Journal, d *swapDirs, replaced bool) error {
	if replaced {
		if err := p.bringBack(d, j.reached("aside", p.part)); err != nil {
			return err
		}
	}
	// A call that was killed may have brought it back and not synced.
	if err := d.live.Sync(); err != nil {
		return err
	}
	owner, err := p.isOwner(d, replaced)
	if err != nil {
		return err
	}
	for _, sidecar := range p.sidecars() {
		var err error
		if owner {
			err = d.old.Move(sidecar, d.live)
		}
		if !owner || errors.Is(err, fs.ErrExist) {
			err = p.keepSidecar(j, d, sidecar, owner)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if p.had && !p.inPlace && !replaced {
		// The old file may have a second name here. If somebody deleted the live one
		// later, this would be the last, and would not be missed when it is removed.
		if err := d.old.Remove(p.name, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fsat.SyncAll(d.live, d.old, d.new)
}

func (p *filePart) bringBack(d *swapDirs, saved bool) error {
	if p.inPlace {
		live, err := p.openLive(d.live.OpenRW)
		if err != nil {
			return err
		}
		return p.fill(context.Background(), live, d.old)
	}
	there, err := d.live.Lstat(p.name)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case err == nil && there.ID() != p.judged:
		return fmt.Errorf("%s was replaced while it was compared", p.path())
	case p.had:
		return d.old.Replace(p.name, d.live, p.name)
	case err != nil:
		return nil
	case saved: // it has a name elsewhere
		return d.live.Remove(p.name, false)
	}
	return d.live.Move(p.name, d.new)
}

// keepSidecar deals with a file beside the old database that cannot be put back:
// somebody has written to the database meanwhile, and owner is false, or has
// opened it and created another such file. The content of ours was moved into
// the database before the swap, unless the database was broken; then the file is
// set aside.
func (p *filePart) keepSidecar(j *Journal, d *swapDirs, sidecar string, owner bool) error {
	info, err := d.old.Lstat(sidecar)
	if err != nil || !p.hasContent(sidecar, info) {
		return err
	}
	if owner {
		if live, err := d.live.Lstat(sidecar); err != nil {
			return err
		} else if live.Size == 0 { // locking the database has created it
			if err := moveFree(d.live, sidecar, d.new); err != nil {
				return err
			}
			return d.old.Move(sidecar, d.live)
		}
	}
	dst, err := p.aside(d.live)
	if err != nil {
		return err
	}
	defer dst.Close()
	j.warn("old_file_set_aside", filepath.Join(p.dir, sidecar), nil)
	if err := moveFree(d.old, sidecar, dst); err != nil {
		return err
	}
	return dst.Sync()
}

// close closes what is kept open. Closing a descriptor drops all locks of this
// process on the file.
func (p *filePart) close() {
	p.staged.Close()
	for _, f := range p.opened {
		f.Close()
	}
	p.staged, p.opened = nil, nil
}
