//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package schedule

import "os"

// tryLock returns errNoLocks: the system has no flock(2).
func tryLock(string) (unlock func(), err error) { return nil, errNoLocks }

// syncDir does nothing: not every system can sync a directory.
func syncDir(*os.File) error { return nil }
