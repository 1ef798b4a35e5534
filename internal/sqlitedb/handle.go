package backup

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/atocore/backup/internal/fsat"
)

// Two copies of SQLite in one process do not know of each other's descriptors,
// and whichever closes one drops the POSIX locks of both
// (sqlite.org/howtocorrupt.html, section 2.2.1). So a database that the host
// has open through another driver is captured through the host's own
// connection, and nothing here opens its file.

// captureHandle copies the database of the host's own handle to dir/workDBName.
func (s *settings) captureHandle(ctx context.Context, dir *fsat.Dir) error {
	conn, err := s.DB.Conn(ctx)
	if err != nil {
		return fmt.Errorf("get a connection of DB: %w", err)
	}
	defer conn.Close()
	if err := s.checkHandle(ctx, conn); err != nil {
		return err
	}
	online := false
	err = conn.Raw(func(dc any) error {
		if _, online = dc.(backuper); !online {
			return nil
		}
		return s.captureConn(ctx, dc.(driver.Conn), dir)
	})
	if err != nil || online {
		return err
	}
	if err := createEmpty(dir, workDBName); err != nil { // so that its mode is ours
		return err
	}
	// An absolute path is never taken for a URI.
	if _, err := conn.ExecContext(ctx, "VACUUM INTO ?", filepath.Join(dir.Path(), workDBName)); err != nil {
		return interrupted(ctx, fmt.Errorf("VACUUM INTO: %w", err))
	}
	return nil
}

// checkHandle refuses a handle that has another file open than DatabasePath.
func (s *settings) checkHandle(ctx context.Context, conn *sql.Conn) error {
	file, err := mainFile(ctx, conn)
	if err != nil {
		return interrupted(ctx, fmt.Errorf("ask DB for its file: %w", err))
	}
	wanted, err := fsat.Stat(s.DatabasePath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	opened, openedErr := fsat.Stat(file)
	inMemory := file == "" || errors.Is(openedErr, fs.ErrNotExist)
	switch {
	case err != nil && inMemory: // the path is a mere name
		return nil
	case inMemory:
		return fmt.Errorf("%w: DB is in memory, but DatabasePath is a file", ErrInvalidOptions)
	case openedErr != nil:
		return openedErr
	case err != nil, opened.Ino != 0 && !opened.SameFile(wanted):
		return fmt.Errorf("%w: DB has %s open, which is not DatabasePath", ErrInvalidOptions, file)
	}
	return nil
}

// mainFile gives the path of the file that a connection has open; for a
// database in memory it is empty or names no file.
func mainFile(ctx context.Context, conn *sql.Conn) (string, error) {
	rows, err := conn.QueryContext(ctx, "PRAGMA database_list")
	if err != nil {
		return "", err
	}
	defer rows.Close()
	for rows.Next() {
		var seq int
		var name string
		var file sql.NullString
		if err := rows.Scan(&seq, &name, &file); err != nil {
			return "", err
		}
		if name == "main" {
			return file.String, nil
		}
	}
	return "", errors.Join(rows.Err(), errors.New("PRAGMA database_list names no main"))
}

// captureConn runs the online backup on a connection of the host's pool and
// leaves it as it was: a pool drops a connection that has failed, and a
// database in memory would be lost with it. So a panic of OnProgress does not
// get to the pool either.
func (s *settings) captureConn(ctx context.Context, conn driver.Conn, dir *fsat.Dir) (err error) {
	src := &pinnedSource{sqliteConn: &sqliteConn{conn}}
	if err := src.begin(ctx); err != nil {
		return err
	}
	defer func() {
		if rerr := src.exec(context.WithoutCancel(ctx), "ROLLBACK"); rerr != nil {
			err = errors.Join(err, rerr, driver.ErrBadConn)
		}
	}()
	defer recoverTo(&err)
	if err := src.pin(ctx); err != nil {
		return sourceError(err)
	}
	return s.onlineBackup(ctx, src, dir)
}
