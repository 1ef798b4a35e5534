package backuphttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/atocore/backup"
)

// errInterrupted is the error of a Read after an interrupt. The reason is in the
// context that has ended.
var errInterrupted = errors.New("the body is not read any more")

// A body reads the body of a request, which is bounded in size and must not come
// too slowly. Its errors are of this package.
type body struct {
	rc       *http.ResponseController
	r        io.Reader
	timeout  time.Duration
	left     int64 // bytes that may come until the deadline is set anew
	deadline time.Time
	err      error // the first one, but for io.EOF
	ended    bool

	mu          sync.Mutex // guards what follows, and the deadline of the connection
	interrupted bool
	closed      bool
}

// bodyOf returns the body of r, of at most so many bytes.
func (h *Handler) bodyOf(w http.ResponseWriter, r *http.Request, most int64) *body {
	return &body{rc: http.NewResponseController(w), r: http.MaxBytesReader(w, r.Body, most), timeout: h.cfg.BodyTimeout}
}

// startDeadlines sets the deadlines of a request that begins, instead of those of
// http.Server, which are for the whole request: HTTP/2 resets a stream when the one
// for writing is over, in the middle of an operation. There is none for the answer
// until it is written. A body must bring its first piece in time, even if nobody
// reads it, because the server does then, before it closes or reuses the
// connection.
func (h *Handler) startDeadlines(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	var read time.Time
	if r.Body != nil && r.Body != http.NoBody {
		read = backup.SystemClock().Now().Add(h.cfg.BodyTimeout)
	}
	_ = rc.SetReadDeadline(read) // not every ResponseWriter has deadlines
	_ = rc.SetWriteDeadline(time.Time{})
}

// Read reads some of the body.
func (b *body) Read(p []byte) (n int, err error) {
	if b.left <= 0 {
		b.deadline = backup.SystemClock().Now().Add(b.timeout)
		b.setDeadline(b.deadline)
		b.left = bodyPiece
	}
	n, err = b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		if !b.ended {
			b.ended = true
			b.setDeadline(time.Time{})
		}
		return n, err
	}
	if b.err == nil {
		b.err = b.describe(err)
	}
	return n, b.err
}

// setDeadline sets the deadline for reading, unless the body was interrupted.
func (b *body) setDeadline(at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.interrupted {
		_ = b.rc.SetReadDeadline(at)
	}
}

// interrupt ends a Read that waits for the client, and all others.
func (b *body) interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.interrupted = true
		_ = b.rc.SetReadDeadline(time.Unix(1, 0)) // in the past
	}
}

// close ends the use of the body. An interrupt does nothing afterwards.
func (b *body) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}

// describe returns the error of a Read as one of this package.
func (b *body) describe(err error) error {
	tooLarge := new(http.MaxBytesError)
	switch {
	case errors.As(err, &tooLarge):
		return &problemError{"body_too_large", fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit)}
	case errors.Is(err, os.ErrDeadlineExceeded) && backup.SystemClock().Now().Before(b.deadline):
		return errInterrupted
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &problemError{"too_slow", fmt.Sprintf("less than %d bytes of the body came within %s", bodyPiece, b.timeout)}
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, new(*net.OpError)):
		return fmt.Errorf("%w: the client is gone: %w", context.Canceled, err)
	}
	return badRequest("the body can't be read: %v", err) // its chunks, for example
}

// readBody reads a JSON object, or nothing, into the fields of into. It reads the
// body to its end: net/http notices that a client goes away only after that.
func (h *Handler) readBody(w http.ResponseWriter, r *http.Request, into any) error {
	b := h.bodyOf(w, r, maxBody)
	data, err := io.ReadAll(b)
	if err != nil {
		w.Header().Set("Connection", "close")
		return err
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return nil
	}
	if err := checkType(r, "application/json"); err != nil {
		return err
	}
	if !strings.HasPrefix(text, "{") { // Decode would accept null
		return badRequest("the body is not a JSON object")
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return describeJSON(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return badRequest("the body has more than one JSON value")
	}
	return nil
}

// describeJSON returns an error of package json without the names of Go's types.
func describeJSON(err error) error {
	wrong := new(json.UnmarshalTypeError)
	if !errors.As(err, &wrong) {
		return badRequest("the body: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	article := "a"
	switch kind, number, _ := strings.Cut(wrong.Value, " "); {
	case number != "":
		article = "the"
	case kind == "array", kind == "object":
		article = "an"
	}
	return badRequest("the body: %s can't be %s %.50s", wrong.Field, article, wrong.Value)
}

func badRequest(format string, args ...any) error {
	return &problemError{"bad_request", fmt.Sprintf(format, args...)}
}

// checkType refuses a body of another type than these, unless the request does
// not say which it has, and any that is encoded: what a body takes up is bounded
// by its length, and nothing here unpacks it.
func checkType(r *http.Request, types ...string) error {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return &problemError{"media_type", fmt.Sprintf("the body is encoded (%.50q)", encoding)}
	}
	given := r.Header.Get("Content-Type")
	if given == "" {
		return nil
	}
	name, _, err := mime.ParseMediaType(given)
	if err == nil {
		for _, t := range types {
			if name == t {
				return nil
			}
		}
	}
	return &problemError{"media_type", fmt.Sprintf("the Content-Type is %.100q, not %s", given, strings.Join(types, " or "))}
}
