package restore

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// restoreOffline restores the snapshot args[1] of the store in args[0], which it
// has in use until Offline and from resume on. Right before it closes its
// connection it creates the table "late", and it creates the table "resumed" with
// its new one.
func restoreOffline(_ *backuptest.Parent, args []string) error {
	runtime.LockOSThread()
	opts := optionsIn(args[0])
	var db *sql.DB
	open := func() (err error) {
		if db, err = backuptest.Open(opts.DatabasePath, "_pragma=journal_mode(wal)"); err == nil {
			err = db.Ping()
		}
		return err
	}
	if err := open(); err != nil {
		return err
	}
	opts.Offline = func(context.Context) (func(context.Context) error, error) {
		if _, err := db.Exec("CREATE TABLE late (x)"); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(args[0], "offline"), nil, 0o600); err != nil {
			return nil, err
		}
		return func(context.Context) error {
			if err := open(); err != nil {
				return err
			}
			_, err := db.Exec("CREATE TABLE resumed (x)")
			return err
		}, db.Close()
	}
	if _, err := backup.RestoreRuntimeBackup(context.Background(), opts, args[1]); err != nil {
		return err
	}
	return db.Close()
}

// hasTable reports whether the database at path, with its WAL, has a table.
func hasTable(t *testing.T, path, name string) bool {
	t.Helper()
	db := backuptest.OpenDB(t, backuptest.CopyWithWAL(t, path))
	defer db.Close()
	var n int
	require.NoError(t, db.QueryRow("SELECT count(*) FROM sqlite_schema WHERE name = ?", name).Scan(&n))
	return n > 0
}

// A service that has its store restored is killed before each of the calls that
// change anything. What it wrote until Offline is in the store, or set aside, when
// the next restore has recovered.
func TestOfflineRestoreKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	tracer.role = "restore-offline"
	calls := []string{"renameat2", "unlinkat", "fsync", "write", "pwrite64"}
	if *killStride == 1 {
		calls = append(calls, "renameat", "linkat", "mkdirat", "ftruncate", "fchmod", "utimensat", "flock", "fcntl", "close")
	}
	stamp, fresh := newTemplate(t)
	kills, offline := 0, 0
	outcomes := map[string]int{}
	stride := (*killStride + 3) / 4
	for call, n := 0, 1; call < len(calls); n += stride {
		s := fresh(t)
		text, _, err := tracer.run(t, calls[call], fmt.Sprintf("signal=SIGKILL:when=%d", n), s.Dir, stamp)
		where := fmt.Sprintf("killed at %s number %d", calls[call], n)
		wasOffline := false
		if _, err := os.Stat(filepath.Join(s.Dir, "offline")); err == nil {
			wasOffline = true
		}
		if err == nil {
			require.Equal(t, "new", generationOf(t, s.Options))
			require.True(t, hasTable(t, s.DatabasePath, "resumed"))
			s.RequireClean()
			s.RequireNoRemains()
		} else {
			require.Empty(t, text, "it failed before it was killed")
			kills++
			isUnfinished(t, s, stamp)
			outcome := recovered(s)
			if wasOffline {
				offline++
				outcome += " after Offline"
			}
			outcomes[outcome]++
		}
		if wasOffline {
			places, err := filepath.Glob(s.DatabasePath + ".set-aside-*/atocore.db")
			require.NoError(t, err)
			found := false
			for _, place := range append(places, s.DatabasePath) {
				found = found || hasTable(t, place, "late")
			}
			require.True(t, found, where)
		}
		if err == nil {
			call, n = call+1, 1-stride
		} else { // then a whole restore works
			s.Restore(stamp)
			require.Equal(t, "new", generationOf(t, s.Options), where)
			s.RequireClean()
			s.RequireNoRemains()
		}
		require.NoError(t, os.RemoveAll(s.Dir))
	}
	if *killStride == 1 {
		require.NotZero(t, offline)
	}
	t.Logf("%d kills, %d of them after Offline; afterwards the store was %v", kills, offline, outcomes)
}

// A service is killed at each line of the journal, and what it wrote until Offline
// is kept also if the safety snapshot is good, was lost, or if a recovery of a
// restore that is done is killed, too.
func TestOfflineRestoreCutOffWhenDone(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	tracer.role = "restore-offline"
	stamp, fresh := newTemplate(t)
	for name, spoil := range map[string]func(t *testing.T, s *backuptest.Store){
		"the safety snapshot is good": func(*testing.T, *backuptest.Store) {},
		"the safety snapshot is gone": func(t *testing.T, s *backuptest.Store) {
			made, err := filepath.Glob(s.SnapshotPath("*"))
			require.NoError(t, err)
			require.Len(t, made, 2)
			for _, path := range made {
				if filepath.Base(path) != stamp {
					s.RemoveAll(path)
				}
			}
		},
		"the recovery is killed": func(t *testing.T, s *backuptest.Store) {
			recovery := tracer
			recovery.role, recovery.path = "restore", stagingOf(t, s, "db")
			_, hit, _ := recovery.run(t, "unlinkat", "signal=SIGKILL:when=1", s.Dir, "none")
			require.True(t, hit)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := tracer.cutAfter(t, "pwrite64", "done", stamp, fresh)
			require.Contains(t, strings.Join(linesOf(t, s), "\n"), "safety-in-use ")
			spoil(t, s)
			require.Equal(t, "new", recovered(s))
			places, err := filepath.Glob(s.DatabasePath + ".set-aside-*/atocore.db")
			require.NoError(t, err)
			require.Len(t, places, 1)
			require.True(t, hasTable(t, places[0], "late"))
		})
	}
}

// From resume on, this process has nothing of the new store open, and locks
// nothing of it.
func TestResumeFindsTheStoreFree(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	s.Offline = func(context.Context) (func(context.Context) error, error) {
		return func(context.Context) error {
			for _, file := range backuptest.OpenFiles(t) {
				for _, dir := range []string{filepath.Dir(s.DatabasePath), filepath.Dir(s.RegistryPath)} {
					if below, ok := strings.CutPrefix(file, dir+"/"); ok {
						require.Contains(t, below, ".atocore-restore", "it is open")
					}
				}
			}
			// Another process may open it, and so may one that SQLite's locks keep out.
			c := backuptest.Start(t, "hold", s.DatabasePath)
			require.Equal(t, "open", c.Hear())
			c.Kill()
			db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode(wal)", "_pragma=locking_mode(exclusive)")
			defer db.Close()
			_, err := db.Exec("INSERT INTO gen SELECT * FROM gen; DELETE FROM gen WHERE rowid > 1")
			return err
		}, nil
	}
	s.Restore(stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// The database is a file that is mounted alone, and is overwritten while the store
// is offline; the lock on it is released before resume, and no lock that is taken
// then is lost.
func TestOfflineRestoreOfMountedFiles(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	live := backuptest.OpenDB(t, s.DatabasePath)
	_, err := live.Exec("PRAGMA journal_mode=delete")
	require.NoError(t, err)
	require.NoError(t, live.Close())
	for _, path := range []string{s.DatabasePath, s.RegistryPath} {
		backuptest.MountBind(t, path, path)
	}
	late := func(path string) {
		db := backuptest.OpenDB(t, path)
		defer db.Close()
		_, err := db.Exec("CREATE TABLE late (x)")
		require.NoError(t, err)
	}
	var held *os.File
	var locks []string
	s.Offline = func(context.Context) (func(context.Context) error, error) {
		late(s.DatabasePath)
		return func(context.Context) error {
			held, locks = lockedFile(t, s.DatabasePath)
			return nil
		}, nil
	}
	result := s.Restore(stamp)
	require.Equal(t, locks, backuptest.LocksOn(t, s.DatabasePath))
	require.NoError(t, held.Close())
	require.Equal(t, "new", generationOf(t, s.Options))
	require.Len(t, result.SetAside, 1)
	require.True(t, hasTable(t, filepath.Join(result.SetAside[0], "atocore.db"), "late"))
}

// lockedFile locks a file as another SQLite library in this process does, and
// returns the locks on it. It stays locked until the file is closed.
func lockedFile(t *testing.T, path string) (f *os.File, locks []string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	const pending = 0x40000000 // sqlite.org/lockingv3.html
	require.NoError(t, syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_RDLCK, Start: pending + 2, Len: 510}))
	return f, backuptest.LocksOn(t, path)
}

// A service that was killed while its copies were staged may be running again: the
// store was not touched. The recovery drops none of its locks.
func TestRecoveryOfStagingBesideAService(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	cutOff(t, s, stamp, "stage")
	f, locks := lockedFile(t, s.DatabasePath)
	defer f.Close()
	r, err := recovery(s)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.Equal(t, "undone", r.Recovered)
	require.Equal(t, locks, backuptest.LocksOn(t, s.DatabasePath))
	s.RequireNoRemains()
}
