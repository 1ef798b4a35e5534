// Package progress turns the reports of a call's phases into the share of the
// whole call that is done, and passes on as many of them as people can read.
//
// The share never goes back, also if a phase is repeated, left out, or larger
// than was expected. The package must not know which phases there are, nor what
// they do.
package progress

import (
	"slices"
	"time"
)

// Interval is the time in which at most one report of a phase is passed on,
// apart from its first and its last.
const Interval = 50 * time.Millisecond

// almost bounds the share until Finish.
const almost = 0.99

// A Step is a part of a call that is expected.
type Step struct {
	// Phase is the phase that does it. A step whose phase is never reported takes
	// its share when a later one begins.
	Phase string
	// Size is its expected size in the unit of its reports. It is used for reports
	// without a total.
	Size int64
	// Weight is its part of the whole, compared with the other steps.
	Weight float64
}

// A Meter passes on the reports of one call. T is a report. A nil Meter discards
// them.
type Meter[T any] struct {
	now  func() time.Time
	pass func(report T, share float64)

	steps []Step
	at    int     // the current step
	known bool    // whether the current phase is one of steps
	base  float64 // the share when they were planned
	share float64

	begun   bool
	phase   string
	current T
	held    bool      // current was not passed on yet
	last    time.Time // when a report was passed on
	moves   bool      // the clock has moved since the first report
}

// New returns a meter that passes reports on to pass, together with the share
// that is done. now is asked for the time at each report. If it stands still, or
// goes back, reports are passed on as if enough time had passed.
func New[T any](now func() time.Time, pass func(report T, share float64)) *Meter[T] {
	return &Meter[T]{now: now, pass: pass}
}

// Plan sets the steps that make up the rest of the call, in their order.
func (m *Meter[T]) Plan(steps []Step) {
	if m == nil {
		return
	}
	m.steps, m.at, m.base = steps, 0, m.share
	m.enter(m.phase)
}

// Report passes on a report of a phase of which done was done of total, which is
// 0 if it is not known. The first report of a phase is passed on at once, any
// other at once or later or not at all: at the latest when the next phase begins
// if it is the last of its phase, and not at all if a newer one comes before its
// turn.
func (m *Meter[T]) Report(phase string, done, total int64, report T) {
	if m == nil {
		return
	}
	begins := !m.begun || phase != m.phase
	if begins {
		m.flush()
		m.enter(phase)
	}
	m.advance(done, total)
	m.begun, m.phase, m.current, m.held = true, phase, report, true
	now := m.now()
	passed := now.Sub(m.last)
	m.moves = m.moves || !m.last.IsZero() && passed != 0
	if begins || !m.moves || passed < 0 || passed >= Interval {
		m.last = now
		m.flush()
	}
}

// Finish passes on the last report with the share 1, if there was a report.
func (m *Meter[T]) Finish() {
	if m != nil && m.begun {
		m.share, m.held = 1, true
		m.flush()
	}
}

// Flush passes on the last report of the current phase, if it was not yet, for a
// caller that does something else before the next phase begins.
func (m *Meter[T]) Flush() {
	if m != nil {
		m.flush()
	}
}

func (m *Meter[T]) flush() {
	if m.held {
		m.held = false // also if pass panics
		m.pass(m.current, m.share)
	}
}

// enter finds the step of a phase that begins: the current one or the next, or
// else, because the call repeats it, the first.
func (m *Meter[T]) enter(phase string) {
	is := func(step Step) bool { return step.Phase == phase && phase != "" }
	from := min(m.at, len(m.steps))
	i := slices.IndexFunc(m.steps[from:], is)
	if i >= 0 {
		i += from
	} else {
		i = slices.IndexFunc(m.steps[:from], is)
	}
	if m.known = i >= 0; m.known {
		m.at = i
	}
}

// advance computes the share. A total may come from a file that is not to be
// trusted.
func (m *Meter[T]) advance(done, total int64) {
	if !m.known {
		return
	}
	var before, all float64
	for i, step := range m.steps {
		if i < m.at {
			before += step.Weight
		}
		all += step.Weight
	}
	step := m.steps[m.at]
	if total <= 0 {
		total = step.Size
	}
	if total > 0 {
		before += step.Weight * min(max(float64(done)/float64(total), 0), 1)
	}
	if all > 0 {
		m.share = max(m.share, min(m.base+(1-m.base)*before/all, almost))
	}
}
