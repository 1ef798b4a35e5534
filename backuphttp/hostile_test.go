package backuphttp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
)

// raw sends a request as it is, which no client of package net/http would send.
func (s *site) raw(request string) got {
	s.t.Helper()
	conn := s.dial(request)
	defer conn.Close()
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(s.t, err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	require.NoError(s.t, err)
	return got{response, string(data)}
}

// Whatever is asked for instead of a stamp, nothing outside of the snapshots is
// read, and nothing is changed.
func TestPathTricks(t *testing.T) {
	s := newSite(t, everything)
	snapshot := s.CreateSnapshot()
	// A directory that is a snapshot, but for its place; and a link to it.
	victim := filepath.Join(s.Dir, "victim")
	require.NoError(t, os.CopyFS(victim, os.DirFS(s.SnapshotPath(snapshot.Stamp))))
	require.NoError(t, os.Symlink(victim, s.SnapshotPath("link")))
	before := backuptest.ReadTree(t, s.Dir)
	for _, stamp := range []string{
		"..", "%2e%2e", "%2E%2e", ".", "%2e", "..%2f..%2fvictim", "%2e%2e%2f%2e%2e%2fvictim", "../../victim", "..%5c..%5cvictim",
		"..%2fsnapshots%2f" + snapshot.Stamp, snapshot.Stamp + "%2f..", snapshot.Stamp + "/..", snapshot.Stamp + "%00", "%00", "x%00y", "link", "link%2f", "%2f", "%2fetc", "//etc",
		"%2fproc%2fself%2froot", victim, strings.ReplaceAll(victim, "/", "%2f"), strings.Repeat("a", 255), strings.Repeat("a", 256), strings.Repeat("a", 5000),
		"%ff%fe", "%e2%80%ae", "~root", "$HOME", "*", "con", "a:b", "-rf", ";id", "%0d%0aX-Evil:%201", "%25", "%252e%252e", "latest%2fvalidate", "page", "",
	} {
		for _, request := range []string{
			"GET %s", "DELETE %s", "GET %s/export", "POST %s/restore", "POST %s/protect", "POST %s/drill", "GET %s/validate",
		} {
			line := fmt.Sprintf(request, mountedAt+"/"+stamp)
			if stamp == "" && request == "GET %s" { // the list
				continue
			}
			answer := s.raw(line + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			require.Empty(t, answer.Header.Get("X-Evil"))
			if answer.StatusCode == 200 { // a report that there is no such snapshot
				var report backup.Report
				require.NoError(t, json.Unmarshal([]byte(answer.body), &report), line)
				require.False(t, report.Exists, line)
				require.False(t, report.Valid, line)
				require.Nil(t, report.Metadata, line)
				continue
			}
			require.Contains(t, []int{404, 405}, answer.StatusCode, "%s: %s", line, answer.body)
		}
	}
	require.Equal(t, before, backuptest.ReadTree(t, s.Dir))
}

// Bodies that are not what they should be are refused before anything is done.
func TestBadBodies(t *testing.T) {
	s := newSite(t, everything)
	stamp := s.create()
	before := backuptest.ReadTree(t, s.Dir)
	form := map[string]string{"Content-Type": "application/x-www-form-urlencoded"}
	for _, c := range []struct {
		path, body string
		header     map[string]string
		status     int
		code       string
	}{
		{"/", "{", nil, 400, "bad_request"},
		{"/", "[]", nil, 400, "bad_request"},
		{"/", "null", nil, 400, "bad_request"},
		{"/", "1", nil, 400, "bad_request"},
		{"/", `"x"`, nil, 400, "bad_request"},
		{"/", "\x00", nil, 400, "bad_request"},
		{"/", "{}{}", nil, 400, "bad_request"},
		{"/", "{} x", nil, 400, "bad_request"},
		{"/", `{"unknown": 1}`, nil, 400, "bad_request"},
		{"/", `{"include_chroma": "yes"}`, nil, 400, "bad_request"},
		{"/", `{"note": 1}`, nil, 400, "bad_request"},
		{"/", strings.Repeat("[", 60000), nil, 400, "bad_request"},
		{"/", `{"note": "` + strings.Repeat("x", 5000) + `"}`, nil, 400, "invalid_options"},
		{"/", `{"note": "` + strings.Repeat("x", 70000) + `"}`, nil, 413, "body_too_large"},
		{"/", strings.Repeat(" ", 1<<20), nil, 413, "body_too_large"},
		{"/", "include_chroma=true", form, 415, "media_type"},
		{"/", "{}", form, 415, "media_type"},
		{"/", "{}", map[string]string{"Content-Encoding": "gzip"}, 415, "media_type"},
		{"/" + stamp + "/restore", `{"parts": "database"}`, nil, 400, "bad_request"},
		{"/" + stamp + "/restore", `{"parts": ["everything"]}`, nil, 400, "bad_request"},
		{"/" + stamp + "/restore", `{"confirm": true}`, nil, 400, "bad_request"},
		{"/" + stamp + "/protect", `{"protected": "no"}`, nil, 400, "bad_request"},
		{"/" + stamp + "/drill", `{"x": 1}`, nil, 400, "bad_request"},
		{"/prune", `{"keep_last": 1.5}`, nil, 400, "bad_request"},
		{"/prune", `{"keep_last": 99999999999999999999}`, nil, 400, "bad_request"},
		{"/prune", `{"keep_last": -2}`, nil, 400, "invalid_options"},
		{"/prune", `{"keep_nothing": 1}`, nil, 400, "bad_request"},
	} {
		for _, prefer := range []string{"", "respond-async"} {
			header := map[string]string{"Prefer": prefer}
			for name, value := range c.header {
				header[name] = value
			}
			answer := s.ask(asked{method: "POST", path: c.path, body: c.body, header: header})
			if answer.StatusCode == 202 { // then it fails later
				require.Equal(t, "invalid_options", c.code)
				continue
			}
			requireProblem(t, answer, c.status, c.code)
		}
	}
	require.NoError(t, s.h.Shutdown(t.Context()))
	require.Equal(t, before, backuptest.ReadTree(t, s.Dir))
}

// A field of another type is named as in the documentation.
func TestWrongTypes(t *testing.T) {
	s := newSite(t, everything)
	for _, c := range []struct{ path, body, detail string }{
		{"/", `{"verify": "yes"}`, "the body: verify can't be a string"},
		{"/", `{"note": {"x": 1}}`, "the body: note can't be an object"},
		{"/x/restore", `{"parts": [1]}`, "the body: parts can't be a number"},
		{"/prune", `{"keep_last": 1.5}`, "the body: keep_last can't be the number 1.5"},
		{"/", `[]`, "the body is not a JSON object"},
		{"/", `true`, "the body is not a JSON object"},
		{"/", `{"unknown": 1}`, `the body: unknown field "unknown"`},
	} {
		p := s.fails(400, "bad_request", asked{method: "POST", path: c.path, body: c.body})
		require.Equal(t, c.detail, p.Detail)
	}
}

// A body without an end is refused when it is too large, and one that does not come
// is refused when its time is over.
func TestEndlessBodies(t *testing.T) {
	cfg := everything
	cfg.BodyTimeout = 100 * time.Millisecond
	s := newSite(t, cfg)
	for _, path := range []string{"/", "/x/protect", "/prune", "/import"} {
		for name, end := range map[string]string{
			"nothing":       "Content-Length: 100\r\n\r\n",
			"a part":        "Content-Length: 100\r\n\r\n{",
			"no chunk":      "Transfer-Encoding: chunked\r\n\r\n",
			"no last chunk": "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
		} {
			answer := s.raw("POST " + mountedAt + path + " HTTP/1.1\r\nHost: x\r\n" + end)
			p := requireProblem(t, answer, 408, "too_slow")
			require.Contains(t, p.Detail, "100ms", name)
			require.True(t, answer.Close)
		}
		answer := s.raw("POST " + mountedAt + path + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
		requireProblem(t, answer, 400, "bad_request")
	}
	require.Empty(t, s.Stamps())

	endless := newSite(t, everything)
	request, err := http.NewRequest("POST", endless.url+"/", forever{})
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, 413, response.StatusCode)
}

// forever is a body without an end.
type forever struct{}

func (forever) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// Browsers can change nothing, and make the server work for nothing, on behalf of
// another site.
func TestCrossOrigin(t *testing.T) {
	trusting := http.NewCrossOriginProtection()
	require.NoError(t, trusting.AddTrustedOrigin("https://admin.example"))
	s := newSite(t, everything)
	stamp := s.create()
	for _, header := range []map[string]string{
		{"Sec-Fetch-Site": "cross-site"},
		{"Sec-Fetch-Site": "same-site"},
		{"Sec-Fetch-Site": "nonsense"},
		{"Origin": "https://evil.example"},
		{"Origin": "null"},
		{"Origin": "https://admin.example", "Sec-Fetch-Site": "cross-site"},
	} {
		for _, a := range []asked{
			{method: "POST", path: "/"},
			{method: "POST", path: "/import"},
			{method: "POST", path: "/prune", body: `{"keep_last": 1}`},
			{method: "POST", path: "/" + stamp + "/restore"},
			{method: "POST", path: "/" + stamp + "/protect"},
			{method: "POST", path: "/" + stamp + "/drill"},
			{method: "DELETE", path: "/" + stamp},
			{method: "DELETE", path: "/operations/x"},
			{method: "GET", path: "/" + stamp + "/validate"},
			{method: "GET", path: "/" + stamp + "/export"},
		} {
			a.header = header
			s.fails(403, "cross_origin", a)
		}
		require.Equal(t, 200, s.ask(asked{method: "GET", path: "/", header: header}).StatusCode)
	}
	for _, header := range []map[string]string{{"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": s.server.URL}, nil} {
		require.Equal(t, 200, s.ask(asked{method: "GET", path: "/" + stamp + "/validate", header: header}).StatusCode)
	}
	cfg := everything
	cfg.CrossOrigin = trusting
	trusts := newSite(t, cfg)
	require.Equal(t, 201, trusts.ask(asked{method: "POST", path: "/", header: map[string]string{"Origin": "https://admin.example", "Sec-Fetch-Site": "cross-site"}}).StatusCode)
}

// A memory is a ResponseWriter in memory. A stream of events would not end, so it
// ends the request then.
type memory struct {
	*httptest.ResponseRecorder
	cancel func()
}

func (m *memory) Flush() {
	if m.Header().Get("Content-Type") == "text/event-stream" {
		m.cancel()
	}
}

// Whatever a request is, it gets one answer that is well-formed, and changes nothing
// outside of the backup directory.
func FuzzRequest(f *testing.F) {
	store := newFuzzStore(f)
	stamp := store.stamp
	for _, path := range []string{"", "/", "/latest", "/" + stamp, "/" + stamp + "/validate", "/" + stamp + "/export", "/metrics", "/operations", "/events", "/..", "/%2e%2e/export", "/page/x", "/operations/x"} {
		f.Add("GET", path, "Accept", "text/html", "")
	}
	for _, path := range []string{"/", "/" + stamp + "/drill", "/" + stamp + "/restore", "/" + stamp + "/protect", "/prune", "/import"} {
		f.Add("POST", path, "Content-Type", "application/json", `{"keep_last": 1, "dry_run": true}`)
		f.Add("POST", path, "Prefer", "respond-async", `{}`)
		f.Add("POST", path, "Origin", "null", ``)
	}
	f.Add("POST", "/", "Content-Type", "application/json", `{"include_chroma": false, "verify": true, "note": "x"}`)
	f.Add("POST", "/import", "Repr-Digest", "sha-256=:AAAA:", string(store.archive))
	f.Add("POST", "/import", "Content-Encoding", "gzip", "\x1f\x8b\x08")
	f.Add("GET", "/events", "Last-Event-ID", "00000000-1", "")
	f.Add("DELETE", "/"+stamp, "Sec-Fetch-Site", "none", "")
	f.Add("OPTIONS", "*", "Range", "bytes=0-", "")
	f.Fuzz(func(t *testing.T, method, path, name, value, body string) {
		head := method + " " + path + " HTTP/1.1\r\nHost: example.com\r\n" + name + ": " + value + "\r\n\r\n"
		request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
		if err != nil {
			t.Skip("no server would pass it on")
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		request = request.WithContext(ctx)
		request.Body, request.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		w := &memory{httptest.NewRecorder(), cancel}
		h := backuphttp.New(store.Options, everything)
		aborted := serve(h, w, request)
		store.check(t, h)
		switch {
		case aborted:
			require.Equal(t, "application/x-tar", w.Header().Get("Content-Type"))
		case w.Code >= 400:
			require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
			if method != http.MethodHead {
				var p problem
				require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
				require.Equal(t, w.Code, p.Status)
				require.NotEqual(t, "panic", p.Code, p.Detail)
				require.NotEqual(t, "internal", p.Code, p.Detail)
			}
		default:
			require.Contains(t, []int{200, 201, 202, 204}, w.Code)
		}
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	})
}

// serve reports whether the answer was cut off.
func serve(h http.Handler, w http.ResponseWriter, r *http.Request) (aborted bool) {
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				panic(v)
			}
			aborted = true
		}
	}()
	h.ServeHTTP(w, r)
	return false
}

// A fuzzStore is a store whose backup directory is the only thing that may change.
type fuzzStore struct {
	backup.Options
	dir     string
	stamp   string
	archive []byte
	before  string
}

func newFuzzStore(f *testing.F) *fuzzStore {
	f.Helper()
	dir := f.TempDir()
	s := &fuzzStore{Options: backuptest.OptionsIn(dir), dir: dir}
	for path, content := range map[string]string{
		s.RegistryPath: "{}", filepath.Join(s.ChromaPath, "file"): "content", filepath.Join(dir, "victim", "file"): "content",
	} {
		require.NoError(f, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(f, os.WriteFile(path, []byte(content), 0o600))
	}
	db, err := backuptest.Open(s.DatabasePath)
	require.NoError(f, err)
	_, err = db.Exec("CREATE TABLE t (x)")
	require.NoError(f, err)
	require.NoError(f, db.Close())
	meta, err := backup.CreateRuntimeBackup(f.Context(), s.Options)
	require.NoError(f, err)
	s.stamp = meta.Stamp
	var archive bytes.Buffer
	require.NoError(f, backup.ExportRuntimeBackup(f.Context(), s.Options, s.stamp, &archive))
	s.archive = archive.Bytes()
	s.before = s.state(f)
	return s
}

// state describes everything but the backup directory.
func (s *fuzzStore) state(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, filepath.WalkDir(s.dir, func(path string, entry os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == s.BackupDir:
			return filepath.SkipDir
		case entry.IsDir():
			fmt.Fprintln(&b, path)
			return nil
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %q\n", path, data)
		return err
	}))
	return b.String()
}

// check waits for everything that was begun, and removes the snapshots that were
// made.
func (s *fuzzStore) check(t *testing.T, h *backuphttp.Handler) {
	t.Helper()
	require.NoError(t, h.Shutdown(t.Context()))
	require.Equal(t, s.before, s.state(t))
	entries, err := os.ReadDir(s.BackupDir)
	require.NoError(t, err)
	for _, e := range entries {
		require.Contains(t, []string{"snapshots", "records"}, e.Name())
	}
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.NotEmpty(t, list)
	for _, snapshot := range list {
		if snapshot.Stamp != s.stamp {
			require.NoError(t, os.RemoveAll(snapshot.Path))
		}
	}
	if list[0].Stamp != s.stamp { // it was removed
		_, err := backup.ImportRuntimeBackup(t.Context(), s.Options, bytes.NewReader(s.archive))
		require.NoError(t, err)
	}
	require.NoError(t, backup.ProtectRuntimeBackup(t.Context(), s.Options, s.stamp, false))
}
