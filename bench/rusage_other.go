//go:build !unix

package main

import "os"

// peakMemory is not supported on this platform and returns 0.
func peakMemory(*os.ProcessState) int64 { return 0 }

// childrenPeakMemory is not supported on this platform and returns 0.
func childrenPeakMemory() int64 { return 0 }

func syncDisks() {}
