package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// Seal brings the copy dir/WorkName into the form in which it is kept, and
// renames it to name. Nothing of it is left in a WAL, and it is marked as a rollback-journal
// database, so that reading it never makes a -wal or -shm beside it and it
// opens on a read-only disk. Seal returns the size of the copy. If that is
// less than its header says, as it is if somebody cut the original short, the
// error matches errdefs.ErrSourceInvalid.
func (c *Copy) Seal(ctx context.Context, dir *fsat.Dir, name string) (size int64, err error) {
	folded, err := foldWAL(ctx, dir)
	if err != nil {
		return 0, err
	}
	if folded { // the copy is no longer the one that was hashed
		c.Discard()
	}
	f, err := dir.OpenRW(WorkName)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h, err := readHeader(f)
	if err != nil {
		return 0, err
	}
	// These two bytes are the only difference between a WAL database without a
	// WAL and a rollback-journal one. The online backup copies them unchanged.
	// A hash that was taken meanwhile has them already (see markRollbackForm).
	if !h.isRollbackForm() {
		if _, err := f.WriteAt([]byte{1, 1}, headerWriteForm); err != nil {
			return 0, err
		}
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if want := h.size(); info.Size < want || info.Size == 0 {
		return 0, fmt.Errorf("%w: the copy has %d bytes and its header says %d", errdefs.ErrSourceInvalid, info.Size, want)
	}
	if err := dir.Rename(WorkName, dir, name); err != nil {
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

// foldWAL writes what a copied WAL holds into the copied database, removes the
// WAL, and returns true. Without a copied WAL it leaves the database as it is
// and returns false.
func foldWAL(ctx context.Context, dir *fsat.Dir) (folded bool, err error) {
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
