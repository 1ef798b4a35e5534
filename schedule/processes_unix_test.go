//go:build unix

package schedule_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/schedule"
)

func TestMain(m *testing.M) { backuptest.Main(m, backuptest.Roles{"schedule": roleSchedule}) }

// roleSchedule keeps to a plan for the store in a directory. It says everything
// that happens, and goes on when its parent answers.
func roleSchedule(p *backuptest.Parent, args []string) error {
	dir := args[0]
	happens := func(format string, values ...any) {
		p.Say(fmt.Sprintf(format, values...))
		p.Hear()
	}
	opts := backup.Options{
		DatabasePath: filepath.Join(dir, "atocore.db"), BackupDir: filepath.Join(dir, "backups"), Host: "store",
		OnProgress: func(p backup.Progress) { happens("in %s", p.Phase) },
		Logger:     slog.New(listener(happens)),
	}
	return schedule.Run(context.Background(), opts, schedule.Plan{
		Every: time.Hour, Verify: true, Keep: backup.Retention{KeepLast: 2}, DrillEvery: time.Hour, DrillDir: filepath.Join(dir, "scratch"),
		Push:     func(_ context.Context, stamp string) error { happens("push %s", stamp); return nil },
		OnResult: func(r schedule.Result) { happens("%s %v", r.Step, r.Err) },
	})
}

// A listener is a log handler that says when the schedule waits.
type listener func(format string, values ...any)

func (listener) Enabled(context.Context, slog.Level) bool { return true }

func (l listener) Handle(_ context.Context, record slog.Record) error {
	if strings.HasPrefix(record.Message, "schedule_waits") {
		l("%s", record.Message)
	}
	return nil
}

func (l listener) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l listener) WithGroup(string) slog.Handler      { return l }

// follow lets a schedule go on until it says one of the words, and returns what it
// has said before.
func follow(c *backuptest.Child, until func(n int, said string) bool) (said []string) {
	for {
		line := c.Hear()
		if until(len(said), line) {
			return said
		}
		said = append(said, line)
		c.Tell("go on")
	}
}

func isIdle(_ int, said string) bool { return said == "schedule_waits" }

// newScheduledStore returns a store with two old snapshots.
func newScheduledStore(t *testing.T) *backuptest.Store {
	t.Helper()
	s := newTinyStore(t)
	for _, hours := range []time.Duration{5, 4} {
		old := s.Options
		old.Clock = backuptest.Clock{Time: backup.SystemClock().Now().Add(-hours * time.Hour)}
		_, err := backup.CreateRuntimeBackup(t.Context(), old)
		require.NoError(t, err)
	}
	require.NoError(t, os.Mkdir(filepath.Join(s.Dir, "scratch"), 0o700))
	return s
}

// A process is killed at each thing that happens in it. The next one does what it
// had not done, and creates no second snapshot.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	killed := true
	total := 0
	for at := 0; killed; at++ {
		s := newScheduledStore(t)
		old := s.Stamps()[1]
		first := backuptest.Start(t, "schedule", s.Dir)
		killed = false
		before := follow(first, func(n int, said string) bool {
			killed = n == at
			return killed || isIdle(n, said)
		})
		first.Kill()

		second := backuptest.Start(t, "schedule", s.Dir)
		after := follow(second, isIdle)
		second.Kill()
		said := append(before, after...)
		for _, step := range []string{"create <nil>", "verify <nil>", "prune <nil>", "drill <nil>"} {
			n := 0
			for _, line := range said {
				if line == step {
					n++
				}
			}
			// What is done may not have been told.
			require.LessOrEqual(t, n, 1, "%s, killed at %d: %q", step, at, said)
		}
		require.NotContains(t, strings.Join(said, "\n"), "waits_for_lock")
		stamps := s.RequireValid()
		require.Len(t, stamps, 2, "killed at %d: %q", at, said)
		require.Equal(t, old, stamps[0], "two were created, killed at %d: %q", at, said)
		require.Contains(t, said, "push "+stamps[1])
		list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
		require.NoError(t, err)
		require.True(t, *list[1].Verified)
		requireEmpty(t, filepath.Join(s.Dir, "scratch"))
		require.Empty(t, s.Staging())
		total = at
	}
	require.Greater(t, total, 20, "moments")
}

// A second process waits for the round of the first, and looks anew when that has
// ended or died.
func TestTwoProcesses(t *testing.T) {
	for name, end := range map[string]func(*backuptest.Child){
		"it dies": func(c *backuptest.Child) { c.Kill() },
		"it ends its round": func(c *backuptest.Child) {
			c.Tell("go on")
			follow(c, isIdle)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScheduledStore(t)
			pushes := func(_ int, said string) bool { return strings.HasPrefix(said, "push ") }
			first := backuptest.Start(t, "schedule", s.Dir)
			require.Contains(t, follow(first, pushes), "create <nil>")
			second := backuptest.Start(t, "schedule", s.Dir)
			require.Equal(t, "schedule_waits_for_lock", second.Hear())
			end(first)
			second.Tell("go on")
			said := follow(second, isIdle)
			if name == "it dies" {
				require.Contains(t, said, "push "+s.Stamps()[1])
				require.Contains(t, said, "drill <nil>")
			} else {
				require.Empty(t, said)
			}
			require.NotContains(t, said, "create <nil>")
			require.Len(t, s.Stamps(), 2)
		})
	}
}

// Several schedules with one plan create as many snapshots as one.
func TestManySchedules(t *testing.T) {
	s := newTinyStore(t)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		pushed := make(map[string]int)
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() {
				b := &bench{Store: s, plan: schedule.Plan{Every: day, Verify: true, Push: func(_ context.Context, stamp string) error {
					time.Sleep(time.Hour) // the others wait
					mu.Lock()
					defer mu.Unlock()
					pushed[stamp]++
					return nil
				}}}
				for range 5 {
					b.runFor(2*day + 3*time.Hour)
				}
			})
		}
		group.Wait()
		stamps := s.Stamps()
		require.Len(t, stamps, 11)
		require.Len(t, pushed, 11)
		for _, n := range pushed {
			require.Equal(t, 1, n)
		}
	})
}
