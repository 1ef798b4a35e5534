package sqlitedb

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

var errLost = errors.New("the transaction is lost")

// A lostConn is a connection of a host that forgets its transactions: they cannot
// be ended.
type lostConn struct{ statements []string }

func (c *lostConn) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }
func (c *lostConn) Close() error                        { return nil }
func (c *lostConn) Begin() (driver.Tx, error)           { return nil, errors.ErrUnsupported }

func (c *lostConn) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	c.statements = append(c.statements, query)
	if query == "ROLLBACK" {
		return nil, errLost
	}
	return &oneRow{}, nil
}

// oneRow is the result "1" of a query.
type oneRow struct{ done bool }

func (r *oneRow) Columns() []string { return []string{"x"} }
func (r *oneRow) Close() error      { return nil }
func (r *oneRow) Next(into []driver.Value) error {
	if r.done {
		return io.EOF
	}
	r.done = true
	into[0] = "1"
	return nil
}

// A connection of the host's pool whose transaction cannot be ended must not go
// back to the pool: whoever got it would be in that transaction. The error that
// database/sql knows makes the pool drop it.
func TestConnectionWithALostTransactionIsDropped(t *testing.T) {
	c := &Capture{Path: t.TempDir() + "/a.db"}
	host := new(lostConn)
	err := c.inTransaction(t.Context(), host, func(*Source) error { return nil })
	require.ErrorIs(t, err, driver.ErrBadConn)
	require.ErrorIs(t, err, errLost)
	require.Equal(t, "BEGIN", host.statements[0])
	require.Equal(t, "ROLLBACK", host.statements[len(host.statements)-1])
}
