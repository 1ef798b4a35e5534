package fsat

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
)

var (
	// ErrNotRegular is returned for a file that is not a regular one, or must
	// not be opened for another reason.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge is returned for a file that exceeds the caller's limit.
	ErrTooLarge = errors.New("too large")
)

// ReadSmall returns the content of the regular file name, which is untrusted:
// it follows no link, opens nothing else and reads at most limit bytes. buf is
// used if it is large enough. If forbidden, which may be nil, reports true,
// the file is not opened. Errors: ErrNotRegular, ErrTooLarge, or an
// *fs.PathError.
func (d *Dir) ReadSmall(name string, limit int64, forbidden func(Info) bool, buf []byte) ([]byte, error) {
	info, err := d.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode.IsRegular() || forbidden != nil && forbidden(info) {
		return nil, ErrNotRegular
	}
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err = f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode.IsRegular():
		return nil, ErrNotRegular
	case info.Size > limit:
		return nil, ErrTooLarge
	case info.Size > int64(len(buf)):
		buf = make([]byte, info.Size)
	}
	buf = buf[:info.Size]
	n, err := f.ReadAt(buf, 0)
	if err != nil && n < len(buf) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return buf[:n], nil
}

// IsMissing reports whether err means that a file is missing, or that
// something of another type is in its place or in the place of a directory
// above it. No file can have a name that is too long, so that counts too.
func IsMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) ||
		errors.Is(err, syscall.ENAMETOOLONG)
}

// IsReadOnly reports whether err means that this process may create nothing in
// a directory.
func IsReadOnly(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}
