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
// read, is errdefs.ErrSourceInvalid; something else than a file beside it is
// fsat.ErrNotRegular. After an error nothing is locked, and the WAL is as it was.
//
// In WAL mode every connection that has ever read holds a SHARED lock on the
// file, and with locking_mode=exclusive SQLite wants an EXCLUSIVE one before it
// opens the WAL without shared memory (sqlite.org/wal.html, "Use of WAL Without
// Shared-Memory"). So an idle connection is noticed, whether it is in this
// process or in another one. In rollback mode a connection holds a lock only
// during a transaction (sqlite.org/lockingv3.html); an idle one is noticed by
// CheckNotOpen alone, on systems where that works.
//
// The content of the WAL is moved to the database file, so that the file is
// complete without it, unless the pages of the database carry checksums (see
// pageChecksums): SQLite would write the pages without. Then the WAL stays, and
// closing the Source does not touch it either.
func Lock(ctx context.Context, path string) (_ *Source, err error) {
	info, err := fsat.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size == 0 {
		// SQLite would take it for a new database and begin to fill it.
		return nil, fmt.Errorf("%w: %s is empty", errdefs.ErrSourceInvalid, path)
	}
	if err := checkSidecars(path); err != nil {
		return nil, err
	}
	if err := checkLockDirectory(path); err != nil {
		return nil, err
	}
	c, err := openConn(path, "rw", "_pragma=busy_timeout(0)", "_pragma=locking_mode(exclusive)")
	if err != nil {
		return nil, lockError(path, err)
	}
	countSource(info.ID(), 1)
	src := &Source{conn: c, path: path, id: info.ID(), keepWAL: true}
	defer func() {
		if err != nil {
			src.Close()
		}
	}()
	// A connection that is closed removes the WAL by name, and by then the name
	// may belong to another database.
	if _, err := c.driver.(sqlite.FileControl).FileControlPersistWAL("main", 1); err != nil {
		return nil, lockError(path, err)
	}
	// With locking_mode=exclusive the lock outlives the transaction that took it.
	// A write transaction would keep the online backup from reading.
	for _, statement := range []string{"BEGIN EXCLUSIVE", "COMMIT"} {
		if err := src.exec(ctx, statement); err != nil {
			return nil, lockError(path, err)
		}
	}
	checksums, err := src.hasChecksums(ctx)
	if err == nil && !checksums {
		err = src.exec(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	}
	if err == nil {
		err = src.exec(ctx, "BEGIN")
	}
	if err == nil {
		err = src.read(ctx)
	}
	if err != nil {
		return nil, lockError(path, err)
	}
	src.keepWAL = checksums
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
	return sourceError(path, err)
}

// CheckNotOpen returns errdefs.ErrDatabaseInUse if somebody has the file at path
// open. It supplements the locks and does not replace them.
//
// On Linux it asks for a lease, by which it finds any process, whatever it may
// look into and whatever container that is in, if the file system has leases
// and the file belongs to this process's user, or this process has CAP_LEASE
// (fcntl(2), "Leases"). Otherwise it finds the processes that it may look into,
// and on other systems none. Whoever opens the file at that moment waits for the
// lease to end; with O_NONBLOCK, which SQLite does not use, that fails.
//
// Another process that has the file open is looked at again for some 200 ms
// before it is reported: a process that this one is starting has duplicates of
// all descriptors until its execve(2) closes them. If ctx ends meanwhile, its
// error is returned.
func CheckNotOpen(ctx context.Context, path string) error {
	return checkNotOpen(ctx, path, askKept)
}

// openness is whether somebody else has a file open.
type openness int

const (
	unknown openness = iota
	openByNobody
	openBySomebody
)

// checkNotOpen is CheckNotOpen with the function that asks for a lease.
func checkNotOpen(ctx context.Context, path string, ask func(path string, info fsat.Info) openness) error {
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
		if openedHere(path, info.ID()) {
			return true, inUseBy(os.Getpid(), path)
		}
		// A lease says at once what looking at every descriptor of every process
		// says only later, and that is a store's time offline.
		answer := ask(path, info)
		if answer == openByNobody {
			return true, nil
		}
		now := openedBy(path, info.ID())
		if answer == unknown && len(now) == 0 {
			return true, nil
		}
		for _, pid := range now {
			if looks >= enough && slices.Contains(before, pid) || looks >= most {
				return true, inUseBy(pid, path)
			}
		}
		if len(now) == 0 && (looks >= enough && before != nil && len(before) == 0 || looks >= most) {
			return true, fmt.Errorf("%w: somebody has %s open, a process that cannot be seen from here: of another user, or in another container",
				errdefs.ErrDatabaseInUse, path)
		}
		before = append([]int{}, now...)
		return false, nil
	})
}

func inUseBy(pid int, path string) error {
	return fmt.Errorf("%w: process %d has %s open", errdefs.ErrDatabaseInUse, pid, path)
}
