//go:build cgo

package mattn

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"

	"github.com/mattn/go-sqlite3"
)

// Capture returns a function for Options.Capture that copies the database of db,
// also one in memory, page by page.
func Capture(db *sql.DB) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		source, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer source.Close()
		// A URI, because the driver would cut a plain path at a question mark.
		copies, err := sql.Open("sqlite3", (&url.URL{Scheme: "file", Path: path}).String())
		if err != nil {
			return err
		}
		defer copies.Close() // before the function returns: the copy must be closed
		target, err := copies.Conn(ctx)
		if err != nil {
			return err
		}
		defer target.Close()
		return target.Raw(func(to any) error {
			return source.Raw(func(from any) error {
				return backUp(ctx, to.(*sqlite3.SQLiteConn), from.(*sqlite3.SQLiteConn))
			})
		})
	}
}

func backUp(ctx context.Context, to, from *sqlite3.SQLiteConn) error {
	b, err := to.Backup("main", from, "main")
	if err != nil {
		return err
	}
	defer b.Finish()
	for {
		done, err := b.Step(1024)
		switch {
		case err != nil:
			return fmt.Errorf("back up: %w", err)
		case done: // otherwise there is more to copy, or the database is busy
			return b.Finish()
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}
