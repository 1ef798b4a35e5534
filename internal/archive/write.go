package archive

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
)

// WriteOptions are the details of a Write.
type WriteOptions struct {
	// Top is the name of the archive's one directory.
	Top string
	// Forbidden reports whether a regular file must not be opened. If nil, no
	// file is forbidden.
	Forbidden func(fsat.Info) bool
	// Progress, if not nil, is called with the path of a file, and how many files
	// and bytes of how many are written.
	Progress func(path string, files, totalFiles, bytes, totalBytes int64)
}

// A writing is the state of one Write.
type writing struct {
	WriteOptions
	ctx      context.Context
	root     *fsat.Dir
	dev      uint64 // of root
	manifest *format.Reader
	tw       *tar.Writer
	w        *sink
	buf      []byte
	visit    func(dir *fsat.Dir, name, path string, info fsat.Info, want [sha256.Size]byte) error
	enter    func(path string, info fsat.Info) error
	dirs     int

	metadata          [sha256.Size]byte // its hash, by the manifest
	files, totalFiles int64
	bytes, totalBytes int64
}

// A sink remembers the error of a writer, which decides whether anything more
// can be written.
type sink struct {
	w   io.Writer
	n   int64
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.n += int64(n)
	if err != nil {
		s.err = err
	}
	return n, err
}

// Write writes the snapshot as an archive of one directory to w: that directory,
// the metadata, the manifest, and then every other directory and file in the
// byte order of the paths, where a directory's ends with a slash. It compares
// every file with the manifest. First it walks over the names and sizes alone,
// so that a snapshot that lacks a file, or has one more, is refused before
// anything is written.
//
// A file's last bytes are written only when its hash is known to be right. After
// an error the archive has no trailer, and either it ends within a file, or its
// last block is none of an archive, so that tar(1) fails; unless the error is
// that of w.
//
// Errors: a [*MismatchError]; errdefs.ErrUnsupportedFile for a tree that is too deep
// or has too many directories; ctx's error, that of w, or an *fs.PathError.
func Write(ctx context.Context, w io.Writer, snapshot *fsat.Dir, o WriteOptions) (err error) {
	out := &sink{w: w}
	t := &writing{WriteOptions: o, ctx: ctx, root: snapshot, w: out, tw: tar.NewWriter(out), buf: make([]byte, bufferSize)}
	info, err := snapshot.Stat()
	if err != nil {
		return err
	}
	t.dev = info.Dev

	t.enter = func(string, fsat.Info) error { return nil }
	t.visit = t.count
	if err := t.walk(); err != nil {
		return err
	}
	for _, name := range []string{format.MetadataName, format.ManifestName} {
		info, err := snapshot.Lstat(name)
		if err != nil {
			return err
		}
		if err := t.count(nil, "", "", info, t.metadata); err != nil {
			return err
		}
	}
	t.enter, t.visit = t.writeDir, t.writeFile
	defer func() {
		if err != nil && out.n > 0 && out.n%blockSize == 0 && out.err == nil {
			var block [blockSize]byte
			copy(block[:], "This archive is incomplete: its export failed.\n")
			_, _ = out.Write(block[:])
		}
	}()
	if err := t.writeDir("", info); err != nil {
		return err
	}
	if err := t.writeFirst(); err != nil {
		return err
	}
	if err := t.walk(); err != nil {
		return err
	}
	return t.tw.Close()
}

// walk calls enter for every directory and visit for every file of the manifest
// but the metadata, in order, and returns a MismatchError for anything else.
func (t *writing) walk() error {
	manifest, err := t.root.Open(format.ManifestName)
	if err != nil {
		return err
	}
	defer manifest.Close()
	t.manifest, t.dirs = format.NewReader(manifest), 0
	if err := t.walkDir(t.root, "", 1); err != nil {
		return err
	}
	switch entry, err := t.manifest.Next(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return malformed(err)
	default:
		return &MismatchError{Kind: format.Missing, Path: entry.Path}
	}
}

// malformed makes an error of reading the manifest a MismatchError if it is one.
func malformed(err error) error {
	if errors.Is(err, format.ErrMalformed) {
		return &MismatchError{Kind: format.Malformed, Detail: err.Error()}
	}
	return err
}

func (t *writing) walkDir(dir *fsat.Dir, prefix string, depth int) error {
	entries, err := dir.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := prefix + entry.Name
		if path == format.ManifestName {
			continue
		}
		if err := t.ctx.Err(); err != nil {
			return err
		}
		if entry.Type.IsDir() {
			err = t.walkSub(dir, entry.Name, path+"/", depth+1)
		} else {
			err = t.file(dir, entry.Name, path)
		}
		if err != nil {
			return err
		}
	}
	if len(entries) == 0 && !mayBeEmpty(prefix) {
		if entry, err := t.manifest.Next(); err == nil && strings.HasPrefix(entry.Path, prefix) {
			return &MismatchError{Kind: format.Missing, Path: entry.Path}
		}
		return &MismatchError{Kind: format.Unknown, Path: prefix}
	}
	return nil
}

func (t *writing) walkSub(dir *fsat.Dir, name, path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: %s: an archive has at most %d levels of directories", errdefs.ErrUnsupportedFile, dir.Path(), maxDepth)
	}
	if t.dirs++; t.dirs > maxDirs {
		return fmt.Errorf("%w: %s: an archive has at most %d directories", errdefs.ErrUnsupportedFile, t.root.Path(), maxDirs)
	}
	sub, err := dir.OpenDir(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	info, err := sub.Stat()
	if err != nil {
		return err
	}
	if info.Dev != t.dev { // a mount point
		return &MismatchError{Irregular: true, Path: path}
	}
	if err := t.enter(path, info); err != nil {
		return err
	}
	return t.walkDir(sub, path, depth)
}

// file visits the file name, which must be the next one of the manifest.
func (t *writing) file(dir *fsat.Dir, name, path string) error {
	info, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if !info.Mode.IsRegular() || info.Dev != t.dev || t.Forbidden != nil && t.Forbidden(info) {
		return &MismatchError{Irregular: true, Path: path}
	}
	entry, err := t.manifest.Next()
	switch {
	case errors.Is(err, io.EOF), err == nil && entry.Path > path:
		return &MismatchError{Kind: format.Unknown, Path: path}
	case err != nil:
		return malformed(err)
	case entry.Path < path:
		return &MismatchError{Kind: format.Missing, Path: entry.Path}
	case path == format.MetadataName:
		t.metadata = entry.Sum
		return nil
	}
	return t.visit(dir, name, path, info, entry.Sum)
}

func (t *writing) count(_ *fsat.Dir, _, _ string, info fsat.Info, _ [sha256.Size]byte) error {
	t.totalFiles++
	t.totalBytes += info.Size
	return nil
}

func (t *writing) progress(path string) {
	if t.Progress != nil {
		t.Progress(path, t.files, t.totalFiles, t.bytes, t.totalBytes)
	}
}

// writeFirst writes the metadata and the manifest.
func (t *writing) writeFirst() error {
	for _, name := range []string{format.MetadataName, format.ManifestName} {
		info, err := t.root.Lstat(name)
		if err == nil && !info.Mode.IsRegular() {
			err = &MismatchError{Irregular: true, Path: name}
		}
		if err != nil {
			return err
		}
		if name == format.MetadataName {
			err = t.writeFile(t.root, name, name, info, t.metadata)
		} else {
			err = t.copyFile(t.root, name, name, info, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *writing) writeDir(path string, info fsat.Info) error {
	return t.tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir,
		Name:     t.Top + "/" + path,
		Mode:     toHeader(modeOf(trimSlash(path), info.Mode)),
		ModTime:  time.Unix(info.Mtime.Sec, info.Mtime.Nsec),
		Format:   tar.FormatPAX,
	})
}

func (t *writing) writeFile(dir *fsat.Dir, name, path string, info fsat.Info, want [sha256.Size]byte) error {
	return t.copyFile(dir, name, path, info, &want)
}

// copyFile writes a file, unless its hash is not the wanted one, if any.
func (t *writing) copyFile(dir *fsat.Dir, name, path string, info fsat.Info, want *[sha256.Size]byte) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if opened, err := f.Stat(); err != nil {
		return err
	} else if !opened.Mode.IsRegular() || opened.Dev != info.Dev || opened.Ino != info.Ino || opened.Size != info.Size {
		return &MismatchError{Kind: format.Changed, Path: path, Detail: "it was replaced meanwhile"}
	}
	h := sha256.New()
	for left, first := info.Size, true; first || left > 0; first = false {
		if err := t.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(f, t.buf[:min(left, bufferSize)])
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return &MismatchError{Kind: format.Changed, Path: path, Detail: "it became shorter"}
		case err != nil:
			return err
		}
		h.Write(t.buf[:n])
		if left -= int64(n); left == 0 {
			if err := t.checkSum(f, h, path, want); err != nil {
				return err
			}
		}
		if first {
			if err := t.tw.WriteHeader(t.fileHeader(path, info)); err != nil {
				return err
			}
		}
		if _, err := t.tw.Write(t.buf[:n]); err != nil {
			return err
		}
		t.bytes += int64(n)
		t.progress(path)
	}
	t.files++
	t.progress(path)
	return t.tw.Flush()
}

// checkSum checks that f, all of which h has, has ended and has the wanted hash.
func (t *writing) checkSum(f *fsat.File, h hash.Hash, path string, want *[sha256.Size]byte) error {
	if n, err := f.Read(make([]byte, 1)); n > 0 {
		return &MismatchError{Kind: format.Changed, Path: path, Detail: "it became longer"}
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	if want != nil && [sha256.Size]byte(h.Sum(nil)) != *want {
		return &MismatchError{Kind: format.Changed, Path: path}
	}
	return nil
}

func (t *writing) fileHeader(path string, info fsat.Info) *tar.Header {
	return &tar.Header{
		Typeflag: tar.TypeReg,
		Name:     t.Top + "/" + path,
		Size:     info.Size,
		Mode:     toHeader(modeOf(path, info.Mode)),
		ModTime:  time.Unix(info.Mtime.Sec, info.Mtime.Nsec),
		Format:   tar.FormatPAX,
	}
}
