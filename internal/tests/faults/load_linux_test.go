package faults

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var (
	load     = flag.Duration("load", time.Second, "how long to take snapshots under load, in each journal mode")
	loadRows = flag.Int("load-rows", 2000, "rows of 1 KB that one large transaction rewrites")
)

func init() { roles["write"] = beWriter }

// A tally counts what a writer did.
type tally struct {
	Commits int
	Longest time.Duration // from the beginning of a transaction to its commit
}

// writeUntil writes small and large transactions until stop returns true. After
// each, the balances add up to 0 and all generations are the same.
func writeUntil(db *sql.DB, random *rand.Rand, stop func() bool) (done tally, err error) {
	for !stop() {
		began := now()
		if random.IntN(20) > 0 {
			err = backuptest.Move(context.Background(), db, random.IntN(backuptest.Accounts), random.IntN(backuptest.Accounts), random.IntN(1000))
		} else {
			_, err = db.Exec("UPDATE generation SET gen = gen + 1, pad = randomblob(1000)")
		}
		if err != nil {
			return done, err
		}
		done.Commits++
		done.Longest = max(done.Longest, now()-began)
		time.Sleep(time.Millisecond) // SQLite's locks are not fair: a writer that never pauses keeps the others out
	}
	return done, nil
}

func (c tally) String() string {
	return fmt.Sprintf("%d commits, the longest took %v", c.Commits, c.Longest)
}

// writing are the parameters of the databases that are written to. Immediate
// transactions do not fail when another one has committed since they began.
var writing = []string{"_txlock=immediate", "_pragma=synchronous(normal)"}

// beWriter writes to the database args[0], with the seed args[1], until it is told
// to stop, and says its tally.
func beWriter(p *backuptest.Parent, args []string) error {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	db, err := backuptest.Open(args[0], writing...)
	if err != nil {
		return err
	}
	done, err := writeUntil(db, rand.New(rand.NewPCG(seed, 0)), p.Heard)
	if err != nil {
		return err
	}
	text, err := json.Marshal(done)
	if err != nil {
		return err
	}
	p.Say(string(text))
	return db.Close()
}

// TestLoad takes snapshots back to back while two other processes and the host
// itself write, and then lets them write alone, for comparison.
func TestLoad(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			s := newStore(t, t.TempDir(), mode)
			db := backuptest.OpenDB(t, s.DatabasePath, writing...)
			_, err := db.Exec(fmt.Sprintf(`CREATE TABLE generation (gen INTEGER NOT NULL, pad BLOB NOT NULL);
				WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d)
				INSERT INTO generation SELECT 0, randomblob(1000) FROM n`, *loadRows))
			require.NoError(t, err)
			s.underLoad(t, db, "alone", *load/4, nil)
			s.underLoad(t, db, "with snapshots", *load, s.createAndCheck)
			backuptest.RequireBalanced(t, db)
			require.Empty(t, s.Staging())
		})
	}
}

// underLoad lets two processes and this one write for some time, and calls work
// over and over meanwhile.
func (s *store) underLoad(t *testing.T, db *sql.DB, name string, d time.Duration, work func(context.Context, *testing.T)) {
	t.Helper()
	var writers []*backuptest.Child
	for i := range 2 {
		writers = append(writers, backuptest.Start(t, "write", s.DatabasePath, fmt.Sprint(i)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var own tally
	var ownErr error
	ended := make(chan struct{})
	go func() {
		own, ownErr = writeUntil(db, rand.New(rand.NewPCG(*seed, 2)), func() bool { return ctx.Err() != nil })
		close(ended)
	}()
	s.wal = 0
	times := 0
	var longest time.Duration
	for ctx.Err() == nil {
		s.lookAtWAL()
		if work == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		began := now()
		work(ctx, t)
		longest = max(longest, now()-began)
		times++
	}
	<-ended
	require.NoError(t, ownErr)
	t.Logf("%s, the host's writer: %v", name, own)
	for _, writer := range writers {
		var done tally
		require.NoError(t, json.Unmarshal([]byte(writer.Ask("stop")), &done))
		writer.Wait()
		t.Logf("%s, a process that writes: %v", name, done)
	}
	info, err := os.Stat(s.DatabasePath)
	require.NoError(t, err)
	t.Logf("%s: database of %d bytes, WAL of up to %d bytes", name, info.Size(), s.wal)
	if work != nil {
		t.Logf("%d snapshots of %d generations, the longest took %v with its checks", times, len(s.generations), longest)
	}
}

// lookAtWAL records the largest size of the WAL.
func (s *store) lookAtWAL() {
	if info, err := os.Stat(s.DatabasePath + "-wal"); err == nil {
		s.wal = max(s.wal, info.Size())
	}
}

// createAndCheck takes a snapshot, checks and removes it.
func (s *store) createAndCheck(ctx context.Context, t *testing.T) {
	t.Helper()
	opts := s.Options
	opts.Clock = backuptest.Noon // it stands still, so that no report is dropped
	opts.OnProgress = func(backup.Progress) { s.lookAtWAL() }
	meta, err := backup.CreateRuntimeBackup(ctx, opts)
	if errors.Is(err, context.DeadlineExceeded) {
		return
	}
	require.NoError(t, err)
	_, err = backup.ValidateBackup(context.Background(), opts, meta.Stamp)
	require.NoError(t, err)
	copied := backuptest.OpenDB(t, meta.DBSnapshotPath, "mode=ro", "immutable=1")
	backuptest.RequireBalanced(t, copied)
	var kinds, generation int
	require.NoError(t, copied.QueryRow("SELECT count(DISTINCT gen), max(gen) FROM generation").Scan(&kinds, &generation))
	require.Equal(t, 1, kinds, "the copy has a part of a transaction")
	if s.generations == nil {
		s.generations = map[int]bool{}
	}
	s.generations[generation] = true
	require.NoError(t, copied.Close())
	require.NoError(t, os.RemoveAll(meta.BackupRoot))
}
