//go:build unix

package main

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// peakMemory gives the peak resident memory of a process that has ended, in
// bytes. On Linux it is at least what the parent had when it started the
// process, for exec(2) keeps the mark. So this program stays small: data are
// made in child processes.
func peakMemory(p *os.ProcessState) int64 {
	usage, ok := p.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return usage.Maxrss
	}
	return int64(usage.Maxrss) * 1024
}

func syncDisks() { unix.Sync() }
