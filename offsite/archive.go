package offsite

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/atocore/backup/offsite/internal/delta"
)

// A stream writes what restic has restored as the archive of a snapshot, in the
// form that docs/format.md describes. It removes each file when it is written.
type stream struct {
	ctx    context.Context
	root   *os.Root // of the scratch directory
	recipe *recipe
	tar    *tar.Writer
}

// writeArchive writes the archive of the snapshot to w. root holds files and
// large, and nothing but directories and regular files. An error that matches
// ErrDamaged is about their content.
func writeArchive(ctx context.Context, w io.Writer, root *os.Root, r *recipe) error {
	s := &stream{ctx: ctx, root: root, recipe: r, tar: tar.NewWriter(w)}
	if err := s.folder(r.dirs[0]); err != nil {
		return err
	}
	for _, name := range []string{metadataName, manifestName} {
		if err := s.file(r.find(name)); err != nil {
			return err
		}
	}
	type entry struct {
		key    string // of the order: a directory's path ends with a slash
		folder *folder
		file   *file
	}
	var entries []entry
	for i, d := range r.dirs[1:] {
		entries = append(entries, entry{d.path + "/", &r.dirs[1+i], nil})
	}
	for i, f := range r.files {
		if f.path != metadataName && f.path != manifestName {
			entries = append(entries, entry{f.path, nil, &r.files[i]})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	for _, e := range entries {
		var err error
		if e.folder != nil {
			err = s.folder(*e.folder)
		} else {
			err = s.file(e.file)
		}
		if err != nil {
			return err
		}
	}
	return s.tar.Close()
}

func (s *stream) folder(d folder) error {
	name := s.recipe.stamp + "/"
	if d.path != "" {
		name += d.path + "/"
	}
	return s.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: tarMode(d.mode), ModTime: d.mtime, Format: tar.FormatPAX})
}

// tarMode returns the bits of a header for a mode (POSIX.1-2017, pax).
func tarMode(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	if mode&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}

// file writes a file. Whoever reads the archive compares it with SHA256SUMS.
func (s *stream) file(f *file) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	v, names, closeAll, err := s.version(f)
	if err != nil {
		return err
	}
	defer closeAll()
	err = s.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: s.recipe.stamp + "/" + f.path, Size: f.size, Mode: tarMode(f.mode), ModTime: f.mtime, Format: tar.FormatPAX,
	})
	if err != nil {
		return err
	}
	if _, err := v.WriteTo(contextWriter{s.ctx, s.tar}); errors.Is(err, delta.ErrInvalid) {
		return fmt.Errorf("%w: %q: %w", ErrDamaged, f.path, err)
	} else if err != nil {
		return err
	}
	closeAll()
	for _, name := range names {
		if err := s.root.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// version opens what a file is made of, and returns the names of it. The function
// may be called more than once.
func (s *stream) version(f *file) (v *delta.Version, names []string, closeAll func(), err error) {
	if len(f.parts) > 0 {
		c := &chain{dir: path.Join(largeName, f.path), parts: f.parts}
		o, err := c.open(s.root, openAnyMode)
		if errors.Is(err, delta.ErrInvalid) {
			return nil, nil, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if err != nil {
			return nil, nil, nil, err
		}
		for i := range c.parts {
			names = append(names, c.name(i))
		}
		return o.Version, names, o.Close, nil
	}
	name := path.Join(filesName, f.path)
	in, err := openAnyMode(s.root, name)
	if err != nil {
		return nil, nil, nil, err
	}
	return delta.Base(in, f.size), []string{name}, func() { _ = in.Close() }, nil
}

// openAnyMode opens a file for reading although its mode may not allow that: a
// snapshot may have such files.
func openAnyMode(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|openFlags, 0)
	if errors.Is(err, fs.ErrPermission) {
		if err := root.Chmod(name, 0o600); err != nil {
			return nil, err
		}
		f, err = root.OpenFile(name, os.O_RDONLY|openFlags, 0)
	}
	return f, err
}
