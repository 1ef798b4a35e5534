//go:build !linux && !darwin

package fsat

import (
	"errors"
	"io/fs"
)

// TryLock is not supported on this platform: Windows locks no directories, and
// flock(2) of FreeBSD is not used. Its error does not match ErrLocked, because it
// is not known whether the directory is in use.
func (d *Dir) TryLock() error {
	return &fs.PathError{Op: "lock", Path: d.path, Err: errors.ErrUnsupported}
}

// TryRLock is not supported on this platform.
func (d *Dir) TryRLock() error { return d.TryLock() }

// Unlock does nothing on this platform.
func (d *Dir) Unlock() error { return nil }

// TryLock is not supported on this platform. Its error does not match ErrLocked.
func (f *File) TryLock() error {
	return &fs.PathError{Op: "lock", Path: f.path, Err: errors.ErrUnsupported}
}

// TryRLock is not supported on this platform.
func (f *File) TryRLock() error { return f.TryLock() }
