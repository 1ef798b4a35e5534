package restorer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
)

// A treePart is the Chroma directory. Its entries are swapped and not the
// directory itself, so that a mount point, or the target of a link, stays what
// it is.
type treePart struct {
	place
	from string          // its name in the snapshot
	seen map[string]seen // what is right in new/, as it was compared there
}

func (p *treePart) stage(ctx context.Context, r *Replacement) error {
	d, err := p.create()
	if err != nil {
		return err
	}
	defer d.close()
	// A snapshot that went through an object store has lost its empty directories.
	src, err := r.Snapshot.OpenIfExists(p.from)
	if err != nil {
		return err
	}
	if src != nil {
		defer src.Close()
		copied, err := filetree.Copy(ctx, src, d.new, filetree.CopyOptions{
			Skip: IsNoPartOfChroma, Unkept: &r.unkept, Progress: r.OnStage,
		})
		if err != nil {
			return err
		}
		r.Files += copied.Files
		r.Bytes += copied.Bytes
	}
	// The copy has the mode of the snapshot's directory, which may be read-only,
	// and everything will be moved out of it.
	if err := r.unkept.Modes(d.new.Chmod(0o700)); err != nil {
		return err
	}
	live, err := d.live.Stat()
	if err != nil {
		return err
	}
	r.dresser(p.part).Saw(live)
	if err := r.dresser(p.part).Tree(ctx, d.new, d.live); err != nil {
		return err
	}
	return p.seal(ctx, d, p.expected(r))
}

// expected returns what the snapshot holds of the tree, by path below it.
func (p *treePart) expected(r *Replacement) (entries []format.Entry) {
	for _, entry := range r.Contents {
		below, ok := strings.CutPrefix(entry.Path, p.from+"/")
		top, _, _ := strings.Cut(below, "/")
		if ok && !IsNoPartOfChroma(top) {
			entries = append(entries, format.Entry{Sum: entry.Sum, Path: below})
		}
	}
	return entries
}

// swap moves all old entries to old/ and then the new entries in.
func (p *treePart) swap(j *Journal) error {
	d, err := p.open()
	if err != nil {
		return err
	}
	defer d.close()
	if err := j.write("begin " + p.part); err != nil {
		return err
	}
	if err := p.moveOld(j, d); err != nil {
		return err
	}
	if err := j.write("out " + p.part); err != nil {
		return err
	}
	if err := d.new.MoveAll(d.live); err != nil {
		return err
	}
	return j.write("end " + p.part)
}

// moveOld moves the old entries to old/.
func (p *treePart) moveOld(j *Journal, d *swapDirs) error {
	entries, err := d.live.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if p.isOther(entry.Name) {
			continue
		}
		if err := p.move(j, d.live, entry.Name, d.old, nil); err != nil {
			return err
		}
	}
	return fsat.SyncAll(d.old, d.live)
}

// isOther reports whether an entry of the live directory, by its name, is no part
// of the store.
func (p *treePart) isOther(name string) bool { return IsNoPartOfChroma(name) || name == p.setAside }

// move moves an entry. A directory that cannot be renamed is moved file by file,
// which is announced in the journal: from then on a directory that is in the live
// directory and in old/ is on its way from one to the other, and its move is
// continued. Without that line, somebody has created the other one.
func (p *treePart) move(j *Journal, src *fsat.Dir, name string, dst *fsat.Dir, conflict func(*fsat.Dir, string) error) error {
	err := src.Move(name, dst)
	started := errors.Is(err, fs.ErrExist) && j.reached("split", p.part)
	if !started && !errors.Is(err, syscall.EXDEV) {
		return err
	}
	if info, statErr := src.Lstat(name); statErr != nil || !info.Mode.IsDir() {
		return errors.Join(err, statErr)
	}
	if !j.reached("split", p.part) {
		if err := j.write("split " + p.part); err != nil {
			return err
		}
	}
	return src.MoveApart(name, dst, conflict)
}

func (p *treePart) verify(ctx context.Context, r *Replacement) error {
	root, err := fsat.OpenDir(p.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return p.compareWith(ctx, root, r, p.isOther)
}

// compareWith compares what is in root with the snapshot.
func (p *treePart) compareWith(ctx context.Context, root *fsat.Dir, r *Replacement, skip func(path string) bool) error {
	want := p.expected(r)
	err := filetree.Scan(ctx, root, filetree.ScanOptions{
		Hash:     true,
		Skip:     skip,
		Progress: r.OnVerify,
	}, func(f *filetree.File) error {
		if f.IsDir() {
			return nil
		}
		if len(want) == 0 || f.Irregular || f.Path != want[0].Path || f.Sum != want[0].Sum {
			return differs(root.Path() + "/" + f.Path)
		}
		want = want[1:]
		return nil
	})
	if err == nil && len(want) > 0 {
		err = fmt.Errorf("%w: %s is missing", errDiffers, want[0].Path)
	}
	return err
}

func (p *treePart) matches(ctx context.Context) (bool, error) {
	d, err := p.open()
	if err != nil {
		return false, err
	}
	defer d.close()
	staged, there, err := p.compare(ctx, d)
	return err == nil && staged && there, err
}

func (p *treePart) isThere() (bool, error) {
	d, err := p.open()
	if err != nil {
		return false, err
	}
	defer d.close()
	sums, err := p.sums(d.staging)
	if err != nil || len(sums) == 0 {
		return err == nil, err
	}
	entries, err := d.live.ReadDir()
	return slices.ContainsFunc(entries, func(entry fsat.Entry) bool {
		return !p.isOther(entry.Name)
	}), err
}

// compare compares what is in place with what was staged. staged reports
// whether everything in place was staged, and all whether everything that was
// staged is in place.
func (p *treePart) compare(ctx context.Context, d *swapDirs) (staged, all bool, err error) {
	sums, err := p.sums(d.staging)
	if err != nil {
		return false, false, err
	}
	staged = true
	found := 0
	err = filetree.Scan(ctx, d.live, filetree.ScanOptions{
		Hash: true,
		Skip: p.isOther,
	}, func(f *filetree.File) error {
		if f.IsDir() {
			return nil
		}
		if sum, ok := sums[f.Path]; !ok || f.Irregular || f.Sum != sum {
			staged = false
		}
		found++
		return nil
	})
	return staged, found == len(sums), err
}

func (p *treePart) undo(ctx context.Context, j *Journal) error {
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
	if j.reached("out", p.part) && !j.reached("cleared", p.part) {
		if err := p.clear(ctx, j, d); err != nil {
			return err
		}
	}
	if err := p.putBack(j, d); err != nil {
		return err
	}
	return j.write("undone " + p.part)
}

// clear empties the live directory: it moves the entries back to new/ if they
// are what was staged, and sets them aside otherwise, all of them, because a
// store that was used since is whole only together.
func (p *treePart) clear(ctx context.Context, j *Journal, d *swapDirs) error {
	if !j.reached("aside", p.part) {
		staged, _, err := p.compare(ctx, d)
		if err != nil {
			return err
		}
		if !staged {
			if err := j.write("aside " + p.part); err != nil {
				return err
			}
		}
	}
	dst := d.new
	if j.reached("aside", p.part) {
		var err error
		if dst, err = p.aside(d.live); err != nil {
			return err
		}
		defer dst.Close()
	}
	if err := p.moveOut(d.live, dst); err != nil {
		return err
	}
	return j.write("cleared " + p.part)
}

// moveOut moves all entries of the live directory but our own to dst.
func (p *treePart) moveOut(live, dst *fsat.Dir) error {
	entries, err := live.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if p.isOther(entry.Name) {
			continue
		}
		if err := moveFree(live, entry.Name, dst); err != nil {
			return err
		}
	}
	return fsat.SyncAll(dst, live)
}

// putBack moves the old entries back. An entry that somebody has created in the
// place of one is set aside.
func (p *treePart) putBack(j *Journal, d *swapDirs) error {
	entries, err := d.old.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		conflict := func(dir *fsat.Dir, name string) error { return p.setAsideOne(j, d, dir, name) }
		err := p.move(j, d.old, entry.Name, d.live, conflict)
		if errors.Is(err, fs.ErrExist) {
			if err = conflict(d.live, entry.Name); err == nil {
				err = p.move(j, d.old, entry.Name, d.live, conflict)
			}
		}
		if err != nil {
			return err
		}
	}
	return fsat.SyncAll(d.live, d.old)
}

// setAsideOne sets aside an entry of dir, which is the live directory or below it.
func (p *treePart) setAsideOne(j *Journal, d *swapDirs, dir *fsat.Dir, name string) error {
	dst, err := p.aside(d.live)
	if err != nil {
		return err
	}
	defer dst.Close()
	j.warn("live_file_set_aside", filepath.Join(dir.Path(), name), nil)
	if err := moveFree(dir, name, dst); err != nil {
		return err
	}
	return fsat.SyncAll(dst, dir)
}

// removeEmpty removes a Chroma directory that did not exist before and was not
// put in place. What somebody else has put there since stays: a link, a mount
// point, files.
func (p *treePart) removeEmpty() error {
	if p.had {
		return nil
	}
	parent, err := fsat.OpenDir(filepath.Dir(p.dir))
	if err != nil {
		if fsat.IsMissing(err) || fsat.IsReadOnly(err) {
			return nil
		}
		return err
	}
	defer parent.Close()
	err = parent.Remove(filepath.Base(p.dir), true)
	for _, stays := range []error{nil, fs.ErrNotExist, fs.ErrExist, syscall.ENOTEMPTY, syscall.ENOTDIR, syscall.EBUSY} {
		if errors.Is(err, stays) {
			return parent.Sync()
		}
	}
	return fmt.Errorf("remove the new Chroma directory: %w", err)
}

func (p *treePart) clean(j *Journal, keep bool) error {
	if err := p.place.clean(j, keep); err != nil {
		return err
	}
	if j.done {
		return nil
	}
	return p.removeEmpty()
}

func (p *treePart) close() {}
