package backuphttp

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/atocore/backup"
)

// kindObserved is the kind of an operation of the host that is running.
const kindObserved = "scheduled"

// ObserveProgress shows followers of events, and the page, a call that the host
// makes itself, a scheduled one for example: it is for the OnProgress of that call's
// Options. The first report begins an operation of the kind "scheduled", which
// clients cannot cancel and Shutdown does not wait for; Observe ends it. Calls that
// the host makes at the same time are shown as one.
func (h *Handler) ObserveProgress(p backup.Progress) {
	h.tracker.observeProgress(p, h.clock.Now().UTC())
}

// Observe records the end of a call that the host made itself, for the operations,
// the events and, if kind is "create" and result a *backup.Metadata, the metrics of
// creates. kind and stamp are those of the operation; began is when it began.
// result is what the call returned, and is shown in JSON; it may be nil. An error is
// logged, unless it is context.Canceled.
//
// With package schedule, it is what Plan.OnResult calls:
//
//	opts.OnProgress = h.ObserveProgress
//	plan.OnResult = func(r schedule.Result) { h.Observe(string(r.Step), r.Stamp, r.Began, r.Created, r.Err) }
func (h *Handler) Observe(kind, stamp string, began time.Time, result any, err error) {
	meta, _ := result.(*backup.Metadata)
	body := json.RawMessage(encode(result))
	var p *problem
	status := http.StatusOK
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			h.log.Error("observed_call_failed", "kind", kind, "stamp", stamp, "error", err)
		}
		p = problemOf(err, nil)
		status, body = p.Status, nil
	}
	at := h.clock.Now().UTC()
	if kind == "create" {
		h.tracker.created(meta, err)
	}
	h.tracker.observe(operationJSON{Kind: kind, Stamp: stamp, StartedAt: began.UTC()}, at, status, body, p)
}

// observeProgress records a report of the host's operation.
func (t *tracker) observeProgress(p backup.Progress, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.observed == nil {
		t.observed = t.add(operationJSON{Kind: kindObserved, Async: true, StartedAt: at})
		t.hub.publish(t.observed.now)
	}
	t.advance(t.observed, p, at)
}

// observe records the end of an operation of the host, which now describes.
func (t *tracker) observe(now operationJSON, at time.Time, status int, result json.RawMessage, p *problem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	op := t.observed
	if op == nil {
		op = t.add(operationJSON{Async: true})
	}
	t.observed = nil
	op.now.Kind, op.now.StartedAt = now.Kind, now.StartedAt
	t.finish(op, at, now.Stamp, status, result, p)
}

// created records the outcome of a create, for the metrics.
func (t *tracker) created(meta *backup.Metadata, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if errors.Is(err, context.Canceled) {
		return
	}
	t.last.known, t.last.ok = true, err == nil
	if err != nil {
		t.last.failures++
	}
	if meta != nil && meta.Cost != nil {
		t.last.cost, t.last.hasCost = *meta.Cost, true
	}
}
