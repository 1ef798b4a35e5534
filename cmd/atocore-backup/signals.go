package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// cleanUpTime is how long a signal that follows the first is taken for the
// same request: timeout(1) sends one to the process and one to its group, and
// a wrapper passes on what the terminal has already sent.
const cleanUpTime = time.Second

// untilSignal gives a context that ends at the first signal to stop. After
// cleanUpTime, or once stop is called, signals do what they do by default, so
// that another one ends the process at once.
func untilSignal() (ctx context.Context, stop func()) {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
	// nohup(1) and shells that run a job in the background have some ignored;
	// asking to be notified would undo that.
	signals = slices.DeleteFunc(signals, signal.Ignored)
	if len(signals) == 0 { // which Notify would take for all
		return context.Background(), func() {}
	}
	ctx, stop = signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, func() { time.AfterFunc(cleanUpTime, stop) })
	return ctx, stop
}
