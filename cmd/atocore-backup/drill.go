package main

import (
	"fmt"

	"github.com/atocore/backup/drill"
)

type drillCommand struct {
	storeFlags

	Stamp   string  `arg:"" default:"latest" help:"The name of the snapshot, as printed by create and list. The default is the latest one."`
	Scratch *string `placeholder:"DIR" help:"Create the scratch directory in DIR instead of the directory for temporary files."`

	DespiteFindings bool `help:"Restore a snapshot although SQLite, or the JSON check of the registry, objects to its content, if nothing shows damage."`
}

func (c *drillCommand) Run(s *session) error {
	if err := joinFor("drill", c.needBackupDir(), notEmpty(c.Scratch, "--scratch")); err != nil {
		return err
	}
	opts := c.options()
	opts.RecordVerdicts = true
	s.watch(&opts)
	snapshot, _, err := s.find(opts, c.Stamp)
	if err != nil {
		return joinFor("drill", err)
	}
	if !isRestorable(snapshot) {
		return s.reportInvalid("drill", opts, snapshot.Stamp)
	}
	parent := ""
	if c.Scratch != nil {
		parent = *c.Scratch
	}
	opts.DespiteFindings = c.DespiteFindings
	result, err := drill.Run(s.ctx, opts, snapshot.Stamp, parent)
	if !c.DespiteFindings && s.wantsDespiteFindings(err) {
		opts.DespiteFindings = true
		result, err = drill.Run(s.ctx, opts, snapshot.Stamp, parent)
	}
	if isInvalid(err) {
		return s.reportRefused("drill", err)
	}
	if err != nil {
		return err
	}
	for _, texts := range [][]string{result.Findings, result.Notes} {
		for i := range texts {
			texts[i] = oneLine(texts[i])
		}
	}
	if err := s.writeResult(document(result)); err != nil {
		return fmt.Errorf("drill: %w", err)
	}
	s.tell("Snapshot %s can be restored: %s, %s were restored and checked.", result.Stamp, count(result.Files, "file"), size(result.Bytes))
	for _, finding := range result.Findings {
		s.tell("It was restored despite a finding: %s", finding)
	}
	for _, note := range result.Notes {
		s.tell("Not checked, or only noted: %s", note)
	}
	return nil
}
