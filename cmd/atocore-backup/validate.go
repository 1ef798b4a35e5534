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
	if report.Valid {
		s.say("Snapshot %q is valid.", report.Stamp)
		return nil
	}
	s.say("Snapshot %q is not valid:", report.Stamp)
	for _, problem := range report.Problems {
		s.say("  %s", problem)
	}
	return nil
}
