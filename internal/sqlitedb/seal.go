package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// Seal brings the copy dir/WorkName into the form in which it is kept, and
// renames it to into/name. The two directories differ, since name may be a name
// that SQLite or this package uses in dir. Nothing of it is left in a WAL, and it
// is marked as a rollback-journal database, so that reading it never makes a -wal
// or -shm beside it and it opens on a read-only disk. If its pages carry checksums, those that
// SQLite or Seal wrote get right ones. Seal returns the size of the copy. If that
// is less than its header says, as it is if somebody cut the original short, or if
// a copy that the host has written has no table or cannot be read, the error
// matches errdefs.ErrSourceInvalid.
func (c *Copy) Seal(ctx context.Context, dir, into *fsat.Dir, name string) (size int64, err error) {
	folded, err := c.foldWAL(ctx, dir)
	if err != nil {
		if c.byHost {
			err = unreadableCopy(err)
		}
		return 0, withSystemError(err)
	}
	if folded { // the copy is no longer the one that was hashed
		c.Discard()
	}
	f, err := dir.OpenRW(WorkName)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := c.setForm(ctx, f); err != nil {
		return 0, err
	}
	if c.byHost {
		if err := checkContent(ctx, dir); err != nil {
			return 0, err
		}
	}
	h, err := readHeader(f)
	if err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if want := h.size(); info.Size < want || info.Size == 0 {
		return 0, fmt.Errorf("%w: the copy has %d bytes and its header says %d", errdefs.ErrSourceInvalid, info.Size, want)
	}
	if err := dir.Rename(WorkName, into, name); err != nil {
		return 0, err
	}
	if c.hash != nil {
		sealed, err := f.Stat() // again: renaming a file changes its times
		if err != nil {
			return 0, err
		}
		c.hash.Seal(sealed)
	}
	return info.Size, nil
}

// setForm marks the copy as a rollback-journal database and gives the pages that
// were written their checksums.
func (c *Copy) setForm(ctx context.Context, f *fsat.File) error {
	h, err := readHeader(f)
	if err != nil {
		return err
	}
	// The online backup copies the form unchanged. A hash that was taken
	// meanwhile has the changed one already.
	if !h.isRollbackForm() {
		head := make([]byte, max(h.pageSize(), headerSize))
		n, err := f.ReadAt(head, 0)
		if err != nil && err != io.EOF {
			return err
		}
		if err := markRollbackForm(head[:n]); err != nil {
			return err
		}
		if _, err := f.WriteAt(head[:n], 0); err != nil {
			return err
		}
	}
	if !h.hasChecksums() {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return sign(ctx, f, h.pageSize(), info.Size, &c.written)
}

// foldWAL writes what a copied WAL holds into the copied database, removes the
// WAL, and returns true. Without a copied WAL it leaves the database as it is
// and returns false. If the pages carry checksums, it adds those that it wrote
// to c.written.
func (c *Copy) foldWAL(ctx context.Context, dir *fsat.Dir) (folded bool, err error) {
	const wal = WorkName + "-wal"
	info, err := dir.Lstat(wal)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Size == 0 {
		return false, dir.Remove(wal, false)
	}
	path, err := pathFor(dir, WorkName)
	if err != nil {
		return false, err
	}
	if err := c.noteWAL(ctx, dir); err != nil {
		return false, err
	}
	// With exclusive locking from the start the WAL's index is kept in memory
	// and no -shm is made (sqlite.org/wal.html, "Use of WAL Without
	// Shared-Memory").
	db, err := openConn(path, "rw",
		"_pragma=locking_mode(exclusive)", "_pragma=synchronous(off)")
	if err != nil {
		return true, err
	}
	defer func() {
		if cerr := db.Close(); err == nil {
			err = cerr
		}
	}()
	mode, err := db.text(ctx, "PRAGMA journal_mode=delete")
	if err != nil {
		return true, err
	}
	if mode != "delete" {
		return true, fmt.Errorf("folding the copied WAL left journal mode %s", mode)
	}
	return true, nil
}

// noteWAL adds the pages that the copied WAL holds to c.written, if pages of the
// copied database carry checksums. If they do so only because of what the WAL
// holds, a VACUUM has written every page.
func (c *Copy) noteWAL(ctx context.Context, dir *fsat.Dir) error {
	f, err := dir.Open(WorkName)
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := readHeader(f)
	if err != nil || !h.hasChecksums() {
		c.written.all = true
		return nil
	}
	// SQLite writes the first page to change the journal mode.
	first := make([]byte, h.pageSize())
	if _, err := f.ReadAt(first, 0); err == nil && hasRightChecksum(first) {
		c.written.add(1)
	}
	wal, err := dir.Open(WorkName + "-wal")
	if err != nil {
		return err
	}
	defer wal.Close()
	return c.written.addWAL(ctx, wal)
}
