package offsite

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/backuptest/s3server"
	"github.com/atocore/backup/offsite"
)

// calls are all calls on a repository but Init.
func calls(p *place, s *store, stamp string) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"push": func(ctx context.Context) error { _, err := p.Push(ctx, s.Options, stamp); return err },
		"pull": func(ctx context.Context) error { _, err := p.Pull(ctx, s.elsewhere().Options, stamp); return err },
		"list": func(ctx context.Context) error { _, err := p.List(ctx); return err },
		"verify": func(ctx context.Context) error {
			_, err := p.Verify(ctx, offsite.VerifyOptions{})
			return err
		},
		"verify stamp": func(ctx context.Context) error {
			_, err := p.Verify(ctx, offsite.VerifyOptions{Stamp: stamp, Options: s.elsewhere().Options})
			return err
		},
		"forget": func(ctx context.Context) error {
			_, err := p.Forget(ctx, s.Options, backup.Retention{KeepLast: 1})
			return err
		},
	}
}

// TestNoWayIn: each call says what is missing, and leaves nothing.
func TestNoWayIn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		lock func(p *place)
		want error
	}{
		{"wrong password", func(p *place) { backuptest.Write(p.t, p.PasswordFile, "wrong\n") }, offsite.ErrPassword},
		{"no password file", func(p *place) { p.PasswordFile += "-missing" }, offsite.ErrPassword},
		{"no repository", func(p *place) { p.Location = strings.TrimSuffix(p.Location, "/") + "-missing" }, offsite.ErrNoRepository},
		{"no program", func(p *place) { p.Program = filepath.Join(p.t.TempDir(), "restic") }, offsite.ErrNoProgram},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, make := range []func(t *testing.T) *place{newDirectory, newBucket} {
				p := make(t)
				s := newStore(t, 1)
				stamp := s.Create().Stamp
				c.lock(p)
				for name, call := range calls(p, s, stamp) {
					require.ErrorIs(t, call(p.context()), c.want, name)
				}
				require.NoDirExists(t, filepath.Join(s.BackupDir, ".atocore-offsite"))
			}
		})
	}
}

// TestLockedByPrune: while restic's prune holds the repository, a push waits as
// long as Patience says.
func TestLockedByPrune(t *testing.T) {
	t.Parallel()
	p := newBucket(t)
	s := newStore(t, 2)
	first := s.Create().Stamp
	p.push(s, first)

	// A prune whose server does not answer once it has the lock.
	pruning := p.through(p.server.NewProxy(t))
	locked := make(chan bool)
	var once sync.Once
	pruning.proxy.Watch(func(_ int, r *http.Request) {
		if r.Method == http.MethodGet && isIndex(r) {
			once.Do(func() { close(locked) })
			pruning.proxy.Break(s3server.Fault{Kind: s3server.Hang})
		}
	})
	cmd := pruning.command("prune")
	require.NoError(t, cmd.Start())
	<-locked

	stamp := s.next()
	for _, call := range calls(p, s, stamp) {
		p.requireBusy(func() error { return call(p.context()) })
	}
	require.NotContains(t, p.restic("snapshots", "--no-lock"), stamp)

	// The prune goes on while a push waits.
	p.Patience = time.Minute
	waiting := make(chan bool)
	var wait sync.Once
	p.proxy.Watch(func(_ int, r *http.Request) {
		if strings.Contains(r.URL.Path, "/locks/") {
			wait.Do(func() { close(waiting) })
		}
	})
	go func() {
		<-waiting
		pruning.proxy.Watch(nil)
		pruning.proxy.Mend()
	}()
	p.requireWhole(s, []string{first}, stamp)
	require.NoError(t, cmd.Wait())
	p.check()
}

// requireBusy makes a call that finds the repository or the state in use. A machine
// that is busy, too, may need more than little patience to find that out.
func (p *place) requireBusy(call func() error) {
	p.t.Helper()
	for p.Patience = 2 * time.Second; ; p.Patience *= 2 {
		err := call()
		if errors.Is(err, offsite.ErrStuck) && p.Patience < time.Minute {
			continue
		}
		require.ErrorIs(p.t, err, offsite.ErrBusy)
		return
	}
}

// isIndex reports whether a request is about an index of restic's, which it reads
// after it has locked the repository.
func isIndex(r *http.Request) bool { return strings.Contains(r.URL.Path, "/index/") }

// TestTwoPushers pushes from one backup directory, and from two, at the same time.
func TestTwoPushers(t *testing.T) {
	t.Parallel()
	p := newDirectory(t)
	s, other := newStore(t, 2), newStore(t, 2)
	other.Host = "other"
	stamps := []string{s.Create().Stamp}
	stamps = append(stamps, s.next())
	others := other.Create().Stamp

	var group sync.WaitGroup
	results := make([]*offsite.Pushed, 5)
	for i, push := range []struct {
		s     *store
		stamp string
	}{{s, stamps[0]}, {s, stamps[1]}, {s, stamps[1]}, {other, others}, {other, others}} {
		group.Go(func() {
			pushed, err := p.Push(t.Context(), push.s.Options, push.stamp)
			if err != nil {
				t.Error(err)
				return
			}
			results[i] = pushed
		})
	}
	group.Wait()
	require.False(t, t.Failed())
	require.NotEqual(t, results[1].AlreadyThere, results[2].AlreadyThere)
	require.Equal(t, results[1].ID, results[2].ID)
	require.NotEqual(t, results[3].AlreadyThere, results[4].AlreadyThere)
	require.ElementsMatch(t, append(stamps, others), p.stamps())
	for _, stamp := range stamps {
		p.requirePulled(s, stamp)
	}
	p.requirePulled(other, others)
	p.check("--read-data")
}

// TestSecondPusherGivesUp: a push from a backup directory waits for another one as
// long as Patience says.
func TestSecondPusherGivesUp(t *testing.T) {
	t.Parallel()
	p := newBucket(t)
	s := newStore(t, 2)
	first := s.Create().Stamp
	stamp := s.next()
	hangs := make(chan bool)
	p.dieAtUpload(func() {
		p.proxy.Break(s3server.Fault{Kind: s3server.Hang})
		close(hangs)
	})
	child := p.start("push", s, first)
	<-hangs
	second := p.through(p.server.NewProxy(t))
	second.requireBusy(func() error { _, err := second.Push(p.context(), s.Options, stamp); return err })
	// The child is killed. Its restic has inherited the lock, and goes on.
	child.Kill()
	p.proxy.Watch(nil)
	p.proxy.Mend()
	second.Patience = time.Minute
	second.requireWhole(s, []string{first}, stamp)
	second.push(s, first)
	p.check()
}
