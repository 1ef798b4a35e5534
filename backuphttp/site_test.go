package backuphttp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
)

// everything is a Config that allows everything.
var everything = backuphttp.Config{
	AllowRestore: true, AllowRemove: true, AllowProtect: true, AllowPrune: true,
}

const mountedAt = "/admin/backup"

// A site is a server with the backups of a store below mountedAt.
type site struct {
	*backuptest.Store
	t      *testing.T
	h      *backuphttp.Handler
	server *httptest.Server
	url    string
}

// newSite starts a server. When the test ends, it must shut down and leave nothing.
func newSite(t *testing.T, cfg backuphttp.Config, change ...func(*backup.Options)) *site {
	t.Helper()
	return newSiteOf(t, backuptest.NewSmallStore(t), cfg, change...)
}

func newSiteOf(t *testing.T, store *backuptest.Store, cfg backuphttp.Config, change ...func(*backup.Options)) *site {
	t.Helper()
	for _, c := range change {
		c(&store.Options)
	}
	h := backuphttp.New(store.Options, cfg)
	s := &site{Store: store, t: t, h: h, server: httptest.NewServer(http.StripPrefix(mountedAt, h))}
	s.url = s.server.URL + mountedAt
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.h.Shutdown(ctx)
		s.server.Close()
		http.DefaultClient.CloseIdleConnections()
		requireNoGoroutines(t)
		store.RequireNoStaging()
	})
	return s
}

// requireNoGoroutines waits until no goroutine is in the package's code.
func requireNoGoroutines(t testing.TB) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for range 10_000 {
		left := false
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "backup/backuphttp.") {
				left = true
			}
		}
		if !left {
			return
		}
		runtime.Gosched() // one that has done its work may not have ended yet
	}
	require.Fail(t, "goroutines are left")
}

// An asked is a request that a test makes.
type asked struct {
	method, path, body string
	header             map[string]string
	ctx                context.Context
}

// A got is the answer to it.
type got struct {
	*http.Response
	body string
}

// ask sends a request and reads the answer.
func (s *site) ask(a asked) got {
	s.t.Helper()
	response := s.open(a)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	require.NoError(s.t, err)
	return got{response, string(data)}
}

// open sends a request.
func (s *site) open(a asked) *http.Response {
	s.t.Helper()
	response, err := s.try(a)
	require.NoError(s.t, err)
	return response
}

func (s *site) try(a asked) (*http.Response, error) {
	if a.ctx == nil {
		a.ctx = context.Background()
	}
	request, err := http.NewRequestWithContext(a.ctx, a.method, s.url+a.path, strings.NewReader(a.body))
	if err != nil {
		return nil, err
	}
	if a.body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for name, value := range a.header {
		request.Header.Set(name, value)
	}
	return http.DefaultClient.Do(request)
}

// must sends a request that has to be answered with a status, and reads the answer
// into result, unless that is nil.
func (s *site) must(status int, method, path, body string, result any) got {
	s.t.Helper()
	answer := s.ask(asked{method: method, path: path, body: body})
	require.Equal(s.t, status, answer.StatusCode, answer.body)
	if result != nil {
		require.NoError(s.t, json.Unmarshal([]byte(answer.body), result), answer.body)
	}
	return answer
}

// create creates a snapshot.
func (s *site) create() string {
	s.t.Helper()
	var meta backup.Metadata
	s.must(201, "POST", "/", "", &meta)
	return meta.Stamp
}

// An operation is what the package's documentation says.
type operation struct {
	ID, Href, Kind, Stamp, State string
	Async                        bool
	Started                      time.Time  `json:"started_at"`
	Ended                        *time.Time `json:"ended_at"`
	Progress                     *backup.Progress
	Status                       int
	Result                       json.RawMessage
	Omitted                      bool `json:"result_omitted"`
	Problem                      *problem
}

// A problem is a problem document.
type problem struct {
	Type, Title, Detail, Instance, Code string
	Status                              int
	Report                              *backup.Report
	Result                              json.RawMessage
}

// fails sends a request that has to fail with a code.
func (s *site) fails(status int, code string, a asked) problem {
	s.t.Helper()
	answer := s.ask(a)
	return requireProblem(s.t, answer, status, code)
}

func requireProblem(t *testing.T, answer got, status int, code string) problem {
	t.Helper()
	require.Equal(t, status, answer.StatusCode, answer.body)
	require.Equal(t, "application/problem+json", answer.Header.Get("Content-Type"))
	var p problem
	require.NoError(t, json.Unmarshal([]byte(answer.body), &p), answer.body)
	require.Equal(t, code, p.Code, answer.body)
	require.Equal(t, status, p.Status)
	require.NotEmpty(t, p.Title)
	require.NotEmpty(t, p.Detail)
	require.NotEmpty(t, p.Type)
	require.True(t, strings.HasPrefix(p.Instance, "/"), p.Instance)
	return p
}

// An event is one of the event stream.
type event struct{ name, id, data string }

// A stream is an open event stream.
type stream struct {
	t        *testing.T
	response *http.Response
	lines    *bufio.Reader
	last     string // the last id
}

// follow opens the event stream, after the event with this id if it is not empty.
func (s *site) follow(lastID string) *stream {
	s.t.Helper()
	header := map[string]string{"Accept": "text/event-stream"}
	if lastID != "" {
		header["Last-Event-ID"] = lastID
	}
	response := s.open(asked{method: "GET", path: "/events", header: header})
	require.Equal(s.t, 200, response.StatusCode)
	require.Equal(s.t, "text/event-stream", response.Header.Get("Content-Type"))
	s.t.Cleanup(func() { _ = response.Body.Close() })
	return &stream{s.t, response, bufio.NewReader(response.Body), ""}
}

// next returns the next event, or false at the end of the stream.
func (s *stream) next() (e event, ok bool) {
	s.t.Helper()
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			return e, false
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "event":
			e.name = value
		case "id":
			e.id, s.last = value, value
		case "data":
			e.data += value
		case "":
			if e.name != "" {
				return e, true
			}
			e = event{}
		}
	}
}

// await reads events until there is one with this in its data.
func (s *stream) await(text string) {
	s.t.Helper()
	for {
		e, ok := s.next()
		require.True(s.t, ok, "the stream has ended")
		if strings.Contains(e.data, text) {
			return
		}
	}
}

// operation returns the next event about an operation.
func (s *stream) operation() (op operation) {
	s.t.Helper()
	for {
		e, ok := s.next()
		require.True(s.t, ok, "the stream has ended")
		if e.name == "operation" {
			require.NoError(s.t, json.Unmarshal([]byte(e.data), &op))
			return op
		}
	}
}

// A gate is an ingestion guard that holds creates up.
type gate struct {
	reached chan struct{} // gets a value for each create that waits
	opened  chan struct{} // a value lets one go on
}

func newGate() *gate { return &gate{make(chan struct{}, 100), make(chan struct{}, 100)} }

func (g *gate) Lock(ctx context.Context) (unlock func(), err error) {
	g.reached <- struct{}{}
	select {
	case <-g.opened:
		return func() {}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *gate) guard(opts *backup.Options) { opts.Locker = g }

// archive returns the archive of a snapshot.
func (s *site) archive(stamp string) []byte {
	s.t.Helper()
	var b bytes.Buffer
	require.NoError(s.t, backup.ExportRuntimeBackup(context.Background(), s.Options, stamp, &b))
	return b.Bytes()
}
