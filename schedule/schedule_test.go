package schedule_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	_ "time/tzdata" // Berlin, wherever the tests run

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/schedule"
)

const day = 24 * time.Hour

// newTinyStore returns a store that is nothing but a small database, so that a
// snapshot takes a few milliseconds.
func newTinyStore(t *testing.T) *backuptest.Store {
	t.Helper()
	dir := t.TempDir()
	s := &backuptest.Store{T: t, Dir: dir, Options: backup.Options{
		DatabasePath: filepath.Join(dir, "atocore.db"), BackupDir: filepath.Join(dir, "backups"), Host: "store",
	}}
	backuptest.MakeDatabase(t, s.DatabasePath)
	return s
}

// A bench is a store with a schedule in fake time, whose clock can be set.
type bench struct {
	*backuptest.Store
	plan    schedule.Plan
	offset  atomic.Int64 // of the clock from the bubble's
	results []schedule.Result
}

// Now returns the time of the clock.
func (b *bench) Now() time.Time {
	return backup.SystemClock().Now().Add(time.Duration(b.offset.Load()))
}

// set sets the clock.
func (b *bench) set(to time.Time) { b.step(to.Sub(b.Now())) }

// step sets the clock forth, or back.
func (b *bench) step(by time.Duration) { b.offset.Add(int64(by)) }

// run runs the schedule until ctx ends.
func (b *bench) run(ctx context.Context) error {
	opts := b.Options
	opts.Clock = b
	plan := b.plan
	plan.OnResult = func(result schedule.Result) {
		b.results = append(b.results, result)
		if b.plan.OnResult != nil {
			b.plan.OnResult(result)
		}
	}
	return schedule.Run(ctx, opts, plan)
}

// runFor runs the schedule for a time.
func (b *bench) runFor(d time.Duration) {
	b.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	require.ErrorIs(b.T, b.run(ctx), context.DeadlineExceeded)
}

// tally returns how many results there were of each step since the last call;
// failures are counted apart.
func (b *bench) tally() map[string]int {
	n := make(map[string]int)
	for _, r := range b.results {
		if name := string(r.Step); r.Err != nil {
			n[name+" failed"]++
		} else {
			n[name]++
		}
	}
	b.results = nil
	return n
}

// created returns the times of all snapshots, to the second.
func (b *bench) created() (times []string) {
	b.T.Helper()
	list, err := backup.ListRuntimeBackups(context.Background(), b.Options)
	require.NoError(b.T, err)
	slices.SortFunc(list, func(x, y backup.Snapshot) int { return x.Metadata.CreatedAt.Compare(y.Metadata.CreatedAt) })
	for _, s := range list {
		times = append(times, s.Metadata.CreatedAt.Format(time.DateTime))
	}
	return times
}

// In a year with a snapshot every other day there is one for each due time, and
// everything else at its time.
func TestAYear(t *testing.T) {
	t.Parallel()
	s := newTinyStore(t)
	synctest.Test(t, func(t *testing.T) {
		n, kept := 183, 14
		if backuptest.Race {
			n, kept = 31, 5
		}
		pushed := 0
		b := &bench{Store: s, plan: schedule.Plan{
			Every: 2 * day, Verify: true, Keep: backup.Retention{KeepLast: 3, KeepMonthly: 12}, DrillEvery: 30 * day, DrillDir: t.TempDir(),
			Push: func(context.Context, string) error { pushed++; return nil },
		}}
		b.runFor(time.Duration(2*n)*day - time.Minute)
		require.Equal(t, map[string]int{"create": n, "verify": n, "prune": n, "push": n, "drill": (2*n + 29) / 30}, b.tally())
		require.Equal(t, n, pushed)
		require.Len(t, s.Stamps(), kept)
	})
	entries, err := filepath.Glob(filepath.Join(s.BackupDir, "*"))
	require.NoError(t, err)
	require.Len(t, entries, 4, "snapshots, records, lock and state: %q", entries)
}

// However long nothing ran, what was missed is made up once.
func TestMissedDueTimes(t *testing.T) {
	for name, plan := range map[string]schedule.Plan{
		"every": {Every: day},
		"cron":  {Cron: daily{time.UTC, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTinyStore(t)
			synctest.Test(t, func(t *testing.T) {
				b := &bench{Store: s, plan: plan}
				b.runFor(time.Second)
				require.Equal(t, map[string]int{"create": 1}, b.tally(), "without snapshots one is due at once")
				b.runFor(day/2 - time.Second)
				require.Empty(t, b.tally(), "a restart creates none")
				b.step(10*day + 6*time.Hour)
				b.runFor(time.Second)
				require.Equal(t, map[string]int{"create": 1}, b.tally())
				b.runFor(5*time.Hour + 58*time.Minute)
				require.Empty(t, b.tally())
				for range 6 * 30 { // restarted twice an hour
					b.runFor(30 * time.Minute)
				}
				want := []string{"2000-01-01 00:00:00", "2000-01-11 18:00:00"}
				for d := range 4 {
					want = append(want, fmt.Sprintf("2000-01-%d %s", 12+d, map[string]string{"every": "18:00:01", "cron": "00:00:00"}[name]))
				}
				got := b.created()
				require.Len(t, b.results, len(got)-2)
				if name == "every" {
					for i := range got { // each is due a day after the one before
						got[i], want[i] = got[i][:len("2000-01-01 00")], want[i][:len("2000-01-01 00")]
					}
				}
				require.Equal(t, want[:len(got)], got)
				require.GreaterOrEqual(t, len(got), 5)
			})
		})
	}
}

// The clock is set between due times. Afterwards there is a snapshot each day
// again, and there is one more at most.
func TestClockSteps(t *testing.T) {
	for name, test := range map[string]struct {
		step time.Duration
		want []string // the times of the snapshots of the three days after the step, by the new clock
	}{
		"two seconds forth":   {2 * time.Second, []string{"2000-01-05 00:00:00", "2000-01-06 00:00:00", "2000-01-07 00:00:00"}},
		"two seconds back":    {-2 * time.Second, []string{"2000-01-05 00:00:00", "2000-01-06 00:00:00"}},
		"half an hour back":   {-30 * time.Minute, []string{"2000-01-05 00:00:00", "2000-01-06 00:00:00"}},
		"twenty hours back":   {-20 * time.Hour, []string{"2000-01-04 00:00:00", "2000-01-05 00:00:00", "2000-01-06 00:00:00"}},
		"twenty hours forth":  {20 * time.Hour, []string{"2000-01-05 00:00:00", "2000-01-06 00:00:00", "2000-01-07 00:00:00"}},
		"thirty hours forth":  {30 * time.Hour, []string{"2000-01-05 06:00:30", "2000-01-06 06:00:30", "2000-01-07 06:00:30"}},
		"a year back":         {-365 * day, []string{"1999-01-04 00:00:30", "1999-01-05 00:00:30", "1999-01-06 00:00:30"}},
		"a hundred years on":  {36525 * day, []string{"2100-01-04 00:00:30", "2100-01-05 00:00:30", "2100-01-06 00:00:30"}},
		"the epoch, and back": {0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTinyStore(t)
			synctest.Test(t, func(t *testing.T) {
				b := &bench{Store: s, plan: schedule.Plan{Every: day}}
				// The snapshots are those of the 1st to the 4th, at midnight.
				b.runFor(3*day + 10*time.Second)
				before := b.created()
				require.Len(t, before, 4)
				b.tally()
				time.AfterFunc(20*time.Second, func() { b.step(test.step) })
				if test.step == 0 {
					epoch := b.Now().Add(time.Minute).Sub(time.Unix(0, 0))
					time.AfterFunc(time.Minute, func() { b.step(-epoch) })
					time.AfterFunc(3*time.Minute, func() { b.step(epoch) })
					// One more for each step.
					test.want = []string{"1970-01-01 00:00:20", "2000-01-04 00:03:20", "2000-01-05 00:03:20", "2000-01-06 00:03:20"}
				}
				b.runFor(3*day - 10*time.Second)
				got := b.created()
				for _, at := range before {
					got = slices.Delete(got, slices.Index(got, at), slices.Index(got, at)+1)
				}
				require.Len(t, b.results, len(got))
				round := func(times []string) (minutes []string) { // a wake-up may be up to a minute late
					for _, at := range times {
						minutes = append(minutes, at[:len("2000-01-01 00:0")])
					}
					return minutes
				}
				require.Equal(t, round(test.want), round(got))
				for _, r := range b.results {
					require.NoError(t, r.Err)
				}
			})
		})
	}
}

// A clock that goes back right at a due time does not make that come twice.
func TestClockIsSetBackAtADueTime(t *testing.T) {
	for name, plan := range map[string]schedule.Plan{
		"every": {Every: day},
		"cron":  {Cron: daily{time.UTC, 3, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTinyStore(t)
			synctest.Test(t, func(t *testing.T) {
				b := &bench{Store: s, plan: plan}
				b.set(time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC))
				b.plan.OnResult = func(schedule.Result) { b.step(-2 * time.Second) }
				b.runFor(2*day + time.Minute)
				require.Len(t, b.created(), 3, b.created())
			})
		})
	}
}

// Snapshots dated in the future do not keep others from being created, whoever
// made them.
func TestSnapshotsOfTheFuture(t *testing.T) {
	s := newTinyStore(t)
	synctest.Test(t, func(t *testing.T) {
		b := &bench{Store: s, plan: schedule.Plan{Every: day}}
		for _, ahead := range []time.Duration{90 * time.Minute, 3 * day, 5000 * day} {
			at := s.Options
			at.Clock = backuptest.Clock{Time: b.Now().Add(ahead)}
			_, err := backup.CreateRuntimeBackup(t.Context(), at)
			require.NoError(t, err)
		}
		var want []string
		for d := range 6 {
			want = append(want, fmt.Sprintf("2000-01-%02d 00:00", d+1))
			for range 4 {
				b.runFor(6 * time.Hour)
			}
		}
		var got []string
		for _, at := range b.created() {
			got = append(got, at[:len("2000-01-01 00:00")])
		}
		for _, at := range []string{"2000-01-01 01:30", "2000-01-04 00:00", "2013-09-09 00:00"} {
			require.Contains(t, got, at)
			got = slices.Delete(got, slices.Index(got, at), slices.Index(got, at)+1)
		}
		require.Equal(t, want, got)
	})
}

// Other snapshots in the backup directory than those of this store's series do not
// count.
func TestWhichSnapshotsCount(t *testing.T) {
	s, other := newTinyStore(t), newTinyStore(t)
	other.BackupDir = s.BackupDir
	synctest.Test(t, func(t *testing.T) {
		other.Create()
		b := &bench{Store: s, plan: schedule.Plan{Every: day}}
		b.runFor(time.Minute)
		require.Equal(t, map[string]int{"create": 1}, b.tally())
		first := s.Stamps()

		time.Sleep(23 * time.Hour)
		other.Create()
		backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) {
			_, err := db.Exec("CREATE TABLE more (a)")
			require.NoError(t, err)
		})
		restored := s.Restore(first[len(first)-1])
		require.NotEmpty(t, restored.SafetyStamp)
		b.runFor(58 * time.Minute)
		require.Empty(t, b.tally())
		b.runFor(2 * time.Minute)
		require.Equal(t, map[string]int{"create": 1}, b.tally())

		// One that somebody takes by hand does count.
		time.Sleep(23 * time.Hour)
		s.Create()
		b.runFor(23 * time.Hour)
		require.Empty(t, b.tally())
	})
}

// A daily is a Timetable of one time each day.
type daily struct {
	zone         *time.Location
	hour, minute int
}

// Next returns the next due time.
func (d daily) Next(t time.Time) time.Time {
	y, m, n := t.In(d.zone).Date()
	for ; ; n++ {
		if due := time.Date(y, m, n, d.hour, d.minute, 0, 0, d.zone); due.After(t) {
			return due
		}
	}
}

// By a timetable of local time there is a snapshot each day when the clocks
// change, even at the time that is skipped or comes twice.
func TestDaylightSaving(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	for name, test := range map[string]struct {
		month time.Month
		day   int
		hour  int
		want  []string // in UTC
	}{
		"spring at half past one":    {3, 27, 1, []string{"03-28 00:30", "03-29 00:30", "03-29 23:30", "03-30 23:30"}},
		"spring at half past two":    {3, 27, 2, []string{"03-28 01:30", "03-29 01:30", "03-30 00:30", "03-31 00:30"}},
		"spring at half past three":  {3, 27, 3, []string{"03-28 02:30", "03-29 01:30", "03-30 01:30", "03-31 01:30"}},
		"autumn at half past one":    {10, 23, 1, []string{"10-23 23:30", "10-24 23:30", "10-26 00:30", "10-27 00:30"}},
		"autumn at half past two":    {10, 23, 2, []string{"10-24 00:30", "10-25 01:30", "10-26 01:30", "10-27 01:30"}},
		"autumn at half past three":  {10, 23, 3, []string{"10-24 01:30", "10-25 02:30", "10-26 02:30", "10-27 02:30"}},
		"no change, half past eight": {6, 1, 8, []string{"06-02 06:30", "06-03 06:30", "06-04 06:30", "06-05 06:30"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTinyStore(t)
			synctest.Test(t, func(t *testing.T) {
				b := &bench{Store: s, plan: schedule.Plan{Cron: daily{berlin, test.hour, 30}}}
				b.set(time.Date(2026, test.month, test.day, 12, 0, 0, 0, time.UTC))
				for range 4 * 24 { // restarted every hour
					b.runFor(time.Hour)
				}
				var got []string
				for _, at := range b.created()[1:] {
					got = append(got, at[len("2026-"):len("2026-01-01 00:00")])
				}
				require.Equal(t, test.want, got)
			})
		})
	}
}

// A jitter postpones, by less than it may, always the same for a store and a due
// time, and never past the next due time.
func TestJitter(t *testing.T) {
	const days = 6
	created := func(host string, restarts int, plan schedule.Plan) []string {
		s := newTinyStore(t)
		s.Host = host
		b := &bench{Store: s, plan: plan}
		synctest.Test(t, func(t *testing.T) {
			for range restarts {
				b.runFor(days * day / time.Duration(restarts))
			}
		})
		return b.created()[1:]
	}
	plan := schedule.Plan{Cron: daily{time.UTC, 3, 0}, Jitter: 4 * time.Hour}
	// The path of the database is that of the store, too.
	one := created("one", 1, plan)
	require.Len(t, one, days)
	late := make(map[string]bool)
	for i, at := range one {
		require.Contains(t, at, fmt.Sprintf("2000-01-%02d 0", i+1))
		require.Less(t, "03", at[len("2000-01-01 "):])
		require.Greater(t, "07", at[len("2000-01-01 "):])
		late[at[len("2000-01-01 "):]] = true
	}
	require.Len(t, late, days, "the same every day")

	s := newTinyStore(t)
	b := &bench{Store: s, plan: plan}
	synctest.Test(t, func(t *testing.T) { b.runFor(day) })
	first := b.created()[1]
	require.NoError(t, os.RemoveAll(s.BackupDir))
	synctest.Test(t, func(t *testing.T) {
		for range 24 * 6 {
			b.runFor(10 * time.Minute)
		}
	})
	require.Equal(t, first, b.created()[1], "it depends on restarts")

	plan = schedule.Plan{Cron: daily{time.UTC, 3, 0}, Jitter: 100 * day}
	require.GreaterOrEqual(t, len(created("one", 1, plan)), days-1)
	require.NotEmpty(t, slices.Collect(maps.Keys(late)))
}

// Whatever the clock does, snapshots are not created without a pause.
func TestWildClock(t *testing.T) {
	s := newTinyStore(t)
	synctest.Test(t, func(t *testing.T) {
		b := &bench{Store: s, plan: schedule.Plan{Every: day}}
		b.plan.OnResult = func(schedule.Result) { b.step(3 * day) }
		b.runFor(10*time.Minute + time.Second)
		require.Equal(t, map[string]int{"create": 11}, b.tally())
	})
}
