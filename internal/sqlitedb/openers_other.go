//go:build !linux

package sqlitedb

import "github.com/atocore/backup/internal/fsat"

// openedBy returns nothing: processes are looked for in /proc of Linux only.
func openedBy(string, fsat.ID) (pids []int) { return nil }

// openedHere returns false: not even this process is looked at.
func openedHere(string, fsat.ID) bool { return false }

// askKept returns unknown: leases are Linux's (fcntl(2), "Leases").
func askKept(string, fsat.Info) openness { return unknown }

// askOnce returns unknown, as askKept does.
func askOnce(string, fsat.Info) openness { return unknown }

// forget does nothing: no descriptor is kept here.
func forget(fsat.ID) {}
