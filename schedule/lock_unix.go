//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package schedule

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// tryLock locks the file at path and returns what unlocks it. It returns errHeld
// if another process has it, and errNoLocks if the file system has no locks. The
// kernel unlocks it when the process ends, however that happens.
func tryLock(path string) (unlock func(), err error) {
	// Without O_NONBLOCK, opening a FIFO would block.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	// Closing alone would not unlock the file while a process that is just being
	// started has a duplicate of the descriptor (flock(2)).
	unlock = func() {
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		f.Close()
	}
	if err := flock(f); err != nil {
		f.Close()
		return nil, err
	}
	// Somebody may have removed or replaced the file. Others would then lock the new
	// one, and this lock would exclude nobody.
	locked, err := f.Stat()
	if err != nil {
		unlock()
		return nil, err
	}
	switch current, err := os.Lstat(path); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		unlock()
		return nil, err
	case err != nil, !os.SameFile(current, locked):
		unlock()
		return nil, errHeld
	}
	return unlock, nil
}

func flock(f *os.File) error {
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err {
		case nil:
			return nil
		case syscall.EINTR:
		case syscall.EWOULDBLOCK:
			return errHeld
		case syscall.ENOLCK, syscall.ENOSYS, syscall.ENOTSUP, syscall.EINVAL:
			return errNoLocks
		default:
			return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// syncDir makes the entries of a directory durable.
func syncDir(dir *os.File) error { return dir.Sync() }
