package main

import (
	"errors"
	"fmt"

	"github.com/atocore/backup"
)

type pruneCommand struct {
	storeFlags

	KeepLast    limit `placeholder:"N" help:"Keep the N newest snapshots. For every flag that takes N, unlimited or -1 means no limit."`
	KeepHourly  limit `placeholder:"N" help:"Keep the newest snapshot of each of the last N hours that have one."`
	KeepDaily   limit `placeholder:"N" help:"The same for days, in UTC."`
	KeepWeekly  limit `placeholder:"N" help:"The same for weeks, from Monday."`
	KeepMonthly limit `placeholder:"N" help:"The same for months."`
	KeepYearly  limit `placeholder:"N" help:"The same for years."`
	KeepWithin  span  `placeholder:"DURATION" help:"Keep all snapshots that are less than DURATION older than the newest one, for example 2y5m7d3h as in restic (m is months), or 36h."`
	DryRun      bool  `short:"n" help:"Print what would be removed, without removing it."`
}

func (c *pruneCommand) Run(s *session) error {
	keep := backup.Retention{
		KeepLast:    int(c.KeepLast),
		KeepHourly:  int(c.KeepHourly),
		KeepDaily:   int(c.KeepDaily),
		KeepWeekly:  int(c.KeepWeekly),
		KeepMonthly: int(c.KeepMonthly),
		KeepYearly:  int(c.KeepYearly),
		DryRun:      c.DryRun,
	}
	c.KeepWithin.apply(&keep)
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
	if c.KeepWithin != (span{}) {
		s.say("All snapshots within %s of the newest one are kept.", c.KeepWithin)
	}
	s.say("%s", pruned(result))
	for _, left := range result.Remains {
		s.say("Not removed, and tried again by the next prune: %s (%s).", left.Path, left.Reason)
	}
	return err
}

func pruned(r *backup.PruneResult) string {
	removed := "removed"
	if r.DryRun {
		removed = "would be removed"
	}
	text := fmt.Sprintf("%s kept, %d %s", count(int64(len(r.Kept)), "snapshot"), len(r.Removed), removed)
	if n := len(r.NeverVerified); n > 0 {
		text += fmt.Sprintf(" (%d of them never verified)", n)
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
