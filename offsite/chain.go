package offsite

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/atocore/backup/offsite/internal/delta"
)

// A chain is what the tree has of a large file: a base and deltas, each of which is
// against the result of the one before.
type chain struct {
	dir   string // in the state
	parts []part // none if there is no base
}

func (c *chain) end() sum { return c.parts[len(c.parts)-1].sum }

// name returns the path of the i-th part.
func (c *chain) name(i int) string { return path.Join(c.dir, partName(i, c.parts[i].sum)) }

// readChain returns the chain of a large file as the names say it, and removes
// what does not belong to it. Deltas are added, and removed, from one end, so that
// what a kill leaves is a chain, if a shorter one. Between a new base and the
// removal of the old one there are two, without deltas; either will do.
func (t *tree) readChain(dir string, want sum) (*chain, error) {
	entries, err := t.entries(dir)
	if err != nil {
		return nil, err
	}
	byNumber := make(map[int]sum)
	for _, e := range entries {
		n, s, ok := isPart(e.Name())
		if ok && e.Type().IsRegular() {
			if _, twice := byNumber[n]; !twice || s == want {
				byNumber[n] = s
			}
		}
	}
	c := &chain{dir: dir}
	for n := 0; n <= maxDeltas; n++ {
		s, ok := byNumber[n]
		if !ok {
			break
		}
		info, err := t.root.Lstat(path.Join(dir, partName(n, s)))
		if err != nil {
			return nil, err
		}
		p := part{sum: s, size: info.Size(), bytes: info.Size()}
		if n > 0 {
			if p.size, ok = t.sizes[path.Join(dir, partName(n, s))]; !ok {
				break // it was the last step of a push that was killed
			}
		}
		c.parts = append(c.parts, p)
	}
	return c, t.clean(t.ctx, dir, func(p string, _ bool) bool {
		n, s, ok := isPart(path.Base(p))
		return ok && n < len(c.parts) && c.parts[n].sum == s
	}, true)
}

// trusted reports whether all parts are as they were when what they make was
// hashed.
func (t *tree) trusted(c *chain) bool {
	for i := range c.parts {
		info, err := t.root.Lstat(c.name(i))
		if err != nil || !t.old.same(c.name(i), info) {
			return false
		}
	}
	n := len(c.parts)
	return n > 0 && t.old[c.name(n-1)].SHA256 == c.end().String()
}

// An openChain has the files of a chain open.
type openChain struct {
	*delta.Version
	base  *delta.Version
	files []*os.File
}

func (o *openChain) Close() {
	for _, f := range o.files {
		_ = f.Close() // they were read only
	}
}

// open opens the parts by openFile. An error that matches delta.ErrInvalid is about
// a delta.
func (c *chain) open(root *os.Root, openFile func(*os.Root, string) (*os.File, error)) (_ *openChain, err error) {
	o := new(openChain)
	defer func() {
		if err != nil {
			o.Close()
		}
	}()
	for i, p := range c.parts {
		f, err := openFile(root, c.name(i))
		if err != nil {
			return nil, err
		}
		o.files = append(o.files, f)
		info, err := f.Stat()
		switch {
		case err != nil:
			return nil, err
		case !info.Mode().IsRegular() || info.Size() != p.bytes:
			return nil, fmt.Errorf("%w: %s has %d bytes instead of %d", delta.ErrInvalid, c.name(i), info.Size(), p.bytes)
		case i == 0:
			o.base = delta.Base(f, p.bytes)
			o.Version = o.base
			continue
		}
		if o.Version, err = o.Apply(f, p.bytes, p.size); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name(i), err)
		}
	}
	return o, nil
}

// openAsIs opens a file of the tree. It does not change its mode, which would be
// that of a file of a snapshot.
func openAsIs(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(name, os.O_RDONLY|openFlags, 0)
}

// verify reports whether the parts make the file that the last of them names, and
// enters them into the index if they do.
func (t *tree) verify(c *chain) (bool, error) {
	before := t.states(c)
	o, err := c.open(t.root, openAsIs)
	if err == nil {
		defer o.Close()
		var s sum
		if s, err = hashOf(t.ctx, o.Version); err == nil && s != c.end() {
			err = delta.ErrInvalid
		}
	}
	switch {
	case errors.Is(err, delta.ErrInvalid), errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the state's base and deltas: %w", err)
	}
	t.noteChain(c, before)
	return true, nil
}

// states returns what the parts are like. It lacks those that cannot be told.
func (t *tree) states(c *chain) []fileState {
	var states []fileState
	for i := range c.parts {
		info, err := t.root.Lstat(c.name(i))
		if err != nil {
			break
		}
		state, ok := stateOf(info)
		if !ok {
			break
		}
		states = append(states, state)
	}
	return states
}

// hashOf returns the hash of a version.
func hashOf(ctx context.Context, v *delta.Version) (sum, error) {
	h := sha256.New()
	_, err := v.WriteTo(contextWriter{ctx, h})
	return sum(h.Sum(nil)), err
}

// A contextWriter ends with its context.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// noteChain enters a chain whose result was hashed into the index, unless one of its
// parts is not as it was before that. Then it is hashed again when it is needed. The
// parts before the last one were not hashed by themselves.
func (t *tree) noteChain(c *chain, before []fileState) {
	now := t.states(c)
	if !slices.EqualFunc(now, before, fileState.sameContent) || len(now) != len(c.parts) {
		return
	}
	for i, p := range c.parts {
		e := indexEntry{State: now[i], Size: p.size}
		if i == len(c.parts)-1 {
			e.SHA256 = p.sum.String()
		}
		t.next[c.name(i)] = e
		t.noted++
	}
}

// removeFrom removes the parts from the i-th on, the last one first, so that a
// chain is left at any moment.
func (t *tree) removeFrom(c *chain, i int) error {
	for n := len(c.parts) - 1; n >= i; n-- {
		if err := t.root.Remove(c.name(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
