package backup

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/atocore/backup/internal/fsat"
)

// Retention says which snapshots to keep, with the meaning that users of
// restic know. Rules add up: a snapshot that any of them keeps is kept. All
// times are UTC.
//
// Keep<Period> keeps the newest snapshot of each of that many periods, newest
// first, counting only periods that have one; if a rule has not used up its
// number, it keeps the oldest snapshot too. -1 is no limit, 0 is no rule. Weeks
// are those of ISO 8601.
type Retention struct {
	KeepLast    int // the newest so many
	KeepHourly  int
	KeepDaily   int
	KeepWeekly  int
	KeepMonthly int
	KeepYearly  int

	// KeepWithin keeps every snapshot that is less than this older than the
	// newest one that is not dated in the future.
	KeepWithin time.Duration

	// DryRun removes nothing and tells what would be removed.
	DryRun bool
}

// PruneResult tells what a prune did with each snapshot, newest first.
type PruneResult struct {
	Kept    []KeptSnapshot
	Removed []string // stamps; with DryRun those that would have been removed
	// Passed names what was left alone without being judged.
	Passed []PassedSnapshot
	DryRun bool
}

// KeptSnapshot is a snapshot that was kept, and the reasons, of which there is
// at least one.
type KeptSnapshot struct {
	Stamp     string
	CreatedAt time.Time
	Reasons   []string
}

// PassedSnapshot is a directory in snapshots/ that was neither kept by a rule
// nor removed: it has no readable metadata, so that nothing is known about it,
// or somebody is reading it, or it could not be removed.
type PassedSnapshot struct {
	Stamp  string
	Reason string
}

// MarshalJSON gives the result as the command prints it.
func (r PruneResult) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`{"kept":[`)
	for i, k := range r.Kept {
		fmt.Fprintf(&b, `%s{"stamp":%s,"created_at":%q,"reasons":[`, comma(i), quoteASCII(k.Stamp), k.CreatedAt.UTC().Format(time.RFC3339Nano))
		for j, reason := range k.Reasons {
			fmt.Fprintf(&b, `%s%s`, comma(j), quoteASCII(reason))
		}
		b.WriteString(`]}`)
	}
	b.WriteString(`],"removed":[`)
	for i, stamp := range r.Removed {
		fmt.Fprintf(&b, `%s%s`, comma(i), quoteASCII(stamp))
	}
	b.WriteString(`],"passed":[`)
	for i, p := range r.Passed {
		fmt.Fprintf(&b, `%s{"stamp":%s,"reason":%s}`, comma(i), quoteASCII(p.Stamp), quoteASCII(p.Reason))
	}
	fmt.Fprintf(&b, `],"dry_run":%t}`, r.DryRun)
	return b.Bytes(), nil
}

func comma(i int) string {
	if i == 0 {
		return ""
	}
	return ","
}

// PruneRuntimeBackups removes the snapshots in opts.BackupDir that keep does not
// keep, oldest first, and returns what it did with each.
//
// It never removes the newest snapshot, one dated in the future, the safety
// snapshot of the last restore, one that is being validated or restored, or
// what has no readable metadata. Safety snapshots are judged apart from the
// others, by the same rules, so that a restore costs no other snapshot its
// place. Age is the creation time that the metadata
// record, not that of any file; the stamp decides between equals. A keep
// without any rule is an error.
//
// A snapshot is gone from lists by one rename before its files go. A prune
// that was cut off leaves nothing half-visible; the next prune or create
// removes the rest. Creates and other prunes may run beside it.
//
// On an error the result, if there is one, tells what was removed. Errors:
// [ErrInvalidOptions], [ErrRestoreUnfinished], [ErrPanic], ctx's error, or an
// *fs.PathError for the first snapshot that could not be removed; the others
// are removed all the same. The cost is that of a list and of removing files.
func PruneRuntimeBackups(ctx context.Context, opts Options, keep Retention) (result *PruneResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("prune backups: %w", err)
		}
	}()
	defer recoverTo(&err)
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
	s.report(Progress{Phase: PhasePrune})
	doomed := keep.judge(list, s.Clock.Now(), result)
	if keep.DryRun {
		for _, snapshot := range slices.Backward(doomed) {
			result.Removed = append(result.Removed, snapshot.Stamp)
		}
		return result, ctx.Err()
	}
	if err := reapStaging(ctx, s.BackupDir, s.log); err != nil {
		return result, err
	}
	if len(doomed) == 0 {
		return result, ctx.Err()
	}
	return result, s.remove(ctx, dir, doomed, result)
}

func (r *Retention) counts() []int {
	return []int{r.KeepLast, r.KeepHourly, r.KeepDaily, r.KeepWeekly, r.KeepMonthly, r.KeepYearly}
}

func (r *Retention) check() error {
	rules := r.KeepWithin > 0
	for _, n := range r.counts() {
		if n < -1 {
			return fmt.Errorf("%w: a retention count of %d (-1 is no limit)", ErrInvalidOptions, n)
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

// judge fills in what is kept and passed over, and returns the others, oldest
// first.
func (r *Retention) judge(list []Snapshot, now time.Time, result *PruneResult) (doomed []Snapshot) {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Snapshot) int { return compareAges(b, a) })
	reasons := make([][]string, len(list))
	give := func(i int, reason string) { reasons[i] = append(reasons[i], reason) }

	// Those that the rules count, newest first. A snapshot from the future,
	// the work of a wrong clock, must not use up their numbers. Nor must a
	// safety snapshot, of a store that somebody wanted to be rid of, stand for
	// its day in the place of the one that was restored.
	var ordinary, safety []int
	var newest time.Time
	for i, snapshot := range list {
		m := snapshot.Metadata
		switch {
		case m == nil:
			continue
		case m.CreatedAt.After(now):
			give(i, "dated in the future")
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
	if len(ordinary) > 0 {
		give(ordinary[0], "newest snapshot")
		r.applyRules(list, ordinary, newest, give)
	}
	if len(safety) > 0 {
		give(safety[0], "safety snapshot of the last restore")
		r.applyRules(list, safety, newest, give)
	}

	for i, snapshot := range list {
		switch {
		case snapshot.Metadata == nil:
			result.Passed = append(result.Passed, PassedSnapshot{snapshot.Stamp, passReason(snapshot)})
		case len(reasons[i]) > 0:
			result.Kept = append(result.Kept, KeptSnapshot{snapshot.Stamp, snapshot.Metadata.CreatedAt, reasons[i]})
		default:
			doomed = append(doomed, snapshot)
		}
	}
	slices.Reverse(doomed)
	return doomed
}

// compareAges orders snapshots by the time that their metadata record, and
// those without any before the others.
func compareAges(a, b Snapshot) int {
	if a.Metadata == nil || b.Metadata == nil {
		if c := cmp.Compare(btoi(a.Metadata != nil), btoi(b.Metadata != nil)); c != 0 {
			return c
		}
		return compareStamps(a.Stamp, b.Stamp)
	}
	if c := a.Metadata.CreatedAt.Compare(b.Metadata.CreatedAt); c != 0 {
		return c
	}
	return compareStamps(a.Stamp, b.Stamp)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func passReason(s Snapshot) string {
	if !s.HasMetadata {
		return "no metadata"
	}
	return "metadata: " + s.MetadataError
}

// applyRules gives the reasons of every rule. counted are the indices of list
// that are judged, newest first; newest is what KeepWithin is reckoned from.
func (r *Retention) applyRules(list []Snapshot, counted []int, newest time.Time, give func(i int, reason string)) {
	// Each period is a number that differs between periods.
	periods := []struct {
		reason string
		of     func(t time.Time, nth int) int
	}{
		{"last", func(_ time.Time, nth int) int { return nth }},
		{"hourly", func(t time.Time, _ int) int { return (t.Year()*1000+t.YearDay())*100 + t.Hour() }},
		{"daily", func(t time.Time, _ int) int { return t.Year()*1000 + t.YearDay() }},
		{"weekly", func(t time.Time, _ int) int { year, week := t.ISOWeek(); return year*100 + week }},
		{"monthly", func(t time.Time, _ int) int { return t.Year()*100 + int(t.Month()) }},
		{"yearly", func(t time.Time, _ int) int { return t.Year() }},
	}
	left := r.counts()
	last := make([]int, len(periods))
	for nth, i := range counted {
		created := list[i].Metadata.CreatedAt.UTC()
		if r.KeepWithin > 0 && created.After(newest.Add(-r.KeepWithin)) {
			give(i, "within "+r.KeepWithin.String())
		}
		for p, period := range periods {
			if left[p] == 0 {
				continue
			}
			value := period.of(created, nth)
			switch {
			case nth == 0 || value != last[p]:
				give(i, period.reason+" snapshot")
			case nth == len(counted)-1:
				give(i, "oldest "+period.reason+" snapshot")
			default:
				continue
			}
			last[p] = value
			if left[p] > 0 {
				left[p]--
			}
		}
	}
}

// remove takes each snapshot out of sight and then away. One that cannot be
// removed is no reason to keep the others: the disk would fill up.
func (s *settings) remove(ctx context.Context, backupDir *fsat.Dir, doomed []Snapshot, result *PruneResult) error {
	root, err := backupDir.OpenDir(snapshotsName)
	if err != nil {
		return err
	}
	defer root.Close()
	var first error
	failures := 0
	for done, snapshot := range doomed {
		if err := ctx.Err(); err != nil {
			return errors.Join(first, err)
		}
		s.report(Progress{Phase: PhasePrune, Path: snapshot.Path, Files: int64(done), TotalFiles: int64(len(doomed))})
		gone := false
		err := removeSnapshot(ctx, backupDir, root, snapshot.Stamp, func() {
			gone = true
			result.Removed = slices.Insert(result.Removed, 0, snapshot.Stamp)
			s.log.Info("runtime_backup_removed", "stamp", snapshot.Stamp, "path", snapshot.Path)
		})
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist): // another prune was faster
			continue
		case errors.Is(err, fsat.ErrLocked):
			result.Passed = append(result.Passed, PassedSnapshot{snapshot.Stamp, "in use"})
			continue
		case !gone:
			result.Passed = append(result.Passed, PassedSnapshot{snapshot.Stamp, "not removed: " + cause(err)})
		}
		failures++
		if first == nil {
			first = fmt.Errorf("remove snapshot %s: %w", snapshot.Stamp, err)
		}
	}
	s.report(Progress{Phase: PhasePrune, Files: int64(len(doomed)), TotalFiles: int64(len(doomed))})
	if failures > 1 {
		first = fmt.Errorf("%w (the first of %d that could not be removed)", first, failures)
	}
	return errors.Join(first, ctx.Err())
}

// removeSnapshot renames a snapshot to a staging name, durably, calls gone and
// removes its files. Its lock keeps readers out, and other processes from
// taking it for a dead one's staging.
func removeSnapshot(ctx context.Context, backupDir, root *fsat.Dir, stamp string, gone func()) error {
	dir, err := root.OpenDir(stamp)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.TryLock(); errors.Is(err, fsat.ErrLocked) {
		return err
	}
	mine, err := dir.Stat()
	if err != nil {
		return err
	}
	if there, err := root.Lstat(stamp); err != nil {
		return err
	} else if there.Ino != mine.Ino {
		return &fs.PathError{Op: "remove", Path: dir.Path(), Err: fs.ErrNotExist}
	}
	name := newStagingName()
	if err := root.Rename(stamp, backupDir, name); err != nil {
		return err
	}
	gone()
	for _, d := range []*fsat.Dir{backupDir, root} {
		if err := d.Sync(); err != nil {
			return err
		}
	}
	return removeTree(ctx, backupDir, name)
}
