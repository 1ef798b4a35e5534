package poll

import (
	"context"
	"errors"
	"sync"
)

// Lock locks l, or returns ctx's error if that ends first. It waits in l.Lock:
// sync.Mutex is handed over to such waiters after a millisecond, while TryLock
// finds a busy one locked again and again ("Mutex fairness" in
// internal/sync/mutex.go of the Go library).
//
// l.Lock cannot be interrupted. So when Lock returns ctx's error, a goroutine may
// still wait in it, which unlocks l at once when it gets it. A panic of l.Lock
// passes through Lock, unless ctx has ended before.
func Lock(ctx context.Context, l sync.Locker) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if try, ok := l.(interface{ TryLock() bool }); ok && try.TryLock() {
		return nil
	}
	handOver := make(chan any)
	go lockFor(ctx, l, handOver)
	select {
	case panicked := <-handOver:
		if panicked != nil {
			panic(panicked)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lockFor locks l and sends nil, or the value with which l.Lock panicked. The
// channel has no buffer, so either the value is received, or Lock has returned
// ctx's error; then lockFor unlocks l. Nobody is left by then who could be told
// of a panic, and it must not end the process.
func lockFor(ctx context.Context, l sync.Locker, handOver chan<- any) {
	locked := false
	defer func() {
		result := recover()
		if result == nil && !locked {
			result = errors.New("Lock of the mutex ended its goroutine")
		}
		select {
		case handOver <- result:
		case <-ctx.Done():
			if locked {
				defer func() { _ = recover() }()
				l.Unlock()
			}
		}
	}()
	l.Lock()
	locked = true
}
