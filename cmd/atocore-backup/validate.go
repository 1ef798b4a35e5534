package main

import (
	"fmt"

	"github.com/atocore/backup"
)

type validateCommand struct {
	storeFlags

	Stamp string `arg:"" help:"The snapshot's name, as create and list print it."`
}

func (c *validateCommand) Run(s *session) error {
	if err := joinFor("validate", c.needBackupDir()); err != nil {
		return err
	}
	opts := c.options()
	opts.RecordVerdicts = true
	s.watch(&opts)
	report, verdict := backup.ValidateBackup(s.ctx, opts, c.Stamp)
	if report == nil {
		return verdict
	}
	if err := s.writeReport("validate", report); err != nil {
		return err
	}
	return verdict
}

// writeReport writes a report to standard output and a summary to standard
// error.
func (s *session) writeReport(command string, report *backup.Report) error {
	if err := s.writeResult(document(report)); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	s.reportProblems(report)
	return nil
}

// reportProblems says whether the snapshot is valid, what is wrong with it and
// what could not be checked.
func (s *session) reportProblems(report *backup.Report) {
	if report.Valid {
		s.say("Snapshot %q is valid.", report.Stamp)
	} else {
		s.say("Snapshot %q is not valid:", report.Stamp)
		for _, problem := range report.Problems {
			s.say("  %s", problem)
		}
		switch {
		case report.Intact:
			s.say("It is intact: every byte is what was backed up, so these findings are about the store of that time.")
		case onlyFindings(report):
			s.say("Nothing proves that it is intact, for it has no manifest.")
		}
	}
	if len(report.Notes) > 0 {
		s.say("Not checked, or only noted:")
		for _, note := range report.Notes {
			s.say("  %s", note)
		}
	}
}
