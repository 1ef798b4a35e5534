package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/atocore/backup/internal/archive"
	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

// RemoveRuntimeBackup removes the snapshot named stamp, and what is recorded
// about it. Like a prune it never removes what may be needed to bring the store
// back. It refuses with [ErrProtected], and does nothing,
//
//   - if the snapshot is protected ([ProtectRuntimeBackup] ends that), or if its
//     record cannot be read, so that it may be;
//   - if it is the newest snapshot of its store, until there is another one that
//     is newer; but one that was found not valid can be removed if another one
//     was found valid;
//   - if it is the newest one whose last recorded verdict is valid, until another
//     one that is newer has such a verdict;
//   - if it is the safety snapshot of the last restore;
//   - if it has no readable metadata: nobody knows then of which store it is.
//
// Only a snapshot of the store that opts.DatabasePath and opts.Host name is
// removed, or else it is [ErrOtherStore]; if DatabasePath is empty, all
// snapshots must be of one store. One that is dated in the future can be removed,
// although a prune keeps it.
//
// One rename takes the snapshot out of lists, and is durable before the first
// file is removed. If the call is interrupted after that, the next create or
// prune removes the rest.
//
// Errors: [ErrInvalidOptions], [ErrNoSnapshot], [ErrProtected], [ErrOtherStore],
// [ErrBusy] while a restore is running or somebody reads the snapshot,
// [ErrRestoreUnfinished], [ErrPanic], ctx's error, or an *fs.PathError. A call
// costs as much as a list, and the removal of the files.
func RemoveRuntimeBackup(ctx context.Context, opts Options, stamp string) (err error) {
	defer wrapCall(&err, "remove backup %q", stamp)
	defer errdefs.Recover(&err)
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return err
	}
	backupDir, err := s.enterBackupDir(ctx)
	if err != nil {
		return err
	}
	defer backupDir.Close()
	list, err := s.list(ctx)
	if err != nil {
		return err
	}
	named := func(snapshot Snapshot) bool { return snapshot.Stamp == stamp }
	i := slices.IndexFunc(list, named)
	if i < 0 {
		return fmt.Errorf("%w in %s", ErrNoSnapshot, s.BackupDir)
	}
	own, err := s.ownSnapshots(list)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(own, named) {
		return fmt.Errorf("%w: %s", ErrOtherStore, list[i].Metadata.store())
	}
	if reason := s.reasonToKeep(own, list[i]); reason != "" {
		return fmt.Errorf("%w: %s", ErrProtected, reason)
	}
	s.begin(Progress{Phase: PhasePrune, Path: list[i].Path, TotalFiles: 1}, PhasePrune)
	if err := s.removeOne(ctx, backupDir, list[i]); err != nil {
		return err
	}
	s.progress(Progress{Phase: PhasePrune, Path: list[i].Path, Files: 1, TotalFiles: 1})
	return s.finished(nil)
}

// reasonToKeep returns the reason why the snapshot must not be removed and what
// to do about it, or an empty text. own are all snapshots of its store.
func (s *settings) reasonToKeep(own []Snapshot, snapshot Snapshot) string {
	if snapshot.Metadata == nil {
		return skipReason(snapshot) + ": nobody knows what it is; remove its directory by hand"
	}
	var judged PruneResult
	(&Retention{}).apply(own, s.Clock.Now(), &judged)
	i := slices.IndexFunc(judged.Kept, func(k KeptSnapshot) bool { return k.Stamp == snapshot.Stamp })
	if i < 0 {
		return ""
	}
	anyValid := slices.ContainsFunc(own, func(s Snapshot) bool { return s.Verified != nil && *s.Verified })
	for _, reason := range judged.Kept[i].Reasons {
		switch reason {
		case reasonFuture:
		case reasonNewest:
			if snapshot.Verified == nil || *snapshot.Verified || !anyValid {
				return reason + ": create another one first"
			}
		case reasonValid:
			return reason + ": create another one and validate it first"
		case reasonProtected:
			return reason + ": end its protection first"
		default:
			return reason
		}
	}
	return ""
}

// removeOne removes a snapshot and its record.
func (s *settings) removeOne(ctx context.Context, backupDir *fsat.Dir, snapshot Snapshot) error {
	root, err := backupDir.OpenDir(format.SnapshotsName)
	if err != nil {
		return err
	}
	defer root.Close()
	gone := false
	live := sqlitedb.FilesOf(s.DatabasePath)
	left, err := backupdir.RemoveUnprotected(ctx, backupDir, root, snapshot.Stamp, live.Contains, func() {
		gone = true
		s.log.Info("runtime_backup_removed", "stamp", snapshot.Stamp, "path", snapshot.Path, "verified", snapshot.Verified != nil)
		if err := backupdir.RemoveRecord(backupDir, snapshot.Stamp); err != nil {
			s.log.Warn("record_left", "stamp", snapshot.Stamp, "reason", err.Error())
		}
	})
	switch {
	case err != nil && gone:
		return fmt.Errorf("the snapshot is gone, but not all of its files, which are in %s; the next create or prune removes them: %w", left, err)
	case errors.Is(err, fsat.ErrLocked):
		return fmt.Errorf("%w: somebody validates, restores or exports the snapshot", ErrBusy)
	case errors.Is(err, fs.ErrNotExist): // a prune was faster
		return fmt.Errorf("%w: %w", ErrNoSnapshot, err)
	}
	return err
}

// ExportRuntimeBackup writes the snapshot named stamp to w, as a tar archive
// that [ImportRuntimeBackup] and every tar(1) read: one directory, named by the
// stamp, with backup-metadata.json and SHA256SUMS before the other files. The
// same snapshot always results in the same bytes. Permissions and modification
// times are kept; owners are not recorded, and nor is what is known about the
// snapshot: its verdict, its protection and its note.
//
// Every file is compared with SHA256SUMS while it is read. If one is damaged,
// the error matches [ErrInvalidBackup], and what was written is no complete
// archive: it ends within a file or has no trailer. So w must be thrown away
// after any error. SQLite's checks are not made; [ValidateBackup] makes them. A
// snapshot without SHA256SUMS, as those of the Python module are, is refused
// with [ErrInvalidBackup], because nothing proves it intact.
//
// Nobody removes the snapshot meanwhile. ctx is heeded, except while w blocks. A
// call reads the snapshot once, and nothing of it more than once in memory.
//
// Errors: [ErrInvalidOptions], [ErrNoSnapshot], [ErrInvalidBackup] with the
// report of what was found until then, [ErrPanic], ctx's error, that of w, or an
// *fs.PathError.
func ExportRuntimeBackup(ctx context.Context, opts Options, stamp string, w io.Writer) (err error) {
	defer wrapCall(&err, "export backup %q", stamp)
	defer errdefs.Recover(&err)
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return err
	}
	snapshot, err := s.hold(ctx, stamp)
	if err != nil {
		return err
	}
	defer snapshot.Close()
	return s.finished(s.export(ctx, snapshot, stamp, w))
}

func (s *settings) export(ctx context.Context, dir *fsat.Dir, stamp string, w io.Writer) error {
	s.begin(Progress{Phase: PhaseExport}, PhaseExport)
	report := &Report{Stamp: stamp, Path: dir.Path(), Exists: true}
	damaged := func(problems ...Problem) error {
		report.Problems = problems
		report.judge(false)
		return &InvalidBackupError{report}
	}
	snap := &openedSnapshot{dir: dir, live: sqlitedb.FilesOf(s.DatabasePath)}
	meta, raw, problems, err := readMetadata(dir, snap.live)
	if err != nil {
		return err
	}
	report.Metadata, report.raw, snap.meta = meta, raw, meta
	if len(problems) > 0 {
		return damaged(problems...)
	}
	manifest, problems, err := openManifest(snap)
	if err != nil {
		return err
	}
	defer manifest.Close()
	switch {
	case len(problems) > 0:
		return damaged(problems...)
	case manifest == nil || meta.FormatVersion == 0:
		return damaged(Problem{Code: CodeManifestMissing, Detail: "it is a snapshot of the Python module; nothing proves it intact"})
	case !format.IsStampOf(meta.Stamp, meta.CreatedAt):
		return damaged(Problem{Code: CodeMetadataShape, Detail: oneLine(fmt.Sprintf("%q is no stamp of that time", meta.Stamp))})
	}
	err = archive.Write(ctx, w, dir, archive.WriteOptions{
		Top:       meta.Stamp,
		Forbidden: snap.live.Contains,
		Progress: func(path string, files, totalFiles, bytes, totalBytes int64) {
			s.progress(Progress{PhaseExport, path, files, totalFiles, bytes, totalBytes, 0})
		},
	})
	if mismatch := new(archive.MismatchError); errors.As(err, &mismatch) {
		code := codeOf[mismatch.Kind]
		if mismatch.Irregular {
			code = CodeFileNotRegular
		}
		return damaged(Problem{Code: code, Path: mismatch.Path, Detail: oneLine(mismatch.Detail)})
	}
	return err
}

// HoldRuntimeBackup calls use with the directory of the snapshot named stamp,
// which nobody removes until use returns, so that its files can be read for a copy
// of any other kind than ExportRuntimeBackup's. What is in the directory is
// untrusted, and must not be changed: docs/format.md describes it, and
// [ValidateBackup] can check it meanwhile. The ctx of use is the call's. Creates,
// prunes and restores go on; a prune passes the snapshot over.
//
// Errors: [ErrInvalidOptions], [ErrNoSnapshot], [ErrPanic], ctx's error, that of
// use, or an *fs.PathError. A call costs nothing but what use does.
func HoldRuntimeBackup(ctx context.Context, opts Options, stamp string, use func(ctx context.Context, dir string) error) (err error) {
	defer wrapCall(&err, "hold backup %q", stamp)
	defer errdefs.Recover(&err)
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return err
	}
	snapshot, err := s.hold(ctx, stamp)
	if err != nil {
		return err
	}
	defer snapshot.Close()
	return use(ctx, snapshot.Path())
}

// ImportRuntimeBackup reads an archive that [ExportRuntimeBackup] has written
// from r, to its end, and adds the snapshot to opts.BackupDir under its own
// stamp. It returns the snapshot's metadata. When it returns without an error,
// the snapshot is complete, validated as [ValidateBackup] does, and durable.
// Otherwise nothing was added, and nothing is left. A process that dies leaves a
// staging directory, which is never mistaken for a snapshot; the next create
// removes it.
//
// Nothing is ever overwritten. If there is a snapshot of that stamp already, the
// error matches [ErrSnapshotExists]; the metadata are returned with it only if
// it is the same snapshot.
//
// The archive is untrusted: see docs/format.md for what it may contain.
// Everything else is refused with [ErrInvalidArchive]. A snapshot with findings
// is imported only if opts.DespiteFindings is set. The hashes prove that the
// archive was not damaged; they are not signatures.
//
// With opts.RecordVerdicts or opts.Verify, the verdict is recorded; opts.Note is
// kept beside the snapshot. ctx is heeded, except while r blocks. A call costs
// one copy, two SHA-256 and the sync of the snapshot.
//
// Errors: [ErrInvalidOptions], [ErrInvalidArchive], [ErrInvalidBackup] with the
// report, [ErrSnapshotExists], [ErrNoSpace], [ErrCrossDevice],
// [ErrBusy], [ErrRestoreUnfinished], [ErrPanic], ctx's error, that of r, or an
// *fs.PathError.
func ImportRuntimeBackup(ctx context.Context, opts Options, r io.Reader) (meta *Metadata, err error) {
	defer wrapCall(&err, "import backup")
	defer errdefs.Recover(&err)
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return nil, err
	}
	if faults := s.checkPlaces(); len(faults) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrInvalidOptions, errors.Join(faults...))
	}
	return s.importFrom(ctx, r)
}

// importFrom imports a snapshot. It returns the metadata together with
// ErrSnapshotExists if the snapshot is there already.
func (s *settings) importFrom(ctx context.Context, r io.Reader) (meta *Metadata, err error) {
	defer errdefs.Recover(&err) // after everything that is deferred below

	// 1. Keep restores away, and remove what dead processes left.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.begin(Progress{Phase: PhaseImport}, PhaseImport, PhaseSync, PhaseValidateFiles)
	backupDir, err := s.enterBackupDir(ctx)
	if errors.Is(err, ErrNoSnapshot) { // this is its first snapshot
		if err := fsat.MkdirAll(s.BackupDir); err != nil {
			return nil, wrapStep("make backup directory", s.BackupDir, err)
		}
		backupDir, err = s.enterBackupDir(ctx)
	}
	if err != nil {
		return nil, wrapStep("enter backup directory", s.BackupDir, err)
	}
	defer backupDir.Close()
	if _, err := backupdir.Reap(ctx, s.BackupDir, s.log); err != nil {
		return nil, wrapStep("clear old staging", s.BackupDir, err)
	}

	// 2. Create staging.
	st, err := backupdir.NewStaging(s.BackupDir)
	if err != nil {
		return nil, wrapStep("make staging", s.BackupDir, err)
	}
	defer func() { err = errors.Join(err, discard(st)) }()

	// 3. Read the archive, comparing every file with the manifest.
	if meta, err = s.readArchive(ctx, st, r); err != nil {
		return meta, err // the metadata of one that is there already
	}

	// 4. Make everything durable.
	if err := s.syncAll(ctx, st, meta); err != nil {
		return nil, wrapStep("sync", st.PathOf(), err)
	}

	// 5. Validate the snapshot.
	report := &Report{Stamp: meta.Stamp, Path: filepath.Join(s.BackupDir, format.SnapshotsName, meta.Stamp)}
	report, err = s.validateOpened(ctx, st.Dir, report)
	if err = s.despiteFindings(report, err); err != nil {
		return nil, err
	}

	// 6. Publish it, without what is recorded about another one of its name.
	s.progress(Progress{Phase: PhasePublish})
	if err := s.publishImported(ctx, backupDir, st, meta); err != nil {
		return nil, err
	}
	if s.Note != "" {
		s.record(ctx, meta.Stamp, "note_not_recorded", func(r *backupdir.Record) { r.Note = s.Note })
	}
	if s.RecordVerdicts || s.Verify {
		s.recordVerdict(ctx, report)
	}
	return meta, s.finished(nil)
}

// readArchive reads an archive into staging.
func (s *settings) readArchive(ctx context.Context, st *backupdir.Staging, r io.Reader) (meta *Metadata, err error) {
	err = archive.Read(ctx, r, st.Dir, archive.ReadOptions{
		Metadata: func(data []byte) (string, error) {
			parsed, err := parseMetadata(string(data))
			switch {
			case err != nil:
				return "", fmt.Errorf("%w: its metadata: %w", ErrInvalidArchive, err)
			case !format.IsStampOf(parsed.Stamp, parsed.CreatedAt):
				return "", fmt.Errorf("%w: its metadata have the stamp %q and the time %s", ErrInvalidArchive, parsed.Stamp, parsed.CreatedAt)
			}
			meta = parsed
			return meta.Stamp, nil
		},
		Manifest: func() error { return s.checkNew(ctx, st, meta.Stamp) },
		Progress: func(path string, files, totalFiles, bytes int64) {
			s.progress(Progress{Phase: PhaseImport, Path: path, Files: files, TotalFiles: totalFiles, Bytes: bytes})
		},
	})
	if same := new(sameSnapshotError); err != nil && !errors.As(err, &same) {
		return nil, err
	}
	return meta, err
}

// sameSnapshotError is the error for a snapshot that is in the backup directory
// already.
type sameSnapshotError struct{ stamp string }

func (e *sameSnapshotError) Error() string {
	return fmt.Sprintf("%v: %s, with the same SHA256SUMS", ErrSnapshotExists, e.stamp)
}

func (e *sameSnapshotError) Unwrap() error { return ErrSnapshotExists }

// checkNew returns ErrSnapshotExists if the backup directory has a snapshot of
// that stamp.
func (s *settings) checkNew(ctx context.Context, st *backupdir.Staging, stamp string) error {
	dir, missing, err := openSnapshot(ctx, s.BackupDir, stamp)
	switch {
	case err != nil:
		return err
	case missing != nil && missing.Code == CodeSnapshotMissing:
		return nil
	case missing != nil:
		return fmt.Errorf("%w: %s", ErrSnapshotExists, missing)
	}
	defer dir.Close()
	live := sqlitedb.FilesOf(s.DatabasePath)
	there, err := backupdir.ManifestSum(ctx, dir, live.Contains)
	if err == nil && there != "" {
		var ours string
		if ours, err = backupdir.ManifestSum(ctx, st.Dir, nil); err == nil && ours == there {
			return &sameSnapshotError{stamp}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %s, and it is another one: rename its directory to import this one", ErrSnapshotExists, dir.Path())
}

// syncAll makes everything in staging durable, as a create does.
func (s *settings) syncAll(ctx context.Context, st *backupdir.Staging, meta *Metadata) error {
	s.progress(Progress{Phase: PhaseSync})
	if st.CanSyncFS() && meta.ChromaSnapshotFiles >= syncFSFrom {
		if err := st.SyncFS(); err != nil {
			return err
		}
	} else if err := filetree.Scan(ctx, st.Dir, filetree.ScanOptions{Sync: true}, func(*filetree.File) error { return nil }); err != nil {
		return err
	}
	return st.Sync()
}

// publishImported renames staging to the snapshot's stamp.
func (s *settings) publishImported(ctx context.Context, backupDir *fsat.Dir, st *backupdir.Staging, meta *Metadata) error {
	if err := s.checkNew(ctx, st, meta.Stamp); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := backupdir.RemoveRecord(backupDir, meta.Stamp); err != nil {
		return wrapStep("remove old record", s.BackupDir, err)
	}
	err := st.PublishAs(meta.Stamp)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: somebody added it just now: %w", ErrSnapshotExists, err)
	}
	if err != nil {
		return wrapStep("publish", st.PathOf(), err)
	}
	defer func() { _ = recover() }() // a Logger that panics does not undo that
	s.log.Info("runtime_backup_imported", "stamp", meta.Stamp, "backup_root", filepath.Join(s.BackupDir, format.SnapshotsName, meta.Stamp))
	return nil
}
