package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// The guard is taken only for the Chroma directory, covers all that is read of
// the live store, and is free before anything takes long.
func TestGuardCoversTheCapture(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*backuptest.Store)
		want   string
	}{
		{"with Chroma", func(*backuptest.Store) {},
			"init InitDB Clock guard lock database registry chroma unlock seal hash sync publish"},
		{"Chroma missing", func(s *backuptest.Store) { s.RemoveAll(s.ChromaPath) },
			"init InitDB Clock guard lock database registry chroma unlock seal hash sync publish"},
		{"no registry", func(s *backuptest.Store) { s.RegistryPath = "" },
			"init InitDB Clock guard lock database registry chroma unlock seal hash sync publish"},
		{"without Chroma", func(s *backuptest.Store) { s.IncludeChroma = false },
			"init InitDB Clock database registry seal hash sync publish"},
		{"no guard", func(s *backuptest.Store) { s.Locker = nil },
			"init InitDB Clock database registry chroma seal hash sync publish"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			var events []string
			g := &backuptest.Guard{Events: &events}
			s.Locker = g
			s.OnProgress = func(p backup.Progress) {
				if len(events) == 0 || events[len(events)-1] != string(p.Phase) {
					if slices.Contains(events, string(p.Phase)) && (events[len(events)-1] == "lock" || events[len(events)-1] == "unlock") {
						return
					}
					events = append(events, string(p.Phase))
				}
			}
			s.InitDB = func(context.Context) error { events = append(events, "InitDB"); return nil }
			s.Clock = backuptest.ClockFunc(func() time.Time { events = append(events, "Clock"); return backuptest.Noon.Time })
			tt.change(s)
			s.Create()
			require.Equal(t, tt.want, strings.Join(events, " "))
			g.RequireReleased(t)
		})
	}
}

// A guard that cannot be taken fails the backup before anything is read.
func TestGuardFails(t *testing.T) {
	busy := errors.New("ingestion will not stop")
	for name, lock := range map[string]func(ctx context.Context) (func(), error){
		"error":            func(context.Context) (func(), error) { return nil, busy },
		"error and unlock": func(context.Context) (func(), error) { return func() { panic("released what was not taken") }, busy },
		"no unlock":        func(context.Context) (func(), error) { return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			log := s.Record()
			s.Locker = backup.LockerFunc(lock)
			s.OnProgress = func(p backup.Progress) {
				require.NotEqual(t, backup.PhaseDatabase, p.Phase, "it went on without the guard")
			}
			err := s.CreateFails()
			if name == "no unlock" {
				require.ErrorContains(t, err, "no unlock function")
			} else {
				require.ErrorIs(t, err, busy)
			}
			require.ErrorContains(t, err, "take ingestion guard")
			require.Empty(t, log.Lines(), "an error was returned and logged")
		})
	}
}

func TestGuardIsWaitedForUntilCancelled(t *testing.T) {
	s := backuptest.NewStore(t)
	var ingestion sync.Mutex
	ingestion.Lock()
	s.Locker = backup.SyncLocker(&ingestion)
	ctx, cancel := context.WithCancel(t.Context())
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseGuard {
			cancel()
		}
	}
	_, err := backup.CreateRuntimeBackup(ctx, s.Options)
	require.ErrorIs(t, err, context.Canceled)
	s.RequireNoSnapshot()

	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseGuard {
			go ingestion.Unlock()
		}
	}
	s.Create()
	require.True(t, ingestion.TryLock(), "the mutex is still locked")
}

// errHandler panics with an error.
var errHandler = errors.New("handler broke")

// Each function of the host may panic: the guard is released once, nothing is
// left, and the error says where it happened.
func TestPanicOfTheHost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*backuptest.Store)
	}{
		{"InitDB", func(s *backuptest.Store) { s.InitDB = func(context.Context) error { panic(errHandler) } }},
		{"Clock", func(s *backuptest.Store) { s.Clock = backuptest.ClockFunc(func() time.Time { panic(errHandler) }) }},
		{"Locker", func(s *backuptest.Store) {
			s.Locker = backup.LockerFunc(func(context.Context) (func(), error) { panic(errHandler) })
		}},
		{"unlock", func(s *backuptest.Store) {
			s.Locker = backup.LockerFunc(func(context.Context) (func(), error) { return func() { panic(errHandler) }, nil })
		}},
		{"Logger", func(s *backuptest.Store) {
			s.RemoveAll(s.RegistryPath)
			s.Logger = slog.New(panickingHandler{})
		}},
		{"nil pointer", func(s *backuptest.Store) { s.Clock = (*fixedClock)(nil) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			g := new(backuptest.Guard)
			s.Locker = g
			tt.change(s)
			err := s.CreateFails()
			require.ErrorIs(t, err, backup.ErrPanic)
			if tt.name != "nil pointer" {
				require.ErrorIs(t, err, errHandler)
			}
			require.ErrorContains(t, err, "host_test.go", "the stack is missing")
			g.RequireReleased(t)
		})
	}
	// The last message comes when the snapshot is visible already. Then it is
	// there, and the error must not deny it.
	t.Run("Logger at the end", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.Logger = slog.New(panickingHandler{})
		_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
		list, listErr := backup.ListRuntimeBackups(t.Context(), s.Options)
		require.NoError(t, listErr)
		require.Equal(t, err == nil, len(list) == 1, "an error means that no snapshot was made")
	})
}

type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool  { return true }
func (panickingHandler) Handle(context.Context, slog.Record) error { panic(errHandler) }

// Whatever the host does in OnProgress, at whichever report: cancel, panic, or
// end its goroutine. Each phase's first report, then its second, until it has
// no more.
func TestInterruptedAtEveryReport(t *testing.T) {
	for _, tt := range []struct {
		name      string
		interrupt func(cancel context.CancelFunc)
		want      error // nil: the call does not return
		online    bool
	}{
		{"cancelled", func(cancel context.CancelFunc) { cancel() }, context.Canceled, false},
		{"cancelled in an online backup", func(cancel context.CancelFunc) { cancel() }, context.Canceled, true},
		{"panic", func(context.CancelFunc) { panic("enough") }, backup.ErrPanic, false},
		{"panic in an online backup", func(context.CancelFunc) { panic("enough") }, backup.ErrPanic, true},
		{"goroutine ends", func(context.CancelFunc) { runtime.Goexit() }, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := backuptest.NewStore(t)
			s.OnlineBackup = tt.online
			db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=wal_autocheckpoint(0)")
			require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 3))
			log := s.Record()
			for i, at := 0, 1; i < len(backuptest.CreatePhases); at++ {
				g := new(backuptest.Guard)
				s.Locker = g
				ctx, cancel := context.WithCancel(t.Context())
				calls := 0
				s.OnProgress = func(p backup.Progress) {
					if p.Phase != backuptest.CreatePhases[i] {
						return
					}
					if calls++; calls == at {
						tt.interrupt(cancel)
					}
				}
				var meta *backup.Metadata
				var err error
				returned := false
				var call sync.WaitGroup
				call.Go(func() {
					meta, err = backup.CreateRuntimeBackup(ctx, s.Options)
					returned = true
				})
				call.Wait()
				cancel()
				g.RequireReleased(t)
				if calls < at { // that phase has no more reports
					require.Greater(t, at, 1, "%s is not reported", backuptest.CreatePhases[i])
					require.NoError(t, err)
					s.RemoveAll(meta.BackupRoot)
					log.Clear()
					i, at = i+1, 0
					continue
				}
				require.Equal(t, tt.want != nil, returned)
				require.ErrorIs(t, err, tt.want)
				require.Nil(t, meta)
				s.RequireNoSnapshot()
				require.Empty(t, log.Lines(), "an error was returned and logged")
			}
		})
	}
}

// In the middle of a large file the call ends after the piece it is at.
func TestCancelledWithinAFile(t *testing.T) {
	for _, tt := range []struct {
		phase  backup.Phase
		online bool
	}{
		{backup.PhaseDatabase, false},
		{backup.PhaseDatabase, true},
		{backup.PhaseChroma, false},
		{backup.PhaseHash, false},
	} {
		t.Run(fmt.Sprintf("%s,online=%t", tt.phase, tt.online), func(t *testing.T) {
			t.Parallel()
			s := backuptest.NewBareStore(t)
			s.OnlineBackup = tt.online
			if tt.phase == backup.PhaseDatabase {
				s.DatabasePath = filepath.Join(s.Dir, "bulk.db")
				db := makeBulk(t, s.DatabasePath, "wal")
				_, err := db.Exec("INSERT INTO bulk SELECT id + 10000, 0, zeroblob(3900) FROM bulk; PRAGMA wal_checkpoint(TRUNCATE)")
				require.NoError(t, err)
			} else {
				require.NoError(t, os.WriteFile(s.InChroma("large"), bytes.Repeat([]byte("x"), 40<<20), 0o600))
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var done int64 // when it was cancelled
			s.OnProgress = func(p backup.Progress) {
				if ctx.Err() != nil {
					require.Less(t, p.Bytes, done+(24<<20), "it goes on and on")
				} else if p.Phase == tt.phase && p.Bytes > 0 {
					done = p.Bytes
					cancel()
				}
			}
			_, err := backup.CreateRuntimeBackup(ctx, s.Options)
			require.ErrorIs(t, err, context.Canceled)
			s.RequireNoSnapshot()
		})
	}
}

// A ctx that is done already: nothing is done, not even for the host.
func TestDoneContext(t *testing.T) {
	s := backuptest.NewStore(t)
	s.InitDB = func(context.Context) error { panic("called though ctx is done") }
	s.Locker = backup.LockerFunc(func(context.Context) (func(), error) { panic("called though ctx is done") })
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	before := backuptest.ReadTree(t, s.Dir)
	_, err := backup.CreateRuntimeBackup(cancelled, s.Options)
	require.ErrorIs(t, err, context.Canceled)
	_, err = backup.CreateRuntimeBackup(expired, s.Options)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, before, backuptest.ReadTree(t, s.Dir))
}

// A deadline that passes in the middle of the work ends it.
func TestDeadline(t *testing.T) {
	t.Parallel()
	for _, phase := range backuptest.CreatePhases {
		t.Run(string(phase), func(t *testing.T) {
			s := backuptest.NewStore(t)
			g := new(backuptest.Guard)
			s.Locker = g
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			late := &lateContext{Context: ctx}
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == phase {
					late.expire()
				}
			}
			_, err := backup.CreateRuntimeBackup(late, s.Options)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			g.RequireReleased(t)
			s.RequireNoSnapshot()
		})
	}
}

// A lateContext has a deadline that passes when the test says so.
type lateContext struct {
	context.Context
	once sync.Once
	mu   sync.Mutex
	done chan struct{}
	err  error
}

func (c *lateContext) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = context.DeadlineExceeded
	c.once.Do(func() { close(c.channel()) })
}

func (c *lateContext) channel() chan struct{} {
	if c.done == nil {
		c.done = make(chan struct{})
	}
	return c.done
}

func (c *lateContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.channel()
}

func (c *lateContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// OnProgress is called on the caller's goroutine, one call at a time; backuptest.CreatePhases
// come in their order, each with a report at its beginning; counts only grow,
// and end at the totals.
func TestProgress(t *testing.T) {
	t.Parallel()
	eachCopy(t, func(t *testing.T, online bool) {
		s := backuptest.NewStore(t)
		s.OnlineBackup = online
		s.Locker = new(backuptest.Guard)
		db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=wal_autocheckpoint(0)") // so that there is a WAL to copy
		for range 100 {
			require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 3))
		}
		for i := range 200 {
			require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, fmt.Sprint("file-", i)), make([]byte, 100*i), 0o600))
		}
		caller := goroutine()
		var running atomic.Bool
		var order []backup.Phase
		var last backup.Progress
		ends := map[backup.Phase]backup.Progress{}
		s.OnProgress = func(p backup.Progress) {
			require.True(t, running.CompareAndSwap(false, true), "two calls at once")
			defer running.Store(false)
			require.Equal(t, caller, goroutine(), "not on the caller's goroutine")
			if p.Phase != last.Phase {
				order = append(order, p.Phase)
				require.Zero(t, p.Bytes, "%s does not begin at its beginning", p.Phase)
				require.Zero(t, p.Files, "%s does not begin at its beginning", p.Phase)
			} else {
				require.GreaterOrEqual(t, p.Bytes, last.Bytes, p.Phase)
				require.GreaterOrEqual(t, p.Files, last.Files, p.Phase)
				require.GreaterOrEqual(t, p.TotalBytes, last.TotalBytes, p.Phase)
			}
			if p.TotalBytes > 0 {
				require.LessOrEqual(t, p.Bytes, p.TotalBytes, p.Phase)
			}
			if p.TotalFiles > 0 {
				require.LessOrEqual(t, p.Files, p.TotalFiles, p.Phase)
			}
			last = p
			ends[p.Phase] = p
		}
		meta := s.Create()
		require.Equal(t, backuptest.CreatePhases, order)

		database := ends[backup.PhaseDatabase]
		require.Equal(t, s.DatabasePath, database.Path)
		require.Equal(t, database.TotalBytes, database.Bytes)
		if online {
			require.Equal(t, meta.DBSizeBytes, database.Bytes)
		} else {
			require.Equal(t, backuptest.FileSize(t, s.DatabasePath)+backuptest.FileSize(t, s.DatabasePath+"-wal"), database.Bytes)
		}
		require.Equal(t, meta.ChromaSnapshotFiles, ends[backup.PhaseChroma].Files)
		require.Equal(t, meta.ChromaSnapshotBytes, ends[backup.PhaseChroma].Bytes)
		files := meta.ChromaSnapshotFiles + 2
		size := meta.ChromaSnapshotBytes + meta.DBSizeBytes + backuptest.FileSize(t, s.RegistryPath)
		for _, phase := range []backup.Phase{backup.PhaseHash, backup.PhaseSync} {
			end := ends[phase]
			require.Equal(t, files, end.TotalFiles, phase)
			require.Equal(t, size, end.TotalBytes, phase)
			require.Equal(t, files, end.Files, phase)
			require.Equal(t, size, end.Bytes, phase)
		}
	})
}

// goroutine names the running goroutine.
func goroutine() string {
	stack := make([]byte, 64)
	stack = stack[:runtime.Stack(stack, false)]
	name, _, _ := bytes.Cut(stack, []byte(" ["))
	return string(name)
}

// Nothing is open and nothing runs after a call, however it ended, but the one
// descriptor of each live database.
func TestNothingStaysOpen(t *testing.T) {
	s := backuptest.NewStore(t)
	missing := s.Options
	missing.DatabasePath = filepath.Join(s.Dir, "missing.db")
	badRegistry := s.Options
	badRegistry.RegistryPath = s.DatabasePath + ".json"
	backuptest.Write(t, badRegistry.RegistryPath, "{")
	badChroma := s.Options
	badChroma.ChromaPath = filepath.Join(s.Dir, "other", "chroma")
	require.NoError(t, os.MkdirAll(filepath.Join(badChroma.ChromaPath, "a", "b", "c"), 0o755))
	require.NoError(t, os.Symlink("a", filepath.Join(badChroma.ChromaPath, "a", "b", "c", "link")))
	noDatabase := s.Options
	noDatabase.DatabasePath = badRegistry.RegistryPath
	online := s.Options
	online.OnlineBackup = true
	fails := func(opts backup.Options, ctx context.Context) {
		_, err := backup.CreateRuntimeBackup(ctx, opts)
		require.Error(t, err)
	}
	cancelledAt := func(phase backup.Phase) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		opts := s.Options
		opts.OnProgress = func(p backup.Progress) {
			if p.Phase == phase {
				cancel()
			}
		}
		fails(opts, ctx)
	}
	panicsAt := func(phase backup.Phase) {
		opts := s.Options
		opts.OnProgress = func(p backup.Progress) {
			if p.Phase == phase {
				panic("enough")
			}
		}
		fails(opts, t.Context())
	}
	round := func() {
		s.Create()
		_, err := backup.CreateRuntimeBackup(t.Context(), online)
		require.NoError(t, err)
		fails(missing, t.Context())
		fails(badChroma, t.Context())
		fails(noDatabase, t.Context())
		for _, phase := range backuptest.CreatePhases {
			if phase != backup.PhaseGuard { // there is none
				cancelledAt(phase)
				panicsAt(phase)
			}
		}
	}
	round() // opens what stays open
	fails(badRegistry, t.Context())
	fds, goroutines := backuptest.OpenFiles(t), runtime.NumGoroutine()
	for range 3 {
		round()
	}
	require.Equal(t, fds, backuptest.OpenFiles(t), "descriptors were left open")
	for range 1000 { // a goroutine that has done its work may still be there for a moment
		if runtime.NumGoroutine() <= goroutines {
			return
		}
		time.Sleep(time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	require.Fail(t, "goroutines were left", "%s", stacks[:runtime.Stack(stacks, true)])
}

// Stamps of one second are numbered, and the clock may be in any zone, stand
// still or go back.
func TestStamps(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	s.IncludeChroma = false
	east := time.FixedZone("east", 14*3600)
	west := time.FixedZone("west", -12*3600)
	for _, tt := range []struct {
		now  time.Time
		want string
	}{
		{backuptest.Noon.Time, "20261124T120000Z"},
		{backuptest.Noon.Time, "20261124T120000Z-002"},
		{backuptest.Noon.Time.Add(999 * time.Millisecond).Truncate(time.Second), "20261124T120001Z"},
		{backuptest.Noon.Time.In(east), "20261124T120000Z-003"},
		{backuptest.Noon.Time.In(west).Add(time.Second), "20261124T120001Z-002"},
		{backuptest.Noon.Time.Add(-time.Hour), "20261124T110000Z"},
		{time.Date(2026, 12, 31, 23, 59, 59, 999999999, time.UTC), "20261231T235959Z"},
		{time.Date(2027, 1, 1, 13, 59, 59, 0, east), "20261231T235959Z-002"},
		{time.Date(2028, 2, 29, 0, 0, 0, 0, time.UTC), "20280229T000000Z"},
		{time.Unix(0, 0), "19700101T000000Z"},
		{time.Time{}, "00010101T000000Z"},
		{time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "99991231T235959Z"},
		{time.Date(10000, 1, 1, 0, 0, 0, 0, east), "99991231T100000Z"},
		{time.Date(0, 12, 31, 23, 0, 0, 0, west), "00010101T110000Z"},
	} {
		s.Clock = backuptest.Clock{Time: tt.now}
		meta := s.Create()
		require.Equal(t, tt.want, meta.Stamp, tt.now)
		require.True(t, meta.CreatedAt.Equal(tt.now.Truncate(time.Microsecond)), tt.now)
	}
}

func TestClockOutOfRange(t *testing.T) {
	for _, now := range []time.Time{
		time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("west", -12*3600)),
		time.Date(0, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Unix(1<<60, 0),
	} {
		s := backuptest.NewStore(t)
		s.Clock = backuptest.Clock{Time: now}
		require.ErrorContains(t, s.CreateFails(), "year", now.String())
	}
}

// What is returned is what a reader of the file gets: UTC, microseconds, no
// monotonic reading.
func TestCreatedAt(t *testing.T) {
	s := backuptest.NewStore(t)
	s.IncludeChroma = false
	for _, clock := range []backup.Clock{
		nil, // the system's, which has a monotonic reading and nanoseconds
		backuptest.Clock{Time: time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.FixedZone("east", 5*3600))},
		backuptest.Clock{Time: time.Date(2026, 1, 2, 3, 4, 5, 999, time.UTC)},
		backuptest.Clock{Time: time.Date(1969, 1, 2, 3, 4, 5, 999999999, time.UTC)},
	} {
		s.Clock = clock
		meta := s.Create()
		list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
		require.NoError(t, err)
		i := slices.IndexFunc(list, func(l backup.Snapshot) bool { return l.Stamp == meta.Stamp })
		require.Equal(t, *meta, *list[i].Metadata)
		require.Equal(t, time.UTC, meta.CreatedAt.Location())
		require.Zero(t, meta.CreatedAt.Nanosecond()%1000)
	}
}

func TestSyncLocker(t *testing.T) {
	for name, l := range map[string]sync.Locker{
		"Mutex":   new(sync.Mutex),
		"RWMutex": new(sync.RWMutex),
	} {
		t.Run(name+" is free", func(t *testing.T) {
			unlock, err := backup.SyncLocker(l).Lock(t.Context())
			require.NoError(t, err)
			require.False(t, l.(interface{ TryLock() bool }).TryLock(), "it is not locked")
			unlock()
			require.True(t, l.(interface{ TryLock() bool }).TryLock(), "it is still locked")
			l.Unlock()
		})
		t.Run(name+" is released", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l.Lock()
				time.AfterFunc(time.Minute, l.Unlock)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Second)
				defer cancel()
				unlock, err := backup.SyncLocker(l).Lock(ctx)
				require.NoError(t, err, "it was not noticed within a second")
				unlock()
			})
		})
		t.Run(name+" is never released", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l.Lock()
				defer l.Unlock()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := backup.SyncLocker(l).Lock(ctx)
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		})
		t.Run(name+" and ctx is done", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := backup.SyncLocker(l).Lock(ctx)
			require.ErrorIs(t, err, context.Canceled)
			require.True(t, l.(interface{ TryLock() bool }).TryLock(), "it was locked though ctx was done")
			l.Unlock()
		})
	}
	t.Run("without TryLock", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := plainLocker{make(chan struct{}, 1)}
			l.Lock()
			time.AfterFunc(time.Hour, l.Unlock)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			unlock, err := backup.SyncLocker(l).Lock(ctx)
			require.NoError(t, err, "it cannot be cancelled, and what it got must be kept")
			unlock()
			select {
			case l.c <- struct{}{}:
			default:
				require.Fail(t, "it is still locked")
			}
		})
	})
}

// A plainLocker can do no more than a sync.Locker must.
type plainLocker struct{ c chan struct{} }

func (l plainLocker) Lock()   { l.c <- struct{}{} }
func (l plainLocker) Unlock() { <-l.c }
