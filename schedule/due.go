package schedule

import (
	"fmt"
	"hash/fnv"
	"time"

	"github.com/atocore/backup"
)

// slack is how far in the future a snapshot may be dated to count nevertheless: a
// clock that was set back a little must not make its due time come again. It is
// also by how much a wrong date can delay the next snapshot.
const slack = time.Hour

// nextDue returns when the next snapshot is due after one of the time newest.
func (p *Plan) nextDue(newest time.Time, store string) (time.Time, error) {
	if p.Cron == nil {
		due := newest.Add(p.Every)
		return due.Add(jitter(due, min(p.Jitter, p.Every), store)), nil
	}
	due, err := p.next(newest)
	if err != nil || p.Jitter == 0 {
		return due, err
	}
	after, err := p.next(due)
	return due.Add(jitter(due, min(p.Jitter, after.Sub(due)), store)), err
}

// intervalAfter returns the time between the next two due times.
func (p *Plan) intervalAfter(now time.Time) (time.Duration, error) {
	if p.Cron == nil {
		return p.Every, nil
	}
	first, err := p.next(now)
	if err != nil {
		return 0, err
	}
	second, err := p.next(first)
	return second.Sub(first), err
}

// next returns the first due time of Cron after t. One that does not come after t
// would make the schedule run without a pause.
func (p *Plan) next(t time.Time) (time.Time, error) {
	due := p.Cron.Next(t.Local())
	switch {
	case due.IsZero():
		return due, fmt.Errorf("%w: Cron has no due time after %s", backup.ErrInvalidOptions, t.Format(time.RFC3339))
	case !due.After(t):
		return due, fmt.Errorf("%w: the due time of Cron after %s is %s", backup.ErrInvalidOptions, t.Format(time.RFC3339), due.Format(time.RFC3339))
	}
	return due, nil
}

// jitter returns a duration less than most, always the same one for a due time and
// a store.
func jitter(due time.Time, most time.Duration, store string) time.Duration {
	if most <= 0 {
		return 0
	}
	sum := fnv.New64a()
	fmt.Fprintf(sum, "%d %s", due.UnixMicro(), store)
	// The low bits of this hash alone would be alike for times that are alike.
	mixed := sum.Sum64()
	mixed ^= mixed >> 29
	return time.Duration(mixed % uint64(most))
}

// pause returns how long to wait after a step has failed that many times in
// succession, if a snapshot is due that often.
func pause(failures int, interval time.Duration) time.Duration {
	const first, most = time.Minute, time.Hour
	wait := min(first, interval)
	for range min(failures-1, 10) {
		wait *= 2
	}
	return min(wait, most, interval)
}
