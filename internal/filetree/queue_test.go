package filetree

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func batchOf(files ...int) *copyBatch { return &copyBatch{files: files} }

// A worker stays with its batch; a new one gets the batch with the fewest.
func TestQueueOrder(t *testing.T) {
	q := newCopyQueue()
	a, b := batchOf(1, 3, 5), batchOf(2, 4)
	require.True(t, q.put(a))
	require.True(t, q.put(b))
	q.close()

	next := func(last, want *copyBatch, file int) {
		t.Helper()
		got, i, ok := q.take(last)
		require.True(t, ok)
		require.Same(t, want, got)
		require.Equal(t, file, i)
	}
	next(nil, a, 1) // first worker
	next(nil, b, 2) // second worker
	require.False(t, q.done(a))
	next(a, a, 3)
	require.False(t, q.done(b))
	next(b, b, 4)
	require.True(t, q.done(b), "all files of b are copied")
	next(b, a, 5) // the second worker changes over
	require.Equal(t, 2, a.workers)
	require.Zero(t, b.workers)
	require.False(t, q.done(a))
	_, _, ok := q.take(a)
	require.False(t, ok, "a file is not copied yet, but all are begun")
	require.True(t, q.done(a), "all files of a are copied")
	require.Empty(t, q.batches)
}

func TestQueueWaitsForFiles(t *testing.T) {
	for name, tt := range map[string]struct {
		end   func(q *copyQueue)
		taken bool
	}{
		"put":   {func(q *copyQueue) { q.put(batchOf(7)) }, true},
		"close": {(*copyQueue).close, false},
		"stop":  {(*copyQueue).stop, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newCopyQueue()
				var returned, taken atomic.Bool
				go func() {
					_, _, ok := q.take(nil)
					taken.Store(ok)
					returned.Store(true)
				}()
				synctest.Wait()
				require.False(t, returned.Load())
				tt.end(q)
				synctest.Wait()
				require.True(t, returned.Load())
				require.Equal(t, tt.taken, taken.Load())
			})
		})
	}
}

func TestQueueWaitsForRoom(t *testing.T) {
	for name, tt := range map[string]struct {
		end func(q *copyQueue)
		put bool
	}{
		"a batch is done": {func(q *copyQueue) { q.done(q.batches[0]) }, true},
		"stop":            {(*copyQueue).stop, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newCopyQueue()
				for range maxBatches {
					require.True(t, q.put(batchOf(0)))
				}
				var returned, put atomic.Bool
				go func() {
					put.Store(q.put(batchOf(0)))
					returned.Store(true)
				}()
				synctest.Wait()
				require.False(t, returned.Load())
				tt.end(q)
				synctest.Wait()
				require.True(t, returned.Load())
				require.Equal(t, tt.put, put.Load())
			})
		})
	}
}

// close lets the workers take what is in the queue; stop doesn't.
func TestQueueCloseAndStop(t *testing.T) {
	q := newCopyQueue()
	a := batchOf(1, 2)
	require.True(t, q.put(a))
	q.close()
	_, _, ok := q.take(nil)
	require.True(t, ok)
	q.stop()
	_, _, ok = q.take(a)
	require.False(t, ok)
	require.False(t, q.put(batchOf(1)))
	require.Len(t, q.batches, 1, "what is not copied stays, to be closed")
}
