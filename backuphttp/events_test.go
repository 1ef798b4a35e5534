package backuphttp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
)

// The events of a create: its begin, its phases with a share that grows, its end.
func TestEventsOfACreate(t *testing.T) {
	s := newSite(t, everything, func(o *backup.Options) { o.Clock = backuptest.Noon })
	events := s.follow("")
	stamp := s.create()
	begin, ok := events.next()
	require.True(t, ok)
	require.Equal(t, "operation", begin.name)
	require.NotEmpty(t, begin.id)
	share, phases := 0.0, map[backup.Phase]bool{}
	for {
		e, ok := events.next()
		require.True(t, ok)
		if e.name == "operation" {
			var op operation
			require.NoError(t, json.Unmarshal([]byte(e.data), &op))
			require.Equal(t, stamp, op.Stamp)
			require.Empty(t, op.Href)
			break
		}
		require.Equal(t, "progress", e.name)
		require.Empty(t, e.id)
		var data struct {
			ID, Kind, Stamp string
			Progress        backup.Progress
		}
		require.NoError(t, json.Unmarshal([]byte(e.data), &data))
		require.Equal(t, "create", data.Kind)
		require.GreaterOrEqual(t, data.Progress.Share, share)
		share, phases[data.Progress.Phase] = data.Progress.Share, true
	}
	require.InDelta(t, 1, share, 0)
	require.Greater(t, len(phases), 3, phases)
}

// A client that connects again gets what it missed, or is told that this is not
// known.
func TestEventsAreReplayed(t *testing.T) {
	s := newSite(t, everything)
	events := s.follow("")
	first := s.create()
	events.operation()
	require.Equal(t, first, events.operation().Stamp)
	require.NoError(t, events.response.Body.Close())

	second := s.create()
	again := s.follow(events.last)
	require.Equal(t, "running", again.operation().State)
	require.Equal(t, second, again.operation().Stamp)

	boot, _, _ := strings.Cut(events.last, "-")
	for _, id := range []string{"0000-1", boot + "-5000", boot + "-x", boot + "--1", "x", boot, boot + "-18446744073709551615"} {
		lost := s.follow(id)
		e, ok := lost.next()
		require.True(t, ok)
		require.Equal(t, "reset", e.name, id)
		require.Equal(t, again.last, e.id, "from there on, nothing is missed")
		require.Equal(t, "{}", e.data)
	}

	for range 130 { // more events than are remembered
		s.fails(404, "no_snapshot", asked{method: "POST", path: "/x/protect"})
	}
	e, ok := s.follow(again.last).next()
	require.True(t, ok)
	require.Equal(t, "reset", e.name)
}

// A large result is not in the events.
func TestLargeResultIsOmitted(t *testing.T) {
	s := newSite(t, everything)
	snapshot := s.CreateSnapshot()
	for i := range 400 {
		snapshot.Add("chroma/"+strings.Repeat("x", 100)+string(rune('a'+i%26))+strings.Repeat("y", i/26), nil)
	}
	events := s.follow("")
	require.Greater(t, len(s.must(200, "GET", "/"+snapshot.Stamp+"/validate", "", nil).body), 32<<10)
	events.operation()
	op := events.operation()
	require.True(t, op.Omitted)
	require.Equal(t, "null", string(op.Result))
	s.must(200, "GET", "/operations/"+op.ID, "", &op)
	var report backup.Report
	require.NoError(t, json.Unmarshal(op.Result, &report))
	require.GreaterOrEqual(t, len(report.Problems), 400)

	s.fails(422, "invalid_backup", asked{method: "POST", path: "/" + snapshot.Stamp + "/restore"})
	events.operation()
	op = events.operation()
	require.True(t, op.Omitted)
	require.Nil(t, op.Problem.Report)
	require.Equal(t, "invalid_backup", op.Problem.Code)
}

// smallBuffers starts a server whose first connection holds little that is not
// read.
func (s *site) smallBuffers() {
	s.t.Helper()
	s.server.Close()
	s.server = httptest.NewUnstartedServer(http.StripPrefix(mountedAt, s.h))
	var first atomic.Bool
	s.server.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if tcp, ok := c.(*net.TCPConn); ok && state == http.StateNew && first.CompareAndSwap(false, true) {
			_ = tcp.SetWriteBuffer(1)
		}
	}
	s.server.Start()
	s.url = s.server.URL + mountedAt
}

// dial opens a connection that holds little that is not read, and writes to it.
func (s *site) dial(request string) *net.TCPConn {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.server.Listener.Addr().String())
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = conn.Close() })
	tcp := conn.(*net.TCPConn)
	require.NoError(s.t, tcp.SetReadBuffer(1))
	_, err = tcp.Write([]byte(request))
	require.NoError(s.t, err)
	return tcp
}

// Nobody waits for a client that does not read: it is cut off, and gets what it
// missed when it connects again.
func TestSlowFollower(t *testing.T) {
	s := newSite(t, everything)
	s.smallBuffers()
	conn := s.dial("GET " + mountedAt + "/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	s.awaitFollowers("1")
	other := s.follow("")
	stamp := s.create()
	other.operation()
	require.Equal(t, stamp, other.operation().Stamp)
	before := other.last
	events := make(chan int)
	go func() { // the other one keeps up
		n := 0
		for range 400 {
			other.operation()
			n++
		}
		events <- n
	}()
	for range 200 {
		s.must(200, "POST", "/"+stamp+"/protect", "", nil)
	}
	require.Equal(t, 400, <-events)

	slow := &stream{t, nil, bufio.NewReader(conn), ""}
	n := 0
	for {
		if _, ok := slow.next(); !ok {
			break
		}
		n++
	}
	require.Less(t, n, 400, "it was not cut off")
	s.awaitFollowers("1")
	e, ok := s.follow(before).next()
	require.True(t, ok)
	require.Equal(t, "reset", e.name, "more than 256 events")
}

// awaitFollowers waits until so many clients follow the events.
func (s *site) awaitFollowers(n string) {
	s.t.Helper()
	for !strings.Contains(s.must(200, "GET", "/metrics", "", nil).body, "atocore_backup_event_followers "+n+"\n") {
		require.NoError(s.t, s.t.Context().Err())
	}
}

// A client that is gone is forgotten, and their number is bounded.
func TestGoneFollower(t *testing.T) {
	cfg := everything
	cfg.MaxEvents = 2
	s := newSite(t, cfg)
	one, two := s.follow(""), s.follow("")
	answer := s.ask(asked{method: "GET", path: "/events"})
	requireProblem(t, answer, 503, "too_many_followers")
	require.NotEmpty(t, answer.Header.Get("Retry-After"))
	require.NoError(t, one.response.Body.Close())
	require.NoError(t, two.response.Body.Close())
	s.awaitFollowers("0")
	s.follow("")
}

// Shutdown does not wait for a client that does not read.
func TestShutdownWithASlowFollower(t *testing.T) {
	s := newSite(t, everything)
	s.smallBuffers()
	s.dial("GET " + mountedAt + "/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	s.awaitFollowers("1")
	stamp := s.create()
	for range 20 {
		s.must(200, "POST", "/"+stamp+"/protect", "", nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.h.Shutdown(ctx), "no operation was cancelled")
}

// A recorder is a ResponseWriter in memory.
type recorder struct {
	mu     sync.Mutex
	header http.Header
	b      bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }
func (r *recorder) WriteHeader(int)     {}
func (r *recorder) Flush()              {}
func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

// A stream in which nothing happens has a comment every 15 seconds, and says when
// to connect again.
func TestHeartbeat(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := backuphttp.New(backup.Options{BackupDir: dir}, backuphttp.Config{})
		w := &recorder{header: http.Header{}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			h.ServeHTTP(w, httptest.NewRequest("GET", "/events", nil).WithContext(ctx))
		}()
		synctest.Wait()
		begin := w.String()
		require.Regexp(t, `^retry: 2000\nid: [0-9a-f]{8}-0\n\n$`, begin)
		time.Sleep(46 * time.Second)
		synctest.Wait()
		require.Equal(t, begin+":\n\n:\n\n:\n\n", w.String())
		cancel()
		<-ended
		require.NoError(t, h.Shutdown(t.Context()))
	})
}
