//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/atocore/backup"
)

// flockGuard returns a guard that always fails. flock(2) is not supported on this
// platform, and no other lock would exclude the writers that use it.
func flockGuard(string, func(string, ...any)) backup.Locker {
	return backup.LockerFunc(func(context.Context) (func(), error) {
		return nil, fmt.Errorf("--guard-file is not supported on %s", runtime.GOOS)
	})
}
