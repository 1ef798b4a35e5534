// Package fsat does file work relative to open directories, so that no path
// is resolved twice and no symbolic link below a root is ever followed.
//
// A [Dir] is an open directory. Every name passed to its methods is one path
// element. On Unix the calls are the *at family of POSIX.1-2008 on raw
// descriptors, which also lifts PATH_MAX from deep trees; elsewhere they go
// through [os.Root]. Errors are *fs.PathError with the full path, so that
// errors.Is(err, fs.ErrNotExist) and its kin work.
//
// The package promises what its calls' documents promise and no more; it knows
// nothing about snapshots or SQLite. The platforms differ, each in its own
// file (fsat_linux.go, fsat_darwin.go, fsat_other.go):
//
//	                        Linux            macOS              others
//	rename, replace nothing renameat2 ¹      renameatx_np ¹     check, then rename
//	lock on a file          flock(2)         flock(2)           none
//	sync of a directory     fsync(2)         F_FULLFSYNC        none
//	sync of a file system   syncfs(2)        none               none
//	clone, kernel copy      FICLONE,         none               none
//	                        copy_file_range
//	holes stay holes        SEEK_DATA        no                 no
//	start writing early     sync_file_range  none               none
//	mount points are seen   statx, /proc     by the device      no
//	                                         number
//	attributes are seen     statx            st_flags           no
//	owner, inode numbers    yes              yes                no
//	extended attributes     yes              no                 no
//	CheckWrite, CheckMove   yes              find nothing       find nothing
//
// ¹ or link and unlink, or check and rename: see [Dir.Rename].
//
// Every call that is newer than Linux 2.6.22 has a replacement or can be left out,
// for kernels without it and for sandboxes that refuse it.
package fsat

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
)

// ErrLocked is returned by TryLock and TryRLock when another process or another
// descriptor of this one holds the lock.
var ErrLocked = errors.New("locked by another user")

// A Time is a moment since 1970 as stat(2) has it. Nanoseconds alone, in 64 bits,
// would end in 2262.
type Time struct{ Sec, Nsec int64 }

// Info describes one file, as returned by stat(2). Dev, Ino, Links and Ctime are
// 0 where the system does not have them.
type Info struct {
	Mode      fs.FileMode
	Size      int64
	Allocated int64 // bytes the file occupies on the medium; Size where unknown
	Mtime     Time
	Ctime     Time
	Dev, Ino  uint64
	Links     uint64
	UID, GID  int // -1 where the system has none
}

// SameFile reports whether both describe the same inode. It is false where the
// system has no inode numbers.
func (i Info) SameFile(o Info) bool { return i.Ino != 0 && i.Ino == o.Ino && i.Dev == o.Dev }

// Unchanged reports whether o is the same file with the same size and times.
func (i Info) Unchanged(o Info) bool {
	return i.Dev == o.Dev && i.Ino == o.Ino && i.Size == o.Size &&
		i.Mtime == o.Mtime && i.Ctime == o.Ctime
}

// Entry is one name in a directory with its type bits (permission bits are
// not filled in) and, where the system returns it, its inode number.
type Entry struct {
	Name string
	Type fs.FileMode
	Ino  uint64
}

// sortEntries orders entries so that a depth-first walk visits files in the
// byte order of their slash-separated paths: a directory "a" sorts as "a/".
func sortEntries(entries []Entry) {
	slices.SortFunc(entries, func(a, b Entry) int {
		return ComparePaths(a.Name, a.Type.IsDir(), b.Name, b.Type.IsDir())
	})
}

// ComparePaths compares two names as sortEntries does.
func ComparePaths(a string, aDir bool, b string, bDir bool) int {
	n := min(len(a), len(b))
	if c := strings.Compare(a[:n], b[:n]); c != 0 {
		return c
	}
	next := func(s string, dir bool) int {
		switch {
		case len(s) > n:
			return int(s[n])
		case dir:
			return '/'
		}
		return -1
	}
	return next(a, aDir) - next(b, bDir)
}
