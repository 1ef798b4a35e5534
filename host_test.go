package backup_test

import (
	"bytes"
	"context"
	"database/sql"
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
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// The guard is taken only if the Chroma directory is copied. It is held while the
// live store is read, and released before the slow steps.
func TestGuardCoversTheCapture(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*backuptest.Store)
		want   string
	}{
		{"with Chroma", func(*backuptest.Store) {},
			"init InitDB guard lock database registry chroma unlock seal hash sync publish"},
		{"Chroma missing", func(s *backuptest.Store) { s.RemoveAll(s.ChromaPath) },
			"init InitDB guard lock database registry chroma unlock seal hash sync publish"},
		{"no registry", func(s *backuptest.Store) { s.RegistryPath = "" },
			"init InitDB guard lock database registry chroma unlock seal hash sync publish"},
		{"without Chroma", func(s *backuptest.Store) { s.IncludeChroma = false },
			"init InitDB database registry seal hash sync publish"},
		{"no guard", func(s *backuptest.Store) { s.Locker = nil },
			"init InitDB database registry chroma seal hash sync publish"},
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
			now := backuptest.Noon.Time.Add(-time.Hour)
			s.Clock = backuptest.ClockFunc(func() time.Time { return now })
			s.InitDB = func(context.Context) error {
				events, now = append(events, "InitDB"), backuptest.Noon.Time
				return nil
			}
			tt.change(s)
			require.Equal(t, backuptest.Noon.Time, s.Create().CreatedAt, "the clock was read before InitDB")
			require.Equal(t, tt.want, strings.Join(events, " "))
			g.RequireReleased(t)
		})
	}
}

// If the guard cannot be taken, the backup fails before anything is read.
func TestGuardFails(t *testing.T) {
	busy := errors.New("ingestion will not stop")
	for name, lock := range map[string]func(ctx context.Context) (func(), error){
		"error": func(context.Context) (func(), error) { return nil, busy },
		"error and unlock": func(context.Context) (func(), error) {
			return func() { panic("released though it was not taken") }, busy
		},
		"no unlock": func(context.Context) (func(), error) { return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			log := s.Record()
			s.Locker = backup.LockerFunc(lock)
			s.OnProgress = func(p backup.Progress) {
				require.NotEqual(t, backup.PhaseDatabase, p.Phase, "it continued without the guard")
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

// A create waits for the guard until its context ends.
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

// errHandler is what the host panics with.
var errHandler = errors.New("handler broke")

// Each function of the host may panic. Then the guard is released once, nothing is
// left behind, and the error has the stack.
func TestPanicOfTheHost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*backuptest.Store)
	}{
		{"InitDB", func(s *backuptest.Store) { s.InitDB = func(context.Context) error { panic(errHandler) } }},
		{"Clock", func(s *backuptest.Store) { s.Clock = backuptest.ClockFunc(func() time.Time { panic(errHandler) }) }},
		{"Clock while the guard is held", func(s *backuptest.Store) {
			g := s.Locker.(*backuptest.Guard)
			s.Clock = backuptest.ClockFunc(func() time.Time {
				if g.Held {
					panic(errHandler)
				}
				return backuptest.Noon.Time
			})
		}},
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
	// The last message is logged when the snapshot is already visible. Then the
	// call must not fail.
	t.Run("Logger at the end", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.Logger = slog.New(panickingHandler{})
		_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
		list, listErr := backup.ListRuntimeBackups(t.Context(), s.Options)
		require.NoError(t, listErr)
		require.Equal(t, err == nil, len(list) == 1, "an error means that no snapshot was made")
	})
}

// A panickingHandler panics at every message.
type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool  { return true }
func (panickingHandler) Handle(context.Context, slog.Record) error { panic(errHandler) }

// The host may cancel, panic or end its goroutine in any call of OnProgress. This
// tries the first report of each phase, then the second, until there are no more.
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
			s.Clock = backuptest.Noon // it stands still, so that no report is dropped
			log := s.Record()
			for i, at := 0, 1; i < len(backuptest.CreatePhases); at++ {
				g := new(backuptest.Guard)
				s.Locker = g
				ctx, cancel := context.WithCancel(t.Context())
				calls := 0
				s.OnProgress = func(p backup.Progress) {
					if p.Phase != backuptest.CreatePhases[i] || p.Share == 1 { // then the snapshot exists
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

// A call that is cancelled in a large file ends after the current piece.
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
			var done int64            // when the call was cancelled
			s.Clock = backuptest.Noon // it stands still, so that no report is dropped
			s.OnProgress = func(p backup.Progress) {
				if ctx.Err() != nil {
					require.Less(t, p.Bytes, done+(24<<20), "it does not stop")
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

// If the context is done before the call, nothing is called or created.
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

// A deadline that passes in any phase ends the call.
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

// A lateContext has a deadline that passes when expire is called.
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

// OnProgress is called on the caller's goroutine, one call at a time. The phases
// come in their order, each with a report at its beginning. Counts only grow, and
// reach the totals.
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
		s.Clock = backuptest.Noon // it stands still, so that no report is dropped
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
				require.Zero(t, p.Bytes, "%s does not begin at 0", p.Phase)
				require.Zero(t, p.Files, "%s does not begin at 0", p.Phase)
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

// goroutine returns a name of the running goroutine.
func goroutine() string {
	stack := make([]byte, 64)
	stack = stack[:runtime.Stack(stack, false)]
	name, _, _ := bytes.Cut(stack, []byte(" ["))
	return string(name)
}

// After a call, however it ended, no goroutine and no descriptor is left, except for
// one descriptor of each live database.
func TestNothingStaysOpen(t *testing.T) {
	s := backuptest.NewStore(t)
	missing := s.Options
	missing.DatabasePath = filepath.Join(s.Dir, "missing.db")
	notJSON := s.DatabasePath + ".json"
	backuptest.Write(t, notJSON, "{")
	badRegistry := s.Options
	badRegistry.RegistryPath = filepath.Join(s.Dir, "large.json")
	backuptest.Write(t, badRegistry.RegistryPath, "")
	require.NoError(t, os.Truncate(badRegistry.RegistryPath, 17<<20))
	badChroma := s.Options
	badChroma.ChromaPath = filepath.Join(s.Dir, "other", "chroma")
	require.NoError(t, os.MkdirAll(filepath.Join(badChroma.ChromaPath, "a", "b", "c"), 0o755))
	require.NoError(t, os.Symlink("a", filepath.Join(badChroma.ChromaPath, "a", "b", "c", "link")))
	noDatabase := s.Options
	noDatabase.DatabasePath = notJSON
	online := s.Options
	online.OnlineBackup = true
	notCaptured := s.Options
	notCaptured.Capture = func(_ context.Context, path string) error { return os.WriteFile(path, []byte("encrypted"), 0o600) }
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
		fails(badRegistry, t.Context())
		fails(noDatabase, t.Context())
		fails(notCaptured, t.Context())
		for _, phase := range backuptest.CreatePhases {
			if phase != backup.PhaseGuard { // there is no guard
				cancelledAt(phase)
				panicsAt(phase)
			}
		}
	}
	round() // opens the descriptors that are kept
	fds, goroutines := backuptest.OpenFiles(t), runtime.NumGoroutine()
	for range 3 {
		round()
	}
	require.Equal(t, fds, backuptest.OpenFiles(t), "descriptors were left open")
	for range 1000 { // a goroutine may take a moment to end
		if runtime.NumGoroutine() <= goroutines {
			return
		}
		time.Sleep(time.Millisecond)
	}
	stacks := make([]byte, 1<<20)
	require.Fail(t, "goroutines were left", "%s", stacks[:runtime.Stack(stacks, true)])
}

// InitDB is called before anything is read.
func TestInitDB(t *testing.T) {
	t.Parallel()
	t.Run("creates the database", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.RemoveAll(s.DatabasePath)
		type key struct{}
		calls := 0
		s.InitDB = func(ctx context.Context) error {
			calls++
			require.Equal(t, "mine", ctx.Value(key{}))
			backuptest.MakeDatabase(t, s.DatabasePath)
			return nil
		}
		meta, err := backup.CreateRuntimeBackup(context.WithValue(t.Context(), key{}, "mine"), s.Options)
		require.NoError(t, err)
		require.Equal(t, 1, calls)
		backuptest.RequireSound(t, meta.DBSnapshotPath)
	})
	t.Run("its rows are in the copy", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.InitDB = func(ctx context.Context) error {
			db := backuptest.OpenDB(t, s.DatabasePath)
			defer db.Close()
			return backuptest.Transfer(ctx, db, 3, 4, 1)
		}
		require.Equal(t, 1, backuptest.CountTransfers(t, s.Create().DBSnapshotPath))
	})
	t.Run("its error is returned", func(t *testing.T) {
		s := backuptest.NewStore(t)
		broken := errors.New("migration 7 failed")
		s.InitDB = func(context.Context) error { return broken }
		before := backuptest.ReadTree(t, s.Dir)
		err := s.CreateFails()
		require.ErrorIs(t, err, broken)
		require.Equal(t, before, backuptest.ReadTree(t, s.Dir), "something was made")
	})
}

// The database can be copied through the host's own handle.
func TestCaptureThroughTheHostsHandle(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	db := backuptest.OpenDB(t, s.DatabasePath)
	require.NoError(t, backuptest.Transfer(context.Background(), db, 1, 2, 5))
	s.DB = db
	m := s.Create()
	backuptest.RequireSound(t, m.DBSnapshotPath)
	require.NoError(t, backuptest.Transfer(context.Background(), db, 1, 2, 5), "the handle still works")
}

// memoryStore creates a store whose database is in memory, in a pool of one
// connection. If that connection were closed, the database would be lost.
func memoryStore(t *testing.T) *backuptest.Store {
	s := backuptest.NewStore(t)
	require.NoError(t, os.Remove(s.DatabasePath))
	db, err := sql.Open("sqlite", ":memory:")
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	backuptest.FillDatabase(t, db)
	s.DB = db
	return s
}

func TestCaptureOfADatabaseInMemory(t *testing.T) {
	t.Parallel()
	s := memoryStore(t)
	m := s.Create()
	backuptest.RequireSound(t, m.DBSnapshotPath)
	require.Equal(t, filepath.Base(s.DatabasePath), filepath.Base(m.DBSnapshotPath))
	require.NoFileExists(t, s.DatabasePath)
	require.NoError(t, backuptest.Transfer(context.Background(), s.DB, 1, 2, 5))
}

func TestDatabaseInMemorySurvivesAFailedCapture(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		fail func(s *backuptest.Store, cancel func())
		want error
	}{
		{"panic", func(s *backuptest.Store, _ func()) {
			s.Clock = backuptest.Noon // it stands still, so that no report is dropped
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseDatabase && p.Bytes > 0 {
					panic("of the host")
				}
			}
		}, backup.ErrPanic},
		{"cancelled before", func(s *backuptest.Store, cancel func()) {
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseDatabase {
					cancel()
				}
			}
		}, context.Canceled},
		{"cancelled within", func(s *backuptest.Store, cancel func()) {
			s.Clock = backuptest.Noon // it stands still, so that no report is dropped
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseDatabase && p.Bytes > 0 {
					cancel()
				}
			}
		}, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := memoryStore(t)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			tt.fail(s, cancel)
			_, err := backup.CreateRuntimeBackup(ctx, s.Options)
			require.ErrorIs(t, err, tt.want)
			require.NoError(t, backuptest.Transfer(context.Background(), s.DB, 1, 2, 5), "the database exists and has no transaction open")
			s.OnProgress = nil
			backuptest.RequireSound(t, s.Create().DBSnapshotPath)
		})
	}
}

func TestHandleInsideATransactionIsRefused(t *testing.T) {
	t.Parallel()
	s := memoryStore(t)
	_, err := s.DB.Exec("BEGIN")
	require.NoError(t, err)
	_, err = backup.CreateRuntimeBackup(context.Background(), s.Options)
	require.ErrorContains(t, err, "within a transaction")
	_, err = s.DB.Exec("COMMIT")
	require.NoError(t, err, "the transaction of the host is left open")
}

func TestHandleOfAnotherFileIsRefused(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	other := filepath.Join(s.Dir, "other.db")
	backuptest.MakeDatabase(t, other)
	for _, tt := range []struct {
		name string
		db   *sql.DB
		path string
	}{
		{"another file", backuptest.OpenDB(t, other), s.DatabasePath},
		{"a file, and a path that does not exist", backuptest.OpenDB(t, other), filepath.Join(s.Dir, "none.db")},
		{"in memory, and a path that is a file", memoryStore(t).DB, s.DatabasePath},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := s.Options
			opts.DB, opts.DatabasePath = tt.db, tt.path
			_, err := backup.CreateRuntimeBackup(context.Background(), opts)
			require.ErrorIs(t, err, backup.ErrInvalidOptions)
		})
	}
}

func TestClosedHandleIsAnError(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	s.DB = backuptest.OpenDB(t, s.DatabasePath)
	require.NoError(t, s.DB.Close())
	_, err := backup.CreateRuntimeBackup(context.Background(), s.Options)
	require.ErrorContains(t, err, "closed")
}
