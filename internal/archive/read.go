package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
)

// ReadOptions are the details of a Read.
type ReadOptions struct {
	// Metadata is called with the content of the metadata and returns the name
	// that the archive's directory must have.
	Metadata func(data []byte) (top string, err error)
	// Manifest, if not nil, is called when the manifest is in the directory and
	// nothing else but the metadata is.
	Manifest func() error
	// Progress, if not nil, is called with the path of a file, and how many files
	// and bytes of how many files are read.
	Progress func(path string, files, totalFiles, bytes int64)
}

// A reading is the state of one Read.
type reading struct {
	ReadOptions
	ctx      context.Context
	in       *source
	tr       *tar.Reader
	root     *fsat.Dir
	top      string // of the archive, with a final slash
	manifest *format.Reader
	next     *format.Entry // of the manifest; nil at its end
	metadata [sha256.Size]byte
	compared bool       // the metadata have the hash of the manifest
	open     []*openDir // the directories that entries can be in: each in the one before
	last     string     // the path of the last entry; a directory's ends with a slash
	dirs     int
	buf      []byte

	files, totalFiles, bytes int64
}

// An openDir is a directory that is being filled.
type openDir struct {
	*fsat.Dir
	path   string // with a final slash; empty for the root
	header *tar.Header
}

// Read reads an archive that Write has written from r, to its end, into the
// empty directory root. It compares every file with the manifest while it writes
// it, and syncs nothing. root gets the mode and the time of the archive's
// directory.
//
// It accepts only what Write writes: one directory with the metadata, the
// manifest, and the other entries in their order, so that nothing comes twice;
// files that the manifest names, in directories that came before; no other kind
// of entry; a trailer, and nothing but zeros after it. Headers may be of any form
// of tar. Owners are ignored, and so are the bits of a mode that modeOf does not
// know. Before a file is created, its size is compared with the space that is
// free.
//
// Errors: errdefs.ErrInvalidArchive; errdefs.ErrNoSpace; those of the functions
// in o, of ctx and of r; or an *fs.PathError. After an error, the content of root
// is useless.
func Read(ctx context.Context, r io.Reader, root *fsat.Dir, o ReadOptions) (err error) {
	t := &reading{ReadOptions: o, ctx: ctx, in: &source{ctx: ctx, r: r}, root: root, buf: make([]byte, bufferSize)}
	defer func() {
		for _, dir := range t.open {
			if dir.path != "" {
				dir.Close()
			}
		}
		if err != nil && t.in.err != nil {
			err = t.in.err
		}
	}()
	head := make([]byte, 8)
	n, err := io.ReadFull(t.in, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if name := compression(head[:n]); name != "" {
		return refuse("it is compressed with %s: decompress it first", name)
	}
	t.tr = tar.NewReader(io.MultiReader(bytes.NewReader(head[:n]), t.in))
	if err := t.readFirst(); err != nil {
		return err
	}
	if err := t.readRest(); err != nil {
		return err
	}
	return t.readTail()
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errdefs.ErrInvalidArchive}, args...)...)
}

// compression returns the name of the program that wrote data beginning so.
func compression(head []byte) string {
	for _, c := range []struct{ magic, name string }{
		{"\x1f\x8b", "gzip"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"\xfd7zXZ\x00", "xz"}, {"BZh", "bzip2"}, {"\x04\x22\x4d\x18", "lz4"}, {"PK\x03\x04", "zip"},
	} {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			return c.name
		}
	}
	return ""
}

// A source counts what is read of a reader, remembers its error, and ends with
// ctx.
type source struct {
	ctx context.Context
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (n int, err error) {
	for range 100 {
		if s.err = s.ctx.Err(); s.err != nil {
			return 0, s.err
		}
		n, err = s.r.Read(p)
		s.n += int64(n)
		if err != nil && err != io.EOF {
			s.err = err
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
	s.err = io.ErrNoProgress
	return 0, s.err
}

// entry returns the next header and its path below the archive's directory. At
// the end of the archive it returns nil.
func (t *reading) entry() (*tar.Header, string, error) {
	if err := t.ctx.Err(); err != nil {
		return nil, "", err
	}
	before := t.in.n
	h, err := t.tr.Next()
	switch {
	case errors.Is(err, io.EOF):
		// Next also accepts an archive that just ends.
		if padded := (before + blockSize - 1) / blockSize * blockSize; t.in.n != padded+trailerSize {
			return nil, "", refuse("it is cut off: it has no trailer")
		}
		return nil, "", nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, "", refuse("it is cut off: %w", err)
	case err != nil:
		return nil, "", refuse("it is no tar archive, or damaged: %w", err)
	}
	isDir := h.Typeflag == tar.TypeDir
	switch {
	case !isDir && h.Typeflag != tar.TypeReg:
		return nil, "", refuse("%q is neither a file nor a directory", h.Name)
	case h.Linkname != "", isDir && h.Size != 0, isDir != strings.HasSuffix(h.Name, "/"):
		return nil, "", refuse("the header of %q contradicts itself", h.Name)
	case h.ModTime.Year() < 1 || h.ModTime.Year() > 9999: // the years of metadata, too
		return nil, "", refuse("%q is of the year %d", h.Name, h.ModTime.Year())
	}
	for key := range h.PAXRecords {
		switch key {
		case "path", "size", "mtime", "atime", "ctime", "uid", "gid", "uname", "gname":
		default: // a sparse file, for example, or an attribute
			return nil, "", refuse("%q has the record %q", h.Name, key)
		}
	}
	if t.top == "" {
		return h, h.Name, nil
	}
	name, below := strings.CutPrefix(h.Name, t.top)
	if !below {
		return nil, "", refuse("%q is not in its directory %q", h.Name, t.top)
	}
	if len(name) > format.MaxLine || trimSlash(name) != path.Clean(name) || path.IsAbs(name) || name == "." || name == ".." || strings.HasPrefix(name, "../") {
		return nil, "", refuse("%q is not a path inside a snapshot", h.Name)
	}
	return h, name, nil
}

func trimSlash(path string) string { return strings.TrimSuffix(path, "/") }

// readFirst reads the archive's directory, the metadata and the manifest.
func (t *reading) readFirst() error {
	h, name, err := t.entry()
	switch {
	case err != nil:
		return err
	case h == nil:
		return refuse("it is empty")
	case h.Typeflag != tar.TypeDir || strings.Count(name, "/") != 1 || !format.IsStamp(trimSlash(name)):
		return refuse("it begins with %q, not with the directory of a snapshot", name)
	}
	t.top = name
	t.open = []*openDir{{Dir: t.root, header: h}}

	if h, err = t.expect(format.MetadataName); err != nil {
		return err
	}
	if h.Size > format.MaxMetadataSize {
		return refuse("its metadata are larger than %d bytes", format.MaxMetadataSize)
	}
	var data bytes.Buffer
	if t.metadata, err = t.copyFile(h, format.MetadataName, io.Writer(&data)); err != nil {
		return err
	}
	top, err := t.Metadata(data.Bytes())
	if err != nil {
		return err
	}
	if top+"/" != t.top {
		return refuse("its directory is %q, and its metadata say %q", trimSlash(t.top), top)
	}

	if h, err = t.expect(format.ManifestName); err != nil {
		return err
	}
	if _, err = t.copyFile(h, format.ManifestName, nil); err != nil {
		return err
	}
	return t.openManifest()
}

// expect returns the header of the file path, which must be the next entry.
func (t *reading) expect(path string) (*tar.Header, error) {
	h, name, err := t.entry()
	if err == nil && (h == nil || name != path) {
		err = refuse("it has no %s where that belongs", path)
	}
	return h, err
}

// openManifest calls Manifest and counts the files that the manifest names.
func (t *reading) openManifest() error {
	if t.Manifest != nil {
		if err := t.Manifest(); err != nil {
			return err
		}
	}
	f, err := t.root.Open(format.ManifestName)
	if err != nil {
		return err
	}
	defer f.Close()
	t.totalFiles = 1 // the manifest itself
	for lines := format.NewReader(f); ; t.totalFiles++ {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		if _, err := lines.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if errors.Is(err, format.ErrMalformed) {
			return refuse("%w", err)
		} else if err != nil {
			return err
		}
	}
}

// readRest reads all other entries.
func (t *reading) readRest() error {
	f, err := t.root.Open(format.ManifestName)
	if err != nil {
		return err
	}
	defer f.Close()
	t.manifest = format.NewReader(f)
	if err := t.advance(); err != nil {
		return err
	}
	for {
		h, name, err := t.entry()
		if err != nil {
			return err
		}
		if h == nil {
			break
		}
		if name <= t.last {
			return refuse("%q comes after %q", name, t.last)
		}
		t.last = name
		if err := t.leave(name); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir {
			err = t.readDir(h, name)
		} else {
			err = t.readFile(h, name)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case t.next != nil:
		return refuse("it lacks %q, which is in its manifest", t.next.Path)
	case !t.compared:
		return refuse("its manifest lacks %s", format.MetadataName)
	}
	if err := t.leave("/"); err != nil { // a name that is in none of them
		return err
	}
	return t.open[0].finish()
}

// advance reads the next entry of the manifest, and checks the metadata's.
func (t *reading) advance() error {
	entry, err := t.manifest.Next()
	switch {
	case errors.Is(err, io.EOF):
		t.next = nil
		return nil
	case errors.Is(err, format.ErrMalformed):
		return refuse("%w", err)
	case err != nil:
		return err
	case entry.Path != format.MetadataName:
		t.next = &entry
		return nil
	case entry.Sum != t.metadata:
		return refuse("%q does not have the hash of its manifest", entry.Path)
	}
	t.compared = true
	return t.advance()
}

// finish gives a directory its mode and its time, which filling it had changed.
func (d *openDir) finish() error {
	if err := d.Chmod(modeOf(trimSlash(d.path), fromHeader(d.header.Mode, true))); err != nil {
		return err
	}
	return d.Chtimes(".", timeOf(d.header))
}

// timeOf returns the modification time of an entry.
func timeOf(h *tar.Header) fsat.Time {
	return fsat.Time{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
}

// leave finishes and closes the directories that name is not in. The root
// remains.
func (t *reading) leave(name string) error {
	for n := len(t.open) - 1; n >= 0; n-- {
		dir := t.open[n]
		if strings.HasPrefix(name, dir.path) {
			return nil
		}
		if err := dir.finish(); err != nil {
			return err
		}
		t.open = t.open[:n]
		if err := dir.Close(); err != nil {
			return err
		}
	}
	return nil
}

// parentOf returns the open directory that the entry name must be in.
func (t *reading) parentOf(name string) (*openDir, string, error) {
	parent, base := path.Split(trimSlash(name))
	if dir := t.open[len(t.open)-1]; dir.path == parent {
		return dir, base, nil
	}
	return nil, "", refuse("%q comes before its directory", name)
}

func (t *reading) readDir(h *tar.Header, name string) error {
	// The manifest names no directories, but files in them.
	if !mayBeEmpty(name) && (t.next == nil || !strings.HasPrefix(t.next.Path, name)) {
		return refuse("%q is not in its manifest", name)
	}
	if t.dirs++; t.dirs > maxDirs {
		return refuse("it has more than %d directories", maxDirs)
	}
	if len(t.open) >= maxDepth {
		return refuse("%.100q… is deeper than %d levels", name, maxDepth)
	}
	parent, base, err := t.parentOf(name)
	if err != nil {
		return err
	}
	if err := parent.Mkdir(base, dirMode); err != nil {
		return cannotCreate(name, err)
	}
	dir, err := parent.OpenDir(base)
	if err != nil {
		return err
	}
	t.open = append(t.open, &openDir{dir, name, h})
	return nil
}

func (t *reading) readFile(h *tar.Header, name string) error {
	if t.next == nil || t.next.Path > name {
		return refuse("%q is not in its manifest", name)
	}
	if t.next.Path < name {
		return refuse("it lacks %q, which is in its manifest", t.next.Path)
	}
	sum, err := t.copyFile(h, name, nil)
	if err != nil {
		return err
	}
	if sum != t.next.Sum {
		return refuse("%q does not have the hash of its manifest", name)
	}
	return t.advance()
}

// copyFile creates a file and returns its hash. If also is not nil, it gets the
// content, too.
func (t *reading) copyFile(h *tar.Header, name string, also io.Writer) (sum [sha256.Size]byte, err error) {
	parent, base, err := t.parentOf(name)
	if err != nil {
		return sum, err
	}
	if free, _, _, err := t.root.Space(); err == nil && h.Size > free {
		return sum, fmt.Errorf("%w: %s has %d bytes and %d are free", errdefs.ErrNoSpace, name, h.Size, free)
	}
	f, err := parent.Create(base, fileMode)
	if err != nil {
		return sum, cannotCreate(name, err)
	}
	defer f.Close()
	hash := sha256.New()
	for {
		n, err := io.ReadFull(t.tr, t.buf)
		hash.Write(t.buf[:n])
		if _, err := f.Write(t.buf[:n]); err != nil {
			return sum, err
		}
		if also != nil {
			_, _ = also.Write(t.buf[:n]) // into memory
		}
		t.bytes += int64(n)
		t.progress(name)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return sum, refuse("%w", err)
		}
	}
	// A reader that ends early, and one that is at the end of the file, look the
	// same to ReadFull.
	if written, err := f.Stat(); err != nil {
		return sum, err
	} else if written.Size != h.Size {
		return sum, refuse("it is cut off in %q: %w", name, io.ErrUnexpectedEOF)
	}
	if err := f.Chmod(modeOf(name, fromHeader(h.Mode, false))); err != nil {
		return sum, err
	}
	if err := f.Close(); err != nil {
		return sum, err
	}
	if err := parent.Chtimes(base, timeOf(h)); err != nil {
		return sum, err
	}
	t.files++
	t.progress(name)
	return [sha256.Size]byte(hash.Sum(nil)), nil
}

// cannotCreate makes an error of creating a file or directory that of the
// archive, if it is the name's: if it is too long, if the file system takes it
// for another one, as it may do with "A" and "a", or if it is none here.
func cannotCreate(name string, err error) error {
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, fs.ErrInvalid) {
		return refuse("%.200q cannot be created here: %w", name, err)
	}
	return err
}

func (t *reading) progress(name string) {
	if t.Progress != nil {
		t.Progress(name, t.files, t.totalFiles, t.bytes)
	}
}

// readTail reads what follows the trailer, which must be zeros: tar(1) writes
// whole records. A record has 10 KiB, or as much as its user wants.
func (t *reading) readTail() error {
	const most = 1 << 20
	for tail := int64(0); ; {
		n, err := t.in.Read(t.buf)
		if tail += int64(n); tail > most || len(bytes.Trim(t.buf[:n], "\x00")) > 0 {
			return refuse("something follows its end")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
