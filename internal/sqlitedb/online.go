package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

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
func (c *Capture) copyOnline(ctx context.Context, src *Source, dir *fsat.Dir, made *Copy) error {
	if err := createEmpty(dir, WorkName); err != nil {
		return err
	}
	path, err := pathFor(dir, WorkName)
	if err != nil {
		return err
	}
	if err := c.runBackup(ctx, src, path); err != nil {
		return err
	}
	return made.noteBackup(ctx, src, dir)
}

// runBackup copies src to the file at path, which is empty.
func (c *Capture) runBackup(ctx context.Context, src *Source, path string) (err error) {
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
	for !complete {
		var more bool
		err := briefly(ctx, func() (err error) {
			more, err = b.Step(pagesPerStep)
			return err
		})
		if err != nil {
			return err
		}
		complete = !more
		total := int64(b.PageCount()) * src.pageSize
		c.progress(total-int64(b.Remaining())*src.pageSize, total)
	}
	return nil
}

// briefly calls try until it does not fail because the database is busy. After a
// moment it returns ErrBusy.
func briefly(ctx context.Context, try func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, brief)
	defer cancel()
	var err error
	waitErr := poll.Until(soon, firstPause, mostPause, func() (bool, error) {
		err = try()
		return !isBusy(err) && !errors.Is(err, ErrBusy), nil
	})
	switch {
	case waitErr == nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ErrBusy):
		return err
	}
	return fmt.Errorf("%w: %w", ErrBusy, err)
}

// noteBackup notes which pages of a backup cannot be taken as they are if they
// carry checksums: the first, which the backup changes, and those that came
// from the WAL. The WAL of src's transaction is still there: while src reads from
// it, nobody restarts it. If src reads from the database file alone, what is in
// the WAL by now does no harm, since its writer has just read those pages.
func (c *Copy) noteBackup(ctx context.Context, src *Source, dir *fsat.Dir) error {
	f, err := dir.Open(WorkName)
	if err != nil {
		return err
	}
	h, err := readHeader(f)
	f.Close()
	if err != nil || !h.hasChecksums() {
		return nil // Seal reports what is not a database
	}
	c.written.add(1)
	if src.mode != "wal" {
		return nil
	}
	wal, err := fsat.OpenFile(src.path + "-wal")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer wal.Close() // SQLite has no locks on it that closing would drop
	return c.written.addWAL(ctx, wal)
}
