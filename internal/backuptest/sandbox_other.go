//go:build linux && !amd64 && !arm64

package backuptest

import (
	"errors"
	"syscall"
)

// RefusableCalls returns the name of one call, so that a test can find out that
// Refuse doesn't work here.
func RefusableCalls() []string { return []string{"statx"} }

// ErrNoSandbox is returned by Refuse where there are no seccomp filters.
var ErrNoSandbox = errors.New("no seccomp filter has been written for this architecture")

// Refuse returns ErrNoSandbox.
func Refuse(syscall.Errno, ...string) error { return ErrNoSandbox }

// InSandbox is a Role that returns ErrNoSandbox.
func InSandbox(*Parent, []string) error { return ErrNoSandbox }
