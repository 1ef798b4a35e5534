package filetree

import (
	"slices"
	"sync"

	"github.com/atocore/backup/internal/fsat"
)

// A copyBatch is up to a thousand files of one directory.
type copyBatch struct {
	dir     *copyDir
	record  *dirRecord
	entries []fsat.Entry // of the directory
	files   []int        // indexes of the batch's files in entries

	// Guarded by the queue.
	begun, ended, workers int
}

// A copyQueue distributes files to workers. The kernel lets only one process at
// a time create files in a directory, so each worker stays with its batch as
// long as there are other batches for the other workers.
type copyQueue struct {
	mu      sync.Mutex
	changed sync.Cond
	batches []*copyBatch // those with files that are not copied yet
	closed  bool         // no more batches will come
	stopped bool         // no more files are wanted
}

// maxBatches limits how many directories are open at once.
const maxBatches = 16

func newCopyQueue() *copyQueue {
	q := new(copyQueue)
	q.changed.L = &q.mu
	return q
}

// put adds a batch as soon as there is room for it. It returns false if the
// queue was stopped, and then the batch remains the caller's.
func (q *copyQueue) put(b *copyBatch) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.batches) >= maxBatches && !q.stopped {
		q.changed.Wait()
	}
	if q.stopped {
		return false
	}
	q.batches = append(q.batches, b)
	q.changed.Broadcast()
	return true
}

// take returns the next file, as an index into its batch's entries, for a
// worker whose previous file was of the batch last. It waits if there is none
// yet, and returns ok == false if there will be none.
func (q *copyQueue) take(last *copyBatch) (b *copyBatch, file int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.stopped {
		if b = last; b == nil || b.begun == len(b.files) {
			b = q.leastShared()
		}
		if b != nil {
			if b != last {
				b.workers++
				if last != nil {
					last.workers--
				}
			}
			b.begun++
			return b, b.files[b.begun-1], true
		}
		if q.closed {
			break
		}
		q.changed.Wait()
	}
	return nil, 0, false
}

// leastShared returns the batch with the fewest workers among those that have
// files left to begin, or nil.
func (q *copyQueue) leastShared() (least *copyBatch) {
	for _, b := range q.batches {
		if b.begun < len(b.files) && (least == nil || b.workers < least.workers) {
			least = b
		}
	}
	return least
}

// done records that a file of the batch is copied, and reports whether it was
// the batch's last one.
func (q *copyQueue) done(b *copyBatch) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	b.ended++
	if b.ended < len(b.files) {
		return false
	}
	q.batches = slices.DeleteFunc(q.batches, func(other *copyBatch) bool { return other == b })
	q.changed.Broadcast()
	return true
}

// close announces that no more batches will be put. Workers still take what is
// in the queue.
func (q *copyQueue) close() { q.end(&q.closed) }

// stop ends the queue at once, for workers and for the goroutine that puts.
func (q *copyQueue) stop() { q.end(&q.stopped) }

func (q *copyQueue) end(how *bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	*how = true
	q.changed.Broadcast()
}
