package browser

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
)

// fill adds n snapshots, each an hour older than the next, that have metadata and
// nothing else. It returns their stamps, the oldest first.
func (s *site) fill(n int) (stamps []string) {
	s.T.Helper()
	template := s.CreateSnapshot()
	fields := template.Fields()
	require.NoError(s.T, os.RemoveAll(template.Path("")))
	newest := s.now().Add(-time.Hour)
	for i := n - 1; i >= 0; i-- {
		at := newest.Add(-time.Duration(i) * time.Hour).UTC().Truncate(time.Second)
		stamp := at.Format("20060102T150405Z")
		stamps = append(stamps, stamp)
		for name, value := range map[string]any{
			"stamp": stamp, "created_at": at.Format("2006-01-02T15:04:05.000000+00:00"),
			"db_size_bytes": 80e6 + (n-i)*1e5, "chroma_snapshot_bytes": 200e6 + (n-i)*3e5,
		} {
			raw, err := json.Marshal(value)
			require.NoError(s.T, err)
			fields[name] = raw
		}
		data, err := json.Marshal(fields)
		require.NoError(s.T, err)
		s.Must(os.Mkdir(s.SnapshotPath(stamp), 0o700),
			os.WriteFile(s.SnapshotPath(stamp, backuptest.MetadataFile), data, 0o600))
	}
	return stamps
}

// now returns the time by the store's clock.
func (s *site) now() time.Time {
	if s.Clock != nil {
		return s.Clock.Now()
	}
	return backup.SystemClock().Now()
}

// Everything can be read without the script, and nothing is there that would do
// nothing.
func TestWithoutScript(t *testing.T) {
	s := newSite(t)
	s.Note = "a note\nof two lines"
	stamp := s.Create().Stamp
	s.Note = ""
	s.Create()
	s.start()
	tb := newTab(t)
	_, err := chromedp.Call(tb.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	require.NoError(t, err)
	tb.visit(s.url("/admin/backup/"))
	text, err := chromedp.Run(tb.within(), chromedp.Text(chromedp.CSS("body")))
	require.NoError(t, err)
	for _, want := range []string{"Backed up and verified", "This page needs JavaScript to change anything", stamp, "a note", "Growth", "2 snapshots"} {
		require.Contains(t, text, want)
	}
	for _, never := range []string{"Create snapshot", "Filter", "connecting"} {
		require.NotContains(t, text, never)
	}
	tb.click(rowOf(stamp) + " button[popovertarget]") // the browser opens it
	menu := chromedp.CSS(rowOf(stamp) + " .menu")
	tb.do(chromedp.WaitVisible(menu))
	text, err = chromedp.Run(tb.within(), chromedp.Text(menu))
	require.NoError(t, err)
	require.Contains(t, text, "Export as tar")
	require.NotContains(t, text, "Restore")
}

// What the Config does not allow has no button.
func TestButtonsThatAreNotAllowed(t *testing.T) {
	buttons := map[string]func(*backuphttp.Config){
		`[data-open="import"]`: func(c *backuphttp.Config) { c.MaxImport = 1 << 20 },
		`[data-open="prune"]`:  func(c *backuphttp.Config) { c.AllowPrune = true },
		`[data-do="protect"]`:  func(c *backuphttp.Config) { c.AllowProtect = true },
		`[data-do="remove"]`:   func(c *backuphttp.Config) { c.AllowRemove = true },
		`[data-do="restore"]`:  func(c *backuphttp.Config) { c.AllowRestore = true },
	}
	s := newSite(t)
	s.Create()
	tb := newTab(t)
	tb.expect("net::ERR_") // while the server starts anew
	for allowed, allow := range buttons {
		s.stop()
		s.cfg = backuphttp.Config{MaxImport: -1}
		allow(&s.cfg)
		s.start()
		tb.visit(s.url("/admin/backup/"))
		tb.wait(`document.querySelector("#connection").dataset.state === "live"`)
		for button := range buttons {
			require.Equal(t, button == allowed, tb.count(button) > 0, button)
		}
		for _, button := range []string{`[data-open="create"]`, `[data-do="validate"]`, `[data-do="drill"]`, `a[href$="/export"]`} {
			require.NotZero(t, tb.count(button), button)
		}
	}
}

// The page and what it loads have the right addresses wherever it is.
func TestAddresses(t *testing.T) {
	s := newSite(t)
	s.start()
	for _, path := range []string{"/admin/backup", "/admin/backup/?all=1"} {
		tb := newTab(t)
		tb.visit(s.url(path))
		tb.wait(`document.querySelector("#connection").dataset.state === "live"`)
		require.NotEqual(t, "none", eval[string](tb, `getComputedStyle(document.querySelector(".verdict")).borderInlineStartStyle`), "no style")
		tb.click(`[data-open="create"]`)
		tb.click(`#create [type="submit"]`)
		tb.waitText("#messages", "was created")
	}
}

// Whatever a snapshot says of itself is shown as text, and keeps its place.
func TestHostileSnapshots(t *testing.T) {
	const evil = `"><img src=x onerror="document.title='x'"><script>document.title='x'</script>{{.}}`
	s := newSite(t)
	s.Note = evil + "\n\u202eright to left\u202c\n" + strings.Repeat("word ", 500)
	s.Verify = false
	noted := s.Create().Stamp
	s.Note = ""
	hosted := s.CreateSnapshot()
	hosted.Set(map[string]any{"source_host": evil, "safety_of": evil})
	named := []string{`"><img src=x>`, "a&b=c?d#e", "%2e%2e", "\u202egnp", " ", "b:c"}
	for _, name := range named {
		require.NoError(t, os.CopyFS(s.SnapshotPath(name), os.DirFS(s.SnapshotPath(noted))))
	}
	s.Must(os.WriteFile(filepath.Join(s.SnapshotPath(named[0]), backuptest.MetadataFile), []byte(evil), 0o600))
	s.start()
	tb := s.open()
	require.Contains(t, tb.text("title"), "Backups")
	require.Zero(t, tb.count("main img, main script"))
	require.Contains(t, tb.text(rowOf(hosted.Stamp)), evil)
	require.Contains(t, tb.text(rowOf(noted)+" summary"), "onerror=")
	tb.click(rowOf(noted) + " summary")
	note := tb.text(rowOf(noted) + " details p")
	require.Contains(t, note, "\n\\u202eright to left\\u202c\n")
	require.NotContains(t, note, "\u202e")
	require.LessOrEqual(t, eval[int](tb, `document.scrollingElement.scrollWidth - innerWidth`), 0, "a note makes the page wider")

	// Their names are whole when a request names them: each is found, and none is
	// another.
	for i, name := range named {
		shown := strings.ReplaceAll(name, "\u202e", `\u202e`)
		tb.act(shown, "validate")
		region := "#messages"
		if i == 0 {
			region = "#problems"
		}
		tb.waitText(region, "Snapshot "+shown+" is ")
	}
}

// With a thousand snapshots, the page has the newest, and all if it is asked for
// them.
func TestThousand(t *testing.T) {
	s := newSite(t)
	stamps := s.fill(1000)
	s.start()
	tb := s.open()
	require.Equal(t, 200, tb.count("tbody tr"))
	require.Equal(t, stamps[999], eval[string](tb, `document.querySelector("tbody tr").dataset.stamp`))
	require.Contains(t, tb.text(".more"), "800 older snapshots are not shown")
	require.Contains(t, tb.text(".verdict"), "1,000 snapshots")
	tb.click(".more a")
	tb.wait(`document.querySelectorAll("tbody tr").length === 1000 && document.querySelector("#connection").dataset.state === "live"`)
	require.Zero(t, tb.count(".more"))

	// The head of the table stays in sight.
	eval[any](tb, `document.querySelector("tbody tr:nth-child(700)").scrollIntoView({block: "center"}), null`)
	tb.wait(`Math.abs(document.querySelector("thead th").getBoundingClientRect().top) < 2`)

	tb.do(chromedp.SendKeys(chromedp.CSS("#filter"), stamps[123][:11]))
	tb.waitText("#found", " of 1000")
	shown := eval[[]string](tb, `[...document.querySelectorAll("tbody tr")].filter((tr) => tr.checkVisibility()).map((tr) => tr.dataset.stamp)`)
	require.Contains(t, shown, stamps[123])
	require.Less(t, len(shown), 25)
	t.Logf("render: %v ms", eval[float64](tb, `performance.getEntriesByType("navigation")[0].domComplete`))
}

// Everything can be done with the keyboard, and the focus can be seen and is never
// lost.
func TestKeyboard(t *testing.T) {
	s := newSite(t)
	old := s.Create().Stamp
	s.Create()
	s.start()
	tb := s.open()
	focused := func() string {
		return eval[string](tb, `(document.activeElement.getAttribute("aria-label") || document.activeElement.innerText || document.activeElement.id || document.activeElement.tagName).trim()`)
	}
	// to presses Tab until the focus is at what is called so, or begins so.
	to := func(name string) {
		t.Helper()
		var passed []string
		for range 60 {
			tb.press(kb.Tab)
			at := focused()
			if prefix, more := strings.CutSuffix(name, "*"); at == name || more && strings.HasPrefix(at, prefix) {
				outline := eval[string](tb, `getComputedStyle(document.activeElement).outlineStyle`)
				require.NotEqual(t, "none", outline, "the focus at %q can't be seen", name)
				return
			}
			passed = append(passed, at)
		}
		require.Fail(t, "no way to "+name, "%q", passed)
	}
	to("Skip to the snapshots")
	to("Create snapshot…")
	tb.press(kb.Enter)
	tb.wait(`document.querySelector("#create").open`)
	tb.press(kb.Escape)
	tb.wait(`!document.querySelector("#create").open`)
	require.Equal(t, "Create snapshot…", focused(), "the focus goes back")
	tb.press(kb.Enter)
	require.Equal(t, "create-note", focused(), "the focus is in the dialog")
	tb.press("typed")
	// The focus stays in the dialog, or goes to the browser's own controls.
	for range 12 {
		tb.press(kb.Tab)
		require.True(t, eval[bool](tb, `document.activeElement.closest("#create") !== null || document.activeElement === document.body`), focused())
	}
	to("Create")
	tb.press(kb.Enter)
	tb.waitText("#messages", "was created")
	tb.wait(`document.querySelectorAll("tbody tr").length === 3`)
	require.Contains(t, tb.text("tbody"), "typed")

	to("Actions for " + old)
	tb.press(kb.Enter)
	tb.wait(`document.querySelector(".menu:popover-open")`)
	to("Protect")
	tb.press(kb.Enter)
	tb.waitText(rowOf(old), "protected")
	require.Equal(t, "Actions for "+old, focused(), "the focus is where it was, in the new row")

	tb.press(kb.Enter)
	to("Remove…")
	tb.press(kb.Enter)
	tb.wait(`document.querySelector("#ask").open`)
	require.Equal(t, "Cancel", focused())
	tb.press(kb.Escape)
	require.Equal(t, "Actions for "+old, focused())
	require.Len(t, s.Stamps(), 3)

	to("Actions for *")
	tb.press(kb.Enter)
	tb.wait(`document.querySelector(".menu:popover-open")`)
	tb.press(kb.Escape)
	tb.wait(`!document.querySelector(".menu:popover-open")`)
	require.True(t, strings.HasPrefix(focused(), "Actions for "))
}

// The tests see what they must not: a script in the page, an error on the console.
func TestComplaintsAreSeen(t *testing.T) {
	s := newSite(t)
	s.start()
	tb := s.open()
	tb.requireQuiet()
	eval[any](tb, `document.body.append(Object.assign(document.createElement("script"), {textContent: "1"})), console.error("said so"), null`)
	tb.wait(`window.violations.length > 0`)
	found := strings.Join(tb.complaints(), "\n")
	require.Contains(t, found, "script-src")
	tb.expect("")
	eval[any](tb, `window.violations = [], null`)
}
