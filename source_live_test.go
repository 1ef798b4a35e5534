package backup_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// storeOfADeadWriter returns a store whose service was killed with a full WAL,
// and a check that its database and the WAL are still as the service left them.
func storeOfADeadWriter(t *testing.T) (s *backuptest.Store, unchanged func()) {
	t.Helper()
	s = backuptest.NewSmallStore(t)
	db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=wal_autocheckpoint(0)")
	for range 50 {
		require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 3))
	}
	backuptest.KeepWAL(t, db, s.DatabasePath)
	read := func() (files [2][]byte) {
		for i, suffix := range []string{"", "-wal"} {
			data, err := os.ReadFile(s.DatabasePath + suffix)
			require.NoError(t, err)
			files[i] = data
		}
		return files
	}
	before := read()
	return s, func() {
		t.Helper()
		after := read()
		require.True(t, bytes.Equal(before[0], after[0]), "the live database was written to")
		require.True(t, bytes.Equal(before[1], after[1]), "the live WAL was written to")
	}
}

// Create only reads the live store, however it ends: a WAL that a dead service
// left stays as it was, and so does the database.
func TestCreateOnlyReadsTheStore(t *testing.T) {
	for _, end := range []struct {
		name string
		do   func(cancel context.CancelFunc)
		want error
	}{
		{"done", nil, nil},
		{"cancelled", func(cancel context.CancelFunc) { cancel() }, context.Canceled},
		{"panic", func(context.CancelFunc) { panic("enough") }, backup.ErrPanic},
		{"goroutine ends", func(context.CancelFunc) { runtime.Goexit() }, nil},
	} {
		t.Run(end.name, func(t *testing.T) {
			t.Parallel()
			eachCopy(t, func(t *testing.T, online bool) {
				s, unchanged := storeOfADeadWriter(t)
				s.OnlineBackup = online
				if end.do == nil {
					for range 3 {
						require.Equal(t, 50, backuptest.CountTransfers(t, s.Create().DBSnapshotPath))
						unchanged()
					}
					return
				}
				s.Clock = backuptest.Noon // it stands still, so that no report is dropped
				for at := 1; ; at++ {
					ctx, cancel := context.WithCancel(t.Context())
					reports := 0
					s.OnProgress = func(p backup.Progress) {
						if p.Share == 1 { // the snapshot exists
							return
						}
						if reports++; reports == at {
							end.do(cancel)
						}
					}
					var call sync.WaitGroup
					var err error
					call.Go(func() { _, err = backup.CreateRuntimeBackup(ctx, s.Options) })
					call.Wait()
					cancel()
					unchanged()
					if reports < at {
						require.NoError(t, err)
						require.Greater(t, at, 10)
						return
					}
					require.ErrorIs(t, err, end.want)
				}
			})
		})
	}
}

// A create that fails leaves the store as it was, too.
func TestFailedCreateOnlyReadsTheStore(t *testing.T) {
	for name, spoil := range map[string]func(s *backuptest.Store){
		"registry": func(s *backuptest.Store) { s.Must(os.Remove(s.RegistryPath), os.Mkdir(s.RegistryPath, 0o700)) },
		"Chroma":   func(s *backuptest.Store) { s.Must(os.Symlink("x", s.InChroma("link"))) },
		"guard": func(s *backuptest.Store) {
			s.Locker = backup.LockerFunc(func(context.Context) (func(), error) { return nil, errors.New("no") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachCopy(t, func(t *testing.T, online bool) {
				s, unchanged := storeOfADeadWriter(t)
				s.OnlineBackup = online
				spoil(s)
				_ = s.CreateFails()
				unchanged()
			})
		})
	}
}

// A holder keeps everybody else from reading a database.
type holder struct {
	t    *testing.T
	db   *sql.DB
	conn *sql.Conn
}

func hold(t *testing.T, path string) *holder {
	t.Helper()
	h := &holder{t: t, db: backuptest.OpenDB(t, path, "_pragma=journal_mode(delete)")}
	h.hold()
	return h
}

func (h *holder) hold() {
	h.t.Helper()
	var err error
	h.conn, err = h.db.Conn(context.Background())
	require.NoError(h.t, err)
	_, err = h.conn.ExecContext(context.Background(), "BEGIN EXCLUSIVE")
	require.NoError(h.t, err)
}

func (h *holder) release() {
	h.t.Helper()
	_, err := h.conn.ExecContext(context.Background(), "ROLLBACK")
	require.NoError(h.t, errors.Join(err, h.conn.Close()))
}

// A busy database is waited for without the guard, and what is waited for is said
// once.
func TestDatabaseIsWaitedForWithoutTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the pauses take no time
		s := backuptest.NewSmallStore(t)
		g := new(backuptest.Guard)
		s.Locker = g
		log := s.Record()
		h := hold(t, s.DatabasePath)
		begun, waited := time.Now(), 0 //nolint:forbidigo // the time of the bubble
		var phases []backup.Phase
		s.OnProgress = func(p backup.Progress) {
			if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
				phases = append(phases, p.Phase)
			}
			if p.Phase != backup.PhaseWait {
				return
			}
			require.Zero(t, g.Taken, "the guard is held while the database is waited for")
			require.Equal(t, s.DatabasePath, p.Path)
			if waited++; time.Since(begun) > time.Hour { //nolint:forbidigo // the time of the bubble
				h.release()
			}
		}
		s.Create()
		require.Greater(t, waited, 3600, "reports to count the time by")
		require.Equal(t, []backup.Phase{backup.PhaseInit, backup.PhaseWait, backup.PhaseGuard, backup.PhaseDatabase}, phases[:4])
		require.Equal(t, 1, g.Taken)
		g.RequireReleased(t)
		require.Equal(t, "waiting_for_database path="+s.DatabasePath, log.Lines()[0])
		require.NotContains(t, log.Lines()[1], "waiting_for_database")
	})
}

// A database that gets busy while the guard is waited for is waited for again, and
// the guard is given back.
func TestGuardIsGivenBackForABusyDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := backuptest.NewSmallStore(t)
		h := hold(t, s.DatabasePath)
		h.release()
		g := new(backuptest.Guard)
		s.Locker = backup.LockerFunc(func(ctx context.Context) (func(), error) {
			if g.Taken < 2 {
				h.hold()
			}
			return g.Lock(ctx)
		})
		waited := 0
		s.OnProgress = func(p backup.Progress) {
			if p.Phase == backup.PhaseWait {
				require.False(t, g.Held, "the guard is held while the database is waited for")
				if waited++; waited%20 == 0 {
					h.release()
				}
			}
		}
		backuptest.RequireSound(t, s.Create().DBSnapshotPath)
		require.Equal(t, 3, g.Taken)
		require.Equal(t, 40, waited)
		g.RequireReleased(t)
	})
}

// Options.Wait bounds the wait for the database, whether the guard is taken
// meanwhile or not, and that for the guard.
func TestWaitIsBounded(t *testing.T) {
	for _, tt := range []struct {
		name string
		lock func(h *holder, ctx context.Context) (func(), error)
		want error
	}{
		{"database", nil, backup.ErrDatabaseInUse},
		{"guard", func(_ *holder, ctx context.Context) (func(), error) {
			<-ctx.Done()
			return nil, fmt.Errorf("no lock: %w", ctx.Err())
		}, context.DeadlineExceeded},
		{"guard that comes too late", func(_ *holder, ctx context.Context) (func(), error) {
			<-ctx.Done()
			return func() {}, nil
		}, context.DeadlineExceeded},
		{"both, in turns", func(h *holder, ctx context.Context) (func(), error) {
			time.Sleep(time.Minute)
			h.hold()
			return func() { time.AfterFunc(time.Minute, h.release) }, nil
		}, backup.ErrDatabaseInUse},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := backuptest.NewSmallStore(t)
				s.Wait = 5*time.Minute + 30*time.Second
				h := hold(t, s.DatabasePath)
				if tt.lock != nil {
					h.release()
				}
				taken, released := 0, 0
				s.Locker = backup.LockerFunc(func(ctx context.Context) (func(), error) {
					unlock, err := tt.lock(h, ctx)
					if err == nil {
						taken++
					}
					return func() { released++; unlock() }, err
				})
				begun := time.Now() //nolint:forbidigo // the time of the bubble
				err := s.CreateFails()
				require.ErrorIs(t, err, tt.want)
				require.NotErrorIs(t, err, context.Canceled)
				require.Equal(t, tt.want == context.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded))
				require.ErrorContains(t, err, "5m30s")
				require.InDelta(t, s.Wait.Seconds(), time.Since(begun).Seconds(), 1) //nolint:forbidigo // the time of the bubble
				require.Equal(t, taken, released)

				// The context comes first.
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Second)
				defer cancel()
				_, err = backup.CreateRuntimeBackup(ctx, s.Options)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.NotErrorIs(t, err, backup.ErrDatabaseInUse)
			})
		})
	}
}

// A lock that lasts as long as the context it was taken with outlasts Wait.
func TestWaitEndsWithTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := backuptest.NewSmallStore(t)
		s.Wait = time.Minute
		var locked context.Context
		s.Locker = backup.LockerFunc(func(ctx context.Context) (func(), error) {
			locked = ctx //nolint:fatcontext // the test asks whether it has ended
			return func() { require.NoError(t, ctx.Err(), "the lock ended before") }, nil
		})
		s.OnProgress = func(p backup.Progress) {
			if p.Phase == backup.PhaseDatabase {
				time.Sleep(time.Hour)
			}
		}
		s.Create()
		require.Error(t, locked.Err(), "its context is of no more use")
	})
}

// A handle whose connections are all in use is waited for as a busy database is.
func TestHandleIsWaitedForWithoutTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := backuptest.NewSmallStore(t)
		s.DB = backuptest.OpenDB(t, s.DatabasePath)
		conn, err := s.DB.Conn(t.Context())
		require.NoError(t, err)
		g := new(backuptest.Guard)
		s.Locker = g
		s.Wait = time.Minute
		require.ErrorIs(t, s.CreateFails(), backup.ErrDatabaseInUse)
		require.Zero(t, g.Taken)

		waited := 0
		s.OnProgress = func(p backup.Progress) {
			if p.Phase == backup.PhaseWait {
				require.False(t, g.Held)
				if waited++; waited == 10 {
					require.NoError(t, conn.Close())
				}
			}
		}
		s.Create()
		require.Equal(t, 1, g.Taken)
	})
}

func TestNegativeWaitIsRefused(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	s.Wait = -1
	require.ErrorIs(t, s.CreateFails(), backup.ErrInvalidOptions)
	require.NoFileExists(t, filepath.Join(s.BackupDir, "snapshots"))
}
