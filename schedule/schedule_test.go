package schedule_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/schedule"
)

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

// A run is a call of Run with fake time, whose clock can be set.
type run struct {
	*backuptest.Store
	plan    schedule.Plan
	offset  time.Duration // of the clock from the bubble's
	results []schedule.Result
}

func (r *run) Now() time.Time { return backup.SystemClock().Now().Add(r.offset) }

// forTime runs the schedule for a time, and checks that it ended because of that.
func (r *run) forTime(d time.Duration) {
	r.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	require.ErrorIs(r.T, r.until(ctx), context.DeadlineExceeded)
}

func (r *run) until(ctx context.Context) error {
	opts := r.Options
	opts.Clock = r
	plan := r.plan
	plan.OnResult = func(result schedule.Result) {
		r.results = append(r.results, result)
		if r.plan.OnResult != nil {
			r.plan.OnResult(result)
		}
	}
	return schedule.Run(ctx, opts, plan)
}

// count returns how many results of a step there were since the last call of
// reset.
func (r *run) count(step schedule.Step) (n int) {
	for _, result := range r.results {
		if result.Step == step {
			n++
		}
	}
	return n
}

// created returns the times of all snapshots.
func (r *run) created() (times []string) {
	r.T.Helper()
	list, err := backup.ListRuntimeBackups(context.Background(), r.Options)
	require.NoError(r.T, err)
	for _, s := range list {
		times = append(times, s.Metadata.CreatedAt.Format(time.DateTime))
	}
	return times
}

func (r *run) requireNoFailure() {
	r.T.Helper()
	for _, result := range r.results {
		require.NoError(r.T, result.Err, result.Step)
	}
}

// In a year of daily snapshots there is one for each day, whatever happens.
func TestAYear(t *testing.T) {
	s := newTinyStore(t)
	synctest.Test(t, func(t *testing.T) {
		pushed := 0
		r := &run{Store: s, plan: schedule.Plan{
			Every: 24 * time.Hour, Verify: true, Keep: backup.Retention{KeepLast: 3, KeepMonthly: 12}, DrillEvery: 30 * 24 * time.Hour, DrillDir: t.TempDir(),
			Push: func(context.Context, string) error { pushed++; return nil },
		}}
		r.forTime(365*24*time.Hour - time.Minute)
		r.requireNoFailure()
		require.Equal(t, 365, r.count(schedule.StepCreate))
		require.Equal(t, 365, r.count(schedule.StepVerify))
		require.Equal(t, 365, r.count(schedule.StepPrune))
		require.Equal(t, 365, pushed)
		require.Equal(t, 13, r.count(schedule.StepDrill))
		require.Len(t, s.Stamps(), 14)
	})
	_, err := os.Stat(filepath.Join(s.BackupDir, ".atocore-schedule.json.new"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
