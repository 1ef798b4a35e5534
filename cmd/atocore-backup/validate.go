package main

import (
	"errors"
	"fmt"

	"github.com/atocore/backup"
)

type validateCommand struct {
	storeFlags

	Stamp string `arg:"" help:"The snapshot's name, as create and list print it."`
}

func (c *validateCommand) Run(s *session) error {
	if err := all("validate", c.needBackupDir()); err != nil {
		return err
	}
	opts := c.options()
	s.watch(&opts)
	report, verdict := backup.ValidateBackup(s.ctx, opts, c.Stamp)
	if verdict != nil && !errors.Is(verdict, backup.ErrInvalidBackup) {
		return verdict
	}
	if err := s.deliver(document(report)); err != nil {
		return fmt.Errorf("validate: %w", err)
	}
	if verdict == nil {
		s.say("Snapshot %q is valid.", c.Stamp)
		return nil
	}
	s.say("Snapshot %q is not valid:", c.Stamp)
	for _, problem := range report.Problems {
		s.say("  %s", problem)
	}
	return verdict
}
