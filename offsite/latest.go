package offsite

import (
	"context"
	"fmt"
	"slices"

	"github.com/atocore/backup"
)

// Latest returns the newest copy of the store that opts.DatabasePath and opts.Host
// name, by the time of its snapshot. If all copies are of one store, it is that
// one, whatever opts say: on the machine that takes the place of a lost one, path
// and host may be others. Copies that are dated in the future do not count.
//
// Errors: ErrNoCopy, ErrOtherStore, ErrNoProgram, ErrProgramTooOld, ErrNoRepository,
// ErrPassword, ErrBusy, ErrStuck; or ctx's error.
func (r *Repository) Latest(ctx context.Context, opts backup.Options) (_ *Copy, err error) {
	defer wrapCall(&err, "find the newest copy")
	defer recovered(&err)
	p := r.program()
	p.Log = loggerOf(opts)
	all, err := copiesIn(ctx, p)
	if err != nil {
		return nil, err
	}
	clock := opts.Clock
	if clock == nil {
		clock = backup.SystemClock()
	}
	now := clock.Now()
	past := slices.DeleteFunc(slices.Clone(all), func(c Copy) bool { return c.CreatedAt.After(now) })
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("%w: the repository has none at all", ErrNoCopy)
	case len(past) == 0:
		return nil, fmt.Errorf("%w: all are dated in the future", ErrNoCopy)
	}
	own := past
	if slices.ContainsFunc(past, func(c Copy) bool { return c.store() != past[0].store() }) {
		if own, _, err = ofStore(opts, past); err != nil {
			return nil, err
		}
	}
	if len(own) == 0 {
		return nil, fmt.Errorf("%w of this store; there are some of %s", ErrNoCopy, joinStores(past))
	}
	return &own[len(own)-1], nil
}
