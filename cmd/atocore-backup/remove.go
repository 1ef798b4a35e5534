package main

import (
	"errors"
	"fmt"

	"github.com/atocore/backup"
)

type removeCommand struct {
	storeFlags

	Stamp string `arg:"" help:"The snapshot's name, as create and list print it."`
	Yes   bool   `help:"Remove it without asking."`
}

// Help returns the details for the help of this command.
func (c *removeCommand) Help() string {
	return `Refused is what may be needed to bring the store back: the newest snapshot, the newest one that was found valid, the safety snapshot of the last restore, a protected one, and one without readable metadata. The message says what to do first. For removing old snapshots regularly, see prune.

On a terminal it asks before it removes the snapshot; without a terminal it requires --yes.

Example: ` + commandName + ` remove 20261124T115419Z --db /srv/atocore/atocore.db --backup-dir /srv/backup`
}

func (c *removeCommand) Run(s *session) error {
	if err := joinFor("remove", c.needBackupDir()); err != nil {
		return err
	}
	if err := c.confirm(s); err != nil {
		return joinFor("remove", err)
	}
	opts := c.options()
	s.watch(&opts)
	if err := backup.RemoveRuntimeBackup(s.ctx, opts, c.Stamp); err != nil {
		return err
	}
	s.say("Snapshot %s is removed.", c.Stamp)
	return nil
}

func (c *removeCommand) confirm(s *session) error {
	if c.Yes {
		return nil
	}
	if !s.canAsk() {
		return fmt.Errorf("snapshot %s would be removed: give --yes to confirm", c.Stamp)
	}
	s.say("Snapshot %s in %s will be removed, with all its files.", c.Stamp, c.BackupDir)
	answer, err := s.ask("Type yes to continue:")
	if err == nil && answer != "yes" {
		err = errors.New("not confirmed; nothing was removed")
	}
	return err
}
