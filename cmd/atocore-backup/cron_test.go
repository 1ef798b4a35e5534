package main

import (
	"testing"
	"time"
	_ "time/tzdata" // Berlin, wherever the tests run

	"github.com/stretchr/testify/require"
)

// Due times on the days on which the clocks change: each of its days has one, and
// an expression of every hour goes by real time.
func TestCron(t *testing.T) {
	for name, test := range map[string]struct {
		text, after string
		want        []string // in UTC
	}{
		"every night":           {"0 3 * * *", "2026-03-27 12:00", []string{"03-28 02:00", "03-29 01:00", "03-30 01:00"}},
		"a time that is lost":   {"30 2 * * *", "2026-03-27 12:00", []string{"03-28 01:30", "03-29 01:30", "03-30 00:30"}},
		"a time that is twice":  {"30 2 * * *", "2026-10-23 12:00", []string{"10-24 00:30", "10-25 00:30", "10-26 01:30"}},
		"between the two times": {"30 2 * * *", "2026-10-25 00:45", []string{"10-26 01:30", "10-27 01:30"}},
		"before the second":     {"30 2 * * *", "2026-10-25 01:15", []string{"10-26 01:30", "10-27 01:30"}},
		"every hour, spring":    {"0 * * * *", "2026-03-28 23:30", []string{"03-29 00:00", "03-29 01:00", "03-29 02:00"}},
		"every hour, autumn":    {"15 * * * *", "2026-10-24 23:30", []string{"10-25 00:15", "10-25 01:15", "10-25 02:15"}},
		"0-23":                  {"15 0-23 * * *", "2026-10-24 23:30", []string{"10-25 00:15", "10-25 01:15", "10-25 02:15"}},
		"every other hour":      {"0 */2 * * *", "2026-10-24 21:30", []string{"10-24 22:00", "10-25 00:00", "10-25 03:00"}},
		"by name":               {"@daily", "2026-03-28 12:00", []string{"03-28 23:00", "03-29 22:00"}},
		"days of the week":      {"0 4 * * mon-fri", "2026-07-03 12:00", []string{"07-06 02:00", "07-07 02:00"}},
		"in a zone of its own":  {"CRON_TZ=America/New_York 0 3 * * *", "2026-07-03 12:00", []string{"07-04 07:00", "07-05 07:00"}},
		"in UTC":                {"CRON_TZ=UTC 30 2 * * *", "2026-03-28 12:00", []string{"03-29 02:30", "03-30 02:30"}},
	} {
		t.Run(name, func(t *testing.T) {
			berlin, err := time.LoadLocation("Europe/Berlin")
			require.NoError(t, err)
			table, err := parseCron(test.text)
			require.NoError(t, err)
			at, err := time.Parse("2006-01-02 15:04", test.after)
			require.NoError(t, err)
			var got []string
			for range test.want {
				next := table.Next(at.In(berlin))
				require.True(t, next.After(at))
				got = append(got, next.UTC().Format("01-02 15:04"))
				at = next
			}
			require.Equal(t, test.want, got)
		})
	}
	never, err := parseCron("0 0 30 2 *")
	require.NoError(t, err)
	require.True(t, never.Next(time.Unix(0, 0)).IsZero())
}

func TestWrongCron(t *testing.T) {
	for _, text := range []string{"", "0 3 * *", "0 3 * * * *", "60 3 * * *", "@every 1h", "@often", "TZ=UTC", "CRON_TZ=UTC ", "TZ= ", "CRON_TZ=Mars/Base 0 3 * * *", "CRON_TZ= 0 3 * * *"} {
		_, err := parseCron(text)
		if text == "CRON_TZ= 0 3 * * *" { // as an empty TZ means
			require.NoError(t, err)
			continue
		}
		require.Error(t, err, "%q", text)
	}
}

func TestPeriods(t *testing.T) {
	for text, want := range map[string]struct {
		d     time.Duration
		shown string
	}{
		"90s": {90 * time.Second, "1m30s"}, "30m": {30 * time.Minute, "30m"}, "1.5h": {90 * time.Minute, "1h30m"}, "1h": {time.Hour, "1h"},
		"24h": {24 * time.Hour, "24h"}, "7d": {168 * time.Hour, "7d"}, "48h": {48 * time.Hour, "2d"}, "250ms": {time.Second / 4, "250ms"},
	} {
		var p period
		require.NoError(t, p.UnmarshalText([]byte(text)))
		require.Equal(t, want.d, time.Duration(p))
		require.Equal(t, want.shown, p.String())
	}
	for _, text := range []string{"", "0", "0s", "-1h", "d", "0d", "-1d", "1.5d", "99999999d", "1w", "1h1d", "soon"} {
		require.Error(t, new(period).UnmarshalText([]byte(text)), text)
	}
}
