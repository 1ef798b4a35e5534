package restore

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// Each call is made while another process is in the middle of one, and succeeds or
// is refused.
func TestCallsBesideEachOther(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		first, phase string
		second       string
		want         error
	}{
		{"restore", "stage", "create", backup.ErrBusy},
		{"restore", "verify", "create", backup.ErrBusy},
		{"restore", "stage", "prune", backup.ErrBusy},
		{"restore", "stage", "remove", backup.ErrBusy},
		{"restore", "stage", "import", backup.ErrBusy},
		{"restore", "verify", "restore", backup.ErrBusy},
		{"restore", "verify", "export", nil},
		{"restore", "stage", "list", nil},
		{"restore", "verify", "list", nil},
		{"restore", "stage", "validate", nil},
		{"restore", "verify", "validate", nil},
		{"create", "chroma", "restore", backup.ErrBusy},
		{"create", "hash", "restore", backup.ErrBusy},
		{"create", "hash", "prune", nil},
		{"create", "hash", "list", nil},
		{"create", "hash", "validate", nil},
		{"create", "hash", "create", nil},
		{"create", "hash", "export", nil},
		{"create", "hash", "remove", backup.ErrProtected},
		{"create", "hash", "import", backup.ErrInvalidArchive},
		{"validate", "validate_files", "restore", nil},
		{"validate", "validate_files", "create", nil},
		{"validate", "validate_files", "prune", nil},
		{"prune", "prune", "restore", backup.ErrBusy},
		{"prune", "prune", "create", nil},
		{"prune", "prune", "prune", nil},
		{"prune", "prune", "validate", nil},
	} {
		t.Run(tt.second+" beside "+tt.first+" at "+tt.phase, func(t *testing.T) {
			s, stamp := newStore(t)
			c := backuptest.Start(t, "call", s.Dir, tt.first, stamp, tt.phase)
			require.Equal(t, "at "+tt.phase, c.Hear())
			err := callByName(s.Options, tt.second, stamp)
			if tt.want != nil {
				require.ErrorIs(t, err, tt.want)
				require.NotErrorIs(t, err, backup.ErrRestoreUnfinished, "nothing was interrupted")
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, "done", c.Ask(""))
			c.Wait()
			want := "old"
			if tt.first == "restore" || tt.second == "restore" && tt.want == nil {
				want = "new"
			}
			require.Equal(t, want, generationOf(t, s.Options))
		})
	}
}

// An idle connection to a rollback-journal database holds no lock, but the
// database is open all the same.
func TestRestoreNoticesIdleConnections(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("this system does not list which files a process has open")
	}
	for name, file := range map[string]func(s *backuptest.Store) string{
		"the database":     func(s *backuptest.Store) string { return s.DatabasePath },
		"Chroma's own one": func(s *backuptest.Store) string { return filepath.Join(s.ChromaPath, "chroma.sqlite3") },
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			m := s.Create()
			db := backuptest.OpenDB(t, file(s), "_pragma=journal_mode(delete)")
			var n int
			require.NoError(t, db.QueryRow("SELECT count(*) FROM sqlite_schema").Scan(&n))
			_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, m.Stamp)
			require.ErrorIs(t, err, backup.ErrDatabaseInUse)
			require.NoError(t, db.Close())
			s.Restore(m.Stamp)
		})
	}
}

func TestRestoreHoldsTheGuardForTheWholeSwap(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	held, taken := false, 0
	s.Locker = backup.LockerFunc(func(context.Context) (func(), error) {
		require.False(t, held)
		held = true
		taken++
		return func() { held = false }, nil
	})
	s.Clock = backuptest.Noon // it stands still, so that no report is dropped
	s.OnProgress = func(p backup.Progress) {
		if p.Share == 1 { // it is done
			return
		}
		switch p.Phase {
		case backup.PhaseDatabase, backup.PhaseStage, backup.PhaseSwap, backup.PhaseVerify:
			require.True(t, held, p.Phase)
		}
	}
	s.Restore(stamp)
	require.False(t, held)
	require.Equal(t, 1, taken, "the safety snapshot does not take it again")
	s.Clock, s.Locker, s.OnProgress = nil, nil, nil
}

// From before the swap until everything is in place, nobody gets at the new
// database: its lock is the kernel's, so that it counts for other processes, and
// no descriptor of the file was closed since it was taken (fcntl(2)).
func TestNewDatabaseIsLockedWhileItIsVerified(t *testing.T) {
	t.Parallel()
	for _, over := range []string{"a store", "nothing"} {
		s, stamp := newStore(t)
		if over == "nothing" {
			removeParts(t, s.Options)
		}
		seen := 0
		s.Clock = backuptest.Noon // it stands still, so that no report is dropped
		s.OnProgress = func(p backup.Progress) {
			if p.Phase != backup.PhaseVerify || p.Share == 1 {
				return
			}
			seen++
			locks := backuptest.LocksOn(t, s.DatabasePath)
			require.Len(t, slices.DeleteFunc(locks, func(lock string) bool { return !strings.Contains(lock, " WRITE ") }), 1)
		}
		s.Restore(stamp)
		require.Greater(t, seen, 1)
		s.Clock, s.OnProgress = nil, nil
	}
}

// The host may open the new database as soon as the lock on it is released. Then
// no other descriptor of it may be closed any more: that would drop the host's own
// locks.
func TestLockOfTheNewDatabaseIsReleasedLast(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	s, stamp := newStore(t)
	log := filepath.Join(t.TempDir(), "log")
	role := backuptest.Command(t, "restore", s.Dir, stamp)
	cmd := exec.Command(tracer.tool, append([]string{"-f", "-qq", "-y", "-o", log, "-e", "trace=close,fcntl,?fcntl64,renameat"}, role.Args...)...)
	cmd.Env = role.Env
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	data, err := os.ReadFile(log)
	require.NoError(t, err)
	locked, last := map[string]bool{}, ""
	for line := range strings.Lines(string(data)) {
		call := regexp.MustCompile(`(close|fcntl|fcntl64)\((\d+)<` + regexp.QuoteMeta(s.DatabasePath) + `>[,)]`).FindStringSubmatch(line)
		switch {
		case strings.Contains(line, "renameat("): // what was open before is the old one
			locked, last = map[string]bool{}, ""
		case call == nil:
		case call[1] == "close":
			last = call[2]
		case strings.Contains(line, "F_SETLK"):
			locked[call[2]] = true
		}
	}
	require.NotEmpty(t, locked)
	require.NotEmpty(t, last)
	require.True(t, locked[last], "descriptor %s was closed last, and SQLite's are %v", last, locked)
}

// A restore that is complete does not fail because its last message cannot be
// logged.
func TestLoggerThatPanicsAfterARestore(t *testing.T) {
	s, stamp := newStore(t)
	s.Logger = slog.New(panicAt{slog.DiscardHandler, "runtime_backup_restored"})
	r := s.Restore(stamp)
	require.Equal(t, stamp, r.Stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// The host panics while the result is compared, and then the old store cannot be
// brought back. Both have to come out: a caller that knows of the panic only would
// take the store for what it was before.
func TestPanicAndAFailureOfUndo(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"OnProgress", "unlock"} {
		t.Run(where, func(t *testing.T) {
			s, stamp := newStore(t)
			opts := s.Options
			away, staging := filepath.Join(s.Dir, "away"), ""
			ctx, cancel := context.WithCancel(t.Context())
			opts.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseVerify && staging == "" {
					staging = stagingOf(t, s, "config")
					require.NoError(t, os.Rename(staging, away))
					if where == "OnProgress" {
						panic("of the host")
					}
					cancel()
				}
			}
			opts.Locker = backup.LockerFunc(func(context.Context) (func(), error) {
				return func() {
					if where == "unlock" {
						panic("of the host")
					}
				}, nil
			})
			_, err := backup.RestoreRuntimeBackup(ctx, opts, stamp)
			require.ErrorIs(t, err, backup.ErrPanic)
			require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.ErrorContains(t, err, "of the host")
			require.ErrorIs(t, callByName(s.Options, "list", ""), backup.ErrRestoreUnfinished)
			require.NoError(t, os.Rename(away, staging))
			require.Equal(t, "old", recovered(s))
		})
	}
}

// A restore that is done does not fail because the host's function panics that
// ends the guard. The panic is in the log.
func TestUnlockThatPanicsAfterARestore(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	log := s.Record()
	s.Locker = backup.LockerFunc(func(context.Context) (func(), error) {
		return func() { panic("of the host") }, nil
	})
	r := s.Restore(stamp)
	require.Equal(t, stamp, r.Stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
	require.Contains(t, strings.Join(log.Lines(), "\n"), "of the host")
	s.Locker = nil
}

// panicAt is a handler that panics at one message.
type panicAt struct {
	slog.Handler
	message string
}

func (panicAt) Enabled(context.Context, slog.Level) bool { return true }

func (p panicAt) Handle(_ context.Context, r slog.Record) error {
	if r.Message == p.message {
		panic("of the logger")
	}
	return nil
}

// Lists that run all the time do not keep a restore from starting.
func TestListsDoNotKeepARestoreAway(t *testing.T) {
	s, stamp := newStore(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 4)
	for range cap(ended) {
		go func() {
			for ctx.Err() == nil {
				if _, err := backup.ListRuntimeBackups(context.Background(), s.Options); err != nil {
					ended <- err
					return
				}
				runtime.Gosched()
			}
			ended <- nil
		}()
	}
	var err error
	for range 100 {
		// A snapshot that does not exist needs the same locks.
		_, err = backup.RestoreRuntimeBackup(context.Background(), s.Options, "none")
		if !errors.Is(err, backup.ErrInvalidBackup) {
			break
		}
	}
	cancel()
	for range cap(ended) {
		require.NoError(t, <-ended)
	}
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	s.Restore(stamp)
}
