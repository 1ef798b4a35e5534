package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/atocore/backup"
)

type pruneCommand struct {
	storeFlags

	KeepLast    int           `placeholder:"N" help:"Keep the N newest snapshots. For every flag that takes N, =-1 means no limit."`
	KeepHourly  int           `placeholder:"N" help:"Keep the newest snapshot of each of the last N hours that have one."`
	KeepDaily   int           `placeholder:"N" help:"The same for days, in UTC."`
	KeepWeekly  int           `placeholder:"N" help:"The same for weeks, from Monday."`
	KeepMonthly int           `placeholder:"N" help:"The same for months."`
	KeepYearly  int           `placeholder:"N" help:"The same for years."`
	KeepWithin  time.Duration `placeholder:"DURATION" help:"Keep all snapshots that are less than DURATION older than the newest one, for example 36h or 90m."`
	DryRun      bool          `short:"n" help:"Print what would be removed, without removing it."`
}

func (c *pruneCommand) Run(s *session) error {
	keep := backup.Retention{
		KeepLast:    c.KeepLast,
		KeepHourly:  c.KeepHourly,
		KeepDaily:   c.KeepDaily,
		KeepWeekly:  c.KeepWeekly,
		KeepMonthly: c.KeepMonthly,
		KeepYearly:  c.KeepYearly,
		KeepWithin:  c.KeepWithin,
		DryRun:      c.DryRun,
	}
	faults := []error{c.needBackupDir()}
	if keep == (backup.Retention{DryRun: c.DryRun}) {
		faults = append(faults, errors.New("no keep rule: give --keep-last or another --keep flag"))
	}
	if err := joinFor("prune", faults...); err != nil {
		return err
	}
	opts := c.options()
	s.watch(&opts)
	result, err := backup.PruneRuntimeBackups(s.ctx, opts, keep)
	if result == nil {
		return err
	}
	if derr := s.writeResult(document(result)); derr != nil {
		return errors.Join(err, fmt.Errorf("prune: %w", derr))
	}
	s.say("%s", pruned(result))
	return err
}

func pruned(r *backup.PruneResult) string {
	removed := "removed"
	if r.DryRun {
		removed = "would be removed"
	}
	text := fmt.Sprintf("%s kept, %d %s", count(int64(len(r.Kept)), "snapshot"), len(r.Removed), removed)
	for i, p := range r.Skipped {
		separator := ", "
		if i == 0 {
			separator = "; skipped: "
		}
		text += fmt.Sprintf("%s%s (%s)", separator, p.Stamp, p.Reason)
	}
	return text + "."
}
