package backup

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"
	"strings"

	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/fsat"
)

// SQLite's primary result codes that this package acts on
// (sqlite.org/rescode.html).
const (
	sqliteError   = 1
	sqliteBusy    = 5
	sqliteLocked  = 6
	sqliteCorrupt = 11
	sqliteFormat  = 24
	sqliteNotADB  = 26
)

// sqliteConn is one connection, without database/sql's pool and its
// goroutine. It is opened by a driver value of our own, so that functions,
// collations and connection hooks that a host registered do not run on a
// snapshot.
type sqliteConn struct{ driver.Conn }

var sqliteDriver sqlite.Driver

// sqliteURI gives path as a URI, in which "?", "%" and "#" are escaped: in a
// plain name the driver cuts at "?" (sqlite.org/uri.html).
func sqliteURI(path, mode string, params ...string) string {
	slashed := filepath.ToSlash(path)
	if !strings.HasPrefix(slashed, "/") {
		slashed = "/" + slashed // C:/dir/file
	}
	u := url.URL{Scheme: "file", Path: slashed}
	return u.String() + "?mode=" + mode + "&" + strings.Join(params, "&")
}

// openSQLite opens the database at path. mode is "rw" or "ro", never "rwc":
// nothing is created here. SQLite opens the file at the first statement.
func openSQLite(path, mode string, params ...string) (*sqliteConn, error) {
	conn, err := sqliteDriver.Open(sqliteURI(path, mode, params...))
	if err != nil {
		return nil, err
	}
	return &sqliteConn{conn}, nil
}

// pathFor gives the path of the regular file name in dir for SQLite, which
// knows no directory descriptors. It makes sure that the path leads to that
// file, so that SQLite writes to no other; whoever may write in the directories
// above can only be faster than that by chance.
func pathFor(dir *fsat.Dir, name string) (string, error) {
	path := filepath.Join(dir.Path(), name)
	here, err := dir.Lstat(name)
	if err != nil {
		return "", err
	}
	there, err := fsat.Stat(path)
	if err != nil {
		return "", err
	}
	if !here.Mode.IsRegular() || there.Dev != here.Dev || there.Ino != here.Ino {
		return "", &fs.PathError{Op: "open", Path: path, Err: errors.New("replaced by another file")}
	}
	return path, nil
}

// query runs one statement and calls each for every row, whose values are
// valid during the call.
func (c *sqliteConn) query(ctx context.Context, statement string, each func(row []driver.Value) error) error {
	rows, err := c.Conn.(driver.QueryerContext).QueryContext(ctx, statement, nil)
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

func (c *sqliteConn) exec(ctx context.Context, statement string) error {
	return c.query(ctx, statement, nil)
}

// text gives the first column of a statement's first row.
func (c *sqliteConn) text(ctx context.Context, statement string) (text string, err error) {
	found := false
	err = c.query(ctx, statement, func(row []driver.Value) error {
		if !found {
			found, text = true, fmt.Sprint(row[0])
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%s gave no row", statement)
	}
	return text, err
}

// interrupted prefers ctx's error to SQLite's word for having been stopped.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// sqliteCode gives the primary result code of an error of SQLite, or 0.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}
