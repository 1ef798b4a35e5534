package backuphttp

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"math"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed page
var pageFiles embed.FS

// pagePolicy lets the page load its own script and style, and ask its own server.
// Nothing may be inline, so a note that the template failed to escape would still
// not run.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// pageTemplate is the page, whose only functions that depend on the request are
// replaced by renderPage.
var pageTemplate = template.Must(template.New("index.html").Funcs(template.FuncMap{
	"rfc":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"utc":    func(t time.Time) string { return t.UTC().Format(time.DateTime) },
	"minute": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") },
	"day":    func(t time.Time) string { return t.UTC().Format(time.DateOnly) },
	"json":   func(v any) (string, error) { text, err := json.Marshal(v); return string(text), err },
	"ago":    func(time.Time) string { return "" },
	"size":   size,
	"count":  count,
}).ParseFS(pageFiles, "page/index.html"))

// servePage answers GET / of a browser. All addresses in the page are relative to
// that of the page, so they are right even behind a proxy that changes paths.
func (h *Handler) servePage(w http.ResponseWriter, r *http.Request) {
	status := http.StatusOK
	list, err := h.list(r.Context())
	if list == nil {
		list, status = new(listing), problemOf(err, nil).Status
	}
	page, err := renderPage(newPageView(pageInput{
		own: h.ownStore(), base: pageBase(r), opts: &h.opts, cfg: &h.cfg, list: list.snapshots, fault: err, now: h.clock.Now(),
		free: h.free(), all: r.URL.Query().Get("all") != "", ops: h.tracker.list(),
	}))
	if err != nil {
		h.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Security-Policy", pagePolicy)
	h.write(w, r, status, "text/html; charset=utf-8", page)
}

// free returns how much space is free for the backup directory, or -1.
func (h *Handler) free() int64 {
	free, ok := freeSpace(h.opts.BackupDir)
	if !ok || free > math.MaxInt64 {
		return -1
	}
	return int64(free)
}

// renderPage returns the page.
func renderPage(v *pageView) ([]byte, error) {
	t, err := pageTemplate.Clone()
	if err != nil {
		return nil, fmt.Errorf("render the page: %w", err)
	}
	t.Funcs(template.FuncMap{"ago": func(at time.Time) string { return ago(at, v.Now) }})
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return nil, fmt.Errorf("render the page: %w", err)
	}
	return b.Bytes(), nil
}

// pageBase returns what relative addresses in the page begin with. The page may be
// asked for with or without a slash at the end of its path, and without one, a
// browser resolves relative addresses against the path's parent.
func pageBase(r *http.Request) string {
	whole := publicPath(r)
	if strings.HasSuffix(whole, "/") {
		return "./"
	}
	return "./" + path.Base(whole) + "/" // it begins with a dot because the name may have a colon
}

// serveAsset answers GET /page/{name}. The file is the same for everybody until
// the program changes, which a browser finds out by its ETag.
func (h *Handler) serveAsset(w http.ResponseWriter, r *http.Request, name string) {
	content, err := pageFiles.ReadFile("page/" + name)
	if err != nil || path.Ext(name) == ".html" {
		h.fail(w, r, &problemError{"not_found", fmt.Sprintf("the page has no file %.100q", name)})
		return
	}
	sum := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(sum[:16]) + `"`
	w.Header().Set("ETag", tag)
	w.Header().Set("Cache-Control", "no-cache")
	if strings.Contains(r.Header.Get("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.write(w, r, http.StatusOK, assetType(name), content)
}

// assetType returns the media type of a file of the page. The system's table of
// types, which package mime reads, may have others.
func assetType(name string) string {
	switch path.Ext(name) {
	case ".css":
		return "text/css; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return mime.TypeByExtension(path.Ext(name))
}
