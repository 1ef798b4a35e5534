package concurrency

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func TestMain(m *testing.M) { backuptest.Main(m, backuptest.Roles{"create": create}) }

// create takes args[1] snapshots of the machine store in args[0] and says their
// stamps. If there is an args[2], it says when that phase begins and waits for a
// line.
func create(p *backuptest.Parent, args []string) error {
	opts := backuptest.OptionsIn(args[0])
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	waited := false
	opts.OnProgress = func(now backup.Progress) {
		if len(args) > 2 && string(now.Phase) == args[2] && !waited {
			waited = true
			p.Say("at " + args[2])
			p.Hear()
		}
	}
	opts.Locker = backup.SyncLocker(new(sync.Mutex)) // so that there is a guard to wait for
	for range n {
		meta, err := backup.CreateRuntimeBackup(context.Background(), opts)
		if err != nil {
			return err
		}
		p.Say(meta.Stamp)
	}
	return nil
}

// startCreate starts a process that takes a snapshot. It returns when that
// waits for a line at the beginning of a phase.
func startCreate(s *backuptest.Store, phase backup.Phase) *backuptest.Child {
	s.T.Helper()
	c := backuptest.Start(s.T, "create", s.Dir, "1", string(phase))
	require.Equal(s.T, "at "+string(phase), c.Hear())
	return c
}

// Two processes take 20 snapshots each in one backup directory at the same time,
// and none is lost.
func TestTwoProcessesCreateAtOnce(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	const each = 20
	stamps := map[string]bool{}
	children := []*backuptest.Child{backuptest.Start(t, "create", s.Dir, fmt.Sprint(each)), backuptest.Start(t, "create", s.Dir, fmt.Sprint(each))}
	for range each {
		for _, c := range children {
			stamps[c.Hear()] = true
		}
	}
	for _, c := range children {
		c.Wait()
	}
	require.Len(t, stamps, 2*each, "a stamp was used twice")
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, 2*each)
	for _, snapshot := range list {
		require.True(t, stamps[snapshot.Stamp], snapshot.Stamp)
	}
}

// Concurrent calls with a clock that stands still get consecutive numbers.
func TestGoroutinesCreateAtOnce(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	s.Clock = backuptest.Noon
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

// Calls that are cancelled do not affect those beside them.
func TestFailuresBesideSuccesses(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	var group sync.WaitGroup
	errs := make([]error, 12)
	for i := range errs {
		group.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opts := s.Options
			opts.OnProgress = func(p backup.Progress) {
				if i%2 == 1 && p.Phase == backuptest.CreatePhases[i%len(backuptest.CreatePhases)] {
					cancel()
				}
			}
			if i%2 == 1 {
				opts.Locker = new(backuptest.Guard)
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

// A create that is killed leaves no visible snapshot, and the next one removes
// its staging.
func TestKilledCreate(t *testing.T) {
	t.Parallel()
	for _, phase := range backuptest.CreatePhases {
		t.Run(string(phase), func(t *testing.T) {
			s := backuptest.NewStore(t)
			startCreate(s, phase).Kill()
			left := s.Staging()
			if phase == backup.PhaseInit {
				require.Empty(t, left)
			} else {
				require.Len(t, left, 1)
			}
			list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
			require.NoError(t, err)
			require.Empty(t, list, "an incomplete snapshot is visible")

			log := s.Record()
			s.Create()
			require.Empty(t, s.Staging())
			require.Len(t, log.Lines(), len(left)+1)
			for i, path := range left {
				require.Equal(t, "stale_staging_removed path="+path, log.Lines()[i])
			}
			list, err = backup.ListRuntimeBackups(t.Context(), s.Options)
			require.NoError(t, err)
			require.Len(t, list, 1)
		})
	}
}

// A create in another process leaves the staging of a slow one alone, and both
// succeed.
func TestLiveStagingIsLeftAlone(t *testing.T) {
	t.Parallel()
	for _, phase := range backuptest.CreatePhases[1:] {
		t.Run(string(phase), func(t *testing.T) {
			s := backuptest.NewStore(t)
			slow := startCreate(s, phase)
			before := s.Staging()
			require.Len(t, before, 1)
			log := s.Record()
			first := s.Create().Stamp
			require.Equal(t, before, s.Staging())
			require.Len(t, log.Lines(), 1)

			slow.Tell("go on")
			second := slow.Hear()
			slow.Wait()
			require.NotEqual(t, first, second)
			list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
			require.NoError(t, err)
			require.Len(t, list, 2)
			require.True(t, strings.HasPrefix(list[0].Stamp, "2"))
		})
	}
}

// A restore that begins or ends is never taken for one that was interrupted, by
// those who look at its store meanwhile.
func TestReadersBesideRestores(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	stamp := s.Create().Stamp
	reader := backup.Options{DatabasePath: s.DatabasePath, BackupDir: t.TempDir()} // nothing to list, so it looks often
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var readers errgroup.Group
	for range 4 {
		readers.Go(func() error {
			for ctx.Err() == nil {
				if _, err := backup.ListRuntimeBackups(ctx, reader); err != nil && ctx.Err() == nil {
					end()
					return err
				}
			}
			return nil
		})
	}
	opts := s.Options
	opts.DespiteFindings = true
	for i := 0; i < 8 && ctx.Err() == nil; i++ {
		s.Disturb()
		_, err := backup.RestoreRuntimeBackup(t.Context(), opts, stamp)
		require.NoError(t, err)
	}
	end()
	require.NoError(t, readers.Wait())
}
