package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

const (
	accounts      = 100
	openingEvents = 5000
)

// A service plays the role of the program whose store is backed up.
type service struct {
	// options locate the store and its backups.
	options backup.Options

	// ingestion must be held to write to the Chroma directory. The ingestion
	// guard is made from it.
	ingestion sync.Mutex

	db      *sql.DB
	workers *errgroup.Group
	cancel  context.CancelFunc
}

// startService creates a machine store in dir and starts to write to it. The
// returned context ends when the service fails or is stopped.
func startService(ctx context.Context, dir string) (_ *service, _ context.Context, err error) {
	s := &service{options: backup.Options{
		DatabasePath:  filepath.Join(dir, "data", "atocore.db"),
		RegistryPath:  filepath.Join(dir, "config", "project-registry.json"),
		ChromaPath:    filepath.Join(dir, "data", "chroma"),
		BackupDir:     filepath.Join(dir, "backups"),
		IncludeChroma: true,
	}}
	if err := s.createStore(ctx); err != nil {
		return nil, nil, err
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.workers, ctx = errgroup.WithContext(ctx)
	writing, ingesting := make(chan struct{}), make(chan struct{})
	s.work(ctx, writing, 0, s.transfer)
	s.work(ctx, ingesting, 5*time.Millisecond, s.ingest)
	for _, started := range []chan struct{}{writing, ingesting} {
		select {
		case <-started:
		case <-ctx.Done():
			return nil, nil, cmp.Or(s.stop(), ctx.Err())
		}
	}
	return s, ctx, nil
}

// work calls do repeatedly, with a pause in between, until ctx is done. It closes
// started after the first ten calls.
func (s *service) work(ctx context.Context, started chan<- struct{}, pause time.Duration, do func(ctx context.Context, n int) error) {
	s.workers.Go(func() error {
		for n := 1; ; n++ {
			// A call that has begun is not cancelled: database/sql would roll back
			// the transaction in a separate goroutine, which could still have the
			// database open after the service has stopped.
			if err := do(context.WithoutCancel(ctx), n); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
			if n == 10 {
				close(started)
			}
			time.Sleep(pause)
		}
	})
}

// stop stops the workers, waits for them, and returns their error.
func (s *service) stop() error {
	s.cancel()
	return errors.Join(s.workers.Wait(), s.db.Close())
}

func (s *service) createStore(ctx context.Context) (err error) {
	for _, file := range []string{s.options.DatabasePath, s.options.RegistryPath} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(s.options.RegistryPath, []byte(`{"projects": ["apollo", "gemini"]}`+"\n"), 0o644); err != nil {
		return err
	}
	if err := backuptest.WriteChroma(s.options.ChromaPath); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(s.options.ChromaPath, ingestedDir), 0o755); err != nil {
		return err
	}
	s.db, err = openDatabase(s.options.DatabasePath,
		"_pragma=journal_mode(wal)", "_pragma=synchronous(normal)", "_txlock=immediate")
	if err != nil {
		return err
	}
	if err := s.createTables(ctx); err != nil {
		return errors.Join(err, s.db.Close())
	}
	return nil
}

// openDatabase opens path with at most one connection, so that the goroutines of
// this program never find the database busy.
func openDatabase(path string, params ...string) (*sql.DB, error) {
	slashed := filepath.ToSlash(path)
	if !strings.HasPrefix(slashed, "/") {
		slashed = "/" + slashed // C:/dir/file
	}
	uri := url.URL{Scheme: "file", Path: slashed, RawQuery: strings.Join(params, "&")}
	db, err := sql.Open("sqlite", uri.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

func (s *service) createTables(ctx context.Context) error {
	for _, statement := range []string{
		"CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)",
		"CREATE TABLE transfer (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL, note TEXT NOT NULL)",
		"CREATE TABLE ingestion (batch INTEGER PRIMARY KEY)",
		fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO account SELECT i, 0 FROM n", accounts-1),
		fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO transfer SELECT i, 0, 'opening balance ' || hex(randomblob(150)) FROM n", openingEvents),
	} {
		if _, err := s.db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// transfer moves money from one account to another and records the transfer. The
// sum of all balances is 0 after every transaction, though not during one.
func (s *service) transfer(ctx context.Context, n int) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	amount := 1 + rand.IntN(1000)
	for _, q := range []struct{ account, change int }{
		{n % accounts, -amount},
		{(n + 1) % accounts, amount},
	} {
		if _, err := tx.ExecContext(ctx, "UPDATE account SET balance = balance + ? WHERE id = ?", q.change, q.account); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO transfer (amount, note) VALUES (?, ?)", amount, fmt.Sprintf("invoice %d", n)); err != nil {
		return err
	}
	return tx.Commit()
}

// These files play the role of the files that a real ingestion changes in Chroma.
// Both of them and the database contain the number of the last batch, so a copy
// taken during an ingestion would be noticed.
const (
	ingestedDir   = "ingested"
	documentsFile = "documents"
	vectorsFile   = "vectors"
)

// ingest stores batch n in all three places, under the guard.
func (s *service) ingest(ctx context.Context, n int) error {
	s.ingestion.Lock()
	defer s.ingestion.Unlock()
	for _, name := range []string{documentsFile, vectorsFile} {
		file := filepath.Join(s.options.ChromaPath, ingestedDir, name)
		if err := os.WriteFile(file, []byte(strconv.Itoa(n)), 0o644); err != nil {
			return err
		}
	}
	_, err := s.db.ExecContext(ctx, "INSERT INTO ingestion VALUES (?)", n)
	return err
}

// A state describes the content of a database at one moment.
type state struct {
	transfers, sum, batch int64
}

// stateOf opens a database that is not in use and reads its state.
func stateOf(ctx context.Context, path string) (st state, err error) {
	db, err := openDatabase(path)
	if err != nil {
		return st, err
	}
	defer db.Close()
	return readState(ctx, db)
}

func readState(ctx context.Context, db *sql.DB) (st state, err error) {
	err = db.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM transfer),
		(SELECT sum(balance) FROM account), (SELECT coalesce(max(batch), 0) FROM ingestion)`).Scan(&st.transfers, &st.sum, &st.batch)
	return st, err
}
