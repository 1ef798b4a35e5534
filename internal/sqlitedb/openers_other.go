//go:build !linux

package sqlitedb

import "github.com/atocore/backup/internal/fsat"

// openedBy returns nothing: this system offers no way to find out.
func openedBy(fsat.ID) (pids []int) { return nil }

func openedHere(fsat.ID) bool { return false }

func askKept(string, fsat.Info) openness { return unknown }

func askOnce(string, fsat.Info) openness { return unknown }
