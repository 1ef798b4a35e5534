package sqlitedb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/fsat"
)

// SQLite's primary result codes that this package acts on
// (sqlite.org/rescode.html).
const (
	codeError   = 1
	codeBusy    = 5
	codeLocked  = 6
	codeIOErr   = 10
	codeCorrupt = 11
	codeFull    = 13
	codeFormat  = 24
	codeNotADB  = 26
)

// The extended result codes of SQLITE_IOERR that mean that a file cannot be
// read (sqlite.org/rescode.html). unixRead in os_unix.c makes EIO
// SQLITE_IOERR_CORRUPTFS.
const (
	codeIOErrRead      = codeIOErr | 1<<8
	codeIOErrShortRead = codeIOErr | 2<<8
	codeIOErrFstat     = codeIOErr | 7<<8
	codeIOErrData      = codeIOErr | 32<<8
	codeIOErrCorruptFS = codeIOErr | 33<<8
)

// Code returns the primary result code of an error of SQLite. It returns 0 for
// any other error and for nil.
func Code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// withSystemError makes an error of SQLite match syscall.ENOSPC if it is that of a
// full disk: SQLite does not pass on the error of the system. The drivers of hosts
// have errors of their own, but SQLite's words (sqlite3_errstr).
func withSystemError(err error) error {
	if err == nil || errors.Is(err, syscall.ENOSPC) {
		return err
	}
	if Code(err) == codeFull || strings.Contains(err.Error(), "database or disk is full") {
		return fmt.Errorf("%w: %w", syscall.ENOSPC, err)
	}
	return err
}

// isUnreadable reports whether err means that the file system cannot read a
// file of the database. SQLite uses SQLITE_IOERR for writes, syncs and locks,
// too, and those may fail for a quota or a server, with a database that is
// sound. When the first page cannot be read, there is no extended code.
func isUnreadable(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() {
	case codeIOErr, codeIOErrRead, codeIOErrShortRead, codeIOErrFstat, codeIOErrData, codeIOErrCorruptFS:
		return true
	}
	return false
}

// IsBroken reports whether err is an error of SQLite by which the database
// itself is damaged, is of an unknown format, or cannot be read. It returns
// false for all that can happen to a sound database: it is locked, a call was
// interrupted, memory or disk space is short, a file cannot be written to.
func IsBroken(err error) bool {
	switch Code(err) {
	case codeError, codeCorrupt, codeFormat, codeNotADB: // codeError: "unsupported file format"
		return true
	}
	return isUnreadable(err)
}

// codeReadOnlyRollback is SQLITE_READONLY_ROLLBACK (sqlite.org/rescode.html).
const codeReadOnlyRollback = 8 | 3<<8

// isHotJournal reports whether err means that a journal has to be played back,
// which a read-only connection cannot do.
func isHotJournal(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code() == codeReadOnlyRollback
}

// isBusy reports whether err means that another connection holds a lock.
func isBusy(err error) bool {
	code := Code(err)
	return code == codeBusy || code == codeLocked
}

// URI returns the database at path as a URI with the query parameters mode and
// params, which are taken as they are. In the path, "?", "%" and "#" are
// escaped: in a plain name the driver cuts at "?" (sqlite.org/uri.html).
func URI(path, mode string, params ...string) string {
	slashed := filepath.ToSlash(path)
	if !strings.HasPrefix(slashed, "/") {
		slashed = "/" + slashed // C:/dir/file
	}
	query := strings.Join(append([]string{"mode=" + mode}, params...), "&")
	u := url.URL{Scheme: "file", Path: slashed, RawQuery: query}
	return u.String()
}

// A conn is one connection, without database/sql's pool and its goroutine.
type conn struct{ driver driver.Conn }

// ownDriver is not the registered driver, so that functions, collations and
// connection hooks that the host registered do not run on a snapshot.
var ownDriver sqlite.Driver

// openConn opens the database at path. mode is "rw" or "ro", never "rwc":
// nothing is created here. SQLite reads nothing before the first statement.
func openConn(path, mode string, params ...string) (*conn, error) {
	c, err := ownDriver.Open(URI(path, mode, params...))
	if err != nil {
		return nil, err
	}
	return &conn{c}, nil
}

// pathFor returns the path of the regular file name in dir. SQLite needs one,
// since it knows no directory descriptors. pathFor fails unless the path leads
// to that file, so that SQLite writes to no other one. A process that may write
// in the directories above could replace the file after that, but would have
// to hit the moment.
func pathFor(dir *fsat.Dir, name string) (string, error) {
	path := filepath.Join(dir.Path(), name)
	inDir, err := dir.Lstat(name)
	if err != nil {
		return "", err
	}
	byPath, err := fsat.Stat(path)
	if err != nil {
		return "", err
	}
	if !inDir.Mode.IsRegular() || inDir.ID() != byPath.ID() {
		return "", &fs.PathError{Op: "open", Path: path, Err: errors.New("replaced by another file")}
	}
	return path, nil
}

// query runs one statement and calls each, which may be nil, for every row. The
// values of a row are valid during the call.
func (c *conn) query(ctx context.Context, statement string, each func(row []driver.Value) error) error {
	rows, err := c.driver.(driver.QueryerContext).QueryContext(ctx, statement, nil)
	if err != nil {
		return interrupted(ctx, err)
	}
	defer rows.Close()
	row := make([]driver.Value, len(rows.Columns()))
	for {
		if err := rows.Next(row); err == io.EOF {
			return nil
		} else if err != nil {
			return interrupted(ctx, err)
		}
		if each != nil {
			if err := each(row); err != nil {
				return err
			}
		}
	}
}

func (c *conn) exec(ctx context.Context, statement string) error {
	return c.query(ctx, statement, nil)
}

// text returns the first column of a statement's first row.
func (c *conn) text(ctx context.Context, statement string) (text string, err error) {
	found := false
	err = c.query(ctx, statement, func(row []driver.Value) error {
		if !found {
			found, text = true, fmt.Sprint(row[0])
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%s returned no row", statement)
	}
	return text, err
}

func (c *conn) Close() error { return c.driver.Close() }

// interrupt interrupts the connection, until its next statement begins. If it
// is closed before that, it does not move the content of its WAL to the database
// file: walCheckpoint in wal.c looks for an interrupt before it writes a page.
// The driver has no way to SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE.
func (c *conn) interrupt() error {
	// Valid is what the driver calls a connection that is not interrupted.
	state, ok := c.driver.(driver.Validator)
	for i := range 100 {
		if !ok {
			break
		}
		// The driver interrupts a statement that is running when its context ends.
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			for range 10 * i * i {
				runtime.Gosched()
			}
			cancel()
		}()
		_ = c.exec(ctx, "WITH RECURSIVE endless(i) AS (VALUES (0) UNION ALL SELECT 0 FROM endless) SELECT i FROM endless WHERE i > 0")
		cancel()
		if !state.IsValid() {
			return nil
		}
	}
	return errors.New("the connection could not be interrupted")
}

// interrupted returns ctx's error if ctx is done, and err otherwise. A
// statement that ctx ended fails with an error of SQLite's.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
