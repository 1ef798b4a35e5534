package backupdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// Remains is a directory that should have been removed and could not be.
type Remains struct {
	Path string
	Err  error
}

// Reap removes the staging directories that dead processes left in the backup
// directory at path, and logs each. A directory whose lock is held belongs to a
// live process, even a stopped one, and is left alone. One that cannot be opened
// or locked may be a live process's, and is logged and skipped. One that cannot
// be removed, or not wholly, is logged and returned; it never fails a backup.
// Errors: ctx's error, or an *fs.PathError if the backup directory cannot be
// read. If it does not exist, there is nothing to remove.
func Reap(ctx context.Context, path string, log *slog.Logger) (left []Remains, err error) {
	root, err := fsat.OpenDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	entries, err := root.ReadDir()
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if !entry.Type.IsDir() || !format.IsStagingName(entry.Name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return left, err
		}
		full := filepath.Join(path, entry.Name)
		dead, err := reapOne(ctx, root, entry.Name)
		switch {
		case err == nil:
			log.Info("stale_staging_removed", "path", full)
		case ctx.Err() != nil:
			return left, err
		case errors.Is(err, fsat.ErrLocked), errors.Is(err, fs.ErrNotExist):
		default:
			log.Warn("stale_staging_left", "path", full, "error", err)
			if dead {
				left = append(left, Remains{full, err})
			}
		}
	}
	return left, nil
}

// reapOne removes the staging directory name in root. dead reports whether no
// process holds it, so that an error is about what is left of it.
func reapOne(ctx context.Context, root *fsat.Dir, name string) (dead bool, err error) {
	dir, err := root.OpenDir(name)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	if err := dir.TryLock(); err != nil {
		return false, err
	}
	// It may be a snapshot that was being removed, by a process that died before
	// the rename was durable. The snapshot must not come back without its files.
	snapshots, err := root.OpenIfExists(format.SnapshotsName)
	if err != nil {
		return true, err
	}
	defer snapshots.Close()
	if err := fsat.SyncAll(root, snapshots); err != nil {
		return true, err
	}
	return true, root.RemoveTree(ctx, name)
}

// A Staging is the directory in which a snapshot is built. It lies beside
// snapshots/, so that one rename publishes it, and it is locked while it is
// open, so that Reap does not take it for a dead process's.
type Staging struct {
	*fsat.Dir
	backupDir *fsat.Dir
	snapshots *fsat.Dir
	name      string
	published bool
}

// NewStaging creates a staging directory in backupDir, and snapshots/ if it is
// missing. The caller must call Discard in the end, whether it has published
// the snapshot or not. The error matches [errdefs.ErrCrossDevice] if backupDir
// and snapshots/ are on different file systems, so that no rename leads from
// one to the other.
func NewStaging(backupDir string) (_ *Staging, err error) {
	st := new(Staging)
	defer func() {
		if err != nil {
			st.closeAll()
		}
	}()
	if st.backupDir, err = fsat.OpenDir(backupDir); err != nil {
		return nil, err
	}
	// Publish makes the new directory's name durable with the snapshot's.
	if err := st.backupDir.Mkdir(format.SnapshotsName, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if st.snapshots, err = OpenSnapshotsIn(st.backupDir); err != nil {
		return nil, err
	}
	same, err := fsat.SameMount(st.backupDir, st.snapshots)
	if err != nil {
		return nil, err
	}
	if !same {
		return nil, fmt.Errorf("%w: %s", errdefs.ErrCrossDevice, st.snapshots.Path())
	}
	return st, st.create()
}

// create creates and locks the directory. A reaper that sees it before it is
// locked takes it for a dead process's and removes it; then create tries again
// with another name.
func (st *Staging) create() error {
	for range 100 {
		st.name = format.NewStagingName()
		if err := st.backupDir.Mkdir(st.name, 0o700); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		dir, err := st.backupDir.OpenDir(st.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return errors.Join(err, st.remove())
		}
		claimed, err := st.claim(dir)
		if claimed {
			st.Dir = dir
			return nil
		}
		dir.Close()
		if err != nil {
			return errors.Join(err, st.remove())
		}
	}
	return fmt.Errorf("no staging directory could be kept in %s", st.backupDir.Path())
}

// claim locks the new directory and reports whether it still exists; a
// concurrent reaper may have removed it.
func (st *Staging) claim(dir *fsat.Dir) (bool, error) {
	// Any other error means that the file system has no such locks. Then a
	// reaper cannot lock the directory either, and leaves it alone.
	if errors.Is(dir.TryLock(), fsat.ErrLocked) {
		return false, nil
	}
	mine, err := dir.Stat()
	if err != nil {
		return false, err
	}
	there, err := st.backupDir.Lstat(st.name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && mine.Ino == there.Ino, err
}

// remove removes the new directory, which is empty.
func (st *Staging) remove() error {
	err := st.backupDir.Remove(st.name, true)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("remove staging: %w", err)
}

// In creates the directory name in staging and calls do with it.
func (st *Staging) In(name string, do func(*fsat.Dir) error) error {
	if err := st.Mkdir(name, 0o700); err != nil {
		return err
	}
	dir, err := st.OpenDir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(dir)
}

// RemoveDir removes the directory name in staging and what is in it. A file that
// was removed just after it was closed can stay for a moment (fsat.ErrStillOpen).
func (st *Staging) RemoveDir(ctx context.Context, name string) error {
	const times = 8 // some 130 ms
	return poll.Again(ctx, times, time.Millisecond, 50*time.Millisecond, fsat.ErrStillOpen, func() error {
		return st.RemoveTree(ctx, name)
	})
}

// PathOf returns the path of a file in staging, or of staging itself, for
// messages and for calls that need a path.
func (st *Staging) PathOf(elem ...string) string {
	return filepath.Join(append([]string{st.backupDir.Path(), st.name}, elem...)...)
}

// Finish writes start over the beginning of the file name in staging, makes the
// file and staging's own entries durable, and closes the file: Windows does not
// rename a directory while a file in it is open. f is the open file; if it is
// nil, because Finish closed it for a stamp that was taken, it is opened again.
func (st *Staging) Finish(f *fsat.File, name string, start []byte) (err error) {
	if f == nil {
		if f, err = st.OpenRW(name); err != nil {
			return err
		}
	}
	defer f.Close()
	if _, err := f.WriteAt(start, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return st.Sync()
}

// Publish renames staging to the first free stamp of the second of created, and
// returns that stamp once the rename is durable. Before the rename it calls
// complete, which writes what depends on the stamp and makes everything in
// staging durable, staging's own entries included. If another process takes
// the stamp just then, complete is called again with the next one. Between
// these steps Publish ends with ctx's error if ctx ends.
//
// After an error there is no snapshot, unless the error says that it is
// visible.
func (st *Staging) Publish(ctx context.Context, created time.Time, complete func(stamp string) error) (stamp string, err error) {
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		stamp := format.NewStamp(created, n)
		if _, err := st.snapshots.Lstat(stamp); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err := complete(stamp); err != nil {
			return "", err
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
		err := st.backupDir.Rename(st.name, st.snapshots, stamp)
		if errors.Is(err, fs.ErrExist) {
			continue // another create took the stamp just now
		}
		if err != nil {
			return "", err
		}
		return stamp, st.syncRename(stamp)
	}
}

// PublishAs renames staging, everything in which is durable, to the given stamp,
// and makes the rename durable. The error matches fs.ErrExist if there is a
// snapshot of that stamp. Otherwise it means what one of Publish means.
func (st *Staging) PublishAs(stamp string) error {
	if err := st.backupDir.Rename(st.name, st.snapshots, stamp); err != nil {
		return err
	}
	return st.syncRename(stamp)
}

// syncRename makes the rename durable. If that fails it takes the snapshot
// back, because it is not known whether the snapshot would survive a power cut.
func (st *Staging) syncRename(stamp string) error {
	// The directory that staging came from is synced as well: after a power cut
	// the snapshot must not be in both.
	err := fsat.SyncAll(st.snapshots, st.backupDir)
	if err == nil {
		st.published = true
		return nil
	}
	if back := st.snapshots.Rename(stamp, st.backupDir, st.name); back != nil {
		st.published = true // visible, so Discard must not remove it
		return fmt.Errorf("%w; snapshot %s is visible but may not survive a power cut: %w", err, stamp, back)
	}
	return err
}

// Discard removes staging, unless it was published, and releases its lock.
func (st *Staging) Discard() (err error) {
	if !st.published {
		if err = st.backupDir.RemoveTree(context.Background(), st.name); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	st.closeAll()
	return err
}

func (st *Staging) closeAll() {
	st.Dir.Close()
	st.snapshots.Close()
	st.backupDir.Close()
}
