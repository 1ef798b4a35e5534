package main

import (
	"github.com/atocore/backup"
)

type protectCommand struct {
	storeFlags

	Stamp string `arg:"" help:"The snapshot's name, as create and list print it."`
}

func (c *protectCommand) Run(s *session) error { return s.protect(&c.storeFlags, c.Stamp, true) }

type unprotectCommand struct {
	storeFlags

	Stamp string `arg:"" help:"The snapshot's name, as create and list print it."`
}

func (c *unprotectCommand) Run(s *session) error { return s.protect(&c.storeFlags, c.Stamp, false) }

// protect protects a snapshot from prunes, or ends that.
func (s *session) protect(f *storeFlags, stamp string, protect bool) error {
	command, words := "protect", "Snapshot %s is protected: no prune removes it."
	if !protect {
		command, words = "unprotect", "Snapshot %s is not protected any more."
	}
	if err := joinFor(command, f.needBackupDir()); err != nil {
		return err
	}
	opts := f.options()
	s.watch(&opts)
	if err := backup.ProtectRuntimeBackup(s.ctx, opts, stamp, protect); err != nil {
		return err
	}
	s.say(words, stamp)
	return nil
}
