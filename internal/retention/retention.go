// Package retention computes which snapshots a set of keep rules keeps, and
// why. The rules have the meaning that users of restic know.
//
// It is pure: it sees only times, and neither a clock nor a file. The caller
// decides which snapshots count, and which are kept regardless of the rules.
package retention

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Rules say which snapshots to keep. They add up: a snapshot is kept if any of
// them keeps it. All periods are in UTC; weeks are those of ISO 8601.
//
// Each count keeps the newest snapshot of each of that many periods, newest
// first, and only periods that have a snapshot count. A rule that has not used
// up its count keeps the oldest snapshot too. -1 means no limit, 0 means no
// rule.
type Rules struct {
	Last    int // the newest ones; every snapshot is a period of its own
	Hourly  int
	Daily   int
	Weekly  int
	Monthly int
	Yearly  int

	// Within keeps every snapshot that is less than this older than newest, the
	// argument of [Reasons]. The zero value is no rule.
	Within Span
}

// Check refuses rules with a bad number, or of which none keeps anything.
func (r Rules) Check() error {
	rules := r.Within != Span{}
	for _, n := range []int{r.Last, r.Hourly, r.Daily, r.Weekly, r.Monthly, r.Yearly} {
		if n < -1 {
			return fmt.Errorf("a retention count of %d (-1 means no limit)", n)
		}
		rules = rules || n != 0
	}
	switch w := r.Within; {
	case w.Time < 0, w.Years < 0, w.Months < 0, w.Days < 0:
		return fmt.Errorf("a retention of %v", w)
	case !rules:
		return errors.New("the retention keeps nothing")
	}
	return nil
}

// A Span is a length of time on the calendar: months and years have no fixed
// length.
type Span struct {
	Years, Months, Days int
	Time                time.Duration
}

// before returns the instant that is the span before t.
func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-s.Time)
}

// String returns the span in words, such as "2 years 1 month 36h0m0s".
func (s Span) String() string {
	var parts []string
	for _, p := range []struct {
		n    int
		noun string
	}{{s.Years, "year"}, {s.Months, "month"}, {s.Days, "day"}} {
		switch {
		case p.n == 1:
			parts = append(parts, "1 "+p.noun)
		case p.n != 0:
			parts = append(parts, fmt.Sprintf("%d %ss", p.n, p.noun))
		}
	}
	if s.Time != 0 || len(parts) == 0 {
		parts = append(parts, s.Time.String())
	}
	return strings.Join(parts, " ")
}

// period is one counting rule. of returns a number that differs between
// periods that follow each other; nth counts snapshots from 0, newest first.
type period struct {
	name string
	left int // how many more it keeps; negative if there is no limit
	of   func(t time.Time, nth int) int
	last int // the number of the period that it kept last
}

func (r *Rules) periods() []period {
	return []period{
		{name: "last", left: r.Last, of: func(_ time.Time, nth int) int { return nth }},
		{name: "hourly", left: r.Hourly, of: func(t time.Time, _ int) int { return (t.Year()*1000+t.YearDay())*100 + t.Hour() }},
		{name: "daily", left: r.Daily, of: func(t time.Time, _ int) int { return t.Year()*1000 + t.YearDay() }},
		{name: "weekly", left: r.Weekly, of: func(t time.Time, _ int) int { year, week := t.ISOWeek(); return year*100 + week }},
		{name: "monthly", left: r.Monthly, of: func(t time.Time, _ int) int { return t.Year()*100 + int(t.Month()) }},
		{name: "yearly", left: r.Yearly, of: func(t time.Time, _ int) int { return t.Year() }},
	}
}

// Reasons returns, for each of the snapshots that were created at these times,
// the reasons to keep it, such as "daily snapshot", "oldest yearly snapshot" or
// "within 1h0m0s". A snapshot that no rule keeps has no reasons. created is
// sorted, newest first. Ages for Within are relative to newest, which need not
// be one of created.
func Reasons(created []time.Time, rules Rules, newest time.Time) [][]string {
	reasons := make([][]string, len(created))
	periods := rules.periods()
	for nth, t := range created {
		t = t.UTC()
		add := func(reason string) { reasons[nth] = append(reasons[nth], reason) }
		if rules.Within != (Span{}) && t.After(rules.Within.before(newest.UTC())) {
			add("within " + rules.Within.String())
		}
		for i := range periods {
			p := &periods[i]
			if p.left == 0 {
				continue
			}
			value := p.of(t, nth)
			switch {
			case nth == 0 || value != p.last:
				add(p.name + " snapshot")
			case nth == len(created)-1:
				add("oldest " + p.name + " snapshot")
			default:
				continue
			}
			p.last = value
			if p.left > 0 {
				p.left--
			}
		}
	}
	return reasons
}
