package backuphttp

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/atocore/backup"
)

// The states of an operation.
const (
	stateRunning   = "running"
	stateSucceeded = "succeeded"
	stateFailed    = "failed"
	stateCanceled  = "canceled"
)

// operationJSON is the form of an operation in JSON, which the documentation of
// the package describes.
type operationJSON struct {
	ID        string           `json:"id"`
	Href      string           `json:"href,omitempty"`
	Kind      string           `json:"kind"`
	Stamp     string           `json:"stamp"`
	Async     bool             `json:"async"`
	State     string           `json:"state"`
	StartedAt time.Time        `json:"started_at"`
	EndedAt   *time.Time       `json:"ended_at"`
	Progress  *backup.Progress `json:"progress"`
	Status    int              `json:"status"`
	Result    json.RawMessage  `json:"result"`
	Omitted   bool             `json:"result_omitted,omitempty"`
	Problem   *problem         `json:"problem"`
}

// brief returns o without a result or a report of more than maxBrief bytes.
func (o operationJSON) brief() operationJSON {
	if len(o.Result) > maxBrief {
		o.Result, o.Omitted = nil, true
	}
	if p := o.Problem; p != nil && p.size() > maxBrief {
		short := *p
		short.Report, short.Result = nil, nil
		o.Problem, o.Omitted = &short, true
	}
	return o
}

// in returns o as the answer to a request, with its addresses.
func (o operationJSON) in(r *http.Request) operationJSON {
	o.Href = href(r, "operations", o.ID)
	if o.Problem != nil {
		p := *o.Problem
		p.Instance = o.Href
		o.Problem = &p
	}
	return o
}

// An operation is one that runs or has ended.
type operation struct {
	seq    uint64
	cancel context.CancelFunc
	now    operationJSON // guarded by the tracker's mutex
	size   int           // of what it keeps in memory, once it has ended
	shown  time.Time     // when its progress was published last
}

// A tracker knows the operations that run, and the last that ended, and tells
// followers of events about them.
type tracker struct {
	boot string // distinguishes this process from others, in ids

	mu        sync.Mutex // guards everything below
	seq       uint64
	running   map[uint64]*operation
	observed  *operation   // that of the host, while it runs; see Handler.ObserveProgress
	ended     []*operation // oldest first
	endedSize int
	closing   bool
	idle      chan struct{} // closed when closing is set and nothing runs
	hub       hub
	counts    map[outcome]uint64
	last      lastCreate
}

// An outcome is what operations are counted by.
type outcome struct{ kind, state string }

// lastCreate is what is known about the last create.
type lastCreate struct {
	known, ok bool
	failures  uint64
	cost      backup.Cost // of the last one that made a snapshot
	hasCost   bool
}

// success returns 1 if the last create succeeded, or else 0.
func (c *lastCreate) success() float64 {
	if c.ok {
		return 1
	}
	return 0
}

func (t *tracker) init() {
	var id [4]byte
	_, _ = rand.Read(id[:]) // it never fails
	t.boot = hex.EncodeToString(id[:])
	t.running = make(map[uint64]*operation)
	t.idle = make(chan struct{})
	t.counts = make(map[outcome]uint64)
	t.hub.init(t.boot)
}

// begin begins an operation, which ends with end. The returned context ends when
// the operation is cancelled.
func (t *tracker) begin(ctx context.Context, now operationJSON, most int, timeout time.Duration) (*operation, context.Context, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closing:
		return nil, nil, &problemError{"shutting_down", "no operation begins any more"}
	case len(t.running) >= most:
		return nil, nil, &problemError{"too_many_operations", fmt.Sprintf("%d operations are running", most)}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	op := t.add(now)
	op.cancel = cancel
	t.running[op.seq] = op
	t.hub.publish(op.now)
	return op, ctx, nil
}

// add returns a new operation. The mutex is held.
func (t *tracker) add(now operationJSON) *operation {
	t.seq++
	now.ID = fmt.Sprintf("%s-%d", t.boot, t.seq)
	now.State = stateRunning
	return &operation{seq: t.seq, now: now}
}

// end ends an operation. status and result, or p, are its outcome.
func (t *tracker) end(op *operation, at time.Time, stamp string, status int, result json.RawMessage, p *problem) {
	op.cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.finish(op, at, stamp, status, result, p)
	delete(t.running, op.seq)
	if t.closing && len(t.running) == 0 {
		close(t.idle)
	}
}

// finish records the outcome of an operation. The mutex is held.
func (t *tracker) finish(op *operation, at time.Time, stamp string, status int, result json.RawMessage, p *problem) {
	op.now.EndedAt, op.now.Stamp = &at, cmp.Or(stamp, op.now.Stamp)
	op.now.Status, op.now.Result, op.now.Problem = status, result, p
	op.size = len(result)
	switch {
	case p == nil:
		op.now.State = stateSucceeded
	case p.Code == "canceled":
		op.now.State, op.size = stateCanceled, p.size()
	default:
		op.now.State, op.size = stateFailed, p.size()
	}
	t.counts[outcome{op.now.Kind, op.now.State}]++
	t.ended = append(t.ended, op)
	t.endedSize += op.size
	for len(t.ended) > maxEnded || t.endedSize > maxEndedSize && len(t.ended) > 1 {
		t.endedSize -= t.ended[0].size
		t.ended = slices.Delete(t.ended, 0, 1)
	}
	t.hub.publish(op.now)
}

// progress records a report of an operation.
func (t *tracker) progress(op *operation, p backup.Progress, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(op, p, at)
}

// advance records a report of an operation. The mutex is held.
func (t *tracker) advance(op *operation, p backup.Progress, at time.Time) {
	before := op.now.Progress
	op.now.Progress = &p
	// A clock that stands still, as in tests, does not hold anything back.
	since := at.Sub(op.shown)
	if before != nil && before.Phase == p.Phase && since > 0 && since < progressEvery && p.Share < 1 {
		return
	}
	op.shown = at
	t.hub.publishProgress(op.now)
}

// list returns all operations, newest first.
func (t *tracker) list() []operationJSON {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := append(slices.Clone(t.ended), t.inOrder()...)
	slices.SortFunc(all, func(a, b *operation) int { return cmp.Compare(b.seq, a.seq) })
	list := make([]operationJSON, len(all))
	for i, op := range all {
		list[i] = op.now.brief()
	}
	return list
}

// inOrder returns the operations that are running, oldest first. The mutex is
// held.
func (t *tracker) inOrder() []*operation {
	all := slices.Collect(maps.Values(t.running))
	if t.observed != nil {
		all = append(all, t.observed)
	}
	slices.SortFunc(all, func(a, b *operation) int { return cmp.Compare(a.seq, b.seq) })
	return all
}

// find returns an operation, and whether it is known.
func (t *tracker) find(id string) (operationJSON, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, op := range append(t.inOrder(), t.ended...) {
		if op.now.ID == id {
			return op.now, true
		}
	}
	return operationJSON{}, false
}

// cancel cancels an operation if it is running, and returns it.
func (t *tracker) cancel(id string) (operationJSON, bool) {
	t.mu.Lock()
	for _, op := range t.running {
		if op.now.ID == id {
			op.cancel()
		}
	}
	t.mu.Unlock()
	return t.find(id)
}

// cancelAll cancels what is running, and returns the error of ctx if anything is.
func (t *tracker) cancelAll(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.running) == 0 {
		return nil
	}
	for _, op := range t.running {
		op.cancel()
	}
	return ctx.Err()
}

// shutdown does what Handler.Shutdown says.
func (t *tracker) shutdown(ctx context.Context) (err error) {
	t.mu.Lock()
	if !t.closing {
		t.closing = true
		if len(t.running) == 0 {
			close(t.idle)
		}
	}
	t.mu.Unlock()
	select {
	case <-t.idle:
	case <-ctx.Done():
		err = t.cancelAll(ctx)
		<-t.idle
	}
	t.mu.Lock()
	followers, gone := t.hub.close()
	t.mu.Unlock()
	patience := time.NewTimer(lastEvents)
	defer patience.Stop()
	select {
	case <-gone:
	case <-patience.C:
		for _, f := range followers {
			f.cut()
		}
		<-gone
	}
	return err
}
