package backup_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// recordReports makes calls report everything to the list that it returns.
func recordReports(opts *backup.Options) *[]backup.Progress {
	reports := new([]backup.Progress)
	opts.Clock = backuptest.Noon // it stands still, so that no report is dropped
	opts.OnProgress = func(p backup.Progress) { *reports = append(*reports, p) }
	return reports
}

// requireShares checks that the share never goes back, is below 1 until the end,
// and 1 in the end.
func requireShares(t *testing.T, reports []backup.Progress) {
	t.Helper()
	require.NotEmpty(t, reports)
	last := 0.0
	for i, p := range reports {
		require.GreaterOrEqual(t, p.Share, last, "report %d, %+v", i, p)
		require.Equal(t, i == len(reports)-1, p.Share == 1, "report %d of %d, %+v", i+1, len(reports), p)
		last = p.Share
	}
}

// shareAt returns the share when a phase begins for the nth time.
func shareAt(t *testing.T, reports []backup.Progress, phase backup.Phase, nth int) float64 {
	t.Helper()
	var before backup.Phase
	for _, p := range reports {
		if p.Phase == phase && before != phase {
			if nth--; nth == 0 {
				return p.Share
			}
		}
		before = p.Phase
	}
	require.Fail(t, "no such phase", phase)
	return 0
}

// bulkyStore is a store with 8 MB in its database and as much in its Chroma
// directory.
func bulkyStore(t *testing.T) *backuptest.Store {
	t.Helper()
	s := backuptest.NewStore(t)
	bulky(t, s.DatabasePath)
	require.NoError(t, os.WriteFile(s.InChroma("large"), make([]byte, 12<<20), 0o600))
	return s
}

// The share of every call grows from 0 to 1. Half the way is not far from half of
// the bytes.
func TestShareOfACreate(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*backup.Options)
		hash   float64 // the share when the copy is complete
	}{
		"with Chroma":          {func(*backup.Options) {}, 0.4},
		"without Chroma":       {func(o *backup.Options) { o.IncludeChroma = false }, 0.57},
		"Verify":               {func(o *backup.Options) { o.Verify = true }, 0.27},
		"online":               {func(o *backup.Options) { o.OnlineBackup = true }, 0.4},
		"Chroma missing":       {func(o *backup.Options) { o.ChromaPath += "-missing" }, 0.57},
		"a guard":              {func(o *backup.Options) { o.Locker = new(backuptest.Guard) }, 0.4},
		"invalid, with Verify": {func(o *backup.Options) { o.Verify = true; backuptest.Write(t, o.RegistryPath, "{") }, 0.27},
	} {
		t.Run(name, func(t *testing.T) {
			s := bulkyStore(t)
			tt.change(&s.Options)
			reports := recordReports(&s.Options)
			_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
			if strings.HasPrefix(name, "invalid") {
				require.ErrorIs(t, err, backup.ErrInvalidBackup)
				defer s.RemoveAll(s.BackupDir)
			} else {
				require.NoError(t, err)
			}
			requireShares(t, *reports)
			require.Zero(t, (*reports)[0].Share)
			require.InDelta(t, tt.hash, shareAt(t, *reports, backup.PhaseHash, 1), 0.05)
		})
	}
}

// If the database gets busy under the guard, the capture is repeated. The share
// waits.
func TestShareWhenTheCaptureIsRepeated(t *testing.T) {
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
		var reports []backup.Progress
		s.OnProgress = func(p backup.Progress) {
			reports = append(reports, p)
			if p.Phase == backup.PhaseWait {
				h.release()
			}
		}
		s.Create()
		requireShares(t, reports)
		require.Equal(t, 3, g.Taken)
		require.Equal(t, shareAt(t, reports, backup.PhaseDatabase, 1), shareAt(t, reports, backup.PhaseDatabase, 3))
	})
}

func TestShareOfAValidation(t *testing.T) {
	t.Parallel()
	s := bulkyStore(t)
	made := s.CreateSnapshot()
	for name, tt := range map[string]struct {
		change func(*backuptest.Snapshot)
		valid  bool
	}{
		"valid":            {func(*backuptest.Snapshot) {}, true},
		"Python":           {func(s *backuptest.Snapshot) { s.MakePython() }, true},
		"damaged":          {func(s *backuptest.Snapshot) { s.Flip(backuptest.DBFile, 5000) }, false},
		"without metadata": {func(s *backuptest.Snapshot) { s.Remove(backuptest.MetadataFile) }, false},
		"metadata that are lies": {func(s *backuptest.Snapshot) {
			s.Set(map[string]any{"db_size_bytes": int64(1)<<62 + 1<<61, "chroma_snapshot_bytes": int64(1) << 62})
		}, false},
		"nothing by its metadata": {func(s *backuptest.Snapshot) {
			s.Set(map[string]any{"db_size_bytes": 0, "chroma_snapshot_bytes": 0})
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			snapshot := made.Copy(t)
			tt.change(snapshot)
			reports := recordReports(&snapshot.Options)
			report, err := backup.ValidateBackup(t.Context(), snapshot.Options, snapshot.Stamp)
			require.NotNil(t, report, err)
			require.Equal(t, tt.valid, report.Valid)
			requireShares(t, *reports)
			if name == "valid" {
				require.Greater(t, (*reports)[len(*reports)-2].Share, 0.6)
			}
		})
	}
	var missing backup.Options
	missing.BackupDir = s.BackupDir
	reports := recordReports(&missing)
	_, err := backup.ValidateBackup(t.Context(), missing, "missing")
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.Empty(t, *reports)
}

func TestShareOfARestore(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*backuptest.Store)
		stage  float64 // the share when the safety snapshot is complete
	}{
		"over a store": {func(s *backuptest.Store) {
			s.Must(os.Truncate(s.InChroma("large"), 0))
			s.RemoveAll(s.DatabasePath)
			backuptest.MakeDatabase(t, s.DatabasePath)
		}, 0.31},
		"over one of that size": {func(s *backuptest.Store) {
			backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) { _, err := db.Exec("DELETE FROM bulk"); s.Must(err) })
		}, 0.55},
		"into nothing": {func(s *backuptest.Store) {
			s.RemoveAll(s.DatabasePath)
			s.RemoveAll(s.RegistryPath)
			s.RemoveAll(s.ChromaPath)
		}, 0.3},
		"over a broken database": {func(s *backuptest.Store) { backuptest.Write(t, s.DatabasePath, "no database") }, 0.5},
		"nothing to do":          {func(*backuptest.Store) {}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := bulkyStore(t)
			stamp := s.Create().Stamp
			tt.change(s)
			reports := recordReports(&s.Options)
			s.Restore(stamp)
			requireShares(t, *reports)
			if tt.stage > 0 {
				require.InDelta(t, tt.stage, shareAt(t, *reports, backup.PhaseStage, 1), 0.1)
				require.Greater(t, (*reports)[len(*reports)-2].Share, 0.8)
			}
		})
	}
}

func TestShareOfAPrune(t *testing.T) {
	t.Parallel()
	s := newSnapshotSet(t)
	s.putDays(5)
	for _, keep := range []backup.Retention{{KeepLast: 2, DryRun: true}, {KeepLast: 2}, {KeepLast: 2}} {
		reports := recordReports(&s.Options)
		s.prune(keep)
		requireShares(t, *reports)
	}
}

// So does that of the calls on single snapshots.
func TestShareOfTheOtherCalls(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	stamp := s.Create().Stamp
	s.Create()
	reports := recordReports(&s.Options)
	var exported bytes.Buffer
	require.NoError(t, backup.ExportRuntimeBackup(t.Context(), s.Options, stamp, &exported))
	requireShares(t, *reports)
	require.Greater(t, len(*reports), 5)

	*reports = nil
	_, err := backup.ValidateDir(t.Context(), s.Options, s.SnapshotPath(stamp))
	require.NoError(t, err)
	requireShares(t, *reports)

	*reports = nil
	require.NoError(t, backup.RemoveRuntimeBackup(t.Context(), s.Options, stamp))
	requireShares(t, *reports)

	*reports = nil
	_, err = backup.ImportRuntimeBackup(t.Context(), s.Options, &exported)
	require.NoError(t, err)
	requireShares(t, *reports)
	require.InDelta(t, 1.0/3, shareAt(t, *reports, backup.PhaseSync, 1), 0.01)
	require.InDelta(t, 2.0/3, shareAt(t, *reports, backup.PhaseValidateFiles, 1), 0.01)
}

// The safety snapshot of a failed restore does not make its share 1, nor does
// anything else of a call that fails.
func TestShareOfACallThatFails(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	stamp := s.Create().Stamp
	backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) { s.Must(backuptest.Transfer(t.Context(), db, 1, 2, 3)) })
	for _, phase := range append([]backup.Phase{backup.PhaseStage, backup.PhaseVerify}, backuptest.CreatePhases...) {
		if phase == backup.PhaseGuard {
			continue
		}
		ctx, cancel := context.WithCancel(t.Context())
		reports := recordReports(&s.Options)
		record := s.OnProgress
		s.OnProgress = func(p backup.Progress) {
			record(p)
			if p.Phase == phase {
				cancel()
			}
		}
		_, err := backup.RestoreRuntimeBackup(ctx, s.Options, stamp)
		require.ErrorIs(t, err, context.Canceled, phase)
		for _, p := range *reports {
			require.Less(t, p.Share, 1.0, "%+v", p)
		}
	}
	s.Clock, s.OnProgress = nil, nil
}

// Reports are made about 20 times a second, whatever there is to report. The first
// and the last one of each phase are never dropped.
func TestRateOfReports(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	for i := range 500 {
		backuptest.Write(t, s.InChroma(fmt.Sprint("file-", i)), "some")
	}
	s.Locker = new(backuptest.Guard)
	all := recordReports(&s.Options)
	s.Create()

	clock := &hand{backuptest.Noon.Time}
	s.Clock = backuptest.ClockFunc(func() time.Time {
		clock.now = clock.now.Add(5 * time.Millisecond)
		return clock.now
	})
	var some []backup.Progress
	s.OnProgress = func(p backup.Progress) { some = append(some, p) }
	s.Create()
	requireShares(t, some)
	passed := int(clock.now.Sub(backuptest.Noon.Time) / (50 * time.Millisecond))
	require.Greater(t, len(*all), 200) // how many exactly depends on the scheduler
	require.Greater(t, passed, 20)
	require.LessOrEqual(t, len(some), passed+2*len(backuptest.CreatePhases)+1)
	require.GreaterOrEqual(t, len(some), passed/2)

	ends := func(reports []backup.Progress) (ends []backup.Progress) {
		for i, p := range reports {
			p.Share = 0
			p.Path = ""
			if i == 0 || reports[i-1].Phase != p.Phase || i == len(reports)-1 || reports[i+1].Phase != p.Phase {
				ends = append(ends, p)
			}
		}
		return ends
	}
	require.Equal(t, ends(*all), ends(some))
}

// What the host does in the last report changes nothing any more.
func TestInterruptedAtTheLastReport(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]func(cancel func()){
		"cancelled":      func(cancel func()) { cancel() },
		"panic":          func(func()) { panic(errHandler) },
		"goroutine ends": func(func()) { runtime.Goexit() },
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			s.Verify = true
			log := s.Record()
			var cancel context.CancelFunc
			s.OnProgress = func(p backup.Progress) {
				if p.Share == 1 {
					interrupt(func() { cancel() })
				}
			}
			calls := map[string]func(ctx context.Context) error{
				"create": func(ctx context.Context) error { _, err := backup.CreateRuntimeBackup(ctx, s.Options); return err },
				"validate": func(ctx context.Context) error {
					_, err := backup.ValidateBackup(ctx, s.Options, s.Stamps()[0])
					return err
				},
				"prune": func(ctx context.Context) error {
					_, err := backup.PruneRuntimeBackups(ctx, s.Options, backup.Retention{KeepLast: 1})
					return err
				},
				"restore": func(ctx context.Context) error {
					_, err := backup.RestoreRuntimeBackup(ctx, s.Options, s.Stamps()[0])
					return err
				},
			}
			for _, call := range []string{"create", "validate", "prune", "restore"} {
				if call == "restore" {
					backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) { s.Must(backuptest.Transfer(t.Context(), db, 1, 2, 3)) })
				}
				var ctx context.Context
				ctx, cancel = context.WithCancel(t.Context())
				log.Clear()
				err := errors.New("it did not return")
				var running sync.WaitGroup
				running.Go(func() { err = calls[call](ctx) })
				running.Wait()
				if name == "goroutine ends" {
					require.EqualError(t, err, "it did not return")
				} else {
					require.NoError(t, err, call)
				}
				require.Equal(t, name == "panic", strings.Contains(strings.Join(log.Lines(), "\n"), `level=ERROR progress_panicked panic="handler broke"`), call)
				cancel()
			}
			require.Len(t, s.Stamps(), 2, "one was made, and the safety snapshot")
			require.Zero(t, backuptest.CountTransfers(t, s.DatabasePath), "it was not restored")
		})
	}
}

// A report has its names in JSON as the results have them.
func TestProgressJSON(t *testing.T) {
	data, err := json.Marshal(backup.Progress{Phase: backup.PhaseHash, Path: "é\xff", Files: 1, TotalFiles: 2, Bytes: 3, TotalBytes: 4, Share: 0.5})
	require.NoError(t, err)
	require.JSONEq(t, `{"phase":"hash","path":"\u00e9\udcff","files":1,"total_files":2,"bytes":3,"total_bytes":4,"share":0.5}`, string(data))
	require.Contains(t, string(data), `"\u00e9\udcff"`)
}
