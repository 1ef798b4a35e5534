package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/restorer"
)

// enter takes the lock of a restore on the backup directory, until that is
// closed, and recovers from an earlier restore. If there is nothing to replace
// it takes the lock of a create instead.
func (r *restore) enter(ctx context.Context) (*fsat.Dir, error) {
	var err error
	if r.empty, err = r.nothingThere(); err != nil {
		return nil, err
	}
	if r.empty {
		return r.enterBackupDir()
	}
	dir, err := backupdir.EnterExclusive(r.BackupDir)
	if errors.Is(err, fsat.ErrLocked) {
		return nil, fmt.Errorf("%w: a create, a prune or another restore is at work in %s", ErrBusy, r.BackupDir)
	}
	if err != nil {
		return nil, err
	}
	for _, path := range restorer.JournalPaths(r.BackupDir, r.DatabasePath) {
		if err := r.recover(ctx, path); err != nil {
			dir.Close()
			return nil, err
		}
	}
	if r.empty, err = r.nothingThere(); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// enterBackupDir takes the lock of a create or a prune on the backup directory,
// until that is closed. It refuses beside a restore, and after a restore that
// was interrupted.
func (s *settings) enterBackupDir() (*fsat.Dir, error) {
	dir, err := backupdir.Enter(s.BackupDir)
	if errors.Is(err, fsat.ErrLocked) {
		return nil, fmt.Errorf("%w: one is running in %s", ErrRestoreUnfinished, s.BackupDir)
	}
	if err != nil {
		return nil, err
	}
	if err := s.unfinishedRestore(); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// restoreCutOff returns ErrRestoreUnfinished if a restore was interrupted. A
// restore that is running does not concern readers.
func (s *settings) restoreCutOff() error {
	// The lock is tried only if there is a journal: a restore that begins at
	// this moment would mistake the attempt for a create.
	if err := s.unfinishedRestore(); err == nil {
		return nil
	}
	dir, err := backupdir.Enter(s.BackupDir)
	if errors.Is(err, fsat.ErrLocked) {
		return nil
	}
	defer dir.Close()
	return s.unfinishedRestore()
}

// unfinishedRestore returns ErrRestoreUnfinished if there is a journal of a
// restore.
func (s *settings) unfinishedRestore() error {
	path, err := restorer.Pending(restorer.JournalPaths(s.BackupDir, s.DatabasePath))
	if path != "" {
		return fmt.Errorf("%w: %s tells what it was doing; restore again with the same paths to finish or undo it", ErrRestoreUnfinished, path)
	}
	return err
}

// nothingThere reports whether there is neither a store nor a journal at the
// paths.
func (r *restore) nothingThere() (bool, error) {
	database := fsat.RealPath(r.DatabasePath)
	paths := append(restorer.JournalPaths(r.BackupDir, r.DatabasePath), database, database+"-wal", database+"-journal")
	if r.RegistryPath != "" {
		paths = append(paths, r.RegistryPath)
	}
	for _, path := range paths {
		if _, err := fsat.Stat(path); err == nil {
			return false, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return r.ChromaPath == "" || !fsat.HasEntries(r.ChromaPath), nil
}

// recover finishes or undoes the restore whose journal is at path, if there is
// one.
func (r *restore) recover(ctx context.Context, path string) error {
	journal, err := restorer.ReadJournal(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRestoreUnfinished, err)
	}
	if journal == nil {
		return nil
	}
	defer journal.Close()
	if journal.State() == restorer.StateEmpty {
		return journal.RollBack()
	}
	// The journal is beside backups, which are untrusted. Files are moved only
	// where the host itself wants them moved.
	for _, p := range []struct{ recorded, given string }{
		{journal.Live.Database, r.DatabasePath}, {journal.Live.Registry, r.RegistryPath}, {journal.Live.Chroma, r.ChromaPath},
	} {
		if p.recorded != "" && (p.given == "" || fsat.RealPath(p.given) != p.recorded) {
			return fmt.Errorf("%w: %s is about %s, so call with that path first", ErrRestoreUnfinished, path, p.recorded)
		}
	}
	unlock, err := r.takeGuard(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if journal.State() == restorer.StateDone {
		r.result.Recovered = "finished"
		if r.result.SetAside, err = journal.Finish(); err != nil {
			return fmt.Errorf("%w: %w", ErrRestoreUnfinished, err)
		}
		return nil
	}
	r.result.Recovered = "undone"
	if journal.State() == restorer.StateSwapping {
		// Whoever opened the store meanwhile must close it first.
		if err := r.lockLive(ctx); err != nil {
			return fmt.Errorf("%w: %w", ErrRestoreUnfinished, err)
		}
		defer r.unlockLive()
	}
	if err := journal.RollBack(); err != nil {
		return fmt.Errorf("%w: undo: %w", ErrRestoreUnfinished, err)
	}
	return nil
}
