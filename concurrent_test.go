package backup_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// roleCreate takes args[1] snapshots of the machine store in args[0] and says
// their stamps. At the beginning of the phase args[2], if there is one, it says
// so and waits for a line.
func roleCreate(p parent, args []string) error {
	opts := storeIn(args[0])
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	waited := false
	opts.OnProgress = func(now backup.Progress) {
		if len(args) > 2 && string(now.Phase) == args[2] && !waited {
			waited = true
			p.say("at " + args[2])
			p.hear()
		}
	}
	opts.Locker = backup.SyncLocker(new(sync.Mutex)) // so that there is a guard to wait for
	for range n {
		meta, err := backup.CreateRuntimeBackup(context.Background(), opts)
		if err != nil {
			return err
		}
		p.say(meta.Stamp)
	}
	return nil
}

// startCreate starts a process that takes a snapshot and waits for a line at
// the beginning of a phase.
func startCreate(s *store, phase backup.Phase) *child {
	s.t.Helper()
	c := startChild(s.t, "create", s.dir, "1", string(phase))
	require.Equal(s.t, "at "+string(phase), c.hear())
	return c
}

// Two processes take 20 snapshots each at once in one directory, and none is
// lost.
func TestTwoProcessesCreateAtOnce(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	const each = 20
	stamps := map[string]bool{}
	children := []*child{startChild(t, "create", s.dir, fmt.Sprint(each)), startChild(t, "create", s.dir, fmt.Sprint(each))}
	for range each {
		for _, c := range children {
			stamps[c.hear()] = true
		}
	}
	for _, c := range children {
		c.wait()
	}
	require.Len(t, stamps, 2*each, "a stamp was given twice")
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, 2*each)
	for _, snapshot := range list {
		require.True(t, stamps[snapshot.Stamp], snapshot.Stamp)
	}
}

// Calls at once, and a clock that stands still: every call gets a number of
// its own, and no number is left out.
func TestGoroutinesCreateAtOnce(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.Clock = noon
	const calls = 12
	var group sync.WaitGroup
	errs := make([]error, calls)
	for i := range calls {
		group.Go(func() { _, errs[i] = backup.CreateRuntimeBackup(t.Context(), s.Options) })
	}
	group.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, calls)
	require.Equal(t, "20261124T120000Z", list[0].Stamp)
	for i, snapshot := range list[1:] {
		require.Equal(t, fmt.Sprintf("20261124T120000Z-%03d", i+2), snapshot.Stamp)
		require.Equal(t, snapshot.Stamp, snapshot.Metadata.Stamp)
	}
}

// One call cancels or fails and the others don't care.
func TestFailuresBesideSuccesses(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var group sync.WaitGroup
	errs := make([]error, 12)
	for i := range errs {
		group.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opts := s.Options
			opts.OnProgress = func(p backup.Progress) {
				if i%2 == 1 && p.Phase == phases[i%len(phases)] {
					cancel()
				}
			}
			if i%2 == 1 {
				opts.Locker = new(guard)
			}
			_, errs[i] = backup.CreateRuntimeBackup(ctx, opts)
		})
	}
	group.Wait()
	for i, err := range errs {
		if i%2 == 1 {
			require.ErrorIs(t, err, context.Canceled)
		} else {
			require.NoError(t, err)
		}
	}
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, len(errs)/2)
}

// A create that is killed leaves nothing to see, and the next one removes what
// it left.
func TestKilledCreate(t *testing.T) {
	t.Parallel()
	for _, phase := range phases {
		t.Run(string(phase), func(t *testing.T) {
			s := newStore(t)
			startCreate(s, phase).kill()
			left := stagings(t, s)
			if phase == backup.PhaseInit {
				require.Empty(t, left)
			} else {
				require.Len(t, left, 1)
			}
			list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
			require.NoError(t, err)
			require.Empty(t, list, "half of a snapshot is visible")

			log := s.record()
			s.create()
			require.Empty(t, stagings(t, s))
			require.Len(t, log.lines(), len(left)+1)
			for i, path := range left {
				require.Equal(t, "stale_staging_removed path="+path, log.lines()[i])
			}
			list, err = backup.ListRuntimeBackups(t.Context(), s.Options)
			require.NoError(t, err)
			require.Len(t, list, 1)
		})
	}
}

// stagings lists the staging directories that are there.
func stagings(t *testing.T, s *store) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.BackupDir, ".atocore-staging-*"))
	require.NoError(t, err)
	return found
}

// A process that is slow, even one that stands still, keeps its staging, and
// its snapshot becomes what it would have been.
func TestLiveStagingIsLeftAlone(t *testing.T) {
	t.Parallel()
	for _, phase := range phases[1:] {
		t.Run(string(phase), func(t *testing.T) {
			s := newStore(t)
			slow := startCreate(s, phase)
			before := stagings(t, s)
			require.Len(t, before, 1)
			log := s.record()
			first := s.create().Stamp
			require.Equal(t, before, stagings(t, s))
			require.Len(t, log.lines(), 1)

			slow.tell("go on")
			second := slow.hear()
			slow.wait()
			require.NotEqual(t, first, second)
			list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
			require.NoError(t, err)
			require.Len(t, list, 2)
			require.True(t, strings.HasPrefix(list[0].Stamp, "2"))
		})
	}
}
