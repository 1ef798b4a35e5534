package backuphttp

import (
	"context"
	"sync"

	"github.com/atocore/backup"
)

// A listing is the result of a list, in both forms. Requests share it, so it
// must not be changed.
type listing struct {
	snapshots []backup.Snapshot
	json      []byte
}

// A lister lists for all requests that wait, at once: at most one reading is under
// way. A request never joins it, because what it read already may be older than
// the request; it joins the next reading, which begins when that has ended. So the
// answer is never older than the request, a client that creates a snapshot finds it
// in the next list, and a thousand clients cost as much as one.
type lister struct {
	read func(ctx context.Context) (*listing, error)

	mu      sync.Mutex
	running *reading
	next    *reading // waits for the end of running; nil if nobody joined it
}

// A reading reads the list once.
type reading struct {
	ctx     context.Context // ends when nobody waits any more
	cancel  context.CancelFunc
	waiting int           // guarded by the lister's mutex
	done    chan struct{} // closed when list and err are set
	list    *listing
	err     error
}

// list returns the list of snapshots as it was at a moment after the call began.
// A listing comes with backup.ErrRestoreUnfinished, too.
func (h *Handler) list(ctx context.Context) (*listing, error) {
	rd := h.lists.join()
	select {
	case <-rd.done:
		return rd.list, rd.err
	case <-ctx.Done():
		h.lists.leave(rd)
		return nil, ctx.Err()
	}
}

// join returns a reading that has not begun.
func (l *lister) join() *reading {
	l.mu.Lock()
	defer l.mu.Unlock()
	rd := l.next
	if rd == nil {
		rd = &reading{done: make(chan struct{})}
		rd.ctx, rd.cancel = context.WithCancel(context.Background())
		if l.running == nil {
			l.running = rd
			go l.run(rd)
		} else {
			l.next = rd
		}
	}
	rd.waiting++
	return rd
}

// leave ends the wait for a reading. The last one who leaves ends the reading, and
// waits for that, so that nothing goes on after the request.
func (l *lister) leave(rd *reading) {
	l.mu.Lock()
	rd.waiting--
	last, begun := rd.waiting == 0, rd == l.running
	if last {
		rd.cancel()
		if rd == l.next {
			l.next = nil
		}
	}
	l.mu.Unlock()
	if last && begun {
		<-rd.done
	}
}

// run reads, and then reads for those who came meanwhile.
func (l *lister) run(rd *reading) {
	for rd != nil {
		rd.list, rd.err = l.readSafely(rd.ctx)
		rd.cancel()
		l.mu.Lock()
		l.running, l.next = l.next, nil
		close(rd.done)
		rd = l.running
		l.mu.Unlock()
	}
}

// readSafely reads. A panic of the host must not end the process, as it would in
// this goroutine.
func (l *lister) readSafely(ctx context.Context) (list *listing, err error) {
	defer func() {
		if v := recover(); v != nil {
			list, err = nil, panicError(v)
		}
	}()
	return l.read(ctx)
}

// readList reads the list.
func (h *Handler) readList(ctx context.Context) (*listing, error) {
	list, err := backup.ListRuntimeBackups(ctx, h.opts)
	if list == nil {
		return nil, err
	}
	return &listing{list, encode(list)}, err
}
