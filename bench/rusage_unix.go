//go:build unix

package main

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// peakMemory returns the peak resident memory of a process that has ended, in
// bytes. On Linux it is at least the parent's memory at the time it started the
// process, because exec(2) does not reset the high-water mark. Therefore this
// program must stay small, and child processes create the data.
func peakMemory(p *os.ProcessState) int64 {
	usage, ok := p.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0
	}
	peak := int64(usage.Maxrss) // an int32 on 32-bit systems
	if runtime.GOOS == "darwin" {
		return peak // in bytes there, in KiB elsewhere (getrusage(2) of each)
	}
	return peak * 1024
}

func syncDisks() { unix.Sync() }
