package restorer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
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
	from string // its name in the snapshot
}

func (p *treePart) stage(ctx context.Context, r *Replacement) error {
	if err := fsat.MkdirAll(p.dir); err != nil {
		return err
	}
	dst, err := p.create(incompleteDirName)
	if err != nil {
		return err
	}
	defer dst.Close()
	src, err := r.Snapshot.OpenDir(p.from)
	if err != nil {
		return err
	}
	defer src.Close()
	copied, err := filetree.Copy(ctx, src, dst, filetree.CopyOptions{Progress: r.OnStage})
	if err != nil {
		return err
	}
	r.Files += copied.Files
	r.Bytes += copied.Bytes
	// The copy has the mode of the snapshot's directory, which may be read-only,
	// and everything will be moved out of it.
	if err := dst.Chmod(0o700); err != nil {
		return err
	}
	live, err := fsat.Stat(p.dir)
	if err != nil {
		return err
	}
	return filetree.ChownTreeLike(ctx, dst, live)
}

// swap moves all old entries to old.incomplete/, renames that to old/, and then
// moves the new entries in. Which of the two names exists shows which half of
// the swap was interrupted.
func (p *treePart) swap() error {
	d, err := p.open(incompleteDirName)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.live.MoveAll(d.old, p.staging); err != nil {
		return err
	}
	if err := d.staging.Rename(incompleteDirName, d.staging, oldDirName); err != nil {
		return err
	}
	if err := d.staging.Sync(); err != nil {
		return err
	}
	return d.new.MoveAll(d.live, "")
}

func (p *treePart) verify(ctx context.Context, r *Replacement) error {
	root, err := fsat.OpenDir(p.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	prefix := p.from + "/"
	var want []format.Entry
	for _, entry := range r.Contents {
		if strings.HasPrefix(entry.Path, prefix) {
			want = append(want, entry)
		}
	}
	err = filetree.Scan(ctx, root, filetree.ScanOptions{
		Hash:     true,
		Skip:     func(path string) bool { return path == p.staging },
		Progress: r.OnVerify,
	}, func(f *filetree.File) error {
		if f.IsDir() {
			return nil
		}
		if len(want) == 0 || f.Irregular || prefix+f.Path != want[0].Path || f.Sum != want[0].Sum {
			return differs(p.dir + "/" + f.Path)
		}
		want = want[1:]
		return nil
	})
	if err == nil && len(want) > 0 {
		err = fmt.Errorf("%w: %s is missing", errDiffers, want[0].Path)
	}
	return err
}

func (p *treePart) undo() error {
	d, err := p.open(oldDirName)
	if errors.Is(err, fs.ErrNotExist) && !p.had {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.close()
	if d.staging == nil {
		return nil
	}
	if d.old != nil { // the second half of the swap
		if err := d.live.MoveAll(d.new, p.staging); err != nil {
			return err
		}
		if err := d.staging.Rename(oldDirName, d.staging, incompleteDirName); err != nil {
			return err
		}
		if err := d.staging.Sync(); err != nil {
			return err
		}
		d.old.Close()
		d.old = nil
	}
	incomplete, err := d.staging.OpenIfExists(incompleteDirName)
	if err != nil || incomplete == nil {
		return err
	}
	defer incomplete.Close()
	return incomplete.MoveAll(d.live, "")
}

func (p *treePart) discard() error {
	if _, err := p.clean(""); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.removeEmpty()
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
		if errors.Is(err, fs.ErrNotExist) {
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

// finish keeps the old entries beside the directory.
func (p *treePart) finish(setAside bool) (kept string, err error) {
	keepIn := ""
	if setAside {
		keepIn = filepath.Dir(p.dir)
	}
	kept, err = p.clean(keepIn)
	if errors.Is(err, fs.ErrNotExist) && !p.had {
		return kept, nil
	}
	return kept, err
}

func (p *treePart) close() {}
