package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// cleanUpTime is how long signals after the first count as the same request:
// timeout(1) sends one to the process and one to its group, and a wrapper may
// forward a signal that the terminal has already sent to the whole group.
const cleanUpTime = time.Second

// untilSignal returns a context that is cancelled by the first signal. After
// cleanUpTime, or once stop is called, signals have their default effect again,
// so that another one ends the process at once.
func untilSignal() (ctx context.Context, stop func()) {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
	// nohup(1), and shells that run a job in the background, start it with some
	// signals ignored; registering for those would undo that.
	signals = slices.DeleteFunc(signals, signal.Ignored)
	if len(signals) == 0 { // Notify without signals would mean all of them
		return context.Background(), func() {}
	}
	ctx, stop = signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, func() { time.AfterFunc(cleanUpTime, stop) })
	return ctx, stop
}
