//go:build !linux

package sqlitedb

import "github.com/atocore/backup/internal/fsat"

// markedWAL returns nil: no descriptor of a live database is kept here.
func markedWAL(string) *fsat.File { return nil }

// sharedLock returns that nobody is known to have a lock.
func sharedLock(*fsat.File) (user string, used bool) { return "", false }

// shmLocked returns true: it cannot be determined, so the database may be in use.
func shmLocked(string) bool { return true }

// shmOpenHere returns true, as shmLocked does.
func shmOpenHere(string) bool { return true }
