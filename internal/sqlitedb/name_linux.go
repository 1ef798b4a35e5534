package sqlitedb

import (
	"fmt"

	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/fsat"
)

// The bytes of a database file on which SQLite holds SHARED and EXCLUSIVE locks
// (SHARED_FIRST and SHARED_SIZE in os.h).
const (
	sharedFirst = 0x40000002
	sharedSize  = 510
)

// markedWAL returns a descriptor of the database at path, which the caller must
// not close, if the file is marked as a WAL database. If it is not, or if that
// cannot be determined, markedWAL returns nil.
func markedWAL(path string) *fsat.File {
	info, err := fsat.Stat(path)
	if err != nil || !info.Mode.IsRegular() {
		return nil
	}
	live, err := keepDescriptor(path, info.ID())
	if err != nil {
		return nil
	}
	if h, err := readHeader(live); err != nil || h[headerReadForm] != 2 {
		return nil
	}
	return live
}

// sharedLock reports whether somebody else has a SHARED lock on the database,
// and who.
func sharedLock(live *fsat.File) (user string, used bool) {
	lock, found, err := live.LockOf(sharedFirst, sharedSize)
	switch {
	case err != nil || !found || lock.Exclusive:
		return "", false
	case lock.PID > 0:
		return fmt.Sprintf("process %d", lock.PID), true
	case lock.PID == 0:
		return "a process in another container", true
	}
	// A lock of an open file description is reported even to the process that
	// has it.
	return "a process", !sqlite.OFDLockingEnabled()
}

// shmLocked reports whether another process has the -shm of the database at path
// locked, or whether that cannot be determined.
func shmLocked(path string) bool {
	shm, err := fsat.Stat(path + "-shm")
	if fsat.IsMissing(err) {
		return false
	}
	if err != nil {
		return true
	}
	// A host has locks on the -shm of its own connections, so a descriptor of
	// that must not be closed either.
	f, err := keepDescriptor(path+"-shm", shm.ID())
	if err != nil {
		return true
	}
	_, locked, err := f.LockOf(0, 0)
	return locked || err != nil
}

// shmOpenHere reports whether this process has the -shm of the database at path
// open.
func shmOpenHere(path string) bool {
	shm, err := fsat.Stat(path + "-shm")
	return err == nil && openedHere(path+"-shm", shm.ID())
}
