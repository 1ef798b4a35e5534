package browser

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// check is a script whose value is a list of what is wrong with the page as it is
// shown: see its comments.
//
//go:embed testdata/accessible.js
var check string

// The page has names for its controls, an outline, enough contrast and no more
// width than the window, in light and dark, at three widths, with and without
// dialogs, and whatever its judgement is.
func TestAccessible(t *testing.T) {
	states := map[string]func(s *site, tb *tab){
		"nothing there": func(s *site, tb *tab) {},
		"one of each": func(s *site, tb *tab) {
			s.Note = "a note\nof two lines"
			damaged := s.CreateSnapshot()
			damaged.Flip("db/atocore.db", 5000)
			s.Note = ""
			good, unreadable := s.Create().Stamp, s.CreateSnapshot()
			unreadable.Write("backup-metadata.json", []byte("{"))
			tb.do(chromedp.Reload())
			tb.wait(`document.querySelectorAll("tbody tr").length === 3 && document.querySelector("#connection").dataset.state === "live"`)
			tb.act(good, "protect")
			tb.waitText("#messages", good)
			tb.act(damaged.Stamp, "validate")
			tb.waitText("#problems", "is not valid")
			tb.waitText(rowOf(damaged.Stamp), "not valid")
		},
		"menu":   func(s *site, tb *tab) { s.visitOne(tb); tb.click("td.actions button") },
		"create": func(s *site, tb *tab) { tb.click(`[data-open="create"]`) },
		"import": func(s *site, tb *tab) { tb.click(`[data-open="import"]`) },
		"prune":  func(s *site, tb *tab) { tb.click(`[data-open="prune"]`) },
		"question": func(s *site, tb *tab) {
			s.visitOne(tb)
			tb.act(s.Stamps()[0], "restore")
		},
	}
	for name, reach := range states {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.start()
			tb := s.open()
			reach(s, tb)
			for _, scheme := range []string{"light", "dark"} {
				for _, width := range []int64{320, 768, 1280} {
					tb.emulate(scheme, width)
					require.Empty(t, eval[[]string](tb, check), "%s, %d pixels", scheme, width)
				}
			}
			tb.requireNames()
		})
	}
}

// visitOne shows a snapshot.
func (s *site) visitOne(tb *tab) {
	s.T.Helper()
	s.Create()
	tb.do(chromedp.Reload())
	tb.wait(`document.querySelector("tbody tr") && document.querySelector("#connection").dataset.state === "live"`)
}

// emulate sets the color scheme and the width of the window.
func (tb *tab) emulate(scheme string, width int64) {
	tb.t.Helper()
	_, err := chromedp.Call(tb.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme},
		{Name: "prefers-reduced-motion", Value: "reduce"},
	}})
	require.NoError(tb.t, err)
	_, err = chromedp.Call(tb.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: 900, DeviceScaleFactor: 1, Mobile: width < 600,
	})
	require.NoError(tb.t, err)
	tb.wait(fmt.Sprintf(`innerWidth === %d && matchMedia("(prefers-color-scheme: %s)").matches`, width, scheme))
}

// requireNames checks that what a screen reader finds has a name, and that the table
// is one at any width.
func (tb *tab) requireNames() {
	tb.t.Helper()
	tree, err := chromedp.Call(tb.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	require.NoError(tb.t, err)
	named := map[string]bool{
		"button": true, "link": true, "textbox": true, "searchbox": true, "checkbox": true, "spinbutton": true,
		"progressbar": true, "image": true, "table": true, "dialog": true, "region": true, "columnheader": true,
	}
	for _, node := range tree.Nodes {
		if node.Ignored || node.Role == nil {
			continue
		}
		role := value(node.Role)
		if named[role] {
			require.NotEmpty(tb.t, value(node.Name), "a %s has no name", role)
		}
	}
}

// value returns a value of the accessibility tree that is a string.
func value(v *accessibility.Value) string {
	if v == nil {
		return ""
	}
	var text string
	_ = json.Unmarshal(v.Value, &text) // other values stand for nothing here
	return text
}
