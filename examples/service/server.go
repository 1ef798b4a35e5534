package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// maxBody bounds a note and a document.
const maxBody = 1 << 20

// handler returns the service's routes. A browser is refused what another site
// makes it ask for.
func (h *host) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /notes/{name}", h.putNote)
	mux.HandleFunc("GET /notes/{name}", h.getNote)
	mux.HandleFunc("POST /projects/{project}/documents", h.ingest)
	mux.HandleFunc("GET /documents/{id}", h.getDocument)
	h.backups.routes(mux)
	return http.NewCrossOriginProtection().Handler(mux)
}

func (h *host) putNote(w http.ResponseWriter, r *http.Request) {
	text, err := readBody(w, r)
	if err == nil {
		err = h.store.putNote(r.Context(), r.PathValue("name"), text)
	}
	if err != nil {
		fail(w, nil, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *host) getNote(w http.ResponseWriter, r *http.Request) {
	text, err := h.store.note(r.Context(), r.PathValue("name"))
	if err != nil {
		fail(w, nil, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, text) // a client that has gone does not want it
}

func (h *host) ingest(w http.ResponseWriter, r *http.Request) {
	text, err := readBody(w, r)
	if err != nil {
		fail(w, nil, err)
		return
	}
	id, err := h.store.ingest(r.Context(), r.PathValue("project"), text)
	if err != nil {
		fail(w, nil, err)
		return
	}
	reply(w, http.StatusCreated, map[string]string{"id": id})
}

func (h *host) getDocument(w http.ResponseWriter, r *http.Request) {
	doc, err := h.store.document(r.Context(), r.PathValue("id"))
	if err != nil {
		fail(w, nil, err)
		return
	}
	reply(w, http.StatusOK, doc)
}

// readBody reads a request to its end before the store is used, so that no client
// keeps the store from going offline.
func readBody(w http.ResponseWriter, r *http.Request) (string, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	return string(body), err
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone does not want it
}

// fail replies with err, and with what a call returned together with it.
func fail(w http.ResponseWriter, result any, err error) {
	status := statusOf(err)
	tooLarge := new(http.MaxBytesError)
	switch {
	case errors.Is(err, errNotFound):
		status = http.StatusNotFound
	case errors.Is(err, errOffline):
		status = http.StatusServiceUnavailable
	case errors.As(err, &tooLarge):
		status = http.StatusRequestEntityTooLarge
	}
	reply(w, status, map[string]any{"error": err.Error(), "result": result})
}

// answer returns a handler that calls do, with opts and the stamp in the request's
// path, and replies with the result.
func answer[O, R any](opts O, status int, do func(ctx context.Context, opts O, stamp string) (R, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		result, err := do(r.Context(), opts, r.PathValue("stamp"))
		if err != nil {
			fail(w, result, err)
			return
		}
		reply(w, status, result)
	})
}

// withoutStamp returns do for answer.
func withoutStamp[O, R any](do func(ctx context.Context, opts O) (R, error)) func(context.Context, O, string) (R, error) {
	return func(ctx context.Context, opts O, _ string) (R, error) { return do(ctx, opts) }
}

// stream returns a handler that replies with what do writes. If do fails after it
// has begun to write, the connection is cut off, so that nobody takes the part for
// the whole.
func stream(contentType string, do func(w io.Writer, r *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		body := &begun{Writer: w}
		switch err := do(body, r); {
		case err != nil && body.begun:
			panic(http.ErrAbortHandler)
		case err != nil:
			fail(w, nil, err)
		}
	})
}

// A begun writer knows whether anything was written.
type begun struct {
	io.Writer
	begun bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.begun = true
	return b.Writer.Write(p)
}
