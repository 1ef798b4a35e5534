package backup

import (
	"context"
	"fmt"

	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/fsat"
)

// lockDatabase opens the database at path and keeps everybody else out of it
// until the connection is closed. It does not wait: ErrDatabaseInUse.
//
// In WAL mode every connection that has ever read holds a SHARED lock on the
// file, and with locking_mode=exclusive SQLite wants an EXCLUSIVE one before it
// opens the WAL without shared memory (sqlite.org/wal.html, "Use of WAL Without
// Shared-Memory"). So an idle connection is noticed, in this process or
// another. In rollback mode a connection holds a lock only during a
// transaction (sqlite.org/lockingv3.html); an idle one is noticed by openers
// alone, where the system has that.
//
// What the WAL holds is put into the database file first, so that the file is
// whole without it.
func lockDatabase(ctx context.Context, path string) (_ *pinnedSource, err error) {
	info, err := fsat.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size == 0 {
		// SQLite would take it for a new database and begin to fill it.
		return nil, fmt.Errorf("%w: %s is empty", ErrSourceInvalid, path)
	}
	conn, err := openSQLite(path, "rw", "_pragma=busy_timeout(0)", "_pragma=locking_mode(exclusive)")
	if err != nil {
		return nil, inUse(path, err)
	}
	src := &pinnedSource{sqliteConn: conn, path: path, id: fileID{info.Dev, info.Ino}}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	// At its end a connection removes the WAL by name, and by then the name may
	// belong to another database.
	if _, err := conn.Conn.(sqlite.FileControl).FileControlPersistWAL("main", 1); err != nil {
		return nil, inUse(path, err)
	}
	// With locking_mode=exclusive the lock outlives the transaction that took it.
	// A write transaction would keep the online backup from reading.
	for _, statement := range []string{"PRAGMA wal_checkpoint(TRUNCATE)", "BEGIN EXCLUSIVE", "COMMIT", "BEGIN"} {
		if err := conn.exec(ctx, statement); err != nil {
			return nil, inUse(path, err)
		}
	}
	if err := src.pin(ctx); err != nil {
		return nil, inUse(path, err)
	}
	return src, nil
}

// inUse tells a locked database from one that is none.
func inUse(path string, err error) error {
	if code := sqliteCode(err); code == sqliteBusy || code == sqliteLocked {
		return fmt.Errorf("%w: %s is locked: %w", ErrDatabaseInUse, path, err)
	}
	return sourceError(err)
}

// refuseOpeners looks whether somebody has the file at path open. It is a help
// beside the locks: it sees only processes that this one may look into, on
// systems that tell.
func refuseOpeners(path string) error {
	info, err := fsat.Stat(path)
	if err != nil {
		return nil
	}
	if pid := openedBy(info); pid != 0 {
		return fmt.Errorf("%w: process %d has %s open", ErrDatabaseInUse, pid, path)
	}
	return nil
}
