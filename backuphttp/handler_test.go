package backuphttp_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/drill"
	"github.com/atocore/backup/internal/backuptest"
)

// marshal returns v as a server writes it.
func marshal(t *testing.T, v any) string {
	t.Helper()
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	require.NoError(t, e.Encode(v))
	return b.String()
}

// The whole life of snapshots, by every route that changes something.
func TestRoutes(t *testing.T) {
	s := newSite(t, everything, func(o *backup.Options) { o.RecordVerdicts = true })

	// An empty list, and then a create whose answer is the metadata.
	require.Equal(t, "[]\n", s.must(200, "GET", "/", "", nil).body)
	s.fails(404, "no_snapshot", asked{method: "GET", path: "/latest"})
	var meta backup.Metadata
	created := s.must(201, "POST", "/", `{"include_chroma": false, "verify": true, "note": "first <&>"}`, &meta)
	require.Equal(t, mountedAt+"/"+meta.Stamp, created.Header.Get("Location"))
	require.NotNil(t, meta.Cost)
	require.False(t, meta.ChromaSnapshotIncluded)
	require.Equal(t, marshal(t, meta), created.body)

	second := s.create()
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, marshal(t, list), s.must(200, "GET", "/", "", nil).body)
	require.Equal(t, marshal(t, list[0]), s.must(200, "GET", "/"+meta.Stamp, "", nil).body)
	require.Equal(t, "first <&>", list[0].Note)
	require.True(t, *list[0].Verified)
	require.True(t, list[1].Metadata.ChromaSnapshotIncluded, "Options say so")

	var latest struct {
		Snapshot   backup.Snapshot
		Skipped    []struct{ Stamp, Reason string }
		WithChroma string `json:"with_chroma"`
	}
	s.must(200, "GET", "/latest", "", &latest)
	require.Equal(t, second, latest.Snapshot.Stamp)
	require.NotNil(t, latest.Skipped)

	var report backup.Report
	s.must(200, "GET", "/"+second+"/validate", "", &report)
	require.True(t, report.Valid)
	list, err = backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.True(t, *list[1].Verified, "the verdict is recorded")

	var protected backup.Snapshot
	s.must(200, "POST", "/"+meta.Stamp+"/protect", "", &protected)
	require.True(t, protected.Protected)
	s.fails(409, "protected", asked{method: "DELETE", path: "/" + meta.Stamp})
	s.must(200, "POST", "/"+meta.Stamp+"/protect", `{"protected": false}`, &protected)
	require.False(t, protected.Protected)

	// A restore, with its safety snapshot.
	db := backuptest.OpenDB(t, s.DatabasePath)
	_, err = db.Exec("CREATE TABLE later (x)")
	require.NoError(t, err)
	require.NoError(t, db.Close())
	var restored backup.RestoreResult
	s.must(200, "POST", "/"+second+"/restore", `{"parts": ["database"]}`, &restored)
	require.Equal(t, second, restored.Stamp)
	require.NotEmpty(t, restored.SafetyStamp)
	require.True(t, restored.Mixed)

	var pruned backup.PruneResult
	s.must(200, "POST", "/prune", `{"keep_last": 1, "dry_run": true}`, &pruned)
	require.True(t, pruned.DryRun)
	require.Equal(t, []string{meta.Stamp}, pruned.Removed)
	s.must(200, "GET", "/"+meta.Stamp, "", nil)
	s.must(200, "POST", "/prune", `{"keep_last": 1}`, &pruned)
	require.Equal(t, []string{meta.Stamp}, pruned.Removed)
	s.fails(404, "no_snapshot", asked{method: "GET", path: "/" + meta.Stamp})

	third := s.create()
	s.must(200, "GET", "/"+third+"/validate", "", nil)
	removed := s.must(204, "DELETE", "/"+second, "", nil)
	require.Empty(t, removed.body)
	require.NotContains(t, s.Stamps(), second)

	// All of them are remembered, the newest first.
	var operations []operation
	s.must(200, "GET", "/operations", "", &operations)
	var kinds []string
	for _, op := range operations {
		kinds = append(kinds, op.Kind+" "+op.State)
		require.Equal(t, mountedAt+"/operations/"+op.ID, op.Href)
		require.NotNil(t, op.Ended)
		var one operation
		s.must(200, "GET", "/operations/"+op.ID, "", &one)
		require.Equal(t, op, one)
	}
	require.Equal(t, []string{
		"remove succeeded", "validate succeeded", "create succeeded", "prune succeeded", "prune succeeded", "restore succeeded",
		"protect succeeded", "remove failed", "protect succeeded", "validate succeeded", "create succeeded", "create succeeded",
	}, kinds)
	require.Equal(t, 409, operations[7].Status)
	require.Equal(t, "protected", operations[7].Problem.Code)
	require.Equal(t, operations[7].Href, operations[7].Problem.Instance)
	require.Equal(t, 204, operations[0].Status)
	require.Equal(t, third, operations[2].Stamp)
}

// A drill answers what it found.
func TestDrill(t *testing.T) {
	s := newSite(t, backuphttp.Config{DrillDir: t.TempDir()})
	stamp := s.create()
	var result drill.Result
	s.must(200, "POST", "/"+stamp+"/drill", "", &result)
	require.True(t, result.DBOK)
	s.fails(404, "no_snapshot", asked{method: "POST", path: "/nothing/drill"})
}

// A report is answered with 200 whether the snapshot is valid, damaged or missing,
// as the Python module's server does. All else refuses a damaged one, with the
// report.
func TestDamagedSnapshot(t *testing.T) {
	s := newSite(t, everything)
	snapshot := s.CreateSnapshot()
	snapshot.Flip("SHA256SUMS", 3)
	for name, want := range map[string]string{snapshot.Stamp: "manifest_malformed", "nothing": "snapshot_directory_missing"} {
		var report backup.Report
		answer := s.must(200, "GET", "/"+name+"/validate", "", &report)
		require.False(t, report.Valid)
		require.Equal(t, name == snapshot.Stamp, report.Exists)
		require.Contains(t, answer.body, want)
	}
	p := s.fails(422, "invalid_backup", asked{method: "POST", path: "/" + snapshot.Stamp + "/restore"})
	require.NotNil(t, p.Report)
	require.False(t, p.Report.Intact)
	require.Equal(t, "https://pkg.go.dev/github.com/atocore/backup#ErrInvalidBackup", p.Type)
}

// Each route that can be turned off is, and says so; so are HEADs.
func TestOffUnlessAllowed(t *testing.T) {
	s := newSite(t, backuphttp.Config{MaxImport: -1})
	stamp := s.create()
	archive := s.archive(stamp)
	for _, a := range []asked{
		{method: "POST", path: "/" + stamp + "/restore"},
		{method: "DELETE", path: "/" + stamp},
		{method: "POST", path: "/" + stamp + "/protect"},
		{method: "POST", path: "/prune", body: `{"keep_last": 1}`},
		{method: "POST", path: "/prune", body: `{"keep_last": 1, "dry_run": true}`},
		{method: "POST", path: "/import", body: string(archive), header: map[string]string{"Content-Type": "application/x-tar"}},
	} {
		s.fails(403, "not_allowed", a)
	}
	require.Equal(t, []string{stamp}, s.Stamps())

	bare := newSite(t, backuphttp.Config{}) // an import destroys nothing
	bare.fails(403, "not_allowed", asked{method: "POST", path: "/prune", body: `{"keep_last": 1}`})
	bare.fails(422, "invalid_archive", asked{method: "POST", path: "/import", body: "no archive", header: map[string]string{"Content-Type": "application/x-tar"}})
}

// Without rules in the request, a prune uses those of the Config.
func TestPruneWithTheRulesOfTheConfig(t *testing.T) {
	cfg := everything
	cfg.Keep = backup.Retention{KeepLast: 2, DryRun: true}
	s := newSite(t, cfg)
	var stamps []string
	for range 3 {
		stamps = append(stamps, s.create())
	}
	var pruned backup.PruneResult
	s.must(200, "POST", "/prune", "", &pruned)
	require.False(t, pruned.DryRun, "only a request asks for that")
	require.Equal(t, stamps[:1], pruned.Removed)
	s.must(200, "POST", "/prune", `{"keep_within": "1y2m3d4h"}`, &pruned)
	require.Empty(t, pruned.Removed)

	bare := newSite(t, everything)
	bare.create()
	bare.fails(400, "invalid_options", asked{method: "POST", path: "/prune"})
	for _, within := range []string{"1", "h", "1h1y", "1d1d", "1.5h", "-1h", "99999999999999999999h", "1 h"} {
		bare.fails(400, "bad_request", asked{method: "POST", path: "/prune", body: `{"keep_within": "` + within + `"}`})
	}
}

// The Handler works under any prefix and finds it out.
func TestPrefixes(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	h := backuphttp.New(store.Options, backuphttp.Config{})
	stamp := store.Create().Stamp
	for name, mount := range map[string]struct {
		handler http.Handler
		root    string
		prefix  string
	}{
		"bare":                   {h, "/", ""},
		"stripped":               {http.StripPrefix("/a/b", h), "/a/b/", "/a/b"},
		"stripped, without root": {http.StripPrefix("/a/b", h), "/a/b", "/a/b"},
		"with a slash":           {http.StripPrefix("/a/b/", h), "/a/b/", "/a/b"},
		"escaped":                {http.StripPrefix("/a b", h), "/a%20b/", "/a%20b"},
		"not of another host":    {http.StripPrefix("//evil.example", h), "//evil.example/", "/evil.example"},
	} {
		t.Run(name, func(t *testing.T) {
			get := func(method, path string) *httptest.ResponseRecorder {
				w := httptest.NewRecorder()
				request := httptest.NewRequest(method, "/", nil)
				request.RequestURI = path
				var err error
				request.URL, err = request.URL.Parse("http://example.com" + path)
				require.NoError(t, err)
				mount.handler.ServeHTTP(w, request)
				return w
			}
			w := get("GET", mount.root)
			require.Equal(t, 200, w.Code, w.Body)
			var list []backup.Snapshot
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &list))
			w = get("GET", strings.TrimSuffix(mount.root, "/")+"/"+stamp)
			require.Equal(t, 200, w.Code, w.Body)
			w = get("POST", mount.root)
			require.Equal(t, 201, w.Code, w.Body)
			var meta backup.Metadata
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &meta))
			require.Equal(t, mount.prefix+"/"+meta.Stamp, w.Header().Get("Location"))
		})
	}
}

// Other methods get 405 and the right ones, OPTIONS these alone.
func TestMethods(t *testing.T) {
	s := newSite(t, everything)
	stamp := s.create()
	for path, allowed := range map[string]string{
		"/":                      "GET, HEAD, POST, OPTIONS",
		"/latest":                "GET, HEAD, OPTIONS",
		"/" + stamp:              "GET, HEAD, DELETE, OPTIONS",
		"/" + stamp + "/restore": "POST, OPTIONS",
		"/" + stamp + "/export":  "GET, HEAD, OPTIONS",
		"/operations":            "GET, HEAD, OPTIONS",
		"/operations/x":          "GET, HEAD, DELETE, OPTIONS",
		"/events":                "GET, HEAD, OPTIONS",
		"/metrics":               "GET, HEAD, OPTIONS",
		"/import":                "POST, OPTIONS",
		"/prune":                 "POST, OPTIONS",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "get"} {
			if strings.Contains(allowed, method) {
				continue
			}
			answer := s.ask(asked{method: method, path: path})
			require.Equal(t, 405, answer.StatusCode, "%s %s: %s", method, path, answer.body)
			require.Equal(t, allowed, answer.Header.Get("Allow"))
			if method != "HEAD" {
				requireProblem(t, answer, 405, "method_not_allowed")
			}
		}
		answer := s.ask(asked{method: "OPTIONS", path: path})
		require.Equal(t, 204, answer.StatusCode)
		require.Equal(t, allowed, answer.Header.Get("Allow"))
		require.Empty(t, answer.body)
	}
	require.Equal(t, []string{stamp}, s.Stamps())
}

// A HEAD has the header of the GET and no body, and makes no operation.
func TestHead(t *testing.T) {
	s := newSite(t, everything)
	stamp := s.create()
	for _, path := range []string{"/", "/latest", "/" + stamp, "/" + stamp + "/validate", "/" + stamp + "/export", "/operations", "/metrics", "/events"} {
		head := s.ask(asked{method: "HEAD", path: path})
		require.Equal(t, 200, head.StatusCode, path)
		require.Empty(t, head.body)
		require.NotEmpty(t, head.Header.Get("Content-Type"), path)
		if path == "/events" {
			continue
		}
		get := s.ask(asked{method: "GET", path: path})
		require.Equal(t, get.Header.Get("Content-Type"), head.Header.Get("Content-Type"), path)
	}
	require.Equal(t, 404, s.ask(asked{method: "HEAD", path: "/nothing"}).StatusCode)
	require.Equal(t, 404, s.ask(asked{method: "HEAD", path: "/nothing/export"}).StatusCode)
	var operations []operation
	s.must(200, "GET", "/operations", "", &operations)
	require.Len(t, operations, 3, "the create, and two GETs")
}

// Every answer has the headers that keep browsers from doing anything with it.
func TestSecurityHeaders(t *testing.T) {
	s := newSite(t, everything)
	for _, path := range []string{"/", "/latest", "/operations", "/metrics", "/a/b/c"} {
		header := s.ask(asked{method: "GET", path: path}).Header
		require.Equal(t, "nosniff", header.Get("X-Content-Type-Options"))
		require.Equal(t, "no-store", header.Get("Cache-Control"))
		require.Contains(t, header.Get("Content-Security-Policy"), "default-src 'none'")
		require.Contains(t, header.Get("Content-Security-Policy"), "frame-ancestors 'none'")
		require.Equal(t, "no-referrer", header.Get("Referrer-Policy"))
	}
}

// Browsers get the page, others JSON.
func TestAccept(t *testing.T) {
	s := newSite(t, everything)
	for accept, html := range map[string]bool{
		"":                 false,
		"*/*":              false,
		"application/json": false,
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": true, // Chromium, Firefox
		"text/html":                                      true,
		"text/html;q=0.2,application/json":               false,
		"text/*;q=0.9,application/json;q=0.8,*/*;q=1":    true,
		"text/html;q=0, */*":                             false,
		"application/json;q=nonsense,text/html;q=-1,/;;": false,
	} {
		answer := s.ask(asked{method: "GET", path: "/", header: map[string]string{"Accept": accept}})
		require.Equal(t, "Accept", answer.Header.Get("Vary"))
		require.Equal(t, !html, answer.Header.Get("Content-Type") == "application/json", "%q: %s", accept, answer.body)
	}
}

// A store that is half restored is listed, and everything else is refused, with
// what is known.
func TestRestoreUnfinished(t *testing.T) {
	store := backuptest.NewBareStore(t)
	stamp := store.Create().Stamp
	// As restores that were killed leave it, to the calls that only look.
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(store.DatabasePath), ".atocore-restore.journal"), []byte("nonsense\n"), 0o600))
	s := newSiteOf(t, store, everything)
	p := s.fails(503, "restore_unfinished", asked{method: "GET", path: "/"})
	require.Contains(t, string(p.Result), stamp)
	p = s.fails(503, "restore_unfinished", asked{method: "GET", path: "/" + stamp})
	require.Contains(t, string(p.Result), stamp)
	p = s.fails(503, "restore_unfinished", asked{method: "GET", path: "/" + stamp + "/validate"})
	require.Contains(t, string(p.Result), `"valid":true`)
	s.fails(503, "restore_unfinished", asked{method: "POST", path: "/"})
	require.Contains(t, s.must(200, "GET", "/metrics", "", nil).body, "atocore_backup_restore_unfinished 1\n")
}
