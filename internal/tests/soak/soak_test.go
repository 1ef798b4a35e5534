// Package soak takes many snapshots of a database that several processes, the
// snapshotting one among them, write to as unkindly as they can, and checks
// each copy. It has no code but its tests:
//
//	go test ./internal/tests/soak -snapshots 2000
package soak

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	_ "modernc.org/sqlite"
)

var (
	snapshots = flag.Int("snapshots", 25, "how many snapshots to take in each case")
	rows      = flag.Int("rows", 2000, "rows of 1 KB that one large transaction rewrites")
	writers   = flag.Int("writers", 3, "writer processes")
)

const (
	accounts  = 100
	writerEnv = "SOAK_WRITER"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		seed, _ := strconv.ParseUint(os.Getenv(writerEnv+"_SEED"), 10, 64)
		if err := write(context.Background(), open(path), rand.New(rand.NewPCG(seed, 1))); err != nil {
			fmt.Fprintln(os.Stderr, "writer:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	os.Exit(m.Run())
}

func open(path string, params ...string) *sql.DB {
	u := url.URL{Scheme: "file", Path: path}
	params = append(params, "_pragma=busy_timeout(60000)", "_pragma=synchronous(off)")
	db, err := sql.Open("sqlite", u.String()+"?"+strings.Join(params, "&"))
	if err != nil {
		panic(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

// write never ends by itself: bursts of small transactions, large ones, and
// every kind of checkpoint. Within each transaction the balances add up to 0
// and all generations are equal.
func write(ctx context.Context, db *sql.DB, random *rand.Rand) error {
	defer db.Close()
	for ctx.Err() == nil {
		var err error
		switch n := random.IntN(10); {
		case n < 5:
			for range 1 + random.IntN(30) {
				if err = transfer(ctx, db, random); err != nil {
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

func transfer(ctx context.Context, db *sql.DB, random *rand.Rand) error {
	from, to, amount := random.IntN(accounts), random.IntN(accounts), random.IntN(1000)
	_, err := db.ExecContext(ctx, fmt.Sprintf(`BEGIN IMMEDIATE;
		UPDATE account SET balance = balance - %d WHERE id = %d;
		UPDATE account SET balance = balance + %d WHERE id = %d;
		COMMIT;`, amount, from, amount, to))
	return err
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
	db := open(path, "_pragma=journal_mode("+mode+")")
	_, err := db.Exec(fmt.Sprintf(`CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
		CREATE TABLE bulk (id INTEGER PRIMARY KEY, gen INTEGER NOT NULL, pad BLOB NOT NULL);
		CREATE INDEX bulk_gen ON bulk (gen);
		CREATE TABLE extra (pad BLOB);
		WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO account SELECT i, 0 FROM n;
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO bulk SELECT i, 0, randomblob(1000) FROM n;`,
		accounts-1, *rows))
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(context.Background())
	inProcess := make(chan error, 1)
	go func() { inProcess <- write(ctx, db, rand.New(rand.NewPCG(0, 2))) }()
	var processes []*exec.Cmd
	for i := range *writers {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerEnv+"="+path, fmt.Sprintf("%s_SEED=%d", writerEnv, i+1))
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		processes = append(processes, cmd)
	}
	defer func() {
		cancel()
		require.NoError(t, <-inProcess, "the writer in this process")
		for _, cmd := range processes {
			require.NoError(t, cmd.Process.Kill())
			err := cmd.Wait()
			require.ErrorContains(t, err, "killed", "a writer process")
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

// requireSound checks one copy and returns its generation.
func requireSound(t *testing.T, path string) (generation int) {
	t.Helper()
	db := open(path, "mode=ro", "immutable=1")
	defer db.Close()
	var text string
	require.NoError(t, db.QueryRow("PRAGMA integrity_check").Scan(&text))
	require.Equal(t, "ok", text)
	var sum, kinds int
	require.NoError(t, db.QueryRow("SELECT sum(balance) FROM account").Scan(&sum))
	require.Zero(t, sum, "the balances do not add up")
	require.NoError(t, db.QueryRow("SELECT count(DISTINCT gen), max(gen) FROM bulk").Scan(&kinds, &generation))
	require.Equal(t, 1, kinds, "half of a transaction")
	return generation
}

// TestRestartedWAL begins the WAL anew while it is being copied, after all of it
// had been checkpointed. The beginning of the old WAL before the new one's
// frames would put old versions of pages over newer ones.
func TestRestartedWAL(t *testing.T) {
	const (
		customers = 6000    // each has a page of its own
		copyStep  = 8 << 20 // of the copy; only between two of them can we act
	)
	dir := t.TempDir()
	path := filepath.Join(dir, "live.db")
	db := open(path, "_pragma=journal_mode(wal)", "_pragma=wal_autocheckpoint(0)")
	defer db.Close()
	_, err := db.Exec(fmt.Sprintf(`CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, pad BLOB);
		WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO account SELECT i, 0, zeroblob(3000) FROM n;
		PRAGMA wal_checkpoint(TRUNCATE)`, customers))
	require.NoError(t, err)

	// The bank, account 0, pays one customer after the other, so that each
	// commit has a new version of its page and the first one of a customer's.
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
	inTheMidst := 0
	for range max(3, *snapshots/5) {
		pay(3 * copyStep)
		_, err := db.Exec("PRAGMA wal_checkpoint(PASSIVE)")
		require.NoError(t, err)
		before := walHeader(t, path)
		info, err := os.Stat(path)
		require.NoError(t, err)

		opts := backup.Options{DatabasePath: path, BackupDir: filepath.Join(dir, "backups")}
		act, steps := 1+random.IntN(2), 0
		opts.OnProgress = func(p backup.Progress) {
			if p.Phase != backup.PhaseDatabase || p.Bytes <= info.Size() || p.Bytes == p.TotalBytes {
				return
			}
			if steps++; steps == act {
				pay(int64(act)*copyStep + random.Int64N(2*copyStep)) // past where the copy is
				require.NotEqual(t, before, walHeader(t, path), "the WAL did not begin anew")
				inTheMidst++
			}
		}
		paidBefore := paid
		meta, err := backup.CreateRuntimeBackup(context.Background(), opts)
		require.NoError(t, err)

		copied := open(meta.DBSnapshotPath, "mode=ro", "immutable=1")
		var text string
		require.NoError(t, copied.QueryRow("PRAGMA integrity_check").Scan(&text))
		require.Equal(t, "ok", text)
		var sum, bank int
		require.NoError(t, copied.QueryRow("SELECT sum(balance), max(-balance) FROM account").Scan(&sum, &bank))
		require.Zero(t, sum, "the balances do not add up")
		require.GreaterOrEqual(t, bank, paidBefore, "the copy is older than the call")
		require.NoError(t, copied.Close())
		require.NoError(t, os.RemoveAll(meta.BackupRoot))
	}
	if inTheMidst == 0 {
		t.Skip("here a WAL is copied at one blow, or not at all")
	}
	t.Logf("the WAL began anew in the midst of %d copies", inTheMidst)
}

// walHeader is the part of the WAL that changes when it begins anew.
func walHeader(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path + "-wal") // it carries no locks
	require.NoError(t, err)
	defer f.Close()
	header := make([]byte, 32)
	_, err = io.ReadFull(f, header)
	require.NoError(t, err)
	return string(header)
}
