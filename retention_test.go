package backup_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// An expectation is a snapshot and what a prune must do with it.
type expectation struct {
	created string // created_at
	reasons string // why it is kept, in the form of longReasons; empty if it is removed
	stamp   string // if empty, the one that follows from created
}

// name returns the snapshot's stamp.
func (f expectation) name(t *testing.T) string {
	t.Helper()
	if f.stamp != "" {
		return f.stamp
	}
	created, err := time.Parse(time.RFC3339, f.created)
	require.NoError(t, err)
	return stampOf(created)
}

// longReasons returns the reasons that a prune gives, from their short forms.
func longReasons(short string) (long []string) {
	for _, reason := range strings.Split(short, ", ") {
		switch {
		case reason == "future":
			reason = "dated in the future"
		case reason == "safety":
			reason = "safety snapshot of the last restore"
		case !strings.HasPrefix(reason, "within"):
			reason += " snapshot"
		}
		long = append(long, reason)
	}
	return long
}

// The rules keep what restic keeps of snapshots of the same times, according to its
// manual ("Removing backup snapshots") and its ApplyPolicy. The time is
// backuptest.Noon. Snapshots are listed newest first.
func TestRetention(t *testing.T) {
	type retention = backup.Retention
	day := []expectation{ // nine snapshots of two days, for rules by the hour and by the day
		{"2026-11-24T11:59:59Z", "", ""},
		{"2026-11-24T11:30:00Z", "", ""},
		{"2026-11-24T11:00:00Z", "", ""},
		{"2026-11-24T10:59:59Z", "", ""},
		{"2026-11-24T07:00:00Z", "", ""},
		{"2026-11-24T00:00:00Z", "", ""},
		{"2026-11-23T23:59:59Z", "", ""},
		{"2026-11-23T11:59:59Z", "", ""},
		{"2026-11-23T11:00:00Z", "", ""},
	}
	// with returns day with these reasons.
	with := func(reasons ...string) []expectation {
		snapshots := slices.Clone(day)
		for i, r := range reasons {
			snapshots[i].reasons = r
		}
		return snapshots
	}
	tests := []struct {
		name      string
		keep      retention
		snapshots []expectation
	}{
		{"last", retention{KeepLast: 3},
			with("newest, last", "last", "last")},
		{"last, of fewer", retention{KeepLast: 10},
			with("newest, last", "last", "last", "last", "last", "last", "last", "last", "last")},
		{"last, no limit", retention{KeepLast: -1},
			with("newest, last", "last", "last", "last", "last", "last", "last", "last", "last")},
		{"hourly keeps the newest of each hour", retention{KeepHourly: 3},
			with("newest, hourly", "", "", "hourly", "hourly")},
		{"hours of different days differ, and hours without a snapshot do not count", retention{KeepHourly: 6},
			with("newest, hourly", "", "", "hourly", "hourly", "hourly", "hourly", "hourly")},
		{"a rule that could keep more keeps the oldest", retention{KeepHourly: 7},
			with("newest, hourly", "", "", "hourly", "hourly", "hourly", "hourly", "hourly", "oldest hourly")},
		{"hourly, no limit", retention{KeepHourly: -1},
			with("newest, hourly", "", "", "hourly", "hourly", "hourly", "hourly", "hourly", "oldest hourly")},
		{"daily", retention{KeepDaily: 1},
			with("newest, daily")},
		{"days end at midnight in UTC", retention{KeepDaily: 2},
			with("newest, daily", "", "", "", "", "", "daily")},
		{"daily, with one left for the oldest", retention{KeepDaily: 3},
			with("newest, daily", "", "", "", "", "", "daily", "", "oldest daily")},
		{"weekly, of one week", retention{KeepWeekly: 1},
			with("newest, weekly")},
		{"weekly, with one left for the oldest", retention{KeepWeekly: 2},
			with("newest, weekly", "", "", "", "", "", "", "", "oldest weekly")},
		{"rules add up", retention{KeepLast: 2, KeepHourly: 2, KeepDaily: 2},
			with("newest, last, hourly, daily", "last", "", "hourly", "", "", "daily")},
		{"each rule keeps the oldest for itself", retention{KeepMonthly: 2, KeepYearly: 2},
			with("newest, monthly, yearly", "", "", "", "", "", "", "", "oldest monthly, oldest yearly")},
		{"within is counted from the newest, and excludes the limit itself", retention{KeepWithin: time.Hour},
			with("newest, within 1h0m0s", "within 1h0m0s", "within 1h0m0s")},
		{"within, to a microsecond", retention{KeepWithin: time.Hour}, []expectation{
			{"2026-11-24T11:00:00.5Z", "newest, within 1h0m0s", ""},
			{"2026-11-24T10:00:00.500001Z", "within 1h0m0s", ""},
			{"2026-11-24T10:00:00.5Z", "", "before"},
		}},
		{"within, beyond all time", retention{KeepWithin: 1<<63 - 1}, []expectation{
			{"2026-11-24T11:00:00Z", "newest, within 2562047h47m16.854775807s", ""},
			{"1990-01-01T00:00:00Z", "within 2562047h47m16.854775807s", ""},
			{"0001-01-01T00:00:00Z", "", ""},
		}},
		{"within and rules", retention{KeepWithin: time.Minute, KeepDaily: 2},
			with("newest, within 1m0s, daily", "", "", "", "", "", "daily")},

		{"one snapshot", retention{KeepYearly: 1}, []expectation{
			{"2001-01-01T00:00:00Z", "newest, yearly", ""},
		}},
		{"the newest is kept whatever the rules say", retention{KeepWithin: time.Nanosecond}, []expectation{
			{"2001-01-01T00:00:00Z", "newest, within 1ns", ""},
			{"2000-01-01T00:00:00Z", "", ""},
		}},
		{"days of other months and years are others", retention{KeepHourly: -1, KeepDaily: -1}, []expectation{
			{"2026-11-24T09:00:00Z", "newest, hourly, daily", ""},
			{"2026-10-24T09:00:00Z", "hourly, daily", ""},
			{"2025-10-24T09:00:00Z", "hourly, daily", ""},
			{"2024-12-31T23:00:00Z", "hourly, daily", ""},
			{"2024-01-01T00:00:00Z", "hourly, daily", ""},
		}},
		{"weeks begin on Monday", retention{KeepWeekly: 3}, []expectation{
			{"2026-11-23T00:00:00Z", "newest, weekly", ""},
			{"2026-11-22T23:59:59Z", "weekly", ""},
			{"2026-11-16T00:00:00Z", "", ""},
			{"2026-11-15T23:59:59Z", "weekly", ""},
			{"2026-11-09T00:00:00Z", "", ""},
		}},
		{"a week at the turn of the year is one", retention{KeepWeekly: -1}, []expectation{
			{"2025-01-06T00:00:00Z", "newest, weekly", ""},
			{"2025-01-05T00:00:00Z", "weekly", ""}, // Sunday of 2025-W01
			{"2025-01-01T00:00:00Z", "", ""},
			{"2024-12-30T00:00:00Z", "", ""},       // its Monday
			{"2024-12-29T00:00:00Z", "weekly", ""}, // 2024-W52
			{"2024-01-01T00:00:00Z", "weekly", ""}, // 2024-W01
			{"2022-01-02T00:00:00Z", "weekly", ""}, // 2021-W52
			{"2021-01-03T00:00:00Z", "weekly", ""}, // 2020-W53
			{"2020-12-28T00:00:00Z", "oldest weekly", ""},
		}},
		{"monthly", retention{KeepMonthly: 4}, []expectation{
			{"2026-11-01T00:00:00Z", "newest, monthly", ""},
			{"2026-10-31T23:59:59Z", "monthly", ""},
			{"2026-10-01T00:00:00Z", "", ""},
			{"2025-10-31T00:00:00Z", "monthly", ""},
			{"2025-02-28T00:00:00Z", "monthly", ""},
			{"2025-02-01T00:00:00Z", "", ""},
			{"2025-01-31T00:00:00Z", "", ""},
		}},
		{"yearly", retention{KeepYearly: 3}, []expectation{
			{"2026-01-01T00:00:00Z", "newest, yearly", ""},
			{"2025-12-31T23:59:59Z", "yearly", ""},
			{"2025-01-01T00:00:00Z", "", ""},
			{"1999-06-01T00:00:00Z", "yearly", ""},
			{"1998-06-01T00:00:00Z", "", ""},
		}},
		{"all rules of a year's work", retention{KeepLast: 1, KeepDaily: 2, KeepWeekly: 3, KeepMonthly: 3, KeepYearly: -1}, []expectation{
			{"2026-11-24T10:00:00Z", "newest, last, daily, weekly, monthly, yearly", ""},
			{"2026-11-24T09:00:00Z", "", ""},
			{"2026-11-23T10:00:00Z", "daily", ""},
			{"2026-11-22T10:00:00Z", "weekly", ""},
			{"2026-11-21T10:00:00Z", "", ""},
			{"2026-11-15T10:00:00Z", "weekly", ""},
			{"2026-11-08T10:00:00Z", "", ""},
			{"2026-10-31T10:00:00Z", "monthly", ""},
			{"2026-10-01T10:00:00Z", "", ""},
			{"2026-09-30T10:00:00Z", "monthly", ""},
			{"2026-08-30T10:00:00Z", "", ""},
			{"2025-12-31T10:00:00Z", "yearly", ""},
			{"2025-01-01T10:00:00Z", "oldest yearly", ""},
		}},
		{"days are those of UTC, whatever the zone", retention{KeepDaily: 2}, []expectation{
			{"2026-11-24T20:00:00+14:00", "newest, daily", ""},    // 06:00
			{"2026-11-24T13:59:59+14:00", "daily", ""},            // 23:59:59 the day before
			{"2026-11-22T23:00:00-12:00", "", "20261123T110000Z"}, // 11:00 of the 23rd
		}},

		{"a snapshot from the future is not counted", retention{KeepLast: 1}, []expectation{
			{"2031-01-01T00:00:00Z", "future", ""},
			{"2026-11-24T12:00:00.123457Z", "future", ""},
			{"2026-11-24T12:00:00.123456Z", "newest, last", "now"},
			{"2026-11-24T11:00:00Z", "", ""},
		}},
		{"the future is not the newest", retention{KeepWithin: time.Hour}, []expectation{
			{"2026-11-24T12:30:00Z", "future", ""},
			{"2026-11-24T11:00:00Z", "newest, within 1h0m0s", ""},
			{"2026-11-24T10:30:00Z", "within 1h0m0s", ""},
			{"2026-11-24T09:30:00Z", "", ""},
		}},
		{"the future does not hide the oldest", retention{KeepDaily: 2}, []expectation{
			{"2026-11-25T00:00:00Z", "future", ""},
			{"2026-11-24T11:00:00Z", "newest, daily", ""},
			{"2026-11-24T10:00:00Z", "", ""},
			{"2026-11-24T09:00:00Z", "oldest daily", ""},
		}},
		{"only snapshots from the future", retention{KeepLast: 1}, []expectation{
			{"9999-12-31T23:59:59Z", "future", ""},
			{"2026-11-25T00:00:00Z", "future", ""},
		}},

		{"the stamp decides in one instant", retention{KeepLast: 2}, []expectation{
			{"2026-11-24T11:00:00Z", "newest, last", "20261124T110000Z-1000"},
			{"2026-11-24T11:00:00Z", "last", "20261124T110000Z-999"},
			{"2026-11-24T11:00:00Z", "", "20261124T110000Z-010"},
			{"2026-11-24T11:00:00Z", "", "20261124T110000Z-002"},
			{"2026-11-24T11:00:00Z", "", "20261124T110000Z"},
		}},
		{"the time decides before the stamp", retention{KeepLast: 1}, []expectation{
			{"2026-11-24T11:00:00.2Z", "newest, last", "20261124T110000Z"},
			{"2026-11-24T11:00:00.1Z", "", "20261124T110000Z-002"},
		}},
		{"a renamed snapshot has the age that it records", retention{KeepLast: 2}, []expectation{
			{"2026-11-24T11:00:00Z", "newest, last", "19990101T000000Z"},
			{"2026-11-24T10:00:00Z", "last", "before the upgrade"},
			{"2026-11-24T09:00:00Z", "", "20991231T235959Z"},
			{"2026-11-24T08:00:00Z", "", "a"},
		}},
	}
	model := newSnapshotSet(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // it mostly waits for the disk
			s := model.empty(t)
			var want backup.PruneResult
			for _, f := range tt.snapshots { // newest first, so the times of the files have the wrong order
				stamp := f.name(t)
				created, err := time.Parse(time.RFC3339, f.created)
				require.NoError(t, err)
				s.put(stamp, map[string]any{"created_at": f.created})
				if f.reasons == "" {
					want.Removed = append(want.Removed, stamp)
					want.Cost.Files++
					want.Cost.Bytes += backuptest.FileSize(t, s.model.Path(backuptest.DBFile))
				} else {
					want.Kept = append(want.Kept, backup.KeptSnapshot{Stamp: stamp, CreatedAt: created.UTC(), Reasons: longReasons(f.reasons)})
				}
			}

			before := backuptest.ReadTree(t, s.BackupDir)
			dry := tt.keep
			dry.DryRun = true
			want.DryRun, want.NeverVerified = true, want.Removed
			require.Equal(t, want, *s.prune(dry))
			require.Equal(t, before, backuptest.ReadTree(t, s.BackupDir), "a dry run changed something")

			want.DryRun = false
			require.Equal(t, want, *s.prune(tt.keep))
			kept := make([]string, len(want.Kept))
			for i, k := range want.Kept {
				kept[i] = k.Stamp
			}
			require.ElementsMatch(t, kept, s.Stamps())
			s.RequireNoStaging()

			require.Empty(t, s.prune(tt.keep).Removed, "a second prune removed more")
		})
	}
}

// Safety snapshots are counted separately, so that none takes the place of an
// ordinary one. The newest of them is always kept.
func TestPruneKeepsTheSafetySnapshot(t *testing.T) {
	s := newSnapshotSet(t)
	put := func(created, safetyOf string) {
		s.put(expectation{created: created}.name(t), map[string]any{"created_at": created, "safety_of": safetyOf})
	}
	put("2026-11-24T11:00:00Z", "")
	put("2026-11-24T10:00:00Z", "")
	put("2026-11-24T09:00:00Z", "20260101T000000Z")
	put("2026-11-24T08:00:00Z", "20260101T000000Z")
	result := s.prune(backup.Retention{KeepLast: 1})
	require.Equal(t, []string{"20261124T100000Z", "20261124T080000Z"}, result.Removed)
	require.Equal(t, longReasons("newest, last"), result.Kept[0].Reasons)
	require.Equal(t, longReasons("safety, last"), result.Kept[1].Reasons)

	// One with a date in the future does not count as the newest.
	put("2027-01-01T00:00:00Z", "20260101T000000Z")
	put("2026-11-24T11:30:00Z", "20260101T000000Z")
	result = s.prune(backup.Retention{KeepLast: 1})
	require.Equal(t, []string{"20261124T090000Z"}, result.Removed)
	require.Equal(t, []backup.KeptSnapshot{
		{Stamp: "20270101T000000Z", CreatedAt: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), Reasons: longReasons("future")},
		{Stamp: "20261124T113000Z", CreatedAt: backuptest.Noon.Time.Truncate(time.Hour).Add(-30 * time.Minute), Reasons: longReasons("safety, last")},
		{Stamp: "20261124T110000Z", CreatedAt: backuptest.Noon.Time.Truncate(time.Hour).Add(-time.Hour), Reasons: longReasons("newest, last")},
	}, result.Kept)

	// Two safety snapshots of one day do not take the place of that day's ordinary
	// one, and the older of them is kept while the rule has room for it.
	put("2026-11-24T11:45:00Z", "20260101T000000Z")
	result = s.prune(backup.Retention{KeepDaily: 2, KeepWithin: 15 * time.Minute})
	require.Empty(t, result.Removed)
	require.Equal(t, longReasons("safety, within 15m0s, daily"), result.Kept[1].Reasons)
	require.Equal(t, longReasons("oldest daily"), result.Kept[2].Reasons)
	require.Equal(t, longReasons("newest, daily"), result.Kept[3].Reasons, "within is counted from the newest of all")
	result = s.prune(backup.Retention{KeepDaily: 1})
	require.Equal(t, []string{"20261124T113000Z"}, result.Removed)
}
