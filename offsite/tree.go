package offsite

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atocore/backup"
)

// largeFrom is the size from which a file is stored as a base and deltas. restic's
// pieces have about 1 MiB, so a smaller file is one piece anyway.
const largeFrom = 1 << 20

// isLarge reports whether a file of a snapshot is stored so. What a pull reads
// first is not.
func isLarge(f *file) bool {
	return f.size >= largeFrom && f.path != metadataName && f.path != manifestName
}

// A tree brings the tree of the state into the form of a snapshot. Every step
// leaves something that the next push reads rightly: the names say what the files
// are, and what the index does not confirm is hashed.
type tree struct {
	*state
	ctx   context.Context
	snap  *snapshot
	log   *slog.Logger
	meter *meter

	old  index // of the last push; empty if nothing in the tree is to be trusted
	next index
	// sizes are those of the files that parts make, by the path of the part, as the
	// index and the recipe of the last push say.
	sizes map[string]int64

	noted         int // entries made in next
	buf           []byte
	read, changed int64
	at            int   // the file of the snapshot that is being stored
	seen          int64 // bytes of the snapshot that were stored or found
	total         int64
}

// store makes the tree that of the snapshot, except for the recipe, and fills in
// the parts of the large files.
func (t *tree) store() error {
	t.recallSizes()
	for _, f := range t.snap.files {
		t.total += f.size
	}
	if err := t.sweep(); err != nil {
		return fmt.Errorf("clear the tree of the state: %w", err)
	}
	for _, d := range t.snap.dirs {
		if err := t.mkdirs(path.Join(treeName, filesName, d.path)); err != nil {
			return fmt.Errorf("make the tree of the state: %w", err)
		}
	}
	for i := range t.snap.files {
		f := &t.snap.files[i]
		if err := t.ctx.Err(); err != nil {
			return err
		}
		t.at = i
		t.report(f)
		before := t.seen
		var err error
		if isLarge(f) {
			err = t.storeLarge(f)
		} else {
			err = t.storeSmall(f)
		}
		if err != nil {
			return err
		}
		t.seen = before + f.size
	}
	return nil
}

// report reports that a file of the snapshot is being compared.
func (t *tree) report(f *file) {
	t.meter.hash(f.path, int64(t.at), int64(len(t.snap.files)), t.seen, t.total)
}

// recallSizes reads the sizes of what the parts make. Both sources are advice: a
// delta is parsed, and what it makes is hashed before it counts.
func (t *tree) recallSizes() {
	t.sizes = make(map[string]int64)
	if f, err := t.root.Open(path.Join(treeName, recipeName)); err == nil {
		data, err := io.ReadAll(io.LimitReader(f, maxRecipe+1))
		_ = f.Close()
		if r, parseErr := parseRecipe(data); err == nil && parseErr == nil {
			for _, f := range r.files {
				for i, p := range f.parts {
					t.sizes[path.Join(treeName, largeName, f.path, partName(i, p.sum))] = p.size
				}
			}
		}
	}
	for p, e := range readIndex(t.root) {
		if e.Size > 0 {
			t.sizes[p] = e.Size
		}
	}
}

// sweep removes what the snapshot does not have from the tree: files, directories
// and large files of other paths.
func (t *tree) sweep() error {
	small, dirs, large, above := make(map[string]bool), make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for _, d := range t.snap.dirs {
		dirs[path.Join(treeName, filesName, d.path)] = true
	}
	for _, f := range t.snap.files {
		if !isLarge(&f) {
			small[path.Join(treeName, filesName, f.path)] = true
			continue
		}
		p := path.Join(treeName, largeName, f.path)
		large[p] = true
		for p = path.Dir(p); !above[p]; p = path.Dir(p) {
			above[p] = true
		}
	}
	if err := t.clean(t.ctx, treeName, func(p string, isDir bool) bool {
		return isDir && (p == path.Join(treeName, filesName) || p == path.Join(treeName, largeName)) || !isDir && p == path.Join(treeName, recipeName)
	}, false); err != nil {
		return err
	}
	if err := t.clean(t.ctx, path.Join(treeName, filesName), func(p string, isDir bool) bool {
		return isDir && dirs[p] || !isDir && small[p]
	}, true); err != nil {
		return err
	}
	return t.clean(t.ctx, path.Join(treeName, largeName), func(p string, isDir bool) bool {
		return isDir && (above[p] || large[p]) || !isDir && large[path.Dir(p)]
	}, true)
}

// storeSmall stores a file as a link.
func (t *tree) storeSmall(f *file) error {
	at := path.Join(treeName, filesName, f.path)
	if info, err := t.root.Lstat(at); err == nil && t.old.holds(at, info, f.sum) {
		if info.Size() != f.size {
			return t.changedFile(f, fmt.Sprintf("it has %d bytes instead of %d", f.size, info.Size()))
		}
		t.next[at] = t.old[at]
		return nil
	}
	in, info, err := t.open(f)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := t.hash(f, in); err != nil {
		return err
	}
	t.changed += f.size
	return t.place(f, info, at)
}

// open opens a file of the snapshot that is to be read.
func (t *tree) open(f *file) (*os.File, fs.FileInfo, error) {
	in, info, err := t.snap.open(f.path)
	if err == nil && info.Size() != f.size {
		err = errors.Join(t.changedFile(f, "it is being written"), in.Close())
	}
	if err != nil {
		return nil, nil, err
	}
	return in, info, nil
}

// changedFile is the error for a file that is not what SHA256SUMS says.
func (t *tree) changedFile(f *file, detail string) error {
	return t.snap.damaged(backup.CodeFileChanged, f.path, detail)
}

// hash reads a file of the snapshot and compares it with SHA256SUMS.
func (t *tree) hash(f *file, in io.Reader) error {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, t.counted(f, in), t.buffer())
	switch {
	case err != nil:
		return fmt.Errorf("read the snapshot: %w", err)
	case n != f.size || sum(h.Sum(nil)) != f.sum:
		return t.changedFile(f, "")
	}
	return nil
}

// buffer returns the buffer of the tree, which is made once for all files.
func (t *tree) buffer() []byte {
	if t.buf == nil {
		t.buf = make([]byte, 256<<10)
	}
	return t.buf
}

// counted returns a reader of a file of the snapshot that reports progress and
// ends with ctx.
func (t *tree) counted(f *file, in io.Reader) *countedReader {
	return &countedReader{tree: t, file: f, in: in, began: t.seen}
}

type countedReader struct {
	tree  *tree
	file  *file
	in    io.Reader
	began int64
	n     int64
	err   error // of reading, io.EOF excepted
}

func (c *countedReader) Read(p []byte) (int, error) {
	if c.err = c.tree.ctx.Err(); c.err != nil {
		return 0, c.err
	}
	n, err := c.in.Read(p)
	c.n += int64(n)
	c.tree.read += int64(n)
	c.tree.seen = c.began + min(c.n, c.file.size)
	c.tree.report(c.file)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// place puts a file of the snapshot, which was hashed when it was as info says, at
// a path in the tree.
func (t *tree) place(f *file, info fs.FileInfo, at string) error {
	d := draft()
	defer func() { _ = t.root.Remove(d) }() // if it is still there
	from := filepath.Join(t.snap.dir, filepath.FromSlash(f.path))
	linkErr := os.Link(from, filepath.Join(t.dir, filepath.FromSlash(d)))
	if linkErr != nil {
		// Another file system, a user who may not link it (protected_hardlinks in
		// proc(5)), too many links, or a path that is too long for one call.
		if err := t.copy(f, d); err != nil {
			return err
		}
	}
	placed, err := t.root.Lstat(d)
	if err != nil {
		return err
	}
	if linkErr == nil && (!placed.Mode().IsRegular() || !os.SameFile(placed, info) || placed.Size() != info.Size() || !placed.ModTime().Equal(info.ModTime())) {
		return t.changedFile(f, "it changed while it was read")
	}
	if err := t.mkdirs(path.Dir(at)); err != nil {
		return err
	}
	if err := t.replace(d, at); err != nil {
		return err
	}
	t.note(at, f.sum, f.size, placed)
	return nil
}

// note enters a file into the index, unless it is not as it was when it was hashed.
// Then it is hashed again when it is needed.
func (t *tree) note(at string, s sum, size int64, hashed fs.FileInfo) {
	info, err := t.root.Lstat(at)
	if err != nil {
		return
	}
	now, known := stateOf(info)
	before, _ := stateOf(hashed)
	if known && now.sameContent(before) {
		t.next[at] = indexEntry{State: now, SHA256: s.String(), Size: size}
		t.noted++
	}
}

// copy copies a file of the snapshot to a draft, durably, by cloning it where the
// file system can, and hashes the copy.
func (t *tree) copy(f *file, draft string) (err error) {
	in, _, err := t.open(f)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := t.root.OpenFile(draft, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil { // copy_file_range(2), which clones
		return fmt.Errorf("copy %s: %w", f.path, err)
	}
	if err := out.Sync(); err != nil {
		return err
	}
	h := sha256.New()
	if n, err := io.Copy(h, io.NewSectionReader(out, 0, f.size+1)); err != nil {
		return err
	} else if n != f.size || sum(h.Sum(nil)) != f.sum {
		return t.changedFile(f, "it changed while it was copied")
	}
	return nil
}

// recheck hashes again what is not as it was when it was hashed: restic has read
// it since. It returns the paths of files that are not what they were.
func (t *tree) recheck(r *recipe) (wrong []string, err error) {
	for _, f := range r.files {
		if err := t.ctx.Err(); err != nil {
			return nil, err
		}
		if t.unchanged(&f) {
			continue
		}
		var ok bool
		if len(f.parts) > 0 {
			c := &chain{dir: path.Join(treeName, largeName, f.path), parts: f.parts}
			if ok, err = t.verify(c); err != nil {
				return nil, err
			}
		} else if ok, err = t.isSmall(&f); err != nil {
			return nil, err
		}
		if !ok {
			wrong = append(wrong, f.path)
		}
	}
	return wrong, nil
}

// unchanged reports whether all that is stored of a file is as it was hashed.
func (t *tree) unchanged(f *file) bool {
	return !slices.ContainsFunc(pathsOf(f), func(p string) bool {
		info, err := t.root.Lstat(p)
		return err != nil || !t.next.same(p, info)
	})
}

// isSmall reports whether a small file in the tree is what it should be, and
// enters it into the index if it is.
func (t *tree) isSmall(f *file) (bool, error) {
	at := path.Join(treeName, filesName, f.path)
	in, err := t.root.OpenFile(at, os.O_RDONLY|openFlags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return false, err
	}
	h := sha256.New()
	if n, err := io.Copy(h, io.LimitReader(in, f.size+1)); err != nil {
		return false, err
	} else if n != f.size || sum(h.Sum(nil)) != f.sum {
		return false, nil
	}
	t.note(at, f.sum, f.size, info)
	return true, nil
}

// pathsOf returns the paths in the state of what is stored of a file.
func pathsOf(f *file) (paths []string) {
	if len(f.parts) == 0 {
		return []string{path.Join(treeName, filesName, f.path)}
	}
	for i, p := range f.parts {
		paths = append(paths, path.Join(treeName, largeName, f.path, partName(i, p.sum)))
	}
	return paths
}

// isPart reads the name of a part.
func isPart(name string) (number int, s sum, ok bool) {
	if text, isBase := strings.CutPrefix(name, basePrefix); isBase {
		s, ok = parseSum(text)
		return 0, s, ok
	}
	text, isDelta := strings.CutSuffix(name, deltaSuffix)
	digits, hash, _ := strings.Cut(text, "-")
	if s, ok = parseSum(hash); !ok || !isDelta || len(digits) != 4 {
		return 0, s, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, s, false
		}
		number = 10*number + int(c-'0')
	}
	return number, s, number > 0
}
