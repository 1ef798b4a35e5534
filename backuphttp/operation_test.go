package backuphttp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
)

var async = map[string]string{"Prefer": "wait=5, Respond-Async; x=y"}

// startCreate begins an asynchronous create and waits until it is at the gate.
func (s *site) startCreate(g *gate) (op operation) {
	s.t.Helper()
	answer := s.ask(asked{method: "POST", path: "/", header: async})
	require.Equal(s.t, 202, answer.StatusCode, answer.body)
	require.Equal(s.t, "respond-async", answer.Header.Get("Preference-Applied"))
	require.NoError(s.t, json.Unmarshal([]byte(answer.body), &op))
	require.Equal(s.t, op.Href, answer.Header.Get("Location"))
	<-g.reached
	return op
}

// An asynchronous create answers at once, and its operation is to be followed.
func TestAsynchronousCreate(t *testing.T) {
	g := newGate()
	s := newSite(t, everything, g.guard)
	events := s.follow("")
	op := s.startCreate(g)
	require.Equal(t, "create", op.Kind)
	require.True(t, op.Async)
	require.Equal(t, "running", op.State)
	require.Nil(t, op.Ended)
	require.Equal(t, "null", string(op.Result))

	var now operation
	s.must(200, "GET", strings.TrimPrefix(op.Href, mountedAt), "", &now)
	require.Equal(t, "running", now.State)
	require.NotNil(t, now.Progress)
	require.Equal(t, op.ID, events.operation().ID)

	g.opened <- struct{}{}
	ended := events.operation()
	require.Equal(t, op.ID, ended.ID)
	require.Equal(t, "succeeded", ended.State)
	require.Equal(t, 201, ended.Status)
	require.Nil(t, ended.Problem)
	require.InDelta(t, 1, ended.Progress.Share, 0)
	var meta backup.Metadata
	require.NoError(t, json.Unmarshal(ended.Result, &meta))
	require.Equal(t, []string{meta.Stamp}, s.Stamps())
	require.Equal(t, meta.Stamp, ended.Stamp)
	s.must(200, "GET", strings.TrimPrefix(op.Href, mountedAt), "", &now)
	require.JSONEq(t, string(ended.Result), string(now.Result))
}

// A client that goes away cancels its create, but not an asynchronous one.
func TestClientGoesAway(t *testing.T) {
	g := newGate()
	s := newSite(t, everything, g.guard)
	kept := s.startCreate(g)
	events := s.follow("")
	require.Equal(t, kept.ID, events.operation().ID, "it is running")

	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := s.try(asked{method: "POST", path: "/", body: "{}  \n", ctx: ctx})
		gone <- err
	}()
	<-g.reached
	require.Equal(t, "running", events.operation().State)
	cancel()
	require.ErrorIs(t, <-gone, context.Canceled)
	ended := events.operation()
	require.Equal(t, "canceled", ended.State)
	require.Equal(t, 499, ended.Status)
	require.Equal(t, "canceled", ended.Problem.Code)

	g.opened <- struct{}{}
	require.Equal(t, "succeeded", events.operation().State)
	require.Len(t, s.Stamps(), 1)
}

// An operation is cancelled by anybody, and the client that waits for it learns it.
func TestCancel(t *testing.T) {
	g := newGate()
	s := newSite(t, everything, g.guard)
	waiting := make(chan got)
	go func() { waiting <- s.ask(asked{method: "POST", path: "/"}) }()
	<-g.reached
	var operations []operation
	s.must(200, "GET", "/operations", "", &operations)
	require.Len(t, operations, 1)
	path := "/operations/" + operations[0].ID
	s.must(202, "DELETE", path, "", nil)
	p := requireProblem(t, <-waiting, 499, "canceled")
	require.Equal(t, mountedAt+path, p.Instance)
	require.Empty(t, s.Stamps())
	s.fails(409, "operation_ended", asked{method: "DELETE", path: path})
	s.fails(404, "no_operation", asked{method: "DELETE", path: "/operations/nothing"})
	s.fails(404, "no_operation", asked{method: "GET", path: "/operations/nothing"})
}

// Operations are bounded in number, and what the library refuses to do
// at once is refused.
func TestLimits(t *testing.T) {
	g := newGate()
	cfg := everything
	cfg.MaxOperations = 2
	s := newSite(t, cfg, g.guard)
	stamp := backuptest.NewSmallStore(t).Create().Stamp
	s.startCreate(g)
	answer := s.ask(asked{method: "POST", path: "/" + stamp + "/restore"})
	requireProblem(t, answer, 409, "busy")
	require.NotEmpty(t, answer.Header.Get("Retry-After"))
	s.startCreate(g)
	for _, header := range []map[string]string{nil, async} {
		answer = s.ask(asked{method: "POST", path: "/", header: header})
		requireProblem(t, answer, 503, "too_many_operations")
		require.NotEmpty(t, answer.Header.Get("Retry-After"))
	}
	s.must(200, "GET", "/", "", nil)
}

func TestTimeLimit(t *testing.T) {
	cfg := everything
	cfg.OperationTimeout = time.Millisecond
	s := newSite(t, cfg, newGate().guard)
	s.fails(504, "deadline_exceeded", asked{method: "POST", path: "/"})
}

type panickyClock struct{ calls, good int }

func (c *panickyClock) Now() time.Time {
	if c.calls++; c.calls > c.good {
		panic("the clock is broken")
	}
	return backuptest.Noon.Time
}

// A panic of the host is a 500 without its stack, which is logged, and the server
// goes on.
func TestHostPanics(t *testing.T) {
	for name, change := range map[string]func(*backup.Options){
		"progress": func(o *backup.Options) { o.OnProgress = func(backup.Progress) { panic("progress is broken") } },
		"guard": func(o *backup.Options) {
			o.Locker = backup.LockerFunc(func(context.Context) (func(), error) { panic("the guard is broken") })
		},
		"clock at once":              func(o *backup.Options) { o.Clock = &panickyClock{} },
		"clock in the create":        func(o *backup.Options) { o.Clock = &panickyClock{good: 1} },
		"clock later, in the create": func(o *backup.Options) { o.Clock = &panickyClock{good: 5} },
	} {
		t.Run(name, func(t *testing.T) {
			var log *backuptest.Log
			store := backuptest.NewSmallStore(t)
			log = store.Record()
			s := newSiteOf(t, store, everything, change)
			p := s.fails(500, "panic", asked{method: "POST", path: "/"})
			require.Contains(t, p.Detail, "broken")
			require.NotContains(t, p.Detail, "goroutine")
			require.Contains(t, strings.Join(log.Lines(), "\n"), "goroutine")
			require.Empty(t, s.Stamps())
			s.must(200, "GET", "/", "", nil)
			if !strings.HasPrefix(name, "clock") {
				answer := s.ask(asked{method: "POST", path: "/", header: async})
				require.Equal(t, 202, answer.StatusCode)
				require.NoError(t, s.h.Shutdown(t.Context()))
				require.Contains(t, s.must(200, "GET", "/operations", "", nil).body, `"code":"panic"`)
			}
		})
	}
}

// The host's OnProgress gets the reports, too.
func TestHostSeesProgress(t *testing.T) {
	var reports atomic.Int64
	s := newSite(t, everything, func(o *backup.Options) { o.OnProgress = func(backup.Progress) { reports.Add(1) } })
	s.create()
	require.Positive(t, reports.Load())
}

// A request can't ask for the Chroma directory without a guard, unless the host
// copies it without one, too.
func TestChromaNeedsAGuard(t *testing.T) {
	without := func(o *backup.Options) { o.IncludeChroma = false }
	for name, c := range map[string]struct {
		change func(*backup.Options)
		status int
	}{
		"no guard":       {without, 400},
		"the host's way": {func(*backup.Options) {}, 201},
		"a guard": {func(o *backup.Options) {
			without(o)
			o.Locker = backup.SyncLocker(new(sync.Mutex))
		}, 201},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, everything, c.change)
			answer := s.ask(asked{method: "POST", path: "/", body: `{"include_chroma": true}`})
			require.Equal(t, c.status, answer.StatusCode, answer.body)
			require.Equal(t, c.status == 201, strings.Contains(answer.body, `"chroma_snapshot_included":true`))
			require.Equal(t, c.status == 201, !strings.Contains(s.page("").body, `name="include_chroma" disabled`))
		})
	}
}

// A create whose snapshot is not valid answers with the report, the metadata and
// where the snapshot is.
func TestCreateThatIsNotValid(t *testing.T) {
	s := newSite(t, everything, func(o *backup.Options) { o.Verify = true })
	db := backuptest.OpenDB(t, s.DatabasePath)
	_, err := db.Exec("CREATE TABLE bad (x UNIQUE); INSERT INTO bad VALUES (1), (2)")
	require.NoError(t, err)
	require.NoError(t, db.Close())
	backuptest.LoseIndexEntries(t, s.DatabasePath, 1)
	answer := s.ask(asked{method: "POST", path: "/"})
	p := requireProblem(t, answer, 422, "invalid_backup")
	require.NotNil(t, p.Report)
	require.True(t, p.Report.Intact)
	var meta backup.Metadata
	require.NoError(t, json.Unmarshal(p.Result, &meta))
	require.Equal(t, []string{meta.Stamp}, s.Stamps())
	require.Equal(t, mountedAt+"/"+meta.Stamp, answer.Header.Get("Location"))
}

// Shutdown refuses what is new, waits for what runs, and then ends the events.
func TestShutdownWaits(t *testing.T) {
	g := newGate()
	s := newSite(t, everything, g.guard)
	events := s.follow("")
	op := s.startCreate(g)
	require.Equal(t, op.ID, events.operation().ID)
	ended := make(chan error)
	go func() { ended <- s.h.Shutdown(context.Background()) }()
	for s.ask(asked{method: "POST", path: "/prune"}).StatusCode != 503 { // until it has begun
		require.NoError(t, t.Context().Err())
	}
	s.fails(503, "shutting_down", asked{method: "POST", path: "/"})
	s.fails(503, "shutting_down", asked{method: "GET", path: "/events"})
	s.must(200, "GET", "/operations", "", nil)
	select {
	case err := <-ended:
		require.Fail(t, "it did not wait", err)
	default:
	}
	g.opened <- struct{}{}
	last := events.operation()
	for last.ID != op.ID { // until there were prunes
		last = events.operation()
	}
	require.Equal(t, "succeeded", last.State)
	_, more := events.next()
	require.False(t, more)
	require.NoError(t, <-ended)
	require.Len(t, s.Stamps(), 1)
	require.NoError(t, s.h.Shutdown(context.Background()), "again")
	s.must(200, "GET", "/", "", nil)
}

// Shutdown cancels what still runs when its context ends, and waits for that.
func TestShutdownCancels(t *testing.T) {
	g := newGate()
	s := newSite(t, everything, g.guard)
	events := s.follow("")
	s.startCreate(g)
	waiting := make(chan got)
	go func() { waiting <- s.ask(asked{method: "POST", path: "/"}) }()
	<-g.reached
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.h.Shutdown(ctx), context.Canceled)
	requireProblem(t, <-waiting, 499, "canceled")
	states := map[string]int{}
	for range 4 {
		states[events.operation().State]++
	}
	require.Equal(t, map[string]int{"running": 2, "canceled": 2}, states)
	_, more := events.next()
	require.False(t, more)
	require.Empty(t, s.Stamps())
	s.RequireNoStaging()
}

// Nothing but the last operations is remembered.
func TestEndedOperationsAreBounded(t *testing.T) {
	s := newSite(t, everything)
	for range 70 {
		s.fails(404, "no_snapshot", asked{method: "POST", path: "/x/protect"})
	}
	var operations []operation
	s.must(200, "GET", "/operations", "", &operations)
	require.Len(t, operations, 64)
	require.True(t, strings.HasSuffix(operations[0].ID, "-70"), operations[0].ID)
}

// A store is restored while it is in use and other requests are in flight.
func TestRestoreInARunningService(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	db := backuptest.OpenDB(t, store.DatabasePath)
	var online sync.RWMutex // held by a request while it uses the database
	store.Options.Offline = func(context.Context) (func(context.Context) error, error) {
		online.Lock()
		err := db.Close()
		return func(ctx context.Context) error {
			defer online.Unlock()
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			db, err = backuptest.Open(store.DatabasePath)
			return err
		}, err
	}
	s := newSiteOf(t, store, everything)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	stamp := s.create()
	_, err := db.Exec("CREATE TABLE later (x)")
	require.NoError(t, err)

	stop := make(chan struct{})
	var clients sync.WaitGroup
	failed := make(chan error, 100)
	client := func(do func() error) {
		clients.Go(func() {
			for {
				if err := do(); err != nil {
					failed <- err
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for _, path := range []string{"/", "/latest", "/" + stamp, "/" + stamp + "/validate", "/" + stamp + "/export", "/metrics", "/operations"} {
		client(func() error {
			response, err := s.try(asked{method: "GET", path: path})
			if err == nil {
				if response.StatusCode != 200 {
					data, _ := io.ReadAll(response.Body)
					err = fmt.Errorf("%s: %s: %s", path, response.Status, data)
				}
				err = errors.Join(err, response.Body.Close())
			}
			return err
		})
	}
	client(func() error {
		online.RLock()
		defer online.RUnlock()
		var n int
		return db.QueryRow("SELECT count(*) FROM sqlite_schema").Scan(&n)
	})
	var result backup.RestoreResult
	answer := s.must(200, "POST", "/"+stamp+"/restore", "", &result)
	close(stop)
	clients.Wait()
	close(failed)
	for err := range failed {
		require.NoError(t, err, answer.body)
	}
	require.NotEmpty(t, result.SafetyStamp)
	var n int
	require.NoError(t, db.QueryRow("SELECT count(*) FROM sqlite_schema WHERE name = 'later'").Scan(&n))
	require.Zero(t, n)
}

// A ResponseWriter without deadlines, as a middleware may pass on, is enough.
func TestWithoutDeadlines(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	h := backuphttp.New(store.Options, everything)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/", strings.NewReader("{}")))
	require.Equal(t, 201, w.Code, w.Body)
}

// What the host does itself is shown while it runs and when it has ended.
func TestObserve(t *testing.T) {
	s := newSite(t, everything)
	events := s.follow("")
	opts := s.Options
	opts.OnProgress = s.h.ObserveProgress
	meta, err := backup.CreateRuntimeBackup(t.Context(), opts)
	require.NoError(t, err)
	begun := events.operation()
	require.Equal(t, "scheduled running", begun.Kind+" "+begun.State)
	var now operation
	s.must(200, "GET", "/operations/"+begun.ID, "", &now)
	require.InDelta(t, 1, now.Progress.Share, 0)
	late := s.follow("")
	require.Equal(t, begun.ID, late.operation().ID, "it is running")
	s.fails(403, "not_allowed", asked{method: "DELETE", path: "/operations/" + begun.ID})

	s.h.Observe("create", meta.Stamp, begun.Started, meta, nil)
	ended := events.operation()
	require.Equal(t, begun.ID, ended.ID)
	require.Equal(t, "create succeeded", ended.Kind+" "+ended.State)
	require.Equal(t, meta.Stamp, ended.Stamp)
	require.JSONEq(t, marshal(t, meta), string(ended.Result))
	s.fails(409, "operation_ended", asked{method: "DELETE", path: "/operations/" + begun.ID})

	s.h.Observe("push", meta.Stamp, begun.Started, nil, errors.New("the line is dead"))
	ended = events.operation()
	require.NotEqual(t, begun.ID, ended.ID)
	require.Equal(t, "push failed", ended.Kind+" "+ended.State)
	require.Contains(t, ended.Problem.Detail, "the line is dead")
	metrics := s.must(200, "GET", "/metrics", "", nil).body
	require.Contains(t, metrics, `atocore_backup_operations_total{kind="push",state="failed"} 1`)
	require.Contains(t, metrics, "atocore_backup_last_create_success 1\n")
}

// The time limits of the server, which are for the whole request, do not end one
// that takes long.
func TestTimeLimitsOfTheServer(t *testing.T) {
	s := newSite(t, everything)
	stamp := s.create()
	s.server.Close()
	s.server = httptest.NewUnstartedServer(http.StripPrefix(mountedAt, s.h))
	s.server.Config.ReadHeaderTimeout, s.server.Config.IdleTimeout = time.Hour, time.Hour
	s.server.Config.ReadTimeout, s.server.Config.WriteTimeout = time.Nanosecond, time.Nanosecond
	s.server.Start()
	s.url = s.server.URL + mountedAt
	s.must(200, "GET", "/", "", nil)
	s.must(200, "GET", "/"+stamp+"/validate", "", nil)
	s.must(201, "POST", "/", `{"note": "x"}`, nil)
	archive := s.must(200, "GET", "/"+stamp+"/export", "", nil).body
	requireProblem(t, s.upload([]byte(archive), nil), 409, "snapshot_exists")
	events := s.follow("")
	s.create()
	events.operation()
}
