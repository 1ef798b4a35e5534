package ncruces

import (
	"context"
	"database/sql"
	"errors"
	"net/url"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"
)

// Capture returns a function for Options.Capture that copies the database of db
// out of whatever VFS it is in, encrypted or in memory, to a plain file.
func Capture(db *sql.DB) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		conn, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		return conn.Raw(func(raw any) error {
			// The VFS "os" writes plain files.
			plain := url.URL{Scheme: "file", Path: path, RawQuery: "vfs=os"}
			b, err := raw.(driver.Conn).Raw().BackupInit("main", plain.String())
			if err != nil {
				return err
			}
			defer b.Close()
			for {
				done, err := b.Step(1024)
				switch {
				case done:
					return b.Close()
				case err != nil && !errors.Is(err, sqlite3.BUSY) && !errors.Is(err, sqlite3.LOCKED):
					return err
				case ctx.Err() != nil:
					return ctx.Err()
				}
			}
		})
	}
}

// Encrypt replaces the content of db by that of the plain database at path, for
// example one that was restored.
func Encrypt(ctx context.Context, db *sql.DB, path string) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Raw(func(raw any) error {
		plain := url.URL{Scheme: "file", Path: path, RawQuery: "vfs=os"}
		return raw.(driver.Conn).Raw().Restore("main", plain.String())
	})
}
