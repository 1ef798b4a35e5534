package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/atocore/backup/internal/fsat"
)

// Who waits for whom. All locks are flock(2), on directories that are there
// anyway, so a process that dies lets go of its own.
//
//   - On BackupDir: a create or a prune holds it shared, a restore that
//     replaces something exclusively; nobody waits. So any number of creates
//     and prunes go on side by side; a restore is refused while one runs
//     (ErrBusy), and they are refused while it runs (ErrRestoreUnfinished).
//   - On a snapshot's directory: who validates or restores it holds it shared,
//     who removes it exclusively. A prune passes over a snapshot that is in
//     use. A validate waits for a moment until its snapshot is gone, or, when
//     the create that publishes it still has its lock, settled.
//   - On a staging directory: who builds it, exclusively (see staging.go).
//
// A list takes no lock. Where a file system has no such locks, nothing is kept
// apart.

// enterBackupDir takes the part of a create or a prune in the backup directory
// until it is closed. It refuses beside a restore, and after one that was cut
// off.
func (s *settings) enterBackupDir() (*fsat.Dir, error) {
	dir, err := fsat.OpenDir(s.BackupDir)
	if err != nil || s.restoring != nil {
		return dir, err
	}
	if err := dir.TryRLock(); errors.Is(err, fsat.ErrLocked) {
		dir.Close()
		return nil, fmt.Errorf("%w: one is running in %s", ErrRestoreUnfinished, s.BackupDir)
	}
	if err := s.unfinishedRestore(); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// restoreCutOff tells readers of a restore that was cut off. One that is
// running does not concern them.
func (s *settings) restoreCutOff() error {
	// The lock is looked at only if there is a journal: a restore that begins
	// just then would take the look for a create.
	if err := s.unfinishedRestore(); err == nil {
		return nil
	}
	dir, err := fsat.OpenDir(s.BackupDir)
	if err == nil {
		defer dir.Close()
		if errors.Is(dir.TryRLock(), fsat.ErrLocked) {
			return nil
		}
	}
	return s.unfinishedRestore()
}

// unfinishedRestore looks for the journal of a restore.
func (s *settings) unfinishedRestore() error {
	for _, path := range s.journalPaths() {
		if _, err := fsat.Stat(path); err == nil {
			return fmt.Errorf("%w: %s tells what it was doing; restore again with the same paths to finish or undo it", ErrRestoreUnfinished, path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// journalName is the journal of a restore. It lies in BackupDir, or beside the
// database where that was empty before, or where BackupDir is read-only.
const journalName = ".atocore-restore.journal"

func (s *settings) journalPaths() []string {
	paths := []string{filepath.Join(s.BackupDir, journalName)}
	if s.DatabasePath != "" {
		paths = append(paths, filepath.Join(filepath.Dir(realPath(s.DatabasePath)), journalName))
	}
	return paths
}

// holdSnapshot keeps the snapshot from being removed while dir is open. gone
// tells that it has been.
func holdSnapshot(ctx context.Context, root, dir *fsat.Dir, stamp string) (gone bool, err error) {
	mine, err := dir.Stat()
	if err != nil {
		return false, err
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		locked := dir.TryRLock()
		there, err := root.Lstat(stamp)
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && there.Ino != mine.Ino:
			return true, nil
		case err != nil:
			return false, err
		case !errors.Is(locked, fsat.ErrLocked):
			return false, nil
		}
		if err := sleep(ctx, wait); err != nil {
			return false, err
		}
	}
}
