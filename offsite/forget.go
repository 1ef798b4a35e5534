package offsite

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite/internal/restic"
)

// The reasons to keep a copy that no rule of restic's keeps, in the words of
// package backup.
const (
	reasonFuture = "dated in the future"
	reasonNewest = "newest copy"
)

// Forget removes the copies of one store that keep does not select, and the data
// that only they had. With keep.DryRun it removes nothing and says what it would.
//
// The store is the one that opts.DatabasePath and opts.Host name; if DatabasePath is
// empty, all copies in the repository must be of one store. Copies of other stores,
// and restic snapshots that are no copies, are left alone.
//
// The rules are those of [backup.Retention]. restic applies the counting ones, to
// the times at which the snapshots were created, in UTC; what is within KeepWithin
// is computed here, because restic counts in hours. The newest copy is never
// removed, nor one that is dated in the future by opts.Clock. These and what looks
// like a copy of the store and is none must cost no other its place, so then each
// count is larger by their number, and a few more may be kept. What a prune of
// package backup knows of a snapshot beyond its age, that it is protected, was found
// valid, or was taken before a restore, the repository does not know; so none of it
// keeps a copy. A Retention without any rule is backup.ErrInvalidOptions.
//
// restic locks the repository for that. A process that dies in the middle has
// removed some copies, or all of them but not their data, which the next Forget that
// removes something, or restic prune, does. A call runs restic up to four times; the
// last one may read and write a part of the repository anew, to remove data from
// files that have some that is still needed.
//
// If an error is returned together with a result, the copies in Removed may be gone.
// Errors: ErrOtherStore, ErrNoProgram, ErrProgramTooOld, ErrNoRepository,
// ErrPassword, ErrBusy, ErrStuck; backup.ErrInvalidOptions and ErrPanic; ctx's
// error; or what restic says.
func (r *Repository) Forget(ctx context.Context, opts backup.Options, keep backup.Retention) (_ *Forgotten, err error) {
	defer wrapCall(&err, "forget copies")
	defer recovered(&err)
	rules, err := rulesOf(keep)
	if err != nil {
		return nil, err
	}
	meter := newMeter(opts)
	f := &forgetting{program: r.programFor(opts), keep: keep, now: meter.clock.Now()}
	meter.pass(backup.Progress{Phase: backup.PhasePrune}, 0, 1)
	result, err := f.plan(ctx, opts, rules)
	if err != nil || keep.DryRun || len(result.Removed) == 0 {
		return result, err
	}
	ids := make([]string, len(result.Removed))
	for i, c := range result.Removed {
		ids[len(ids)-1-i] = c.ID // the oldest first
	}
	if err := f.program.Forget(ctx, ids...); err != nil {
		return result, err
	}
	f.program.Log.Info("offsite_forgotten", "kept", len(result.Kept), "removed", len(result.Removed))
	if err := f.program.Prune(ctx); err != nil {
		return result, fmt.Errorf("remove the data of forgotten copies: %w", err)
	}
	meter.done()
	return result, nil
}

// rulesOf returns the counting rules of restic for a Retention.
func rulesOf(keep backup.Retention) (restic.Rules, error) {
	rules := restic.Rules{
		Last: keep.KeepLast, Hourly: keep.KeepHourly, Daily: keep.KeepDaily,
		Weekly: keep.KeepWeekly, Monthly: keep.KeepMonthly, Yearly: keep.KeepYearly,
	}
	for _, n := range []int{rules.Last, rules.Hourly, rules.Daily, rules.Weekly, rules.Monthly, rules.Yearly} {
		if n < -1 {
			return rules, fmt.Errorf("%w: a retention count of %d (-1 means no limit)", backup.ErrInvalidOptions, n)
		}
	}
	switch {
	case keep.KeepWithin < 0 || keep.KeepWithinYears < 0 || keep.KeepWithinMonths < 0 || keep.KeepWithinDays < 0:
		return rules, fmt.Errorf("%w: a retention of %s", backup.ErrInvalidOptions, span(keep))
	case rules == restic.Rules{} && !keepsWithin(keep):
		return rules, fmt.Errorf("%w: the retention keeps nothing", backup.ErrInvalidOptions)
	}
	return rules, nil
}

func keepsWithin(keep backup.Retention) bool {
	return keep.KeepWithin != 0 || keep.KeepWithinYears != 0 || keep.KeepWithinMonths != 0 || keep.KeepWithinDays != 0
}

// span returns the length of KeepWithin in words.
func span(keep backup.Retention) string {
	var parts []string
	for _, p := range []struct {
		n    int
		noun string
	}{{keep.KeepWithinYears, "year"}, {keep.KeepWithinMonths, "month"}, {keep.KeepWithinDays, "day"}} {
		switch p.n {
		case 0:
		case 1:
			parts = append(parts, "1 "+p.noun)
		default:
			parts = append(parts, fmt.Sprintf("%d %ss", p.n, p.noun))
		}
	}
	if keep.KeepWithin != 0 {
		parts = append(parts, keep.KeepWithin.String())
	}
	return strings.Join(parts, " ")
}

// A forgetting is the state of a Forget.
type forgetting struct {
	program *restic.Program
	keep    backup.Retention
	now     time.Time
}

// plan returns what is to be kept and removed, and changes nothing.
func (f *forgetting) plan(ctx context.Context, opts backup.Options, rules restic.Rules) (*Forgotten, error) {
	result := &Forgotten{Kept: []KeptCopy{}, Removed: []Copy{}, DryRun: f.keep.DryRun}
	snapshots, err := f.program.Snapshots(ctx, ownTag)
	if err != nil {
		return nil, err
	}
	own, store, err := ofStore(opts, copiesAmong(snapshots))
	if err != nil {
		return nil, err
	}
	if len(own) == 0 {
		return result, nil
	}
	slices.Reverse(own)
	reasons := f.reasons(own)
	if rules != (restic.Rules{}) {
		plan, err := f.program.Plan(ctx, store.resticHost(), []string{ownTag, store.dbTag()}, f.widen(rules, own, store, snapshots))
		if err != nil {
			return nil, err
		}
		// A copy that was pushed meanwhile is not in the list, and stays; so does one
		// that the plan does not have.
		known := make(map[string]bool)
		for _, s := range plan.Remove {
			known[s.ID] = true
		}
		for _, s := range plan.Keep {
			known[s.ID] = true
			reasons[s.ID] = append(reasons[s.ID], s.Reasons...)
		}
		own = slices.DeleteFunc(own, func(c Copy) bool { return !known[c.ID] })
	}
	for _, c := range own {
		if len(reasons[c.ID]) > 0 {
			result.Kept = append(result.Kept, KeptCopy{c, reasons[c.ID]})
		} else {
			result.Removed = append(result.Removed, c)
		}
	}
	return result, nil
}

// reasons returns, by ID, the reasons to keep copies which restic does not know.
// copies are sorted, the newest first.
func (f *forgetting) reasons(copies []Copy) map[string][]string {
	reasons := make(map[string][]string)
	var newest *Copy
	for i, c := range copies {
		switch {
		case c.CreatedAt.After(f.now):
			reasons[c.ID] = append(reasons[c.ID], reasonFuture)
			continue
		case newest == nil:
			newest = &copies[i]
			reasons[c.ID] = append(reasons[c.ID], reasonNewest)
		}
		since := newest.CreatedAt.AddDate(-f.keep.KeepWithinYears, -f.keep.KeepWithinMonths, -f.keep.KeepWithinDays).Add(-f.keep.KeepWithin)
		if keepsWithin(f.keep) && c.CreatedAt.After(since) {
			reasons[c.ID] = append(reasons[c.ID], "within "+span(f.keep))
		}
	}
	return reasons
}

// widen returns rules whose counts are larger by the number of snapshots that
// restic counts and that are no reason to remove a copy: those that only look like
// copies of the store, those dated in the future, and second copies of a snapshot.
func (f *forgetting) widen(rules restic.Rules, own []Copy, s store, snapshots []restic.Snapshot) restic.Rules {
	extra := -len(own)
	for _, snapshot := range snapshots {
		if snapshot.Host == s.resticHost() && slices.Contains(snapshot.Tags, s.dbTag()) {
			extra++
		}
	}
	seen := make(map[string]bool)
	for _, c := range own {
		if c.CreatedAt.After(f.now) || seen[c.Stamp] {
			extra++
		}
		seen[c.Stamp] = true
	}
	for _, n := range []*int{&rules.Last, &rules.Hourly, &rules.Daily, &rules.Weekly, &rules.Monthly, &rules.Yearly} {
		if *n > 0 {
			*n += extra
		}
	}
	return rules
}
