// Package zombiezen tests with zombiezen.com/go/sqlite, which is built on the
// SQLite of modernc.org/sqlite, and whose pool has no database/sql.
package zombiezen

import (
	"context"
	"errors"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// Capture returns a function for Options.Capture that copies the database of a
// pool, also one in memory.
func Capture(pool *sqlitex.Pool) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) (err error) {
		source, err := pool.Take(ctx)
		if err != nil {
			return err
		}
		defer pool.Put(source)
		// Without sqlite.OpenWAL, which is the default.
		target, err := sqlite.OpenConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, target.Close()) }()
		b, err := sqlite.NewBackup(target, "main", source, "main")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.Close()) }()
		for {
			more, err := b.Step(1024)
			switch {
			case !more:
				return err
			case ctx.Err() != nil: // with an error, the database is busy
				return ctx.Err()
			}
		}
	}
}
