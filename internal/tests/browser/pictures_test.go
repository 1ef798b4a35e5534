package browser

import (
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var pictures = flag.String("pictures", "", "take pictures of the page for people to look at, into this `DIR`")

// TestPictures takes pictures of the page at three widths, in light and dark. There
// is nothing to compare them with: look at them after a change of the page.
func TestPictures(t *testing.T) {
	if *pictures == "" {
		t.Skip("no -pictures")
	}
	require.NoError(t, os.MkdirAll(*pictures, 0o755))
	s := newSite(t)
	stamps := s.history(24)
	seen := newGate(t)
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseSync {
			_, _ = seen.Lock(t.Context())
		}
	}
	s.start()
	tb := s.open()
	tb.act(stamps[22], "protect")
	tb.waitText("#messages", "is protected")
	tb.click("#messages button")
	s.Snapshot(stamps[20]).Flip(backuptest.RegistryFile, 3)
	tb.act(stamps[20], "validate")
	tb.waitText("#problems", "is not valid")
	tb.click("#problems button")
	tb.click(`[data-open="create"]`)
	tb.click(`#create [type="submit"]`)
	tb.wait(`document.querySelector('#running li[data-phase="sync"]')`)
	tb.nameStore()
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{360, 768, 1280} {
			tb.emulate(scheme, width)
			tb.picture(fmt.Sprintf("%d-%s.png", width, scheme), width, 2400)
		}
	}

	// The picture of docs/server.md.
	tb.emulate("light", 1000)
	tb.picture("server.png", 1000, 1160)
}

// history creates n snapshots, eleven hours apart, of which most are valid. Their
// metadata have been changed since, so that they look like those of a large store.
func (s *site) history(n int) (stamps []string) {
	s.T.Helper()
	now := backup.SystemClock().Now()
	s.Host = "srv1"
	for i := range n {
		s.Clock = backuptest.Clock{Time: now.Add(-time.Duration(n-i)*11*time.Hour + 10*time.Hour)}
		s.Verify, s.IncludeChroma = i%5 != 2, i%4 != 1
		s.Note = map[int]string{n - 2: "before the migration to schema 14", n - 3: "weekly\nwith the new embeddings"}[i]
		snapshot := s.CreateSnapshot()
		sizes := map[string]any{"db_size_bytes": int(80e6 + math.Pow(float64(i), 1.6)*4e5)}
		if s.IncludeChroma {
			sizes["chroma_snapshot_bytes"] = int(210e6 + math.Pow(float64(i), 1.7)*7e5)
		}
		snapshot.Set(sizes)
		stamps = append(stamps, snapshot.Stamp)
	}
	s.Clock, s.Note, s.IncludeChroma = nil, "", true
	return stamps
}

// nameStore replaces the path of the test's store, of which nobody wants a picture.
func (tb *tab) nameStore() {
	tb.t.Helper()
	eval[any](tb, `document.querySelector(".store bdi").textContent = "srv1:/srv/atocore/data/atocore.db", null`)
}

// picture writes a picture of the page down to some height.
func (tb *tab) picture(name string, width int64, most float64) {
	tb.t.Helper()
	metrics, err := chromedp.Call(tb.ctx, page.GetLayoutMetrics, cdp.Empty{})
	require.NoError(tb.t, err)
	beyond := true
	shot, err := chromedp.Call(tb.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{
		CaptureBeyondViewport: &beyond,
		Clip:                  &page.Viewport{Width: float64(width), Height: min(metrics.CSSContentSize.Height, most), Scale: 1},
	})
	require.NoError(tb.t, err)
	require.NoError(tb.t, os.WriteFile(filepath.Join(*pictures, name), shot.Data, 0o600))
}
