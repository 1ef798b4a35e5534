package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/atocore/backup/internal/fsat"
)

// RestoreResult tells what a restore did.
type RestoreResult struct {
	// Stamp is the snapshot that was restored.
	Stamp string
	// SafetyStamp is the snapshot that was taken of the store before; empty if
	// there was nothing, or if SetAside has it.
	SafetyStamp string
	// SetAside are the directories into which the old parts of a store were
	// moved that could not be snapshotted. They are yours to remove.
	SetAside []string
	// DatabasePath, RegistryPath and ChromaPath are where the parts were put;
	// empty for what the snapshot does not have, which was left alone.
	DatabasePath, RegistryPath, ChromaPath string
	// Files and Bytes count what was restored.
	Files, Bytes int64
	// Recovered tells of an earlier restore that had been cut off: "finished"
	// or "undone" before this one began. It is empty if there was none.
	Recovered string
}

// MarshalJSON gives the result as the command prints it.
func (r RestoreResult) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"stamp":%s,"safety_stamp":%s,"set_aside":[`, quoteASCII(r.Stamp), quoteASCII(r.SafetyStamp))
	for i, path := range r.SetAside {
		fmt.Fprintf(&b, `%s%s`, comma(i), quoteASCII(path))
	}
	fmt.Fprintf(&b, `],"db_path":%s,"registry_path":%s,"chroma_path":%s,"files":%d,"bytes":%d,"recovered":%s}`,
		quoteASCII(r.DatabasePath), quoteASCII(r.RegistryPath), quoteASCII(r.ChromaPath), r.Files, r.Bytes, quoteASCII(r.Recovered))
	return b.Bytes(), nil
}

// RestoreRuntimeBackup puts the snapshot named stamp back to the paths in opts,
// each part that it has: database, registry and Chroma directory. A part that
// the snapshot lacks is left alone. The paths may be empty places, too.
//
// The snapshot is validated first, as [ValidateBackup] does, and nothing is
// restored of one that is not valid. Then a snapshot is taken of what is there
// now, whose stamp the result tells, so that no restore loses anything; a store
// too broken for that is moved aside whole. What was restored is compared with
// the snapshot's hashes before the old store is given up.
//
// The store is wholly old or wholly new afterwards. A restore that is cut off,
// at any point, is finished or undone by the next call with the same paths;
// until then every function returns [ErrRestoreUnfinished].
//
// Nobody may have the database open: [ErrDatabaseInUse]. Any connection to a
// database in WAL mode is noticed, and any transaction on another one. An idle
// connection to a rollback-journal database holds no lock; on Linux it is found
// if this process may look into the one that has it. The same goes for whoever
// has the live chroma.sqlite3 open. opts.Locker, if it is set, is held from
// before the safety snapshot until all is in place. opts.DB must be nil.
//
// A Chroma directory that is a mount point or a symbolic link stays one: its
// contents are replaced. So does a database or registry that is a symbolic
// link. The database gets the mode of the one it replaces; all else has modes
// and times of the snapshot. A process of the superuser gives what it restores
// to the owner of what it replaces. If the snapshot is of format 1, the
// database is in rollback-journal mode until the host sets another one.
//
// The cost is validating the snapshot, a create (and validating that), one copy
// of the snapshot on the file systems of the live store, and reading it once
// more. ctx is heeded until parts begin to change places, and again while the
// result is compared.
//
// Errors: [ErrInvalidOptions], [ErrInvalidBackup] (nothing was touched),
// [ErrDatabaseInUse], [ErrBusy], [ErrRestoreUnfinished] if an earlier restore
// had other paths or this one could not be undone, [ErrPanic], ctx's error, or
// what creating a snapshot returns. The store is as before then, but for
// ErrRestoreUnfinished.
func RestoreRuntimeBackup(ctx context.Context, opts Options, stamp string) (result *RestoreResult, err error) {
	defer func() {
		if err != nil {
			result, err = nil, fmt.Errorf("restore backup %q: %w", stamp, err)
		}
	}()
	defer recoverTo(&err)

	// 1. Check the options.
	s, err := opts.resolve(true)
	if err != nil {
		return nil, err
	}
	if err := s.checkRestore(); err != nil {
		return nil, err
	}
	r := &restore{settings: &s, result: RestoreResult{Stamp: stamp}}

	// 2. Keep creates, prunes and other restores away, and deal with a restore
	// that was cut off.
	backupDir, err := r.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer backupDir.Close()

	// 3. Validate the snapshot and keep it from being removed.
	snapshot, err := r.openSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()

	// 4. Take the guard, and lock everybody out of the live database.
	unlock, err := s.takeGuard(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := r.lockLive(ctx); err != nil {
		return nil, step("lock database", s.DatabasePath, err)
	}
	defer r.unlockLive()

	// 5. Take a snapshot of what is there.
	if err := r.takeSafety(ctx, backupDir); err != nil {
		return nil, err
	}

	// 6. Copy the snapshot beside the live store. From here on a journal tells
	// what to do if this is cut off.
	if err := r.beginJournal(backupDir, snapshot); err != nil {
		return nil, step("write journal", journalName, err)
	}
	defer func() {
		if uerr := r.leave(); uerr != nil {
			err = errors.Join(err, uerr)
		}
	}()
	if err := r.stage(ctx, snapshot); err != nil {
		return nil, step("stage", s.DatabasePath, err)
	}

	// 7. Let old and new change places, and compare the new with the snapshot.
	if err := r.swap(ctx); err != nil {
		return nil, step("swap", s.DatabasePath, err)
	}
	if err := r.verify(ctx); err != nil {
		return nil, step("verify", s.DatabasePath, err)
	}

	// 8. Give up the old store, or set it aside.
	if err := r.journal.reach(journalDone); err != nil {
		return nil, step("write journal", r.journal.path(), err)
	}
	if err := r.finish(); err != nil {
		return nil, fmt.Errorf("%w: the new store is in place: %w", ErrRestoreUnfinished, err)
	}
	r.logRestored()
	return &r.result, nil
}

// logRestored tells of a restore that is done. A Logger that panics does not
// undo it, so an error would be wrong.
func (r *restore) logRestored() {
	defer func() { _ = recover() }()
	r.log.Info("runtime_backup_restored", "stamp", r.result.Stamp, "safety_stamp", r.result.SafetyStamp,
		"files", r.result.Files, "bytes", r.result.Bytes)
}

// A restore is one call's work.
type restore struct {
	*settings
	result   RestoreResult
	setAside bool
	meta     *Metadata
	expected []manifestEntry // what the snapshot holds, in the order of the paths
	empty    bool            // there is nothing at any of the paths
	live     *pinnedSource   // the live database, locked; nil if there is none or it cannot be
	journal  *restoreJournal
	fresh    *pinnedSource // the new database, locked
	freshDB  *fsat.File    // the same, to be read
}

// safety is what a create needs to know that runs within a restore.
type safety struct {
	db *pinnedSource
	of string
}

// checkRestore refuses what a restore alone cannot work with.
func (s *settings) checkRestore() error {
	var faults []error
	if s.DB != nil {
		faults = append(faults, errors.New("DB is set: a database is restored while nobody has it open"))
	}
	if s.RegistryPath != "" {
		registry := realPath(s.RegistryPath)
		if s.ChromaPath != "" && within(registry, realPath(s.ChromaPath)) {
			faults = append(faults, fmt.Errorf("RegistryPath %s lies inside ChromaPath %s", s.RegistryPath, s.ChromaPath))
		}
		database := realPath(s.DatabasePath)
		for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
			if registry == database+suffix {
				faults = append(faults, fmt.Errorf("RegistryPath %s is the database file %s", s.RegistryPath, database+suffix))
			}
		}
	}
	for _, p := range []string{s.DatabasePath, s.RegistryPath, s.ChromaPath} {
		if p != "" && within(realPath(p), filepath.Join(realPath(s.BackupDir), snapshotsName)) {
			faults = append(faults, fmt.Errorf("%s lies among the snapshots", p))
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("%w: %w", ErrInvalidOptions, errors.Join(faults...))
	}
	return nil
}

// enter takes the restore's part in the backup directory, which is a create's
// if there is nothing to be replaced, and deals with what an earlier restore
// left.
func (r *restore) enter(ctx context.Context) (*fsat.Dir, error) {
	var err error
	if r.empty, err = r.nothingThere(); err != nil {
		return nil, err
	}
	if r.empty {
		return r.enterBackupDir()
	}
	dir, err := fsat.OpenDir(r.BackupDir)
	if err != nil {
		return nil, err
	}
	if err := dir.TryLock(); errors.Is(err, fsat.ErrLocked) {
		dir.Close()
		return nil, fmt.Errorf("%w: a create, a prune or another restore is at work in %s", ErrBusy, r.BackupDir)
	}
	for _, path := range r.journalPaths() {
		if err := r.settle(ctx, path); err != nil {
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

// nothingThere tells whether neither a store nor a journal is at the paths.
func (r *restore) nothingThere() (bool, error) {
	database := realPath(r.DatabasePath)
	paths := append(r.journalPaths(), database, database+"-wal", database+"-journal")
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
	return r.ChromaPath == "" || !hasEntries(r.ChromaPath), nil
}

func hasEntries(path string) bool {
	dir, err := fsat.OpenDir(path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer dir.Close()
	entries, err := dir.ReadDir()
	return err != nil || len(entries) > 0
}

// settle finishes or undoes the restore whose journal is at path, if there is
// one.
func (r *restore) settle(ctx context.Context, path string) (err error) {
	j, err := readJournal(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRestoreUnfinished, err)
	}
	if j == nil {
		return nil
	}
	defer j.dir.Close()
	if j.state == journalEmpty {
		return j.end()
	}
	// The journal lies among backups, which are untrusted. It moves files only
	// where the host itself wants them moved.
	for _, p := range []struct{ recorded, given string }{
		{j.database, r.DatabasePath}, {j.registry, r.RegistryPath}, {j.chroma, r.ChromaPath},
	} {
		if p.recorded != "" && (p.given == "" || realPath(p.given) != p.recorded) {
			return fmt.Errorf("%w: %s is about %s, so call with that path first", ErrRestoreUnfinished, path, p.recorded)
		}
	}
	unlock, err := r.takeGuard(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	r.journal = j
	defer func() { r.journal = nil }()
	if j.state == journalDone {
		r.result.Recovered = "finished"
		if err := r.finish(); err != nil {
			return fmt.Errorf("%w: %w", ErrRestoreUnfinished, err)
		}
		return nil
	}
	r.result.Recovered = "undone"
	if j.state == journalSwapping {
		// Whoever opened the store meanwhile must close it first.
		if err := r.lockLive(ctx); err != nil {
			return fmt.Errorf("%w: %w", ErrRestoreUnfinished, err)
		}
		defer r.unlockLive()
	}
	if err := j.rollBack(); err != nil {
		return fmt.Errorf("%w: undo: %w", ErrRestoreUnfinished, err)
	}
	return nil
}

// openSnapshot validates the snapshot and reads what it should hold. The
// directory that it returns keeps the snapshot from being removed.
func (r *restore) openSnapshot(ctx context.Context) (*fsat.Dir, error) {
	report, err := r.validate(ctx, r.result.Stamp)
	if err != nil {
		return nil, err
	}
	r.meta = report.Metadata
	for _, p := range []struct{ name, given, recorded string }{
		{"RegistryPath", r.RegistryPath, r.meta.RegistrySnapshotPath},
		{"ChromaPath", r.ChromaPath, r.meta.ChromaSnapshotPath},
	} {
		if p.recorded != "" && p.given == "" {
			return nil, fmt.Errorf("%w: %s is empty, and the snapshot has that part", ErrInvalidOptions, p.name)
		}
	}
	root, err := openSnapshots(r.BackupDir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir, err := root.OpenDir(r.result.Stamp)
	if err != nil {
		return nil, err
	}
	gone, err := holdSnapshot(ctx, root, dir, r.result.Stamp)
	if err == nil && gone {
		err = &fs.PathError{Op: "open", Path: dir.Path(), Err: fs.ErrNotExist}
	}
	if err == nil {
		r.expected, err = r.contents(ctx, dir)
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// contents gives the hashes of the snapshot's files: those of its manifest, or,
// of one that the Python module made, of the files themselves.
func (r *restore) contents(ctx context.Context, dir *fsat.Dir) (entries []manifestEntry, err error) {
	f, err := dir.Open(manifestName)
	if errors.Is(err, fs.ErrNotExist) {
		files := scan{root: dir, hash: true}
		err = files.run(ctx, func(f *scannedFile) error {
			if !f.isDir() && !f.irregular {
				entries = append(entries, manifestEntry{f.sum, f.path})
			}
			return nil
		})
		return entries, err
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for lines := newManifestReader(f); ; {
		entry, err := lines.next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
}

// lockLive keeps everybody out of the live database. One that is none cannot
// be locked.
func (r *restore) lockLive(ctx context.Context) error {
	database := realPath(r.DatabasePath)
	for _, file := range []string{database, filepath.Join(r.ChromaPath, chromaDBName)} {
		if err := refuseOpeners(file); err != nil {
			return err
		}
	}
	live, err := lockDatabase(ctx, database)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrSourceInvalid) || errors.Is(err, syscall.EISDIR) {
		return nil
	}
	r.live = live
	return err
}

func (r *restore) unlockLive() {
	if r.live != nil {
		r.live.Close()
		r.live = nil
	}
}

// takeSafety takes a snapshot of the store that is about to be replaced. If
// that cannot be, what is there will be set aside.
func (r *restore) takeSafety(ctx context.Context, backupDir *fsat.Dir) error {
	if r.empty {
		return nil
	}
	opts := r.Options
	opts.Locker, opts.InitDB = nil, nil
	opts.IncludeChroma = r.meta.ChromaSnapshotPath != ""
	opts.restoring = &safety{db: r.live, of: r.result.Stamp}
	err := ErrSourceInvalid
	var made *Metadata
	if r.live == nil {
		// There is none, or SQLite cannot read it.
	} else if made, err = CreateRuntimeBackup(ctx, opts); err == nil {
		if _, err = r.validate(ctx, made.Stamp); err == nil {
			r.result.SafetyStamp = made.Stamp
			return nil
		}
		if rerr := r.removeSafety(ctx, backupDir, made.Stamp); rerr != nil {
			return errors.Join(err, rerr)
		}
	}
	if ctx.Err() != nil || !cannotBeSnapshotted(err) {
		return fmt.Errorf("take safety snapshot: %w", err)
	}
	r.log.Warn("safety_snapshot_not_possible", "path", r.DatabasePath, "reason", err.Error())
	r.setAside = true
	return nil
}

// cannotBeSnapshotted tells of a store that is broken, or a backup directory
// that cannot be written to, for which there is a way without a snapshot.
func cannotBeSnapshotted(err error) bool {
	for _, reason := range []error{
		ErrSourceInvalid, ErrUnsupportedFile, ErrInvalidBackup, fs.ErrNotExist, fs.ErrPermission,
		syscall.EROFS, syscall.EIO,
	} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return sqliteCode(err) != 0
}

func (r *restore) removeSafety(ctx context.Context, backupDir *fsat.Dir, stamp string) error {
	root, err := backupDir.OpenDir(snapshotsName)
	if err != nil {
		return err
	}
	defer root.Close()
	return removeSnapshot(ctx, backupDir, root, stamp, func() {})
}
