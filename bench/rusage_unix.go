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
	return maxrss(usage)
}

// childrenPeakMemory returns the peak resident memory of the largest process that
// this one ran and waited for, in bytes.
func childrenPeakMemory() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &usage); err != nil {
		return 0
	}
	return maxrss(&usage)
}

// maxrss returns the peak in bytes. It is in bytes on macOS and in KiB elsewhere
// (getrusage(2) of each).
func maxrss(usage *syscall.Rusage) int64 {
	peak := int64(usage.Maxrss) // an int32 on 32-bit systems
	if runtime.GOOS == "darwin" {
		return peak
	}
	return peak * 1024
}

func syncDisks() { unix.Sync() }
