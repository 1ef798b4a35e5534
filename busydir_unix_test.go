//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package backup_test

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// lockDir takes the lock of a restore (LOCK_EX) or of a create (LOCK_SH) on a
// backup directory, and returns a function that releases it.
func lockDir(t *testing.T, path string, how int) (unlock func()) {
	t.Helper()
	dir, err := os.Open(path)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(dir.Fd()), how|syscall.LOCK_NB))
	return func() { dir.Close() }
}

// A call waits for a backup directory that is in use, for Wait, and says once what
// it waits for; without Wait, it is refused at once.
func TestBusyBackupDirectoryIsWaitedFor(t *testing.T) {
	calls := map[string]struct {
		how  int
		call func(ctx context.Context, opts backup.Options, stamp string) error
	}{
		"create beside a restore": {syscall.LOCK_EX, func(ctx context.Context, opts backup.Options, _ string) error {
			_, err := backup.CreateRuntimeBackup(ctx, opts)
			return err
		}},
		"prune beside a restore": {syscall.LOCK_EX, func(ctx context.Context, opts backup.Options, _ string) error {
			_, err := backup.PruneRuntimeBackups(ctx, opts, backup.Retention{KeepLast: 9})
			return err
		}},
		"restore beside a create": {syscall.LOCK_SH, func(ctx context.Context, opts backup.Options, stamp string) error {
			_, err := backup.RestoreRuntimeBackup(ctx, opts, stamp)
			return err
		}},
		"restore beside a restore": {syscall.LOCK_EX, func(ctx context.Context, opts backup.Options, stamp string) error {
			_, err := backup.RestoreRuntimeBackup(ctx, opts, stamp)
			return err
		}},
	}
	for name, tt := range calls {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSmallStore(t)
			s.IncludeChroma = false
			stamp := s.Create().Stamp
			log := s.Record()
			synctest.Test(t, func(t *testing.T) { // the pauses take no time
				var waits atomic.Int32
				opts := s.Options
				opts.OnProgress = func(p backup.Progress) {
					if p.Phase == backup.PhaseWait {
						require.Equal(t, s.BackupDir, p.Path)
						waits.Add(1)
					}
				}
				unlock := lockDir(t, s.BackupDir, tt.how)
				began := time.Now() //nolint:forbidigo // the time of the bubble
				err := tt.call(t.Context(), opts, stamp)
				require.ErrorIs(t, err, backup.ErrBusy)
				require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
				require.Zero(t, time.Since(began)) //nolint:forbidigo // the time of the bubble
				require.Zero(t, waits.Load())

				opts.Wait = time.Minute
				err = tt.call(t.Context(), opts, stamp)
				require.ErrorIs(t, err, backup.ErrBusy)
				require.ErrorContains(t, err, "1m0s")
				require.Equal(t, time.Minute, time.Since(began)) //nolint:forbidigo // the time of the bubble
				require.Greater(t, waits.Load(), int32(100))

				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				err = tt.call(ctx, opts, stamp)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.NotErrorIs(t, err, backup.ErrBusy)

				log.Clear()
				time.AfterFunc(59*time.Second, unlock)
				require.NoError(t, tt.call(t.Context(), opts, stamp))
				said := 0
				for _, line := range log.Lines() {
					if strings.HasPrefix(line, "waiting_for_backup_directory ") {
						said++
					}
				}
				require.Equal(t, 1, said, log.Lines())
			})
		})
	}
}
