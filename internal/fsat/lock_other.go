//go:build !linux && !darwin

package fsat

import (
	"errors"
	"io/fs"
)

// TryLock is not to be had on directories here. Its error is not ErrLocked:
// nobody can tell whether the directory is in use.
func (d *Dir) TryLock() error {
	return &fs.PathError{Op: "lock", Path: d.path, Err: errors.ErrUnsupported}
}

// TryRLock is not to be had on directories here.
func (d *Dir) TryRLock() error { return d.TryLock() }

// Unlock does nothing here.
func (d *Dir) Unlock() error { return nil }
