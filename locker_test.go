package backup_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// mutexes are the mutexes of the Go library.
func mutexes() map[string]sync.Locker {
	return map[string]sync.Locker{"Mutex": new(sync.Mutex), "RWMutex": new(sync.RWMutex)}
}

func tryLock(l sync.Locker) bool { return l.(interface{ TryLock() bool }).TryLock() }

func TestSyncLocker(t *testing.T) {
	for name, l := range mutexes() {
		t.Run(name+" is free", func(t *testing.T) {
			unlock, err := backup.SyncLocker(l).Lock(t.Context())
			require.NoError(t, err)
			require.False(t, tryLock(l), "it is not locked")
			unlock()
			require.True(t, tryLock(l), "it is still locked")
			l.Unlock()
		})
		t.Run(name+" is released", func(t *testing.T) {
			l.Lock()
			locked := make(chan func())
			go func() {
				unlock, err := backup.SyncLocker(l).Lock(t.Context())
				if err != nil {
					unlock = nil
				}
				locked <- unlock
			}()
			l.Unlock()
			unlock := <-locked
			require.NotNil(t, unlock)
			require.False(t, tryLock(l), "it is not locked")
			unlock()
		})
		t.Run(name+" and ctx is done", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := backup.SyncLocker(l).Lock(ctx)
			require.ErrorIs(t, err, context.Canceled)
			require.True(t, tryLock(l), "it was locked though ctx was done")
			l.Unlock()
		})
		// The goroutine that is left waits for the mutex and unlocks it again.
		t.Run(name+" is released too late", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			l.Lock()
			ended := make(chan error)
			go func() {
				_, err := backup.SyncLocker(l).Lock(ctx)
				ended <- err
			}()
			cancel()
			require.ErrorIs(t, <-ended, context.Canceled)
			l.Unlock()
			unlock, err := backup.SyncLocker(l).Lock(t.Context()) // waits for ever if the lock is kept
			require.NoError(t, err)
			unlock()
		})
	}
}

// A queueLocker passes the lock to the first that waits in Lock. So while somebody
// waits, it is never free, and TryLock never succeeds.
type queueLocker struct {
	mu      sync.Mutex
	held    bool
	waiting []chan struct{}
}

func (l *queueLocker) TryLock() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held {
		return false
	}
	l.held = true
	return true
}

func (l *queueLocker) Lock() {
	l.mu.Lock()
	if !l.held {
		l.held = true
		l.mu.Unlock()
		return
	}
	turn := make(chan struct{})
	l.waiting = append(l.waiting, turn)
	l.mu.Unlock()
	<-turn
}

func (l *queueLocker) Unlock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.held = false
		return
	}
	close(l.waiting[0])
	l.waiting = l.waiting[1:]
}

// Workers that hand the mutex to each other without a gap do not keep SyncLocker
// waiting for longer than their turns. Time is that of the bubble.
func TestSyncLockerGetsItsTurn(t *testing.T) {
	const work = 5 * time.Millisecond
	for _, workers := range []int{2, 4} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := new(queueLocker)
				ctx, cancel := context.WithCancel(t.Context())
				var group sync.WaitGroup
				defer group.Wait()
				defer cancel()
				for range workers {
					group.Go(func() {
						for ctx.Err() == nil {
							l.Lock()
							time.Sleep(work)
							l.Unlock()
						}
					})
				}
				time.Sleep(work / 2)
				turns, end := context.WithTimeout(ctx, time.Duration(workers)*work)
				defer end()
				unlock, err := backup.SyncLocker(l).Lock(turns)
				require.NoError(t, err, "the workers kept it to themselves")
				unlock()
			})
		})
	}
}

// A plainLocker has only the methods of sync.Locker.
type plainLocker struct{ c chan struct{} }

func (l plainLocker) Lock()   { l.c <- struct{}{} }
func (l plainLocker) Unlock() { <-l.c }

// A wait ends with ctx, whatever kind of mutex it is for, and nothing is left
// when the mutex is free again.
func TestSyncLockerIsCancelled(t *testing.T) {
	for name, create := range map[string]func() sync.Locker{
		"with TryLock":    func() sync.Locker { return new(queueLocker) },
		"without TryLock": func() sync.Locker { return plainLocker{make(chan struct{}, 1)} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := create()
				l.Lock()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				begun := time.Now() //nolint:forbidigo // the time of the bubble
				_, err := backup.SyncLocker(l).Lock(ctx)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Equal(t, time.Minute, time.Since(begun)) //nolint:forbidigo // the time of the bubble
				l.Unlock()
				synctest.Wait()
				unlock, err := backup.SyncLocker(l).Lock(t.Context())
				require.NoError(t, err)
				unlock()
			}) // fails if a goroutine is left
		})
	}
}

// A freeLocker is always free. Its Lock must not be needed.
type freeLocker struct{ on string }

func (l *freeLocker) TryLock() bool { l.on = goroutine(); return true }
func (l *freeLocker) Lock()         { panic("TryLock would have done") }
func (l *freeLocker) Unlock()       {}

func TestSyncLockerOfAFreeMutexNeedsNoGoroutine(t *testing.T) {
	l := new(freeLocker)
	unlock, err := backup.SyncLocker(l).Lock(t.Context())
	require.NoError(t, err)
	unlock()
	require.Equal(t, goroutine(), l.on)
}

// A funcLocker calls a function to lock.
type funcLocker func()

func (l funcLocker) Lock()   { l() }
func (l funcLocker) Unlock() {}

// A mutex that panics ends the call and not the process.
func TestSyncLockerOfAMutexThatPanics(t *testing.T) {
	for name, lock := range map[string]func(){
		"panic":          func() { panic("of the mutex") },
		"goroutine ends": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			s.IncludeChroma, s.Locker = true, backup.SyncLocker(funcLocker(lock))
			require.ErrorIs(t, s.CreateFails(), backup.ErrPanic)
		})
	}
	t.Run("after ctx has ended", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := backup.SyncLocker(funcLocker(func() {
				time.Sleep(time.Minute)
				panic("too late")
			})).Lock(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			time.Sleep(time.Hour)
		})
	})
}

// A guard of a host whose ingestion sleeps in a bubble is a channel: see SyncLocker.
func TestChannelGuardInABubble(t *testing.T) {
	s := backuptest.NewStore(t)
	synctest.Test(t, func(t *testing.T) {
		ingestion := make(chan struct{}, 1)
		s.IncludeChroma = true
		s.Locker = backup.LockerFunc(func(ctx context.Context) (func(), error) {
			select {
			case ingestion <- struct{}{}:
				return func() { <-ingestion }, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		ingestion <- struct{}{}
		go func() {
			time.Sleep(time.Hour)
			<-ingestion
		}()
		s.Create()
	})
}

// BenchmarkSyncLocker measures how long SyncLocker waits for a mutex that workers
// hold for a millisecond each, one after the other.
func BenchmarkSyncLocker(b *testing.B) {
	for _, workers := range []int{2, 4} {
		for _, gap := range []time.Duration{0, time.Millisecond} {
			b.Run(fmt.Sprintf("workers=%d/gap=%s", workers, gap), func(b *testing.B) {
				var mu sync.Mutex
				var group sync.WaitGroup
				ctx, cancel := context.WithCancel(b.Context())
				for range workers {
					group.Go(func() {
						for ctx.Err() == nil {
							mu.Lock()
							time.Sleep(time.Millisecond)
							mu.Unlock()
							if gap > 0 {
								time.Sleep(gap)
							}
						}
					})
				}
				l := backup.SyncLocker(&mu)
				for b.Loop() {
					unlock, err := l.Lock(ctx)
					if err != nil {
						b.Fatal(err)
					}
					unlock()
					b.StopTimer()
					time.Sleep(3 * time.Millisecond) // the workers are at it again
					b.StartTimer()
				}
				cancel()
				group.Wait()
			})
		}
	}
}
