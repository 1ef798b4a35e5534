package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/schedule"
)

type runCommand struct {
	storeFlags
	repositoryFlags
	keepFlags

	Every         period        `placeholder:"TIME" help:"Take a snapshot when the newest one is this old, for example 1h, 24h or 7d."`
	Cron          string        `placeholder:"EXPRESSION" help:"Take snapshots at the times of a cron expression instead, for example \"0 3 * * *\" or @daily, in the zone of the system or that of a CRON_TZ=ZONE before it."`
	Jitter        period        `placeholder:"TIME" help:"Postpone each due time by up to this, always by the same for a store and a time, so that many stores do not begin at once."`
	Verify        bool          `help:"Validate each snapshot and record the verdict. One that is damaged is replaced soon."`
	DrillEvery    period        `placeholder:"TIME" help:"Rehearse a restore when the last drill was this long ago."`
	Scratch       *string       `placeholder:"DIR" help:"Create the scratch directory of a drill in DIR instead of the directory for temporary files."`
	Push          bool          `help:"Copy each snapshot to the repository, as offsite push does. A push that fails is tried again later, for the newest snapshot."`
	IncludeChroma bool          `help:"Include the Chroma directory. Nothing may write to it during the copy; see --guard-file."`
	GuardFile     *string       `placeholder:"PATH" help:"Hold an exclusive flock(2) on PATH while the store is read, as create does."`
	Wait          time.Duration `default:"5m" placeholder:"TIME" help:"Try again later after waiting this long for a database that somebody keeps from being read, for a restore that is running, or for the guard file. 0 waits for ever. Default: 5m."`

	Listen        *string  `placeholder:"ADDRESS" help:"Serve the page, the routes of docs/server.md and metrics at ADDRESS: a port, or 127.0.0.1:PORT. Any address that is not of this machine alone needs --token-file."`
	TokenFile     *string  `placeholder:"FILE" help:"Answer only requests that have the token in FILE, as Authorization: Bearer TOKEN, or as the password of a browser."`
	MaxAge        period   `placeholder:"TIME" help:"Let the page say that something is wrong if the newest snapshot is older, for example 26h."`
	MaxUnverified period   `placeholder:"TIME" help:"Let the page say that something is wrong if the newest snapshot that was found valid is older, for example 8d."`
	Allow         []string `placeholder:"ROUTES" enum:"restore,remove,protect,prune,import" help:"Also answer requests to restore, remove, protect, prune or import; several are separated by commas."`
}

// Help returns the details for the help of this command.
func (c *runCommand) Help() string {
	return `It runs until it is told to stop. SIGTERM, SIGINT and SIGHUP end it: what is running is cancelled, nothing is left behind, and the status is 0. A line about each snapshot, check, prune and drill goes to standard error, and nothing to standard output.

When a snapshot is due depends on the newest one, so a restart neither skips nor doubles one, and what was missed is made up once. What fails is tried again after a minute, then two, four and so on up to an hour. Several processes may have the same plan; one at a time does the work.

Without a keep rule, nothing is removed.

Example: ` + commandName + ` run --every 1h --verify --keep-hourly 24 --keep-daily 14 --drill-every 7d --listen 127.0.0.1:8077`
}

func (c *runCommand) Run(s *session) error {
	plan, err := c.plan()
	if err != nil {
		return joinFor("run", err)
	}
	access, err := c.access()
	if err != nil {
		return joinFor("run", err)
	}
	say := serialized(s.say)
	opts := c.options()
	opts.IncludeChroma, opts.Wait = c.IncludeChroma, waitFor(c.Wait)
	if c.GuardFile != nil {
		opts.Locker = flockGuard(*c.GuardFile, say)
	}
	if s.verbose {
		s.watch(&opts)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	var web *site
	plan.OnResult = func(r schedule.Result) {
		tellStep(r, say)
		if web != nil {
			web.handler.Observe(string(r.Step), r.Stamp, r.Began, resultOf(r), r.Err)
		}
	}
	if c.Listen != nil {
		if web, err = c.serve(opts, access, say); err != nil {
			return joinFor("run", err)
		}
		defer web.stop()
		opts.OnProgress = web.handler.ObserveProgress
		go func() {
			<-web.failed
			cancel()
		}()
	}
	if c.Push {
		plan.Push = c.push(opts, say)
	}
	err = schedule.Run(ctx, opts, plan)
	switch {
	case web != nil && web.err() != nil:
		return fmt.Errorf("run: serve %s: %w", web.listener.Addr(), web.err())
	case s.ctx.Err() != nil && errors.Is(err, context.Canceled):
		say("Stopping: %v.", context.Cause(s.ctx))
		return nil
	}
	return joinFor("run", err)
}

// plan returns the plan of the flags.
func (c *runCommand) plan() (schedule.Plan, error) {
	faults := []error{c.needDB(), c.needBackupDir(), notEmpty(c.Scratch, "--scratch"), notEmpty(c.GuardFile, "--guard-file")}
	plan := schedule.Plan{
		Every: time.Duration(c.Every), Jitter: time.Duration(c.Jitter), Verify: c.Verify,
		Keep: c.retention(), DrillEvery: time.Duration(c.DrillEvery),
	}
	if c.IncludeChroma {
		faults = append(faults, c.needChroma())
	}
	if c.Push {
		faults = append(faults, c.needRepository())
	}
	if c.Wait < 0 {
		faults = append(faults, errors.New("--wait is negative"))
	}
	switch {
	case c.Every == 0 && c.Cron == "":
		faults = append(faults, errors.New("no times: give --every or --cron"))
	case c.Every != 0 && c.Cron != "":
		faults = append(faults, errors.New("give --every or --cron, not both"))
	case c.Cron != "":
		cron, err := parseCron(c.Cron)
		faults = append(faults, err)
		plan.Cron = cron
	}
	plan.DrillDir = c.scratch()
	return plan, errors.Join(faults...)
}

// scratch returns the directory for the scratch directories of drills, or an empty
// string for that for temporary files.
func (c *runCommand) scratch() string {
	if c.Scratch == nil {
		return ""
	}
	return *c.Scratch
}

// push returns what copies a snapshot to the repository.
func (c *runCommand) push(opts backup.Options, say func(string, ...any)) func(context.Context, string) error {
	repository := c.repository()
	return func(ctx context.Context, stamp string) error {
		pushed, err := repository.Push(ctx, opts, stamp)
		if err != nil {
			return advise(err)
		}
		say("%s", pushSummary(pushed))
		return nil
	}
}

// serve begins to answer requests.
func (c *runCommand) serve(opts backup.Options, access access, say func(string, ...any)) (*site, error) {
	listener, err := net.Listen("tcp", access.address)
	if err != nil {
		return nil, err
	}
	opts.Verify, opts.RecordVerdicts = c.Verify, true
	allows := func(route string) bool { return slices.Contains(c.Allow, route) }
	maxImport := int64(-1)
	if allows("import") {
		maxImport = 0 // as much as the handler takes by default
	}
	handler := backuphttp.New(opts, backuphttp.Config{
		AllowRestore: allows("restore"), AllowRemove: allows("remove"), AllowProtect: allows("protect"), AllowPrune: allows("prune"),
		MaxImport: maxImport, Keep: c.retention(), DrillDir: c.scratch(),
		MaxAge: time.Duration(c.MaxAge), MaxUnverified: time.Duration(c.MaxUnverified),
	})
	return newSite(listener, handler, access, say), nil
}

// serialized returns say as a function that several goroutines may call.
func serialized(say func(string, ...any)) func(string, ...any) {
	var mu sync.Mutex
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		say(format, args...)
	}
}

// resultOf returns what the call of a step returned.
func resultOf(r schedule.Result) any {
	switch {
	case r.Created != nil:
		return r.Created
	case r.Report != nil:
		return r.Report
	case r.Pruned != nil:
		return r.Pruned
	case r.Drilled != nil:
		return r.Drilled
	}
	return nil
}

// tellStep says what became of a step of the schedule.
func tellStep(r schedule.Result, say func(string, ...any)) {
	if r.Err != nil {
		again := ""
		if r.Retry > 0 {
			again = fmt.Sprintf(" It is tried again after %s.", period(r.Retry))
		}
		say("%s failed: %s.%s", nameOfStep(r), oneLine(r.Err.Error()), again)
	}
	switch {
	case r.Created != nil && r.Err == nil:
		say("%s", summary(r.Created))
	case r.Report != nil:
		describe(r.Report, say)
	case r.Pruned != nil:
		say("Pruned: %s", pruned(r.Pruned, false))
	case r.Drilled != nil && r.Err == nil:
		say("Snapshot %s can be restored: %s, %s were restored and checked.", r.Stamp, count(r.Drilled.Files, "file"), size(r.Drilled.Bytes))
	}
}

// nameOfStep names a step that failed.
func nameOfStep(r schedule.Result) string {
	switch r.Step {
	case schedule.StepCreate:
		return "The snapshot"
	case schedule.StepVerify:
		return fmt.Sprintf("The validation of %q", r.Stamp)
	case schedule.StepPrune:
		return "The prune"
	case schedule.StepPush:
		return fmt.Sprintf("The push of %q", r.Stamp)
	case schedule.StepDrill:
		return "The drill"
	}
	return "Looking for what is due"
}
