package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
)

// The reasons of a prune to keep a snapshot that no rule keeps, and of
// RemoveRuntimeBackup to refuse to remove it.
const (
	reasonProtected = "protected"
	reasonFuture    = "dated in the future"
	reasonNewest    = "newest snapshot"
	reasonValid     = "newest snapshot that was found valid"
	reasonSafety    = "safety snapshot of the last restore"
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
// [ErrBusy] while somebody validates, restores or exports the snapshot,
// [ErrRestoreUnfinished], [ErrPanic], ctx's error, or an *fs.PathError. A call
// costs as much as a list, and the removal of the files.
func RemoveRuntimeBackup(ctx context.Context, opts Options, stamp string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("remove backup %q: %w", stamp, err)
		}
	}()
	defer errdefs.Recover(&err)
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return err
	}
	backupDir, err := s.enterBackupDir()
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
	s.progress(Progress{Phase: PhasePrune, Path: list[i].Path, TotalFiles: 1})
	if err := s.removeOne(ctx, backupDir, list[i]); err != nil {
		return err
	}
	s.progress(Progress{Phase: PhasePrune, Path: list[i].Path, Files: 1, TotalFiles: 1})
	return nil
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
	left, err := backupdir.Remove(ctx, backupDir, root, snapshot.Stamp, func() {
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
	defer func() {
		if err != nil {
			err = fmt.Errorf("export backup %q: %w", stamp, err)
		}
	}()
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
	return errors.ErrUnsupported
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
// [ErrRestoreUnfinished], [ErrPanic], ctx's error, that of r, or an
// *fs.PathError.
func ImportRuntimeBackup(ctx context.Context, opts Options, r io.Reader) (_ *Metadata, err error) {
	return nil, fmt.Errorf("import backup: %w", errors.ErrUnsupported)
}

// ValidateDir checks the snapshot in the directory dir, wherever that is: on a
// disk that is mounted read-only, for example, or where an archive was unpacked.
// The report and the errors are those of [ValidateBackup], except that the
// report's Stamp is the name of the directory, and that [ErrRestoreUnfinished]
// does not occur. If there is no such directory, the error matches
// [ErrNoSnapshot].
//
// opts.BackupDir is not used and may be empty. Nothing is written, not even a
// verdict. dir may be a symbolic link; no link below it is followed.
func ValidateDir(ctx context.Context, opts Options, dir string) (report *Report, err error) {
	defer func() {
		if err != nil && !errors.Is(err, ErrInvalidBackup) {
			report, err = nil, fmt.Errorf("validate %s: %w", dir, err)
		}
	}()
	defer errdefs.Recover(&err)
	if dir == "" {
		return nil, fmt.Errorf("%w: the directory is empty", ErrInvalidOptions)
	}
	opts.BackupDir = dir
	opts.RecordVerdicts, opts.Verify = false, false
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	report = &Report{Stamp: filepath.Base(s.BackupDir), Path: s.BackupDir}
	info, err := fsat.Stat(s.BackupDir)
	switch {
	case fsat.IsMissing(err):
		report.Problems = []Problem{{Code: CodeSnapshotMissing}}
	case err != nil:
		return nil, err
	case !info.Mode.IsDir():
		report.Problems = []Problem{{Code: CodeStampInvalid, Detail: "not a directory"}}
	}
	if len(report.Problems) > 0 {
		report.judge(false)
		return report.verdict()
	}
	opened, err := fsat.OpenDir(s.BackupDir)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	// So that it is not removed, if it is in a backup directory.
	if errors.Is(opened.TryRLock(), fsat.ErrLocked) {
		return nil, fmt.Errorf("%w: somebody creates or removes the snapshot", ErrBusy)
	}
	return s.validateOpened(ctx, opened, report)
}
