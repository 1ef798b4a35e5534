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
	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/restorer"
	"github.com/atocore/backup/internal/sqlitedb"
)

// RestoreRuntimeBackup puts the snapshot named stamp back to the paths in opts,
// each part that the snapshot has: database, registry and Chroma directory. A
// part that the snapshot lacks is left alone. The paths need not exist.
//
// First the snapshot is validated, as [ValidateBackup] does. A damaged one is
// not restored, one with findings only if opts.DespiteFindings is set, and one
// of another store only if opts.FromOtherStore is or if there is nothing at any
// of the paths. Then a safety snapshot is taken of the present store, and the
// result has its stamp, so that no restore loses anything; a store that is too
// broken for that is set aside as a whole. What was restored is compared with
// the snapshot's hashes before the old store is given up.
//
// Afterwards the store is wholly old or wholly new. A restore that is
// interrupted, at any point, is finished or undone by the next call with the
// same paths; until then every function returns [ErrRestoreUnfinished].
//
// Nobody may have the database open: [ErrDatabaseInUse]. Any connection to a
// database in WAL mode is detected, and any transaction on another database. An
// idle connection to a rollback-journal database holds no lock; on Linux it is
// detected where this process gets a lease on the file, as its owner and root
// do, or if it may inspect the process that has it. The same holds for anybody
// who has the live chroma.sqlite3 open. opts.Locker, if it is set, is held from
// before the safety snapshot until everything is in place. opts.DB must be nil.
//
// A Chroma directory that is a mount point or a symbolic link stays one: its
// contents are replaced. A database or registry that is a symbolic link stays
// one, too. The database gets the mode of the one it replaces; everything else
// gets the modes and times of the snapshot. If the process runs as the
// superuser, what it restores gets the owner of what it replaces. If the
// snapshot is of format 1, the database is in rollback-journal mode until the
// host sets another one.
//
// A call costs validating the snapshot, a create (and validating the result),
// one copy of the snapshot on the file systems of the live store, and reading
// that copy once. ctx is heeded until the parts begin to be swapped, and again
// while the result is compared.
//
// Errors: [ErrInvalidOptions], [ErrInvalidBackup] (nothing was touched),
// [ErrOtherStore], [ErrSourceInvalid], [ErrDatabaseInUse], [ErrBusy],
// [ErrRestoreUnfinished] if an earlier restore had other paths or if this one
// could not be undone, [ErrPanic], ctx's error, or an error of creating a
// snapshot. After any of them but ErrRestoreUnfinished, the store is as before.
func RestoreRuntimeBackup(ctx context.Context, opts Options, stamp string) (result *RestoreResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore backup %q: %w", stamp, err)
		}
	}()
	defer errdefs.Recover(&err)

	// 1. Check the options.
	s, err := opts.resolve(true)
	if err != nil {
		return nil, err
	}
	if err := s.checkRestore(); err != nil {
		return nil, err
	}
	r := &restore{settings: &s, result: RestoreResult{Stamp: stamp}}
	defer func() {
		// What an interrupted restore became is reported in any case.
		if err != nil && r.result.Recovered != "" {
			result = &r.result
			err = fmt.Errorf("%w (before that, the interrupted restore of %s was %s%s)",
				err, r.result.RecoveredStamp, r.result.Recovered, setAsideNote(r.result.SetAside))
		}
	}()
	if err := r.run(ctx); err != nil {
		return nil, err
	}
	return &r.result, nil
}

func setAsideNote(paths []string) string {
	if len(paths) == 0 {
		return ""
	}
	return "; what was in the way is in " + strings.Join(paths, ", ")
}

// A restore is the work of one call.
type restore struct {
	*settings
	result   RestoreResult
	empty    bool             // there is nothing at any of the paths
	meta     *Metadata        // the snapshot's
	contents []format.Entry   // the files of the snapshot, in the order of their paths
	source   *sqlitedb.Source // the live database, locked; nil if there is none or it cannot be locked
	setAside bool             // the old store is set aside, because no snapshot could be taken of it
	done     bool             // the new store is in place
}

func (r *restore) run(ctx context.Context) (err error) {
	defer errdefs.Recover(&err) // after everything that is deferred below

	// 2. Keep creates, prunes and other restores away, and recover from a
	// restore that was interrupted.
	backupDir, err := r.enter(ctx)
	if err != nil {
		return err
	}
	defer backupDir.Close()

	// 3. Validate the snapshot and keep it from being removed.
	snapshot, err := r.openSnapshot(ctx)
	if err != nil {
		return err
	}
	defer snapshot.Close()

	// 4. Take the guard, and lock everybody out of the live database.
	unlock, err := r.takeGuard(ctx)
	if err != nil {
		return err
	}
	defer r.release(unlock)
	// Not while recovering: an interrupted restore leaves hard links.
	if err := sqlitedb.CheckName(ctx, r.DatabasePath); err != nil {
		return wrapStep("lock database", r.DatabasePath, err)
	}
	if err := r.lockLive(ctx, r.chromaToReplace()); err != nil {
		return wrapStep("lock database", r.DatabasePath, err)
	}
	defer r.unlockLive()

	// 5. Write the journal. From here on it records how to go on if this is
	// interrupted.
	replacement, err := r.planReplacement(ctx, snapshot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close(replacement)) }()
	if err := r.begin(ctx, replacement); err != nil {
		return err
	}

	// 6. Take a snapshot of the present store.
	if err := r.takeSafety(ctx, backupDir, replacement); err != nil {
		return err
	}

	// 7. Copy the snapshot beside the live store.
	r.progress(Progress{Phase: PhaseStage})
	if err := replacement.Stage(ctx); err != nil {
		return wrapStep("stage", r.DatabasePath, err)
	}
	files, bytes := replacement.Files, replacement.Bytes

	// 8. Swap the old parts and the new ones, and compare the new ones with the
	// snapshot.
	r.progress(Progress{Phase: PhaseSwap})
	if err := replacement.Swap(ctx); err != nil {
		return wrapStep("swap", r.DatabasePath, err)
	}
	r.progress(Progress{Phase: PhaseVerify, TotalFiles: files, TotalBytes: bytes})
	if err := replacement.Verify(ctx); err != nil {
		return wrapStep("verify", r.DatabasePath, err)
	}

	// 9. Remove the old store, or set it aside.
	if err := wrapJournal(replacement.Commit()); err != nil {
		return err
	}
	r.done = true
	setAside, err := replacement.Finish()
	if err != nil {
		return fmt.Errorf("%w: the new store is in place: %w", ErrRestoreUnfinished, err)
	}
	r.finishResult(files, bytes, setAside)
	r.logRestored()
	return nil
}

// release ends the guard. A restore that is done stays done if the host's
// function panics.
func (r *restore) release(unlock func()) {
	defer func() {
		if v := recover(); v != nil {
			if !r.done {
				panic(v)
			}
			r.log.Error("unlock_panicked", "panic", fmt.Sprint(v))
		}
	}()
	unlock()
}

// close brings the old store back unless the new one is in place.
func (r *restore) close(replacement *restorer.Replacement) error {
	setAside, err := replacement.Close()
	if err != nil {
		return fmt.Errorf("%w: undo: %w", ErrRestoreUnfinished, err)
	}
	if len(setAside) > 0 {
		r.log.Warn("live_files_set_aside", "paths", strings.Join(setAside, ", "))
		return fmt.Errorf("what was in place was not what had been staged: it is in %s", strings.Join(setAside, ", "))
	}
	return nil
}

func (r *restore) finishResult(files, bytes int64, setAside []string) {
	r.result.Files, r.result.Bytes = files, bytes
	r.result.SetAside = append(r.result.SetAside, setAside...)
	r.result.DatabasePath = r.DatabasePath
	if r.meta.RegistrySnapshotPath != "" {
		r.result.RegistryPath = r.RegistryPath
	}
	if r.meta.ChromaSnapshotPath != "" {
		r.result.ChromaPath = r.ChromaPath
	}
}

// logRestored logs a restore that is done. A Logger that panics does not undo
// that, so an error would be wrong.
func (r *restore) logRestored() {
	defer func() { _ = recover() }()
	r.log.Info("runtime_backup_restored", "stamp", r.result.Stamp, "safety_stamp", r.result.SafetyStamp,
		"files", r.result.Files, "bytes", r.result.Bytes)
}

// openSnapshot validates the snapshot and reads which files it has. It returns
// the snapshot's directory; until that is closed, nobody removes the snapshot.
func (r *restore) openSnapshot(ctx context.Context) (*fsat.Dir, error) {
	report, err := validate(ctx, r.settings, r.result.Stamp)
	if r.RecordVerdicts && report != nil {
		r.recordVerdict(ctx, report)
	}
	if err = r.despiteFindings(report, err); err != nil {
		return nil, err
	}
	if r.meta = report.Metadata; !r.empty && !r.FromOtherStore && !r.owner()(r.meta) {
		return nil, fmt.Errorf("%w, %s: set FromOtherStore (restore --from-other-store) to replace this one with it", ErrOtherStore, r.meta.store())
	}
	for _, p := range []struct{ name, given, recorded string }{
		{"RegistryPath", r.RegistryPath, r.meta.RegistrySnapshotPath},
		{"ChromaPath", r.ChromaPath, r.meta.ChromaSnapshotPath},
	} {
		if p.recorded != "" && p.given == "" {
			return nil, fmt.Errorf("%w: %s is empty, and the snapshot has that part", ErrInvalidOptions, p.name)
		}
	}
	if r.meta.ChromaSnapshotPath != "" {
		if err := r.checkChromaLink(); err != nil {
			return nil, err
		}
	}
	dir, err := backupdir.OpenSnapshot(ctx, r.BackupDir, r.result.Stamp)
	if err != nil {
		return nil, err
	}
	if r.contents, err = restorer.Contents(ctx, dir); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// chromaToReplace returns the path of the live Chroma directory if the snapshot
// has one.
func (r *restore) chromaToReplace() string {
	if r.meta.ChromaSnapshotPath == "" {
		return ""
	}
	return r.ChromaPath
}

// lockLive locks the live database exclusively. A file that is not a database,
// or that the disk cannot read, cannot be locked and is skipped. chroma is the
// Chroma directory that is concerned, or empty.
func (r *restore) lockLive(ctx context.Context, chroma string) error {
	database := fsat.RealPath(r.DatabasePath)
	paths := []string{database}
	if chroma != "" {
		paths = append(paths, filepath.Join(chroma, format.ChromaDBName))
	}
	for _, path := range paths {
		if err := sqlitedb.CheckNotOpen(ctx, path); err != nil {
			return err
		}
	}
	source, err := sqlitedb.Lock(ctx, database)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrSourceInvalid) || errors.Is(err, syscall.EISDIR) {
		return nil
	}
	r.source = source
	return err
}

func (r *restore) unlockLive() {
	if r.source != nil {
		r.source.Close()
		r.source = nil
	}
}

// safety is what a create has to know if it takes the safety snapshot of a
// restore.
type safety struct {
	source *sqlitedb.Source // the live database, which the restore has locked
	of     string           // the stamp of the snapshot that is restored
}

// takeSafety takes a snapshot of the store that is about to be replaced. If the
// store is too broken for that, takeSafety decides that it is set aside.
func (r *restore) takeSafety(ctx context.Context, backupDir *fsat.Dir, replacement *restorer.Replacement) error {
	if r.empty {
		return nil
	}
	err := ErrSourceInvalid
	if r.source != nil { // there is a database, and SQLite can read it
		var made *Metadata
		if made, err = r.createSafety(ctx); err == nil {
			r.result.SafetyStamp = made.Stamp
			var report *Report
			if report, err = validate(ctx, r.settings, made.Stamp); err == nil || report != nil && report.Intact {
				return wrapJournal(replacement.Saved(made.Stamp))
			}
			if removeErr := removeSafety(ctx, backupDir, made.Stamp); removeErr != nil {
				return errors.Join(err, removeErr)
			}
			r.result.SafetyStamp = ""
		}
	}
	if ctx.Err() != nil || !cannotBeSnapshotted(err) {
		return fmt.Errorf("take safety snapshot: %w", err)
	}
	r.log.Warn("safety_snapshot_not_possible", "path", r.DatabasePath, "reason", err.Error())
	r.setAside = true
	return wrapJournal(replacement.KeepOld())
}

func wrapJournal(err error) error {
	if err == nil {
		return nil
	}
	return wrapStep("write journal", restorer.JournalName, err)
}

// createSafety works like CreateRuntimeBackup with the parts that are about to
// be replaced.
func (r *restore) createSafety(ctx context.Context) (_ *Metadata, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create backup: %w", err)
		}
	}()
	opts := r.Options
	opts.Locker, opts.InitDB = nil, nil // the guard is held already
	opts.IncludeChroma = r.meta.ChromaSnapshotPath != ""
	s, err := opts.resolve(true)
	if err != nil {
		return nil, err
	}
	return create(ctx, &s, &safety{source: r.source, of: r.result.Stamp})
}

func removeSafety(ctx context.Context, backupDir *fsat.Dir, stamp string) error {
	root, err := backupDir.OpenDir(format.SnapshotsName)
	if err != nil {
		return err
	}
	defer root.Close()
	return backupdir.Remove(ctx, backupDir, root, stamp, func() {})
}

// dropOwnSafety removes the safety snapshot of a restore that failed: the store
// that it has is live again.
func (r *restore) dropOwnSafety(ctx context.Context) {
	if r.result.SafetyStamp != "" {
		r.dropSafety(ctx, r.BackupDir, r.result.SafetyStamp)
		r.result.SafetyStamp = ""
	}
}

// planReplacement prepares replacing the store by the snapshot.
func (r *restore) planReplacement(ctx context.Context, snapshot *fsat.Dir) (*restorer.Replacement, error) {
	p := &restorer.Replacement{
		Stamp:     r.result.Stamp,
		BackupDir: r.BackupDir,
		Started:   truncateToMicroseconds(r.Clock.Now()),
		Snapshot:  snapshot,
		Contents:  r.contents,
		Warn:      r.warn,
		Broken:    r.DespiteFindings,
		Undone:    func() { r.dropOwnSafety(ctx) },
		OnStage: func(path string, files, bytes int64) {
			r.progress(Progress{Phase: PhaseStage, Path: path, Files: files, Bytes: bytes})
		},
	}
	p.OnVerify = func(path string, files, bytes int64) {
		r.progress(Progress{Phase: PhaseVerify, Path: path, Files: files, TotalFiles: p.Files, Bytes: bytes, TotalBytes: p.Bytes})
	}
	var err error
	if p.From, err = placesIn(r.meta); err != nil {
		return nil, err
	}
	live := r.livePlaces()
	for _, part := range []struct {
		from, live string
		into       *string
	}{
		{p.From.Database, live.Database, &p.Live.Database},
		{p.From.Registry, live.Registry, &p.Live.Registry},
		{p.From.Chroma, live.Chroma, &p.Live.Chroma},
	} {
		if part.from != "" {
			*part.into = part.live
		}
	}
	return p, nil
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
