package offsite

import (
	"time"

	"github.com/atocore/backup"
)

// interval is the time in which at most one report of a phase is passed on, as
// package backup does.
const interval = 50 * time.Millisecond

// A meter reports the progress of a call. Its share never goes back.
type meter struct {
	report func(backup.Progress) // nil if nobody wants to know
	clock  backup.Clock
	last   time.Time
	now    backup.Progress
}

func newMeter(opts backup.Options) *meter {
	m := &meter{report: opts.OnProgress, clock: opts.Clock}
	if m.clock == nil {
		m.clock = backup.SystemClock()
	}
	return m
}

// pass passes on a report of a part of the call that is done from one share of it
// to another.
func (m *meter) pass(p backup.Progress, from, to float64) {
	if m.report == nil {
		return
	}
	done := 0.0
	if p.TotalBytes > 0 {
		done = min(max(float64(p.Bytes)/float64(p.TotalBytes), 0), 1)
	}
	p.Share = max(m.now.Share, from+(to-from)*done)
	begins := p.Phase != m.now.Phase
	m.now = p
	now := m.clock.Now()
	if passed := now.Sub(m.last); begins || passed <= 0 || passed >= interval {
		m.last = now
		m.report(p)
	}
}

// Comparing takes about as long as storing what changed.
const (
	hashed   = 0.5
	uploaded = 0.99

	downloaded = 0.5
)

// hash reports that a snapshot is being compared.
func (m *meter) hash(path string, files, totalFiles, bytes, total int64) {
	m.pass(backup.Progress{Phase: backup.PhaseHash, Path: path, Files: files, TotalFiles: totalFiles, Bytes: bytes, TotalBytes: total}, 0, hashed)
}

// imported passes on a report of the import that ends a pull.
func (m *meter) imported(p backup.Progress) {
	p.Share = max(m.now.Share, downloaded+(1-downloaded)*p.Share)
	m.now = p
	m.report(p)
}

// done makes the last report of a call that has succeeded.
func (m *meter) done() {
	if m.report != nil && m.now.Phase != "" {
		m.now.Share = 1
		m.report(m.now)
	}
}
