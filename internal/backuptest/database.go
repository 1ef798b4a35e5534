package backuptest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"modernc.org/sqlite"
)

// Accounts is the number of accounts in a database of MakeDatabase.
const Accounts = 100

// DSN returns the data source name of the database file path for the driver
// "sqlite". Without a busy_timeout among params it waits long for locks.
func DSN(path string, params ...string) string {
	params = slices.Clone(params)
	// The driver does not say which of two timeouts counts.
	if !slices.ContainsFunc(params, func(p string) bool { return strings.HasPrefix(p, "_pragma=busy_timeout") }) {
		params = append(params, "_pragma=busy_timeout(300000)")
	}
	u := url.URL{Scheme: "file", Path: path}
	return u.String() + "?" + strings.Join(params, "&")
}

// Open opens a database with a single connection. params are those of DSN.
func Open(path string, params ...string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", DSN(path, params...))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// OpenDB is Open for a test. The database is closed when the test ends.
func OpenDB(t *testing.T, path string, params ...string) *sql.DB {
	t.Helper()
	db, err := Open(path, params...)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// InDatabase calls do with a database, which must have no WAL, and closes it
// again.
func InDatabase(t *testing.T, path string, do func(db *sql.DB)) {
	t.Helper()
	db := OpenDB(t, path)
	do(db)
	require.NoError(t, db.Close())
}

// MakeDatabase creates a database in which the balances of all accounts add up
// to 0. Transfer and Move keep it so.
func MakeDatabase(t *testing.T, path string, params ...string) {
	t.Helper()
	db := OpenDB(t, path, params...)
	FillDatabase(t, db)
	require.NoError(t, db.Close())
}

// FillDatabase is MakeDatabase for an empty database that is open.
func FillDatabase(t *testing.T, db *sql.DB) {
	t.Helper()
	// One transaction, because each waits for the disk.
	_, err := db.Exec(fmt.Sprintf(`BEGIN;
		CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
		CREATE TABLE transfer (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL, note TEXT NOT NULL);
		CREATE INDEX transfer_amount ON transfer (amount);
		WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < %d) INSERT INTO account SELECT i, 0 FROM n;
		COMMIT`, Accounts-1))
	require.NoError(t, err)
}

// Transfer moves an amount between two accounts and records that, in one
// transaction.
func Transfer(ctx context.Context, db *sql.DB, from, to, amount int) error {
	return inTransaction(ctx, db, func(tx *sql.Tx) error {
		if err := move(ctx, tx, from, to, amount); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO transfer (amount, note) VALUES (?, hex(randomblob(100)))", amount)
		return err
	})
}

// Move is Transfer without the record, for writers that must not make the
// database grow.
func Move(ctx context.Context, db *sql.DB, from, to, amount int) error {
	return inTransaction(ctx, db, func(tx *sql.Tx) error { return move(ctx, tx, from, to, amount) })
}

func inTransaction(ctx context.Context, db *sql.DB, do func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func move(ctx context.Context, tx *sql.Tx, from, to, amount int) error {
	for _, change := range []struct{ id, by int }{{from, -amount}, {to, amount}} {
		if _, err := tx.ExecContext(ctx, "UPDATE account SET balance = balance + ? WHERE id = ?", change.by, change.id); err != nil {
			return err
		}
	}
	return nil
}

// CountTransfers checks a database copy as RequireSound does and returns the
// number of transfers that it records.
func CountTransfers(t *testing.T, path string) (n int) {
	t.Helper()
	RequireSound(t, path)
	db := OpenDB(t, path, "mode=ro", "immutable=1")
	defer db.Close()
	require.NoError(t, db.QueryRow("SELECT count(*) FROM transfer").Scan(&n))
	return n
}

// CountRows returns the number of transfers that a database records, those in
// its WAL included. It opens the database as any client does, which may change
// its files.
func CountRows(t *testing.T, path string) (n int) {
	t.Helper()
	db := OpenDB(t, path)
	defer db.Close()
	require.NoError(t, db.QueryRow("SELECT count(*) FROM transfer").Scan(&n))
	return n
}

// RequireSound checks a database copy: it must pass SQLite's integrity check,
// and the balances of the accounts must add up.
func RequireSound(t *testing.T, path string) {
	t.Helper()
	db := OpenDB(t, path, "mode=ro", "immutable=1")
	defer db.Close()
	RequireBalanced(t, db)
}

// RequireBalanced is RequireSound for a database that is open.
func RequireBalanced(t *testing.T, db *sql.DB) {
	t.Helper()
	RequireIntegrity(t, db)
	var sum, n int
	require.NoError(t, db.QueryRow("SELECT sum(balance), count(*) FROM account").Scan(&sum, &n))
	require.Zero(t, sum, "the copy is torn: the balances do not add up")
	require.Equal(t, Accounts, n)
}

// RequireIntegrity checks that a database passes SQLite's integrity check.
func RequireIntegrity(t *testing.T, db *sql.DB) {
	t.Helper()
	var text string
	require.NoError(t, db.QueryRow("PRAGMA integrity_check").Scan(&text))
	require.Equal(t, "ok", text)
}

// KeepWAL closes db, a WAL database at path, so that its WAL stays with
// everything in it, as a killed process leaves it. Closing the last connection
// would empty it.
func KeepWAL(t *testing.T, db *sql.DB, path string) {
	t.Helper()
	var kept [2][]byte
	for i, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(path + suffix)
		require.NoError(t, err)
		kept[i] = data
	}
	require.NoError(t, db.Close())
	for i, suffix := range []string{"", "-wal"} {
		require.NoError(t, os.WriteFile(path+suffix, kept[i], 0o640))
	}
	require.NotEmpty(t, kept[1])
}

// CopyWithWAL is CopyOf for a database and its WAL, if there is one.
func CopyWithWAL(t *testing.T, path string) string {
	t.Helper()
	to := CopyOf(t, path)
	data, err := os.ReadFile(path + "-wal")
	if !os.IsNotExist(err) {
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to+"-wal", data, 0o600))
	}
	return to
}

// SQLiteCode returns the primary result code of an error of SQLite, or 0.
func SQLiteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}
