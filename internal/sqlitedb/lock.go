package sqlitedb

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// Lock opens the database at path, whose links are resolved, and locks it
// exclusively until the Source is closed. It does not wait: it returns
// errdefs.ErrDatabaseInUse. A file that is not a database, or that cannot be
// read, is errdefs.ErrSourceInvalid; then nothing is locked.
//
// In WAL mode every connection that has ever read holds a SHARED lock on the
// file, and with locking_mode=exclusive SQLite wants an EXCLUSIVE one before it
// opens the WAL without shared memory (sqlite.org/wal.html, "Use of WAL Without
// Shared-Memory"). So an idle connection is noticed, whether it is in this
// process or in another one. In rollback mode a connection holds a lock only
// during a transaction (sqlite.org/lockingv3.html); an idle one is noticed by
// CheckNotOpen alone, on systems where that works.
//
// The content of the WAL is moved to the database file first, so that the file
// is complete without it.
func Lock(ctx context.Context, path string) (_ *Source, err error) {
	info, err := fsat.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size == 0 {
		// SQLite would take it for a new database and begin to fill it.
		return nil, fmt.Errorf("%w: %s is empty", errdefs.ErrSourceInvalid, path)
	}
	c, err := openConn(path, "rw", "_pragma=busy_timeout(0)", "_pragma=locking_mode(exclusive)")
	if err != nil {
		return nil, lockError(path, err)
	}
	src := &Source{conn: c, path: path, id: info.ID()}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	// A connection that is closed removes the WAL by name, and by then the name
	// may belong to another database.
	if _, err := c.driver.(sqlite.FileControl).FileControlPersistWAL("main", 1); err != nil {
		return nil, lockError(path, err)
	}
	// With locking_mode=exclusive the lock outlives the transaction that took it.
	// A write transaction would keep the online backup from reading.
	for _, statement := range []string{"PRAGMA wal_checkpoint(TRUNCATE)", "BEGIN EXCLUSIVE", "COMMIT", "BEGIN"} {
		if err := src.exec(ctx, statement); err != nil {
			return nil, lockError(path, err)
		}
	}
	if err := src.read(ctx); err != nil {
		return nil, lockError(path, err)
	}
	return src, nil
}

// lockError maps SQLITE_BUSY and SQLITE_LOCKED to ErrDatabaseInUse, and errors
// by which the database cannot be read to ErrSourceInvalid. Other errors become
// those of sourceError.
func lockError(path string, err error) error {
	switch {
	case isBusy(err):
		return fmt.Errorf("%w: %s is locked: %w", errdefs.ErrDatabaseInUse, path, err)
	case isUnreadable(err):
		return fmt.Errorf("%w: %s cannot be read: %w", errdefs.ErrSourceInvalid, path, err)
	}
	return sourceError(err)
}

// CheckNotOpen returns errdefs.ErrDatabaseInUse if a process has the file at
// path open. It supplements the locks and does not replace them: it sees only
// processes that this one may look into, and on most systems none.
//
// Another process that has the file open is looked at again for some 200 ms
// before it is reported: a process that this one is starting has duplicates of
// all descriptors, of kept ones as well (see keptDescriptors), until its
// execve(2) closes them. If ctx ends meanwhile, its error is returned.
func CheckNotOpen(ctx context.Context, path string) error {
	info, err := fsat.Stat(path)
	if err != nil {
		return nil
	}
	const (
		enough = 8  // looks that find one process in the end, with pauses of 226 ms
		most   = 12 // looks that find another process each time
	)
	var before []int
	looks := 0
	return poll.Until(ctx, 2*time.Millisecond, 100*time.Millisecond, func() (done bool, err error) {
		looks++
		now := openedBy(info.ID())
		for _, pid := range now {
			if pid == os.Getpid() || looks >= enough && slices.Contains(before, pid) || looks >= most {
				return true, fmt.Errorf("%w: process %d has %s open", errdefs.ErrDatabaseInUse, pid, path)
			}
		}
		before = now
		return len(now) == 0, nil
	})
}
