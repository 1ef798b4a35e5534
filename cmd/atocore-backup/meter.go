package main

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/atocore/backup"
)

// A meter shows how far a call has come: one line of a terminal that is
// rewritten, and gone when the work is over.
type meter struct {
	out  io.Writer
	bar  *progressbar.ProgressBar
	last backup.Progress
}

// show follows the work. Each phase has a bar of its own; one whose total is
// not known has a spinner.
func (m *meter) show(p backup.Progress) {
	if m.bar == nil || !continues(p, m.last) {
		m.clear()
		m.bar = newBar(m.out, p)
	}
	m.last = p
	m.bar.Set64(p.Bytes)
}

// continues tells whether p can be shown on the bar that showed last.
func continues(p, last backup.Progress) bool {
	return p.Phase == last.Phase &&
		p.TotalBytes == last.TotalBytes &&
		p.Bytes >= last.Bytes &&
		countsBytes(p) == countsBytes(last)
}

func countsBytes(p backup.Progress) bool { return p.Bytes > 0 || p.TotalBytes > 0 }

func (m *meter) clear() {
	if m.bar != nil {
		m.bar.Clear()
		m.bar = nil
	}
}

func newBar(out io.Writer, p backup.Progress) *progressbar.ProgressBar {
	total := p.TotalBytes
	if total == 0 {
		total = -1
	}
	options := []progressbar.Option{
		progressbar.OptionSetWriter(out),
		progressbar.OptionSetDescription(phaseWords(p.Phase)),
		progressbar.OptionSetWidth(30),
		progressbar.OptionThrottle(100 * time.Millisecond),
		progressbar.OptionSetRenderBlankState(true),
		progressbar.OptionClearOnFinish(),
		// With an interval it would draw from a goroutine of its own, also
		// after it was cleared.
		progressbar.OptionSetSpinnerChangeInterval(0),
	}
	if countsBytes(p) {
		options = append(options, progressbar.OptionShowBytes(true), progressbar.OptionShowCount())
	}
	return progressbar.NewOptions64(total, options...)
}

func phaseWords(p backup.Phase) string {
	switch p {
	case backup.PhaseInit:
		return "preparing"
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
	case backup.PhaseValidateFiles:
		return "comparing files"
	case backup.PhaseValidateDatabase:
		return "checking database"
	}
	return string(p)
}
