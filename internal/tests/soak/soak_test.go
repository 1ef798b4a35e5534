package soak

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var (
	snapshots = flag.Int("snapshots", 25, "how many snapshots to take in each case")
	rows      = flag.Int("rows", 2000, "rows of 1 KB that one large transaction rewrites")
	writers   = flag.Int("writers", 3, "writer processes")
)

func TestMain(m *testing.M) { backuptest.Main(m, backuptest.Roles{"write": beWriter}) }

// beWriter calls write for the database args[0] with the seed args[1].
func beWriter(_ *backuptest.Parent, args []string) error {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	db, err := backuptest.Open(args[0], fast...)
	if err != nil {
		return err
	}
	return write(context.Background(), db, rand.New(rand.NewPCG(seed, 1)))
}

// fast are the parameters of a writer. Immediate transactions do not fail when
// another one has committed since they began.
var fast = []string{"_txlock=immediate", "_pragma=synchronous(off)", "_pragma=busy_timeout(60000)"}

// write writes until ctx ends: bursts of small transactions, large ones, and
// every kind of checkpoint. After each transaction the balances add up to 0 and
// all generations are equal.
func write(ctx context.Context, db *sql.DB, random *rand.Rand) error {
	defer db.Close()
	for ctx.Err() == nil {
		var err error
		switch n := random.IntN(10); {
		case n < 5:
			for range 1 + random.IntN(30) {
				from, to := random.IntN(backuptest.Accounts), random.IntN(backuptest.Accounts)
				if err = backuptest.Move(ctx, db, from, to, random.IntN(1000)); err != nil {
					break
				}
			}
		case n < 8:
			_, err = db.ExecContext(ctx, "UPDATE bulk SET gen = gen + 1, pad = randomblob(1000)")
		default:
			// Grows and shrinks the file.
			_, err = db.ExecContext(ctx, `BEGIN IMMEDIATE;
				DELETE FROM extra;
				INSERT INTO extra SELECT randomblob(3000) FROM bulk LIMIT abs(random() % 300);
				COMMIT;`)
		}
		if err == nil {
			kinds := []string{"PASSIVE", "FULL", "RESTART", "TRUNCATE"}
			if n := random.IntN(len(kinds) + 1); n < len(kinds) {
				_, err = db.ExecContext(ctx, "PRAGMA wal_checkpoint("+kinds[n]+")")
			}
		}
		if err != nil && ctx.Err() == nil && !strings.Contains(err.Error(), "SQLITE_BUSY") {
			return err
		}
		if err != nil {
			_, _ = db.ExecContext(context.WithoutCancel(ctx), "ROLLBACK") // fails if nothing is open
		}
	}
	return nil
}

func TestSoak(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		for _, online := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,online=%t", mode, online), func(t *testing.T) {
				soak(t, mode, online)
			})
		}
	}
}

func soak(t *testing.T, mode string, online bool) {
	dir := t.TempDir()
	path := filepath.Join(dir, "live.db")
	db := backuptest.OpenDB(t, path, append(fast, "_pragma=journal_mode("+mode+")")...)
	backuptest.FillDatabase(t, db)
	_, err := db.Exec(fmt.Sprintf(`CREATE TABLE bulk (id INTEGER PRIMARY KEY, gen INTEGER NOT NULL, pad BLOB NOT NULL);
		CREATE INDEX bulk_gen ON bulk (gen);
		CREATE TABLE extra (pad BLOB);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO bulk SELECT i, 0, randomblob(1000) FROM n;`,
		*rows))
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(context.Background())
	inProcess := make(chan error, 1)
	go func() { inProcess <- write(ctx, db, rand.New(rand.NewPCG(0, 2))) }()
	var processes []*backuptest.Child
	for i := range *writers {
		processes = append(processes, backuptest.Start(t, "write", path, fmt.Sprint(i+1)))
	}
	defer func() {
		cancel()
		require.NoError(t, <-inProcess, "the writer in this process")
		for _, process := range processes {
			require.NoError(t, process.Cmd.Process.Kill())
			require.ErrorContains(t, process.Cmd.Wait(), "killed", "a writer process ended by itself: %s", process.Stderr)
		}
	}()

	opts := backup.Options{DatabasePath: path, BackupDir: filepath.Join(dir, "backups"), OnlineBackup: online}
	generations := map[int]bool{}
	for range *snapshots {
		meta, err := backup.CreateRuntimeBackup(context.Background(), opts)
		require.NoError(t, err)
		generations[requireSound(t, meta.DBSnapshotPath)] = true
		require.NoError(t, os.RemoveAll(meta.BackupRoot))
	}
	t.Logf("%d snapshots of %d generations", *snapshots, len(generations))
}

// requireSound checks a copy and returns its generation.
func requireSound(t *testing.T, path string) (generation int) {
	t.Helper()
	backuptest.RequireSound(t, path)
	db := backuptest.OpenDB(t, path, "mode=ro", "immutable=1")
	defer db.Close()
	var kinds int
	require.NoError(t, db.QueryRow("SELECT count(DISTINCT gen), max(gen) FROM bulk").Scan(&kinds, &generation))
	require.Equal(t, 1, kinds, "the copy has a part of a transaction")
	return generation
}

// TestRestartedWAL makes SQLite start the WAL over while it is being copied, after
// all of it was checkpointed. A copy with the beginning of the old WAL and the end
// of the new one would put old versions of pages over newer ones.
func TestRestartedWAL(t *testing.T) {
	const (
		customers = 6000    // each has a page of its own
		copyStep  = 8 << 20 // progress is reported between two steps of the copy
	)
	dir := t.TempDir()
	path := filepath.Join(dir, "live.db")
	db := backuptest.OpenDB(t, path, append(fast, "_pragma=journal_mode(wal)", "_pragma=wal_autocheckpoint(0)")...)
	_, err := db.Exec(fmt.Sprintf(`CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, pad BLOB);
		WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO account SELECT i, 0, zeroblob(3000) FROM n;
		PRAGMA wal_checkpoint(TRUNCATE)`, customers))
	require.NoError(t, err)

	// The bank, account 0, pays one customer after the other. So each commit
	// writes a new version of the bank's page and one of a customer's.
	paid := 0
	pay := func(bytes int64) {
		for range bytes / (2 * 4096) {
			paid++
			_, err := db.Exec(fmt.Sprintf(`BEGIN IMMEDIATE;
				UPDATE account SET balance = balance - 1 WHERE id = 0;
				UPDATE account SET balance = balance + 1 WHERE id = %d;
				COMMIT`, 1+paid%customers))
			require.NoError(t, err)
		}
	}
	random := rand.New(rand.NewPCG(1, 3))
	restarted := 0
	for range max(3, *snapshots/5) {
		pay(3 * copyStep)
		_, err := db.Exec("PRAGMA wal_checkpoint(PASSIVE)")
		require.NoError(t, err)
		before := walHeader(t, path)
		info, err := os.Stat(path)
		require.NoError(t, err)

		opts := backup.Options{DatabasePath: path, BackupDir: filepath.Join(dir, "backups"), Clock: backuptest.Noon}
		act, steps := 1+random.IntN(2), 0
		opts.OnProgress = func(p backup.Progress) {
			if p.Phase != backup.PhaseDatabase || p.Bytes <= info.Size() || p.Bytes == p.TotalBytes {
				return
			}
			if steps++; steps == act {
				pay(int64(act)*copyStep + random.Int64N(2*copyStep)) // past where the copy is
				require.NotEqual(t, before, walHeader(t, path), "the WAL did not start over")
				restarted++
			}
		}
		paidBefore := paid
		meta, err := backup.CreateRuntimeBackup(context.Background(), opts)
		require.NoError(t, err)

		copied := backuptest.OpenDB(t, meta.DBSnapshotPath, "mode=ro", "immutable=1")
		backuptest.RequireIntegrity(t, copied)
		var sum, bank int
		require.NoError(t, copied.QueryRow("SELECT sum(balance), max(-balance) FROM account").Scan(&sum, &bank))
		require.Zero(t, sum, "the balances do not add up")
		require.GreaterOrEqual(t, bank, paidBefore, "the copy is older than the call")
		require.NoError(t, copied.Close())
		require.NoError(t, os.RemoveAll(meta.BackupRoot))
	}
	if restarted == 0 {
		t.Skip("here a WAL is copied in one step, or not at all")
	}
	t.Logf("the WAL started over during %d copies", restarted)
}

// walHeader returns the part of the WAL that changes when it starts over.
func walHeader(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path + "-wal") // SQLite locks nothing in it, so closing it drops no locks
	require.NoError(t, err)
	defer f.Close()
	header := make([]byte, 32)
	_, err = io.ReadFull(f, header)
	require.NoError(t, err)
	return string(header)
}
