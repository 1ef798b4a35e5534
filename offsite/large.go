package offsite

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/atocore/backup/offsite/internal/delta"
)

// A file becomes a new base when its deltas together exceed this share of its
// size. Content that moved is found by restic, and not by a delta.
const (
	maxShareNum = 3
	maxShareDen = 5
)

// tooLarge reports whether deltas of so many bytes are too much for the file.
func tooLarge(deltas, size int64) bool { return deltas > size/maxShareDen*maxShareNum }

// storeLarge stores a file as a base and deltas.
func (t *tree) storeLarge(f *file) error {
	dir := path.Join(treeName, largeName, f.path)
	if err := t.mkdirs(dir); err != nil {
		return err
	}
	c, err := t.readChain(dir, f.sum)
	if err != nil {
		return err
	}
	good := t.trusted(c)
	if !good && len(c.parts) > 0 {
		if good, err = t.verify(c); err != nil {
			return err
		}
		if !good {
			t.log.Warn("offsite_state_damaged", "path", dir, "action", "it is stored again")
		}
	}
	switch {
	case !good:
		return t.storeBase(f, c, nil)
	case c.end() != f.sum:
		return t.storeDelta(f, c)
	case c.parts[len(c.parts)-1].size != f.size:
		return t.changedFile(f, fmt.Sprintf("it has %d bytes instead of %d", f.size, c.parts[len(c.parts)-1].size))
	}
	f.parts = c.parts
	for i := range c.parts {
		if e, known := t.old[c.name(i)]; known && t.next[c.name(i)] == (indexEntry{}) {
			t.next[c.name(i)] = e
		}
	}
	return nil
}

// storeBase makes the file a new base in place of the chain c. info is that of the
// file when it was hashed, or nil if it was not yet.
func (t *tree) storeBase(f *file, c *chain, info fs.FileInfo) error {
	if info == nil {
		in, opened, err := t.open(f)
		if err != nil {
			return err
		}
		defer in.Close()
		if err := t.hash(f, in); err != nil {
			return err
		}
		info = opened
	}
	if err := t.removeFrom(c, 1); err != nil {
		return err
	}
	now := &chain{c.dir, []part{{f.sum, f.size, f.size}}}
	if err := t.place(f, info, now.name(0)); err != nil {
		return err
	}
	if len(c.parts) > 0 && c.parts[0].sum != f.sum {
		if err := t.root.Remove(c.name(0)); err != nil {
			return err
		}
	}
	f.parts = now.parts
	t.changed += f.size
	return nil
}

// storeDelta adds a delta to the chain, or merges all of them, or makes the file a
// new base if that is better.
func (t *tree) storeDelta(f *file, c *chain) error {
	before := t.states(c)
	old, err := c.open(t.root, openAsIs)
	if errors.Is(err, delta.ErrInvalid) {
		return t.storeBase(f, c, nil)
	}
	if err != nil {
		return err
	}
	defer old.Close()
	in, info, err := t.open(f)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := t.newDraft()
	if err != nil {
		return err
	}
	defer func() { out.Close() }()

	limit := &limitedWriter{w: out.File, left: f.size/maxShareDen*maxShareNum + 1}
	source := t.counted(f, in)
	written, err := delta.Write(t.ctx, limit, old.Version, source, f.size)
	switch {
	case source.err != nil:
		return fmt.Errorf("read the snapshot: %w", source.err)
	case limit.err != nil:
		return fmt.Errorf("write a delta: %w", limit.err)
	case t.ctx.Err() != nil:
		return t.ctx.Err()
	case err != nil && source.n != f.size && !errors.Is(err, delta.ErrInvalid):
		return t.changedFile(f, "its size changed while it was read")
	case err != nil: // too many pieces, or the state is not what it was
		t.log.Info("offsite_new_base", "path", f.path, "reason", err.Error())
		return t.storeBase(f, c, nil)
	case written.SHA256 != f.sum:
		return t.changedFile(f, "")
	}
	deltas := written.Size
	for _, p := range c.parts[1:] {
		deltas += p.bytes
	}
	if tooLarge(deltas, f.size) {
		return t.storeBase(f, c, info)
	}
	next := &chain{c.dir, append(c.parts[:len(c.parts):len(c.parts)], part{f.sum, f.size, written.Size})}
	return t.addDelta(f, c, next, &reading{old, before, out, info})
}

// A reading is what storeDelta has open.
type reading struct {
	old    *openChain
	before []fileState // of the parts, when they were opened
	out    *draftFile  // the delta
	info   fs.FileInfo // of the file
}

// addDelta makes next of the chain c with a new delta, after the result was read
// back. If there are too many deltas, they are merged.
func (t *tree) addDelta(f *file, c, next *chain, r *reading) error {
	base := func(reason error) error {
		t.log.Info("offsite_new_base", "path", f.path, "reason", reason.Error())
		return t.storeBase(f, c, r.info)
	}
	made, err := r.old.Apply(r.out, next.parts[len(c.parts)].bytes, f.size)
	if err != nil {
		return base(err)
	}
	out, keep := r.out, len(c.parts)
	if len(c.parts) > maxDeltas {
		merged, err := t.newDraft()
		if err != nil {
			return err
		}
		defer merged.Close()
		written, err := made.WriteDelta(contextWriter{t.ctx, merged})
		if errors.Is(err, delta.ErrInvalid) {
			return base(err)
		}
		if err != nil {
			return fmt.Errorf("merge deltas: %w", err)
		}
		if made, err = r.old.base.Apply(merged, written.Size, f.size); err != nil {
			return base(err)
		}
		next.parts = []part{c.parts[0], {f.sum, f.size, written.Size}}
		out, keep = merged, 1
	}
	switch s, err := hashOf(t.ctx, made); {
	case err != nil && !errors.Is(err, delta.ErrInvalid):
		return fmt.Errorf("read back a base and deltas: %w", err)
	case err != nil:
		return base(err)
	case s != f.sum:
		return base(errors.New("read back, the deltas make another file"))
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("write a delta: %w", err)
	}
	drafted, err := out.Stat()
	if err != nil {
		return err
	}
	if err := t.removeFrom(c, keep); err != nil {
		return err
	}
	last := len(next.parts) - 1
	if err := t.replace(out.name, next.name(last)); err != nil {
		return err
	}
	f.parts = next.parts
	t.changed += next.parts[last].bytes
	if state, ok := stateOf(drafted); ok && len(r.before) == len(c.parts) {
		t.noteChain(next, append(r.before[:last:last], state))
	}
	return nil
}

// A draftFile is a draft that is open.
type draftFile struct {
	*os.File
	name string
	root *os.Root
}

// newDraft makes an empty draft.
func (t *tree) newDraft() (*draftFile, error) {
	name := draft()
	f, err := t.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &draftFile{f, name, t.root}, nil
}

// Close closes the draft, and removes it if it was not renamed.
func (d *draftFile) Close() {
	_ = d.File.Close() // what counts was synced
	_ = d.root.Remove(d.name)
}

// A limitedWriter writes up to left bytes and drops the rest, so that a delta that
// is too large costs no space, while the file is still hashed to its end.
type limitedWriter struct {
	w    io.Writer
	left int64
	err  error
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	n := min(int64(len(p)), l.left)
	l.left -= n
	if n > 0 {
		if _, l.err = l.w.Write(p[:n]); l.err != nil {
			return 0, l.err
		}
	}
	return len(p), nil
}
