package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/atocore/backup"
)

// keepFlags are the rules of a retention.
type keepFlags struct {
	KeepLast    limit `placeholder:"N" help:"Keep the N newest snapshots. For every flag that takes N, unlimited or -1 means no limit."`
	KeepHourly  limit `placeholder:"N" help:"Keep the newest snapshot of each of the last N hours that have one."`
	KeepDaily   limit `placeholder:"N" help:"The same for days, in UTC."`
	KeepWeekly  limit `placeholder:"N" help:"The same for weeks, from Monday."`
	KeepMonthly limit `placeholder:"N" help:"The same for months."`
	KeepYearly  limit `placeholder:"N" help:"The same for years."`
	KeepWithin  span  `placeholder:"DURATION" help:"Keep all snapshots that are less than DURATION older than the newest one, for example 2y5m7d3h as in restic (m is months), or 36h."`
}

func (f *keepFlags) retention() backup.Retention {
	keep := backup.Retention{
		KeepLast:    int(f.KeepLast),
		KeepHourly:  int(f.KeepHourly),
		KeepDaily:   int(f.KeepDaily),
		KeepWeekly:  int(f.KeepWeekly),
		KeepMonthly: int(f.KeepMonthly),
		KeepYearly:  int(f.KeepYearly),
	}
	f.KeepWithin.apply(&keep)
	return keep
}

type pruneCommand struct {
	storeFlags
	keepFlags

	DryRun bool `short:"n" help:"Print what would be removed, without removing it."`

	Wait time.Duration `default:"5m" placeholder:"TIME" help:"Give up after waiting this long for a restore that is running. 0 waits for ever. Default: 5m."`
}

// Help returns the details for the help of this command.
func (c *pruneCommand) Help() string {
	return `The rules are those of restic: they add up, and a snapshot is kept if any of them keeps it. Only the snapshots of one store are judged, the one that --db names.

Never removed are the newest snapshot, the newest one that was found valid, the safety snapshot of the last restore, and any that is protected, dated in the future, in use, or without readable metadata.

Example: ` + commandName + ` prune --keep-last 3 --keep-daily 7 --keep-weekly 4 --dry-run`
}

func (c *pruneCommand) Run(s *session) error {
	keep := c.retention()
	faults := []error{c.needBackupDir()}
	if c.Wait < 0 {
		faults = append(faults, errors.New("--wait is negative"))
	}
	if keep == (backup.Retention{}) {
		faults = append(faults, errors.New("no keep rule: give --keep-last or another --keep flag"))
	}
	if err := joinFor("prune", faults...); err != nil {
		return err
	}
	keep.DryRun = c.DryRun
	opts := c.options()
	opts.Wait = waitFor(c.Wait)
	s.watch(&opts)
	s.announceWait(&opts)
	result, err := backup.PruneRuntimeBackups(s.ctx, opts, keep)
	if result == nil {
		return err
	}
	if err := joinFor("prune", cmp.Or(err, c.checkExists())); isMissing(err) {
		return err
	}
	if derr := s.writeResult(document(result)); derr != nil {
		return errors.Join(err, fmt.Errorf("prune: %w", derr))
	}
	if table := pruneTable(result, backup.SystemClock().Now()); len(table.rows) > 0 {
		s.writeTable(table)
	}
	if c.KeepWithin != (span{}) {
		s.tell("All snapshots within %s of the newest one are kept.", c.KeepWithin)
	}
	s.tell("%s", pruned(result, s.forPeople()))
	for _, left := range result.Remains {
		s.tell("Not removed, and tried again by the next prune: %s (%s).", left.Path, left.Reason)
	}
	return err
}

// pruneTable returns a table of what became of each snapshot.
func pruneTable(r *backup.PruneResult, now time.Time) *table {
	t := &table{columns: []column{
		{head: "STAMP", least: len("20060102T150405Z-1000")},
		{head: "AGE", right: true, rank: 2},
		{head: "RESULT", least: len("to remove")},
		{head: "WHY", least: len("removed"), rank: 1},
	}}
	add := func(stamp, age, fate, why string) {
		t.rows = append(t.rows, []cell{{text: stamp}, {text: age}, {text: fate}, {text: why}})
	}
	for _, k := range r.Kept {
		add(k.Stamp, age(now.Sub(k.CreatedAt)), "kept", strings.Join(k.Reasons, ", "))
	}
	for _, s := range r.Skipped {
		add(s.Stamp, "-", "skipped", s.Reason)
	}
	fate := "removed"
	if r.DryRun {
		fate = "to remove"
	}
	never := make(map[string]bool, len(r.NeverVerified))
	for _, stamp := range r.NeverVerified {
		never[stamp] = true
	}
	for _, stamp := range r.Removed {
		why := "no rule keeps it"
		if never[stamp] {
			why += "; never verified"
		}
		add(stamp, "-", fate, why)
	}
	return t
}

// pruned returns a summary. The skipped snapshots are named in it unless a table
// has them.
func pruned(r *backup.PruneResult, hasTable bool) string {
	removed := "removed"
	if r.DryRun {
		removed = "would be removed"
	}
	text := fmt.Sprintf("%s kept, %d %s", count(int64(len(r.Kept)), "snapshot"), len(r.Removed), removed)
	if n := len(r.NeverVerified); n > 0 {
		text += fmt.Sprintf(" (%d of them never verified)", n)
	}
	if n := len(r.Skipped); n > 0 && hasTable {
		return fmt.Sprintf("%s; %d skipped.", text, n)
	}
	for i, p := range r.Skipped {
		separator := ", "
		if i == 0 {
			separator = "; skipped: "
		}
		text += fmt.Sprintf("%s%s (%s)", separator, p.Stamp, p.Reason)
	}
	return text + "."
}
