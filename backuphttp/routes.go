package backuphttp

import (
	"net/http"
)

// serveRoot answers GET /.
func (h *Handler) serveRoot(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Vary", "Accept")
	if prefersHTML(r.Header.Values("Accept")) {
		h.servePage(w, r)
		return
	}
	list, err := h.list(r.Context())
	if err != nil {
		p := problemOf(err, nil)
		if list != nil {
			p.Result = list.json
		}
		h.writeProblem(w, r, p)
		return
	}
	h.write(w, r, http.StatusOK, "application/json", list.json)
}

func (h *Handler) latest(w http.ResponseWriter, r *http.Request)        { h.fail(w, r, errNotWritten) }
func (h *Handler) create(w http.ResponseWriter, r *http.Request)        { h.fail(w, r, errNotWritten) }
func (h *Handler) prune(w http.ResponseWriter, r *http.Request)         { h.fail(w, r, errNotWritten) }
func (h *Handler) events(w http.ResponseWriter, r *http.Request)        { h.fail(w, r, errNotWritten) }
func (h *Handler) metrics(w http.ResponseWriter, r *http.Request)       { h.fail(w, r, errNotWritten) }
func (h *Handler) importArchive(w http.ResponseWriter, r *http.Request) { h.fail(w, r, errNotWritten) }

func (h *Handler) listOperations(w http.ResponseWriter, r *http.Request) {
	h.write(w, r, http.StatusOK, "application/json", encode(h.tracker.list()))
}

func (h *Handler) snapshot(w http.ResponseWriter, r *http.Request, stamp string) {
	h.fail(w, r, errNotWritten)
}

func (h *Handler) remove(w http.ResponseWriter, r *http.Request, stamp string) {
	h.fail(w, r, errNotWritten)
}
func (h *Handler) validate(w http.ResponseWriter, r *http.Request, stamp string) {
	h.fail(w, r, errNotWritten)
}
func (h *Handler) drill(w http.ResponseWriter, r *http.Request, stamp string) {
	h.fail(w, r, errNotWritten)
}
func (h *Handler) export(w http.ResponseWriter, r *http.Request, stamp string) {
	h.fail(w, r, errNotWritten)
}
func (h *Handler) restore(w http.ResponseWriter, r *http.Request, stamp string) {
	h.fail(w, r, errNotWritten)
}
func (h *Handler) protect(w http.ResponseWriter, r *http.Request, stamp string) {
	h.fail(w, r, errNotWritten)
}

func (h *Handler) operation(w http.ResponseWriter, r *http.Request, id string) {
	h.fail(w, r, errNotWritten)
}

func (h *Handler) cancelOperation(w http.ResponseWriter, r *http.Request, id string) {
	h.fail(w, r, errNotWritten)
}
