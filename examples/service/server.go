package main

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// maxBody bounds a note and a document.
const maxBody = 1 << 20

// handler returns the service's routes. A browser is refused what another site
// makes it ask for; the handler of the backups sees to that itself. Put
// authentication around it in a service that others can reach.
func (h *host) handler() http.Handler {
	own := http.NewServeMux()
	own.HandleFunc("PUT /notes/{name}", h.putNote)
	own.HandleFunc("GET /notes/{name}", h.getNote)
	own.HandleFunc("POST /projects/{project}/documents", h.ingest)
	own.HandleFunc("GET /documents/{id}", h.getDocument)
	mux := http.NewServeMux()
	mux.Handle("/", http.NewCrossOriginProtection().Handler(own))
	mux.Handle("/admin/backup/", http.StripPrefix("/admin/backup", h.backups))
	return mux
}

func (h *host) putNote(w http.ResponseWriter, r *http.Request) {
	text, err := readBody(w, r)
	if err == nil {
		err = h.store.putNote(r.Context(), r.PathValue("name"), text)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *host) getNote(w http.ResponseWriter, r *http.Request) {
	text, err := h.store.note(r.Context(), r.PathValue("name"))
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, text) // a client that has gone does not want it
}

func (h *host) ingest(w http.ResponseWriter, r *http.Request) {
	text, err := readBody(w, r)
	if err != nil {
		fail(w, err)
		return
	}
	id, err := h.store.ingest(r.Context(), r.PathValue("project"), text)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusCreated, map[string]string{"id": id})
}

func (h *host) getDocument(w http.ResponseWriter, r *http.Request) {
	doc, err := h.store.document(r.Context(), r.PathValue("id"))
	if err != nil {
		fail(w, err)
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

// fail replies with err.
func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	tooLarge := new(http.MaxBytesError)
	switch {
	case errors.Is(err, errNotFound):
		status = http.StatusNotFound
	case errors.Is(err, errOffline):
		status = http.StatusServiceUnavailable
	case errors.As(err, &tooLarge):
		status = http.StatusRequestEntityTooLarge
	}
	reply(w, status, map[string]string{"error": err.Error()})
}
