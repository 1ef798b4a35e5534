//go:build unix

package restic

import (
	"os"
	"os/exec"
	"syscall"
	"time"
)

// detach makes restic the leader of a session of its own, which has no terminal:
// ssh and others that restic runs read passwords from /dev/tty if there is one.
func detach(cmd *exec.Cmd, inherit []*os.File) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = inherit
}

// interrupt asks restic to stop, so that it removes its lock.
func interrupt(process *os.Process) error { return process.Signal(syscall.SIGINT) }

// zone is the one in which restic reads times: it heeds TZ.
func zone() *time.Location { return time.UTC }
