//go:build linux || darwin || freebsd

package offsite

import (
	"errors"
	"math"
	"os"
	"syscall"
)

// openFlags are further flags for a file that may be anything: opening a FIFO
// does not wait for its other end.
const openFlags = syscall.O_NONBLOCK

const canLock = true

// tryLock takes the exclusive lock of flock(2) on f, which ends when every
// descriptor that was duplicated of this one is closed: that of a child, too.
func tryLock(f *os.File) (bool, error) {
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, syscall.EINTR):
			return false, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// inherited returns the files that a child inherits.
func inherited(lock *os.File) []*os.File { return []*os.File{lock} }

// freeSpace returns how much may be written at dir.
func freeSpace(dir string) (bytes int64, known bool) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, false
	}
	blocks, size := int64(s.Bavail), int64(s.Bsize)
	if blocks < 0 || size <= 0 { // FreeBSD counts below zero in the reserve
		return 0, blocks < 0
	}
	if blocks > math.MaxInt64/size {
		return math.MaxInt64, true
	}
	return blocks * size, true
}
