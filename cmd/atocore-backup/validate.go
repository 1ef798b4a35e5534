package main

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/atocore/backup"
)

type validateCommand struct {
	storeFlags

	Stamp *string `arg:"" optional:"" help:"The snapshot's name, as create and list print it, or latest."`
	All   bool    `help:"Validate all snapshots in the backup directory, of whichever store."`
}

// Help returns the details for the help of this command.
func (c *validateCommand) Help() string {
	return `Compares every file with the snapshot's SHA256SUMS, lets SQLite check the databases, and records the verdict beside the snapshot, for list, status, prune and latest. Nothing is changed in the snapshot.

The status is 0 if it is valid and 1 if it is not. With --all, the result is a JSON array of reports, and the status is 1 if any snapshot is not valid.

Example: ` + commandName + ` validate latest --backup-dir /srv/backup`
}

func (c *validateCommand) Run(s *session) error {
	if err := joinFor("validate", c.needBackupDir(), c.checkStamp()); err != nil {
		return err
	}
	opts := c.options()
	opts.RecordVerdicts = true
	s.watch(&opts)
	if c.All {
		return joinFor("validate", c.validateAll(s, opts))
	}
	stamp := *c.Stamp
	if stamp == latest {
		snapshot, interrupted, err := s.find(opts, stamp)
		if err != nil && !interrupted {
			return joinFor("validate", err)
		}
		stamp = snapshot.Stamp
	}
	report, verdict := backup.ValidateBackup(s.ctx, opts, stamp)
	if report == nil {
		return verdict
	}
	if err := s.writeReport("validate", report); err != nil {
		return err
	}
	return verdict
}

func (c *validateCommand) checkStamp() error {
	switch {
	case c.All && c.Stamp != nil:
		return errors.New("give a stamp or --all, not both")
	case !c.All && c.Stamp == nil:
		return errors.New("no stamp: give the name of a snapshot, latest, or --all")
	}
	return nil
}

// validateAll validates all snapshots, oldest first. One that is removed
// meanwhile is left out. One that cannot be checked is an error in the end,
// unless another is found not to be valid, which is what the status should say.
func (c *validateCommand) validateAll(s *session, opts backup.Options) error {
	snapshots, unfinished := backup.ListRuntimeBackups(s.ctx, opts)
	if snapshots == nil {
		return unfinished
	}
	var reports []*backup.Report
	var invalid, unknown error // the first
	valid, unchecked := 0, 0
	for _, snapshot := range snapshots {
		report, err := backup.ValidateBackup(s.ctx, opts, snapshot.Stamp)
		switch {
		case s.ctx.Err() != nil:
			return err
		case report == nil:
			s.say("Snapshot %q could not be checked: %v", snapshot.Stamp, err)
			unknown = cmp.Or(unknown, err)
			unchecked++
			continue
		case !report.Exists:
			continue
		case report.Valid:
			valid++
		default:
			invalid = cmp.Or(invalid, err)
		}
		reports = append(reports, report)
		s.tellReport(report)
	}
	if len(reports) == 0 && unknown == nil {
		return cmp.Or(unfinished, c.checkExists(), fmt.Errorf("%w in %s", backup.ErrNoSnapshot, c.BackupDir))
	}
	if err := s.writeResult(array(reports)); err != nil {
		return err
	}
	s.tell("%d of %s valid.", valid, are(len(reports), "snapshot"))
	switch {
	case unfinished != nil:
		return unfinished
	case invalid == nil && unknown != nil:
		return fmt.Errorf("%d of %s could not be checked: %w", unchecked, count(int64(len(snapshots)), "snapshot"), unknown)
	}
	return invalid
}

// are returns a number with a noun and its verb.
func are(n int, noun string) string {
	if n == 1 {
		return "1 " + noun + " is"
	}
	return count(int64(n), noun) + " are"
}

// writeReport prints a report.
func (s *session) writeReport(command string, report *backup.Report) error {
	if err := s.writeResult(document(report)); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	s.tellReport(report)
	return nil
}

// tellReport says as a part of the result whether the snapshot is valid, what is
// wrong with it and what could not be checked.
func (s *session) tellReport(report *backup.Report) { describe(report, s.tell) }

// reportProblems says the same as a message.
func (s *session) reportProblems(report *backup.Report) { describe(report, s.say) }

func describe(report *backup.Report, say func(format string, args ...any)) {
	switch {
	case report.Valid:
		say("Snapshot %q is valid.", report.Stamp)
	case !report.Exists:
		say("There is no snapshot %q:", report.Stamp)
	default:
		say("Snapshot %q is not valid:", report.Stamp)
	}
	for _, problem := range report.Problems {
		say("  %s", problem)
	}
	switch {
	case report.Valid, !report.Exists:
	case report.Intact:
		say("It is intact: every byte is what was backed up, so these findings are about the store of that time.")
	case onlyFindings(report):
		say("Nothing proves that it is intact, for it has no manifest.")
	}
	if len(report.Notes) > 0 {
		say("Not checked, or only noted:")
		for _, note := range report.Notes {
			say("  %s", note)
		}
	}
}
