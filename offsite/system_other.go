//go:build !linux && !darwin && !freebsd

package offsite

import (
	"io/fs"
	"os"
)

// stateOf is not known here: there is no time that every change of the content
// moves. So every file is hashed again at each push.
func stateOf(fs.FileInfo) (s fileState, ok bool) { return s, false }

// openFlags are further flags for a file that may be anything.
const openFlags = 0

const canLock = false

// tryLock locks nothing here: two pushes at once are not kept apart.
func tryLock(*os.File) (bool, error) { return true, nil }

// inherited returns the files that a child inherits, which is possible on Unix
// only.
func inherited(*os.File) []*os.File { return nil }

// freeSpace is not known here.
func freeSpace(string) (bytes int64, known bool) { return 0, false }
