package s3server

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A Kind is a way in which a request is broken.
type Kind int

const (
	// Unavailable requests are answered with status 503.
	Unavailable Kind = iota + 1
	// Cut requests lose their connection in the middle: of what is uploaded, or of
	// the answer.
	Cut
	// Hang: nothing is ever answered, on a connection that stays open.
	Hang
)

// A Fault says which requests are broken, and how. The zero value breaks none.
type Fault struct {
	Kind Kind
	// Every is n for every n-th request, counted from Break; 0 and 1 mean all.
	Every int
	// Delay is added to every request before anything else happens.
	Delay time.Duration
}

// A breakage is a fault at work.
type breakage struct {
	Fault
	count atomic.Int64
	once  sync.Once
	ended chan struct{}
}

func newBreakage(f Fault) *breakage { return &breakage{Fault: f, ended: make(chan struct{})} }

func (b *breakage) end() { b.once.Do(func() { close(b.ended) }) }

func (b *breakage) serve(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	n := b.count.Add(1)
	if b.Delay > 0 {
		timer := time.NewTimer(b.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-b.ended:
		case <-r.Context().Done():
		}
	}
	kind := b.Kind
	if b.Every > 1 && n%int64(b.Every) != 0 {
		kind = 0
	}
	switch kind {
	case Unavailable:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "broken on demand", http.StatusServiceUnavailable)
	case Cut:
		cut(w, r, pass)
	case Hang:
		// The context ends with the connection only after the body has been read.
		select {
		case <-b.ended:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	default:
		pass.ServeHTTP(w, r)
	}
}

// cut serves a request by half and then closes its connection, which is what this
// panic means to a server of net/http.
func cut(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	if r.ContentLength > 0 {
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2) // it is cut in any case
		panic(http.ErrAbortHandler)
	}
	pass.ServeHTTP(&halfWriter{ResponseWriter: w}, r)
	panic(http.ErrAbortHandler) // the answer was short, and is still in a buffer
}

// A halfWriter fails after the first write.
type halfWriter struct {
	http.ResponseWriter
	written bool
}

func (h *halfWriter) Write(b []byte) (int, error) {
	if h.written {
		return 0, errors.New("cut on demand")
	}
	h.written = true
	return h.ResponseWriter.Write(b[:len(b)/2])
}
