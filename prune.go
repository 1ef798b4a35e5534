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
	"github.com/atocore/backup/internal/pyjson"
	"github.com/atocore/backup/internal/retention"
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
	// the newest one that is not dated in the future.
	KeepWithin time.Duration

	// DryRun reports what would be removed and removes nothing.
	DryRun bool
}

// PruneResult reports what a prune did with each snapshot, newest first.
type PruneResult struct {
	Kept    []KeptSnapshot
	Removed []string // stamps; with DryRun, those that would have been removed
	// Skipped lists what was left alone without being judged.
	Skipped []SkippedSnapshot
	DryRun  bool
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

// MarshalJSON returns the form that the command prints.
func (r PruneResult) MarshalJSON() ([]byte, error) {
	type kept struct {
		Stamp     pyjson.String   `json:"stamp"`
		CreatedAt string          `json:"created_at"`
		Reasons   []pyjson.String `json:"reasons"`
	}
	type skipped struct {
		Stamp  pyjson.String `json:"stamp"`
		Reason pyjson.String `json:"reason"`
	}
	out := struct {
		Kept    []kept          `json:"kept"`
		Removed []pyjson.String `json:"removed"`
		Skipped []skipped       `json:"skipped"`
		DryRun  bool            `json:"dry_run"`
	}{[]kept{}, pyStrings(r.Removed), []skipped{}, r.DryRun}
	for _, k := range r.Kept {
		out.Kept = append(out.Kept, kept{pyjson.String(k.Stamp), k.CreatedAt.UTC().Format(time.RFC3339Nano), pyStrings(k.Reasons)})
	}
	for _, s := range r.Skipped {
		out.Skipped = append(out.Skipped, skipped{pyjson.String(s.Stamp), pyjson.String(s.Reason)})
	}
	return pyjson.Marshal(out)
}

// pyStrings returns texts as JSON strings in ASCII; never nil.
func pyStrings(texts []string) []pyjson.String {
	out := make([]pyjson.String, len(texts))
	for i, text := range texts {
		out[i] = pyjson.String(text)
	}
	return out
}

// PruneRuntimeBackups removes the snapshots in opts.BackupDir that keep does not
// select, oldest first, and returns what it did with each.
//
// It never removes the newest snapshot, one dated in the future, the safety
// snapshot of the last restore, one that is being validated or restored, or
// a directory without readable metadata. Safety snapshots are judged apart
// from the others, by the same rules, so that a restore costs no other
// snapshot its place. A snapshot's age is the creation time in its metadata,
// not that of any file; the stamp decides between equals. A Retention without
// any rule is an error.
//
// One rename takes a snapshot out of lists before its files are removed. A
// prune that is interrupted leaves nothing half-visible; the next prune or
// create removes the rest. Creates and other prunes may run beside it.
//
// If an error is returned together with a result, the result lists what was
// removed. Errors: [ErrInvalidOptions], [ErrRestoreUnfinished], [ErrPanic],
// ctx's error, or an *fs.PathError for the first snapshot that could not be
// removed; the others are removed nevertheless. A call costs as much as a list,
// and the removal of the files.
func PruneRuntimeBackups(ctx context.Context, opts Options, keep Retention) (result *PruneResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("prune backups: %w", err)
		}
	}()
	defer errdefs.Recover(&err)
	s, err := opts.resolve(false)
	if err != nil {
		return nil, err
	}
	if err := keep.check(); err != nil {
		return nil, err
	}
	result = &PruneResult{DryRun: keep.DryRun}
	dir, err := s.enterBackupDir()
	if errors.Is(err, fs.ErrNotExist) {
		return result, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	list, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	s.progress(Progress{Phase: PhasePrune})
	expired := keep.apply(list, s.Clock.Now(), result)
	if keep.DryRun {
		for _, snapshot := range slices.Backward(expired) {
			result.Removed = append(result.Removed, snapshot.Stamp)
		}
		return result, ctx.Err()
	}
	if err := backupdir.Reap(ctx, s.BackupDir, s.log); err != nil {
		return result, err
	}
	if len(expired) == 0 {
		return result, ctx.Err()
	}
	return result, s.remove(ctx, dir, expired, result)
}

func (r *Retention) rules() retention.Rules {
	return retention.Rules{
		Last: r.KeepLast, Hourly: r.KeepHourly, Daily: r.KeepDaily, Weekly: r.KeepWeekly,
		Monthly: r.KeepMonthly, Yearly: r.KeepYearly, Within: r.KeepWithin,
	}
}

// check refuses a retention that has a bad number or no rule at all.
func (r *Retention) check() error {
	rules := r.KeepWithin > 0
	for _, n := range []int{r.KeepLast, r.KeepHourly, r.KeepDaily, r.KeepWeekly, r.KeepMonthly, r.KeepYearly} {
		if n < -1 {
			return fmt.Errorf("%w: a retention count of %d (-1 means no limit)", ErrInvalidOptions, n)
		}
		rules = rules || n != 0
	}
	switch {
	case r.KeepWithin < 0:
		return fmt.Errorf("%w: a retention of %v", ErrInvalidOptions, r.KeepWithin)
	case !rules:
		return fmt.Errorf("%w: the retention keeps nothing", ErrInvalidOptions)
	}
	return nil
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
			addReason(i, "dated in the future")
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
	for _, group := range []struct {
		counted []int
		first   string // the reason to keep the newest one
	}{{ordinary, "newest snapshot"}, {safety, "safety snapshot of the last restore"}} {
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

// remove removes the expired snapshots. If one cannot be removed, it continues
// with the others, because otherwise the disk would fill up.
func (s *settings) remove(ctx context.Context, backupDir *fsat.Dir, expired []Snapshot, result *PruneResult) error {
	root, err := backupDir.OpenDir(format.SnapshotsName)
	if err != nil {
		return err
	}
	defer root.Close()
	var first error
	failures := 0
	for done, snapshot := range expired {
		if err := ctx.Err(); err != nil {
			return errors.Join(first, err)
		}
		s.progress(Progress{Phase: PhasePrune, Path: snapshot.Path, Files: int64(done), TotalFiles: int64(len(expired))})
		gone := false
		err := backupdir.Remove(ctx, backupDir, root, snapshot.Stamp, func() {
			gone = true
			result.Removed = slices.Insert(result.Removed, 0, snapshot.Stamp)
			s.log.Info("runtime_backup_removed", "stamp", snapshot.Stamp, "path", snapshot.Path)
		})
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist): // another prune was faster
			continue
		case errors.Is(err, fsat.ErrLocked):
			result.Skipped = append(result.Skipped, SkippedSnapshot{snapshot.Stamp, "in use"})
			continue
		case !gone:
			result.Skipped = append(result.Skipped, SkippedSnapshot{snapshot.Stamp, "not removed: " + fsat.Cause(err)})
		}
		failures++
		if first == nil {
			first = fmt.Errorf("remove snapshot %s: %w", snapshot.Stamp, err)
		}
	}
	s.progress(Progress{Phase: PhasePrune, Files: int64(len(expired)), TotalFiles: int64(len(expired))})
	if failures > 1 {
		first = fmt.Errorf("%w (the first of %d that could not be removed)", first, failures)
	}
	return errors.Join(first, ctx.Err())
}
