package sqlitedb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// Two copies of SQLite in one process do not know of each other's descriptors,
// and whichever closes one drops the POSIX locks of both
// (sqlite.org/howtocorrupt.html, section 2.2.1). So a database that the host
// has open through another driver is copied through the host's own connection,
// and this package does not open its file.

// copyHandle copies the database of the host's own handle to dir/WorkName.
func (c *Capture) copyHandle(ctx context.Context, dir *fsat.Dir, made *Copy) error {
	return c.withHandle(ctx, func(src *Source) error { return c.copyOnline(ctx, src, dir, made) }, func(host *sql.Conn) error {
		if err := createEmpty(dir, WorkName); err != nil {
			return err
		}
		made.written.all = true
		// An absolute path is never taken for a URI.
		if _, err := host.ExecContext(ctx, "VACUUM INTO ?", filepath.Join(dir.Path(), WorkName)); err != nil {
			return interrupted(ctx, fmt.Errorf("VACUUM INTO: %w", err))
		}
		// SQLite opens the copy through the VFS of the source.
		if err := acceptFile(dir); err != nil {
			return fmt.Errorf("%w: VACUUM INTO wrote no plain file; if the database is in a VFS of the driver's own, set Options.Capture: %w",
				errdefs.ErrSourceInvalid, err)
		}
		return nil
	})
}

// tryHandle reads once through a connection of the handle.
func (c *Capture) tryHandle(ctx context.Context) error {
	return c.withHandle(ctx, func(*Source) error { return nil }, func(*sql.Conn) error { return nil })
}

// withHandle takes a connection of the handle that has the right database open,
// and calls online in a read transaction of it if the driver has the online backup
// API, or else vacuum, if the database is not empty.
func (c *Capture) withHandle(ctx context.Context, online func(*Source) error, vacuum func(*sql.Conn) error) error {
	host, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer host.Close()
	if err := c.checkHandle(ctx, host); err != nil {
		return err
	}
	native := false
	err = host.Raw(func(raw any) error {
		if _, native = raw.(backuper); !native {
			return nil
		}
		return c.inTransaction(ctx, raw.(driver.Conn), online)
	})
	if err != nil || native {
		return err
	}
	if err := checkNotEmpty(ctx, host); err != nil {
		return err
	}
	return vacuum(host)
}

// connect takes a connection from the handle's pool. If there is none for a
// while, the pool is busy.
func (c *Capture) connect(ctx context.Context) (*sql.Conn, error) {
	const while = time.Second // a pool may have to open a connection first
	soon, cancel := context.WithTimeout(ctx, while)
	defer cancel()
	host, err := c.Handle.Conn(soon)
	switch {
	case err == nil:
		return host, nil
	case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%w: all connections of the database handle are in use", ErrBusy)
	}
	return nil, fmt.Errorf("get a connection of the database handle: %w", err)
}

// checkNotEmpty returns errdefs.ErrSourceInvalid for a database without a page:
// a pool may have opened another database in memory than the one that is meant.
// It reads, so it waits for locks as long as the driver does.
func checkNotEmpty(ctx context.Context, host *sql.Conn) error {
	var pages int64
	if err := host.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages); err != nil {
		return interrupted(ctx, fmt.Errorf("ask the database handle for its size: %w", err))
	}
	if pages == 0 {
		return fmt.Errorf("%w: the database is empty", errdefs.ErrSourceInvalid)
	}
	return nil
}

// checkHandle returns ErrInvalidOptions if the handle has a file open other
// than Path.
func (c *Capture) checkHandle(ctx context.Context, host *sql.Conn) error {
	file, err := mainFile(ctx, host)
	if err != nil {
		return interrupted(ctx, fmt.Errorf("ask the database handle for its file: %w", err))
	}
	wanted, err := fsat.Stat(c.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	opened, openedErr := fsat.Stat(file)
	inMemory := file == "" || errors.Is(openedErr, fs.ErrNotExist)
	switch {
	case err != nil && inMemory: // Path is only a name
		return nil
	case inMemory:
		return fmt.Errorf("%w: the database handle has a database in memory, but %s is a file", errdefs.ErrInvalidOptions, c.Path)
	case openedErr != nil:
		return openedErr
	case err != nil, opened.Ino != 0 && !opened.SameFile(wanted):
		return fmt.Errorf("%w: the database handle has %s open, which is not %s", errdefs.ErrInvalidOptions, file, c.Path)
	}
	return nil
}

// mainFile returns the path of the file that a connection has open. For a
// database in memory it is empty or the path of no file.
func mainFile(ctx context.Context, host *sql.Conn) (string, error) {
	rows, err := host.QueryContext(ctx, "PRAGMA database_list")
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

// inTransaction calls do with a read transaction on a connection of the host's
// pool, and leaves the connection as it was. A pool drops a connection that has
// failed, and a database in memory would be lost with it. So a panic of Progress
// must not reach the pool either.
func (c *Capture) inTransaction(ctx context.Context, host driver.Conn, do func(*Source) error) (err error) {
	src := &Source{conn: &conn{host}, path: fsat.RealPath(c.Path)}
	if err := src.begin(ctx); err != nil {
		return err
	}
	defer func() {
		if rerr := src.exec(context.WithoutCancel(ctx), "ROLLBACK"); rerr != nil {
			err = errors.Join(err, rerr, driver.ErrBadConn)
		}
	}()
	defer errdefs.Recover(&err)
	if err := briefly(ctx, func() error { return src.read(ctx) }); err != nil {
		return sourceError(c.Path, err)
	}
	return do(src)
}
