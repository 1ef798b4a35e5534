package offsite

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest/s3server"
	"github.com/atocore/backup/offsite"
)

// TestBadServer pushes to, and pulls from, a server that fails now and then.
func TestBadServer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		fault s3server.Fault
	}{
		{"503", s3server.Fault{Kind: s3server.Unavailable, Every: 3}},
		{"cut", s3server.Fault{Kind: s3server.Cut, Every: 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newBucket(t)
			s := newStore(t, 1)
			p.push(s, s.Create().Stamp)
			p.proxy.Break(c.fault)
			stamp := s.next()
			p.push(s, stamp)
			p.requirePulled(s, stamp)
			p.proxy.Mend()
			p.check("--read-data")
		})
	}
}

// TestDeadServer calls a server that does not answer, or is down: each call ends,
// within a time that has to do with Patience, and leaves nothing. Afterwards
// everything works.
func TestDeadServer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		die    func(p *place)
		revive func(p *place)
		want   error // nil means any
	}{
		{
			"hangs",
			func(p *place) { p.proxy.Break(s3server.Fault{Kind: s3server.Hang}) },
			func(p *place) { p.proxy.Mend() },
			offsite.ErrStuck,
		},
		{
			"is down",
			func(p *place) { p.proxy.Stop() },
			func(p *place) { require.NoError(p.t, p.proxy.Start()) },
			nil,
		},
		{
			"503",
			func(p *place) { p.proxy.Break(s3server.Fault{Kind: s3server.Unavailable}) },
			func(p *place) { p.proxy.Mend() },
			nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newBucket(t)
			s := newStore(t, 1)
			first := s.Create().Stamp
			p.push(s, first)
			stamp := s.next()
			p.Patience = 2 * time.Second
			requireFailure := func(err error) {
				t.Helper()
				require.Error(t, err)
				require.NoError(t, p.context().Err(), "it took far too long")
				if c.want != nil {
					require.ErrorIs(t, err, c.want)
				}
			}

			c.die(p)
			_, err := p.Push(p.context(), s.Options, stamp)
			requireFailure(err)
			_, err = p.List(p.context())
			requireFailure(err)
			requireFailure(p.pullFails(p.context(), s, first))
			c.revive(p)

			// It dies in the middle.
			p.dieAtUpload(func() { c.die(p) })
			_, err = p.Push(p.context(), s.Options, stamp)
			p.proxy.Watch(nil)
			requireFailure(err)
			c.revive(p)
			p.Patience = time.Minute
			p.requireWhole(s, []string{first}, stamp)
			p.check()
		})
	}
}

// dieAtUpload calls die, once, when the first upload of data begins.
func (p *place) dieAtUpload(die func()) {
	done := make(chan bool, 1)
	p.proxy.Watch(func(_ int, r *http.Request) {
		if r.Method == http.MethodPut && isData(r) {
			select {
			case done <- true:
				// Stop waits for nothing, but it cuts this request, too.
				die()
			default:
			}
		}
	})
}

// TestServerComesBack: a server that is down for a while in the middle of a push,
// and of a pull, only delays them.
func TestServerComesBack(t *testing.T) {
	t.Parallel()
	p := newBucket(t)
	s := newStore(t, 1)
	stamp := s.Create().Stamp
	down := func() {
		p.proxy.Stop()
		time.AfterFunc(2*time.Second, func() { _ = p.proxy.Start() }) // if it fails, the push does
	}
	p.dieAtUpload(down)
	p.push(s, stamp)
	done := make(chan bool, 1)
	p.proxy.Watch(func(_ int, r *http.Request) {
		if r.Method == http.MethodGet && isData(r) {
			select {
			case done <- true:
				down()
			default:
			}
		}
	})
	p.requirePulled(s, stamp)
	p.proxy.Watch(nil)
	require.Len(t, done, 1)
	p.check("--read-data")
}

// TestCancelled: a push and a pull end when their context does, in the middle of a
// transfer, and leave nothing.
func TestCancelled(t *testing.T) {
	t.Parallel()
	p := newBucket(t)
	s := newStore(t, 1)
	stamp := s.Create().Stamp
	ctx, cancel := context.WithCancel(p.context())
	p.dieAtUpload(cancel)
	_, err := p.Push(ctx, s.Options, stamp)
	require.ErrorIs(t, err, context.Canceled)
	p.proxy.Watch(nil)
	p.requireWhole(s, nil, stamp)

	ctx, cancel = context.WithCancel(p.context())
	defer cancel()
	p.proxy.Watch(func(_ int, r *http.Request) {
		if r.Method == http.MethodGet && isData(r) {
			cancel()
		}
	})
	require.ErrorIs(t, p.pullFails(ctx, s, stamp), context.Canceled)
	p.proxy.Watch(nil)
	// No lock of restic's is left, either.
	p.restic("prune")
	p.check()
}
