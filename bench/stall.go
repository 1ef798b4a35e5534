package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"modernc.org/sqlite"

	"github.com/atocore/backup"
)

const sqliteBusy = 5 // sqlite.org/rescode.html

// stall measures how long a writer of a large database waits for one commit while
// the database is captured, in both journal modes.
func (b *bench) stall(ctx context.Context) error {
	if b.tools.cp == "" {
		return errors.New("this part needs cp")
	}
	source, err := b.ensure(ctx, "database", gib/b.scale)
	if err != nil {
		return err
	}
	b.note(fmt.Sprintf("A writer in the host's process commits a small transaction every 2 ms to a database of %d MiB. The table shows its", gib/mib/b.scale),
		"longest commit before the capture, during it, and until the snapshot is published. Medians in milliseconds.")
	rows := [][]string{{"journal", "method", "× before", "before", "in capture", "in all", "capture took"}}
	ms := func(seconds float64) string { return figure(seconds * 1000) }
	for _, mode := range []string{"wal", "delete"} {
		// Use a copy, since the writer modifies it.
		db := filepath.Join(b.dir, "stall.db")
		if err := removeAll(db); err != nil {
			return err
		}
		if _, err := runProcess(ctx, []string{b.tools.cp, source, db}); err != nil {
			return err
		}
		if err := execute(ctx, db, "PRAGMA journal_mode="+mode); err != nil {
			return err
		}
		child := func(name string, capture func(dst string) []string) candidate {
			return b.tool(b.self, name, func(dst string) []string {
				argv := []string{"child", "stall", "-db", db, "-backups", filepath.Join(dst, "backups"),
					"-idle", (3 * time.Second / time.Duration(b.scale)).String()}
				return append(argv, capture(dst)...)
			})
		}
		candidates := []candidate{child(ours, func(string) []string { return nil })}
		if b.tools.python != "" {
			candidates = append(candidates, child(pythonBackupName, func(dst string) []string {
				return []string{"--", b.tools.python, "-c", `
import sqlite3, sys
source, target = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2])
source.backup(target)
`, db, filepath.Join(dst, "copy.db")}
			}))
		}
		results, err := b.compare(ctx, comparison{what: "stall, " + mode, candidates: candidates})
		if err != nil {
			return err
		}
		for _, r := range results {
			before, captured, took := r.median(stallIdle), r.median(stallCapture), r.median(captureTime)
			rows = append(rows, []string{mode, r.name, ratio(captured / before), ms(before), ms(captured),
				ms(r.median(stallWhole)), ms(took)})
			if r.name != ours {
				continue
			}
			if mode == "wal" {
				b.aim("longest commit during a capture, WAL", "of the longest before", captured/before, 2)
			} else {
				b.aim("longest commit during a capture, rollback journal", "of the capture's duration", captured/took, 1)
			}
		}
		if err := removeAll(db); err != nil {
			return err
		}
	}
	b.table(2, rows...)
	return nil
}

func stallIdle(s sample) float64    { return s.StallIdle }
func stallCapture(s sample) float64 { return s.StallCapture }
func stallWhole(s sample) float64   { return s.StallWhole }
func captureTime(s sample) float64  { return s.Capture }

// A commit records when a commit began and how long it took.
type commit struct {
	began time.Time
	took  time.Duration
}

// timeStall writes to the database, first undisturbed for the time idle, and then
// while the library, or program if it is given, captures it.
func timeStall(ctx context.Context, opts backup.Options, idle time.Duration, program []string) (s sample, err error) {
	db, err := openDatabase(opts.DatabasePath, "_pragma=busy_timeout(0)", "_pragma=synchronous(normal)", "_txlock=immediate")
	if err != nil {
		return s, err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS tick (id INTEGER PRIMARY KEY, note TEXT NOT NULL)"); err != nil {
		return s, err
	}
	stop := make(chan struct{})
	var writer sync.WaitGroup
	var commits []commit
	var writeErr error
	writer.Go(func() { commits, writeErr = write(ctx, db, stop) })

	idleFrom := time.Now()
	time.Sleep(idle)
	from := time.Now()
	captureFrom, captureTo := from, from
	if len(program) > 0 {
		_, err = runProcess(ctx, program)
		captureTo = time.Now()
	} else {
		opts.OnProgress = func(p backup.Progress) {
			switch {
			case p.Phase == backup.PhaseDatabase && captureFrom.Equal(from):
				captureFrom = time.Now()
			case p.Phase == backup.PhaseSeal:
				captureTo = time.Now()
			}
		}
		_, err = backup.CreateRuntimeBackup(ctx, opts)
	}
	to := time.Now()
	close(stop)
	writer.Wait()
	if err := errors.Join(err, writeErr); err != nil {
		return s, err
	}
	s.Seconds = to.Sub(from).Seconds()
	s.Capture = captureTo.Sub(captureFrom).Seconds()
	s.StallIdle = longest(commits, idleFrom, from)
	s.StallCapture = longest(commits, captureFrom, captureTo)
	s.StallWhole = longest(commits, from, to)
	return s, nil
}

// write commits small transactions until stop is closed.
func write(ctx context.Context, db *sql.DB, stop <-chan struct{}) (commits []commit, err error) {
	for {
		select {
		case <-stop:
			return commits, nil
		case <-ctx.Done():
			return commits, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
		began := time.Now()
		for {
			_, err := db.ExecContext(ctx, "INSERT INTO tick (note) VALUES (hex(randomblob(100)))")
			if err == nil {
				break
			}
			// SQLite's own busy handler sleeps for up to 100 ms at a time, which
			// would distort the measurement.
			if busy := (*sqlite.Error)(nil); !errors.As(err, &busy) || busy.Code()&0xff != sqliteBusy {
				return commits, fmt.Errorf("write: %w", err)
			}
			time.Sleep(time.Millisecond)
		}
		commits = append(commits, commit{began, time.Since(began)})
	}
}

// longest returns the duration, in seconds, of the longest commit that overlaps
// the interval between from and to.
func longest(commits []commit, from, to time.Time) float64 {
	var most time.Duration
	for _, c := range commits {
		if c.began.Before(to) && c.began.Add(c.took).After(from) {
			most = max(most, c.took)
		}
	}
	return most.Seconds()
}
