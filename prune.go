package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/retention"
	"github.com/atocore/backup/internal/sqlitedb"
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

// Retention selects the snapshots to keep, with the meaning that users of
// restic know. Rules add up: a snapshot is kept if any rule keeps it. All
// times are UTC.
//
// Keep<Period> keeps the newest snapshot of each of that many periods,
// beginning with the most recent and counting only periods that have one. A
// rule that has not used up its number keeps the oldest snapshot too. -1 means
// no limit, 0 means no rule. Weeks are those of ISO 8601.
type Retention struct {
	KeepLast    int // the newest snapshots
	KeepHourly  int
	KeepDaily   int
	KeepWeekly  int
	KeepMonthly int
	KeepYearly  int

	// KeepWithin keeps every snapshot that is less than this much older than
	// the newest one that is not dated in the future, by the clock and, with
	// the other three, by the calendar: the four add up.
	KeepWithin                                        time.Duration
	KeepWithinYears, KeepWithinMonths, KeepWithinDays int

	// DryRun reports what would be removed and removes nothing.
	DryRun bool
}

// PruneResult reports what a prune did with each snapshot, newest first.
type PruneResult struct {
	Kept    []KeptSnapshot
	Removed []string // stamps; with DryRun, those that would have been removed
	// NeverVerified lists those of Removed of which no verdict was recorded:
	// nobody knows whether they were good.
	NeverVerified []string
	// Skipped lists what was left alone without being judged, snapshots of other
	// stores among them.
	Skipped []SkippedSnapshot
	// Remains lists what should be gone and could not be removed. The snapshots
	// that it was part of, if any, are in no list any more. Each prune tries again,
	// and lists it until it is gone.
	Remains []Remnant
	DryRun  bool
	Cost    Cost // of the files that Removed had, by their metadata
}

// KeptSnapshot is a snapshot that was kept, with at least one reason.
type KeptSnapshot struct {
	Stamp     string
	CreatedAt time.Time
	Reasons   []string
}

// SkippedSnapshot is a directory in snapshots/ that was neither kept by a rule
// nor removed: it has no readable metadata, so nothing is known about it, or
// somebody is reading it, or it could not be removed.
type SkippedSnapshot struct {
	Stamp  string
	Reason string
}

// A Remnant is a directory of which a prune could not remove everything, or a
// record that it could not remove: the rest of a snapshot, or of the staging of a
// process that died.
type Remnant struct {
	Path   string
	Reason string
}

// PruneRuntimeBackups removes the snapshots in opts.BackupDir that keep does not
// select, oldest first, and returns what it did with each.
//
// Only snapshots of this store are judged, the one that opts.DatabasePath and
// opts.Host name; if DatabasePath is empty, all snapshots must be of one store.
// It never removes the newest snapshot, the newest one whose last recorded
// verdict is valid, a protected one, one dated in the future, the safety
// snapshot of the last restore, one that is being validated or restored, or
// a directory without readable metadata. Safety snapshots are judged apart
// from the others, by the same rules, so that a restore costs no other
// snapshot its place. A snapshot's age is the creation time in its metadata,
// not that of any file; the stamp decides between equals. A Retention without
// any rule is an error.
//
// A snapshot in which there is something that visibly cannot be removed, such as
// an immutable file, stays as it is. One rename takes any other out of lists
// before its files are removed; if the first of them cannot be removed after all,
// the snapshot is renamed back. A prune that is interrupted leaves nothing
// half-visible; the next prune or create removes the rest. Creates and other
// prunes may run beside it.
//
// If an error is returned together with a result, the result lists what was
// removed. Errors: [ErrInvalidOptions], [ErrBusy], [ErrRestoreUnfinished], [ErrPanic],
// ctx's error, or an *fs.PathError for the first thing that could not be
// removed, a snapshot or a Remnant of an earlier call; all others are removed
// nevertheless. A call costs as much as a list, and the removal of the files.
func PruneRuntimeBackups(ctx context.Context, opts Options, keep Retention) (result *PruneResult, err error) {
	defer wrapCall(&err, "prune backups")
	defer errdefs.Recover(&err)
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := keep.rules().Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidOptions, err)
	}
	began := s.Clock.Now()
	err = s.prune(ctx, keep, &result)
	if result != nil {
		result.Cost.Duration = s.since(began)
		s.log.Info("runtime_backups_pruned", "kept", len(result.Kept), "removed", len(result.Removed), "skipped", len(result.Skipped),
			"dry_run", result.DryRun, "cost", result.Cost.value())
	}
	return result, s.finished(err)
}

// prune sets result as soon as it is known which snapshots there are.
func (s *settings) prune(ctx context.Context, keep Retention, result **PruneResult) error {
	made := &PruneResult{DryRun: keep.DryRun}
	dir, err := s.enterBackupDir(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		*result = made
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	list, err := s.list(ctx)
	if err != nil {
		return err
	}
	s.begin(Progress{Phase: PhasePrune}, PhasePrune)
	own, err := s.ownSnapshots(list)
	if err != nil {
		return err
	}
	*result = made
	s.skipOthers(list, own, made)
	expired := keep.apply(own, s.Clock.Now(), made)
	if keep.DryRun {
		for _, snapshot := range expired {
			made.add(snapshot)
		}
		return ctx.Err()
	}
	p := pruning{settings: s, dir: dir, result: made}
	if err := p.reap(ctx); err != nil {
		return errors.Join(p.failure(), err)
	}
	if len(expired) > 0 {
		err = p.remove(ctx, expired)
	}
	return errors.Join(p.failure(), err, ctx.Err())
}

// add adds a removed snapshot, which is newer than the former ones.
func (r *PruneResult) add(snapshot Snapshot) {
	r.Removed = slices.Insert(r.Removed, 0, snapshot.Stamp)
	if snapshot.Verified == nil {
		r.NeverVerified = slices.Insert(r.NeverVerified, 0, snapshot.Stamp)
	}
	r.Cost.add(snapshot.Metadata)
}

// skipOthers records the snapshots of other stores in result.
func (s *settings) skipOthers(list, own []Snapshot, result *PruneResult) {
	mine := make(map[string]bool, len(own))
	for _, snapshot := range own {
		mine[snapshot.Stamp] = true
	}
	for _, snapshot := range slices.Backward(list) {
		if !mine[snapshot.Stamp] {
			result.Skipped = append(result.Skipped, SkippedSnapshot{snapshot.Stamp, "of another store: " + snapshot.Metadata.store()})
		}
	}
}

// A pruning removes things from the backup directory dir. If one cannot be
// removed, it continues with the others, because otherwise the disk would fill
// up.
type pruning struct {
	*settings
	dir    *fsat.Dir
	result *PruneResult
	failed []error
}

// failure returns the first error of a removal.
func (p *pruning) failure() error {
	switch n := len(p.failed); n {
	case 0:
		return nil
	case 1:
		return p.failed[0]
	default:
		return fmt.Errorf("%w (the first of %d that could not be removed)", p.failed[0], n)
	}
}

// remains records what is left at path after the removal of what has failed.
func (p *pruning) remains(what, path string, err error) {
	p.failed = append(p.failed, fmt.Errorf("remove %s: %w", what, err))
	p.result.Remains = append(p.result.Remains, Remnant{path, reasonIn(path, err)})
}

// reap removes the staging of dead processes, and the records of snapshots that
// are gone.
func (p *pruning) reap(ctx context.Context) error {
	records, err := backupdir.ReapRecords(p.dir)
	if err != nil {
		p.log.Warn("records_left", "path", p.BackupDir, "reason", err.Error())
	}
	for _, left := range records {
		p.log.Warn("record_left", "path", left.Path, "reason", left.Err.Error())
		p.remains("an old record", left.Path, left.Err)
	}
	staging, err := backupdir.Reap(ctx, p.BackupDir, p.log)
	for _, left := range staging {
		p.remains("old staging", left.Path, left.Err)
	}
	return err
}

func (r *Retention) rules() retention.Rules {
	return retention.Rules{
		Last: r.KeepLast, Hourly: r.KeepHourly, Daily: r.KeepDaily, Weekly: r.KeepWeekly,
		Monthly: r.KeepMonthly, Yearly: r.KeepYearly,
		Within: retention.Span{Years: r.KeepWithinYears, Months: r.KeepWithinMonths, Days: r.KeepWithinDays, Time: r.KeepWithin},
	}
}

// apply records the kept and skipped snapshots in result and returns the
// expired ones, oldest first.
func (r *Retention) apply(list []Snapshot, now time.Time, result *PruneResult) (expired []Snapshot) {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Snapshot) int { return compareAges(b, a) })
	reasons := make([][]string, len(list))
	addReason := func(i int, reason string) { reasons[i] = append(reasons[i], reason) }

	// The snapshots that the rules count, newest first. One that is dated in
	// the future is the work of a wrong clock and must not use up their
	// numbers. Safety snapshots are counted apart: one holds a store that
	// somebody wanted to replace, so it must not be kept as the snapshot of its
	// day instead of the one that was restored.
	var ordinary, safety []int
	var newest time.Time
	for i, snapshot := range list {
		m := snapshot.Metadata
		switch {
		case m == nil:
			continue
		case m.CreatedAt.After(now):
			addReason(i, reasonFuture)
			continue
		case m.SafetyOf != "":
			safety = append(safety, i)
		default:
			ordinary = append(ordinary, i)
		}
		if newest.IsZero() {
			newest = m.CreatedAt
		}
	}
	for i, snapshot := range list {
		switch {
		case snapshot.Protected:
			addReason(i, reasonProtected)
		case snapshot.recordFault != "":
			addReason(i, "its record cannot be read: "+snapshot.recordFault)
		}
	}
	for _, i := range ordinary {
		if s := list[i]; s.Verified != nil && *s.Verified {
			addReason(i, reasonValid)
			break
		}
	}
	for _, group := range []struct {
		counted []int
		first   string // the reason to keep the newest one
	}{{ordinary, reasonNewest}, {safety, reasonSafety}} {
		if len(group.counted) == 0 {
			continue
		}
		addReason(group.counted[0], group.first)
		created := make([]time.Time, len(group.counted))
		for n, i := range group.counted {
			created[n] = list[i].Metadata.CreatedAt
		}
		for n, found := range retention.Reasons(created, r.rules(), newest) {
			reasons[group.counted[n]] = append(reasons[group.counted[n]], found...)
		}
	}

	for i, snapshot := range list {
		switch {
		case snapshot.Metadata == nil:
			result.Skipped = append(result.Skipped, SkippedSnapshot{snapshot.Stamp, skipReason(snapshot)})
		case len(reasons[i]) > 0:
			result.Kept = append(result.Kept, KeptSnapshot{snapshot.Stamp, snapshot.Metadata.CreatedAt, reasons[i]})
		default:
			expired = append(expired, snapshot)
		}
	}
	slices.Reverse(expired)
	return expired
}

// compareAges orders snapshots by the creation time in their metadata. Those
// without metadata come before the others.
func compareAges(a, b Snapshot) int {
	if a.Metadata == nil || b.Metadata == nil {
		if c := cmp.Compare(btoi(a.Metadata != nil), btoi(b.Metadata != nil)); c != 0 {
			return c
		}
		return format.CompareStamps(a.Stamp, b.Stamp)
	}
	if c := a.Metadata.CreatedAt.Compare(b.Metadata.CreatedAt); c != 0 {
		return c
	}
	return format.CompareStamps(a.Stamp, b.Stamp)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// skipReason returns why nothing is known about a snapshot without metadata.
func skipReason(s Snapshot) string {
	if !s.HasMetadata {
		return "no metadata"
	}
	return "metadata: " + s.MetadataError
}

// remove removes the expired snapshots. Its error is not about one of them.
func (p *pruning) remove(ctx context.Context, expired []Snapshot) error {
	root, err := backupdir.OpenSnapshotsIn(p.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	live := sqlitedb.FilesOf(p.DatabasePath)
	for done, snapshot := range expired {
		if ctx.Err() != nil {
			return nil
		}
		p.progress(Progress{Phase: PhasePrune, Path: snapshot.Path, Files: int64(done), TotalFiles: int64(len(expired))})
		gone := false
		left, err := backupdir.RemoveUnprotected(ctx, p.dir, root, snapshot.Stamp, live.Contains, func() {
			gone = true
			p.removed(snapshot)
		})
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist): // another prune was faster
		case errors.Is(err, fsat.ErrLocked):
			p.skip(snapshot, "in use")
		case errors.Is(err, ErrProtected):
			p.skip(snapshot, "protected meanwhile")
		case gone && ctx.Err() != nil: // the next prune or create removes the rest
			p.failed = append(p.failed, fmt.Errorf("remove snapshot %s: %w", snapshot.Stamp, err))
		case gone:
			p.remains("snapshot "+snapshot.Stamp, left, err)
			p.log.Warn("runtime_backup_not_wholly_removed", "stamp", snapshot.Stamp, "path", left, "reason", err.Error())
		default:
			reason := reasonIn(snapshot.Path, err)
			p.skip(snapshot, "not removed: "+reason)
			p.failed = append(p.failed, fmt.Errorf("remove snapshot %s: %w", snapshot.Stamp, err))
			p.log.Warn("runtime_backup_not_removed", "stamp", snapshot.Stamp, "path", snapshot.Path, "reason", reason)
		}
	}
	p.progress(Progress{Phase: PhasePrune, Files: int64(len(expired)), TotalFiles: int64(len(expired))})
	return nil
}

func (p *pruning) skip(snapshot Snapshot, reason string) {
	p.result.Skipped = append(p.result.Skipped, SkippedSnapshot{snapshot.Stamp, reason})
}

// removed records that a snapshot is gone, and removes its record.
func (p *pruning) removed(snapshot Snapshot) {
	p.result.add(snapshot)
	p.log.Info("runtime_backup_removed", "stamp", snapshot.Stamp, "path", snapshot.Path, "verified", snapshot.Verified != nil)
	if err := backupdir.RemoveRecord(p.dir, snapshot.Stamp); err != nil {
		p.log.Warn("record_left", "stamp", snapshot.Stamp, "reason", err.Error())
	}
}

// ProtectRuntimeBackup protects the snapshot named stamp from prunes, or ends
// that. It changes nothing in the snapshot: the protection is recorded beside
// it, so it is lost if the backup directory is copied without its records.
//
// Errors: [ErrInvalidOptions], [ErrNoSnapshot], or an *fs.PathError if the record
// cannot be written.
func ProtectRuntimeBackup(ctx context.Context, opts Options, stamp string, protect bool) (err error) {
	defer wrapCall(&err, "protect backup %q", stamp)
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
	dir, err := fsat.OpenDir(s.BackupDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	live := sqlitedb.FilesOf(s.DatabasePath)
	return backupdir.UpdateRecord(ctx, dir, stamp, live.Contains, func(r *backupdir.Record) { r.Protected = protect })
}
