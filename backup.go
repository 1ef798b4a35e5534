package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/pyjson"
	"github.com/atocore/backup/internal/restorer"
	"github.com/atocore/backup/internal/sqlitedb"
)

// syncFSFrom is the number of files from which one syncfs(2) is cheaper than
// an fsync(2) of each, many in flight. Below it fsync is preferred, because
// syncfs also waits for the data of all other writers.
const syncFSFrom = 1000

// CreateRuntimeBackup takes a snapshot of the machine store while it is in use
// and returns its metadata, with the Cost of the call. When it returns without
// an error, the snapshot is complete, visible in BackupDir/snapshots and
// durable: it survives a power cut. Otherwise no snapshot was made, nothing is
// left of the attempt, and the error names the step and the path. A process
// that dies leaves a staging directory, which is never mistaken for a snapshot;
// the next call removes it.
//
// The database is copied as it was at one moment, through a read transaction.
// Writers of a WAL database are never blocked; those of a rollback-journal
// database are blocked while it is copied. The Chroma directory, if asked for,
// is copied under opts.Locker together with the others, so that the three
// agree.
//
// Any number of calls may run at once, in any number of processes; each makes
// its own snapshot. Two in the same second get different stamps.
//
// ctx is checked between pieces of work of some milliseconds, and ends every
// wait, except that a sync already running in the kernel is waited for. InitDB
// and the guard receive ctx and must heed it themselves.
//
// A call costs one copy and one SHA-256 of the store, and the sync of the
// copy; the guard is held for the copy only. Without IncludeChroma, a database
// whose WAL is empty is hashed on a second CPU while it is copied. Memory
// stays at about 20 MB plus eight bytes for each file, whatever the size of
// the store.
//
// With Options.Verify the snapshot is validated in the same call, which costs
// what [ValidateBackup] costs. If it is not valid, the metadata are returned
// together with an error that matches [ErrInvalidBackup], and the snapshot
// stays.
//
// Errors to act on: [ErrInvalidOptions], [ErrSourceChanged],
// [ErrSourceInvalid], [ErrDatabaseInUse], [ErrUnsupportedFile], [ErrNoSpace],
// [ErrCrossDevice], [ErrBusy], [ErrRestoreUnfinished], [ErrPanic], fs.ErrNotExist for a
// missing database, ctx's error, and what InitDB or the guard returned.
func CreateRuntimeBackup(ctx context.Context, opts Options) (_ *Metadata, err error) {
	defer wrapCall(&err, "create backup")
	s, err := opts.resolve(ctx, true)
	if err != nil {
		return nil, err
	}
	meta, err := create(ctx, &s, nil)
	if err != nil {
		return nil, err
	}
	if err = s.afterCreate(ctx, meta); err == nil || errors.Is(err, ErrInvalidBackup) {
		s.finishProgress()
	}
	return meta, err
}

// create takes a snapshot. safety is not nil if it is the safety snapshot of a
// restore, which holds the backup directory and the database already. A panic
// of the host becomes an error here, where what could not be removed is known.
func create(ctx context.Context, s *settings, safety *safety) (_ *Metadata, err error) {
	defer errdefs.Recover(&err)

	// 1. Begin. The options were checked before.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.began = s.Clock.Now()
	s.progress(Progress{Phase: PhaseInit})

	// 2. Keep restores away, and remove what dead processes left.
	entered, enterErr := s.enterForCreate(ctx, safety)
	if enterErr != nil && !errors.Is(enterErr, fs.ErrNotExist) {
		return nil, wrapStep("enter backup directory", s.BackupDir, enterErr)
	}
	defer entered.Close()
	if _, err := backupdir.Reap(ctx, s.BackupDir, s.log); err != nil {
		return nil, wrapStep("clear old staging", s.BackupDir, err)
	}

	// 3. Let the host create its schema, and check the clock and the space.
	if err := s.initDatabase(ctx); err != nil {
		return nil, err
	}
	now, err := s.readClock()
	if err != nil {
		return nil, err
	}
	if err := s.checkSpace(ctx, safety == nil); err != nil {
		return nil, wrapStep("check free space", s.BackupDir, err)
	}

	// 4. Create staging, and the backup directory if this is its first snapshot.
	if entered == nil {
		if entered, err = s.makeBackupDir(ctx, safety); err != nil {
			return nil, err
		}
		defer entered.Close()
	}
	st, err := backupdir.NewStaging(s.BackupDir)
	if err != nil {
		return nil, wrapStep("make staging", s.BackupDir, err)
	}
	defer func() { err = errors.Join(err, discard(st)) }()

	// 5. Capture, under the guard if Chroma is included. 6. Release it.
	captured := new(capture)
	defer func() { captured.db.Discard() }() // after a panic of the host, too
	if err := s.captureUnderGuard(ctx, st, captured, safety); err != nil {
		return nil, err
	}

	// 7. Put the database copy into its final form.
	if err := s.sealDatabase(ctx, st, captured); err != nil {
		return nil, err
	}

	// 8. Hash and sync everything.
	manifest, err := s.hashAndSync(ctx, st, captured)
	if err != nil {
		return nil, wrapStep("hash and sync", st.PathOf(), err)
	}

	// 9. Write metadata and manifest, and publish.
	meta := captured.metadata(now)
	meta.SourceDBPath, meta.SourceHost = fsat.RealPath(s.DatabasePath), s.Host
	if safety != nil {
		meta.SafetyOf = safety.of
	}
	sum, err := s.publish(ctx, st, manifest, meta, captured.paths)
	if err != nil {
		return nil, wrapStep("publish", st.PathOf(), err)
	}
	meta.Cost = &Cost{Guarded: s.guarded, ManifestSHA256: sum}
	meta.Cost.Files, meta.Cost.Bytes = captured.total()
	s.logCreated(meta)
	return meta, nil
}

// discard removes staging, unless it was published.
func discard(st *backupdir.Staging) error {
	if err := st.Discard(); err != nil {
		return wrapStep("remove staging", st.PathOf(), err)
	}
	return nil
}

// makeBackupDir creates the backup directory and enters it.
func (s *settings) makeBackupDir(ctx context.Context, safety *safety) (*fsat.Dir, error) {
	if err := fsat.MkdirAll(s.BackupDir); err != nil {
		return nil, wrapStep("make backup directory", s.BackupDir, err)
	}
	entered, err := s.enterForCreate(ctx, safety)
	if err != nil {
		return nil, wrapStep("enter backup directory", s.BackupDir, err)
	}
	return entered, nil
}

// readClock returns the time of a snapshot that is made now.
func (s *settings) readClock() (time.Time, error) {
	now := truncateToMicroseconds(s.Clock.Now())
	if err := pyjson.CheckTime(now); err != nil {
		return now, fmt.Errorf("read the clock: %w", err)
	}
	return now, nil
}

// enterForCreate keeps restores away until the directory that it returns is
// closed. A restore that takes its safety snapshot has done that itself.
func (s *settings) enterForCreate(ctx context.Context, safety *safety) (*fsat.Dir, error) {
	if safety != nil {
		return fsat.OpenDir(s.BackupDir)
	}
	return s.enterBackupDir(ctx)
}

// logCreated logs a snapshot that is published. A Logger that panics does not
// undo that, so an error would be wrong.
func (s *settings) logCreated(meta *Metadata) {
	defer func() { _ = recover() }() // of the Clock, too
	meta.Cost.Duration = s.since(s.began)
	s.log.Info("runtime_backup_created",
		"stamp", meta.Stamp,
		"backup_root", meta.BackupRoot,
		"db_snapshot", meta.DBSnapshotPath,
		"db_bytes", meta.DBSizeBytes,
		"chroma_included", meta.ChromaSnapshotIncluded,
		"chroma_files", meta.ChromaSnapshotFiles,
		"chroma_bytes", meta.ChromaSnapshotBytes,
		"cost", meta.Cost.value())
	if meta.SafetyOf == "" {
		s.warnOfOtherStores(meta.Stamp)
	}
}

// initDatabase lets the host create its schema and makes sure that there is a
// database file then.
func (s *settings) initDatabase(ctx context.Context) error {
	if s.InitDB != nil {
		if err := s.InitDB(ctx); err != nil {
			return wrapStep("init database", s.DatabasePath, err)
		}
	}
	info, err := fsat.Stat(s.DatabasePath)
	switch {
	case s.Capture != nil, s.DB != nil && errors.Is(err, fs.ErrNotExist):
		return nil // it is only a name; if it is not, DB reports it
	case err != nil:
		return wrapStep("find database", s.DatabasePath, err)
	case !info.Mode.IsRegular():
		return wrapStep("find database", s.DatabasePath, &fs.PathError{Op: "open", Path: s.DatabasePath, Err: fsat.ErrNotRegular})
	}
	return nil
}

// checkSpace reports early that a snapshot cannot fit. It is an estimate:
// others write to the disk too. A file system that shares blocks between
// copies may need no space at all, so there the check is left out. If plan is
// set, the size of the store is the base of Progress.Share.
func (s *settings) checkSpace(ctx context.Context, plan bool) error {
	dir, err := fsat.Nearest(s.BackupDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	free, inodes, clones, err := dir.Space()
	check, plan := err == nil && !clones, plan && s.meter != nil
	if !check && !plan {
		return nil
	}
	database, chroma, files, err := s.storeSize(ctx)
	if plan {
		s.meter.Plan(createSteps(database, chroma, s.Verify))
	}
	switch need := database + chroma; {
	case err != nil || !check:
		return err
	case free >= 0 && need > free:
		return fmt.Errorf("%w: it needs about %d bytes and %d are free", ErrNoSpace, need, free)
	case inodes >= 0 && files > inodes:
		return fmt.Errorf("%w: it needs %d inodes and %d are free", ErrNoSpace, files, inodes)
	}
	return nil
}

// storeSize returns how many bytes and files a snapshot takes at least: the
// database and the registry, and the Chroma directory. A part that cannot be
// examined is left out; capturing it will report why.
func (s *settings) storeSize(ctx context.Context) (database, chroma, files int64, err error) {
	for _, path := range []string{s.DatabasePath, s.DatabasePath + "-wal", s.RegistryPath} {
		if info, err := fsat.Stat(path); err == nil {
			database += info.Allocated
		}
	}
	if s.IncludeChroma {
		chroma, files, err = filetree.SizeAt(ctx, s.ChromaPath, restorer.IsNoPartOfChroma)
	}
	const own = 8 // directories, metadata, manifest and the like
	return database, chroma, files + own, err
}

// A capture describes what was copied of the live store into staging.
type capture struct {
	paths         paths
	db            *sqlitedb.Copy
	dbBytes       int64
	registryBytes int64
	chroma        *filetree.Copied // nil if there is no Chroma copy
	unkept        fsat.Unkept
}

// paths holds the paths of a snapshot's parts, relative to the snapshot. The
// path of a part that it does not have is empty.
type paths struct{ db, registry, chroma string }

// total returns the number of files to hash and their size.
func (c *capture) total() (files, bytes int64) {
	files, bytes = 1, c.dbBytes+c.registryBytes
	if c.paths.registry != "" {
		files++
	}
	if c.chroma != nil {
		files, bytes = files+c.chroma.Files, bytes+c.chroma.Bytes
	}
	return files, bytes
}

// sealDatabase brings the database copy into its final form and renames it to
// its final name in db/.
func (s *settings) sealDatabase(ctx context.Context, st *backupdir.Staging, c *capture) error {
	s.progress(Progress{Phase: PhaseSeal, Path: st.PathOf(format.DBDir)})
	work, err := st.OpenDir(workDir)
	if err == nil {
		defer work.Close()
		err = st.In(format.DBDir, func(dir *fsat.Dir) (err error) {
			c.dbBytes, err = c.db.Seal(ctx, work, dir, filepath.Base(s.DatabasePath))
			return err
		})
	}
	if err == nil {
		err = st.RemoveDir(ctx, workDir)
	}
	if err != nil {
		return wrapStep("seal database copy", st.PathOf(workDir, sqlitedb.WorkName), err)
	}
	return nil
}

// hashAndSync makes everything in staging durable and writes the manifest's
// lines for it into SHA256SUMS. The first line, which covers the metadata, is
// left to publish: the stamp is not known yet.
func (s *settings) hashAndSync(ctx context.Context, st *backupdir.Staging, captured *capture) (_ *fsat.File, err error) {
	files, bytes := captured.total()
	manifest, err := st.Create(format.ManifestName, 0o600)
	if err != nil {
		return nil, err
	}
	handedOver := false
	defer func() { // also when OnProgress panics
		if !handedOver {
			manifest.Close()
		}
	}()
	useSyncFS := files >= syncFSFrom && st.CanSyncFS()
	s.progress(Progress{Phase: PhaseHash, TotalFiles: files, TotalBytes: bytes})

	// Writing is the disk's work and hashing the CPU's, so they run side by
	// side. The directory was opened before anything was written to it, so
	// syncfs reports every write that was lost. It is called once: a failed
	// sync must never be repeated into a success.
	var group errgroup.Group
	defer group.Wait()
	if useSyncFS {
		group.Go(st.SyncFS)
	}
	lines := format.NewWriter(manifest, int64(len(format.Line([sha256.Size]byte{}, format.MetadataName))))
	err = filetree.Scan(ctx, st.Dir, filetree.ScanOptions{
		Hash:      true,
		Sync:      !useSyncFS,
		Writeback: !useSyncFS,
		Copied:    captured.chroma,
		CopiedAt:  format.ChromaDir + "/",
		Follower:  captured.db.Hash(),
		Skip:      func(path string) bool { return path == format.ManifestName },
		Progress: func(path string, doneFiles, doneBytes int64) {
			s.progress(Progress{Phase: PhaseHash, Path: path,
				Files: doneFiles, TotalFiles: files, Bytes: doneBytes, TotalBytes: bytes})
		},
	}, func(f *filetree.File) error { return addLine(lines, f) })
	if err != nil {
		return nil, err
	}
	s.progress(Progress{Phase: PhaseSync, TotalFiles: files, TotalBytes: bytes})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := lines.Flush(); err != nil {
		return nil, err
	}
	s.progress(Progress{Phase: PhaseSync, Files: files, TotalFiles: files, Bytes: bytes, TotalBytes: bytes})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	handedOver = true
	return manifest, nil
}

// addLine writes the manifest's line for f, unless it is an empty directory.
func addLine(lines *format.Writer, f *filetree.File) error {
	if f.IsDir() {
		return nil
	}
	if f.Irregular {
		return fmt.Errorf("%s is not a regular file", f.Path)
	}
	line := format.Line(f.Sum, f.Path)
	if len(line) > format.MaxLine { // no reader would accept it
		return fmt.Errorf("%w: the path %.100q… of %d bytes is too long for the manifest", ErrUnsupportedFile, f.Path, len(f.Path))
	}
	return lines.Add(line)
}

// publish completes the metadata and the manifest for the first stamp that is
// free, makes both durable and renames staging to it. meta lacks the stamp and
// the paths; rel has the paths relative to the snapshot. It returns the SHA-256
// of the manifest, which is empty if the manifest is too large to read it again.
func (s *settings) publish(ctx context.Context, st *backupdir.Staging, manifest *fsat.File, meta *Metadata, rel paths) (manifestSum string, err error) {
	defer func() { manifest.Close() }()
	s.progress(Progress{Phase: PhasePublish})
	_, err = st.Publish(ctx, meta.CreatedAt, func(stamp string) (err error) {
		root := filepath.Join(s.BackupDir, format.SnapshotsName, stamp)
		under := func(rel string) string {
			if rel == "" {
				return ""
			}
			return filepath.Join(root, rel)
		}
		meta.Stamp, meta.BackupRoot = stamp, root
		meta.DBSnapshotPath = under(rel.db)
		meta.RegistrySnapshotPath = under(rel.registry)
		meta.ChromaSnapshotPath = under(rel.chroma)
		sum, err := writeMetadata(st.Dir, meta)
		if err != nil {
			return err
		}
		err = st.Finish(manifest, format.ManifestName, []byte(format.Line(sum, format.MetadataName)))
		manifest = nil // it is closed
		if err == nil {
			manifestSum, err = backupdir.ManifestSum(ctx, st.Dir, nil)
		}
		if errors.Is(err, fsat.ErrTooLarge) {
			return nil
		}
		return err
	})
	return manifestSum, err
}

// truncateToMicroseconds returns t with the precision that metadata keeps, in
// UTC and without a monotonic reading.
func truncateToMicroseconds(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
