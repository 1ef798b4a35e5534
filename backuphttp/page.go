package backuphttp

import "net/http"

// servePage answers GET / of a browser.
func (h *Handler) servePage(w http.ResponseWriter, r *http.Request) {
	h.fail(w, r, &problemError{code: "not_found", detail: "there is no page yet"})
}

// serveAsset answers GET /page/{name}.
func (h *Handler) serveAsset(w http.ResponseWriter, r *http.Request, name string) {
	h.fail(w, r, &problemError{code: "not_found", detail: "there is no page yet"})
}
