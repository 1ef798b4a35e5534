package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime/debug"

	"github.com/atocore/backup/internal/fsat"
)

const (
	dbDirName     = "db"
	configDirName = "config"
	chromaDirName = "chroma"

	chromaDBName = "chroma.sqlite3" // Chroma's own database
)

// CreateRuntimeBackup takes a snapshot of the machine store while it is in use
// and returns its metadata. When it returns without an error, the snapshot is
// complete, visible in BackupDir/snapshots and durable: it survives a power
// cut. Otherwise no snapshot was made, nothing is left of the attempt, and the
// error names the step and the path. A process that dies leaves a staging
// directory that nobody takes for a snapshot; the next call removes it.
//
// The database is copied as it was at one moment, through a read transaction;
// writers of a WAL database are never held up, those of a rollback-journal
// database are while it is copied. The Chroma directory, if asked for, is
// copied under opts.Locker together with the others, so that the three agree.
//
// Any number of calls may run at once, in any number of processes; each makes
// its own snapshot. Two in the same second get different stamps.
//
// ctx is looked at between pieces of work of some milliseconds, and ends every
// wait; a sync that the kernel is working on is waited for. InitDB and the
// guard get ctx too and must heed it themselves.
//
// The cost is one copy and one SHA-256 of the store, and the sync of the copy;
// the guard is held for the copy only. Without IncludeChroma, a database whose
// WAL is empty is hashed on a second processor while it is copied. Memory stays
// at some 20 MB, and eight bytes a file, whatever the store's size.
//
// Errors to act on: [ErrInvalidOptions], [ErrSourceChanged],
// [ErrSourceInvalid], [ErrUnsupportedFile], [ErrNoSpace], [ErrCrossDevice],
// [ErrPanic], fs.ErrNotExist for a database that does not exist, ctx's error,
// and what InitDB or the guard returned.
func CreateRuntimeBackup(ctx context.Context, opts Options) (_ *Metadata, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create backup: %w", err)
		}
	}()
	defer recoverTo(&err)

	// 1. Check the options.
	s, err := opts.resolve(true)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.report(Progress{Phase: PhaseInit})

	// 2. Keep restores away, and remove what dead processes left.
	entered, err := s.enterBackupDir()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, step("enter backup directory", s.BackupDir, err)
	}
	defer entered.Close()
	if err := reapStaging(ctx, s.BackupDir, s.log); err != nil {
		return nil, step("clear old staging", s.BackupDir, err)
	}

	// 3. Let the host make its schema, and look whether there is enough space.
	if err := s.initDatabase(ctx); err != nil {
		return nil, err
	}
	now := truncateToMicroseconds(s.Clock.Now())
	if err := checkTime(now); err != nil {
		return nil, err
	}
	if err := s.checkSpace(ctx); err != nil {
		return nil, step("check free space", s.BackupDir, err)
	}

	// 4. Make staging, and the backup directory if this is its first snapshot.
	if entered == nil {
		if err := makeDir(s.BackupDir); err != nil {
			return nil, step("make backup directory", s.BackupDir, err)
		}
		if entered, err = s.enterBackupDir(); err != nil {
			return nil, step("enter backup directory", s.BackupDir, err)
		}
		defer entered.Close()
	}
	st, err := newStaging(s.BackupDir)
	if err != nil {
		return nil, step("make staging", s.BackupDir, err)
	}
	defer func() {
		if derr := st.discard(); derr != nil {
			err = errors.Join(err, step("remove staging", st.path(), derr))
		}
	}()

	// 5. Capture, under the guard if Chroma is asked for. 6. Release it.
	captured, err := s.captureUnderGuard(ctx, st)
	if err != nil {
		return nil, err
	}

	// 7. Put the database copy into its final form.
	s.report(Progress{Phase: PhaseSeal, Path: st.path(dbDirName)})
	if captured.dbBytes, err = s.sealDatabase(ctx, st); err != nil {
		return nil, step("seal database copy", st.path(dbDirName, workDBName), err)
	}

	// 8. Hash and sync everything.
	manifest, err := st.hashAndSync(ctx, &s, captured)
	if err != nil {
		return nil, step("hash and sync", st.path(), err)
	}

	// 9. Write metadata and manifest, and publish.
	meta := captured.metadata()
	meta.CreatedAt = now
	if s.restoring != nil {
		meta.SafetyOf = s.restoring.of
	}
	if err := st.publish(ctx, &s, manifest, meta, captured.paths); err != nil {
		return nil, step("publish", st.path(), err)
	}
	s.logCreated(meta)
	return meta, nil
}

// logCreated tells of a snapshot that is there. A Logger that panics does not
// undo it, so an error would be wrong.
func (s *settings) logCreated(meta *Metadata) {
	defer func() { _ = recover() }()
	s.log.Info("runtime_backup_created",
		"stamp", meta.Stamp,
		"backup_root", meta.BackupRoot,
		"db_snapshot", meta.DBSnapshotPath,
		"db_bytes", meta.DBSizeBytes,
		"chroma_included", meta.ChromaSnapshotIncluded,
		"chroma_files", meta.ChromaSnapshotFiles,
		"chroma_bytes", meta.ChromaSnapshotBytes)
}

// step names what failed and where. A path that the error names itself is not
// repeated.
func step(what, path string, err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %s: %w", what, path, err)
}

// recoverTo turns a panic, which can only come from a function of the host,
// into an error.
func recoverTo(err *error) {
	switch v := recover().(type) {
	case nil:
	case error:
		*err = fmt.Errorf("%w: %w\n%s", ErrPanic, v, debug.Stack())
	default:
		*err = fmt.Errorf("%w: %v\n%s", ErrPanic, v, debug.Stack())
	}
}

func (s *settings) initDatabase(ctx context.Context) error {
	if s.InitDB != nil {
		if err := s.InitDB(ctx); err != nil {
			return step("init database", s.DatabasePath, err)
		}
	}
	info, err := fsat.Stat(s.DatabasePath)
	if s.DB != nil && errors.Is(err, fs.ErrNotExist) {
		return nil // in memory, or DB will tell
	}
	if err != nil {
		return step("find database", s.DatabasePath, err)
	}
	if !info.Mode.IsRegular() {
		return step("find database", s.DatabasePath, &fs.PathError{Op: "open", Path: s.DatabasePath, Err: errNotRegular})
	}
	return nil
}

// A capture is what was read of the live store.
type capture struct {
	paths         paths
	dbBytes       int64
	registryBytes int64
	chromaFiles   int64
	chromaBytes   int64
	chroma        *treeCopy // for the hashes it knows
}

// total gives the number of files to hash and their size.
func (c *capture) total() (files, bytes int64) {
	files = 1 + c.chromaFiles
	if c.paths.registry != "" {
		files++
	}
	return files, c.dbBytes + c.registryBytes + c.chromaBytes
}

func (c *capture) metadata() *Metadata {
	m := &Metadata{
		DBSizeBytes:            c.dbBytes,
		ChromaSnapshotBytes:    c.chromaBytes,
		ChromaSnapshotFiles:    c.chromaFiles,
		ChromaSnapshotIncluded: c.paths.chroma != "",
		VectorStoreNote:        noteWithoutChroma,
		FormatVersion:          formatVersion,
	}
	if m.ChromaSnapshotIncluded {
		m.VectorStoreNote = noteWithChroma
	}
	return m
}

// captureUnderGuard holds the ingestion guard, if there is a Chroma directory
// to copy, exactly as long as the live store is being read.
func (s *settings) captureUnderGuard(ctx context.Context, st *staging) (*capture, error) {
	if s.IncludeChroma {
		unlock, err := s.takeGuard(ctx)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	return s.captureStore(ctx, st)
}

// takeGuard takes the ingestion guard, if there is one.
func (s *settings) takeGuard(ctx context.Context) (unlock func(), err error) {
	if s.Locker == nil {
		return func() {}, nil
	}
	s.report(Progress{Phase: PhaseGuard})
	unlock, err = s.Locker.Lock(ctx)
	switch {
	case err != nil:
		return nil, fmt.Errorf("take ingestion guard: %w", err)
	case unlock == nil:
		return nil, errors.New("take ingestion guard: Locker returned no unlock function")
	}
	return unlock, nil
}

// captureStore reads the live store into staging.
func (s *settings) captureStore(ctx context.Context, st *staging) (*capture, error) {
	c := new(capture)
	if err := ctx.Err(); err != nil {
		return nil, step("capture", s.DatabasePath, err)
	}
	s.report(Progress{Phase: PhaseDatabase, Path: s.DatabasePath})
	if err := st.inSubdirectory(dbDirName, func(dir *fsat.Dir) error { return s.captureDatabase(ctx, st, dir) }); err != nil {
		return nil, step("capture database", s.DatabasePath, err)
	}
	c.paths.db = filepath.Join(dbDirName, filepath.Base(s.DatabasePath))

	s.report(Progress{Phase: PhaseRegistry, Path: s.RegistryPath})
	err := st.inSubdirectory(configDirName, func(dir *fsat.Dir) error {
		size, ok, err := s.captureRegistry(ctx, dir)
		if ok {
			c.registryBytes = size
			c.paths.registry = filepath.Join(configDirName, filepath.Base(s.RegistryPath))
		}
		return err
	})
	if err != nil {
		return nil, step("capture registry", s.RegistryPath, err)
	}

	if s.IncludeChroma {
		s.report(Progress{Phase: PhaseChroma, Path: s.ChromaPath})
		if err := s.captureChroma(ctx, st, c); err != nil {
			return nil, step("capture Chroma directory", s.ChromaPath, err)
		}
	}
	return c, nil
}

// inSubdirectory makes the directory name in staging and calls do with it.
func (st *staging) inSubdirectory(name string, do func(*fsat.Dir) error) error {
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

// captureChroma copies the Chroma directory whole: which files hold what is
// Chroma's affair, and after a purge the vectors are in segment files only.
func (s *settings) captureChroma(ctx context.Context, st *staging, c *capture) error {
	src, err := s.openChroma()
	if src == nil {
		return err
	}
	defer src.Close()
	c.chroma = &treeCopy{
		sums:  true,
		alien: s.liveDatabase().contains,
		progress: func(path string, files, bytes int64) {
			s.report(Progress{Phase: PhaseChroma, Path: path, Files: files, Bytes: bytes})
		},
	}
	return st.inSubdirectory(chromaDirName, func(dst *fsat.Dir) error {
		c.chromaFiles, c.chromaBytes, err = c.chroma.copyTree(ctx, src, dst, copyWorkers())
		c.paths.chroma = chromaDirName
		return err
	})
}

// openChroma opens the Chroma directory, or returns nil if there is none.
func (s *settings) openChroma() (*fsat.Dir, error) {
	dir, err := fsat.OpenDir(s.ChromaPath)
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	if dangling, lerr := isSymlink(s.ChromaPath); lerr == nil && dangling {
		return nil, err // a volume that is not mounted, say
	}
	s.log.Info("chroma_snapshot_skipped_missing", "path", s.ChromaPath)
	return nil, nil
}
