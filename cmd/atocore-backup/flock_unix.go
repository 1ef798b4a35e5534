//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/poll"
)

// guardPoll is the pause between two attempts to take the guard. A blocking
// flock(2) could not be ended by a signal.
const guardPoll = 20 * time.Millisecond

var errGuardHeld = errors.New("held by another process")

// flockGuard returns an ingestion guard that is an exclusive flock(2) on the file
// at path. If another process holds the lock, it prints a message with say and
// waits. The kernel releases the lock when the process ends.
func flockGuard(path string, say func(format string, args ...any)) backup.Locker {
	return backup.LockerFunc(func(ctx context.Context) (unlock func(), err error) {
		var f *os.File
		waiting := false
		err = poll.Until(ctx, guardPoll, guardPoll, func() (done bool, err error) {
			f, err = tryGuard(path)
			if !errors.Is(err, errGuardHeld) {
				return true, err
			}
			if !waiting {
				waiting = true
				say("Waiting for the guard file %s, which is locked by another process.", path)
			}
			return false, nil
		})
		switch {
		case err == nil:
			return func() { releaseGuard(f) }, nil
		case err == ctx.Err():
			return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
		}
		return nil, err
	})
}

// tryGuard opens and locks the guard file, or returns errGuardHeld.
func tryGuard(path string) (_ *os.File, err error) {
	f, err := openGuard(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			releaseGuard(f)
		}
	}()
	if err := flock(f); err != nil {
		return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	// The previous holder may have removed or replaced the file. Other writers
	// would then lock the new file, and this lock would exclude nobody.
	current, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	locked, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !os.SameFile(current, locked) {
		return nil, errGuardHeld
	}
	return f, nil
}

// openGuard opens the guard file, and creates it only if that fails because it
// does not exist: in a sticky directory such as /tmp, open(2) with O_CREAT fails
// for an existing file of another user (protected_regular in open(2)).
func openGuard(path string) (*os.File, error) {
	// Without O_NONBLOCK, opening a FIFO would block.
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

// releaseGuard releases the lock and closes the file. Closing alone would not
// release it while another process has a duplicate of the descriptor (flock(2)),
// as one has that this process is just starting.
func releaseGuard(f *os.File) {
	_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	f.Close()
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
