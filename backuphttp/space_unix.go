//go:build linux || darwin || freebsd

package backuphttp

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
)

// freeSpace returns how many bytes are free for files in dir, or in the nearest
// directory above it that exists.
func freeSpace(dir string) (free uint64, ok bool) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return 0, false
	}
	for {
		var s syscall.Statfs_t
		err := syscall.Statfs(dir, &s)
		if err == nil {
			blocks := max(0, int64(s.Bavail)) // less than none are free for others than root, on FreeBSD
			return uint64(blocks) * uint64(s.Bsize), true
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return 0, false
		}
		dir = parent
	}
}
