package drivers

import (
	"context"
	"database/sql"
)

// SQLHost returns a host whose statements run on a connection of db that is kept,
// or, if shared is set, on any connection of db.
func SQLHost(db *sql.DB, shared bool, capture func(ctx context.Context, path string) error) (*Host, error) {
	ctx := context.Background()
	h := &Host{Capture: capture, Close: db.Close}
	if shared {
		h.Exec = func(statement string) error {
			_, err := db.ExecContext(ctx, statement)
			return err
		}
		return h, nil
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	h.Exec = func(statement string) error {
		_, err := conn.ExecContext(ctx, statement)
		return err
	}
	h.Close = func() error {
		conn.Close()
		return db.Close()
	}
	return h, nil
}
