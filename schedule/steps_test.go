package schedule_test

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/schedule"
)

// A failure is told with the time after which it is tried again, which doubles up
// to an hour, and starts anew after a success.
func TestFailuresBackOff(t *testing.T) {
	s := newTinyStore(t)
	away := filepath.Join(s.Dir, "away")
	require.NoError(t, os.Rename(s.DatabasePath, away))
	synctest.Test(t, func(t *testing.T) {
		began := backup.SystemClock().Now()
		b := &bench{Store: s, plan: schedule.Plan{Every: day}}
		var tried []int // minutes
		b.plan.OnResult = func(r schedule.Result) {
			tried = append(tried, int(r.Began.Sub(began).Minutes()))
			if r.Err == nil {
				require.Zero(t, r.Failures)
				require.Zero(t, r.Retry)
				return
			}
			require.Equal(t, schedule.StepCreate, r.Step)
			require.ErrorIs(t, r.Err, os.ErrNotExist)
			require.Equal(t, len(tried), r.Failures)
			require.Empty(t, r.Stamp)
			if len(tried) == 9 {
				require.NoError(t, os.Rename(away, s.DatabasePath))
			}
		}
		b.runFor(6 * time.Hour)
		require.Equal(t, []int{0, 1, 3, 7, 15, 31, 63, 123, 183, 243}, tried)
		require.Equal(t, map[string]int{"create failed": 9, "create": 1}, b.tally())
		require.NoError(t, os.Rename(s.DatabasePath, away))
		tried = nil
		b.runFor(day - 2*time.Hour + 10*time.Minute)
		require.Equal(t, []int{24*60 + 243, 24*60 + 244, 24*60 + 246}, tried[:3])
	})
}

// With snapshots that often, nothing is tried again later than the next is due.
func TestFailuresOfAFrequentPlan(t *testing.T) {
	s := newTinyStore(t)
	require.NoError(t, os.Remove(s.DatabasePath))
	synctest.Test(t, func(t *testing.T) {
		b := &bench{Store: s, plan: schedule.Plan{Every: 10 * time.Second}}
		b.runFor(65 * time.Second)
		require.Equal(t, map[string]int{"create failed": 7}, b.tally())
	})
}

// A push that failed is tried again, for the snapshot that is the newest then, and
// stops nothing else.
func TestPushFails(t *testing.T) {
	s := newTinyStore(t)
	synctest.Test(t, func(t *testing.T) {
		var pushed []string
		down := true
		b := &bench{Store: s, plan: schedule.Plan{Every: 50 * time.Minute, Verify: true, Keep: backup.Retention{KeepLast: 2}, DrillEvery: 300 * day, DrillDir: t.TempDir()}}
		b.plan.Push = func(ctx context.Context, stamp string) error {
			switch {
			case down && len(b.results)%2 == 0:
				panic("of the host")
			case down:
				return errors.New("no route to host")
			}
			pushed = append(pushed, stamp)
			return nil
		}
		b.runFor(50*time.Minute + time.Second)
		got := b.tally()
		require.Equal(t, 2, got["create"])
		require.Equal(t, 2, got["verify"])
		require.Equal(t, 2, got["prune"])
		require.Equal(t, 1, got["drill"])
		require.Equal(t, 6, got["push failed"], "after 0, 1, 3, 7, 15 and 31 minutes")
		down = false
		b.runFor(20 * time.Minute)
		require.Equal(t, map[string]int{"push": 1}, b.tally())
		require.Equal(t, s.Stamps()[1:], pushed)
		b.runFor(25 * time.Minute)
		require.Empty(t, b.tally())
		b.runFor(10 * time.Minute)
		require.Equal(t, s.Stamps(), pushed)
	})
}

// A snapshot that is found damaged is replaced soon. Until then nothing is removed
// and it is not pushed.
func TestDamage(t *testing.T) {
	s := newTinyStore(t)
	synctest.Test(t, func(t *testing.T) {
		var pushed, pruned []string
		b := &bench{Store: s, plan: schedule.Plan{Every: day, Verify: true, Keep: backup.Retention{KeepLast: 1},
			Push: func(ctx context.Context, stamp string) error { pushed = append(pushed, stamp); return nil }}}
		damages := 0
		var created []time.Time
		b.plan.OnResult = func(r schedule.Result) {
			switch r.Step {
			case schedule.StepCreate:
				created = append(created, r.Began)
				if n := len(created); n >= 2 && n <= 4 {
					s.Snapshot(r.Stamp).Flip("db/atocore.db", 5000)
				}
			case schedule.StepVerify:
				if r.Err != nil {
					damages++
					require.ErrorIs(t, r.Err, backup.ErrInvalidBackup)
					require.False(t, r.Report.Valid)
					require.Equal(t, damages, r.Failures)
					require.Equal(t, time.Minute<<(damages-1), r.Retry)
				}
			case schedule.StepPrune:
				pruned = append(pruned, r.Pruned.Removed...)
			}
		}
		b.runFor(day + time.Hour)
		require.Equal(t, map[string]int{"create": 5, "verify": 2, "verify failed": 3, "prune": 2, "push": 2}, b.tally())
		for i, wait := range []time.Duration{day, time.Minute, 2 * time.Minute, 4 * time.Minute} {
			require.Equal(t, wait, created[i+1].Sub(created[i]).Round(time.Second))
		}
		require.Len(t, pushed, 2)
		require.Equal(t, s.Stamps(), pushed[1:])
		require.Len(t, pruned, 4)
	})
}

// A snapshot that is intact and has findings is pushed, and none is created in its
// place, since that would have them, too.
func TestFindings(t *testing.T) {
	s := newTinyStore(t)
	backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) {
		_, err := db.Exec("CREATE TABLE c(a, b); INSERT INTO c VALUES (1, NULL); PRAGMA writable_schema = on; " +
			"UPDATE sqlite_schema SET sql = replace(sql, 'b)', 'b NOT NULL)') WHERE name = 'c'")
		require.NoError(t, err)
	})
	synctest.Test(t, func(t *testing.T) {
		b := &bench{Store: s, plan: schedule.Plan{Every: day, Verify: true, Keep: backup.Retention{KeepLast: 1},
			Push: func(ctx context.Context, stamp string) error { return nil }}}
		for range 3 * 24 {
			b.runFor(time.Hour)
		}
		for _, r := range b.results {
			require.Zero(t, r.Retry)
		}
		require.Equal(t, map[string]int{"create": 3, "verify failed": 3, "push": 3}, b.tally())
	})
}

// Without space, the prune comes first, and the create is tried again at once.
func TestNoSpace(t *testing.T) {
	s := newTinyStore(t)
	synctest.Test(t, func(t *testing.T) {
		b := &bench{Store: s, plan: schedule.Plan{Every: day}}
		b.runFor(3*day + time.Hour)
		require.Equal(t, map[string]int{"create": 4}, b.tally())

		b.plan.Keep = backup.Retention{KeepLast: 2}
		b.runFor(time.Minute)
		require.Equal(t, map[string]int{"prune": 1}, b.tally(), "the rules are new")
		require.Len(t, s.Stamps(), 2)

		for range 3 {
			s.Create()
		}
		// The disk is full as long as there are more than so many snapshots.
		room := 2
		s.InitDB = func(context.Context) error {
			if len(s.Stamps()) > room {
				return &fs.PathError{Op: "write", Path: s.DatabasePath, Err: syscall.ENOSPC}
			}
			return nil
		}
		time.Sleep(2 * day)
		b.runFor(time.Minute)
		require.Equal(t, map[string]int{"create failed": 1, "create": 1, "prune": 2}, b.tally())
		require.Len(t, s.Stamps(), 2)

		room = 0 // pruning does not help
		time.Sleep(2 * day)
		b.runFor(10 * time.Minute)
		require.Equal(t, map[string]int{"create failed": 4, "prune": 4}, b.tally())
	})
}

// A drill that fails is told and tried again, and one is made soon after the state
// was lost.
func TestDrills(t *testing.T) {
	s := newTinyStore(t)
	synctest.Test(t, func(t *testing.T) {
		scratch := t.TempDir()
		b := &bench{Store: s, plan: schedule.Plan{Every: day, DrillEvery: 7 * day, DrillDir: filepath.Join(scratch, "absent")}}
		b.runFor(2 * time.Minute)
		require.Equal(t, map[string]int{"create": 1, "drill failed": 2}, b.tally())
		b.plan.DrillDir = scratch
		b.runFor(time.Second)
		require.Equal(t, s.Stamps(), []string{b.results[0].Stamp})
		require.True(t, b.results[0].Drilled.DBOK)
		require.Equal(t, map[string]int{"drill": 1}, b.tally())
		for range 20 * 24 {
			b.runFor(time.Hour)
		}
		require.Equal(t, map[string]int{"create": 20, "drill": 2}, b.tally())
		for _, harm := range []func(){
			func() { require.NoError(t, os.Remove(filepath.Join(s.BackupDir, ".atocore-schedule.json"))) },
			func() { b.step(-3000 * day) }, // the last drill is in the future
		} {
			harm()
			b.runFor(time.Minute)
			require.Equal(t, 1, b.tally()["drill"])
		}
		requireEmpty(t, scratch)
	})
}

func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

// What is in the place of the state file can only make something sooner.
func TestHostileState(t *testing.T) {
	name := filepath.Join("backups", ".atocore-schedule.json")
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("{}"), 0o600))
	for kind, harm := range map[string]func(path string) error{
		"nothing":         func(path string) error { return nil },
		"no JSON":         func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
		"another version": func(path string) error { return os.WriteFile(path, []byte(`{"version":2,"stores":{"a":{}}}`), 0o600) },
		"no stores":       func(path string) error { return os.WriteFile(path, []byte(`{"version":1,"stores":null}`), 0o600) },
		"a link":          func(path string) error { return os.Symlink(outside, path) },
		"large": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40))
		},
		"not to be read": func(path string) error { return os.WriteFile(path, nil, 0) },
		"a directory":    func(path string) error { return os.Mkdir(path, 0o700) },
		"a FIFO":         makeFIFO,
	} {
		t.Run(kind, func(t *testing.T) {
			s := newTinyStore(t)
			log := s.Record()
			s.Create()
			today := backup.SystemClock().Now()
			path := filepath.Join(s.Dir, name)
			if err := harm(path); err != nil {
				t.Skip(err)
			}
			synctest.Test(t, func(t *testing.T) {
				b := &bench{Store: s, plan: schedule.Plan{Every: day, Keep: backup.Retention{KeepLast: 5}, DrillEvery: day, DrillDir: t.TempDir(),
					Push: func(context.Context, string) error { return nil }}}
				// The snapshot is of today, which is long after the bubble's time.
				b.set(today)
				b.runFor(3 * time.Minute)
				require.Equal(t, map[string]int{"push": 1, "prune": 1, "drill": 1}, b.tally())
				if kind == "a directory" {
					require.Contains(t, strings.Join(log.Lines(), "\n"), "schedule_state_not_written")
					return
				}
				b.runFor(3 * time.Minute)
				require.Empty(t, b.tally())
			})
			data, err := os.ReadFile(outside)
			require.NoError(t, err)
			require.Equal(t, "{}", string(data))
		})
	}
}

// What keeps a round from beginning is told and tried again.
func TestNoLock(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there are no locks")
	}
	s := newTinyStore(t)
	path := filepath.Join(s.BackupDir, ".atocore-schedule.lock")
	require.NoError(t, os.MkdirAll(path, 0o700))
	synctest.Test(t, func(t *testing.T) {
		b := &bench{Store: s, plan: schedule.Plan{Every: day}}
		b.plan.OnResult = func(r schedule.Result) {
			if r.Failures == 3 {
				require.ErrorContains(t, r.Err, path)
				require.NoError(t, os.Remove(path))
			}
		}
		b.runFor(time.Hour)
		require.Equal(t, map[string]int{"look failed": 3, "create": 1}, b.tally())
	})

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		s.BackupDir = dir
		synctest.Test(t, func(t *testing.T) {
			b := &bench{Store: s, plan: schedule.Plan{Every: day}}
			b.runFor(time.Second)
			require.ErrorContains(t, b.results[0].Err, file)
			require.Equal(t, map[string]int{"look failed": 1}, b.tally())
		})
	}
}

// A plan or options that cannot work end Run at once.
func TestInvalidPlans(t *testing.T) {
	s := newTinyStore(t)
	plain := schedule.Plan{Every: time.Hour}
	for name, test := range map[string]struct {
		opts  func(*backup.Options)
		plan  schedule.Plan
		words string
	}{
		"no backup directory": {opts: func(o *backup.Options) { o.BackupDir = "" }, plan: plain, words: "backup directory"},
		"no database":         {opts: func(o *backup.Options) { o.DatabasePath = "" }, plan: plain, words: "database"},
		"options":             {opts: func(o *backup.Options) { o.Wait = -1 }, plan: plain, words: "negative"},
		"a create's": {opts: func(o *backup.Options) {
			o.Capture = func(context.Context, string) error { return nil }
			o.OnlineBackup = true
		}, plan: plain, words: "Capture"},
		"no time":         {plan: schedule.Plan{Verify: true}, words: "Every"},
		"two times":       {plan: schedule.Plan{Every: 1, Cron: daily{time.UTC, 1, 1}}, words: "both"},
		"negative":        {plan: schedule.Plan{Every: -1}, words: "negative"},
		"jitter":          {plan: schedule.Plan{Every: 1, Jitter: -1}, words: "Jitter"},
		"drill":           {plan: schedule.Plan{Every: 1, DrillEvery: -1}, words: "DrillEvery"},
		"rules":           {plan: schedule.Plan{Every: 1, Keep: backup.Retention{KeepLast: -2}}, words: "-2"},
		"never":           {plan: schedule.Plan{Cron: next(func(time.Time) time.Time { return time.Time{} })}, words: "no due time"},
		"standing still":  {plan: schedule.Plan{Cron: next(func(t time.Time) time.Time { return t })}, words: "is"},
		"never more":      {plan: schedule.Plan{Cron: next(onlyOnce)}, words: "no due time"},
		"a panic of cron": {plan: schedule.Plan{Cron: next(func(time.Time) time.Time { panic("of the host") })}, words: "of the host"},
		"a panic of OnResult": {plan: schedule.Plan{Every: time.Hour, OnResult: func(schedule.Result) { panic("of the host") }},
			words: "of the host"},
		"a panic of the clock": {opts: func(o *backup.Options) {
			o.Clock = backuptest.ClockFunc(func() time.Time { panic("of the host") })
		}, plan: plain, words: "of the host"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := s.Options
			if test.opts != nil {
				test.opts(&opts)
			}
			err := schedule.Run(t.Context(), opts, test.plan)
			want := backup.ErrInvalidOptions
			if strings.HasPrefix(name, "a panic") {
				want = backup.ErrPanic
			}
			require.ErrorIs(t, err, want)
			require.ErrorContains(t, err, test.words)
			require.ErrorContains(t, err, "schedule: ")
		})
	}
	err := schedule.Run(nil, s.Options, plain) //nolint:staticcheck // a host's mistake
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
}

// A next is a function as a Timetable.
type next func(time.Time) time.Time

// Next returns f(t).
func (f next) Next(t time.Time) time.Time { return f(t) }

// onlyOnce has one due time.
func onlyOnce(t time.Time) time.Time {
	if at := time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC); t.Before(at) {
		return at
	}
	return time.Time{}
}

// A run is cut short at each thing that happens in it, and started again. In the
// end everything was done once.
func TestRestartAtEachStep(t *testing.T) {
	t.Parallel()
	total := math.MaxInt
	for at := 0; at < total; at++ {
		s := newTinyStore(t)
		events := 0
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			happens := func() {
				if events++; events == at+1 {
					cancel()
				}
			}
			pushed := make(map[string]int)
			b := &bench{Store: s}
			b.plan = schedule.Plan{Every: day, Verify: true, Keep: backup.Retention{KeepLast: 1}, DrillEvery: day, DrillDir: t.TempDir(),
				Push: func(ctx context.Context, stamp string) error {
					happens()
					if ctx.Err() == nil {
						pushed[stamp]++
					}
					return ctx.Err()
				},
				OnResult: func(schedule.Result) { happens() },
			}
			s.Options.OnProgress = func(backup.Progress) { happens() }
			old := s.Options
			old.Clock = backuptest.Clock{Time: b.Now().Add(-3 * day)}
			old.OnProgress = nil
			_, err := backup.CreateRuntimeBackup(t.Context(), old)
			require.NoError(t, err)

			ended := make(chan error)
			go func() { ended <- b.run(ctx) }()
			select {
			case err := <-ended:
				require.ErrorIs(t, err, context.Canceled)
			case <-time.After(time.Hour): // it was not cut short
				total = events
				cancel()
				require.ErrorIs(t, <-ended, context.Canceled)
			}
			b.runFor(time.Hour)
			stamps := s.RequireValid()
			require.Len(t, stamps, 1)
			require.Equal(t, map[string]int{stamps[0]: 1}, pushed)
			require.Equal(t, map[string]int{"create": 1, "verify": 1, "prune": 1, "push": 1, "drill": 1}, b.tally(), "cut short at %d", at)
			requireEmpty(t, b.plan.DrillDir)
			require.Empty(t, s.Staging())
		})
	}
	require.Greater(t, total, 20)
}

// A run whose context has ended leaves nothing.
func TestContextHasEnded(t *testing.T) {
	s := newTinyStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := schedule.Run(ctx, s.Options, schedule.Plan{Every: time.Hour})
	require.ErrorIs(t, err, context.Canceled)
	require.NoDirExists(t, s.BackupDir)
}
