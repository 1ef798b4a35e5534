package filetree

import (
	"context"
	"errors"
	"syscall"

	"github.com/atocore/backup/internal/fsat"
)

// Size returns how many bytes the tree below dir occupies on disk and how many
// files and directories it has, dir itself not counted, nor what skip says of the
// names in dir. A directory or file that cannot be read is left out; the only error
// is ctx's. It takes one lstat(2) per file.
func Size(ctx context.Context, dir *fsat.Dir, skip func(name string) bool) (bytes, files int64, err error) {
	ignore := func(error) error { return nil }
	err = eachEntry(ctx, dir, skip, ignore, func(dir *fsat.Dir, entry fsat.Entry) error {
		files++
		if entry.Type.IsDir() {
			return nil
		}
		if info, err := dir.Lstat(entry.Name); err == nil {
			bytes += info.Allocated
		}
		return nil
	})
	return bytes, files, err
}

// CheckMoves returns an error for the first entry below dir of which it can be
// told that it can't be renamed or removed; see [fsat.Dir.CheckMove]. A mount
// point counts only in dir itself: below, it moves with its directory.
// Directories that this process may not read are passed over, and what skip says
// of the names in dir.
func CheckMoves(ctx context.Context, dir *fsat.Dir, skip func(name string) bool) error {
	return eachEntry(ctx, dir, skip, func(error) error { return nil }, func(in *fsat.Dir, entry fsat.Entry) error {
		err := in.CheckMove(entry.Name)
		if in != dir && errors.Is(err, syscall.EBUSY) {
			return nil
		}
		return err
	})
}

// SizeAt is Size of the directory at path. If that cannot be opened, it counts as
// empty.
func SizeAt(ctx context.Context, path string, skip func(name string) bool) (bytes, files int64, err error) {
	dir, err := fsat.OpenDir(path)
	if err != nil {
		return 0, 0, nil
	}
	defer dir.Close()
	return Size(ctx, dir, skip)
}

// eachEntry calls visit for every entry below dir, for a directory after its
// own entries. It passes over the entries of dir itself for whose names skip, if it
// is not nil, returns true, and directories that cannot be opened or read, if
// unreadable, which gets the error, returns nil.
func eachEntry(ctx context.Context, dir *fsat.Dir, skip func(name string) bool, unreadable func(error) error, visit func(*fsat.Dir, fsat.Entry) error) error {
	entries, err := dir.ReadDir()
	if err != nil {
		return unreadable(err)
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if skip != nil && skip(entry.Name) {
			continue
		}
		if entry.Type.IsDir() {
			sub, err := dir.OpenDir(entry.Name)
			if err == nil {
				err = eachEntry(ctx, sub, nil, unreadable, visit)
				sub.Close()
			} else {
				err = unreadable(err)
			}
			if err != nil {
				return err
			}
		}
		if err := visit(dir, entry); err != nil {
			return err
		}
	}
	return nil
}
