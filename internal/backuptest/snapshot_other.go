//go:build !linux && !darwin

package backuptest

import "testing"

// SpecialFiles put a FIFO or a socket in the place of a file. There are none
// where the system has no such files.
var SpecialFiles []Damage

// changeTime is only known on Linux and macOS.
func changeTime(*testing.T, string) any { return nil }
