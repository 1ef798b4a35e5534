package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/atocore/backup/schedule"
)

// parseCron reads a cron expression: five fields, or a name such as @daily, with
// CRON_TZ=ZONE before it if it is not in the zone of the system.
func parseCron(text string) (schedule.Timetable, error) {
	// The parser panics if nothing follows the zone.
	if strings.HasPrefix(text, "TZ=") || strings.HasPrefix(text, "CRON_TZ=") {
		if _, expression, _ := strings.Cut(text, " "); strings.TrimSpace(expression) == "" {
			return nil, fmt.Errorf("%q has a zone and no times", text)
		}
	}
	parsed, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%q is not a cron expression such as \"0 3 * * *\": %w", text, err)
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, fmt.Errorf("%q names no times: give --every", text)
	}
	return timetable{spec}, nil
}

// A timetable is a cron expression that keeps to cron(8) when clocks change:
// expressions of every hour go by real time, and others by the wall clock, so that
// they are due once on each of their days. The library by itself leaves out a time
// that the wall clock skips, and has one twice that comes twice.
type timetable struct{ spec *cron.SpecSchedule }

// Next returns the first due time after t.
func (c timetable) Next(t time.Time) time.Time {
	const everyHour = 1<<24 - 1
	zone := c.spec.Location
	if zone == time.Local {
		zone = t.Location()
	}
	if c.spec.Hour&everyHour == everyHour {
		return c.spec.Next(t)
	}
	// The wall clock is taken for one of UTC, which is never changed.
	wall := *c.spec
	wall.Location = time.UTC
	for at := onWall(t.In(zone), time.UTC); ; {
		if at = wall.Next(at); at.IsZero() {
			return at
		}
		// Date moves a time that is skipped.
		if due := onWall(at, zone); due.After(t) {
			return due
		}
	}
}

// onWall returns the time at which a wall clock of the zone first shows what t
// shows. If it skips that, the time is as much later.
func onWall(t time.Time, zone *time.Location) time.Time {
	at := time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), zone)
	// For a time that comes twice, Date may return either. The offset before the
	// clocks changed makes it the first one.
	_, now := at.Zone()
	_, before := at.Add(-6 * time.Hour).Zone()
	if first := at.Add(time.Duration(now-before) * time.Second); first.Before(at) && first.Format(time.TimeOnly) == at.Format(time.TimeOnly) {
		return first
	}
	return at
}

// A period is a positive length of time: 90s, 30m, 1.5h, 24h, and 7d.
type period time.Duration

// UnmarshalText reads a period.
func (p *period) UnmarshalText(text []byte) error {
	const most = 100 * 366 // days
	if days, ok := strings.CutSuffix(string(text), "d"); ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n == 0 || n > most {
			return fmt.Errorf("%q is not a number of days", text)
		}
		*p = period(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	d, err := time.ParseDuration(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a length of time such as 30m, 24h or 7d", text)
	case d <= 0:
		return errors.New("it must be positive")
	}
	*p = period(d)
	return nil
}

// String returns the period with a unit of days if it is a number of these.
func (p period) String() string {
	const day = period(24 * time.Hour)
	if p > day && p%day == 0 {
		return fmt.Sprintf("%dd", p/day)
	}
	text := time.Duration(p).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}
