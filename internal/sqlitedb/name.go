package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// SQLite finds the WAL of a database by the name by which the database is
// opened, and so do its users (sqlite.org/howtocorrupt.html, section 2.6). A
// hard link, or a file that is mounted alone as containers have it, is another
// name of the same database, and beside it there is no WAL, or another one.
// Whoever reads the database by that name misses what the WAL holds, and
// nothing shows: the file is whole. And nobody's checkpoints heed a read mark
// that was set in the wrong -shm.

// CheckName returns errdefs.ErrSourceInvalid if the database at path can be seen
// to be in use by another name, or if it may be:
//
//   - It is marked as a WAL database and a process has it locked, while no
//     process but this one has its -shm locked. Every connection that has read
//     from a WAL database holds a SHARED lock on the file and a shared one on
//     the -shm, for as long as it lasts (pagerOpenWal in pager.c,
//     unixLockSharedMemory in os_unix.c).
//   - It is marked as a WAL database and has several hard links, or is a mount
//     point of its own, while there is no WAL beside it, or an empty one that
//     nobody has open. Then nobody uses it by this name, and it cannot be
//     known whether a WAL lies beside another one.
//
// What cannot be seen is not reported: locks and mount points on other systems
// than Linux; the locks of this process; those of another one while
// modernc.org/sqlite uses locks of open file descriptions here (OFDLocking);
// that a file has another name on a mount that is only there; by the first rule, a
// database for which there is no descriptor any more (see mostKept). While somebody has
// the database locked exclusively, nothing is reported either.
//
// A connection that is just being opened or closed has one of its two locks
// only, so what the first rule finds is looked at again for some 200 ms.
func CheckName(ctx context.Context, path string) error {
	path = fsat.RealPath(path)
	if _, err := fsat.Stat(path); err != nil {
		return nil
	}
	return checkName(ctx, path)
}

// checkName is CheckName for a path without links.
func checkName(ctx context.Context, path string) error {
	isWAL, err := checkLocks(ctx, path)
	if err != nil || !isWAL {
		return err
	}
	return checkNames(path)
}

// checkLocks applies the first rule of CheckName to a path without links, and
// reports whether the database is marked as a WAL database.
func checkLocks(ctx context.Context, path string) (isWAL bool, err error) {
	const looks = 8 // with pauses of 226 ms
	for pause, look := 2*time.Millisecond, 1; ; pause, look = min(2*pause, 100*time.Millisecond), look+1 {
		live := markedWAL(path)
		if live == nil {
			return false, nil
		}
		user, used := sharedLock(live)
		if !used || shmLocked(path) {
			return true, nil
		}
		if look == looks {
			return true, fmt.Errorf("%w: %s has the database open by another name (a hard link, or a file that is mounted alone), and its WAL belongs to that name; "+
				"give the path that its users open, and mount directories, not single files", errdefs.ErrSourceInvalid, user)
		}
		if err := poll.Sleep(ctx, pause); err != nil {
			return true, err
		}
	}
}

// checkNames applies the second rule of CheckName to a WAL database, by a path
// without links. While a Source has the WAL open, it finds nothing, since that
// cannot be told from the host's own connections.
func checkNames(path string) error {
	wal, err := fsat.Stat(path + "-wal")
	if err == nil && wal.Size == 0 && !shmLocked(path) && !shmOpenHere(path) || errors.Is(err, fs.ErrNotExist) {
		return checkOnlyName(path)
	}
	return nil
}

// checkOnlyName returns errdefs.ErrSourceInvalid if the WAL database at path,
// which has no WAL here, may have other names.
func checkOnlyName(path string) error {
	info, err := fsat.Stat(path)
	if err != nil {
		return nil
	}
	var what, way string
	switch {
	case isMounted(path):
		what, way = "is mounted as a single file", "mount its directory instead"
	case info.Links > 1:
		what, way = fmt.Sprintf("has %d hard links", info.Links), "give the path that its users open, or remove the other links if nobody uses them"
	default:
		return nil
	}
	return fmt.Errorf("%w: the database %s and has no WAL here, although it is in WAL mode; if its users open it by another name, their WAL is there; %s",
		errdefs.ErrSourceInvalid, what, way)
}

func isMounted(path string) bool {
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if err != nil {
		return false
	}
	defer dir.Close()
	mounted, err := dir.IsMountPoint(filepath.Base(path))
	return err == nil && mounted
}
