//go:build !linux

package sqlitedb

import "github.com/atocore/backup/internal/fsat"

// seesNames is not set: nothing can be seen of a database here before it is
// opened.
const seesNames = false

func markedWAL(string) *fsat.File { return nil }

func sharedLock(*fsat.File) (user string, used bool) { return "", false }

func shmLocked(string) bool { return true }

func shmOpenHere(string) bool { return true }
