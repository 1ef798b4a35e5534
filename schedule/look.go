package schedule

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/atocore/backup"
)

// A view is what a look at the backup directory has found.
type view struct {
	newest    *backup.Snapshot // the newest one that counts, or nil
	createDue time.Time        // zero if there is no snapshot
	interval  time.Duration    // between two snapshots
	key       string           // of the store in the state file
	state     state
}

// look finds out which snapshots there are, and what is due, unless lockErr says
// that there is no lock. It reports whether that succeeded.
func (r *runner) look(ctx context.Context, lockErr error) bool {
	return r.try(ctx, Result{Step: StepLook}, func(*Result) error {
		if lockErr != nil {
			return lockErr
		}
		now := r.opts.Clock.Now()
		interval, err := r.plan.intervalAfter(now)
		if err != nil {
			r.fatal = err
			return err
		}
		own, err := r.ownSnapshots(ctx)
		if err != nil {
			return err
		}
		r.view = view{interval: interval, key: keyOf(own)}
		r.state = readStates(r.opts.BackupDir).Stores[r.key]
		r.newest = newestOf(r.withoutAhead(own, now.Add(min(slack, interval))))
		if r.newest == nil {
			return nil
		}
		if r.createDue, err = r.plan.nextDue(r.newest.Metadata.CreatedAt, r.key); err != nil {
			r.fatal = err
		}
		return err
	})
}

// ownSnapshots returns the snapshots of this store. A dry run of a prune knows
// which these are.
func (r *runner) ownSnapshots(ctx context.Context) ([]backup.Snapshot, error) {
	quiet := r.opts
	quiet.Logger, quiet.OnProgress = nil, nil
	keep := r.plan.Keep
	if !r.hasRules() {
		keep.KeepLast = -1
	}
	keep.DryRun = true
	pruned, err := backup.PruneRuntimeBackups(ctx, quiet, keep)
	if errors.Is(err, backup.ErrInvalidOptions) {
		r.fatal = err
	}
	if err != nil {
		return nil, err
	}
	isOwn := make(map[string]bool)
	for _, kept := range pruned.Kept {
		isOwn[kept.Stamp] = true
	}
	for _, stamp := range pruned.Removed {
		isOwn[stamp] = true
	}
	list, err := backup.ListRuntimeBackups(ctx, quiet)
	if err != nil {
		return nil, err
	}
	own := list[:0]
	for _, snapshot := range list {
		if isOwn[snapshot.Stamp] && snapshot.Metadata != nil {
			own = append(own, snapshot)
		}
	}
	return own, nil
}

// withoutAhead removes the snapshots that are dated after last, and remembers them:
// when their dates have come, they must not keep others from being created.
func (r *runner) withoutAhead(own []backup.Snapshot, last time.Time) (counted []backup.Snapshot) {
	var ahead []string
	for _, snapshot := range own {
		if snapshot.Metadata.CreatedAt.After(last) || slices.Contains(r.state.Ahead, snapshot.Stamp) {
			ahead = append(ahead, snapshot.Stamp)
		} else {
			counted = append(counted, snapshot)
		}
	}
	if !slices.Equal(ahead, r.state.Ahead) {
		r.remember(func(s *state) { s.Ahead = ahead })
	}
	return counted
}

// newestOf returns the newest snapshot that no restore took, or nil. A later one in
// the list is newer than one of the same time.
func newestOf(list []backup.Snapshot) (newest *backup.Snapshot) {
	for i := range list {
		if m := list[i].Metadata; m.SafetyOf == "" && (newest == nil || !m.CreatedAt.Before(newest.Metadata.CreatedAt)) {
			newest = &list[i]
		}
	}
	return newest
}

// keyOf returns the name of the store in the state file. Old snapshots do not
// record of which store they are.
func keyOf(own []backup.Snapshot) string {
	for _, snapshot := range own {
		if m := snapshot.Metadata; m.SourceDBPath != "" {
			return stateKey(m.SourceHost, m.SourceDBPath)
		}
	}
	return stateKey("", "")
}

func (r *runner) createIsDue() bool {
	return r.newest == nil || r.newest.Stamp == r.damaged || !r.opts.Clock.Now().Before(r.createDue)
}

// nextDrill returns when the next drill is due. A time in the future at which the
// last one is said to have been is none.
func (r *runner) nextDrill() time.Time {
	at := r.state.DrilledAt
	if at.After(r.opts.Clock.Now().Add(slack)) {
		at = time.Time{}
	}
	return at.Add(r.plan.DrillEvery)
}

func (r *runner) drillIsDue() bool {
	return r.plan.DrillEvery > 0 && r.newest != nil && !r.opts.Clock.Now().Before(r.nextDrill())
}

// remember changes what the state file says of the store. If that cannot be
// written, something is done again after a restart.
func (r *runner) remember(change func(*state)) {
	change(&r.state)
	if err := writeState(r.opts.BackupDir, r.key, r.state); err != nil {
		r.log.Warn("schedule_state_not_written", "reason", err.Error())
	}
}

// errHeld means that another process has the lock, and errNoLocks that there are
// no locks here.
var (
	errHeld    = errors.New("held by another process")
	errNoLocks = errors.New("no flock(2) here")
)

// lock waits until no other process has a round, and returns what ends that.
func (r *runner) lock(ctx context.Context) (unlock func(), err error) {
	const first, most = 20 * time.Millisecond, time.Second
	if err := makeDir(r.opts.BackupDir); err != nil {
		return func() {}, err
	}
	path := filepath.Join(r.opts.BackupDir, lockName)
	for wait := first; ; wait = min(2*wait, most) {
		unlock, err := tryLock(path)
		switch {
		case errors.Is(err, errNoLocks):
			if !r.unlocked {
				r.unlocked = true
				r.log.Warn("schedule_without_lock", "path", path)
			}
			return func() {}, nil
		case err == nil:
			return unlock, nil
		case !errors.Is(err, errHeld):
			return func() {}, err
		}
		if wait == first {
			r.log.Info("schedule_waits_for_lock", "path", path)
		}
		if err := sleep(ctx, wait); err != nil {
			return func() {}, err
		}
	}
}

// makeDir creates the backup directory, durably, so that its first snapshot is
// not lost with it in a power cut.
func makeDir(path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.IsDir():
		return &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("a file of this name exists")}
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(parent)
	if err != nil {
		return err
	}
	defer dir.Close()
	return syncDir(dir)
}

// wait returns when something may be due, or when ctx has ended.
func (r *runner) wait(ctx context.Context) error {
	r.log.Debug("schedule_waits", "next", r.createDue)
	for {
		now := r.opts.Clock.Now()
		wait, due := r.untilDue(now)
		if due {
			return nil
		}
		// A timer may run off a little before the clock has got there.
		if err := sleep(ctx, max(wait, time.Millisecond)); err != nil {
			return err
		}
		for _, a := range r.attempts {
			a.pause = max(0, a.pause-wait)
		}
		if r.opts.Clock.Now().Before(now) {
			return nil // set back, so other snapshots may be dated in the future
		}
	}
}

// untilDue returns how long to wait before looking at the clock again, or that
// something is due.
func (r *runner) untilDue(now time.Time) (wait time.Duration, due bool) {
	wait = time.Minute
	at := func(step Step, left time.Duration) {
		if left = max(left, r.attempts[step].pause); left <= 0 {
			due = true
		}
		wait = min(wait, left)
	}
	if r.attempts[StepLook].failed {
		at(StepLook, 0)
		return wait, due
	}
	switch {
	case r.newest == nil, r.newest.Stamp == r.damaged:
		at(StepCreate, 0)
	default:
		at(StepCreate, r.createDue.Sub(now))
	}
	for _, step := range []Step{StepVerify, StepPrune, StepPush} {
		if r.attempts[step].failed {
			at(step, 0)
		}
	}
	if r.plan.DrillEvery > 0 && r.newest != nil {
		at(StepDrill, r.nextDrill().Sub(now))
	}
	return wait, due
}

// sleep waits for d, or returns ctx's error if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
