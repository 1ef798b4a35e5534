//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/atocore/backup"
)

// flockGuard cannot be had here, and nothing else would exclude the writers
// that use flock(2).
func flockGuard(string, func(string, ...any)) backup.Locker {
	return backup.LockerFunc(func(context.Context) (func(), error) {
		return nil, fmt.Errorf("--guard-file is not supported on %s", runtime.GOOS)
	})
}
