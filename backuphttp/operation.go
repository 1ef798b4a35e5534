package backuphttp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/atocore/backup"
)

// An answer is the outcome of a call that succeeded, or what came with its
// error. body is nil if there is none. created is the stamp of a snapshot that
// the call made.
type answer struct {
	status  int
	body    any
	created string
}

// A call makes one call of package backup.
type call func(ctx context.Context, opts backup.Options) (answer, error)

// operate makes a call as an operation of this kind, and answers with its
// outcome; or, if the client wants that, with the operation.
func (h *Handler) operate(w http.ResponseWriter, r *http.Request, kind, stamp string, do call) {
	if !prefersAsync(r.Header.Values("Prefer")) {
		op, ctx, err := h.begin(r.Context(), kind, stamp, false)
		if err != nil {
			h.fail(w, r, err)
			return
		}
		done, p := h.perform(ctx, op, do)
		h.respond(w, r, op, done, p)
		return
	}
	op, ctx, err := h.begin(context.WithoutCancel(r.Context()), kind, stamp, true)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	begun, _ := h.tracker.find(op.now.ID) // before the goroutine changes it
	go h.perform(ctx, op, do)             // tracker.shutdown waits for it
	w.Header().Set("Preference-Applied", "respond-async")
	w.Header().Set("Location", href(r, "operations", begun.ID))
	h.write(w, r, http.StatusAccepted, "application/json", encode(begun.in(r)))
}

// begin begins an operation.
func (h *Handler) begin(ctx context.Context, kind, stamp string, async bool) (*operation, context.Context, error) {
	now := operationJSON{Kind: kind, Stamp: stamp, Async: async, StartedAt: h.clock.Now().UTC()}
	return h.tracker.begin(ctx, now, h.cfg.MaxOperations, h.cfg.OperationTimeout)
}

// A done is the answer of a call that has ended, with its body in JSON.
type done struct {
	answer
	json json.RawMessage
}

// perform makes a call and ends the operation. A panic of the host, in its Clock
// for example, becomes a problem, because nobody else would recover it in a
// goroutine of its own.
func (h *Handler) perform(ctx context.Context, op *operation, do call) (result done, p *problem) {
	var err error
	func() {
		defer func() {
			if v := recover(); v != nil {
				err = panicError(v)
			}
		}()
		result.answer, err = do(ctx, h.optionsFor(op))
	}()
	if result.body != nil {
		result.json = encode(result.body)
	}
	status, body := result.status, result.json
	if err != nil {
		p = problemOf(err, result.json)
		status, body = p.Status, nil
		h.logFailure(p, err, "operation", op.now.ID, "kind", op.now.Kind)
	}
	h.tracker.end(op, h.endOf(op), result.created, status, body, p)
	return result, p
}

// endOf returns the time at which op ends; that at which it began, if the Clock
// panics.
func (h *Handler) endOf(op *operation) (at time.Time) {
	defer func() {
		if recover() != nil {
			at = op.now.StartedAt // which does not change
		}
	}()
	return h.clock.Now().UTC()
}

// optionsFor returns the options for the call of an operation.
func (h *Handler) optionsFor(op *operation) backup.Options {
	opts := h.opts
	opts.OnProgress = func(p backup.Progress) {
		h.tracker.progress(op, p, h.clock.Now())
		if h.opts.OnProgress != nil {
			h.opts.OnProgress(p)
		}
	}
	return opts
}

// respond answers with the outcome of an operation that ended.
func (h *Handler) respond(w http.ResponseWriter, r *http.Request, op *operation, result done, p *problem) {
	if result.created != "" {
		w.Header().Set("Location", href(r, result.created))
	}
	switch {
	case p != nil:
		answered := *p
		answered.Instance = href(r, "operations", op.now.ID)
		h.writeProblem(w, r, &answered)
	case result.json == nil:
		h.extendWrite(w)
		w.WriteHeader(result.status)
	default:
		h.write(w, r, result.status, "application/json", result.json)
	}
}

// prefersAsync reports whether a Prefer header has respond-async (RFC 7240).
func prefersAsync(prefer []string) bool {
	for _, value := range prefer {
		for part := range strings.SplitSeq(value, ",") {
			name, _, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(name), "respond-async") {
				return true
			}
		}
	}
	return false
}

func (h *Handler) listOperations(w http.ResponseWriter, r *http.Request) {
	list := h.tracker.list()
	for i := range list {
		list[i] = list[i].in(r)
	}
	h.write(w, r, http.StatusOK, "application/json", encode(list))
}

func (h *Handler) operation(w http.ResponseWriter, r *http.Request, id string) {
	op, ok := h.tracker.find(id)
	if !ok {
		h.fail(w, r, noOperation(id))
		return
	}
	h.write(w, r, http.StatusOK, "application/json", encode(op.in(r)))
}

func (h *Handler) cancelOperation(w http.ResponseWriter, r *http.Request, id string) {
	if err := h.readBody(w, r, &struct{}{}); err != nil {
		h.fail(w, r, err)
		return
	}
	op, ok := h.tracker.cancel(id)
	switch {
	case !ok:
		h.fail(w, r, noOperation(id))
	case op.Kind == kindObserved:
		h.fail(w, r, &problemError{"not_allowed", "operation " + id + " is not of this server but of its host"})
	case op.State != stateRunning:
		h.fail(w, r, &problemError{"operation_ended", fmt.Sprintf("operation %s has %s already", id, op.State)})
	default:
		h.write(w, r, http.StatusAccepted, "application/json", encode(op.in(r)))
	}
}

func noOperation(id string) error {
	return &problemError{"no_operation", fmt.Sprintf("there is no operation %.100q, or it ended too long ago", id)}
}
