package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
)

// patience is how long a test waits for what must happen. Nothing takes that long
// unless it never happens.
const patience = 30 * time.Second

// A site is a store whose backups a server offers below /admin/backup.
type site struct {
	*backuptest.Store
	cfg     backuphttp.Config
	handler *backuphttp.Handler
	server  *httptest.Server
	address string // of the server, which keeps it when it starts anew
	denied  atomic.Bool
}

// newSite returns a site whose server is not started yet, so that the test can
// change the store's options and what is allowed, which is everything.
func newSite(t *testing.T) *site {
	t.Helper()
	if browser == nil {
		t.Skip("there is no Chromium here")
	}
	s := &site{Store: backuptest.NewSmallStore(t), cfg: backuphttp.Config{
		AllowRestore: true, AllowRemove: true, AllowProtect: true, AllowPrune: true,
		DrillDir: t.TempDir(),
	}}
	s.Verify, s.RecordVerdicts = true, true
	s.address = "127.0.0.1:0"
	return s
}

// start starts the server.
func (s *site) start() {
	s.T.Helper()
	s.handler = backuphttp.New(s.Options, s.cfg)
	mux := http.NewServeMux()
	mux.Handle("/admin/backup/", s.signedIn(http.StripPrefix("/admin/backup", s.handler)))
	mux.Handle("/admin/backup", s.signedIn(http.StripPrefix("/admin/backup", s.handler)))
	listener, err := net.Listen("tcp", s.address)
	require.NoError(s.T, err)
	s.address = listener.Addr().String()
	s.server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: mux}}
	s.server.Start()
	s.T.Cleanup(s.stop)
}

// signedIn plays the role of a host's authentication. While denied is set, it answers
// with a page of its own.
func (s *site) signedIn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.denied.Load() {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, "<!DOCTYPE html><title>Sign in</title><p>Sign in")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// stop ends the server and what it does; once.
func (s *site) stop() {
	if s.server == nil {
		return
	}
	ctx, cancel := context.WithCancel(s.T.Context())
	cancel() // operations are not waited for
	_ = s.handler.Shutdown(ctx)
	s.server.CloseClientConnections()
	s.server.Close()
	s.server = nil
}

// url returns an address at the server.
func (s *site) url(path string) string { return "http://" + s.address + path }

// A tab is a page of the browser.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	messages []string // of its console that are no good sign
	ignore   []string // parts of messages that the test expects
}

// watch makes a page remember where its content security policy was violated.
const watch = `window.violations = [];
addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective + " " + e.blockedURI + " " + e.sample));`

// newTab opens an empty tab. When the test ends, nothing may have been said on its
// console.
func newTab(t *testing.T) *tab {
	t.Helper()
	tb := &tab{t: t}
	ctx, cancel := chromedp.NewContext(browser.ctx, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	tb.ctx = ctx
	require.NoError(t, chromedp.Do(ctx, chromedp.EmulateViewport(1280, 900)))
	console := chromedp.Console(ctx)
	go func() {
		for message, err := range console {
			if err != nil {
				return
			}
			if message.Type == "error" || message.Type == "warning" || message.IsException() {
				tb.mu.Lock()
				tb.messages = append(tb.messages, fmt.Sprintf("%s: %s (%s)", message.Type, message.Text, message.URL))
				tb.mu.Unlock()
			}
		}
	}()
	_, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: watch})
	require.NoError(t, err)
	t.Cleanup(tb.requireQuiet)
	return tb
}

// open opens the page of a site in a new tab, and waits until the page follows the
// events.
func (s *site) open() *tab {
	s.T.Helper()
	tb := newTab(s.T)
	tb.visit(s.url("/admin/backup/"))
	tb.wait(`document.querySelector("#connection").dataset.state === "live"`)
	return tb
}

// requireQuiet checks that nothing violated the policy, and that the console has
// no errors and no warnings.
func (tb *tab) requireQuiet() {
	tb.t.Helper()
	require.Empty(tb.t, tb.complaints())
}

// complaints returns what is on the console, and where the policy was violated.
func (tb *tab) complaints() (found []string) {
	tb.t.Helper()
	found = eval[[]string](tb, `window.violations || []`)
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, message := range tb.messages {
		expected := false
		for _, part := range tb.ignore {
			expected = expected || strings.Contains(message, part)
		}
		if !expected {
			found = append(found, message)
		}
	}
	return found
}

// expect says that messages with this part are no fault.
func (tb *tab) expect(part string) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.ignore = append(tb.ignore, part)
}

// within returns a context that ends when patience does.
func (tb *tab) within() context.Context {
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	tb.t.Cleanup(cancel)
	return ctx
}

// do runs actions.
func (tb *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	tb.t.Helper()
	require.NoError(tb.t, chromedp.Do(tb.within(), actions...))
}

// visit loads an address.
func (tb *tab) visit(url string) {
	tb.t.Helper()
	tb.do(chromedp.Navigate(url))
}

// wait waits until an expression is true in the page, be it another page by then.
func (tb *tab) wait(expression string) {
	tb.t.Helper()
	ctx := tb.within()
	poll := chromedp.Poll[bool](fmt.Sprintf("Boolean(%s)", expression), chromedp.WithPollingTimeout(0))
	for {
		_, err := chromedp.Run(ctx, poll)
		if err == nil {
			return
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "context") && !strings.Contains(err.Error(), "navigated") {
			shown, _ := chromedp.Run(tb.within(), chromedp.Evaluate[string](`document.body.innerText.slice(0, 1200)`))
			require.NoError(tb.t, err, "%s\nThe page shows:\n%s", expression, shown)
		}
	}
}

// eval returns the value of an expression in the page.
func eval[T any](tb *tab, expression string) T {
	tb.t.Helper()
	value, err := chromedp.Run(tb.within(), chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	require.NoError(tb.t, err, expression)
	return value
}

// quote returns a string as JavaScript has it.
func quote(s string) string {
	text, _ := json.Marshal(s) // a string can be encoded
	return string(text)
}

// click clicks an element with the mouse, as soon as it can be seen. The page may put
// another one in its place before the click.
func (tb *tab) click(selector string) {
	tb.t.Helper()
	ctx := tb.within()
	for {
		err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(selector)))
		if err == nil {
			return
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "node") {
			require.NoError(tb.t, err, selector)
		}
	}
}

// press presses keys, where the focus is.
func (tb *tab) press(keys string, modifiers ...chromedp.Modifier) {
	tb.t.Helper()
	tb.do(chromedp.KeyEvent(keys, chromedp.KeyModifiers(modifiers...)))
}

// text returns the text of an element, as it is shown.
func (tb *tab) text(selector string) string {
	tb.t.Helper()
	return eval[string](tb, fmt.Sprintf("document.querySelector(%s)?.innerText ?? %q", quote(selector), "there is no "+selector))
}

// count returns how many elements a selector has.
func (tb *tab) count(selector string) int {
	tb.t.Helper()
	return eval[int](tb, fmt.Sprintf("document.querySelectorAll(%s).length", quote(selector)))
}

// waitText waits until an element has a text in it.
func (tb *tab) waitText(selector, text string) {
	tb.t.Helper()
	tb.wait(fmt.Sprintf("document.querySelector(%s)?.innerText.includes(%s)", quote(selector), quote(text)))
}

// rowOf returns the selector of a snapshot's row.
func rowOf(stamp string) string {
	return `tr[data-stamp="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(stamp) + `"]`
}

// act chooses an action in the menu of a snapshot. The page may move between the look
// for the menu's button and the click on it, so this is done again until it is open.
func (tb *tab) act(stamp, action string) {
	tb.t.Helper()
	menu := fmt.Sprintf("document.querySelector(%s)", quote(rowOf(stamp)+" .menu"))
	for {
		tb.click(rowOf(stamp) + " button[popovertarget]")
		if eval[bool](tb, menu+`?.matches(":popover-open") ?? false`) {
			break
		}
	}
	eval[any](tb, fmt.Sprintf(`%s.querySelector('[data-do="%s"]').click(), null`, menu, action))
}

// download does what begins a download, and returns the path of the file.
func (tb *tab) download(begin func()) string {
	tb.t.Helper()
	dir, yes := tb.t.TempDir(), true
	_, err := chromedp.CallBrowser(tb.ctx, cdpbrowser.SetDownloadBehavior, cdpbrowser.SetDownloadBehaviorParams{
		Behavior: cdpbrowser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir, EventsEnabled: &yes,
		BrowserContextID: chromedp.FromContext(tb.ctx).BrowserContextID,
	})
	require.NoError(tb.t, err)
	events := chromedp.BrowserEvents(tb.within(), cdpbrowser.DownloadProgress)
	begin()
	for event, err := range events {
		require.NoError(tb.t, err)
		require.NotEqual(tb.t, cdpbrowser.DownloadProgressStateCanceled, event.State)
		if event.State == cdpbrowser.DownloadProgressStateCompleted {
			break
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(tb.t, err)
	require.Len(tb.t, files, 1)
	return files[0]
}
