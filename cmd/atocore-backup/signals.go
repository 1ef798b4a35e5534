package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// cleanUpTime is how long signals after the first count as the same request:
// timeout(1) sends one to the process and one to its group, and a wrapper may
// forward a signal that the terminal has already sent to the whole group.
const cleanUpTime = time.Second

// A signalError is the cause of a context that a signal cancelled.
type signalError struct{ syscall.Signal }

// Error names the signal.
func (e signalError) Error() string { return e.String() }

// Is reports whether target is context.Canceled.
func (e signalError) Is(target error) bool { return target == context.Canceled }

// untilSignal returns a context that is cancelled by the first signal, with a
// signalError as its cause. After cleanUpTime, or once stop is called, signals
// have their default effect again, so that another one ends the process at once.
func untilSignal() (ctx context.Context, stop func()) {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
	// nohup(1), and shells that run a job in the background, start it with some
	// signals ignored; registering for those would undo that.
	signals = slices.DeleteFunc(signals, signal.Ignored)
	if len(signals) == 0 { // Notify without signals would mean all of them
		return context.Background(), func() {}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	received := make(chan os.Signal, 1)
	signal.Notify(received, signals...)
	stop = sync.OnceFunc(func() {
		cancel(nil)
		signal.Stop(received)
	})
	go func() {
		select {
		case sig := <-received:
			number, ok := sig.(syscall.Signal)
			if !ok {
				cancel(fmt.Errorf("%w: %v", context.Canceled, sig))
				break
			}
			cancel(signalError{number})
		case <-ctx.Done():
			return
		}
		time.AfterFunc(cleanUpTime, stop)
	}()
	return ctx, stop
}
