package poll

import (
	"context"
	"errors"
)

// Take calls lock, which waits for a lock and returns what releases it, and waits
// no longer than until waiting ends, which must be ctx or end before it. The
// context that lock gets ends with ctx, and when the lock is released: not with
// waiting, because a lock may last only as long as its context.
//
// taken is called once the lock is held. If the lock is late, or if taken panics,
// it is released again. If waiting ended, and not ctx, the error may be
// context.Canceled.
func Take(ctx, waiting context.Context, lock func(context.Context) (func(), error), taken func()) (release func(), err error) {
	locked, end := context.WithCancel(ctx)
	stop := context.AfterFunc(waiting, end)
	var unlock func()
	kept := false
	defer func() { // when lock panics, too
		if !kept {
			defer end()
			stop()
			if unlock != nil {
				unlock()
			}
		}
	}()
	unlock, err = lock(locked)
	inTime := stop() || waiting == ctx
	switch {
	case err != nil:
		unlock = nil // it is not to be called
		return nil, err
	case unlock == nil:
		return nil, errors.New("the guard returned no unlock function")
	case !inTime:
		return nil, locked.Err()
	}
	taken()
	kept = true
	return func() { defer end(); unlock() }, nil
}
