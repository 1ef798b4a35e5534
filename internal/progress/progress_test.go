package progress

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A passed is a report that was passed on.
type passed struct {
	n     int
	share float64
}

// record returns a meter, the reports that it passes on, and a function that
// advances its clock.
func record(start time.Time) (*Meter[int], *[]passed, func(time.Duration)) {
	var got []passed
	now := start
	m := New(func() time.Time { return now }, func(n int, share float64) { got = append(got, passed{n, share}) })
	return m, &got, func(d time.Duration) { now = now.Add(d) }
}

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestShare(t *testing.T) {
	type report struct {
		phase       string
		done, total int64
		want        float64
	}
	plan := []Step{{"copy", 100, 1}, {"hash", 0, 2}, {"", 0, 1}}
	for name, tt := range map[string]struct {
		plan    []Step
		reports []report
	}{
		"in order":                   {plan, []report{{"copy", 0, 0, 0}, {"copy", 50, 0, 0.125}, {"hash", 0, 10, 0.25}, {"hash", 5, 10, 0.5}, {"hash", 10, 10, 0.75}}},
		"larger than expected":       {plan, []report{{"copy", 1000, 0, 0.25}, {"hash", 20, 10, 0.75}}},
		"a total replaces the size":  {plan, []report{{"copy", 50, 200, 0.0625}}},
		"unknown size":               {plan, []report{{"hash", 7, 0, 0.25}}},
		"negative":                   {plan, []report{{"copy", -5, -7, 0}, {"hash", -1, 10, 0.25}}},
		"an unknown phase":           {plan, []report{{"copy", 50, 0, 0.125}, {"wait", 9, 10, 0.125}, {"copy", 60, 0, 0.15}}},
		"repeated":                   {plan, []report{{"copy", 80, 0, 0.2}, {"wait", 0, 0, 0.2}, {"copy", 0, 0, 0.2}, {"copy", 90, 0, 0.225}}},
		"repeated from another step": {plan, []report{{"hash", 5, 10, 0.5}, {"copy", 90, 0, 0.5}, {"hash", 6, 10, 0.55}}},
		"the same phase twice": {[]Step{{"check", 10, 1}, {"copy", 10, 1}, {"check", 10, 2}}, []report{
			{"check", 10, 0, 0.25}, {"copy", 10, 0, 0.5}, {"check", 5, 0, 0.75}}},
		"not before the end":     {[]Step{{"copy", 10, 1}}, []report{{"copy", 10, 0, almost}}},
		"no plan":                {nil, []report{{"copy", 10, 10, 0}}},
		"no weights":             {[]Step{{"copy", 0, 0}}, []report{{"copy", 10, 10, 0}}},
		"sizes beyond all files": {[]Step{{"copy", 1<<63 - 1, 1 << 63}, {"hash", 1, 1 << 63}}, []report{{"copy", 1 << 62, 0, 0.25}}},
	} {
		t.Run(name, func(t *testing.T) {
			m, got, _ := record(noon)
			m.Plan(tt.plan)
			for i, r := range tt.reports {
				m.Report(r.phase, r.done, r.total, i)
				require.InDelta(t, r.want, (*got)[i].share, 1e-9, "report %d", i)
			}
			m.Finish()
			require.Equal(t, passed{len(tt.reports) - 1, 1}, (*got)[len(*got)-1])
		})
	}
}

// A later plan divides what is left.
func TestPlanAgain(t *testing.T) {
	m, got, _ := record(noon)
	m.Plan([]Step{{"copy", 10, 1}})
	m.Report("copy", 5, 0, 0)
	m.Plan([]Step{{"copy", 10, 1}, {"hash", 10, 1}})
	m.Report("hash", 0, 0, 1)
	require.Equal(t, []passed{{0, 0.5}, {1, 0.75}}, *got)
}

// Without a report there is nothing to finish, nor without a host that wants them.
func TestFinishWithoutAReport(t *testing.T) {
	m, got, _ := record(noon)
	m.Finish()
	require.Empty(t, *got)
	m = nil
	m.Plan([]Step{{"copy", 1, 1}})
	m.Report("copy", 1, 1, 0)
	m.Finish()
}

// Reports of a phase are passed on once in an Interval. The first and the last of
// a phase are never lost, and come in their order.
func TestRate(t *testing.T) {
	m, got, advance := record(noon)
	for i := range 1000 {
		m.Report("copy", 0, 0, i)
		advance(time.Millisecond)
	}
	m.Report("hash", 0, 0, 1000)
	m.Report("hash", 0, 0, 1001)
	m.Finish()
	require.Equal(t, 0, (*got)[0].n)
	require.Equal(t, []passed{{999, 0}, {1000, 0}, {1001, 1}}, (*got)[len(*got)-3:])
	require.Len(t, *got, 20+3)
	for i := range *got {
		require.True(t, i == 0 || (*got)[i].n > (*got)[i-1].n, "out of order")
	}
}

// A clock that stands still, as in tests of a host, loses no report, and neither
// does one that goes back each time. One that went back once doesn't stop reports
// until it is where it was.
func TestClocksThatAreWrong(t *testing.T) {
	for name, tt := range map[string]struct {
		start time.Time
		step  func(i int) time.Duration
		want  int
	}{
		"stands still":         {noon, func(int) time.Duration { return 0 }, 100},
		"stands still at zero": {time.Time{}, func(int) time.Duration { return 0 }, 100},
		"goes back":            {noon, func(int) time.Duration { return -time.Millisecond }, 100},
		"jumps back by a day once": {noon, func(i int) time.Duration {
			if i == 50 {
				return -24 * time.Hour
			}
			return time.Millisecond
		}, 3},
		"has coarse ticks": {noon, func(i int) time.Duration { return time.Duration(i%10/9) * 10 * time.Millisecond }, 10 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			m, got, advance := record(tt.start)
			for i := range 100 {
				m.Report("copy", 0, 0, i)
				advance(tt.step(i))
			}
			require.Len(t, *got, tt.want)
		})
	}
}

// A panic of the host doesn't make a report come twice.
func TestPanicInPass(t *testing.T) {
	calls := 0
	m := New(func() time.Time { return noon }, func(int, float64) { calls++; panic("enough") })
	require.Panics(t, func() { m.Report("copy", 0, 0, 0) })
	require.Panics(t, func() { m.Report("hash", 0, 0, 1) })
	require.Equal(t, 2, calls)
}
