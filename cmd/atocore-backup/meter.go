package main

import (
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/atocore/backup"
)

// A meter shows the progress of a call on one line of a terminal, which it
// rewrites, and clears at the end. On a narrow terminal it shows words only: a
// line that wraps could not be rewritten.
type meter struct {
	out   *os.File
	bar   *progressbar.ProgressBar
	words string // the line on a narrow terminal
	last  backup.Progress
	names map[backup.Phase]string // of phases that this command calls otherwise than phaseName
}

// The columns of a terminal that a bar takes at most beside its 30 blocks, with
// and without the times, and the fewest blocks.
const (
	besideBar   = 62
	timesOfBar  = 20
	longBar     = 30
	shortestBar = 6
)

// show displays p: the share of the whole call, and the phase with its own
// progress bar, or a spinner if its total is not known.
func (m *meter) show(p backup.Progress) {
	width := widthOf(m.out)
	if width < besideBar+shortestBar {
		m.showWords(p, width)
		return
	}
	if m.bar == nil || !continues(p, m.last) {
		m.clear()
		m.bar = m.newBar(p, width)
	}
	m.last = p
	done, _, _ := extent(p)
	m.bar.Describe(m.shareAndPhase(p))
	m.bar.Set64(done)
}

// continues reports whether p can be shown on the bar that last was shown on.
func continues(p, last backup.Progress) bool {
	done, total, bytes := extent(p)
	lastDone, lastTotal, lastBytes := extent(last)
	return p.Phase == last.Phase && total == lastTotal && done >= lastDone && bytes == lastBytes
}

// extent returns the numbers that a bar shows: bytes, or files if p counts no
// bytes. total is -1 if it is not known.
func extent(p backup.Progress) (done, total int64, bytes bool) {
	switch {
	case p.TotalBytes > 0:
		return p.Bytes, p.TotalBytes, true
	case p.Bytes > 0:
		return p.Bytes, -1, true
	case p.TotalFiles > 0:
		return p.Files, p.TotalFiles, false
	}
	return 0, -1, false
}

// showWords displays the phase, and the share of the whole call.
func (m *meter) showWords(p backup.Progress, width int) {
	words, _ := cut(fmt.Sprintf("%s %d%%", m.phaseName(p.Phase), percent(p)), width-1) // in the last column the cursor would wrap
	if words == m.words {
		return
	}
	m.clear()
	m.words = words
	fmt.Fprintf(m.out, "\r%s\x1b[K", words)
}

func (m *meter) clear() {
	if m.words != "" {
		m.words = ""
		fmt.Fprint(m.out, "\r\x1b[K")
	}
	if m.bar != nil {
		m.bar.Clear()
		m.bar = nil
	}
}

func (m *meter) newBar(p backup.Progress, width int) *progressbar.ProgressBar {
	_, total, bytes := extent(p)
	options := []progressbar.Option{
		progressbar.OptionSetWriter(m.out),
		progressbar.OptionSetDescription(m.shareAndPhase(p)),
		progressbar.OptionSetWidth(min(longBar, width-besideBar)),
		progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionSetRenderBlankState(true),
		progressbar.OptionClearOnFinish(),
		// With an interval, the spinner would be drawn by a separate goroutine,
		// even after it was cleared.
		progressbar.OptionSetSpinnerChangeInterval(0),
	}
	if width < besideBar+timesOfBar+longBar {
		options = append(options, progressbar.OptionSetElapsedTime(false), progressbar.OptionSetPredictTime(false))
	}
	if bytes || total > 0 {
		options = append(options, progressbar.OptionShowBytes(bytes), progressbar.OptionShowCount())
	}
	return progressbar.NewOptions64(total, options...)
}

// percent returns the share of the whole call, which is not 100 before its end.
func percent(p backup.Progress) int { return int(p.Share * 100) }

// shareAndPhase returns the text before a bar.
func (m *meter) shareAndPhase(p backup.Progress) string {
	return fmt.Sprintf("%2d%% %s", percent(p), m.phaseName(p.Phase))
}

func (m *meter) phaseName(p backup.Phase) string {
	if name, ok := m.names[p]; ok {
		return name
	}
	return phaseName(p)
}

func phaseName(p backup.Phase) string {
	switch p {
	case backup.PhaseInit:
		return "preparing"
	case backup.PhaseWait:
		return "waiting"
	case backup.PhaseGuard:
		return "waiting for the guard"
	case backup.PhaseDatabase:
		return "copying database"
	case backup.PhaseRegistry:
		return "copying registry"
	case backup.PhaseChroma:
		return "copying Chroma"
	case backup.PhaseSeal:
		return "sealing database"
	case backup.PhaseHash:
		return "hashing"
	case backup.PhaseSync:
		return "syncing"
	case backup.PhasePublish:
		return "publishing"
	case backup.PhaseExport:
		return "writing archive"
	case backup.PhaseImport:
		return "reading archive"
	case backup.PhasePrune:
		return "removing snapshots"
	case backup.PhaseCompare:
		return "comparing with store"
	case backup.PhaseStage:
		return "copying snapshot"
	case backup.PhaseSwap:
		return "replacing store"
	case backup.PhaseVerify:
		return "comparing with snapshot"
	case backup.PhaseValidateFiles:
		return "comparing files"
	case backup.PhaseValidateDatabase:
		return "checking database"
	}
	return string(p)
}
