package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/restorer"
	"github.com/atocore/backup/internal/sqlitedb"
)

// RestoreRuntimeBackup puts the snapshot named stamp back to the paths in opts,
// each part that the snapshot has, or those of opts.Parts: database, registry and
// Chroma directory. The paths need not exist. A part that the snapshot lacks, or
// that opts.Parts leaves out, is left alone; then the store is a mixture of two
// points in time. Without opts.Offline, a part that is equal is not touched.
//
// First the snapshot is validated, as [ValidateBackup] does. A damaged one is
// never restored, one with findings only with opts.DespiteFindings, and one of
// another store only with opts.FromOtherStore, or if there is nothing at any of
// the paths. What can't be replaced is found before anything is touched
// ([ErrCannotReplace]), and opts.Confirm is asked. Then a safety snapshot is taken
// of the whole present store, and the result has its stamp, so that no restore
// loses anything; a store that is too broken for that is set aside. What was
// restored is compared with the snapshot before the old store is given up.
//
// Afterwards the store is wholly old or wholly new. A restore that is
// interrupted, at any point, is finished or undone by the next call with the
// same paths; until then every function returns [ErrRestoreUnfinished].
//
// Nobody may have the database or the live chroma.sqlite3 open if it is replaced:
// [ErrDatabaseInUse]; with opts.Offline, from then on. Any connection to a database
// in WAL mode is detected, and any transaction on another one. An idle connection
// to that holds no lock; on Linux it is detected where this process gets a lease on
// the file, as its owner and root do, or may inspect the process that has it.
// opts.Locker is held from before the safety snapshot until everything is in place.
// Without opts.Offline, opts.DB must be nil if the database is replaced.
//
// A Chroma directory that is a mount point or a symbolic link stays one, and so
// does a database or registry that is a link. The database gets the mode of the one
// it replaces; everything else gets the modes and times of the snapshot. Each file
// gets the extended attributes and the ACL of the file that it replaces and, if the
// process is the superuser's, its owner and group; a new one belongs to the owner
// of its directory. The result says who owns what, and what could not be kept. The
// database is in rollback-journal mode until the host sets another one.
//
// A call costs validating the snapshot, reading those parts of the live store
// whose sizes are the snapshot's, a create (and validating the result), one copy
// of the snapshot on the file systems of the live store, and reading that copy.
// ctx is heeded until the swap begins, and again while the result is compared.
//
// Errors: [ErrInvalidOptions], [ErrInvalidBackup], [ErrOtherStore],
// [ErrCannotReplace], [ErrSourceInvalid], [ErrDatabaseInUse], [ErrBusy],
// [ErrPanic], [ErrRestoreUnfinished] if an earlier restore had other paths or if
// this one could not be undone, ctx's error, what opts.Confirm returned, or an
// error of creating a snapshot. After any of them but ErrRestoreUnfinished, the
// store is as before, except that the error of a resume (see opts.Offline) may come with a result: if
// RestoreResult.Parts is set, the restore is done.
func RestoreRuntimeBackup(ctx context.Context, opts Options, stamp string) (result *RestoreResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore backup %q: %w", stamp, err)
		}
	}()
	defer errdefs.Recover(&err)

	// 1. Check the options.
	s, err := opts.resolve(ctx, true)
	if err != nil {
		return nil, err
	}
	if err := s.checkRestore(); err != nil {
		return nil, err
	}
	r := &restore{settings: &s, result: RestoreResult{Stamp: stamp}}
	began := s.Clock.Now()
	defer func() {
		// What an interrupted restore became is reported in any case.
		if err != nil && r.result.Recovered != "" {
			result = &r.result
			result.Cost.Duration = s.since(began)
			err = fmt.Errorf("%w (before that, the interrupted restore of %s was %s%s)",
				err, r.result.RecoveredStamp, r.result.Recovered, setAsideNote(r.result.SetAside))
		}
	}()
	if err = r.run(ctx); err != nil && r.result.Parts == nil { // otherwise it is done, and resume failed
		return nil, err
	}
	r.finish(began)
	return &r.result, err
}

// A restore is the work of one call.
type restore struct {
	*settings
	result   RestoreResult
	empty    bool             // there is nothing at any of the paths
	meta     *Metadata        // the snapshot's
	contents []format.Entry   // the files of the snapshot, in the order of their paths
	parts    Parts            // those that the restore is about
	plan     []RestorePart    // what happens to each part
	source   *sqlitedb.Source // the live database, locked; nil if there is none or it cannot be locked
	setAside bool             // the old store is set aside, because no snapshot could be taken of it
	done     bool             // the new store is in place
	unlock   func()           // ends the guard, once
	users    restorer.Users   // of a store that is in use
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

	// 4. Take the guard, and lock everybody out of the live database, unless it is
	// in use until step 9.
	if r.unlock, err = r.takeGuard(ctx); err != nil {
		return err
	}
	defer r.release()
	defer func() { err = errors.Join(err, r.users.Return(ctx)) }()
	if err := r.lockParts(ctx, r.Offline == nil); err != nil {
		return err
	}
	defer r.unlockLive()

	// 5. Find out which parts differ from the snapshot, and whether these can be
	// replaced, and ask the host.
	replacement, err := r.planReplacement(ctx, snapshot)
	if err != nil {
		return err
	}
	if replacement.From == (restorer.Places{}) {
		return r.finishResult(replacement, nil)
	}

	// 6. Write the journal. From here on it records how to go on if this is
	// interrupted.
	defer func() { err = errors.Join(err, r.close(replacement)) }()
	if err := r.begin(ctx, replacement); err != nil {
		return err
	}

	// 7. Take a snapshot of the present store.
	if err := r.takeSafety(ctx, backupDir, replacement); err != nil {
		return err
	}

	// 8. Copy the snapshot beside the live store.
	r.progress(Progress{Phase: PhaseStage})
	if err := replacement.Stage(ctx); err != nil {
		return wrapStep("stage", r.DatabasePath, err)
	}

	// 9. Swap the old parts and the new ones, and compare the new ones with the
	// snapshot. If the store is in use, that is compared before, and the host takes
	// it offline for the swap alone.
	if err := r.swap(ctx, replacement); err != nil {
		return err
	}

	// 10. Give the store back to its users, and remove the old one, or set it aside.
	if err := wrapJournal(replacement.Commit()); err != nil {
		return err
	}
	r.done = true
	resumeErr := r.handOver(ctx, replacement)
	setAside, err := r.finishOld(ctx, replacement)
	if err != nil {
		return errors.Join(fmt.Errorf("%w: the new store is in place: %w", ErrRestoreUnfinished, err), resumeErr)
	}
	return errors.Join(r.finishResult(replacement, setAside), resumeErr)
}

// lockParts refuses a database that its users have open by another name and, if
// lock is set, makes sure that nobody has the parts open and locks the database.
func (r *restore) lockParts(ctx context.Context, lock bool) error {
	// Not while recovering: an interrupted restore leaves hard links.
	if r.parts&PartDatabase != 0 {
		if err := sqlitedb.CheckName(ctx, r.DatabasePath); err != nil {
			return wrapStep("lock database", r.DatabasePath, err)
		}
		// SQLite could not say why it cannot lock the database.
		if err := restorer.CheckAttributes(ctx, r.livePlaces().Database); err != nil {
			return r.cannotReplace([]restorer.Obstacle{{Part: format.DBDir, Err: err}})
		}
	}
	if !lock {
		return nil
	}
	return r.lockLive(ctx, r.parts)
}

// swap puts the new parts in place and compares them.
func (r *restore) swap(ctx context.Context, replacement *restorer.Replacement) error {
	verify := replacement.Verify
	if r.Offline != nil {
		verify = replacement.VerifyPlaced
		if err := r.takeOffline(ctx, replacement); err != nil {
			return err
		}
	}
	r.progress(Progress{Phase: PhaseSwap})
	if err := replacement.Swap(ctx); err != nil {
		return wrapStep("swap", r.DatabasePath, err)
	}
	r.progress(Progress{Phase: PhaseVerify, TotalFiles: replacement.Files, TotalBytes: replacement.Bytes})
	return wrapStep("verify", r.DatabasePath, verify(ctx))
}

// takeOffline compares what was staged with the snapshot, and calls Offline. Then
// nobody may have the store open any more.
func (r *restore) takeOffline(ctx context.Context, replacement *restorer.Replacement) (err error) {
	r.progress(Progress{Phase: PhaseVerify, TotalFiles: replacement.Files, TotalBytes: replacement.Bytes})
	if err := replacement.Inspect(ctx); err != nil {
		return wrapStep("verify", r.DatabasePath, err)
	}
	if err := ctx.Err(); err != nil {
		return wrapStep("swap", r.DatabasePath, err)
	}
	r.progress(Progress{Phase: PhaseOffline})
	if err := r.users.Leave(ctx, r.Offline); err != nil {
		return err
	}
	if err := replacement.CheckUnchanged(); err != nil {
		return wrapStep("swap", r.DatabasePath, err)
	}
	return r.lockParts(ctx, true)
}

// handOver lets a store that was taken offline be used again. From here on no
// file of the new store may be touched, and nobody is kept waiting.
func (r *restore) handOver(ctx context.Context, replacement *restorer.Replacement) error {
	if r.Offline == nil {
		return nil
	}
	replacement.HandOver()
	r.unlockLive() // of a file that was overwritten in place, it is that of the new one
	err := r.users.Return(ctx)
	r.release()
	return err
}

// release ends the guard, once. A restore that is done stays done if the host's
// function panics.
func (r *restore) release() {
	unlock := r.unlock
	if r.unlock = nil; unlock == nil {
		return
	}
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
		r.users.Broken = fmt.Errorf("%w: undo: %w", ErrRestoreUnfinished, err)
		return r.users.Broken
	}
	if len(setAside) > 0 {
		r.log.Warn("live_files_set_aside", "paths", strings.Join(setAside, ", "))
		return fmt.Errorf("what was in place was not what had been staged: it is in %s", strings.Join(setAside, ", "))
	}
	return nil
}

// finish completes the cost of a restore that is done, and logs and reports it. A
// Logger that panics does not undo that, so an error would be wrong.
func (r *restore) finish(began time.Time) {
	defer r.finishProgress()
	defer func() { _ = recover() }() // of the Clock, too
	res := &r.result
	res.Cost = Cost{Duration: r.since(began), Guarded: r.guarded, Files: res.Files, Bytes: res.Bytes}
	r.log.Info("runtime_backup_restored", "stamp", res.Stamp, "safety_stamp", res.SafetyStamp,
		"files", res.Files, "bytes", res.Bytes, "parts", describeParts(r.plan), "mixed", res.Mixed, "cost", res.Cost.value())
}

// finishResult completes the rest of the result, and returns nil.
func (r *restore) finishResult(replacement *restorer.Replacement, setAside []string) error {
	r.result.Files, r.result.Bytes = replacement.Files, replacement.Bytes
	r.result.SetAside = append(r.result.SetAside, setAside...)
	for i := range r.plan {
		r.plan[i].Owners = replacement.Owners(partDirs[r.plan[i].Part])
	}
	r.result.setParts(r.plan)
	return nil
}

// openSnapshot validates the snapshot and reads which files it has. It returns
// the snapshot's directory; until that is closed, nobody removes the snapshot.
func (r *restore) openSnapshot(ctx context.Context) (*fsat.Dir, error) {
	r.planFor = func(m *Metadata) { r.planSteps(ctx, m) }
	report, err := validate(ctx, r.settings, r.result.Stamp)
	r.planFor = nil
	if r.RecordVerdicts && report != nil {
		r.recordVerdict(ctx, report)
	}
	if err = r.despiteFindings(report, err); err != nil {
		return nil, err
	}
	if r.meta = report.Metadata; !r.empty && !r.FromOtherStore && !r.owner()(r.meta) {
		return nil, fmt.Errorf("%w, %s, and would replace this one", ErrOtherStore, r.meta.store())
	}
	if err := r.chooseParts(); err != nil {
		return nil, err
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

// chooseParts decides which parts are restored.
func (r *restore) chooseParts() error {
	has := r.meta.parts()
	if r.parts = cmp.Or(r.Parts, has); r.parts&^has != 0 {
		return fmt.Errorf("%w: parts are asked for that the snapshot does not have: %s", ErrInvalidOptions, r.parts&^has)
	}
	for _, p := range []struct {
		part        Parts
		name, given string
	}{{PartRegistry, "registry", r.RegistryPath}, {PartChroma, "Chroma directory", r.ChromaPath}} {
		if r.parts&p.part != 0 && p.given == "" {
			return fmt.Errorf("%w: the path of the %s is empty, and the snapshot has that part", ErrInvalidOptions, p.name)
		}
	}
	if r.parts&PartChroma != 0 {
		return r.checkChromaLink()
	}
	return nil
}

// planReplacement prepares replacing the store by the snapshot: the parts that
// differ from it. It touches nothing.
func (r *restore) planReplacement(ctx context.Context, snapshot *fsat.Dir) (*restorer.Replacement, error) {
	p := &restorer.Replacement{
		Stamp:     r.result.Stamp,
		BackupDir: r.BackupDir,
		Started:   truncateToMicroseconds(r.Clock.Now()),
		Snapshot:  snapshot,
		Contents:  r.contents,
		Warn:      r.warn,
		NotKept:   r.notKept,
		Broken:    r.DespiteFindings,
		Undone:    func() { r.dropOwnSafety(ctx) },
		Unlock:    r.unlockLive,
		OnStage: func(path string, files, bytes int64) {
			r.progress(Progress{Phase: PhaseStage, Path: path, Files: files, Bytes: bytes})
		},
	}
	p.OnVerify = func(path string, files, bytes int64) {
		r.progress(Progress{Phase: PhaseVerify, Path: path, Files: files, TotalFiles: p.Files, Bytes: bytes, TotalBytes: p.Bytes})
	}
	from, err := placesIn(r.meta)
	if err != nil {
		return nil, err
	}
	p.Choose(from, r.livePlaces(), func(part string) bool { return r.parts&partCalled(part) != 0 })
	var equal []string
	if !r.empty && r.Offline == nil { // its users may write to what is equal, and hold locks on it
		r.progress(Progress{Phase: PhaseCompare})
		if equal, err = p.LeaveEqual(ctx, r.source); err != nil {
			return nil, err
		}
	}
	return p, r.decide(ctx, p, equal)
}

// decide makes the plan, refuses what can't be done, and asks the host.
func (r *restore) decide(ctx context.Context, p *restorer.Replacement, equal []string) error {
	r.plan = r.planOf(p, equal)
	obstacles, err := p.Obstacles(ctx)
	if err != nil {
		return err
	}
	if len(obstacles) > 0 && p.From != (restorer.Places{}) {
		return r.cannotReplace(obstacles)
	}
	r.log.Info("restore_planned", "stamp", r.result.Stamp, "parts", describeParts(r.plan))
	if r.Confirm == nil {
		return nil
	}
	return r.Confirm(ctx, slices.Clone(r.plan))
}

// planOf says what happens to each part.
func (r *restore) planOf(p *restorer.Replacement, equal []string) (plan []RestorePart) {
	for _, part := range []struct{ name, path string }{
		{format.DBDir, r.DatabasePath}, {format.ConfigDir, r.RegistryPath}, {format.ChromaDir, r.ChromaPath},
	} {
		of := RestorePart{Part: partCalled(part.name), Path: part.path}
		switch {
		case r.meta.parts()&of.Part == 0:
			of.Action = ActionAbsent
		case r.parts&of.Part == 0:
			of.Action = ActionLeaveOut
		case slices.Contains(equal, part.name):
			of.Action = ActionEqual
		default:
			of.Action = RestoreAction(p.Target(part.name))
		}
		plan = append(plan, of)
	}
	return plan
}

// notKept records what could not be kept of a file that is replaced.
func (r *restore) notKept(part, what, path string, reason error) {
	r.warn(what, path, reason)
	for i := range r.plan {
		if r.plan[i].Part == partCalled(part) {
			r.plan[i].NotKept = append(r.plan[i].NotKept, filetree.DescribeNotKept(what, path, reason))
		}
	}
}
