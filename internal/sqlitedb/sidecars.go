package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// checkSidecars returns fsat.ErrNotRegular unless all that is beside the
// database at path under the names of SQLite's files is a regular file. SQLite
// would wait in open(2) for ever for the other end of a FIFO, and would follow a
// link.
func checkSidecars(path string) error {
	for _, suffix := range SidecarSuffixes {
		info, err := os.Lstat(path + suffix)
		if err == nil && !info.Mode().IsRegular() {
			return &fs.PathError{Op: "open", Path: path + suffix, Err: fsat.ErrNotRegular}
		}
	}
	return nil
}

// lockSuffix is what SQLite's VFS unix-dotfile appends to the name of a database
// for the lock that takes the place of all of SQLite's other locks
// (DOTLOCK_SUFFIX in os_unix.c).
const lockSuffix = ".lock"

// checkLockDirectory returns errdefs.ErrDatabaseInUse if the VFS unix-dotfile has
// locked the database at path. The lock is a directory (dotlockLock in os_unix.c);
// a file of that name is something else.
func checkLockDirectory(path string) error {
	info, err := os.Lstat(path + lockSuffix)
	if err != nil || !info.IsDir() {
		return nil
	}
	return lockedByFile(path)
}

func lockedByFile(path string) error {
	return fmt.Errorf("%w: there is %s, so its users lock it in a way that keeps nobody else out (SQLite's unix-dotfile); stop them first",
		errdefs.ErrDatabaseInUse, path+lockSuffix)
}

// checkJournal returns errdefs.ErrDatabaseInUse if the journal of the database
// at path, which SQLite takes for a crashed writer's, is in use.
func checkJournal(ctx context.Context, path string) error {
	if _, err := os.Lstat(path + lockSuffix); err == nil {
		return lockedByFile(path)
	}
	err := checkNotOpen(ctx, path+"-journal", askOnce)
	if errors.Is(err, errdefs.ErrDatabaseInUse) {
		return fmt.Errorf("%w, and does not hold the lock by which SQLite would see that; playing the journal back would undo its transaction", err)
	}
	return err
}
