package backuphttp_test

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
)

// page returns the page.
func (s *site) page(query string) got {
	s.t.Helper()
	answer := s.ask(asked{method: "GET", path: "/" + query, header: map[string]string{"Accept": "text/html,*/*;q=0.8"}})
	require.Equal(s.t, 200, answer.StatusCode, answer.body)
	require.Equal(s.t, "text/html; charset=utf-8", answer.Header.Get("Content-Type"))
	return answer
}

// verdict returns the judgement of a page: its level, its headline and its reasons.
func verdict(page string) (level, headline string, reasons []string) {
	found := regexp.MustCompile(`<section class="verdict (\w+)"`).FindStringSubmatch(page)
	headline = regexp.MustCompile(`(?s)<h2 id="headline">.*?</span> (.*?)</h2>`).FindStringSubmatch(page)[1]
	_, list, _ := strings.Cut(page, `<h2 id="headline">`)
	list, _, _ = strings.Cut(list, `<dl`)
	for _, item := range regexp.MustCompile(`<li>(.*?)</li>`).FindAllStringSubmatch(list, -1) {
		reasons = append(reasons, html.UnescapeString(item[1]))
	}
	return found[1], headline, reasons
}

// at creates a snapshot that is this old.
func at(s *backuptest.Store, age time.Duration, verify bool) *backuptest.Snapshot {
	s.T.Helper()
	opts := s.Options
	defer func() { s.Options = opts }()
	s.Clock, s.Verify = backuptest.Clock{Time: backuptest.Noon.Time.Add(-age)}, verify
	return s.CreateSnapshot()
}

// The page begins with a judgement, and the reasons for it.
func TestPageVerdict(t *testing.T) {
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		make     func(s *backuptest.Store)
		cfg      backuphttp.Config
		level    string
		headline string
		reasons  []string
	}{
		"nothing there": {
			make:  func(s *backuptest.Store) {},
			level: "bad", headline: "The backups need attention",
			reasons: []string{"There is no snapshot that could be restored."},
		},
		"the newest is valid": {
			make:  func(s *backuptest.Store) { at(s, 3*day, false); at(s, day, true) },
			level: "good", headline: "Backed up and verified",
		},
		"none was validated": {
			make:  func(s *backuptest.Store) { at(s, day, false) },
			level: "warn", headline: "Backed up, but not verified", reasons: []string{"No snapshot is known to be valid."},
		},
		"an older one was validated": {
			make:  func(s *backuptest.Store) { at(s, 3*day, true); at(s, day, false) },
			level: "warn", headline: "Backed up, but not verified", reasons: []string{"The newest snapshot has not been validated yet."},
		},
		"the newest is damaged": {
			make: func(s *backuptest.Store) {
				at(s, 3*day, true)
				damaged := at(s, day, false)
				damaged.Flip(backuptest.RegistryFile, 3)
				damaged.RecordVerdicts = true
				_, err := backup.ValidateBackup(s.T.Context(), damaged.Options, damaged.Stamp)
				require.ErrorIs(s.T, err, backup.ErrInvalidBackup)
			},
			level: "bad", headline: "The backups need attention",
			reasons: []string{"The newest snapshot, 20261123T120000Z, was not valid when it was last checked."},
		},
		"old": {
			make:  func(s *backuptest.Store) { at(s, 3*day, true) },
			cfg:   backuphttp.Config{MaxAge: 2 * day, MaxUnverified: 10 * day},
			level: "bad", headline: "The backups need attention", reasons: []string{"The newest snapshot is older than 2 days."},
		},
		"not too old": {
			make:  func(s *backuptest.Store) { at(s, day, true) },
			cfg:   backuphttp.Config{MaxAge: day, MaxUnverified: day},
			level: "good", headline: "Backed up and verified",
		},
		"validated long ago": {
			make:  func(s *backuptest.Store) { at(s, 3*day, true); at(s, day, false) },
			cfg:   backuphttp.Config{MaxAge: 2 * day, MaxUnverified: 36 * time.Hour},
			level: "bad", headline: "The backups need attention",
			reasons: []string{"The newest snapshot that was found valid is older than 36 hours.", "The newest snapshot has not been validated yet."},
		},
		"never validated": {
			make:  func(s *backuptest.Store) { at(s, day, false) },
			cfg:   backuphttp.Config{MaxUnverified: 10 * day},
			level: "bad", headline: "The backups need attention",
			reasons: []string{"No snapshot is known to be valid."},
		},
		"unreadable, and from the future": {
			make: func(s *backuptest.Store) {
				at(s, day, true)
				at(s, -day, true)
				at(s, 3*day, true).Write(backuptest.MetadataFile, []byte("{"))
			},
			level: "warn", headline: "Backed up and verified, with something to look at",
			reasons: []string{"1 snapshot is without readable metadata.", "1 snapshot is dated in the future."},
		},
		"of another store, and of a restore": {
			make: func(s *backuptest.Store) {
				at(s, 3*day, true)
				at(s, day, false).Set(map[string]any{"source_host": "another"})
				at(s, 2*day, false).Set(map[string]any{"safety_of": "20261120T120000Z"})
			},
			level: "good", headline: "Backed up and verified",
		},
		"no room": {
			make: func(s *backuptest.Store) {
				at(s, day, true).Set(map[string]any{"db_size_bytes": int64(1) << 60})
			},
			level: "warn", headline: "Backed up and verified, with something to look at",
			reasons: []string{"There is no room for another snapshot like the newest: … are free."},
		},
		"half restored": {
			make: func(s *backuptest.Store) {
				at(s, day, true)
				journal := filepath.Join(filepath.Dir(s.DatabasePath), ".atocore-restore.journal")
				require.NoError(s.T, os.WriteFile(journal, []byte("nonsense\n"), 0o600))
			},
			level: "bad", headline: "The backups need attention",
			reasons: []string{"A restore was interrupted. Keep the store closed, and restore a snapshot again."},
		},
	} {
		t.Run(name, func(t *testing.T) {
			store := backuptest.NewSmallStore(t)
			store.Clock = backuptest.Noon
			c.make(store)
			s := newSiteOf(t, store, c.cfg)
			level, headline, reasons := verdict(s.page("").body)
			require.Equal(t, c.level, level)
			require.Equal(t, c.headline, headline)
			for i, reason := range reasons {
				reasons[i] = regexp.MustCompile(`: .* are free`).ReplaceAllString(reason, ": … are free")
			}
			require.Equal(t, c.reasons, reasons)
		})
	}
}

// If the snapshots can't be listed, or the last create failed, the page says so.
func TestPageOfFailures(t *testing.T) {
	s := newSite(t, everything)
	s.create()
	require.NoError(t, os.Rename(s.DatabasePath, s.DatabasePath+".gone"))
	s.ask(asked{method: "POST", path: "/"})
	level, _, reasons := verdict(s.page("").body)
	require.Equal(t, "warn", level)
	require.Contains(t, reasons[len(reasons)-1], "The last create failed: create backup")
	require.Contains(t, reasons[len(reasons)-1], s.DatabasePath)
	require.NoError(t, os.Rename(s.DatabasePath+".gone", s.DatabasePath))
	s.create()
	_, _, reasons = verdict(s.page("").body)
	require.NotContains(t, strings.Join(reasons, ""), "failed")

	require.NoError(t, os.RemoveAll(s.SnapshotPath("")))
	require.NoError(t, os.WriteFile(s.SnapshotPath(""), nil, 0o600))
	answer := s.ask(asked{method: "GET", path: "/", header: map[string]string{"Accept": "text/html"}})
	require.Equal(t, 500, answer.StatusCode)
	require.Equal(t, "text/html; charset=utf-8", answer.Header.Get("Content-Type"))
	level, _, reasons = verdict(answer.body)
	require.Equal(t, "bad", level)
	require.Len(t, reasons, 1)
	require.Contains(t, reasons[0], "The snapshots can't be listed: list backups: ")
}

// The page's policy forbids everything inline, and there is nothing inline in it,
// whatever snapshots say of themselves.
func TestPageEscapes(t *testing.T) {
	const evil = `"'><script>alert(1)</script><p style="x" onclick='x'>{{.}}` + "\u202e\x1b\u2028"
	store := backuptest.NewSmallStore(t)
	store.Note = evil
	snapshot := store.CreateSnapshot()
	snapshot.Set(map[string]any{"safety_of": evil, "source_host": evil, "source_db_path": evil})
	store.Note = ""
	require.NoError(t, os.CopyFS(store.SnapshotPath(`"><b c='`), os.DirFS(snapshot.Path(""))))
	s := newSiteOf(t, store, everything)
	page := s.page("")
	require.Contains(t, page.Header.Get("Content-Security-Policy"), "default-src 'none'; script-src 'self'; style-src 'self';")
	require.NotContains(t, page.Header.Get("Content-Security-Policy"), "unsafe")
	require.Equal(t, 1, strings.Count(page.body, "<script"))
	require.NotRegexp(t, `<[^>]*\s(style|on\w+)=`, page.body)
	require.NotContains(t, page.body, "<b c")
	require.NotContains(t, page.body, "\u202e")
	require.NotContains(t, page.body, "\x1b")
	require.Contains(t, page.body, html.EscapeString(`<p style="x"`))
	require.Contains(t, page.body, `\u202e\u001b\u2028`)
	require.Contains(t, page.body, `href="./%22%3E%3Cb%20c=%27/export"`)
}

// Whatever the page refers to is below it, with and without a slash at its end.
func TestPageAddresses(t *testing.T) {
	s := newSite(t, everything)
	stamp := s.create()
	for asked, base := range map[string]string{"": "./backup/", "/": "./", "/?all=1": "./"} {
		request, err := http.NewRequest("GET", s.url+asked, nil)
		require.NoError(t, err)
		request.Header.Set("Accept", "text/html")
		w := httptest.NewRecorder()
		request.RequestURI = request.URL.RequestURI()
		http.StripPrefix(mountedAt, s.h).ServeHTTP(w, request)
		require.Equal(t, 200, w.Code)
		addresses := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(w.Body.String(), -1)
		require.GreaterOrEqual(t, len(addresses), 5)
		for _, address := range addresses {
			if address[1] == "#snapshots" {
				continue
			}
			require.True(t, strings.HasPrefix(address[1], base), address[1])
			whole, err := request.URL.Parse(address[1])
			require.NoError(t, err)
			require.Equal(t, "", whole.RawQuery)
			answer, err := http.Get(whole.String())
			require.NoError(t, err)
			require.NoError(t, answer.Body.Close())
			require.Equal(t, 200, answer.StatusCode, whole)
		}
		require.Contains(t, w.Body.String(), `href="`+base+stamp+`/export"`)
	}
}

// A file of the page is sent once, until it changes.
func TestPageFiles(t *testing.T) {
	s := newSite(t, everything)
	for name, kind := range map[string]string{"style.css": "text/css; charset=utf-8", "script.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"} {
		first := s.must(200, "GET", "/page/"+name, "", nil)
		require.Equal(t, kind, first.Header.Get("Content-Type"))
		require.Equal(t, "no-cache", first.Header.Get("Cache-Control"))
		again := s.ask(asked{method: "GET", path: "/page/" + name, header: map[string]string{"If-None-Match": first.Header.Get("ETag")}})
		require.Equal(t, 304, again.StatusCode)
		require.Empty(t, again.body)
		other := s.ask(asked{method: "GET", path: "/page/" + name, header: map[string]string{"If-None-Match": `"0"`}})
		require.Equal(t, first.body, other.body)
	}
	for _, name := range []string{"index.html", "", "..", "%2e%2e%2fpage.go", "nothing"} {
		s.fails(404, "not_found", asked{method: "GET", path: "/page/" + name})
	}
}

// The page has the newest 200 snapshots, or all, and a chart that is drawn from all.
func TestPageOfMany(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	store.Clock = backuptest.Noon
	const n = 450
	fill(store, n)
	s := newSiteOf(t, store, backuphttp.Config{})
	page := s.page("").body
	require.Equal(t, 200, strings.Count(page, "<tr role=\"row\" data-stamp="))
	require.Contains(t, page, "250 older snapshots are not shown")
	require.Contains(t, page, "450 snapshots")
	all := s.page("?all=1").body
	require.Equal(t, n, strings.Count(all, "<tr role=\"row\" data-stamp="))
	require.NotContains(t, all, "not shown")

	chart := regexp.MustCompile(`(?s)<desc id="chart-text">(.*?)</desc>`).FindStringSubmatch(page)[1]
	require.Contains(t, chart, "The database went from 80 MB on 2026-11-05 to 125 MB on 2026-11-24, in 450 snapshots.")
	require.Contains(t, chart, "Database and Chroma together went from 180 MB on 2026-11-05 to 315 MB on 2026-11-24, in 225 snapshots.")
	for _, label := range []string{"400 MB", "300 MB", "200 MB", "100 MB", "0 B"} {
		require.Contains(t, page, "<li>"+label+"</li>")
	}
	lines := regexp.MustCompile(`<path class="line (\w+)" d="M0.0 ([\d.]+)L[^"]*L1000.0 ([\d.]+)"`).FindAllStringSubmatch(page, -1)
	require.Len(t, lines, 2)
	require.Equal(t, []string{"whole", "110.0", "42.5"}, lines[0][1:])
	require.Equal(t, []string{"database", "160.0", "137.5"}, lines[1][1:])
	require.LessOrEqual(t, strings.Count(lines[1][0], "L"), 402, "the line has a bounded number of points")
}

// fill makes n snapshots, an hour apart, of which every other one has a Chroma
// directory, and which have metadata only.
func fill(s *backuptest.Store, n int) {
	s.T.Helper()
	template := s.CreateSnapshot()
	fields := template.Fields()
	chroma := fields["chroma_snapshot_path"]
	require.NoError(s.T, os.RemoveAll(template.Path("")))
	for i := range n {
		created := s.Clock.Now().Add(-time.Duration(n-1-i) * time.Hour).UTC().Truncate(time.Second)
		stamp := created.Format("20060102T150405Z")
		fields["created_at"] = json.RawMessage(created.Format(`"2006-01-02T15:04:05.000000+00:00"`))
		fields["stamp"] = json.RawMessage(`"` + stamp + `"`)
		fields["db_size_bytes"] = fmt.Appendf(nil, "%d", 80_000_000+i*100_223)
		fields["chroma_snapshot_bytes"] = fmt.Appendf(nil, "%d", 100_000_000+i*200_445)
		fields["chroma_snapshot_path"] = chroma
		if i%2 == 1 && i != n-1 || i == n-2 {
			fields["chroma_snapshot_path"] = json.RawMessage(`""`)
			fields["chroma_snapshot_bytes"] = json.RawMessage("0")
		}
		data, err := json.Marshal(fields)
		require.NoError(s.T, err)
		s.Must(os.Mkdir(s.SnapshotPath(stamp), 0o700), os.WriteFile(s.SnapshotPath(stamp, backuptest.MetadataFile), data, 0o600))
	}
}
