package restorer

import (
	"context"
	"fmt"
	"path"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

// Replacing a store that is in use until right before the swap, and again right
// after it. Whatever takes as long as the store is large is done before or after:
// the copies are compared while they wait in staging, and the old parts with the
// safety snapshot when the new store is in use already.

// Inspect compares the staged parts with Contents, and remembers which files they
// are, for VerifyPlaced. It reads everything that was staged. It is called after
// Stage, instead of Verify after Swap.
func (r *Replacement) Inspect(ctx context.Context) error {
	for _, part := range r.journal.parts {
		if err := part.inspect(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// CheckUnchanged returns errdefs.ErrSourceChanged if the database or the registry
// has appeared or disappeared since Begin, which the journal has recorded.
func (r *Replacement) CheckUnchanged() error {
	for _, part := range r.journal.parts {
		p, ok := part.(*filePart)
		if !ok {
			continue
		}
		there, mounted, err := examine(p.path())
		if err != nil {
			return err
		}
		if there != p.had || mounted != p.inPlace {
			return fmt.Errorf("%w: %s was created, removed or mounted while the restore was prepared", errdefs.ErrSourceChanged, p.path())
		}
	}
	return nil
}

// VerifyPlaced is Verify after Inspect, and takes no longer if the parts are
// large: a file that was compared in staging and was renamed since is the same if
// its inode, size and time are. A part of which that is not so is compared as by
// Verify: one that was overwritten in place, or on a file system whose inode
// numbers a rename changes, or that has none.
func (r *Replacement) VerifyPlaced(ctx context.Context) error {
	for _, part := range r.journal.parts {
		placed, err := part.isPlaced()
		if err != nil {
			return err
		}
		if placed {
			continue
		}
		if err := part.verify(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// HandOver leaves the new parts to their users, after Commit: it gives the Chroma
// directory its mode, and closes every file of the new store that is still open.
// Finish does not touch the new parts any more then.
func (r *Replacement) HandOver() {
	j := r.journal
	j.dress(r.Snapshot)
	j.handedOver = true
	r.closeParts()
}

// closeParts closes the files of the live store that are open, and unlocks the
// new database. The files that stage left open go first. Closing a descriptor
// drops all locks of this process on the file (fcntl(2), "Advisory record
// locking"), and until the new database is unlocked nobody else can hold any.
func (r *Replacement) closeParts() {
	for _, part := range r.journal.parts {
		part.close()
	}
	if r.staged != nil {
		r.staged.Close()
		r.staged = nil
	}
}

// Users are those who use a store while it is restored.
type Users struct {
	// Broken is the reason why the store must not be used any more.
	Broken error

	resume func(ctx context.Context) error
}

// Leave calls offline, which takes the store from its users and returns how it is
// given back; that may be nil.
func (u *Users) Leave(ctx context.Context, offline func(context.Context) (func(context.Context) error, error)) error {
	resume, err := offline(ctx)
	if err != nil {
		return fmt.Errorf("take the store offline: %w", err)
	}
	u.resume = resume
	return nil
}

// Return gives the store back if Leave has taken it, once. If the store is Broken,
// the context that the users get is cancelled, with that as the cause, so that
// nobody opens it; otherwise it is not cancelled. A panic becomes an error.
func (u *Users) Return(ctx context.Context) (err error) {
	resume := u.resume
	if u.resume = nil; resume == nil {
		return nil
	}
	defer errdefs.Recover(&err)
	ctx = context.WithoutCancel(ctx)
	if u.Broken != nil {
		broken, cancel := context.WithCancelCause(ctx)
		cancel(u.Broken)
		ctx = broken
	}
	if err := resume(ctx); err != nil {
		return fmt.Errorf("bring the store online: %w", err)
	}
	return nil
}

// A SafetySnapshot is the snapshot that was taken of a store before it was
// replaced.
type SafetySnapshot struct {
	Dir      *fsat.Dir
	Contents []format.Entry // the hashes of its files
	From     Places         // the places of its parts in it
}

// keeps decides whether the old part is set aside in the end.
func (j *Journal) keeps(ctx context.Context, p part, keepOld bool, saved *SafetySnapshot) bool {
	if keepOld || !j.hot {
		return keepOld
	}
	// If a call that was killed has begun to set it aside, the rest belongs there.
	if kept, err := p.kept(); err != nil || kept != "" || saved == nil {
		return true
	}
	same, err := p.isSaved(ctx, saved)
	if err != nil {
		j.warn("old_part_not_compared", p.where(), err)
	}
	return err != nil || !same
}

// openIn opens the file at the path name, with slashes, below dir.
func openIn(dir *fsat.Dir, name string) (*fsat.File, error) {
	parent, err := dir.OpenDir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return parent.Open(path.Base(name))
}

// A seen file is what Inspect remembers of it.
type seen struct {
	id    fsat.ID
	size  int64
	mtime fsat.Time
}

func see(info fsat.Info) seen { return seen{info.ID(), info.Size, info.Mtime} }

// is reports whether info describes the same file, not written to since.
func (s seen) is(info fsat.Info) bool { return s.id.Ino != 0 && s == see(info) }

func (p *filePart) inspect(ctx context.Context, r *Replacement) error {
	d, err := p.open()
	if err != nil {
		return err
	}
	defer d.close()
	f := p.staged // another descriptor, closed, would drop the lock on the new database
	if f == nil {
		if f, err = d.new.Open(p.name); err != nil {
			return err
		}
		defer f.Close()
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	want, ok := r.sumOf(p.from)
	sum, err := filehash.ReadAt(ctx, f, info.Size)
	if err != nil {
		return err
	}
	if !ok || sum != want {
		return differs(f.Path())
	}
	p.seen = see(info)
	return nil
}

func (p *filePart) isPlaced() (bool, error) {
	if p.inPlace {
		return false, nil
	}
	live, err := fsat.OpenDir(p.dir)
	if err != nil {
		return false, err
	}
	defer live.Close()
	info, err := live.Lstat(p.name)
	return err == nil && p.seen.is(info), err
}

func (p *filePart) where() string { return p.path() }

// isSaved compares the database as a whole with the snapshot's, but for the
// fields of the header that copying changes, and the registry byte by byte.
func (p *filePart) isSaved(ctx context.Context, saved *SafetySnapshot) (bool, error) {
	d, err := p.open()
	if err != nil {
		return false, err
	}
	defer d.close()
	entries, err := d.old.ReadDir()
	if err != nil {
		return false, err
	}
	there := false
	for _, entry := range entries {
		if entry.Name == p.name {
			there = true
			continue
		}
		info, err := d.old.Lstat(entry.Name)
		if err != nil || p.hasContent(entry.Name, info) {
			return false, err
		}
	}
	if !there {
		return true, nil
	}
	old, err := d.old.Open(p.name)
	if err != nil {
		return false, err
	}
	defer old.Close()
	from := saved.From.Registry
	if p.isDatabase {
		from = saved.From.Database
	}
	if from == "" {
		return false, nil
	}
	copied, err := openIn(saved.Dir, from)
	if err != nil {
		return false, err
	}
	defer copied.Close()
	if p.isDatabase {
		return sqlitedb.SameContent(ctx, old, copied)
	}
	return sameFiles(ctx, old, copied)
}

func (p *treePart) inspect(ctx context.Context, r *Replacement) error {
	d, err := p.open()
	if err != nil {
		return err
	}
	defer d.close()
	if err := p.compareWith(ctx, d.new, r, func(string) bool { return false }); err != nil {
		return err
	}
	entries, err := d.new.ReadDir()
	if err != nil {
		return err
	}
	p.seen = make(map[string]seen)
	for _, entry := range entries {
		info, err := d.new.Lstat(entry.Name)
		if err != nil {
			return err
		}
		p.seen[entry.Name] = see(info)
	}
	return nil
}

// isPlaced looks at the entries that were moved, one by one: what is in a
// directory is not touched when the directory is.
func (p *treePart) isPlaced() (bool, error) {
	live, err := fsat.OpenDir(p.dir)
	if err != nil {
		return false, err
	}
	defer live.Close()
	entries, err := live.ReadDir()
	if err != nil {
		return false, err
	}
	found := 0
	for _, entry := range entries {
		if p.isOther(entry.Name) {
			continue
		}
		info, err := live.Lstat(entry.Name)
		if err != nil || !p.seen[entry.Name].is(info) {
			return false, err
		}
		found++
	}
	return found == len(p.seen), nil
}

func (p *treePart) where() string { return p.dir }

// isSaved reports whether every file in old/ is in the snapshot.
func (p *treePart) isSaved(ctx context.Context, saved *SafetySnapshot) (bool, error) {
	d, err := p.open()
	if err != nil {
		return false, err
	}
	defer d.close()
	sums := make(map[string]filehash.Sum)
	if saved.From.Chroma != "" {
		for _, entry := range (&treePart{from: saved.From.Chroma}).expected(&Replacement{Contents: saved.Contents}) {
			sums[entry.Path] = entry.Sum
		}
	}
	same := true
	err = filetree.Scan(ctx, d.old, filetree.ScanOptions{Hash: true}, func(f *filetree.File) error {
		if f.IsDir() {
			return nil
		}
		if sum, ok := sums[f.Path]; f.Irregular || !ok || f.Sum != sum {
			same = false
			return errDiffers
		}
		return nil
	})
	return same && err == nil, ignore(err, errDiffers)
}
