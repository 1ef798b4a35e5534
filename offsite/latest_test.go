package offsite_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/offsite"
)

// The newest copy is that of the store that the options name, or of the only one.
func TestLatest(t *testing.T) {
	r := newRepository(t)
	ctx := t.Context()
	a, b := newHost(t), newHost(t)
	_, err := r.Latest(ctx, a.Options)
	require.ErrorIs(t, err, offsite.ErrNoCopy)

	first := a.push(r, a.Create().Stamp)
	second := a.push(r, a.Create().Stamp)
	elsewhere := backup.Options{DatabasePath: "/new/place.db", Host: "another.example", Clock: a.Clock}
	for _, opts := range []backup.Options{a.Options, elsewhere, {Clock: a.Clock}} {
		c, err := r.Latest(ctx, opts)
		require.NoError(t, err)
		require.Equal(t, second.Copy, *c)
	}
	// One that is dated in the future does not count.
	c, err := r.Latest(ctx, backup.Options{Clock: backuptest.Clock{Time: second.CreatedAt.Add(-time.Nanosecond)}})
	require.NoError(t, err)
	require.Equal(t, first.Copy, *c)
	_, err = r.Latest(ctx, backup.Options{Clock: backuptest.Clock{Time: first.CreatedAt.Add(-time.Nanosecond)}})
	require.ErrorIs(t, err, offsite.ErrNoCopy)

	b.now = a.now.Add(time.Hour)
	third := b.push(r, b.Create().Stamp)
	_, err = r.Latest(ctx, backup.Options{Clock: b.Clock})
	require.ErrorIs(t, err, offsite.ErrOtherStore)
	require.ErrorContains(t, err, a.DatabasePath)
	elsewhere.Clock = b.Clock
	_, err = r.Latest(ctx, elsewhere)
	require.ErrorIs(t, err, offsite.ErrNoCopy)
	require.ErrorContains(t, err, b.DatabasePath)
	a.Clock = b.Clock
	for _, test := range []struct {
		opts backup.Options
		want offsite.Copy
	}{{a.Options, second.Copy}, {b.Options, third.Copy}} {
		c, err := r.Latest(ctx, test.opts)
		require.NoError(t, err)
		require.Equal(t, test.want, *c)
	}
}
