package sqlitedb

import (
	"context"
	"errors"

	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// A backuper is a connection of modernc.org/sqlite.
type backuper interface {
	NewBackup(uri string) (*sqlite.Backup, error)
}

// copyOnline copies src page by page through SQLite's online backup API
// (sqlite.org/backup.html).
func (c *Capture) copyOnline(ctx context.Context, src *Source, dir *fsat.Dir) (err error) {
	if err := createEmpty(dir, WorkName); err != nil {
		return err
	}
	path, err := pathFor(dir, WorkName)
	if err != nil {
		return err
	}
	// Nobody else sees the copy before it is synced, so it needs neither a
	// journal nor syncs nor locks of its own.
	b, err := src.driver.(backuper).NewBackup(URI(path, "rw",
		"_pragma=locking_mode(exclusive)", "_pragma=journal_mode(off)", "_pragma=synchronous(off)"))
	if err != nil {
		return err
	}
	// Finish returns nil for an incomplete backup as well, so only Step can
	// report that nothing is left to copy.
	complete := false
	defer func() {
		if ferr := b.Finish(); err == nil {
			err = ferr
		}
		if err == nil && !complete {
			err = errors.New("online backup ended early")
		}
	}()
	const stepBytes = 4 << 20
	pagesPerStep := int32(max(1, stepBytes/src.pageSize))
	return poll.Until(ctx, firstPause, mostPause, func() (bool, error) {
		for !complete {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			more, err := b.Step(pagesPerStep)
			if isBusy(err) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			complete = !more
			total := int64(b.PageCount()) * src.pageSize
			c.progress(total-int64(b.Remaining())*src.pageSize, total)
		}
		return true, nil
	})
}
