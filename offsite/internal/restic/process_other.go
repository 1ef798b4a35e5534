//go:build !unix

package restic

import (
	"os"
	"os/exec"
	"time"
)

// detach does nothing: Windows hands no descriptors on by number.
func detach(*exec.Cmd, []*os.File) {}

// interrupt ends restic at once, since Windows cannot interrupt one process. Its
// lock stays, and is stale.
func interrupt(process *os.Process) error { return process.Kill() }

// zone is the one in which restic reads times: programs in Go do not heed TZ on
// Windows.
func zone() *time.Location { return time.Local }
