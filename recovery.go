package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/restorer"
	"github.com/atocore/backup/internal/sqlitedb"
)

// Recovery: what the calls do about a restore that was interrupted.

// enterBackupDir takes the lock of a create or a prune on the backup directory,
// until that is closed. It refuses after a restore that was interrupted, and
// waits for one that is running, as Wait says.
func (s *settings) enterBackupDir(ctx context.Context) (*fsat.Dir, error) {
	return s.untilFree(ctx, s.tryBackupDir)
}

// tryBackupDir is enterBackupDir and does not wait.
func (s *settings) tryBackupDir() (*fsat.Dir, error) {
	dir, err := backupdir.Enter(s.BackupDir)
	if errors.Is(err, fsat.ErrLocked) {
		return nil, fmt.Errorf("%w: a restore is running in %s", ErrBusy, s.BackupDir)
	}
	if err != nil {
		if pending := s.unfinishedRestore(); pending != nil && errors.Is(err, fs.ErrNotExist) {
			return nil, pending
		}
		return nil, err
	}
	err = s.unfinishedRestore()
	if err == nil {
		err = s.remainsOfRestore()
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// restoreCutOff returns ErrRestoreUnfinished if a restore was interrupted. A
// restore that is running does not concern readers, nor does a directory that
// they may not search.
func (s *settings) restoreCutOff() error {
	pending, err := restorer.FindPending(s.BackupDir, s.DatabasePath)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil
	case err != nil:
		return pendingError(err)
	case pending == nil || pending.Running:
		return nil
	}
	return describePending(pending)
}

// unfinishedRestore returns ErrRestoreUnfinished if there is a journal of a
// restore, or a pointer to one, or ErrBusy if that restore is running.
func (s *settings) unfinishedRestore() error {
	pending, err := restorer.FindPending(s.BackupDir, s.DatabasePath)
	if err != nil {
		return pendingError(err)
	}
	if pending == nil {
		return nil
	}
	return describePending(pending)
}

func describePending(p *restorer.Pending) error {
	switch {
	case p.Running:
		return fmt.Errorf("%w: a restore is running; its journal is %s", ErrBusy, p.Journal)
	case p.Missing:
		return fmt.Errorf("%w: its journal %s is missing; is the volume of the store mounted?", ErrRestoreUnfinished, p.Journal)
	}
	about := ""
	if p.Database != "" {
		about = " of " + p.Database
	}
	return fmt.Errorf("%w: %s tells what it was doing; restore again with the same paths%s to finish or undo it", ErrRestoreUnfinished, p.Journal, about)
}

// pendingError wraps an error of looking for a journal.
func pendingError(err error) error {
	if errors.Is(err, restorer.ErrNotJournal) {
		return fmt.Errorf("%w: %w", ErrRestoreUnfinished, err)
	}
	return err
}

// remainsOfRestore returns ErrRestoreUnfinished if there are staging
// directories of a restore without its journal. They must not get into a
// snapshot, and may hold the only copy of an old store.
func (s *settings) remainsOfRestore() error {
	remains := restorer.Remains(s.livePlaces())
	if len(remains) == 0 {
		return nil
	}
	return fmt.Errorf("%w: its journal is missing, and this was left: %s", ErrRestoreUnfinished, strings.Join(remains, ", "))
}

// livePlaces returns the places of all parts of the store, links resolved.
func (s *settings) livePlaces() (live restorer.Places) {
	for _, p := range []struct {
		given string
		into  *string
	}{{s.DatabasePath, &live.Database}, {s.RegistryPath, &live.Registry}, {s.ChromaPath, &live.Chroma}} {
		if p.given != "" {
			*p.into = fsat.RealPath(p.given)
		}
	}
	return live
}

// enter takes the lock of a restore on the backup directory, until that is
// closed, and recovers from an earlier restore. If there is nothing to replace
// it takes the lock of a create instead. It waits for others as Wait says.
func (r *restore) enter(ctx context.Context) (*fsat.Dir, error) {
	return r.untilFree(ctx, func() (*fsat.Dir, error) { return r.tryEnter(ctx) })
}

// tryEnter is enter and does not wait.
func (r *restore) tryEnter(ctx context.Context) (*fsat.Dir, error) {
	var err error
	if r.empty, err = r.nothingThere(); err != nil {
		return nil, err
	}
	if r.empty {
		return r.tryBackupDir()
	}
	dir, err := backupdir.EnterExclusive(r.BackupDir)
	if errors.Is(err, fsat.ErrLocked) {
		return nil, fmt.Errorf("%w: a create, a prune or another restore is at work in %s", ErrBusy, r.BackupDir)
	}
	if err != nil {
		if pending := r.unfinishedRestore(); pending != nil && errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", pending, err)
		}
		return nil, err
	}
	if err = r.recover(ctx); err == nil {
		err = r.unfinishedRestore() // a pointer may lead to the journal of another store
	}
	if err == nil {
		err = r.clearRemains(ctx)
	}
	if err == nil {
		r.empty, err = r.nothingThere()
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// begin writes the journal. An empty place concerns nobody else who uses the
// backup directory, so no pointer to the journal is left there.
func (r *restore) begin(ctx context.Context, replacement *restorer.Replacement) error {
	if r.empty {
		// Until here nobody was kept away from an empty place.
		if still, err := r.nothingThere(); err != nil {
			return wrapJournal(err)
		} else if !still {
			return fmt.Errorf("%w: somebody put something where there was nothing to restore over", ErrBusy)
		}
	}
	err := replacement.Begin(ctx, !r.empty)
	switch {
	case errors.Is(err, fs.ErrExist), errors.Is(err, fsat.ErrLocked):
		return fmt.Errorf("%w: another restore is at work on %s", ErrBusy, r.DatabasePath)
	}
	return wrapJournal(err)
}

// nothingThere reports whether there is neither a store nor anything of a
// restore at the paths.
func (r *restore) nothingThere() (bool, error) {
	pending, err := restorer.FindPending(r.BackupDir, r.DatabasePath)
	if err != nil || pending != nil {
		return false, pendingError(err)
	}
	return restorer.NothingAt(r.livePlaces())
}

// clearRemains removes staging directories without a journal that hold nothing
// of a live store, and refuses if others are left.
func (r *restore) clearRemains(ctx context.Context) error {
	if restorer.PointerIsStale(r.BackupDir) {
		err := restorer.ClearRemains(ctx, r.livePlaces(), func(path string) { r.log.Warn("remains_of_restore_removed", "path", path) })
		if err != nil {
			return err
		}
	} // otherwise the journal that it is about may be on a volume that is not
	// mounted, and its restore could neither be finished nor undone without these.
	return r.remainsOfRestore()
}

// recover finishes or undoes an earlier restore, if its journal is there. The
// result says what it did, and so does the log. See docs/restore.md for the
// table of what is found and what is done.
func (r *restore) recover(ctx context.Context) error {
	live := r.livePlaces()
	journal, err := restorer.AwaitJournal(ctx, live.Database)
	switch {
	case errors.Is(err, fsat.ErrLocked):
		return fmt.Errorf("%w: another restore is at work on %s", ErrBusy, r.DatabasePath)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrRestoreUnfinished, err)
	case journal == nil:
		return nil
	}
	defer journal.Close()
	if journal.State() == restorer.StateEmpty {
		_, err := journal.RollBack(ctx)
		return err
	}
	journal.Warn, journal.Unlock = r.warn, r.unlockLive
	// Files are moved only where the host itself wants them moved.
	for _, p := range []struct{ recorded, given string }{
		{journal.Live.Database, live.Database}, {journal.Live.Registry, live.Registry}, {journal.Live.Chroma, live.Chroma},
	} {
		if p.recorded != "" && p.given != p.recorded {
			return fmt.Errorf("%w: %s is about %s, so call with that path first", ErrRestoreUnfinished, journal.Path(), p.recorded)
		}
	}
	unlock, err := r.takeGuard(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.recoverFrom(ctx, journal); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrRestoreUnfinished, ctx.Err())
		}
		return fmt.Errorf("%w: %w", ErrRestoreUnfinished, err)
	}
	return nil
}

// recoverFrom decides whether to finish or to undo.
func (r *restore) recoverFrom(ctx context.Context, journal *restorer.Journal) error {
	state := journal.State()
	if state != restorer.StateStaging && state != restorer.StateDone {
		// Whoever opened the store meanwhile must close it first.
		if err := r.lockLive(ctx, partsOf(journal)); err != nil {
			return err
		}
		defer r.unlockLive()
	}
	finish := state == restorer.StateDone
	if state == restorer.StateSwapped {
		good, err := r.newStoreIsGood(ctx, journal)
		if err != nil {
			return err
		}
		if good {
			if err := journal.Commit(); err != nil {
				return err
			}
		}
		finish = good
	}
	if finish {
		return r.finishRecovered(ctx, journal)
	}
	journal.Undone = func() {
		if state == restorer.StateStaging { // then nobody was kept away from the store
			if err := sqlitedb.CheckNotOpen(ctx, journal.Live.Database); err != nil {
				r.warn("safety_snapshot_left", journal.BackupDir, err)
				return
			}
		}
		r.dropSafetyOf(ctx, journal)
	}
	setAside, err := journal.RollBack(ctx)
	if err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	r.recovered(journal, "undone", setAside)
	return nil
}

// newStoreIsGood reports whether the new store, all of which is in place, is
// what was staged, or is good although somebody has used it since: then it is
// worth more than the old one.
func (r *restore) newStoreIsGood(ctx context.Context, journal *restorer.Journal) (bool, error) {
	same, err := journal.Matches(ctx)
	if err != nil || same {
		return same, err
	}
	if journal.LeavesDatabase() {
		return journal.PartsAreThere()
	}
	if r.source == nil { // there is no database that SQLite can read
		return false, nil
	}
	findings, err := r.source.Check(ctx, sqlitedb.IntegrityCheck, 1)
	if err != nil || len(findings) > 0 {
		return false, err
	}
	return journal.PartsAreThere()
}

// finishRecovered removes the old store, if there is a safety snapshot that has
// it, or else sets it aside.
func (r *restore) finishRecovered(ctx context.Context, journal *restorer.Journal) error {
	keepOld := journal.KeepsOld()
	var old *restorer.SafetySnapshot
	if stamp := journal.Safety(); stamp != "" {
		saved := *r.settings
		saved.BackupDir = journal.BackupDir
		report, err := validate(ctx, &saved, stamp)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && (report == nil || !report.Intact): // missing, damaged, or on a disk that fails
			r.warn("safety_snapshot_not_usable", filepath.Join(journal.BackupDir, format.SnapshotsName, stamp), err)
			keepOld = true
		case journal.SavedInUse():
			if old, err = openSafety(ctx, saved.BackupDir, stamp); err != nil {
				return err
			}
			defer old.Dir.Close()
		}
	}
	// The mode and the time of the Chroma directory are taken from the caller's own
	// backup directory only: a journal could name any.
	snapshot, err := backupdir.OpenSnapshot(ctx, r.BackupDir, journal.Stamp)
	if err != nil || journal.BackupDir != r.BackupDir {
		snapshot.Close()
		snapshot = nil
	}
	defer snapshot.Close()
	setAside, err := journal.Finish(ctx, keepOld, old, snapshot)
	if err != nil {
		return err
	}
	r.recovered(journal, "finished", setAside)
	return nil
}

// finishOld removes the old parts. If they were in use after the safety snapshot,
// they are compared with it before.
func (r *restore) finishOld(ctx context.Context, replacement *restorer.Replacement) ([]string, error) {
	if r.Offline == nil || r.result.SafetyStamp == "" {
		return replacement.Finish(ctx, nil)
	}
	saved, err := openSafety(ctx, r.BackupDir, r.result.SafetyStamp)
	if err != nil {
		r.warn("safety_snapshot_not_usable", r.BackupDir, err)
		return replacement.Finish(ctx, nil)
	}
	defer saved.Dir.Close()
	return replacement.Finish(ctx, saved)
}

// openSafety opens a safety snapshot to compare a store with it.
func openSafety(ctx context.Context, backupDir, stamp string) (_ *restorer.SafetySnapshot, err error) {
	dir, err := backupdir.OpenSnapshot(ctx, backupDir, stamp)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dir.Close()
		}
	}()
	text, err := readMetadataFile(dir, nil)
	if err != nil {
		return nil, err
	}
	meta, err := parseMetadata(text)
	if err != nil {
		return nil, err
	}
	saved := &restorer.SafetySnapshot{Dir: dir}
	if saved.From, err = placesIn(meta); err != nil {
		return nil, err
	}
	saved.Contents, err = restorer.Contents(ctx, dir)
	return saved, err
}

// recovered records and logs what became of an interrupted restore.
func (r *restore) recovered(journal *restorer.Journal, outcome string, setAside []string) {
	r.result.Recovered, r.result.RecoveredStamp, r.result.SetAside = outcome, journal.Stamp, setAside
	r.log.Warn("interrupted_restore_recovered", "outcome", outcome, "stamp", journal.Stamp, "set_aside", strings.Join(setAside, ", "))
}

func setAsideNote(paths []string) string {
	if len(paths) == 0 {
		return ""
	}
	return "; what was in the way is in " + strings.Join(paths, ", ")
}

// isLive reports whether the live store still has everything that is in the
// safety snapshot.
func (r *restore) isLive(ctx context.Context, saved *settings, snapshot Snapshot) (bool, error) {
	safe, err := openSafety(ctx, saved.BackupDir, snapshot.Stamp)
	if err != nil {
		return false, err
	}
	defer safe.Dir.Close()
	r.unlockLive() // it may be of the new database, which is not live any more
	if safe.From.Chroma != "" {
		// A Chroma directory that the restore left alone may be in use.
		if err := sqlitedb.CheckNotOpen(ctx, filepath.Join(r.ChromaPath, format.ChromaDBName)); err != nil {
			return false, err
		}
	}
	live := r.livePlaces()
	database, err := sqlitedb.Lock(ctx, live.Database)
	if err != nil {
		return false, err
	}
	defer database.Close()
	return restorer.IsLive(ctx, safe.Contents, safe.From, live, database)
}

// cannotBeSnapshotted reports whether err means that the store is broken, or
// that the backup directory cannot be written to. Then a restore goes on
// without a safety snapshot.
func cannotBeSnapshotted(err error) bool {
	for _, reason := range []error{
		ErrSourceInvalid, ErrUnsupportedFile, ErrInvalidBackup, fs.ErrNotExist, fs.ErrPermission,
		syscall.EROFS, syscall.EIO,
	} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return sqlitedb.IsBroken(err)
}
