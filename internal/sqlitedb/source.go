package sqlitedb

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// The pauses between two attempts at a database that is busy.
const (
	firstPause = time.Millisecond
	mostPause  = 50 * time.Millisecond
)

// A Source is a connection that holds a read transaction on a live database,
// so that it sees one moment in time, regardless of other writers.
type Source struct {
	*conn
	path     string // with links resolved, as SQLite names the WAL
	id       fsat.ID
	mode     string // journal mode: "wal", "delete", ...
	pageSize int64
	pages    int64
}

// Open opens the live database at path and begins a read transaction. Until
// the Source is closed, writers of a WAL database continue, and its WAL grows;
// writers of a rollback-journal database wait (sqlite.org/lockingv3.html,
// sqlite.org/wal.html). A database that is busy is waited for until ctx is
// done. A file that is not a database is errdefs.ErrSourceInvalid, and one that
// is replaced meanwhile is errdefs.ErrSourceChanged.
//
// The mode is rw because a read-only connection cannot recover the WAL that a
// crashed writer left (sqlite.org/wal.html, "Read-Only Databases"). Nothing is
// written otherwise: query_only holds. When this is the last connection to a
// WAL database, closing it checkpoints the WAL, as SQLite always does.
func Open(ctx context.Context, path string) (_ *Source, err error) {
	path = fsat.RealPath(path)
	before, err := fsat.Stat(path)
	if err != nil {
		return nil, err
	}
	if before.Size == 0 {
		// SQLite deletes the WAL of an empty database (pagerOpenWalIfPresent in
		// pager.c). If somebody has cut the file short, that may be all there is.
		return nil, fmt.Errorf("%w: the database is empty", errdefs.ErrSourceInvalid)
	}
	c, err := openConn(path, "rw", "_pragma=query_only(1)", "_pragma=busy_timeout(0)")
	if err != nil {
		return nil, sourceError(err)
	}
	src := &Source{conn: c, path: path, id: before.ID()}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := src.begin(ctx); err != nil {
		return nil, sourceError(err)
	}
	if err := src.read(ctx); err != nil {
		return nil, sourceError(err)
	}
	// SQLite takes a journal that it cannot stat for a missing one, and would
	// read what a crashed writer left half written.
	if _, err := fsat.Stat(path + "-journal"); err != nil && !fsat.IsMissing(err) {
		return nil, err
	}
	if err := src.checkInPlace(); err != nil {
		return nil, err
	}
	return src, nil
}

// checkInPlace returns ErrSourceChanged unless the path, by which SQLite and
// this package find the WAL, still leads to the file that was there at first.
func (src *Source) checkInPlace() error {
	now, err := fsat.Stat(src.path)
	if err != nil {
		return err
	}
	if src.id.Ino != 0 && src.id != now.ID() {
		return fmt.Errorf("%w: another file took the database's place", errdefs.ErrSourceChanged)
	}
	return nil
}

// begin begins a transaction, which holds no lock before it reads. It ignores
// whether ctx is done, so that there is no transaction if it fails.
func (src *Source) begin(ctx context.Context) error {
	return src.exec(context.WithoutCancel(ctx), "BEGIN")
}

// read reads once within the transaction, which begins the read transaction
// and takes its lock, and then learns what kind of database it is.
func (src *Source) read(ctx context.Context) error {
	err := poll.Until(ctx, firstPause, mostPause, func() (bool, error) {
		err := src.exec(ctx, "SELECT 1 FROM sqlite_schema LIMIT 1")
		if isBusy(err) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return err
	}
	if src.mode, err = src.text(ctx, "PRAGMA journal_mode"); err != nil {
		return err
	}
	for _, q := range []struct {
		statement string
		into      *int64
	}{{"PRAGMA page_size", &src.pageSize}, {"PRAGMA page_count", &src.pages}} {
		text, err := src.text(ctx, q.statement)
		if err != nil {
			return err
		}
		if *q.into, err = strconv.ParseInt(text, 10, 64); err != nil {
			return err
		}
	}
	if src.pages == 0 {
		return fmt.Errorf("%w: the database is empty", errdefs.ErrSourceInvalid)
	}
	return nil
}

// Sum returns the SHA-256 that a sealed copy of the database has. The Source
// must be one of Lock, so that the WAL is empty and nobody writes. Where the
// file cannot be read without dropping this process's locks on it, Sum returns
// an error.
func (src *Source) Sum(ctx context.Context) (filehash.Sum, error) {
	live, err := keepDescriptor(src.path, src.id)
	if err != nil {
		return filehash.Sum{}, err
	}
	info, err := live.Stat()
	if err != nil {
		return filehash.Sum{}, err
	}
	return filehash.ReadPatchedAt(ctx, live, info.Size, markRollbackForm)
}

// Close ends the read transaction and closes the connection, which drops the
// locks that Lock took.
func (src *Source) Close() error { return src.conn.Close() }
