package restic

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// A run is one run of restic.
type run struct {
	args []string // the command first
	dir  string   // the working directory, absolute; "" is that of this process
	out  sink     // standard output
	bare bool     // needs no repository, and none of Program.Args
}

func (r *run) command() string { return r.args[0] }

// do runs restic until the repository is not locked. It returns the lines of the
// last run's standard error.
func (p *Program) do(ctx context.Context, r run) ([]string, error) {
	v, err := p.Version(ctx)
	if err != nil {
		return nil, err
	}
	patience := time.NewTimer(p.patience())
	defer patience.Stop()
	for wait := time.Duration(0); ; wait = min(2*wait+time.Second, 10*time.Second) {
		lines, err := p.once(ctx, v, r)
		if !errors.Is(err, ErrBusy) {
			return lines, err
		}
		p.log().Info("restic_locked", "command", r.command(), "reason", err.Error())
		// The lock may be that of a process that was killed.
		if _, err := p.once(ctx, v, run{args: []string{"unlock"}, out: &textLines{}}); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-patience.C:
			return nil, fmt.Errorf("%w (waited %v)", err, p.patience())
		case <-time.After(wait):
		}
		r.out.reset()
	}
}

// once runs restic once, ends it if nothing goes on any more, and turns its exit
// into an error. It returns the lines of its standard error, without credentials.
func (p *Program) once(ctx context.Context, v Version, r run) ([]string, error) {
	path, err := p.find()
	if err != nil {
		return nil, err
	}
	env, location := p.environment(r.dir)
	args := r.args
	if !r.bare {
		if err := p.complete(env); err != nil {
			return nil, err
		}
		args = slices.Concat(absoluteArgs(p.Args), r.args)
	}
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errs := &tail{}
	var read atomic.Int64
	cmd := exec.CommandContext(running, path, args...)
	cmd.Env, cmd.Dir = env, r.dir
	cmd.Stdout, cmd.Stderr = counted{r.out, &read}, counted{errs, &read}
	cmd.Cancel = func() error { return interrupt(cmd.Process) }
	// After an interrupt restic removes its lock from the repository. Then it is killed.
	cmd.WaitDelay = min(10*time.Second, p.patience())
	detach(cmd, p.Inherit)
	if err := cmd.Start(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("start restic: %w", err)
	}
	ended, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		p.watch(cmd.Process.Pid, r.out, &read, ended, func() { cancel(ErrStuck) })
	}()
	err = cmd.Wait()
	close(ended)
	<-watched

	// Judged first: a secret may be a word of a message.
	lines := plainLines(errs.lines())
	kind := classify(v, r.command(), cmd.ProcessState.ExitCode(), strings.Join(lines, "\n"))
	redact := newRedactor(env, p.Env, location)
	for i := range lines {
		lines[i] = redact.clean(lines[i])
	}
	code := cmd.ProcessState.ExitCode()
	p.log().Debug("restic_ran", "command", r.command(), "exit_code", code)
	switch {
	case ctx.Err() != nil:
		return lines, context.Cause(ctx)
	case running.Err() != nil:
		return lines, stuck(p.patience(), r.command(), lines)
	case r.out.failed() != nil:
		return lines, fmt.Errorf("restic %s: %w", r.command(), r.out.failed())
	case cmd.ProcessState.Success() && (err == nil || errors.Is(err, exec.ErrWaitDelay)):
		return lines, nil // some child of restic's may still have the pipes open
	case cmd.ProcessState.Success():
		return lines, fmt.Errorf("restic %s: read its output: %w", r.command(), err)
	}
	return lines, &ExitError{Command: r.command(), Code: code, Message: shorten(message(lines)), kind: kind}
}

// stuck returns the error for a restic that was ended. Its reason is what restic
// said last before that, such as why it tries again.
func stuck(patience time.Duration, command string, lines []string) error {
	if i := slices.IndexFunc(lines, func(line string) bool {
		return strings.Contains(line, "signal interrupt received") || strings.Contains(line, "context canceled")
	}); i >= 0 {
		lines = lines[:i]
	}
	if said := shorten(message(lines)); said != "" {
		return fmt.Errorf("%w for %v: restic %s: %s", ErrStuck, patience, command, said)
	}
	return fmt.Errorf("%w for %v: restic %s", ErrStuck, patience, command)
}

// An activity is what a process has done since it began.
type activity struct {
	bytes int64 // read and written
	cpu   time.Duration
}

// What the watch takes for progress: in a quarter of the patience that many
// bytes, or that share of a processor. A program that tries to connect again and
// again moves and computes a little as well.
const (
	quarters = 4
	minBytes = 16 << 10
	minShare = 20 // a twentieth
)

// watch calls giveUp if neither the output nor the activity of the process shows
// progress for as long as the patience is. read is what was read of its pipes.
func (p *Program) watch(pid int, out sink, read *atomic.Int64, ended <-chan struct{}, giveUp func()) {
	window := max(p.patience()/quarters, time.Millisecond)
	ticker := time.NewTicker(window)
	defer ticker.Stop()
	look := func() (int64, activity) {
		did := activityOf(pid)
		did.bytes -= read.Load()
		return out.progress(), did
	}
	said, did := look()
	for silent := 0; silent < quarters; {
		select {
		case <-ended:
			return
		case <-ticker.C:
		}
		silent++
		nowSaid, nowDid := look()
		if nowSaid != said || nowDid.bytes-did.bytes >= minBytes || nowDid.cpu-did.cpu >= window/minShare {
			silent = 0
		}
		said, did = nowSaid, nowDid
	}
	giveUp()
}

// absolute is filepath.Abs with a step in its error.
func absolute(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the path of %s: %w", dir, err)
	}
	return abs, nil
}
