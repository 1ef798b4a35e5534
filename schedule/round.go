package schedule

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"syscall"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/drill"
)

// A runner is one call of Run.
type runner struct {
	opts backup.Options
	plan Plan
	log  *slog.Logger

	attempts map[Step]*attempt
	// damaged is the newest snapshot if it was found damaged, so that another one is
	// due, and damages how often that has been so in succession.
	damaged  string
	damages  int
	fatal    error // what ends Run
	unlocked bool  // it was logged that there are no locks here
	view
}

// An attempt is what became of a step.
type attempt struct {
	failures int
	failed   bool          // the last one failed, and the step is still to be made
	pause    time.Duration // for which the step is not made
}

func newRunner(opts backup.Options, plan Plan) (*runner, error) {
	interval, err := plan.intervalAfter(opts.Clock.Now())
	if err != nil {
		return nil, err
	}
	r := &runner{opts: opts, plan: plan, log: opts.Logger, attempts: make(map[Step]*attempt), view: view{interval: interval}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	// Verification is a step of its own, which is made up after a restart.
	r.opts.Verify, r.opts.RecordVerdicts = false, true
	for _, step := range []Step{StepLook, StepCreate, StepVerify, StepPrune, StepPush, StepDrill} {
		r.attempts[step] = new(attempt)
	}
	return r, nil
}

// round makes every step that is due. Its error is one that ends Run.
func (r *runner) round(ctx context.Context) error {
	if r.attempts[StepLook].pause > 0 {
		return r.ended(ctx)
	}
	unlock, err := r.lock(ctx)
	defer func() { unlock() }()
	if !r.look(ctx, err) {
		return r.ended(ctx)
	}
	if r.createIsDue() && r.create(ctx) && !r.look(ctx, nil) {
		return r.ended(ctx)
	}
	for _, step := range []func(context.Context){r.verify, r.prune, r.push, r.drill} {
		step(ctx)
	}
	return r.ended(ctx)
}

// ended returns why Run must return, or nil.
func (r *runner) ended(ctx context.Context) error {
	if r.fatal != nil {
		return r.fatal
	}
	return ctx.Err()
}

// try makes a step, unless that failed a short time ago, and tells the result. It
// reports whether the step was made and succeeded.
func (r *runner) try(ctx context.Context, result Result, step func(*Result) error) (ok bool) {
	a := r.attempts[result.Step]
	if a.pause > 0 || r.ended(ctx) != nil {
		return false
	}
	result.Began = r.opts.Clock.Now()
	result.Err = r.call(&result, step)
	result.Took = max(0, r.opts.Clock.Now().Sub(result.Began))
	if result.Err != nil && r.ended(ctx) != nil {
		return false
	}
	var settled *settledError
	switch {
	case result.Err == nil:
		*a = attempt{}
	case errors.As(result.Err, &settled):
		*a = attempt{failures: a.failures + 1}
		result.Err, result.Failures, result.Retry = settled.error, a.failures, settled.retry
	default:
		*a = attempt{failures: a.failures + 1, failed: true, pause: pause(a.failures+1, r.interval)}
		result.Failures, result.Retry = a.failures, a.pause
	}
	if (result.Step != StepLook || result.Err != nil) && r.plan.OnResult != nil {
		r.plan.OnResult(result)
	}
	return result.Err == nil
}

// A settledError is the error of a step that is not made again for the same
// snapshot. If retry is not 0, it is made for another one, after that time.
type settledError struct {
	error
	retry time.Duration
}

// call makes a step. A panic in it is that of Plan.Push, since the calls of the
// library turn those of the host's other functions into errors.
func (r *runner) call(result *Result, step func(*Result) error) (err error) {
	defer recoverPanic(&err)
	return step(result)
}

// create creates a snapshot. If there is no space for it, it prunes and tries
// again. It reports whether there may be another newest snapshot now.
func (r *runner) create(ctx context.Context) (changed bool) {
	create := func(result *Result) (err error) {
		result.Created, err = backup.CreateRuntimeBackup(ctx, r.opts)
		if result.Created != nil {
			result.Stamp = result.Created.Stamp
		}
		if errors.Is(err, backup.ErrInvalidOptions) {
			r.fatal = err
		}
		return err
	}
	a := r.attempts[StepCreate]
	noSpace := false
	ok := r.try(ctx, Result{Step: StepCreate}, func(result *Result) error {
		err := create(result)
		noSpace = errors.Is(err, backup.ErrNoSpace) || errors.Is(err, syscall.ENOSPC)
		return err
	})
	if noSpace && r.hasRules() {
		var removed int
		r.try(ctx, Result{Step: StepPrune}, func(result *Result) error {
			err := r.removeOld(ctx, result)
			if result.Pruned != nil {
				removed = len(result.Pruned.Removed)
			}
			return err
		})
		if removed > 0 && !r.plan.Keep.DryRun {
			a.pause = 0
			ok = r.try(ctx, Result{Step: StepCreate}, create)
		}
	}
	if ok {
		// Whatever is wrong with clock or list, snapshots are not created one after
		// another.
		a.pause = min(time.Minute, r.interval)
	}
	return ok || noSpace
}

// verify validates the newest snapshot if nobody has yet.
func (r *runner) verify(ctx context.Context) {
	newest := r.newest
	if !r.plan.Verify || newest == nil || r.verdict() != "" {
		r.attempts[StepVerify].failed = false
		return
	}
	r.try(ctx, Result{Step: StepVerify, Stamp: newest.Stamp}, func(result *Result) (err error) {
		var invalid *backup.InvalidBackupError
		result.Report, err = backup.ValidateBackup(ctx, r.opts, newest.Stamp)
		switch {
		case err == nil:
			r.judge(valid)
		case !errors.As(err, &invalid): // nothing is known
		case !result.Report.Exists: // somebody has removed it
			err = &settledError{err, 0}
		case slices.ContainsFunc(result.Report.Problems, isDamage):
			r.judge(damaged)
			err = &settledError{err, r.attempts[StepCreate].pause}
		default:
			r.judge(findings)
			err = &settledError{err, 0}
		}
		return err
	})
}

func isDamage(p backup.Problem) bool { return !p.Finding }

// judge remembers the verdict about the newest snapshot. After damage, another
// snapshot is created.
func (r *runner) judge(v verdict) {
	r.remember(func(s *state) { s.Verified, s.Verdict = r.newest.Stamp, v })
	ok := v == valid
	r.newest.Verified = &ok
	if v != damaged {
		r.damaged, r.damages = "", 0
		return
	}
	r.damaged = r.newest.Stamp
	r.damages++
	r.attempts[StepCreate].pause = pause(r.damages, r.interval)
}

// verdict returns what is known about the newest snapshot.
func (r *runner) verdict() verdict {
	recorded, ours := r.newest.Verified, verdict("")
	if r.state.Verified == r.newest.Stamp {
		ours = r.state.Verdict
	}
	switch {
	case recorded == nil: // perhaps because it could not be recorded
		return ours
	case *recorded:
		return valid
	case ours == findings:
		return findings
	}
	return damaged
}

// prune removes old snapshots after each create, unless the new one was found not
// to be valid, or should be verified and is not: then the old ones may be needed.
func (r *runner) prune(ctx context.Context) {
	newest := r.newest
	due := r.hasRules() && newest != nil && r.state.Pruned != newest.Stamp
	if !due || r.verdict() != valid && (r.verdict() != "" || r.plan.Verify) {
		r.attempts[StepPrune].failed = false
		return
	}
	r.try(ctx, Result{Step: StepPrune}, func(result *Result) error {
		err := r.removeOld(ctx, result)
		if err == nil {
			r.remember(func(s *state) { s.Pruned = newest.Stamp })
		}
		return err
	})
}

func (r *runner) removeOld(ctx context.Context, result *Result) (err error) {
	result.Pruned, err = backup.PruneRuntimeBackups(ctx, r.opts, r.plan.Keep)
	return err
}

// hasRules reports whether the plan has a prune.
func (r *runner) hasRules() bool {
	keep := r.plan.Keep
	keep.DryRun = false
	return keep != backup.Retention{}
}

// push pushes the newest snapshot, unless that was found damaged.
func (r *runner) push(ctx context.Context) {
	newest := r.newest
	if r.plan.Push == nil || newest == nil || r.state.Pushed == newest.Stamp || r.verdict() == damaged {
		r.attempts[StepPush].failed = false
		return
	}
	r.try(ctx, Result{Step: StepPush, Stamp: newest.Stamp}, func(*Result) error {
		err := r.plan.Push(ctx, newest.Stamp)
		if err == nil {
			r.remember(func(s *state) { s.Pushed = newest.Stamp })
		}
		return err
	})
}

// drill rehearses a restore of the latest snapshot.
func (r *runner) drill(ctx context.Context) {
	if !r.drillIsDue() {
		return
	}
	r.try(ctx, Result{Step: StepDrill}, func(result *Result) error {
		latest, err := backup.LatestRuntimeBackup(ctx, r.opts)
		if err != nil {
			return err
		}
		result.Stamp = latest.Snapshot.Stamp
		result.Drilled, err = drill.Run(ctx, r.opts, result.Stamp, r.plan.DrillDir)
		if err == nil {
			now := r.opts.Clock.Now()
			r.remember(func(s *state) { s.DrilledAt = now.UTC() })
		}
		return err
	})
}
