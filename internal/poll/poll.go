// Package poll waits until a context ends for what offers no such wait: it tries
// something again, with growing pauses, until it succeeds, and it waits for a
// mutex. It must not know what is being tried.
package poll

import (
	"context"
	"errors"
	"time"
)

// Until calls try until it reports that it is done or fails, and returns its
// error. Between two calls it pauses, for first at the beginning and for twice
// as long each time, but never longer than most. If ctx ends during a pause,
// Until returns ctx's error at once. The first call is made without looking at
// ctx.
func Until(ctx context.Context, first, most time.Duration, try func() (done bool, err error)) error {
	for pause := first; ; pause = min(2*pause, most) {
		if done, err := try(); done || err != nil {
			return err
		}
		if err := Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// Again calls try up to that many times, as long as its error matches target, and
// returns its last error. It pauses like Until, and if ctx ends during a pause, it
// returns ctx's error.
func Again(ctx context.Context, times int, first, most time.Duration, target error, try func() error) error {
	return Until(ctx, first, most, func() (bool, error) {
		err := try()
		if times--; times > 0 && errors.Is(err, target) {
			return false, nil
		}
		return true, err
	})
}

// Sleep pauses for d. If ctx ends first, it returns ctx's error.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
