package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
	"github.com/atocore/backup/internal/registry"
	"github.com/atocore/backup/internal/restorer"
	"github.com/atocore/backup/internal/sqlitedb"
)

// The capture: the live store is copied into staging, the database first, then
// the registry, then the Chroma directory, all under the ingestion guard if the
// Chroma directory is included.

// workDir is the directory in staging in which the database copy is made. In db/,
// a name of a working file could be the name of the database.
const workDir = "capture"

// SyncLocker returns a [Locker] for a mutex that every writer to the Chroma
// directory holds. It gets the mutex when l.Lock would: a [sync.Mutex] or
// [sync.RWMutex] is handed over to those that wait in Lock, however busy it is.
//
// A wait in l.Lock cannot be cancelled. If ctx ends first, the Locker returns
// ctx's error at once, but leaves a goroutine that waits for l and unlocks it
// immediately. It ends when l is free, and until then a sync.RWMutex admits no
// new readers. No other goroutine of this package outlasts its call. A channel as
// the guard leaves nothing; see the example of [Locker]. Use one in a bubble of
// [testing/synctest], too: a goroutine that waits for a mutex is not durably
// blocked there, so if the one that holds it sleeps, time stands still.
//
// l.Lock may run on another goroutine than l.Unlock. If l has a TryLock method,
// a mutex that is free is locked without a goroutine.
func SyncLocker(l sync.Locker) Locker {
	return LockerFunc(func(ctx context.Context) (func(), error) {
		if err := poll.Lock(ctx, l); err != nil {
			return nil, err
		}
		return l.Unlock, nil
	})
}

// captureUnderGuard holds the ingestion guard, if the Chroma directory is
// included, exactly as long as the live store is being read. It waits for a busy
// database without the guard, because ingestion stands still while that is held.
func (s *settings) captureUnderGuard(ctx context.Context, st *backupdir.Staging, c *capture, safety *safety) error {
	waiting, cancel := s.bounded(ctx)
	defer cancel()
	if (safety == nil || s.Offline != nil) && s.DB == nil && s.Capture == nil {
		if library := sqlitedb.OtherLibrary(s.DatabasePath); library != "" {
			s.log.Warn("database_open_by_another_sqlite", "path", s.DatabasePath, "library", library,
				"reason", "this process has the database open already; if by that library, its locks are lost: set Options.DB or Options.Capture")
		}
	}
	database := s.databaseCapture(safety)
	defer database.Close()
	said := false
	onBusy := func() {
		if !said {
			said = true
			s.log.Info("waiting_for_database", "path", s.DatabasePath)
		}
		s.progress(Progress{Phase: PhaseWait, Path: s.DatabasePath})
	}
	for {
		if err := database.Ready(waiting, onBusy); err != nil {
			if s.waitEnded(ctx, waiting) && errors.Is(err, waiting.Err()) {
				err = fmt.Errorf("%w: somebody has it locked, in a transaction or in exclusive locking mode, so that it could not be read for %s", ErrDatabaseInUse, s.Wait)
			}
			return wrapStep("capture database", s.DatabasePath, err)
		}
		err := s.captureOnce(ctx, waiting, st, c, database)
		if !errors.Is(err, sqlitedb.ErrBusy) {
			return err
		}
		if err := st.RemoveDir(ctx, workDir); err != nil {
			return wrapStep("capture database", s.DatabasePath, err)
		}
		onBusy()
		_ = poll.Sleep(waiting, 50*time.Millisecond) // Ready returns the error
	}
}

// captureOnce copies the live store under the guard. The error matches
// sqlitedb.ErrBusy if the database became busy again before it was held.
func (s *settings) captureOnce(ctx, waiting context.Context, st *backupdir.Staging, c *capture, database *sqlitedb.Capture) error {
	if s.IncludeChroma {
		unlock, err := s.takeGuardWithin(ctx, waiting)
		if err != nil {
			return err
		}
		defer unlock()
	}
	return s.captureStore(ctx, st, c, database)
}

// bounded returns a context for waiting, which ends with ctx or after
// Options.Wait.
func (s *settings) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.Wait == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.Wait)
}

// waitEnded reports whether it is Options.Wait that ended waiting, and not ctx.
func (s *settings) waitEnded(ctx, waiting context.Context) bool {
	return waiting.Err() != nil && ctx.Err() == nil
}

// takeGuard takes the ingestion guard, if there is one.
func (s *settings) takeGuard(ctx context.Context) (unlock func(), err error) {
	waiting, cancel := s.bounded(ctx)
	defer cancel()
	return s.takeGuardWithin(ctx, waiting)
}

// takeGuardWithin is takeGuard and waits no longer than until waiting ends.
func (s *settings) takeGuardWithin(ctx, waiting context.Context) (unlock func(), err error) {
	if s.Locker == nil {
		return func() {}, nil
	}
	s.progress(Progress{Phase: PhaseGuard})
	var began time.Time
	release, err := poll.Take(ctx, waiting, s.Locker.Lock, func() { began = s.Clock.Now() })
	if s.waitEnded(ctx, waiting) && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("it was not free for %s: %w", s.Wait, context.DeadlineExceeded)
	}
	if err != nil {
		return nil, fmt.Errorf("take ingestion guard: %w", err)
	}
	return func() {
		release()
		s.guarded += s.since(began)
	}, nil
}

// captureStore copies the live store into staging.
func (s *settings) captureStore(ctx context.Context, st *backupdir.Staging, c *capture, database *sqlitedb.Capture) error {
	if err := ctx.Err(); err != nil {
		return wrapStep("capture", s.DatabasePath, err)
	}
	s.progress(Progress{Phase: PhaseDatabase, Path: s.DatabasePath})
	err := st.In(workDir, func(dir *fsat.Dir) (err error) {
		c.db, err = database.CopyTo(ctx, dir)
		return err
	})
	if err != nil {
		return wrapStep("capture database", s.DatabasePath, err)
	}
	database.Close() // its lock on the live database would be in the way of others
	c.paths.db = filepath.Join(format.DBDir, filepath.Base(s.DatabasePath))

	s.progress(Progress{Phase: PhaseRegistry, Path: s.RegistryPath})
	if err := st.Mkdir(format.ConfigDir, 0o700); err != nil {
		return wrapStep("capture registry", s.RegistryPath, err)
	}
	if err := s.captureRegistry(ctx, st, c); err != nil {
		return err
	}

	if s.IncludeChroma {
		s.progress(Progress{Phase: PhaseChroma, Path: s.ChromaPath})
		if c.chroma, err = s.captureChroma(ctx, st, &c.unkept); err != nil {
			return wrapStep("capture Chroma directory", s.ChromaPath, err)
		}
		if c.chroma != nil {
			c.paths.chroma = format.ChromaDir
		}
	}
	if s.RegistryPath != "" && c.paths.registry == "" {
		// Once more, if somebody was just replacing it.
		if err := s.captureRegistry(ctx, st, c); err != nil {
			return err
		}
		if c.paths.registry == "" {
			s.log.Info("registry_snapshot_skipped_missing", "path", s.RegistryPath)
		}
	}
	c.unkept.Each(func(message string, err error) { s.log.Warn(message, "path", s.BackupDir, "reason", err.Error()) })
	s.meter.Flush() // reports of the capture do not come after the guard is released
	return nil
}

func (s *settings) databaseCapture(safety *safety) *sqlitedb.Capture {
	c := &sqlitedb.Capture{
		Path:   s.DatabasePath,
		Handle: s.DB,
		Write:  s.Capture,
		Online: s.OnlineBackup,
		// While the guard is held, the CPUs should only copy.
		Hash: !s.IncludeChroma,
		Progress: func(done, total int64) {
			s.progress(Progress{Phase: PhaseDatabase, Path: s.DatabasePath, Bytes: done, TotalBytes: total})
		},
	}
	if safety != nil {
		c.Source = safety.source
	}
	return c
}

// captureRegistry copies the registry into config/, if there is one now.
func (s *settings) captureRegistry(ctx context.Context, st *backupdir.Staging, c *capture) error {
	if s.RegistryPath == "" {
		return nil
	}
	dir, err := st.OpenDir(format.ConfigDir)
	if err != nil {
		return wrapStep("capture registry", s.RegistryPath, err)
	}
	defer dir.Close()
	size, ok, fault, err := registry.Copy(ctx, s.RegistryPath, dir, &c.unkept)
	if fault != "" {
		// The snapshot is not valid then, and says so; the rest of it is good.
		s.log.Warn("registry_is_not_json", "path", s.RegistryPath, "reason", fault)
	}
	if err != nil {
		return wrapStep("capture registry", s.RegistryPath, err)
	}
	if ok {
		c.registryBytes = size
		c.paths.registry = filepath.Join(format.ConfigDir, filepath.Base(s.RegistryPath))
	}
	return nil
}

// captureChroma copies the whole Chroma directory into staging. It filters
// nothing by name: the layout is Chroma's own affair, and after a purge the
// vectors are in the segment files only. It returns nil if there is no Chroma
// directory.
func (s *settings) captureChroma(ctx context.Context, st *backupdir.Staging, unkept *fsat.Unkept) (copied *filetree.Copied, err error) {
	src, err := s.openChroma(ctx)
	if src == nil {
		return nil, err
	}
	defer src.Close()
	backupDir, err := fsat.Stat(s.BackupDir)
	if err != nil {
		return nil, err
	}
	err = st.In(format.ChromaDir, func(dst *fsat.Dir) error {
		copied, err = filetree.Copy(ctx, src, dst, filetree.CopyOptions{
			KeepSums:  true,
			Skip:      restorer.IsNoPartOfChroma,
			Unkept:    unkept,
			Outside:   backupDir,
			Forbidden: sqlitedb.FilesOf(s.DatabasePath).Contains,
			Kept:      sqlitedb.KeepOpen(filepath.Join(src.Path(), format.ChromaDBName)),
			Progress: func(path string, files, bytes int64) {
				s.progress(Progress{Phase: PhaseChroma, Path: path, Files: files, Bytes: bytes})
			},
		})
		return err
	})
	return copied, err
}

// openChroma opens the Chroma directory. It returns nil if there is none.
func (s *settings) openChroma(ctx context.Context) (dir *fsat.Dir, err error) {
	// It may be missing only because it is being replaced.
	err = poll.Again(ctx, 3, 5*time.Millisecond, 20*time.Millisecond, fs.ErrNotExist, func() (err error) {
		dir, err = fsat.OpenDir(s.ChromaPath)
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	if err := s.checkChromaLink(); err != nil {
		return nil, err
	}
	s.log.Info("chroma_snapshot_skipped_missing", "path", s.ChromaPath)
	return nil, nil
}

// checkChromaLink returns an error that matches fs.ErrNotExist if ChromaPath is a
// symbolic link whose target is missing: a volume that is not mounted, for
// example. Such a directory must be taken neither for an empty one nor for one
// that may be created.
func (s *settings) checkChromaLink() error {
	_, err := fsat.Stat(s.ChromaPath)
	if link, linkErr := fsat.IsSymlink(s.ChromaPath); linkErr == nil && link && errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lockLive makes sure that nobody has the parts open, as far as they are
// databases or have one, and locks the live database exclusively if it is one of
// them. A file that is not a database, or that the disk cannot read, cannot be
// locked and is skipped. The error names the database that is in use.
func (r *restore) lockLive(ctx context.Context, parts Parts) error {
	database, chroma := fsat.RealPath(r.DatabasePath), filepath.Join(r.ChromaPath, format.ChromaDBName)
	if parts&PartDatabase != 0 {
		if err := sqlitedb.CheckNotOpen(ctx, database); err != nil {
			return wrapStep("lock database", r.DatabasePath, err)
		}
	}
	if parts&PartChroma != 0 {
		if err := sqlitedb.CheckNotOpen(ctx, chroma); err != nil {
			return wrapStep("lock Chroma directory", r.ChromaPath, err)
		}
	}
	if parts&PartDatabase == 0 {
		return nil
	}
	source, err := sqlitedb.Lock(ctx, database)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrSourceInvalid) || errors.Is(err, syscall.EISDIR) {
		return nil
	}
	if err != nil {
		if o := restorer.DatabaseObstacle(database); o.Err != nil { // SQLite's words would not name it
			return r.cannotReplace([]restorer.Obstacle{o})
		}
		return wrapStep("lock database", r.DatabasePath, err)
	}
	r.source = source
	return nil
}

func (r *restore) unlockLive() {
	if r.source != nil {
		r.source.Close()
		r.source = nil
	}
	sqlitedb.CloseUnlinked() // the old database may have been removed
}

// safety is what a create has to know if it takes the safety snapshot of a
// restore.
type safety struct {
	source *sqlitedb.Source // the live database, if the restore has locked it
	of     string           // the stamp of the snapshot that is restored
}

// takeSafety takes a snapshot of the store that is about to be replaced, of the
// parts that are left alone, too. If the store is too broken for that, takeSafety
// decides that what is replaced is set aside.
func (r *restore) takeSafety(ctx context.Context, backupDir *fsat.Dir, replacement *restorer.Replacement) error {
	if r.empty {
		return nil
	}
	err := ErrSourceInvalid
	if r.source != nil || r.Offline != nil || r.parts&PartDatabase == 0 { // there is a database, and SQLite can read it, as far as that is known
		var made *Metadata
		if made, err = r.createSafety(ctx); err == nil {
			r.result.SafetyStamp = made.Stamp
			var report *Report
			if report, err = validate(ctx, r.settings, made.Stamp); err == nil || report != nil && report.Intact {
				return wrapJournal(replacement.Saved(made.Stamp, r.Offline != nil))
			}
			if removeErr := backupdir.RemoveStamp(ctx, backupDir, made.Stamp); removeErr != nil {
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

// createSafety works like CreateRuntimeBackup. Without a Chroma directory in the
// snapshot that is restored, its own has none either.
func (r *restore) createSafety(ctx context.Context) (_ *Metadata, err error) {
	defer wrapCall(&err, "create backup")
	opts := r.Options
	opts.Locker, opts.InitDB = nil, nil // the guard is held already
	if r.parts&PartDatabase != 0 && r.Offline == nil {
		opts.Capture = nil // the database is locked, and nobody else has it open
	}
	opts.IncludeChroma = r.meta.ChromaSnapshotPath != "" && r.ChromaPath != ""
	s, err := opts.resolve(ctx, true)
	if err != nil {
		return nil, err
	}
	s.meter = r.meter
	return create(ctx, &s, &safety{source: r.source, of: r.result.Stamp})
}

// dropOwnSafety removes the safety snapshot of a restore that failed: the store
// that it has is live again.
func (r *restore) dropOwnSafety(ctx context.Context) {
	if r.result.SafetyStamp != "" {
		r.dropSafety(ctx, r.BackupDir, r.result.SafetyStamp)
		r.result.SafetyStamp = ""
	}
}

// dropSafety removes a safety snapshot that nobody needs.
func (r *restore) dropSafety(ctx context.Context, backupDir, stamp string) {
	dir, err := fsat.OpenDir(backupDir)
	if err == nil {
		err = backupdir.RemoveStamp(context.WithoutCancel(ctx), dir, stamp)
		dir.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.warn("safety_snapshot_left", filepath.Join(backupDir, format.SnapshotsName, stamp), err)
	}
}

// dropSafetyOf removes the safety snapshot of a restore that was undone, if the
// store that it has is the live one again. If somebody has written to the live
// store since, or has damaged it, the snapshot may be the only copy.
func (r *restore) dropSafetyOf(ctx context.Context, journal *restorer.Journal) {
	saved := *r.settings
	saved.BackupDir = journal.BackupDir
	list, err := saved.list(ctx)
	if err != nil {
		return
	}
	for _, snapshot := range list {
		m := snapshot.Metadata
		switch {
		case m == nil:
			continue
		case journal.Safety() != "":
			if snapshot.Stamp != journal.Safety() {
				continue
			}
		// It may have been made and not recorded any more.
		case m.SafetyOf != journal.Stamp, m.CreatedAt.Before(journal.Started):
			continue
		}
		if live, err := r.isLive(ctx, &saved, snapshot); live {
			r.dropSafety(ctx, saved.BackupDir, snapshot.Stamp)
		} else {
			r.warn("safety_snapshot_left", snapshot.Path, err)
		}
	}
}
