package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/atocore/backup"
)

// A span is a length of time as restic writes it: 2y5m7d3h, in which m is
// months. Go's durations are accepted where they cannot be mistaken: 36h, 1.5h
// and 90s, but not 1h30m or 2m30s, of which restic would make months.
type span struct {
	years, months, days int
	time                time.Duration
}

// maxUnits is the largest number of years, months or days.
const maxUnits = 1_000_000

// UnmarshalText reads a span.
func (s *span) UnmarshalText(text []byte) error {
	rest := string(text)
	if rest == "" {
		return errors.New("a length of time is missing, for example 2y5m7d3h")
	}
	*s = span{}
	hours := 0
	seen := ""
	for rest != "" {
		digits, after := cutDigits(rest)
		if digits == "" || after == "" || strings.HasPrefix(after, "ms") {
			break
		}
		unit := after[:1]
		into, ok := map[string]*int{"y": &s.years, "m": &s.months, "d": &s.days, "h": &hours}[unit]
		if !ok {
			break
		}
		n, err := strconv.Atoi(digits)
		switch {
		case err != nil || n > maxUnits:
			return fmt.Errorf("%q is too long", text)
		case strings.Contains(seen, unit):
			return fmt.Errorf("%q has %s twice", text, unit)
		case unit == "m" && strings.Contains(seen, "h"):
			return ambiguous(text)
		}
		*into, rest = n, after[1:]
		seen += unit
	}
	s.time = time.Duration(hours) * time.Hour
	if rest == "" {
		return nil
	}
	clock, err := time.ParseDuration(rest)
	switch {
	case err != nil, clock < 0:
		return fmt.Errorf("%q is not a length of time such as 2y5m7d3h or 36h", text)
	case strings.Contains(seen, "m"), strings.Contains(strings.ReplaceAll(rest, "ms", ""), "m"):
		return ambiguous(text)
	}
	if s.time += clock; s.time < 0 {
		return fmt.Errorf("%q is too long", text)
	}
	return nil
}

func ambiguous(text []byte) error {
	return fmt.Errorf("%q is ambiguous: m is months, as in restic; write minutes as a part of an hour, for example 1.5h", text)
}

func cutDigits(s string) (digits, rest string) {
	rest = strings.TrimLeft(s, "0123456789")
	return s[:len(s)-len(rest)], rest
}

// String returns the span in words, such as "2 months 7 days 3h0m0s".
func (s span) String() string {
	var words []string
	for _, part := range []struct {
		n    int
		noun string
	}{{s.years, "year"}, {s.months, "month"}, {s.days, "day"}} {
		if part.n != 0 {
			words = append(words, count(int64(part.n), part.noun))
		}
	}
	if s.time != 0 || len(words) == 0 {
		words = append(words, s.time.String())
	}
	return strings.Join(words, " ")
}

// apply sets the rule of a retention.
func (s span) apply(keep *backup.Retention) {
	keep.KeepWithinYears, keep.KeepWithinMonths, keep.KeepWithinDays, keep.KeepWithin = s.years, s.months, s.days, s.time
}

// before returns the time that is the span before t, by the calendar and by the
// clock.
func (s span) before(t time.Time) time.Time {
	return t.UTC().AddDate(-s.years, -s.months, -s.days).Add(-s.time)
}

// A limit is the number of a keep rule, as restic takes it: "unlimited" and -1
// mean no limit.
type limit int

// Decode reads a limit. A value that begins with a hyphen, which kong would
// take for a flag, may be -1.
func (l *limit) Decode(ctx *kong.DecodeContext) error {
	if ctx.Scan.Peek().IsEOL() {
		return errors.New("a number is missing")
	}
	text := ctx.Scan.Pop().String()
	if text == "unlimited" {
		text = "-1"
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("%q is neither a number nor unlimited", text)
	}
	*l = limit(n)
	return nil
}
