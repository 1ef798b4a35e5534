package restorer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
	"github.com/atocore/backup/internal/sqlitedb"
)

// A part is one part of the live store, which is swapped with the new one. The
// new part waits in a staging directory on the same file system:
//
//	<dir>/<staging>/new         the new part
//	<dir>/<staging>/old         the old part, moved away
//	<dir>/<staging>/SHA256SUMS  what is in new/
//
// Each step of a swap is announced in the journal and made durable before the
// next one. A step can be repeated after an interruption.
type part interface {
	// stage creates the staging directory, copies the snapshot's part to new/
	// and makes all of it durable.
	stage(ctx context.Context, r *Replacement) error
	// swap puts the new part in the place of the old one.
	swap(j *Journal) error
	// verify compares the part that is in place with the snapshot.
	verify(ctx context.Context, r *Replacement) error
	// inspect compares the part that is in new/ with the snapshot.
	inspect(ctx context.Context, r *Replacement) error
	// isPlaced reports whether what is in place is what inspect saw.
	isPlaced() (bool, error)
	// isSaved reports whether all that is in old/ is in the safety snapshot.
	isSaved(ctx context.Context, saved *SafetySnapshot) (bool, error)
	// called returns the name of the part, and where its path.
	called() string
	where() string
	// check returns an error if a directory or a mount is missing without which
	// the part can be neither undone nor finished. It touches nothing.
	check(j *Journal) error
	// matches reports whether what is in place is exactly what was staged.
	matches(ctx context.Context) (bool, error)
	// isThere reports whether there is anything in the part's place, if
	// anything was staged.
	isThere() (bool, error)
	// undo brings the old part back, from any state of a swap. What is in place
	// and is not what was staged is set aside whole.
	undo(ctx context.Context, j *Journal) error
	// clean empties the staging directory and removes it. If keep is set, the
	// old part is set aside first.
	clean(j *Journal, keep bool) error
	// kept returns the path of what was set aside, or an empty path.
	kept() (string, error)
	// close closes the files that are kept open.
	close()
}

const (
	newDirName = "new"
	oldDirName = "old"
)

// ErrStagingMissing is returned if a staging directory is missing that must be
// there: the volume on which it lies is not mounted, most likely.
var ErrStagingMissing = errors.New("the staging directory of the restore is missing; is its volume mounted?")

// A place is where a part is swapped.
type place struct {
	part     string // format.ChromaDir, ConfigDir or DBDir
	dir      string // the directory in which it is swapped
	parent   string // where what is set aside goes, if a rename leads there
	staging  string // the name of the staging directory in dir
	setAside string // the name of a directory with what is set aside
	had      bool   // whether the part existed before

	// isOwn is set in the call that writes the journal, and created when that
	// call creates the staging directory. If it did not come so far, because it
	// may not, there is nothing to remove.
	isOwn, created bool
}

// swapDirs are the directories that a swap works with.
type swapDirs struct{ live, staging, new, old *fsat.Dir }

func (d *swapDirs) close() {
	for _, dir := range []*fsat.Dir{d.live, d.staging, d.new, d.old} {
		dir.Close()
	}
}

// open opens the directories of a swap, all of which must exist.
func (p *place) open() (_ *swapDirs, err error) {
	d := new(swapDirs)
	defer func() {
		if err != nil {
			d.close()
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w (%w)", ErrStagingMissing, err)
			}
		}
	}()
	if d.live, err = fsat.OpenDir(p.dir); err != nil {
		return nil, err
	}
	if d.staging, err = d.live.OpenDir(p.staging); err != nil {
		return nil, err
	}
	if d.new, err = d.staging.OpenDir(newDirName); err != nil {
		return nil, err
	}
	if d.old, err = d.staging.OpenDir(oldDirName); err != nil {
		return nil, err
	}
	return d, nil
}

// create creates the staging directory with new/ and old/ in it, and opens all.
func (p *place) create() (_ *swapDirs, err error) {
	if err := filetree.MkdirAll(p.dir); err != nil {
		return nil, err
	}
	d := new(swapDirs)
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.live, err = fsat.OpenDir(p.dir); err != nil {
		return nil, err
	}
	make := func(parent *fsat.Dir, name string) (*fsat.Dir, error) {
		if err := parent.Mkdir(name, 0o700); err != nil {
			return nil, err
		}
		return parent.OpenDir(name)
	}
	p.created = true
	if d.staging, err = make(d.live, p.staging); err != nil {
		return nil, err
	}
	if d.new, err = make(d.staging, newDirName); err != nil {
		return nil, err
	}
	d.old, err = make(d.staging, oldDirName)
	return d, err
}

func (p *place) called() string { return p.part }

func (p *place) check(j *Journal) error {
	if !j.swapping || j.reached("cleaned", p.part) {
		return nil
	}
	live, err := fsat.OpenDir(p.dir)
	if err == nil {
		defer live.Close()
		_, err = live.Lstat(p.staging)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (%w)", ErrStagingMissing, err)
	}
	return err
}

// seal writes the sums of what was staged and makes the staging directory and
// its name durable.
func (p *place) seal(ctx context.Context, d *swapDirs, entries []format.Entry) error {
	f, err := d.staging.Create(format.ManifestName, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := format.NewWriter(f, 0)
	for _, entry := range entries {
		if err := lines.Add(format.Line(entry.Sum, entry.Path)); err != nil {
			return err
		}
	}
	if err := lines.Flush(); err != nil {
		return err
	}
	err = filetree.Scan(ctx, d.staging, filetree.ScanOptions{Sync: true}, func(*filetree.File) error { return nil })
	if err != nil {
		return err
	}
	return d.live.Sync()
}

// sums reads what was staged.
func (p *place) sums(staging *fsat.Dir) (map[string][sha256.Size]byte, error) {
	f, err := staging.Open(format.ManifestName)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sums := make(map[string][sha256.Size]byte)
	if info, err := f.Stat(); err != nil || info.Size == 0 {
		return sums, err
	}
	for lines := format.NewReader(f); ; {
		entry, err := lines.Next()
		if errors.Is(err, io.EOF) {
			return sums, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path(), err)
		}
		sums[entry.Path] = entry.Sum
	}
}

// aside opens the directory for what is set aside, and creates it if it is
// missing. It lies in the parent directory or, if no rename leads there or
// nothing can be created there, in the live directory.
func (p *place) aside(live *fsat.Dir) (*fsat.Dir, error) {
	for _, path := range p.asidePlaces() {
		dir, err := fsat.OpenDir(path)
		if err != nil {
			continue
		}
		defer dir.Close()
		if kept, err := dir.OpenIfExists(p.setAside); err != nil || kept != nil {
			return kept, err
		}
	}
	parent, err := fsat.OpenDir(p.parent)
	if err == nil {
		defer parent.Close()
		same, err := fsat.SameMount(live, parent)
		if err != nil {
			return nil, err
		}
		if same {
			if dir, err := p.createAside(parent); !fsat.IsReadOnly(err) {
				return dir, err
			}
		}
	}
	return p.createAside(live)
}

func (p *place) createAside(parent *fsat.Dir) (*fsat.Dir, error) {
	if err := parent.Mkdir(p.setAside, 0o700); err != nil {
		return nil, err
	}
	if err := parent.Sync(); err != nil {
		return nil, err
	}
	return parent.OpenDir(p.setAside)
}

// asidePlaces returns the directories in which something can be set aside.
func (p *place) asidePlaces() []string { return []string{p.parent, p.dir} }

func (p *place) kept() (string, error) {
	for _, path := range p.asidePlaces() {
		dir, err := fsat.OpenDir(path)
		if fsat.IsMissing(err) || fsat.IsReadOnly(err) { // nothing was set aside there
			continue
		}
		if err != nil {
			return "", err
		}
		there, err := dir.Has(p.setAside)
		dir.Close()
		if err != nil || there {
			return filepath.Join(path, p.setAside), err
		}
	}
	return "", nil
}

// moveFree moves the entry name from src to dst, under the first of name,
// name.1, name.2 … that is free there.
func moveFree(src *fsat.Dir, name string, dst *fsat.Dir) error {
	err := src.Move(name, dst)
	for n := 1; errors.Is(err, fs.ErrExist); n++ {
		err = src.Rename(name, dst, fmt.Sprintf("%s.%d", name, n))
	}
	return err
}

// settleAside makes durable what a call that was killed has set aside.
func (p *place) settleAside(live *fsat.Dir) error {
	kept, err := p.kept()
	if err != nil || kept == "" {
		return err
	}
	dir, err := fsat.OpenDir(kept)
	if err != nil {
		return err
	}
	defer dir.Close()
	parent, err := fsat.OpenDir(filepath.Dir(kept))
	if err != nil {
		return err
	}
	defer parent.Close()
	return fsat.SyncAll(dir, parent, live)
}

// keepOld moves everything in old/ to the directory for what is set aside.
func (p *place) keepOld(d *swapDirs) error {
	if err := p.settleAside(d.live); err != nil {
		return err
	}
	entries, err := d.old.ReadDir()
	if err != nil || len(entries) == 0 {
		return err
	}
	dst, err := p.aside(d.live)
	if err != nil {
		return err
	}
	defer dst.Close()
	return d.old.MoveAll(dst)
}

// clean implements part for the kinds of parts: it says in the journal that the
// staging directory is empty before that is removed, because until then a
// missing directory means a volume that is not mounted.
func (p *place) clean(j *Journal, keep bool) error {
	if p.isOwn && !p.created {
		return nil
	}
	live, err := fsat.OpenDir(p.dir)
	if err != nil {
		switch {
		case !fsat.IsMissing(err):
			return err
		case j.reached("cleaned", p.part), !j.swapping:
			return nil
		}
		return fmt.Errorf("%w (%w)", ErrStagingMissing, err)
	}
	defer live.Close()
	if !j.reached("cleaned", p.part) {
		if err := p.empty(j, live, keep); err != nil {
			return err
		}
	}
	err = removeTree(live, p.staging)
	if errors.Is(err, fsat.ErrStillOpen) {
		// A name by which it is known that nothing in it is of any use.
		j.warn("removed_files_still_open", filepath.Join(p.dir, p.staging), err)
		err = live.Rename(p.staging, live, p.staging+removedSuffix)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return live.Sync()
}

// removeDir removes the directory name of the staging directory, new/ or old/.
// First it closes the descriptors that this process keeps of databases in it.
func (p *place) removeDir(staging *fsat.Dir, name string) error {
	dir, err := staging.OpenDir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	entries, err := dir.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.Type.IsRegular() {
			continue
		}
		info, err := dir.Lstat(entry.Name)
		if err != nil {
			return err
		}
		sqlitedb.CloseKept(info)
	}
	return removeTree(staging, name)
}

// removeTree removes the directory name in dir. A FUSE server learns some moments
// later that this process has closed a file, so removed files that are still open
// are tried again.
func removeTree(dir *fsat.Dir, name string) error {
	const times = 8 // some 130 ms
	return poll.Again(context.Background(), times, time.Millisecond, 50*time.Millisecond, fsat.ErrStillOpen, func() error {
		return dir.RemoveTree(context.Background(), name)
	})
}

func (p *place) empty(j *Journal, live *fsat.Dir, keep bool) error {
	there, err := live.Has(p.staging)
	switch {
	case err != nil:
		return err
	case !there && !j.swapping: // nothing was staged here yet
		return nil
	case !there:
		return fmt.Errorf("%w (%s)", ErrStagingMissing, filepath.Join(p.dir, p.staging))
	}
	staging, err := live.OpenDir(p.staging)
	if err != nil {
		return err
	}
	defer staging.Close()
	if keep {
		old, err := staging.OpenIfExists(oldDirName)
		if err != nil {
			return err
		}
		if old != nil {
			err := p.keepOld(&swapDirs{live: live, old: old})
			old.Close()
			if err != nil {
				return err
			}
		}
	}
	entries, err := staging.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Type.IsDir() {
			err = p.removeDir(staging, entry.Name)
		} else {
			err = staging.Remove(entry.Name, false)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fsat.ErrStillOpen) {
			return err
		}
	}
	if err := staging.Sync(); err != nil {
		return err
	}
	if !j.swapping { // no line: a repetition finds the directory, or nothing
		return nil
	}
	return j.write("cleaned " + p.part)
}
