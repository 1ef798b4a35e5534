//go:build !linux

package restic

// transferred returns 0: only restic's output shows whether it gets on.
func transferred(int) int64 { return 0 }
