// Package backupdir controls who may use a backup directory, and for what: it
// takes the locks on the directory and on its snapshots, and builds,
// publishes and removes snapshots by single renames.
//
// It promises that a snapshot is visible in snapshots/ either whole and durable
// or not at all, that a process that dies does not block any other, and that
// the next call of Reap removes the staging that it leaves behind. It must not
// know what a snapshot contains.
//
// # Locking
//
// All locks are flock(2) on existing directories, so the kernel releases them
// when a process dies.
//
//   - On the backup directory: a create or a prune holds a shared lock, a
//     restore that replaces something an exclusive one. None of them waits here. So
//     any number of creates and prunes run side by side; a restore is refused
//     while one of them runs, and they are refused while a restore runs.
//   - On a snapshot's directory: a validate or a restore of it holds a shared
//     lock; the process that removes it holds an exclusive one, and so does the
//     create that publishes it, until its rename is durable. A prune skips a
//     snapshot that is in use. A validate waits, for moments only, until the
//     exclusive lock is released; then it is certain whether the snapshot stays.
//   - On a staging directory: the process that builds it holds an exclusive
//     lock (see [Staging]).
//
// A list takes no lock. On file systems without flock(2) there is no mutual
// exclusion.
package backupdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// Enter opens the backup directory at path and takes the shared lock of a
// create or a prune, which lasts until the directory is closed. It does not
// wait: while a restore holds the exclusive lock, the error matches
// [fsat.ErrLocked]. If there is no such directory, the error matches
// [errdefs.ErrNoSnapshot]. Where the file system has no locks, the directory is
// returned unlocked.
func Enter(path string) (*fsat.Dir, error) { return enter(path, (*fsat.Dir).TryRLock) }

// EnterExclusive opens the backup directory at path and takes the exclusive
// lock of a restore, which lasts until the directory is closed. It does not
// wait: while a create, a prune or another restore holds a lock, the error
// matches [fsat.ErrLocked]. If there is no such directory, the error matches
// [errdefs.ErrNoSnapshot]. Where the file system has no locks, the directory is
// returned unlocked.
func EnterExclusive(path string) (*fsat.Dir, error) { return enter(path, (*fsat.Dir).TryLock) }

func enter(path string, lock func(*fsat.Dir) error) (*fsat.Dir, error) {
	dir, err := fsat.OpenDir(path)
	if err != nil {
		return nil, noSnapshot(err)
	}
	if err := lock(dir); errors.Is(err, fsat.ErrLocked) {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// noSnapshot makes an error that says that a directory is missing
// [errdefs.ErrNoSnapshot].
func noSnapshot(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errdefs.ErrNoSnapshot, err)
	}
	return err
}

// OpenSnapshots opens snapshots/ in the backup directory at backupDir. It
// refuses a symbolic link in its place.
func OpenSnapshots(backupDir string) (*fsat.Dir, error) {
	dir, err := fsat.OpenDir(backupDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return OpenSnapshotsIn(dir)
}

// OpenSnapshotsIn is OpenSnapshots in the open backup directory dir.
func OpenSnapshotsIn(dir *fsat.Dir) (*fsat.Dir, error) {
	snapshots, err := dir.OpenDir(format.SnapshotsName)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return snapshots, err
	}
	if info, statErr := dir.Lstat(format.SnapshotsName); statErr == nil && info.Mode&fs.ModeSymlink != 0 {
		err = &fs.PathError{Op: "open", Path: filepath.Join(dir.Path(), format.SnapshotsName), Err: errLink}
	}
	return nil, err
}

// errLink is the error for a link in the place of snapshots/.
var errLink = errors.New("it is a symbolic link, which is not followed; " +
	"make the backup directory itself the link, and move the snapshots to a real directory of this name in it")

// OpenSnapshot opens the snapshot stamp in the backup directory at backupDir
// and holds it as [Hold] does: while the directory is open, the snapshot is not
// removed. If there is no such snapshot, or no longer, the error matches
// [errdefs.ErrNoSnapshot].
func OpenSnapshot(ctx context.Context, backupDir, stamp string) (*fsat.Dir, error) {
	root, err := OpenSnapshots(backupDir)
	if err != nil {
		return nil, noSnapshot(err)
	}
	defer root.Close()
	dir, err := root.OpenDir(stamp)
	if err != nil {
		return nil, noSnapshot(err)
	}
	gone, err := Hold(ctx, root, dir, stamp)
	if err == nil && gone {
		err = noSnapshot(&fs.PathError{Op: "open", Path: dir.Path(), Err: fs.ErrNotExist})
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// Hold takes the shared lock on the snapshot dir, which was opened as stamp in
// root, so that it is not removed while dir is open. While another process
// holds the exclusive lock, Hold waits until it is released or ctx ends. gone
// reports whether the snapshot has been removed instead.
func Hold(ctx context.Context, root, dir *fsat.Dir, stamp string) (gone bool, err error) {
	mine, err := dir.Stat()
	if err != nil {
		return false, err
	}
	err = poll.Until(ctx, time.Millisecond, 20*time.Millisecond, func() (done bool, err error) {
		locked := dir.TryRLock()
		there, err := root.Lstat(stamp)
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && there.Ino != mine.Ino:
			gone = true
			return true, nil
		case err != nil:
			return false, err
		}
		return !errors.Is(locked, fsat.ErrLocked), nil
	})
	return gone, err
}

// IsStill reports whether dir still has the name in root by which it was
// opened. A snapshot that is being removed loses its name before its files. If
// this cannot be determined, IsStill returns true.
func IsStill(root *fsat.Dir, name string, dir *fsat.Dir) bool {
	there, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	mine, mineErr := dir.Stat()
	return err != nil || mineErr != nil || there.Ino == mine.Ino
}

// RemoveStamp is [Remove] for callers that have nothing to say of what is left.
func RemoveStamp(ctx context.Context, backupDir *fsat.Dir, stamp string) error {
	root, err := backupDir.OpenDir(format.SnapshotsName)
	if err != nil {
		return err
	}
	defer root.Close()
	_, err = Remove(ctx, backupDir, root, stamp, func() {})
	return err
}

// Remove removes the snapshot stamp. root is snapshots/ in backupDir. Remove
// looks for what could not be removed; if it sees nothing, it renames the
// snapshot to a staging name, makes the rename durable and removes the files. If
// it is interrupted, Reap removes the rest. If the first removal is refused, it
// renames the snapshot back. The lock that it holds meanwhile keeps readers out,
// and keeps other processes from reaping the directory as stale.
//
// gone is called, once, when the snapshot is out of sight and will not come back:
// after the first file was removed, or when that fails and the snapshot cannot be
// renamed back. If there is an error then, left is the path of what is left of
// it.
//
// Errors: [fsat.ErrLocked] if the snapshot is in use, fs.ErrNotExist if it is
// gone already, ctx's error, or an *fs.PathError.
func Remove(ctx context.Context, backupDir, root *fsat.Dir, stamp string, gone func()) (left string, err error) {
	return remove(ctx, backupDir, root, stamp, func() error { return nil }, gone)
}

// RemoveUnprotected is Remove unless the snapshot's record says that it is
// protected, or cannot be read: then the error matches [errdefs.ErrProtected].
// It reads the record while it holds the lock on the snapshot, so that a
// protection that was recorded before is not missed. It opens no file of which
// forbidden, which may be nil, reports true.
func RemoveUnprotected(ctx context.Context, backupDir, root *fsat.Dir, stamp string, forbidden func(fsat.Info) bool, gone func()) (left string, err error) {
	return remove(ctx, backupDir, root, stamp, func() error {
		records, err := OpenRecords(backupDir)
		if err != nil {
			return fmt.Errorf("%w: its record cannot be read: %w", errdefs.ErrProtected, err)
		}
		if records == nil {
			return nil
		}
		defer records.Close()
		record, err := readRecord(records, stamp, forbidden)
		if err != nil {
			return fmt.Errorf("%w: its record cannot be read: %w", errdefs.ErrProtected, err)
		}
		if record.Protected {
			return fmt.Errorf("%w meanwhile", errdefs.ErrProtected)
		}
		return nil
	}, gone)
}

// remove is Remove if allowed, which is called under the lock on the snapshot,
// returns nil.
func remove(ctx context.Context, backupDir, root *fsat.Dir, stamp string, allowed func() error, gone func()) (left string, err error) {
	dir, err := root.OpenDir(stamp)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	if err := dir.TryLock(); errors.Is(err, fsat.ErrLocked) {
		return "", err
	}
	mine, err := dir.Stat()
	if err != nil {
		return "", err
	}
	if there, err := root.Lstat(stamp); err != nil {
		return "", err
	} else if there.Ino != mine.Ino {
		return "", &fs.PathError{Op: "remove", Path: dir.Path(), Err: fs.ErrNotExist}
	}
	if err := allowed(); err != nil {
		return "", err
	}
	if err := root.CheckRemovable(ctx, stamp); err != nil {
		return "", err
	}
	name := format.NewStagingName()
	if err := root.Rename(stamp, backupDir, name); err != nil {
		return "", err
	}
	left = filepath.Join(backupDir.Path(), name)
	if err := fsat.SyncAll(backupDir, root); err != nil {
		gone()
		return left, err
	}
	begun := false
	err = backupDir.RemoveTreeUnlessRefused(ctx, name, func() {
		begun = true
		gone()
	})
	if err == nil || begun {
		return left, err
	}
	if ctx.Err() == nil {
		back := backupDir.Rename(name, root, stamp)
		if back == nil {
			return "", errors.Join(err, fsat.SyncAll(root, backupDir))
		}
		err = errors.Join(err, back)
	}
	gone()
	return left, err
}
