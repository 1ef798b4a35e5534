package backuphttp

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atocore/backup"
)

// The limits of event streams.
const (
	heartbeatEvery = 15 * time.Second // proxies end what is silent for a minute
	eventTimeout   = 10 * time.Second // for a client to take an event
	lastEvents     = time.Second      // to take what is left when the handler shuts down
	retryMillis    = 2000             // after which a client connects again
	remembered     = 256              // events
	queueLength    = 64               // events that a client may be behind
	progressEvery  = 200 * time.Millisecond
)

// A hub keeps the last events and passes them on. Its methods are called with the
// tracker's mutex held, so they never wait for a client.
type hub struct {
	boot      string
	last      uint64   // the number of the last event
	ring      [][]byte // the last events, the newest is number last
	followers map[*follower]struct{}
	connected int  // followers, and those cut off that still write
	closed    bool // no follower is accepted
	gone      chan struct{}
}

// A follower is a client of the event stream.
type follower struct {
	queue chan []byte // closed when nothing follows

	isCut atomic.Bool
	mu    sync.Mutex
	rc    *http.ResponseController // nil when the request has ended
}

func (u *hub) init(boot string) {
	u.boot = boot
	u.followers = make(map[*follower]struct{})
	u.gone = make(chan struct{})
}

// publish sends an event about an operation, and remembers it.
func (u *hub) publish(op operationJSON) {
	u.last++
	message := formatEvent("operation", u.id(u.last), op.brief())
	u.ring = append(u.ring, message)
	if len(u.ring) > remembered {
		u.ring = u.ring[1:]
	}
	for f := range u.followers {
		select {
		case f.queue <- message:
		default: // it is too slow; it may connect again, and gets what it missed
			u.drop(f)
		}
	}
}

// progressJSON is the data of a progress event.
type progressJSON struct {
	ID       string           `json:"id"`
	Kind     string           `json:"kind"`
	Stamp    string           `json:"stamp"`
	Progress *backup.Progress `json:"progress"`
}

// publishProgress sends the progress of an operation to those who keep up. The
// next report supersedes it, so it is not remembered and has no id.
func (u *hub) publishProgress(op operationJSON) {
	if len(u.followers) == 0 {
		return
	}
	message := formatEvent("progress", "", progressJSON{op.ID, op.Kind, op.Stamp, op.Progress})
	for f := range u.followers {
		if len(f.queue) < queueLength/2 {
			f.queue <- message
		}
	}
}

// drop ends the stream of a follower.
func (u *hub) drop(f *follower) {
	if _, ok := u.followers[f]; ok {
		delete(u.followers, f)
		f.isCut.Store(true)
		close(f.queue)
	}
}

// id returns the id of an event.
func (u *hub) id(n uint64) string { return fmt.Sprintf("%s-%d", u.boot, n) }

// missed returns the events after that with this id. ok is false if they are not
// known.
func (u *hub) missed(id string) (events [][]byte, ok bool) {
	text, ok := strings.CutPrefix(id, u.boot+"-")
	if !ok {
		return nil, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n > u.last || u.last-n > uint64(len(u.ring)) {
		return nil, false
	}
	return u.ring[uint64(len(u.ring))-(u.last-n):], true
}

// close ends all streams after what is in their queues. The channel is closed
// when the last has ended.
func (u *hub) close() (followers []*follower, gone <-chan struct{}) {
	for f := range u.followers {
		followers = append(followers, f)
		delete(u.followers, f)
		close(f.queue)
	}
	if !u.closed {
		u.closed = true
		if u.connected == 0 {
			close(u.gone)
		}
	}
	return followers, u.gone
}

// formatEvent returns an event in the form of the HTML standard. JSON has no line
// breaks, which would end the data.
func formatEvent(kind, id string, data any) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "event: %s\n", kind)
	if id != "" {
		fmt.Fprintf(&b, "id: %s\n", id)
	}
	fmt.Fprintf(&b, "data: %s\n\n", bytes.TrimSuffix(encode(data), []byte("\n")))
	return b.Bytes()
}

// follow adds a follower and returns the beginning of its stream: what it missed
// since the event with the id that it names, or else what is running.
func (t *tracker) follow(f *follower, lastID string, most int) (begin [][]byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := &t.hub
	switch {
	case t.closing:
		return nil, &problemError{"shutting_down", "events end"}
	case u.connected >= most:
		return nil, &problemError{"too_many_followers", fmt.Sprintf("%d clients follow the events", most)}
	}
	u.connected++
	u.followers[f] = struct{}{}
	retry := fmt.Sprintf("retry: %d\n", retryMillis)
	if missed, ok := u.missed(lastID); ok {
		return append([][]byte{[]byte(retry + "\n")}, missed...), nil
	}
	// The id is that of a client which has everything up to now.
	now := u.id(u.last)
	begin = append(begin, []byte(retry+"id: "+now+"\n\n"))
	if lastID != "" {
		begin = append(begin, formatEvent("reset", now, struct{}{}))
	}
	for _, op := range t.inOrder() {
		begin = append(begin, formatEvent("operation", now, op.now.brief()))
	}
	return begin, nil
}

// unfollow removes a follower whose request ends.
func (t *tracker) unfollow(f *follower) {
	f.mu.Lock()
	f.rc = nil
	f.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hub.drop(f)
	if t.hub.connected--; t.hub.closed && t.hub.connected == 0 {
		close(t.hub.gone)
	}
}

// cut ends a write that waits for the client.
func (f *follower) cut() {
	f.isCut.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rc != nil {
		_ = f.rc.SetWriteDeadline(time.Unix(1, 0)) // in the past
	}
}

// andQueued returns a message and those behind it, so that a client which is behind
// costs one write for all of them.
func (f *follower) andQueued(message []byte) []byte {
	const most = 64 << 10
	message = slices.Clip(message) // others send the same bytes
	for len(message) < most {
		select {
		case next, ok := <-f.queue:
			if !ok { // which the next receive finds again
				return message
			}
			message = append(message, next...)
		default:
			return message
		}
	}
	return message
}

// write sends a message. It reports whether the client took it in time.
func (f *follower) write(w http.ResponseWriter, rc *http.ResponseController, message []byte) bool {
	_ = rc.SetWriteDeadline(backup.SystemClock().Now().Add(eventTimeout))
	if f.isCut.Load() { // after the deadline was set: cut sets both the other way round
		return false
	}
	if _, err := w.Write(message); err != nil {
		return false
	}
	return rc.Flush() == nil
}

// events answers GET /events.
func (h *Handler) events(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("X-Accel-Buffering", "no") // nginx would hold events back
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return
	}
	rc := http.NewResponseController(w)
	f := &follower{queue: make(chan []byte, queueLength), rc: rc}
	begin, err := h.tracker.follow(f, r.Header.Get("Last-Event-ID"), h.cfg.MaxEvents)
	if err != nil {
		header.Del("X-Accel-Buffering")
		h.fail(w, r, err)
		return
	}
	defer h.tracker.unfollow(f)
	for _, message := range begin {
		if !f.write(w, rc, message) {
			return
		}
	}
	heartbeat := time.NewTicker(heartbeatEvery)
	defer heartbeat.Stop()
	for {
		var message []byte
		select {
		case next, ok := <-f.queue:
			if !ok {
				return
			}
			message = f.andQueued(next)
		case <-heartbeat.C:
			message = []byte(":\n\n")
		case <-r.Context().Done():
			return
		}
		if !f.write(w, rc, message) {
			return
		}
	}
}
