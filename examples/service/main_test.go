package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func TestMain(m *testing.M) {
	backuptest.Main(m, backuptest.Roles{"service": roleService, "killed": roleKilled})
}

// roleService is the program itself.
func roleService(*backuptest.Parent, []string) error {
	main()
	return nil
}

// mount is where the backups are.
const mount = "/admin/backup/"

// optionsOf returns options for the test's own calls on the store of a host.
func optionsOf(h *host) backup.Options {
	return backup.Options{
		DatabasePath: h.store.database, RegistryPath: h.store.registry, ChromaPath: h.store.chroma,
		BackupDir:     filepath.Join(filepath.Dir(filepath.Dir(h.store.database)), "backups"),
		IncludeChroma: true, Verify: true, Locker: backup.SyncLocker(&h.store.ingestion), Offline: h.store.offline,
	}
}

// A site is a running service, as its clients see it.
type site struct {
	t   *testing.T
	url string
}

// send sends a request. It returns 0 and the reason if there is no whole answer.
func (s *site) send(method, path, body string) (status int, answer string) {
	request, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(data)
}

// must sends a request that has to be answered with a status, and reads the answer
// into result, unless that is nil.
func (s *site) must(status int, method, path string, result any) {
	s.t.Helper()
	got, answer := s.send(method, path, "")
	require.Equal(s.t, status, got, answer)
	if result != nil {
		require.NoError(s.t, json.Unmarshal([]byte(answer), result))
	}
}

func (s *site) create() string {
	s.t.Helper()
	var meta backup.Metadata
	s.must(201, "POST", mount, &meta)
	return meta.Stamp
}

func (s *site) restore(stamp string) *backup.RestoreResult {
	s.t.Helper()
	var result backup.RestoreResult
	s.must(200, "POST", mount+stamp+"/restore", &result)
	require.Equal(s.t, stamp, result.Stamp)
	return &result
}

// newTestHost opens a host on a store in dir.
func newTestHost(t *testing.T, dir string) *host {
	t.Helper()
	h, err := newHost(t.Context(), dir, time.Hour, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, h.backups.Shutdown(context.Background()))
		require.NoError(t, h.store.close())
	})
	return h
}

// newSite starts a service whose Chroma directory has what a real server wrote, and
// what the service writes.
func newSite(t *testing.T) (*host, *site) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, backuptest.WriteChroma(filepath.Join(dir, "data", "chroma")))
	h := newTestHost(t, dir)
	server := httptest.NewServer(h.handler())
	t.Cleanup(server.Close)
	return h, &site{t, server.URL}
}

// A client writes one thing after another and reads them again, until it is told to
// stop. It notes the first answer that is wrong.
type client struct {
	*site
	write func(n int) (id string, ok bool, answer string)
	read  func(id string) (status int, found bool)

	mu   sync.Mutex
	ids  []string     // what was acknowledged, in order
	keep atomic.Int64 // how many of ids are surely in the snapshot
	lost map[string]bool

	rounds  chan struct{} // gets a value at the end of a round if somebody waits for it
	stopped chan struct{}
	wrong   string // the first wrong answer, once it has stopped
}

// newNotes returns a client that writes notes, and newDocuments one that ingests.
func newNotes(s *site, name string) *client {
	text := func(id string) string { return "the text of " + id }
	return newClient(s, func(n int) (string, bool, string) {
		id := fmt.Sprint(name, n)
		status, answer := s.send("PUT", "/notes/"+id, text(id))
		return id, status == 204, answer
	}, func(id string) (int, bool) {
		status, answer := s.send("GET", "/notes/"+id, "")
		return status, status == 200 && answer == text(id)
	})
}

func newDocuments(s *site, project string) *client {
	texts := make(map[string]string)
	return newClient(s, func(n int) (string, bool, string) {
		var got struct{ ID string }
		text := fmt.Sprint("document ", n)
		status, answer := s.send("POST", "/projects/"+project+"/documents", text)
		err := json.Unmarshal([]byte(answer), &got)
		texts[got.ID] = text
		return got.ID, status == 201 && err == nil, answer
	}, func(id string) (int, bool) {
		var got document
		status, answer := s.send("GET", "/documents/"+id, "")
		err := json.Unmarshal([]byte(answer), &got)
		return status, status == 200 && err == nil && got == document{project, texts[id]}
	})
}

func newClient(s *site, write func(int) (string, bool, string), read func(string) (int, bool)) *client {
	return &client{site: s, write: write, read: read, lost: make(map[string]bool), rounds: make(chan struct{}), stopped: make(chan struct{})}
}

func (c *client) run(stop <-chan struct{}) {
	defer close(c.stopped)
	for n := 0; c.wrong == ""; n++ {
		id, ok, answer := c.write(n)
		if !ok {
			c.wrong = fmt.Sprintf("%s is not written: %s", id, answer)
			return
		}
		c.mu.Lock()
		c.ids = append(c.ids, id)
		c.mu.Unlock()
		for _, i := range []int{n, rand.IntN(n + 1), 0} {
			c.look(i)
		}
		select {
		case <-stop:
			return
		case c.rounds <- struct{}{}:
		default:
		}
	}
}

// look reads what was written as the i-th. It may be missing if it was written
// after the snapshot, and then stays missing.
func (c *client) look(i int) {
	id, keep := c.ids[i], c.keep.Load()
	status, found := c.read(id)
	switch {
	case found && !c.lost[id]:
	case status == 404 && int64(i) >= keep:
		c.lost[id] = true
	default:
		c.wrong = fmt.Sprintf("%s, number %d, lost %t: %d", id, i, c.lost[id], status)
	}
}

// written returns what was acknowledged.
func (c *client) written() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ids)
}

// next waits until each client has begun and ended a round.
func next(t *testing.T, clients []*client) {
	t.Helper()
	for _, c := range clients {
		for range 2 {
			select {
			case <-c.rounds:
			case <-c.stopped:
				require.Empty(t, c.wrong)
			}
		}
	}
}

// notesIn returns the names of the notes in a database file and its WAL.
func notesIn(t *testing.T, path string) (names []string) {
	t.Helper()
	backuptest.InDatabase(t, backuptest.CopyWithWAL(t, path), func(db *sql.DB) {
		rows, err := db.Query("SELECT name FROM note")
		require.NoError(t, err)
		defer rows.Close()
		for rows.Next() {
			var name string
			require.NoError(t, rows.Scan(&name))
			names = append(names, name)
		}
		require.NoError(t, rows.Err())
	})
	return names
}

// storeOf returns the store that a snapshot has, closed.
func storeOf(meta *backup.Metadata) *store {
	return &store{database: meta.DBSnapshotPath, registry: meta.RegistrySnapshotPath, chroma: meta.ChromaSnapshotPath}
}

// requireDocuments opens a copy of a store and requires that its three parts agree.
// It returns the documents.
func requireDocuments(t *testing.T, s *store) (ids []string) {
	t.Helper()
	snapshot := *newStore(t.TempDir())
	snapshot.database, snapshot.registry, snapshot.chroma = backuptest.CopyWithWAL(t, s.database), s.registry, s.chroma
	require.NoError(t, snapshot.open(t.Context()))
	defer func() { require.NoError(t, snapshot.close()) }()
	rows, err := snapshot.db.Query("SELECT id FROM document")
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var id string
		require.NoError(t, rows.Scan(&id))
		_, err := snapshot.document(t.Context(), id)
		require.NoError(t, err)
		ids = append(ids, id)
	}
	require.NoError(t, rows.Err())
	files, err := filepath.Glob(filepath.Join(s.chroma, "*.txt"))
	require.NoError(t, err)
	require.Len(t, files, len(ids), "documents that are in Chroma alone")
	return ids
}

// A driver asks for what a service offers about its backups, and notes which routes
// it asked for.
type driver struct {
	*site
	driven map[string]bool
}

func newDriver(s *site) *driver { return &driver{s, make(map[string]bool)} }

// drive asks for a route of the documentation of package backuphttp, with name in
// the place of what is in braces.
func (d *driver) drive(status int, route, name, body string, result any) (answer string) {
	d.t.Helper()
	d.driven[route] = true
	method, path, _ := strings.Cut(route, " /")
	path = regexp.MustCompile(`{\w+}`).ReplaceAllLiteralString(path, name)
	got, answer := d.send(method, mount+path, body)
	require.Equal(d.t, status, got, "%s: %s", route, answer)
	if result != nil {
		require.NoError(d.t, json.Unmarshal([]byte(answer), result))
	}
	return answer
}

// requireAll requires that every route of the documentation was asked for.
func (d *driver) requireAll() {
	d.t.Helper()
	doc, err := os.ReadFile(filepath.FromSlash("../../backuphttp/doc.go"))
	require.NoError(d.t, err)
	documented := make(map[string]bool)
	for _, found := range regexp.MustCompile(`(?m)^//\t(GET|POST|DELETE) +(/\S*)`).FindAllSubmatch(doc, -1) {
		documented[string(found[1])+" "+string(found[2])] = true
	}
	require.Equal(d.t, documented, d.driven)
}

// everyRoute asks for all routes but a restore, and returns the archive of a
// snapshot.
func (d *driver) everyRoute(stamp string) (archive string) {
	t := d.t
	var list []backup.Snapshot
	d.drive(200, "GET /", "", "", &list)
	require.Len(t, list, 1)
	require.Equal(t, stamp, list[0].Stamp)
	require.True(t, *list[0].Verified)
	var latest struct{ Snapshot backup.Snapshot }
	d.drive(200, "GET /latest", "", "", &latest)
	require.Equal(t, list[0], latest.Snapshot)
	var report backup.Report
	d.drive(200, "GET /{stamp}/validate", stamp, "", &report)
	require.True(t, report.Valid)
	d.drive(200, "POST /{stamp}/drill", stamp, "", nil)
	archive = d.drive(200, "GET /{stamp}/export", stamp, "", nil)

	// Another one comes and goes, and comes again.
	var other backup.Metadata
	d.drive(201, "POST /", "", `{"include_chroma": false, "verify": true, "note": "to go"}`, &other)
	d.create() // the newest is not removed
	d.drive(200, "POST /{stamp}/protect", other.Stamp, "", nil)
	d.drive(409, "DELETE /{stamp}", other.Stamp, "", nil)
	d.drive(200, "POST /{stamp}/protect", other.Stamp, `{"protected": false}`, nil)
	saved := d.drive(200, "GET /{stamp}/export", other.Stamp, "", nil)
	d.drive(204, "DELETE /{stamp}", other.Stamp, "", nil)
	d.drive(404, "GET /{stamp}", other.Stamp, "", nil)
	d.drive(201, "POST /import", "", saved, nil)
	var found backup.Snapshot
	d.drive(200, "GET /{stamp}", other.Stamp, "", &found)
	require.False(t, found.Metadata.ChromaSnapshotIncluded)

	var pruned backup.PruneResult
	d.drive(200, "POST /prune", "", `{"keep_last": 1, "dry_run": true}`, &pruned)
	require.True(t, pruned.DryRun)
	require.NotEmpty(t, pruned.Removed)
	var operations []struct{ ID string }
	d.drive(200, "GET /operations", "", "", &operations)
	require.NotEmpty(t, operations)
	d.drive(200, "GET /operations/{id}", operations[0].ID, "", nil)
	d.drive(409, "DELETE /operations/{id}", operations[0].ID, "", nil) // it has ended
	require.Contains(t, d.drive(200, "GET /metrics", "", "", nil), "atocore_backup_")
	d.drive(200, "GET /page/{name}", "script.js", "", nil)
	return archive
}

// follow follows the events. The kinds of operations that it hears of are sent when
// the stream ends.
func (d *driver) follow() <-chan []string {
	d.t.Helper()
	d.driven["GET /events"] = true
	response, err := http.Get(d.url + mount + "events")
	require.NoError(d.t, err)
	require.Equal(d.t, 200, response.StatusCode)
	heard := make(chan []string, 1)
	go func() {
		defer response.Body.Close()
		var kinds []string
		lines := bufio.NewReader(response.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				heard <- kinds
				return
			}
			var operation struct{ Kind string }
			if data, ok := strings.CutPrefix(line, "data: "); ok && json.Unmarshal([]byte(data), &operation) == nil {
				kinds = append(kinds, operation.Kind)
			}
		}
	}()
	return heard
}

// watch asks for what only reads until it is told to stop, at least once. It returns
// the first answer that is wrong.
func (d *driver) watch(stop <-chan struct{}) (wrong string) {
	for {
		for _, path := range []string{"", "latest", "metrics", "operations", "?all=1"} {
			if status, answer := d.send("GET", mount+path, ""); status != 200 {
				return fmt.Sprint(path, ": ", status, " ", answer)
			}
		}
		select {
		case <-stop:
			return ""
		default:
		}
	}
}

// Clients write, read and ingest all the time while snapshots are created, listed,
// validated, exported, restored and all else. Each answer is right, and nothing that
// was acknowledged is lost.
func TestBackupsOfARunningService(t *testing.T) {
	h, s := newSite(t)
	clients := []*client{newNotes(s, "a"), newNotes(s, "b"), newNotes(s, "c"), newDocuments(s, "apollo"), newDocuments(s, "gemini")}
	stop := make(chan struct{})
	for _, c := range clients {
		go c.run(stop)
	}
	stopAll := sync.OnceFunc(func() {
		close(stop)
		for _, c := range clients {
			<-c.stopped
		}
	})
	defer stopAll()
	next(t, clients)

	for _, c := range clients {
		c.keep.Store(int64(len(c.written())))
	}
	d := newDriver(s)
	events := d.follow()
	stamp := s.create()
	next(t, clients)
	archive := d.everyRoute(stamp)
	next(t, clients)

	// The archive is a whole snapshot of one moment.
	elsewhere := backup.Options{BackupDir: filepath.Join(t.TempDir(), "backups")}
	meta, err := backup.ImportRuntimeBackup(t.Context(), elsewhere, strings.NewReader(archive))
	require.NoError(t, err)
	require.Equal(t, stamp, meta.Stamp)
	_, err = backup.ValidateBackup(t.Context(), elsewhere, stamp)
	require.NoError(t, err)
	at := filepath.Join(elsewhere.BackupDir, "snapshots", stamp)
	imported := &store{database: filepath.Join(at, "db", "atocore.db"), registry: filepath.Join(at, "config", "project-registry.json"), chroma: filepath.Join(at, "chroma")}
	inSnapshot := append(notesIn(t, imported.database), requireDocuments(t, imported)...)
	for _, c := range clients {
		require.Subset(t, inSnapshot, c.written()[:c.keep.Load()])
	}

	next(t, clients)
	created, watched := make(chan int, 1), make(chan string, 1)
	restored := make(chan struct{})
	go func() { // it and the restore wait for each other
		status, _ := s.send("POST", mount, "")
		created <- status
	}()
	go func() { watched <- d.watch(restored) }()
	var result backup.RestoreResult
	d.drive(200, "POST /{stamp}/restore", stamp, "", &result)
	close(restored)
	require.Equal(t, 201, <-created)
	require.Empty(t, <-watched)
	next(t, clients)
	var since []int // what a client writes from here on was begun after the restore
	for _, c := range clients {
		since = append(since, len(c.written()))
	}
	next(t, clients)
	again := s.create() // everything goes on
	s.must(200, "GET", mount+again+"/validate", nil)
	stopAll()
	d.drive(200, "POST /prune", "", `{"keep_last": 3, "keep_within": "1y"}`, nil)
	d.requireAll()
	require.NoError(t, h.backups.Shutdown(t.Context()))
	require.Subset(t, <-events, []string{"create", "validate", "drill", "export", "import", "restore", "protect", "remove", "prune"})

	safety, err := backup.ValidateBackup(t.Context(), optionsOf(h), result.SafetyStamp)
	require.NoError(t, err)
	saved := append(notesIn(t, safety.Metadata.DBSnapshotPath), requireDocuments(t, storeOf(safety.Metadata))...)
	for _, aside := range result.SetAside {
		require.True(t, strings.HasPrefix(aside, h.store.database+".set-aside-"), aside)
		saved = append(saved, notesIn(t, filepath.Join(aside, "atocore.db"))...)
	}
	present := append(notesIn(t, h.store.database), requireDocuments(t, h.store)...)
	for i, c := range clients {
		require.Empty(t, c.wrong)
		for n, id := range c.ids {
			require.True(t, slices.Contains(saved, id) || slices.Contains(present, id), "%s is lost", id)
			if slices.Contains(inSnapshot, id) || n >= since[i] {
				require.Contains(t, present, id)
			}
		}
		require.NotSubset(t, present, c.ids, "what was written after the snapshot is there: nothing was restored")
	}
}

func TestErrorsOverHTTP(t *testing.T) {
	h, s := newSite(t)
	_, answer := s.send("POST", "/projects/apollo/documents", strings.Repeat("a document ", 10_000))
	var got struct{ ID string }
	require.NoError(t, json.Unmarshal([]byte(answer), &got))
	stamp := s.create()
	damaged := filepath.Join(optionsOf(h).BackupDir, "snapshots", stamp, "config", "project-registry.json")
	require.NoError(t, os.WriteFile(damaged, []byte(`["apollX"]`), 0o600))
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/notes/none", 404},
		{"GET", "/documents/none", 404},
		{"GET", mount + "none", 404},
		{"POST", mount + "none/drill", 404},
		{"POST", mount + "none/restore", 404},
		{"GET", mount + "none/export", 404},
		{"GET", mount + "%2e%2e/export", 404},
		{"POST", mount + stamp + "/restore", 422},
		{"GET", mount + stamp + "/export", 0}, // cut off
		{"PUT", mount, 405},
	} {
		t.Run(tt.method+tt.path, func(t *testing.T) {
			status, answer := s.send(tt.method, tt.path, "")
			require.Equal(t, tt.status, status, answer)
			var body struct{ Error, Detail string }
			if status == 404 || status == 422 {
				require.NoError(t, json.Unmarshal([]byte(answer), &body), answer)
				require.NotEmpty(t, body.Error+body.Detail)
			}
		})
	}
	var report backup.Report
	s.must(200, "GET", mount+stamp+"/validate", &report)
	require.False(t, report.Valid)
	status, _ := s.send("PUT", "/notes/large", strings.Repeat("x", maxBody+1))
	require.Equal(t, 413, status)
	status, answer = s.send("GET", "/documents/"+got.ID, "")
	require.Equal(t, 200, status, answer)

	for path, contentType := range map[string]string{
		mount + stamp + "/restore":   "application/problem+json",
		"/projects/apollo/documents": "text/plain; charset=utf-8",
	} {
		request, err := http.NewRequest("POST", s.url+path, nil)
		require.NoError(t, err)
		request.Header.Set("Origin", "https://elsewhere.example")
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, 403, response.StatusCode, "another site can post to %s", path)
		require.Equal(t, contentType, response.Header.Get("Content-Type"))
	}
}

// startService starts the program with a store in dir.
func startService(t *testing.T, dir string) (*backuptest.Child, *site) {
	t.Helper()
	child := backuptest.Start(t, "service", "-addr", "127.0.0.1:0", "-dir", dir)
	url, ok := strings.CutPrefix(child.Hear(), "listening on ")
	require.True(t, ok)
	return child, &site{t, url}
}

// beginPut sends a request without its body, and returns once the service waits for
// that. finish sends it, and returns the status.
func (s *site) beginPut(path string) (finish func(body string) int) {
	s.t.Helper()
	body, rest := io.Pipe()
	inHandler, status := make(chan struct{}), make(chan int, 1)
	// The server asks for the body when the handler reads it.
	ctx := httptrace.WithClientTrace(s.t.Context(), &httptrace.ClientTrace{Got100Continue: func() { close(inHandler) }})
	request, err := http.NewRequestWithContext(ctx, "PUT", s.url+path, body)
	require.NoError(s.t, err)
	request.Header.Set("Expect", "100-continue")
	transport := &http.Transport{ExpectContinueTimeout: time.Hour}
	s.t.Cleanup(transport.CloseIdleConnections)
	go func() {
		defer close(status)
		if response, err := transport.RoundTrip(request); err == nil {
			status <- response.StatusCode
			response.Body.Close()
		}
	}()
	<-inHandler
	return func(body string) int {
		_, _ = io.WriteString(rest, body) // if it fails, the status does too
		_ = rest.Close()
		return <-status
	}
}

// A client that is slow does not keep the store from being restored, and is answered
// from the restored one.
func TestRestoreBesideASlowClient(t *testing.T) {
	_, s := newSite(t)
	stamp := s.create()
	finish := s.beginPut("/notes/slow")
	s.restore(stamp)
	require.Equal(t, 204, finish("the text"))
	status, answer := s.send("GET", "/notes/slow", "")
	require.Equal(t, 200, status)
	require.Equal(t, "the text", answer)
}

// A service that is told to end answers the request that has begun, and accepts no
// other. What it has acknowledged is there when it starts again.
func TestShutdown(t *testing.T) {
	dir := t.TempDir()
	child, s := startService(t, dir)
	stamp := s.create()

	finish := s.beginPut("/notes/late")
	require.NoError(t, child.Cmd.Process.Signal(syscall.SIGTERM))
	for { // until it does not listen any more
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			break
		}
		require.NoError(t, conn.Close())
	}
	require.Equal(t, 204, finish("the text"))
	child.Wait()

	child, s = startService(t, dir)
	status, answer := s.send("GET", "/notes/late", "")
	require.Equal(t, 200, status)
	require.Equal(t, "the text", answer)
	s.restore(stamp)
	s.must(404, "GET", "/notes/late", nil)
	require.NoError(t, child.Cmd.Process.Signal(syscall.SIGTERM))
	child.Wait()
}

// The commands of the README work as they are written.
func TestReadmeCommands(t *testing.T) {
	for _, tool := range []string{"sh", "curl", "ls", "tail"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	readme, err := os.ReadFile(filepath.FromSlash("../../README.md"))
	require.NoError(t, err)
	_, section, found := strings.Cut(string(readme), "    go run ./examples/service -dir /tmp/service\n")
	require.True(t, found)
	_, section, _ = strings.Cut(section, "From another shell:\n")
	section, _, _ = strings.Cut(section, "Run the tests")
	require.Equal(t, 3, strings.Count(section, "    curl "))

	dir := t.TempDir()
	_, s := startService(t, dir)
	var script strings.Builder
	for line := range strings.Lines(section) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			script.WriteString(strings.NewReplacer("127.0.0.1:8080", s.url, "/tmp/service", dir, "curl ", "curl -fsS ").Replace(command))
		}
	}
	out, err := exec.Command("sh", "-eu", "-c", script.String()).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), `"safety_stamp"`)
	status, answer := s.send("GET", "/notes/first", "")
	require.Equal(t, 200, status)
	require.Equal(t, "a text", answer)
}

func TestListensOnLoopbackOnly(t *testing.T) {
	for _, tt := range []struct {
		addr string
		ok   bool
	}{
		{"127.0.0.1:0", true},
		{"localhost:0", true},
		{":0", false},
		{"0.0.0.0:0", false},
		{"[::]:0", false},
		{"192.0.2.1:0", false},
	} {
		t.Run(tt.addr, func(t *testing.T) {
			listener, err := listen(tt.addr)
			if !tt.ok {
				require.ErrorContains(t, err, "is not a loopback address")
				return
			}
			require.NoError(t, err)
			require.NoError(t, listener.Close())
		})
	}
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{{"-every", "0s"}, {"-addr", ":0"}, {"-addr", "nonsense"}, {"-unknown"}} {
		var out, logs strings.Builder
		require.Error(t, run(t.Context(), append(args, "-dir", t.TempDir()), &out, &logs))
		require.Empty(t, out.String())
	}
}
