package backuphttp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/atocore/backup"
)

// A Handler answers requests about the backups of one store. Its methods may be
// called concurrently. Mount it with http.StripPrefix under any prefix, or
// without one; that the prefix ends with a slash or not makes no difference. The
// prefix that clients see, for Location and links, is what http.Request.RequestURI
// has before the path that the Handler gets, so a proxy in front of the server must
// not change paths.
//
// Put the Handler behind something that admits the right people only. It needs no
// time limits of http.Server: it sets the deadlines of a connection itself, which
// replaces ReadTimeout and WriteTimeout, if the http.ResponseWriter that it gets
// allows that (see http.ResponseController).
type Handler struct {
	opts    backup.Options
	cfg     Config
	log     *slog.Logger
	clock   backup.Clock
	lists   lister
	tracker tracker
}

// New returns a Handler for the backups of opts, which every call gets. What a
// request may choose, such as IncludeChroma of a create, is from opts if the
// request does not. OnProgress, if set, gets the reports of every operation, which
// may run at once. Faults of opts are reported by the requests that they concern,
// as backup.ErrInvalidOptions.
//
// Set Verify, so that what is created is validated; RecordVerdicts, so that lists
// and metrics know what was validated here; and Wait, because without it a create
// waits for the guard as long as OperationTimeout.
func New(opts backup.Options, cfg Config) *Handler {
	h := &Handler{opts: opts, cfg: cfg.withDefaults(), log: opts.Logger, clock: opts.Clock}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.clock == nil {
		h.clock = backup.SystemClock()
	}
	h.lists.read = h.readList
	h.tracker.init()
	return h
}

// Shutdown ends the work of the Handler. New operations and followers of events
// are refused from now on, with status 503. Shutdown waits for the operations that
// are running until ctx ends; then it cancels them, waits for that, and returns
// ctx's error. A restore that has begun to swap ends first. Followers of events
// get the ends of all operations, and then the end of the stream. Nothing runs any
// more when Shutdown returns, but requests that only read.
//
// Call it before http.Server.Shutdown, which waits for followers of events, or let
// that call it, by RegisterOnShutdown. The server does not wait for what is
// registered there, so call Shutdown again before the process ends: an operation
// that a client asked for with respond-async may still be running.
func (h *Handler) Shutdown(ctx context.Context) error { return h.tracker.shutdown(ctx) }

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer h.recoverPanic(w, r)
	h.startDeadlines(w, r)
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	header.Set("Referrer-Policy", "no-referrer")
	h.dispatch(w, r)
}

// recoverPanic answers 500 after a panic of the host, in its Clock or Logger for
// example; package backup makes errors of all others.
func (h *Handler) recoverPanic(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler {
		panic(v)
	}
	h.fail(w, r, panicError(v))
}

// panicError makes an error of the value of a panic.
func panicError(v any) error {
	return fmt.Errorf("%w: %v\n%s", backup.ErrPanic, v, debug.Stack())
}

// A route has a function for each method that it allows.
type route struct {
	get, post, del http.HandlerFunc
	// changes says that get changes something, or costs so much that other sites
	// must not make a browser ask for it.
	changes bool
}

// dispatch answers a request by its route.
func (h *Handler) dispatch(w http.ResponseWriter, r *http.Request) {
	segments, ok := pathSegments(r.URL)
	if !ok {
		h.fail(w, r, &problemError{"not_found", "the path is not valid"})
		return
	}
	found := h.route(segments)
	if found == nil {
		h.fail(w, r, &problemError{"not_found", fmt.Sprintf("there is nothing at %q", "/"+strings.Join(segments, "/"))})
		return
	}
	serve := found.method(r.Method)
	if serve == nil {
		w.Header().Set("Allow", found.allowed())
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		h.fail(w, r, &problemError{"method_not_allowed", fmt.Sprintf("%.20q is not among %s", r.Method, found.allowed())})
		return
	}
	checked := r
	if found.changes {
		checked = &http.Request{Method: http.MethodPost, Header: r.Header, Host: r.Host, URL: r.URL}
	}
	if err := h.cfg.CrossOrigin.Check(checked); err != nil {
		h.fail(w, r, &problemError{"cross_origin", err.Error()})
		return
	}
	serve(w, r)
}

// pathSegments returns the segments of a path, each unescaped, none for the
// root. An escaped slash does not separate segments.
func pathSegments(u *url.URL) (segments []string, ok bool) {
	path := strings.TrimPrefix(u.EscapedPath(), "/")
	if path == "" {
		return nil, true
	}
	for segment := range strings.SplitSeq(path, "/") {
		plain, err := url.PathUnescape(segment)
		if err != nil {
			return nil, false
		}
		segments = append(segments, plain)
	}
	return segments, true
}

// route returns the route of a path, or nil.
func (h *Handler) route(segments []string) *route {
	switch len(segments) {
	case 0:
		return &route{get: h.serveRoot, post: h.create}
	case 1:
		return h.routeOne(segments[0])
	case 2:
		return h.routeTwo(segments[0], segments[1])
	}
	return nil
}

func (h *Handler) routeOne(name string) *route {
	switch name {
	case "latest":
		return &route{get: h.latest}
	case "import":
		return &route{post: h.importArchive}
	case "prune":
		return &route{post: h.prune}
	case "operations":
		return &route{get: h.listOperations}
	case "events":
		return &route{get: h.events}
	case "metrics":
		return &route{get: h.metrics}
	}
	if !isStamp(name) {
		return nil
	}
	return &route{get: with(name, h.snapshot), del: with(name, h.remove)}
}

func (h *Handler) routeTwo(first, second string) *route {
	switch first {
	case "operations":
		return &route{get: with(second, h.operation), del: with(second, h.cancelOperation)}
	case "page":
		return &route{get: with(second, h.serveAsset)}
	}
	if !isStamp(first) {
		return nil
	}
	switch second {
	case "validate":
		return &route{get: with(first, h.validate), changes: true}
	case "drill":
		return &route{post: with(first, h.drill)}
	case "export":
		return &route{get: with(first, h.export), changes: true}
	case "restore":
		return &route{post: with(first, h.restore)}
	case "protect":
		return &route{post: with(first, h.protect)}
	}
	return nil
}

// with binds the last argument of a handler.
func with(name string, serve func(http.ResponseWriter, *http.Request, string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { serve(w, r, name) }
}

// isStamp reports whether name may be that of a snapshot's directory. Package
// backup decides; this only keeps routes apart from it.
func isStamp(name string) bool {
	const longest = 255 // bytes of a name, on the usual file systems
	return name != "" && name != "." && name != ".." && len(name) <= longest &&
		!strings.ContainsAny(name, "/\\\x00") && name != "page"
}

// method returns the function for a method, or nil.
func (t *route) method(method string) http.HandlerFunc {
	switch method {
	case http.MethodGet, http.MethodHead:
		return t.get
	case http.MethodPost:
		return t.post
	case http.MethodDelete:
		return t.del
	}
	return nil
}

// allowed returns the methods of a route, for Allow.
func (t *route) allowed() string {
	var names []string
	if t.get != nil {
		names = append(names, http.MethodGet, http.MethodHead)
	}
	if t.post != nil {
		names = append(names, http.MethodPost)
	}
	if t.del != nil {
		names = append(names, http.MethodDelete)
	}
	return strings.Join(append(names, http.MethodOptions), ", ")
}

// publicPath returns the path of a request as its client sees it. It begins with
// one slash, so that it is never taken for the address of another host.
func publicPath(r *http.Request) string {
	path := r.URL.EscapedPath()
	if asked, err := url.ParseRequestURI(r.RequestURI); err == nil {
		path = asked.EscapedPath()
	}
	return "/" + strings.TrimLeft(path, "/")
}

// prefix returns the path under which clients see the Handler, without a slash
// at its end.
func prefix(r *http.Request) string {
	whole, own := publicPath(r), strings.TrimPrefix(r.URL.EscapedPath(), "/")
	before, ok := strings.CutSuffix(whole, own)
	if !ok {
		return ""
	}
	return strings.TrimRight(before, "/")
}

// href returns the address of something below the Handler.
func href(r *http.Request, elem ...string) string {
	var b strings.Builder
	b.WriteString(prefix(r))
	for _, e := range elem {
		b.WriteString("/" + url.PathEscape(e))
	}
	return b.String()
}

// encode returns v as JSON. What is encoded here can be encoded, except for
// times outside of years 1 to 9999, which then are an error in the answer.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		b.Reset()
		_ = e.Encode(problemOf(fmt.Errorf("encode the answer: %w", err), nil))
	}
	return b.Bytes()
}

// write answers with a whole body.
func (h *Handler) write(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	h.extendWrite(w)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // an error means that the client is gone
	}
}

// extendWrite gives the client BodyTimeout to take what is written next.
func (h *Handler) extendWrite(w http.ResponseWriter) {
	deadline := backup.SystemClock().Now().Add(h.cfg.BodyTimeout)
	_ = http.NewResponseController(w).SetWriteDeadline(deadline) // not every ResponseWriter has one
}
