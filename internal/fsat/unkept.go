package fsat

import (
	"errors"
	"sync/atomic"
	"syscall"
)

// Unkept notes that a file system does not keep the modes or the times that
// copies should have: one mounted from an exFAT disk, for example, or by a FUSE
// server without chmod or utimens. That is no reason to fail, since no check of a
// copy looks at them. The zero value is ready to use, by several goroutines;
// nil notes nothing.
type Unkept struct{ modes, times atomic.Pointer[error] }

// Modes returns nil for an err that means that the file system keeps no modes,
// and err otherwise. err is the result of a Chmod on a file that this process
// has created.
func (u *Unkept) Modes(err error) error {
	if u == nil {
		u = new(Unkept)
	}
	return note(&u.modes, err)
}

// Times does the same for a Chtimes.
func (u *Unkept) Times(err error) error {
	if u == nil {
		u = new(Unkept)
	}
	return note(&u.times, err)
}

func note(first *atomic.Pointer[error], err error) error {
	// EPERM is that of a file system as well: whoever has created a file may
	// change its mode. ERANGE is a time after 2038 on a 32-bit system.
	for _, refused := range []error{syscall.EPERM, syscall.ENOSYS, syscall.EOPNOTSUPP, syscall.EINVAL, syscall.ERANGE} {
		if errors.Is(err, refused) {
			first.CompareAndSwap(nil, &err)
			return nil
		}
	}
	return err
}

// Each calls say with a message for the log and the first error for each of the
// two that was not kept.
func (u *Unkept) Each(say func(message string, err error)) {
	if err := u.modes.Load(); err != nil {
		say("modes_not_kept", *err)
	}
	if err := u.times.Load(); err != nil {
		say("times_not_kept", *err)
	}
}
