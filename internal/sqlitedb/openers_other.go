//go:build !linux

package sqlitedb

import "github.com/atocore/backup/internal/fsat"

// openedBy returns 0: this system offers no way to find out.
func openedBy(fsat.Info) (pid int) { return 0 }
