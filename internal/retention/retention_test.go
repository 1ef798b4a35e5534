package retention_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/retention"
)

// A row is a snapshot and the reasons to keep it, in short: without the word
// "snapshot", and separated by commas. Without a reason it is not kept.
type row struct{ created, reasons string }

func reasonsOf(short string) (long []string) {
	if short == "" {
		return nil
	}
	for _, reason := range strings.Split(short, ", ") {
		if !strings.HasPrefix(reason, "within") {
			reason += " snapshot"
		}
		long = append(long, reason)
	}
	return long
}

// The expected reasons are those that restic's manual ("Removing backup
// snapshots") and its ApplyPolicy have for the same times. Snapshots are newest
// first.
func TestReasons(t *testing.T) {
	type rules = retention.Rules
	// day returns nine snapshots of two days with these reasons, for rules by
	// the hour and the day.
	day := func(reasons ...string) []row {
		rows := []row{
			{"2026-11-24T11:59:59Z", ""},
			{"2026-11-24T11:30:00Z", ""},
			{"2026-11-24T11:00:00Z", ""},
			{"2026-11-24T10:59:59Z", ""},
			{"2026-11-24T07:00:00Z", ""},
			{"2026-11-24T00:00:00Z", ""},
			{"2026-11-23T23:59:59Z", ""},
			{"2026-11-23T11:59:59Z", ""},
			{"2026-11-23T11:00:00Z", ""},
		}
		for i, r := range reasons {
			rows[i].reasons = r
		}
		return rows
	}
	tests := []struct {
		name  string
		rules rules
		rows  []row
	}{
		{"no snapshots", rules{Last: 1, Yearly: -1, Within: retention.Span{Time: time.Hour}}, nil},
		{"no rules", rules{}, day()},
		{"last", rules{Last: 3},
			day("last", "last", "last")},
		{"last, of fewer", rules{Last: 10},
			day("last", "last", "last", "last", "last", "last", "last", "last", "last")},
		{"last, no limit", rules{Last: -1},
			day("last", "last", "last", "last", "last", "last", "last", "last", "last")},
		{"hourly keeps the newest of each hour", rules{Hourly: 3},
			day("hourly", "", "", "hourly", "hourly")},
		{"hours of different days differ, and those without a snapshot don't count", rules{Hourly: 6},
			day("hourly", "", "", "hourly", "hourly", "hourly", "hourly", "hourly")},
		{"a rule that has not used up its count keeps the oldest", rules{Hourly: 7},
			day("hourly", "", "", "hourly", "hourly", "hourly", "hourly", "hourly", "oldest hourly")},
		{"hourly, no limit", rules{Hourly: -1},
			day("hourly", "", "", "hourly", "hourly", "hourly", "hourly", "hourly", "oldest hourly")},
		{"daily", rules{Daily: 1},
			day("daily")},
		{"days end at midnight in UTC", rules{Daily: 2},
			day("daily", "", "", "", "", "", "daily")},
		{"daily, with one left for the oldest", rules{Daily: 3},
			day("daily", "", "", "", "", "", "daily", "", "oldest daily")},
		{"weekly, of one week", rules{Weekly: 1},
			day("weekly")},
		{"weekly, with one left for the oldest", rules{Weekly: 2},
			day("weekly", "", "", "", "", "", "", "", "oldest weekly")},
		{"rules add up", rules{Last: 2, Hourly: 2, Daily: 2},
			day("last, hourly, daily", "last", "", "hourly", "", "", "daily")},
		{"each rule keeps the oldest for itself", rules{Monthly: 2, Yearly: 2},
			day("monthly, yearly", "", "", "", "", "", "", "", "oldest monthly, oldest yearly")},
		{"within is relative to the newest, and excludes the limit itself", rules{Within: retention.Span{Time: time.Hour}},
			day("within 1h0m0s", "within 1h0m0s", "within 1h0m0s")},
		{"within, to a microsecond", rules{Within: retention.Span{Time: time.Hour}}, []row{
			{"2026-11-24T11:00:00.5Z", "within 1h0m0s"},
			{"2026-11-24T10:00:00.500001Z", "within 1h0m0s"},
			{"2026-11-24T10:00:00.5Z", ""},
		}},
		{"within, the longest duration", rules{Within: retention.Span{Time: 1<<63 - 1}}, []row{
			{"2026-11-24T11:00:00Z", "within 2562047h47m16.854775807s"},
			{"1990-01-01T00:00:00Z", "within 2562047h47m16.854775807s"},
			{"0001-01-01T00:00:00Z", ""},
		}},
		{"within and rules", rules{Within: retention.Span{Time: time.Minute}, Daily: 2},
			day("within 1m0s, daily", "", "", "", "", "", "daily")},
		{"within, a nanosecond", rules{Within: retention.Span{Time: time.Nanosecond}}, []row{
			{"2001-01-01T00:00:00Z", "within 1ns"},
			{"2000-01-01T00:00:00Z", ""},
		}},

		{"one snapshot", rules{Yearly: 1}, []row{
			{"2001-01-01T00:00:00Z", "yearly"},
		}},
		{"the same day of other months and years is another day", rules{Hourly: -1, Daily: -1}, []row{
			{"2026-11-24T09:00:00Z", "hourly, daily"},
			{"2026-10-24T09:00:00Z", "hourly, daily"},
			{"2025-10-24T09:00:00Z", "hourly, daily"},
			{"2024-12-31T23:00:00Z", "hourly, daily"},
			{"2024-01-01T00:00:00Z", "hourly, daily"},
		}},
		{"weeks begin on Monday", rules{Weekly: 3}, []row{
			{"2026-11-23T00:00:00Z", "weekly"},
			{"2026-11-22T23:59:59Z", "weekly"},
			{"2026-11-16T00:00:00Z", ""},
			{"2026-11-15T23:59:59Z", "weekly"},
			{"2026-11-09T00:00:00Z", ""},
		}},
		{"a week at the turn of the year is one", rules{Weekly: -1}, []row{
			{"2025-01-06T00:00:00Z", "weekly"},
			{"2025-01-05T00:00:00Z", "weekly"}, // Sunday of 2025-W01
			{"2025-01-01T00:00:00Z", ""},
			{"2024-12-30T00:00:00Z", ""},       // its Monday
			{"2024-12-29T00:00:00Z", "weekly"}, // 2024-W52
			{"2024-01-01T00:00:00Z", "weekly"}, // 2024-W01
			{"2022-01-02T00:00:00Z", "weekly"}, // 2021-W52
			{"2021-01-03T00:00:00Z", "weekly"}, // 2020-W53
			{"2020-12-28T00:00:00Z", "oldest weekly"},
		}},
		{"monthly", rules{Monthly: 4}, []row{
			{"2026-11-01T00:00:00Z", "monthly"},
			{"2026-10-31T23:59:59Z", "monthly"},
			{"2026-10-01T00:00:00Z", ""},
			{"2025-10-31T00:00:00Z", "monthly"},
			{"2025-02-28T00:00:00Z", "monthly"},
			{"2025-02-01T00:00:00Z", ""},
			{"2025-01-31T00:00:00Z", ""},
		}},
		{"yearly", rules{Yearly: 3}, []row{
			{"2026-01-01T00:00:00Z", "yearly"},
			{"2025-12-31T23:59:59Z", "yearly"},
			{"2025-01-01T00:00:00Z", ""},
			{"1999-06-01T00:00:00Z", "yearly"},
			{"1998-06-01T00:00:00Z", ""},
		}},
		{"all rules, over a year", rules{Last: 1, Daily: 2, Weekly: 3, Monthly: 3, Yearly: -1}, []row{
			{"2026-11-24T10:00:00Z", "last, daily, weekly, monthly, yearly"},
			{"2026-11-24T09:00:00Z", ""},
			{"2026-11-23T10:00:00Z", "daily"},
			{"2026-11-22T10:00:00Z", "weekly"},
			{"2026-11-21T10:00:00Z", ""},
			{"2026-11-15T10:00:00Z", "weekly"},
			{"2026-11-08T10:00:00Z", ""},
			{"2026-10-31T10:00:00Z", "monthly"},
			{"2026-10-01T10:00:00Z", ""},
			{"2026-09-30T10:00:00Z", "monthly"},
			{"2026-08-30T10:00:00Z", ""},
			{"2025-12-31T10:00:00Z", "yearly"},
			{"2025-01-01T10:00:00Z", "oldest yearly"},
		}},
		{"periods are in UTC, whatever the zone of a time is", rules{Daily: 2}, []row{
			{"2026-11-24T20:00:00+14:00", "daily"}, // 06:00
			{"2026-11-24T13:59:59+14:00", "daily"}, // 23:59:59 the day before
			{"2026-11-22T23:00:00-12:00", ""},      // 11:00 of the 23rd
		}},
		{"snapshots of one instant count each", rules{Last: 2, Hourly: -1}, []row{
			{"2026-11-24T11:00:00Z", "last, hourly"},
			{"2026-11-24T11:00:00Z", "last"},
			{"2026-11-24T11:00:00Z", ""},
			{"2026-11-24T11:00:00Z", "oldest hourly"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			created := make([]time.Time, len(tt.rows))
			want := make([][]string, len(tt.rows))
			for i, r := range tt.rows {
				created[i] = parse(t, r.created)
				want[i] = reasonsOf(r.reasons)
			}
			var newest time.Time
			if len(created) > 0 {
				newest = created[0]
			}
			require.Equal(t, want, retention.Reasons(created, tt.rules, newest))
		})
	}
}

// The newest time for Within may be that of a snapshot that the rules do not
// see.
func TestReasonsWithinOfAnotherSnapshot(t *testing.T) {
	created := []time.Time{parse(t, "2026-11-24T10:30:00Z"), parse(t, "2026-11-24T09:30:00Z")}
	rules := retention.Rules{Within: retention.Span{Time: time.Hour}}
	require.Equal(t, [][]string{{"within 1h0m0s"}, nil}, retention.Reasons(created, rules, parse(t, "2026-11-24T11:00:00Z")))
	require.Equal(t, [][]string{nil, nil}, retention.Reasons(created, rules, parse(t, "2026-11-24T12:00:00Z")))
}

func parse(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	require.NoError(t, err)
	return at
}
