package backup_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var (
	dbMB      = flag.Int("db-mb", 20, "size in MB of the database in TestLargeDatabaseUnderWriters")
	snapshots = flag.Int("snapshots", 2, "how many snapshots that test takes")
)

// eachCopy runs a test for both ways of copying a database.
func eachCopy(t *testing.T, test func(t *testing.T, online bool)) {
	for _, online := range []bool{false, true} {
		t.Run(map[bool]string{false: "pinned copy", true: "online backup"}[online], func(t *testing.T) {
			test(t, online)
		})
	}
}

// Databases of every journal mode and page size are copied while the host has a
// connection open and nothing is checkpointed.
func TestDatabaseForms(t *testing.T) {
	t.Parallel()
	eachCopy(t, func(t *testing.T, online bool) {
		s := backuptest.NewStore(t)
		s.IncludeChroma, s.OnlineBackup = false, online
		for _, mode := range []string{"wal", "delete", "truncate", "persist", "memory", "off"} {
			for pageSize := 512; pageSize <= 65536; pageSize *= 2 {
				if pageSize != 4096 && mode != "wal" && mode != "delete" {
					continue // the file is as with "delete"
				}
				t.Run(fmt.Sprintf("%s,%d", mode, pageSize), func(t *testing.T) {
					s.DatabasePath = filepath.Join(s.Dir, fmt.Sprintf("%s-%d.db", mode, pageSize))
					backuptest.MakeDatabase(t, s.DatabasePath, fmt.Sprintf("_pragma=page_size(%d)", pageSize), "_pragma=synchronous(off)")
					db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode("+mode+")", "_pragma=wal_autocheckpoint(0)", "_pragma=synchronous(off)")
					for i := range 10 {
						require.NoError(t, backuptest.Transfer(t.Context(), db, i, i+1, i))
					}
					var is string
					require.NoError(t, db.QueryRow("PRAGMA journal_mode").Scan(&is))
					require.Equal(t, mode, is)

					meta := s.Create()
					require.Equal(t, 10, backuptest.CountTransfers(t, meta.DBSnapshotPath))
					got := backuptest.OpenDB(t, meta.DBSnapshotPath, "mode=ro")
					var size int
					require.NoError(t, got.QueryRow("PRAGMA page_size").Scan(&size))
					require.Equal(t, pageSize, size)
				})
			}
		}
	})
}

// The settings in the header of a database are kept.
func TestDatabaseSettingsKept(t *testing.T) {
	eachCopy(t, func(t *testing.T, online bool) {
		s := backuptest.NewStore(t)
		s.IncludeChroma, s.OnlineBackup = false, online
		s.DatabasePath = filepath.Join(s.Dir, "settings.db")
		_, err := backuptest.OpenDB(t, s.DatabasePath).Exec(`PRAGMA encoding='UTF-16be'; PRAGMA auto_vacuum=incremental;
			PRAGMA user_version=77; PRAGMA application_id=88; PRAGMA journal_mode=wal; CREATE TABLE t (x)`)
		require.NoError(t, err)
		got := backuptest.OpenDB(t, s.Create().DBSnapshotPath, "mode=ro")
		for pragma, want := range map[string]string{
			"encoding": "UTF-16be", "auto_vacuum": "2", "user_version": "77", "application_id": "88",
		} {
			var is string
			require.NoError(t, got.QueryRow("PRAGMA "+pragma).Scan(&is))
			require.Equal(t, want, is, pragma)
		}
	})
}

// Names that have a meaning in a URI or in SQL are not misread. A database with the
// name that would be left if they were cut lies beside.
func TestDatabaseNames(t *testing.T) {
	t.Parallel()
	names := []string{
		"with spaces.db", "a?b.db", "a?mode=rwc", "100%.db", "a%20b.db", "%3f.db", "a#b.db", "it's.db", `say "hi".db`,
		"a;b.db", "a&b=c+d.db", "a:b.db", "[x].db", "$HOME.db", "日本 ü.db", ".hidden", "-v",
	}
	if runtime.GOOS == "windows" {
		t.Skip("many of these names are not possible on Windows")
	}
	longest := map[string]string{"wal": strings.Repeat("w", 255-len("-wal")), "delete": strings.Repeat("d", 255)}
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			eachCopy(t, func(t *testing.T, online bool) {
				s := backuptest.NewStore(t)
				s.IncludeChroma, s.OnlineBackup = false, online
				require.NoError(t, os.Mkdir(filepath.Join(s.Dir, "dir ?#%41;"), 0o755))
				decoy := filepath.Join(s.Dir, "dir ?#%41;", "a")
				backuptest.MakeDatabase(t, decoy, "_pragma=journal_mode("+mode+")")
				data, err := os.ReadFile(decoy)
				require.NoError(t, err)
				for i, name := range append(names, longest[mode]) {
					t.Run(fmt.Sprintf("%.20q", name), func(t *testing.T) {
						s.DatabasePath = filepath.Join(s.Dir, "dir ?#%41;", name)
						require.NoError(t, os.WriteFile(s.DatabasePath, data, 0o600))
						db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode("+memoryIfLong(mode, name)+")")
						for range i + 1 {
							require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 3))
						}
						meta := s.Create()
						require.Equal(t, name, filepath.Base(meta.DBSnapshotPath))
						require.Equal(t, i+1, backuptest.CountTransfers(t, meta.DBSnapshotPath))
					})
				}
			})
		})
	}
}

// memoryIfLong returns mode, or "memory" if the database's name leaves no room for
// the "-journal" that the mode needs to write.
func memoryIfLong(mode, name string) string {
	if mode == "delete" && len(name) > 255-len("-journal") {
		return "memory"
	}
	return mode
}

// If the path of the database has links, the WAL lies beside the file they lead to.
func TestDatabaseThroughLinks(t *testing.T) {
	eachCopy(t, func(t *testing.T, online bool) {
		s := backuptest.NewStore(t)
		s.IncludeChroma, s.OnlineBackup = false, online
		db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=wal_autocheckpoint(0)")
		require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 3))
		require.NoError(t, os.Symlink("data", filepath.Join(s.Dir, "linked")))
		require.NoError(t, os.Symlink("linked/atocore.db", filepath.Join(s.Dir, "link.db")))
		s.DatabasePath = filepath.Join(s.Dir, "link.db")
		meta := s.Create()
		require.Equal(t, 1, backuptest.CountTransfers(t, meta.DBSnapshotPath))
		require.Equal(t, "link.db", filepath.Base(meta.DBSnapshotPath))
		require.True(t, backuptest.ReadTree(t, meta.BackupRoot)["db/link.db"].Mode.IsRegular())
	})
}

// roleLeaveBehind writes to the database args[1] in journal mode args[0], part
// of it in a transaction that is not committed, and waits to be killed.
func roleLeaveBehind(p *backuptest.Parent, args []string) error {
	db, err := backuptest.Open(args[1], "_pragma=cache_size(5)", "_pragma=cache_spill(5)", "_pragma=wal_autocheckpoint(0)",
		"_pragma=journal_mode("+args[0]+")")
	if err != nil {
		return err
	}
	if err := backuptest.Transfer(context.Background(), db, 1, 2, 10); err != nil {
		return err
	}
	if _, err := db.Exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if _, err := db.Exec("UPDATE account SET balance = balance + 1000"); err != nil {
		return err
	}
	// More than fits in the cache, so that it gets into the file or the WAL.
	if _, err := db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 200)
		INSERT INTO transfer (amount, note) SELECT i, hex(randomblob(1000)) FROM n`); err != nil {
		return err
	}
	p.Say("written")
	p.Hear()
	return nil
}

// A hot journal or a WAL of a killed writer is handled as SQLite does: the copy has
// what was committed, and no more.
func TestDatabaseOfKilledWriter(t *testing.T) {
	t.Parallel()
	for mode, left := range map[string]string{"wal": "-wal", "delete": "-journal", "truncate": "-journal", "persist": "-journal"} {
		t.Run(mode, func(t *testing.T) {
			eachCopy(t, func(t *testing.T, online bool) {
				s := backuptest.NewStore(t)
				s.IncludeChroma, s.OnlineBackup = false, online
				writer := backuptest.Start(t, "leave-behind", mode, s.DatabasePath)
				require.Equal(t, "written", writer.Hear())
				writer.Kill()

				spilled := s.DatabasePath
				if mode == "wal" {
					spilled += left
				}
				require.Greater(t, backuptest.FileSize(t, spilled), int64(200<<10), "the uncommitted transaction was not spilled")
				require.Positive(t, backuptest.FileSize(t, s.DatabasePath+left))
				require.Equal(t, 1, backuptest.CountTransfers(t, s.Create().DBSnapshotPath))
				require.Equal(t, 1, backuptest.CountTransfers(t, s.Create().DBSnapshotPath), "the second time")
			})
		})
	}
}

// roleTryLock executes each line that it hears as SQL in the database args[0], and
// says whether it got the locks for it.
func roleTryLock(p *backuptest.Parent, args []string) error {
	for {
		statement := p.Hear()
		db, err := backuptest.Open(args[0], "_pragma=busy_timeout(0)")
		if err != nil {
			return err
		}
		_, err = db.Exec(statement)
		if err := db.Close(); err != nil { // so that it holds no lock when it answers
			return err
		}
		switch {
		case backuptest.SQLiteCode(err) == 5:
			p.Say("refused")
		case err != nil:
			p.Say(err.Error())
		default:
			p.Say("got it")
		}
	}
}

// Closing a descriptor of a database drops all locks that the process has on it,
// and then another process could write in the middle of the host's transaction. So
// create and validate must not close one.
func TestHostKeepsItsLocks(t *testing.T) {
	t.Parallel()
	const exclusive = "BEGIN EXCLUSIVE; ROLLBACK"
	for _, tt := range []struct{ mode, host, child string }{
		{"wal", "BEGIN IMMEDIATE; UPDATE account SET balance = balance + 1 WHERE id = 1", exclusive},
		// In WAL mode the lock on the file itself only keeps out those who want
		// to change the journal mode.
		{"wal", "SELECT 1", "PRAGMA journal_mode=delete"},
		{"delete", "BEGIN IMMEDIATE; UPDATE account SET balance = balance + 1 WHERE id = 1", exclusive},
		{"delete", "BEGIN; SELECT count(*) FROM account", exclusive},
	} {
		t.Run(tt.mode+": "+strings.Fields(tt.host)[0]+" "+strings.Fields(tt.host)[1], func(t *testing.T) {
			eachCopy(t, func(t *testing.T, online bool) {
				s := backuptest.NewStore(t)
				s.OnlineBackup = online
				db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode("+tt.mode+")")
				conn, err := db.Conn(t.Context())
				require.NoError(t, err)
				defer conn.Close()
				_, err = conn.ExecContext(t.Context(), tt.host)
				require.NoError(t, err)

				other := backuptest.Start(t, "try-lock", s.DatabasePath)
				require.Equal(t, "refused", other.Ask(tt.child), "before")
				locks := backuptest.LocksOn(t, s.DatabasePath)
				for range 3 {
					meta := s.Create()
					require.Equal(t, locks, backuptest.LocksOn(t, s.DatabasePath))
					require.Equal(t, "refused", other.Ask(tt.child), "the host's locks are gone")
					_, err := backup.ValidateBackup(t.Context(), s.Options, meta.Stamp)
					require.NoError(t, err)
					require.Equal(t, "refused", other.Ask(tt.child), "the host's locks are gone after validating")
				}

				if strings.HasPrefix(tt.host, "BEGIN") {
					_, err = conn.ExecContext(t.Context(), "ROLLBACK")
					require.NoError(t, err)
					require.Equal(t, "got it", other.Ask(tt.child), "the snapshot left locks behind")
				}
			})
		})
	}
}

// A transaction that is open while the snapshot is taken is not copied.
func TestOpenTransactionIsNotCopied(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			eachCopy(t, func(t *testing.T, online bool) {
				s := backuptest.NewStore(t)
				s.IncludeChroma, s.OnlineBackup = false, online
				db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode("+mode+")")
				tx, err := db.Begin()
				require.NoError(t, err)
				_, err = tx.Exec("UPDATE account SET balance = balance + 1 WHERE id = 1")
				require.NoError(t, err)
				_, err = tx.Exec("INSERT INTO transfer (amount, note) VALUES (1, '')")
				require.NoError(t, err)
				require.Equal(t, 0, backuptest.CountTransfers(t, s.Create().DBSnapshotPath))
				_, err = tx.Exec("UPDATE account SET balance = balance - 1 WHERE id = 2")
				require.NoError(t, err)
				require.NoError(t, tx.Commit())
				require.Equal(t, 1, backuptest.CountTransfers(t, s.Create().DBSnapshotPath))
			})
		})
	}
}

// If another connection has the database locked exclusively, create waits for it
// until the context ends.
func TestBusyDatabaseIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, params, begin string }{
		{"rollback journal", "_pragma=journal_mode(delete)", "BEGIN EXCLUSIVE"},
		{"WAL, exclusive locking", "_pragma=locking_mode(exclusive)", "BEGIN IMMEDIATE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachCopy(t, func(t *testing.T, online bool) {
				s := backuptest.NewStore(t)
				s.OnlineBackup = online
				db := backuptest.OpenDB(t, s.DatabasePath, tt.params)
				conn, err := db.Conn(t.Context())
				require.NoError(t, err)
				_, err = conn.ExecContext(t.Context(), tt.begin+"; UPDATE account SET balance = 0")
				require.NoError(t, err)

				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				_, err = backup.CreateRuntimeBackup(ctx, s.Options)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, s.DatabasePath)
				s.RequireNoSnapshot()

				ended := make(chan error, 1)
				waiting := false
				s.OnProgress = func(p backup.Progress) {
					if p.Phase == backup.PhaseWait && !waiting {
						waiting = true
						go func() {
							_, err := conn.ExecContext(context.Background(), "COMMIT")
							ended <- errors.Join(err, conn.Close(), db.Close())
						}()
					}
				}
				backuptest.RequireSound(t, s.Create().DBSnapshotPath)
				require.NoError(t, <-ended)
			})
		})
	}
}

// bulkRows is the number of rows in a database of makeBulk. Each fills a page, and
// together they are larger than the pieces in which a file is copied.
const bulkRows = 3000

// makeBulk creates a database of 12 MB and returns a connection to it that does not
// checkpoint by itself. The balances of all rows add up to 0.
func makeBulk(t *testing.T, path, mode string) *sql.DB {
	t.Helper()
	db := backuptest.OpenDB(t, path, "_pragma=page_size(4096)", "_pragma=journal_mode("+mode+")", "_pragma=synchronous(off)",
		"_pragma=wal_autocheckpoint(0)", "_pragma=busy_timeout(0)", "_pragma=cache_size(-64000)")
	_, err := db.Exec(fmt.Sprintf(`CREATE TABLE bulk (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, pad BLOB NOT NULL);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)
		INSERT INTO bulk SELECT i, 0, zeroblob(3900) FROM n;
		CREATE INDEX bulk_balance ON bulk (balance);
		PRAGMA wal_checkpoint(TRUNCATE);`, bulkRows))
	require.NoError(t, err)
	return db
}

// requireBulk checks a copy and returns the number of its rows.
func requireBulk(t *testing.T, path string) (rows int) {
	t.Helper()
	db := backuptest.OpenDB(t, path, "mode=ro", "immutable=1")
	defer db.Close()
	var text string
	require.NoError(t, db.QueryRow("PRAGMA integrity_check").Scan(&text))
	require.Equal(t, "ok", text)
	var sum int
	require.NoError(t, db.QueryRow("SELECT sum(balance), count(*) FROM bulk").Scan(&sum, &rows))
	require.Zero(t, sum, "the copy is torn: the balances do not add up")
	return rows
}

const (
	// sway moves balances between the first and the last rows, which are in
	// different pieces of the file.
	sway = "UPDATE bulk SET balance = balance + CASE WHEN id <= 10 THEN 7 ELSE -7 END WHERE id <= 10 OR id > 2990;"
	// swell is a transaction that is larger than one piece of the WAL.
	swell = "INSERT INTO bulk SELECT id + 100000, 0, zeroblob(3900) FROM bulk;"

	passive  = "PRAGMA wal_checkpoint(PASSIVE);"
	truncate = "PRAGMA wal_checkpoint(TRUNCATE);"
)

// Whatever a host does to a WAL database while its file or its WAL is being copied,
// the copy is of one moment. The host acts in OnProgress, which is called between
// two pieces, so that each case happens as written.
func TestWALDatabaseChangedWhileCopied(t *testing.T) {
	// In the last cases everything is checkpointed when the copy begins, so the
	// read transaction does not hold the WAL and a writer may start it over. The
	// old WAL begins with transactions between the first rows only. At its end,
	// after the first piece, is one that moves balances from them to the last
	// rows. If the copy had the old beginning without the old end, the first rows
	// would be set back and the last ones, whose new values are already in the
	// file, would not.
	among := "UPDATE bulk SET balance = balance + CASE WHEN id % 2 = 0 THEN 5 ELSE -5 END WHERE id <= 400;"
	oldWAL := strings.Repeat(among, 12) + sway + passive

	for _, tt := range []struct {
		name    string
		prepare string
		inWAL   bool // act after the first piece of the WAL, not of the file
		act     string
		rows    []int // how many rows the copy may have
	}{
		{"commit into the WAL", sway, false, sway + sway, []int{bulkRows}},
		{"checkpoint", sway, false, passive, []int{bulkRows}},
		{"commit and checkpoint", sway, false, sway + passive + sway + passive, []int{bulkRows}},
		{"grow and checkpoint", sway, false, swell + passive, []int{2 * bulkRows}},
		{"shrink and checkpoint", swell + sway, false, "DELETE FROM bulk WHERE id > 100000; VACUUM; " + passive, []int{bulkRows}},
		{"everything checkpointed before, then a commit", sway + passive, false, sway + passive + swell, []int{bulkRows, 2 * bulkRows}},
		{"empty WAL, then a commit", sway + truncate, false, sway, []int{bulkRows}},
		{"empty WAL, then a commit and a checkpoint", sway + truncate, false, sway + passive + sway, []int{bulkRows}},
		{"empty WAL that stays empty", sway + truncate, false, "SELECT 1", []int{bulkRows}},
		{"WAL grows", swell, true, sway + "DELETE FROM bulk WHERE id > 100000;", []int{2 * bulkRows}},
		{"WAL starts over", oldWAL, true, swell, []int{2 * bulkRows}},
		{"WAL starts over and grows", oldWAL, true, swell + sway + "DELETE FROM bulk WHERE id > 100000;", []int{bulkRows}},
		{"WAL is truncated", oldWAL, true, truncate, []int{bulkRows}},
		{"WAL is truncated and starts over", oldWAL, true, truncate + swell, []int{2 * bulkRows}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := backuptest.NewBareStore(t)
			s.IncludeChroma = false
			s.DatabasePath = filepath.Join(s.Dir, "bulk.db")
			db := makeBulk(t, s.DatabasePath, "wal")
			_, err := db.Exec(tt.prepare)
			require.NoError(t, err)

			begin, end := int64(0), backuptest.FileSize(t, s.DatabasePath)
			if tt.inWAL {
				begin, end = end, end+backuptest.FileSize(t, s.DatabasePath+"-wal")
			}
			acted, cloned := false, false
			s.Clock = backuptest.Noon // it stands still, so that no report is dropped
			s.OnProgress = func(p backup.Progress) {
				if p.Phase != backup.PhaseDatabase || p.Bytes <= begin || acted {
					return
				}
				cloned = p.Bytes == end
				acted = true
				_, err := db.Exec(tt.act)
				require.NoError(t, err)
			}
			meta := s.Create()
			require.True(t, acted)
			if runtime.GOOS != "linux" || cloned {
				t.Skip("here files are not copied in pieces")
			}
			require.Contains(t, tt.rows, requireBulk(t, meta.DBSnapshotPath))
			s.RequireClean()
		})
	}
}

// If another database replaces the one that is being copied, its WAL must not be
// taken for that of the first.
func TestDatabaseReplacedWhileCopied(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("files that are open cannot be replaced on Windows")
	}
	eachCopy(t, func(t *testing.T, online bool) {
		t.Parallel()
		s := backuptest.NewStore(t)
		s.IncludeChroma, s.OnlineBackup = false, online
		s.DatabasePath = filepath.Join(s.Dir, "bulk.db")
		makeBulk(t, s.DatabasePath, "wal")
		other := filepath.Join(s.Dir, "other.db")
		_, err := makeBulk(t, other, "wal").Exec(sway + "INSERT INTO bulk VALUES (NULL, 0, '')")
		require.NoError(t, err)
		replaced := false
		s.Clock = backuptest.Noon // it stands still, so that no report is dropped
		s.OnProgress = func(p backup.Progress) {
			if p.Phase == backup.PhaseDatabase && p.Bytes > 0 && !replaced {
				replaced = true
				for _, suffix := range []string{"-wal", "-shm", ""} {
					require.NoError(t, os.Rename(other+suffix, s.DatabasePath+suffix))
				}
			}
		}
		meta, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
		require.True(t, replaced)
		if online { // it has the files of the first one open
			require.NoError(t, err)
			require.Equal(t, bulkRows, requireBulk(t, meta.DBSnapshotPath))
		} else if runtime.GOOS == "linux" {
			require.ErrorIs(t, err, backup.ErrSourceChanged)
			s.RequireNoSnapshot()
		}
	})
}

// The path of the copy has to be escaped like that of the source.
func TestNamesOfTheBackupDirectory(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("many of these names are not possible on Windows")
	}
	eachCopy(t, func(t *testing.T, online bool) {
		s := backuptest.NewStore(t)
		s.IncludeChroma, s.OnlineBackup = false, online
		db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=wal_autocheckpoint(0)")
		require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 3))
		for _, name := range append(backuptest.AwkwardNames(t), "back ups", "a?mode=ro", "50%25", "#", "a&b;c") {
			opts := s.Options
			opts.BackupDir = filepath.Join(s.Dir, name)
			meta, err := backup.CreateRuntimeBackup(t.Context(), opts)
			require.NoError(t, err, name)
			require.Equal(t, 1, backuptest.CountTransfers(t, meta.DBSnapshotPath), name)
			_, err = backup.ValidateBackup(t.Context(), opts, meta.Stamp)
			require.NoError(t, err, name)
		}
	})
}

// Commits during an online backup are not in the copy and do not make it start
// over.
func TestOnlineBackupIsOneMoment(t *testing.T) {
	t.Parallel()
	s := backuptest.NewBareStore(t)
	s.IncludeChroma, s.OnlineBackup = false, true
	s.DatabasePath = filepath.Join(s.Dir, "bulk.db")
	db := makeBulk(t, s.DatabasePath, "wal")
	steps, last := 0, int64(0)
	s.Clock = backuptest.Noon // it stands still, so that no report is dropped
	s.OnProgress = func(p backup.Progress) {
		if p.TotalBytes == 0 || p.Phase != backup.PhaseDatabase {
			return
		}
		steps++
		require.Greater(t, p.Bytes, last, "it went back")
		last = p.Bytes
		_, err := db.Exec(sway + "INSERT INTO bulk VALUES (NULL, 0, '');" + passive)
		require.NoError(t, err)
	}
	meta := s.Create()
	require.Equal(t, bulkRows, requireBulk(t, meta.DBSnapshotPath))
	require.Greater(t, steps, 1, "it was copied in one step")
}

// Writers of a rollback-journal database have to wait while it is copied, but not
// until the snapshot is complete.
func TestRollbackJournalWritersWait(t *testing.T) {
	t.Parallel()
	eachCopy(t, func(t *testing.T, online bool) {
		s := backuptest.NewBareStore(t)
		s.IncludeChroma, s.OnlineBackup = false, online
		s.DatabasePath = filepath.Join(s.Dir, "bulk.db")
		db := makeBulk(t, s.DatabasePath, "delete")
		refused := 0
		written := false
		s.Clock = backuptest.Noon // it stands still, so that no report is dropped
		s.OnProgress = func(p backup.Progress) {
			switch {
			case p.Phase == backup.PhaseDatabase && p.TotalBytes > 0:
				_, err := db.Exec("INSERT INTO bulk VALUES (NULL, 0, '')")
				require.Equal(t, 5, backuptest.SQLiteCode(err), "%v", err)
				refused++
			case p.Phase == backup.PhaseRegistry:
				_, err := db.Exec("INSERT INTO bulk VALUES (NULL, 0, '')")
				require.NoError(t, err)
				written = true
			}
		}
		meta := s.Create()
		require.Positive(t, refused)
		require.True(t, written)
		require.Equal(t, bulkRows, requireBulk(t, meta.DBSnapshotPath))
	})
}

// An idle database is not changed, and no file is left beside it.
func TestIdleDatabaseIsLeftAsItIs(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			eachCopy(t, func(t *testing.T, online bool) {
				s := backuptest.NewStore(t)
				s.OnlineBackup = online
				backuptest.MakeDatabase(t, filepath.Join(s.Dir, "idle.db"), "_pragma=journal_mode("+mode+")")
				s.DatabasePath = filepath.Join(s.Dir, "idle.db")
				before, err := os.ReadFile(s.DatabasePath)
				require.NoError(t, err)
				mtime := backuptest.ReadTree(t, s.Dir)["idle.db"].ModTime
				s.Create()
				after, err := os.ReadFile(s.DatabasePath)
				require.NoError(t, err)
				require.True(t, bytes.Equal(before, after), "the database was written to")
				tree := backuptest.ReadTree(t, s.Dir)
				require.Equal(t, mtime, tree["idle.db"].ModTime)
				for _, suffix := range []string{"-wal", "-shm", "-journal"} {
					require.NotContains(t, tree, "idle.db"+suffix)
				}
			})
		})
	}
}

// roleWrite makes transfers in the database args[0] until it is killed.
func roleWrite(p *backuptest.Parent, args []string) error {
	db, err := backuptest.Open(args[0], "_pragma=synchronous(off)", "_txlock=immediate")
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		if err := backuptest.Transfer(context.Background(), db, i%backuptest.Accounts, i*7%backuptest.Accounts, i%1000); err != nil {
			return err
		}
		if i == 100 {
			p.Say("busy")
		}
	}
}

// Two processes write without a pause while snapshots are taken. In full size:
//
//	go test -run TestLargeDatabaseUnderWriters -db-mb 300 -snapshots 50 -v .
func TestLargeDatabaseUnderWriters(t *testing.T) {
	t.Parallel()
	eachCopy(t, func(t *testing.T, online bool) {
		s := backuptest.NewBareStore(t)
		s.OnlineBackup = online
		db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=synchronous(off)")
		_, err := db.Exec(fmt.Sprintf(`CREATE TABLE ballast (pad BLOB);
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)
			INSERT INTO ballast SELECT randomblob(10000) FROM n;
			PRAGMA wal_checkpoint(TRUNCATE)`, *dbMB*100))
		require.NoError(t, err)
		require.NoError(t, db.Close())

		writers := []*backuptest.Child{backuptest.Start(t, "write", s.DatabasePath), backuptest.Start(t, "write", s.DatabasePath)}
		for _, writer := range writers {
			require.Equal(t, "busy", writer.Hear())
		}
		transfers := 0
		for range *snapshots {
			meta := s.Create()
			require.Greater(t, meta.DBSizeBytes, int64(*dbMB*1_000_000))
			n := backuptest.CountTransfers(t, meta.DBSnapshotPath)
			require.Greater(t, n, transfers, "the writers did nothing")
			transfers = n
			s.RemoveAll(meta.BackupRoot)
		}
		t.Logf("%d snapshots of %d MB; %d transfers in the last", *snapshots, *dbMB, transfers)
		for _, writer := range writers {
			require.Nil(t, writer.Cmd.ProcessState, "a writer ended: %s", writer.Stderr)
			writer.Kill()
			require.Empty(t, writer.Stderr.String())
		}
	})
}

// A missing database is an error, and is not created.
func TestDatabaseMissing(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*backuptest.Store){
		"file":      func(s *backuptest.Store) { s.RemoveAll(s.DatabasePath) },
		"directory": func(s *backuptest.Store) { s.DatabasePath = filepath.Join(s.Dir, "no", "atocore.db") },
		"dangling link": func(s *backuptest.Store) {
			s.RemoveAll(s.DatabasePath)
			require.NoError(s.T, os.Symlink("nowhere", s.DatabasePath))
		},
		"file as parent": func(s *backuptest.Store) { s.DatabasePath = filepath.Join(s.RegistryPath, "atocore.db") },
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			change(s)
			before := backuptest.ReadTree(t, s.Dir)
			err := s.CreateFails()
			if name != "file as parent" { // that is ENOTDIR
				require.ErrorIs(t, err, fs.ErrNotExist)
			}
			require.ErrorContains(t, err, s.DatabasePath)
			require.Equal(t, before, backuptest.ReadTree(t, s.Dir), "something was created")
		})
	}
}

// A file that is not a database is rejected.
func TestDatabaseInvalid(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	whole, err := os.ReadFile(s.DatabasePath)
	require.NoError(t, err)
	garbage := bytes.Repeat([]byte("no database "), 1000)
	for _, tt := range []struct {
		name    string
		content []byte
		want    error
	}{
		{"0 bytes", nil, backup.ErrSourceInvalid},
		{"1 byte", whole[:1], backup.ErrSourceInvalid},
		{"text", garbage, backup.ErrSourceInvalid},
		{"less than a header", whole[:99], backup.ErrSourceInvalid},
		{"only a header", whole[:100], backup.ErrSourceInvalid},
		{"half of its pages", whole[:len(whole)/2/4096*4096], backup.ErrSourceInvalid},
		{"garbage after the header", append(whole[:100:100], garbage...), backup.ErrSourceInvalid},
		{"a directory", nil, nil},
	} {
		for _, online := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,online=%t", tt.name, online), func(t *testing.T) {
				s := backuptest.NewStore(t)
				s.OnlineBackup = online
				s.RemoveAll(s.DatabasePath)
				if tt.want == nil {
					require.NoError(t, os.Mkdir(s.DatabasePath, 0o755))
				} else {
					require.NoError(t, os.WriteFile(s.DatabasePath, tt.content, 0o600))
				}
				err := s.CreateFails()
				if tt.want != nil {
					require.ErrorIs(t, err, tt.want)
				}
				require.ErrorContains(t, err, s.DatabasePath)
			})
		}
	}
}

// The descriptor that is kept for a database is closed after the database was
// removed, when another one is copied.
func TestDescriptorsOfRemovedDatabases(t *testing.T) {
	for range 5 {
		s := backuptest.NewStore(t)
		s.IncludeChroma = false
		s.Create()
		s.RemoveAll(s.DatabasePath)
	}
	gone := 0
	for _, file := range backuptest.OpenFiles(t) {
		if strings.HasSuffix(file, "atocore.db (deleted)") {
			gone++
		}
	}
	require.LessOrEqual(t, gone, 1)
}
