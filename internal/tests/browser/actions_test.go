package browser

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/schedule"
)

// A gate is an ingestion guard that a test holds, so that a create stands still in
// a phase until the test has looked at the page.
type gate struct {
	once   sync.Once
	opened chan struct{}
}

// newGate returns a gate that is closed, and that opens when the test ends.
func newGate(t *testing.T) *gate {
	g := &gate{opened: make(chan struct{})}
	t.Cleanup(g.open)
	return g
}

func (g *gate) open() { g.once.Do(func() { close(g.opened) }) }

// Lock is that of a backup.Locker.
func (g *gate) Lock(ctx context.Context) (func(), error) {
	select {
	case <-g.opened:
		return func() {}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A create is shown while it runs, with its phase and its share, in every tab. When
// it ends, the new snapshot is in the table.
func TestCreateShowsProgress(t *testing.T) {
	s := newSite(t)
	guard := newGate(t)
	s.Locker = guard
	s.start()
	tb, other := s.open(), s.open()

	tb.click(`[data-open="create"]`)
	tb.do(chromedp.SendKeys(chromedp.CSS("#create-note"), "before <b>the move</b>"))
	tb.click(`#create [type="submit"]`)
	for _, each := range []*tab{tb, other} {
		each.wait(`document.querySelector('#running li[data-phase="guard"] progress')`)
		require.Contains(t, each.text("#running"), "Create a snapshot")
		require.Contains(t, each.text("#running"), "waiting for the ingestion guard")
		share := eval[float64](each, `document.querySelector("#running progress").value`)
		require.GreaterOrEqual(t, share, 0.0)
		require.Less(t, share, 1.0)
		require.Zero(t, each.count("tbody tr"))
	}

	guard.open()
	tb.waitText("#messages", "was created")
	for _, each := range []*tab{tb, other} {
		each.wait(`document.querySelectorAll("tbody tr").length === 1 && !document.querySelector("#running li")`)
		row := each.text("tbody tr")
		require.Contains(t, row, s.Stamps()[0])
		require.Contains(t, row, "before <b>the move</b>")
		require.Contains(t, row, "valid")
		each.waitText(".verdict", "Backed up and verified")
	}
	require.Empty(t, other.text("#messages"), "the other tab did not ask for it")
	require.Contains(t, other.text(".ended"), "Create "+s.Stamps()[0]+" succeeded")
}

// A create can be cancelled, and says so.
func TestCancel(t *testing.T) {
	s := newSite(t)
	s.Locker = newGate(t)
	s.start()
	tb := s.open()
	tb.click(`[data-open="create"]`)
	tb.click(`#create [type="submit"]`)
	tb.wait(`document.querySelector('#running li[data-phase="guard"]')`)
	tb.click("#running [data-cancel]")
	tb.waitText("#problems", "Create a snapshot")
	tb.wait(`!document.querySelector("#running li")`)
	tb.waitText(".ended", "was cancelled")
	s.RequireNoSnapshot()
}

// A create that fails shows the problem with its detail.
func TestProblem(t *testing.T) {
	s := newSite(t)
	require.NoError(t, os.Remove(s.DatabasePath))
	s.start()
	tb := s.open()
	tb.click(`[data-open="create"]`)
	tb.click(`#create [type="submit"]`)
	tb.waitText("#problems", "Create a snapshot:")
	require.Contains(t, tb.text("#problems"), "atocore.db")
	require.Equal(t, "alert", eval[string](tb, `document.querySelector("#problems").getAttribute("role")`))
	tb.click("#problems button")
	tb.wait(`!document.querySelector("#problems").children.length`)
}

// A damaged snapshot is found not to be valid, which the page says in its row and at
// its top.
func TestValidateDamaged(t *testing.T) {
	s := newSite(t)
	snapshot := s.CreateSnapshot()
	s.start()
	tb := s.open()
	tb.waitText(".verdict", "Backed up and verified")
	snapshot.Flip(backuptest.RegistryFile, 3)
	tb.act(snapshot.Stamp, "validate")
	tb.waitText("#problems", "is not valid")
	require.Contains(t, tb.text("#problems"), backuptest.RegistryFile)
	tb.waitText(rowOf(snapshot.Stamp), "not valid")
	tb.waitText(".verdict", "There is no snapshot that could be restored.")
	require.Equal(t, 1, tb.count(".verdict.bad"))
	tb.waitText(".ended", "found that it is not valid")
}

// A valid one is found to be that, and so is one that is rehearsed.
func TestValidateAndDrill(t *testing.T) {
	s := newSite(t)
	s.Verify = false
	stamp := s.Create().Stamp
	s.start()
	tb := s.open()
	tb.waitText(rowOf(stamp), "never")
	require.Equal(t, 1, tb.count(".verdict.warn"))
	tb.act(stamp, "validate")
	tb.waitText("#messages", "is valid")
	tb.waitText(rowOf(stamp), "valid")
	tb.wait(`document.querySelector(".verdict.good")`)

	tb.act(stamp, "drill")
	tb.waitText("#messages", "was restored into a scratch directory and checked")
	left, err := os.ReadDir(s.cfg.DrillDir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// Protection begins and ends, and keeps a snapshot from being removed. Nothing is
// removed before the question is answered.
func TestProtectAndRemove(t *testing.T) {
	s := newSite(t)
	old, newest := s.Create().Stamp, s.Create().Stamp
	s.start()
	tb := s.open()
	tb.act(old, "protect")
	tb.wait(`document.querySelector(` + quote(rowOf(old)+" .badge") + `)`)
	require.Equal(t, "protected", tb.text(rowOf(old)+" .badge"))

	tb.act(old, "remove")
	tb.waitText("#ask", "Remove snapshot "+old+"?")
	require.Contains(t, tb.text("#ask"), "deleted for good")
	tb.click("#ask-yes")
	tb.waitText("#problems", "Remove "+old)
	require.Equal(t, []string{old, newest}, s.Stamps())

	tb.act(old, "unprotect")
	tb.wait(`!document.querySelector(` + quote(rowOf(old)+" .badge") + `)`)
	tb.act(old, "remove")
	tb.click("#ask [data-close]")
	tb.wait(`!document.querySelector("#ask").open`)
	require.Equal(t, []string{old, newest}, s.Stamps())
	tb.act(old, "remove")
	tb.click("#ask-yes")
	tb.waitText("#messages", "Snapshot "+old+" was removed.")
	tb.wait(`!document.querySelector(` + quote(rowOf(old)) + `)`)
	require.Equal(t, []string{newest}, s.Stamps())
}

// A restore begins only after the stamp was typed. The page names the safety
// snapshot, which is in the table then.
func TestRestore(t *testing.T) {
	s := newSite(t)
	stamp := s.Create().Stamp
	s.Disturb()
	s.start()
	tb := s.open()
	tb.act(stamp, "restore")
	tb.waitText("#ask", "Restore snapshot "+stamp+"?")
	require.Contains(t, tb.text("#ask"), "The present store will be replaced")
	disabled := `document.querySelector("#ask-yes").disabled`
	require.True(t, eval[bool](tb, disabled))
	tb.do(chromedp.SendKeys(chromedp.CSS("#ask-typed"), stamp[:len(stamp)-1]))
	require.True(t, eval[bool](tb, disabled))
	tb.press("\r")
	require.True(t, eval[bool](tb, `document.querySelector("#ask").open`), "Enter went on without the stamp")
	require.FileExists(t, s.InChroma("disturbed"))

	tb.do(chromedp.SendKeys(chromedp.CSS("#ask-typed"), stamp[len(stamp)-1:]))
	tb.wait("!" + disabled)
	tb.press("\r")
	tb.waitText("#messages", "Snapshot "+stamp+" was restored.")
	require.NoFileExists(t, s.InChroma("disturbed"))
	stamps := s.Stamps()
	require.Len(t, stamps, 2)
	require.Contains(t, tb.text("#messages"), stamps[1])
	tb.waitText(rowOf(stamps[1]), "before the restore of "+stamp)
}

// A prune shows what would be removed, and removes that only after a yes.
func TestPruneShowsFirst(t *testing.T) {
	s := newSite(t)
	s.cfg.Keep = backup.Retention{KeepLast: 2, KeepWithinDays: 0}
	var stamps []string
	for range 4 {
		stamps = append(stamps, s.Create().Stamp)
	}
	s.start()
	tb := s.open()
	tb.click(`[data-open="prune"]`)
	require.Equal(t, "2", eval[string](tb, `document.querySelector("#keep_last").value`))
	tb.click(`#prune [type="submit"]`)
	tb.waitText("#ask", "Remove 2 snapshots?")
	for i, stamp := range stamps {
		require.Equal(t, i < 2, eval[bool](tb, `document.querySelector("#ask-text").innerText.includes(`+quote(stamp)+`)`), stamp)
	}
	tb.click("#ask [data-close]")
	require.Equal(t, stamps, s.Stamps())

	tb.click(`[data-open="prune"]`)
	tb.click(`#prune [type="submit"]`)
	tb.waitText("#ask", "Remove 2 snapshots?")
	tb.click("#ask-yes")
	tb.waitText("#messages", "2 snapshots were removed.")
	tb.wait(`document.querySelectorAll("tbody tr").length === 2`)
	require.Equal(t, stamps[2:], s.Stamps())

	tb.click(`[data-open="prune"]`)
	tb.click(`#prune [type="submit"]`)
	tb.waitText("#messages", "There is nothing to prune.")
}

// An exported archive can be imported.
func TestExportAndImport(t *testing.T) {
	s := newSite(t)
	stamp := s.Create().Stamp
	s.start()
	tb := s.open()
	archive := tb.download(func() {
		tb.click(rowOf(stamp) + " button[popovertarget]")
		tb.click(rowOf(stamp) + ` .menu a[href$="/export"]`)
	})
	require.Equal(t, stamp+".tar", filepath.Base(archive))
	require.NoError(t, os.RemoveAll(s.SnapshotPath(stamp)))
	tb.do(chromedp.Reload())
	tb.wait(`document.querySelector("#connection").dataset.state === "live" && !document.querySelector("tbody tr")`)
	tb.click(`[data-open="import"]`)
	tb.do(chromedp.SetUploadFiles(chromedp.CSS("#import-file"), []string{archive}))
	tb.click(`#import [type="submit"]`)
	tb.waitText("#messages", "Snapshot "+stamp+" was imported.")
	tb.waitText("tbody", stamp)
	require.Equal(t, []string{stamp}, s.RequireValid())
}

// While the server is gone, the page says so. When it is back, the page shows what
// happened meanwhile, and what became of what it had begun.
func TestServerGoesAwayAndComesBack(t *testing.T) {
	s := newSite(t)
	first := s.Create().Stamp
	s.Locker = newGate(t)
	s.start()
	tb := s.open()
	tb.expect("net::ERR_") // the browser's own complaints about the connection
	tb.click(`[data-open="create"]`)
	tb.click(`#create [type="submit"]`)
	tb.wait(`document.querySelector('#running li[data-phase="guard"]')`)

	s.stop()
	tb.waitText("#connection", "no connection to the server")
	require.Equal(t, "status", eval[string](tb, `document.querySelector("#connection").getAttribute("role")`))
	require.Contains(t, tb.text("tbody"), first, "what was known is still shown")
	tb.act(first, "validate")
	tb.waitText("#problems", "Validate "+first+": The server did not answer")

	s.Locker = nil
	second := s.Create().Stamp
	s.start()
	tb.wait(`document.querySelector("#connection").dataset.state === "live"`)
	tb.waitText("tbody", second)
	tb.wait(`!document.querySelector("#running li")`)
	tb.waitText("#problems", "Create a snapshot:")
}

// A page whose reader is signed out keeps what it shows, and says that it is not
// answered. When the reader is signed in again, it goes on.
func TestSignedOut(t *testing.T) {
	s := newSite(t)
	stamp := s.Create().Stamp
	s.start()
	tb := s.open()
	tb.expect("401")
	s.denied.Store(true)
	tb.act(stamp, "validate")
	tb.waitText("#problems", "Validate "+stamp+": The server answered 401")
	s.server.CloseClientConnections()
	tb.waitText("#connection", "no connection to the server")
	eval[any](tb, `document.dispatchEvent(new Event("visibilitychange")), null`)
	tb.expect("net::ERR_")
	require.Contains(t, tb.text("tbody"), stamp)
	s.denied.Store(false)
	tb.wait(`document.querySelector("#connection").dataset.state === "live"`)
	tb.act(stamp, "validate")
	tb.waitText("#messages", "is valid")
}

// What other processes do appears when the reader comes back to the page.
func TestOtherProcesses(t *testing.T) {
	s := newSite(t)
	s.start()
	tb := s.open()
	stamp := s.Create().Stamp
	require.Zero(t, tb.count("tbody tr"))
	eval[any](tb, `document.dispatchEvent(new Event("visibilitychange")), null`)
	tb.waitText("tbody", stamp)
}

// What the host does itself is shown like all else.
func TestScheduledCreate(t *testing.T) {
	s := newSite(t)
	s.start()
	tb := s.open()
	guard := newGate(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	defer func() {
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
	}()
	go func() {
		ended <- schedule.Run(ctx, s.scheduled(guard), schedule.Plan{
			Every: time.Hour, Verify: true,
			OnResult: func(r schedule.Result) {
				s.handler.Observe(string(r.Step), r.Stamp, r.Began, r.Created, r.Err)
			},
		})
	}()
	tb.wait(`document.querySelector('#running li[data-phase="guard"]')`)
	require.Contains(t, tb.text("#running"), "Scheduled backup")
	guard.open()
	tb.wait(`document.querySelector("tbody tr") && !document.querySelector("#running li")`)
	stamp := s.Stamps()[0]
	tb.waitText(".ended", "Create "+stamp+" succeeded")
	tb.waitText(".ended", "Validate "+stamp+" succeeded")
	tb.waitText(rowOf(stamp), "valid")
	require.Empty(t, tb.text("#messages"))
}

// scheduled returns the options of a schedule on the site's store.
func (s *site) scheduled(guard backup.Locker) backup.Options {
	opts := s.Options
	opts.Locker, opts.OnProgress = guard, s.handler.ObserveProgress
	return opts
}
