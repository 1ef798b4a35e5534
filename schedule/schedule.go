// Package schedule creates, verifies, prunes, pushes and rehearses backups on a
// timetable, in the process of the service that owns the store or in one of its
// own.
//
// # What it guarantees
//
// When a snapshot is due depends on the newest snapshot of the store, never on
// when the process was started. So:
//
//   - A restart, at any moment, neither skips a due time nor creates two snapshots
//     for one. What a process that was killed had not done yet (the verification,
//     the prune, the push) is done by the next.
//   - A due time that passed while nothing ran is made up at once, and once,
//     however many there were. A store without snapshots is due at once.
//   - A clock that is set forth or back costs at most one snapshot more than the
//     timetable has, and no more than an hour's delay. The clock is looked at each
//     minute. A snapshot that was dated more than an hour in the future when it was
//     first seen is not counted, even later, nor one that a restore took.
//   - Plan.Jitter postpones a due time by the same amount after each restart.
//
// The steps of a round are create, verify, prune, push and drill, in this order,
// and each has a result of its own. One that fails does not stop the others,
// except that nothing is removed after a snapshot that was found not to be valid.
// If space is short, the prune is made first and the create tried again. A step
// that failed is tried again after a minute, then after two, four and so on up to
// an hour, but no later than the next due time; Result.Retry says when. A push
// that is tried again takes the newest snapshot of that time.
//
// One round at a time runs on a backup directory, however many processes have a
// schedule for it: an flock(2) on BackupDir/.atocore-schedule.lock sees to that. A
// process that finds it held waits until the other's round has ended, or the other
// has died, and then looks anew at what is due. So several processes may have the
// same plan, for the case that one of them dies. On systems and file systems
// without flock(2), only one process may have a schedule.
//
// When the last drill was, for example, and which snapshot was pushed, is kept in
// BackupDir/.atocore-schedule.json. If that is lost, or says what cannot be, push
// and drill are made soon. A push or a drill that is killed right before its end
// may be made twice.
package schedule

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/drill"
)

// A Timetable names due times. The Schedule of github.com/robfig/cron/v3 is one.
type Timetable interface {
	// Next returns the first due time after t, or the zero time if there is none.
	// t is in the zone of the system, time.Local.
	Next(t time.Time) time.Time
}

// A Plan says what is done, and when. Either Every or Cron must be set; every
// other zero value is useful.
type Plan struct {
	// Every is the time from one snapshot to the next.
	Every time.Duration
	// Cron names the due times instead. A snapshot is due at the first one after
	// the time of the newest.
	Cron Timetable
	// Jitter is by how much a due time is postponed at most, so that many stores
	// with one timetable do not begin at once. By how much depends on the store and
	// the due time only. It is never postponed past the next one.
	Jitter time.Duration

	// Keep are the rules of the prune that follows a create. If it has none, nothing
	// is removed.
	Keep backup.Retention
	// Verify validates each snapshot and records the verdict. If it is found
	// damaged, another one is created soon.
	Verify bool
	// DrillEvery is the time from one drill to the next. If it is 0, there is none.
	// A drill rehearses a restore of the snapshot that LatestRuntimeBackup returns,
	// in the directory DrillDir, or that for temporary files if that is empty; see
	// package drill.
	DrillEvery time.Duration
	DrillDir   string
	// Push copies the snapshot named stamp to another place. It is called for each
	// new snapshot, but not for one that was found damaged; if it returns an error,
	// again later for the newest. It must heed ctx. While it runs no other step does,
	// so one that takes longer than the time between two snapshots delays the next:
	// bound it, if that matters more than the copy. It may be nil.
	Push func(ctx context.Context, stamp string) error

	// OnResult is told the result of each step. It runs on the goroutine of Run, so
	// it should be quick. A step that was cut short because ctx ended is not told. It
	// may be nil.
	OnResult func(Result)
}

// A Step is a part of a round.
type Step string

// The steps of a round. Only the first, if it fails, keeps the others from being
// made.
const (
	StepLook   Step = "look"   // finding out what is due; told only if it fails
	StepCreate Step = "create" // creating a snapshot
	StepVerify Step = "verify" // validating the newest one
	StepPrune  Step = "prune"  // removing those that Plan.Keep does not keep
	StepPush   Step = "push"   // calling Plan.Push
	StepDrill  Step = "drill"  // rehearsing a restore
)

// A Result is what became of a step.
type Result struct {
	Step Step
	// Stamp is the snapshot that the step was about. It is empty for a prune, a
	// look, and a create that failed.
	Stamp string
	// Began is when the step began, and Took how long it took, by Options.Clock.
	Began time.Time
	Took  time.Duration
	// Err is nil if the step succeeded. That of a verification matches
	// backup.ErrInvalidBackup if the snapshot was found not to be valid.
	Err error
	// Failures is how often the step has failed in succession, and Retry after
	// which time it is tried again. Both are 0 if Err is nil, and Retry also if it is
	// not tried again before the next due time.
	Failures int
	Retry    time.Duration

	// What the call of the step returned. They can be set beside an error.
	Created *backup.Metadata    // by a create
	Report  *backup.Report      // by a verification
	Pruned  *backup.PruneResult // by a prune
	Drilled *drill.Result       // by a drill
}

// Run keeps to the plan until ctx ends, and then returns ctx's error. Work that is
// in progress is cancelled, which leaves nothing behind; nothing outlives the call.
// See the package comment for what it guarantees.
//
// opts are the options of each call. DatabasePath and BackupDir must be set;
// Verify and RecordVerdicts are set by the plan. Due times are computed from
// opts.Clock, and waits are made with the timers of package time, for at most a
// minute each.
//
// Other errors: backup.ErrInvalidOptions for a plan or options that cannot work,
// at once or, from a create, later; backup.ErrPanic if Plan.Cron, Plan.OnResult
// or a clock or logger panicked. A panic of Plan.Push is a push that failed.
// Everything else is told to Plan.OnResult, and does not end Run.
//
// Waiting costs a look at the clock each minute. A round costs what its steps
// cost, and a few lists of the snapshots.
func Run(ctx context.Context, opts backup.Options, plan Plan) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("schedule: %w", err)
		}
	}()
	defer recoverPanic(&err)
	if err := check(ctx, &opts, &plan); err != nil {
		return err
	}
	r, err := newRunner(opts, plan)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := r.round(ctx); err != nil {
			return err
		}
		if err := r.wait(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// check refuses what cannot work, and fills in defaults.
func check(ctx context.Context, opts *backup.Options, plan *Plan) error {
	var faults []error
	fault := func(wrong bool, text string) {
		if wrong {
			faults = append(faults, errors.New(text))
		}
	}
	fault(ctx == nil, "the context is nil")
	fault(opts.BackupDir == "", "the path of the backup directory is empty")
	fault(opts.DatabasePath == "", "the path of the database is empty")
	fault(plan.Every == 0 && plan.Cron == nil, "neither Every nor Cron says when a snapshot is due")
	fault(plan.Every != 0 && plan.Cron != nil, "both Every and Cron say when a snapshot is due")
	fault(plan.Every < 0, "Every is negative")
	fault(plan.Jitter < 0, "Jitter is negative")
	fault(plan.DrillEvery < 0, "DrillEvery is negative")
	dir, err := filepath.Abs(opts.BackupDir)
	if err != nil {
		faults = append(faults, err)
	}
	opts.BackupDir = dir
	if opts.Clock == nil {
		opts.Clock = backup.SystemClock()
	}
	if len(faults) > 0 {
		return fmt.Errorf("%w: %w", backup.ErrInvalidOptions, errors.Join(faults...))
	}
	return nil
}

// recoverPanic turns a panic of the host's function into an error. It must be
// deferred directly.
func recoverPanic(err *error) {
	switch v := recover().(type) {
	case nil:
	case error:
		*err = errors.Join(fmt.Errorf("%w: %w\n%s", backup.ErrPanic, v, debug.Stack()), *err)
	default:
		*err = errors.Join(fmt.Errorf("%w: %v\n%s", backup.ErrPanic, v, debug.Stack()), *err)
	}
}
