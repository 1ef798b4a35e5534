//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/atocore/backup"
)

// guardPoll is how often a held guard is tried again. flock(2) can wait by
// itself, but then a signal could not end the wait.
const guardPoll = 20 * time.Millisecond

var errGuardHeld = errors.New("held by another process")

// flockGuard is an ingestion guard: an exclusive flock(2) on the file path.
// Closing the file releases it, and so does the end of the process.
func flockGuard(path string, say func(format string, args ...any)) backup.Locker {
	return backup.LockerFunc(func(ctx context.Context) (unlock func(), err error) {
		f, err := tryGuard(path)
		if errors.Is(err, errGuardHeld) {
			say("Waiting for the guard file %s, which another process holds.", path)
		}
		for errors.Is(err, errGuardHeld) {
			select {
			case <-ctx.Done():
				return nil, &fs.PathError{Op: "flock", Path: path, Err: ctx.Err()}
			case <-time.After(guardPoll):
				f, err = tryGuard(path)
			}
		}
		if err != nil {
			return nil, err
		}
		return func() { f.Close() }, nil
	})
}

func tryGuard(path string) (_ *os.File, err error) {
	f, err := openGuard(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := flock(f); err != nil {
		return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	// Whoever held it may have removed the file, or put another in its place:
	// then other writers lock that one and this lock excludes nobody.
	there, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	locked, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !os.SameFile(there, locked) {
		return nil, errGuardHeld
	}
	return f, nil
}

// openGuard opens the guard file as it is and makes it only if there is none:
// in a sticky directory such as /tmp, a call that could make a file is refused
// where the file is another user's.
func openGuard(path string) (*os.File, error) {
	// A FIFO must not hold up the opening.
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		// Reading is enough for a lock, except on NFS.
		return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	return f, err
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch err {
		case syscall.EINTR:
		case syscall.EWOULDBLOCK:
			return errGuardHeld
		default:
			return err
		}
	}
}
