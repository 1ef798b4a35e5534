package main

import (
	"fmt"

	"github.com/atocore/backup"
)

type listCommand struct {
	storeFlags
}

func (c *listCommand) Run(s *session) error {
	if err := joinFor("list", c.needBackupDir()); err != nil {
		return err
	}
	opts := c.options()
	s.watch(&opts)
	snapshots, err := backup.ListRuntimeBackups(s.ctx, opts)
	if snapshots == nil {
		return err
	}
	if err := s.writeResult(array(snapshots)); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	s.say("%s in %s%s.", count(int64(len(snapshots)), "snapshot"), c.BackupDir, withoutMetadata(snapshots))
	return err // ErrRestoreUnfinished, or nil
}

// withoutMetadata returns a note on the snapshots without readable metadata,
// which are easy to overlook in a long list. It is empty if there are none.
func withoutMetadata(snapshots []backup.Snapshot) string {
	n := 0
	for _, snapshot := range snapshots {
		if snapshot.Metadata == nil {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d of them without readable metadata", n)
}
