// Package drivers takes snapshots through the handles of hosts that use
// another SQLite driver than the library does. It is a module of its own, so
// that the library does not depend on these.
package drivers

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"modernc.org/sqlite"

	"github.com/atocore/backup"
)

// Opener opens a database with the driver that is under test.
type Opener func(dsn string) (*sql.DB, error)

const hostEnv = "BACKUP_TEST_HOST"

// Main is the TestMain of a driver's package.
func Main(m *testing.M, open Opener) {
	if os.Getenv(hostEnv) != "" {
		if err := host(open, os.Args[1], os.Args[2]); err != nil {
			fmt.Println("host:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// host is a service that holds a write lock on its database, takes a snapshot
// through another connection of its pool, and then still holds the lock. It
// says a line at each stage and waits for one.
func host(open Opener, path, backupDir string) error {
	ctx := context.Background()
	db, err := open(path)
	if err != nil {
		return err
	}
	defer db.Close()
	writer, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	if _, err := writer.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if _, err := writer.ExecContext(ctx, "INSERT INTO memory VALUES (NULL, 'not committed')"); err != nil {
		return err
	}
	stdin := bufio.NewReader(os.Stdin)
	fmt.Println("locked")
	if _, err := stdin.ReadString('\n'); err != nil {
		return err
	}
	m, err := backup.CreateRuntimeBackup(ctx, backup.Options{DB: db, DatabasePath: path, BackupDir: backupDir})
	if err != nil {
		return err
	}
	fmt.Println(m.Stamp)
	if _, err := stdin.ReadString('\n'); err != nil {
		return err
	}
	if _, err := writer.ExecContext(ctx, "COMMIT"); err != nil {
		return err
	}
	fmt.Println("committed")
	return nil
}

func makeDatabase(t *testing.T, path, mode string) {
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	defer db.Close()
	_, err = db.Exec("PRAGMA journal_mode=" + mode + `; CREATE TABLE memory (id INTEGER PRIMARY KEY, text TEXT);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 10000)
		INSERT INTO memory SELECT i, hex(randomblob(20)) FROM n`)
	require.NoError(t, err)
}

// requireLocked checks from this process that another one holds the write
// lock.
func requireLocked(t *testing.T, path string) {
	t.Helper()
	db, err := sql.Open("sqlite", path+"?_pragma=busy_timeout(0)")
	require.NoError(t, err)
	defer db.Close()
	_, err = db.Exec("BEGIN IMMEDIATE")
	var serr *sqlite.Error
	require.ErrorAs(t, err, &serr)
	require.Equal(t, 5 /* SQLITE_BUSY */, serr.Code()&0xff, "the host's lock")
}

func countRows(t *testing.T, path string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?mode=ro&immutable=1")
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, db.QueryRow("SELECT count(*) FROM memory").Scan(&n))
	return n
}

// Run runs all tests with one driver.
func Run(t *testing.T, open Opener) {
	t.Run("locks of the host survive", testLocks)
	t.Run("database in memory", func(t *testing.T) { testMemory(t, open) })
	t.Run("cancelled while the pool is busy", func(t *testing.T) { testCancelled(t, open) })
}

func testLocks(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			dir := t.TempDir()
			path, backupDir := filepath.Join(dir, "live.db"), filepath.Join(dir, "backups")
			makeDatabase(t, path, mode)
			cmd := exec.Command(os.Args[0], path, backupDir)
			cmd.Env = append(os.Environ(), hostEnv+"=1")
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			lines := bufio.NewScanner(out)
			next := func() string {
				require.True(t, lines.Scan(), "the host ended early")
				return lines.Text()
			}
			require.Equal(t, "locked", next())
			requireLocked(t, path)
			_, err = io.WriteString(in, "\n")
			require.NoError(t, err)
			stamp := next()
			_, err = backup.ValidateBackup(context.Background(), backup.Options{BackupDir: backupDir}, stamp)
			require.NoError(t, err)
			requireLocked(t, path)
			_, err = io.WriteString(in, "\n")
			require.NoError(t, err)
			require.Equal(t, "committed", next())
			require.NoError(t, cmd.Wait())
			require.Equal(t, 10000, countRows(t, filepath.Join(backupDir, "snapshots", stamp, "db", "live.db")))
		})
	}
}

func testMemory(t *testing.T, open Opener) {
	db, err := open(":memory:")
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec("CREATE TABLE memory (id INTEGER PRIMARY KEY, text TEXT)")
	require.NoError(t, err)
	_, err = db.Exec("INSERT INTO memory VALUES (1, 'hello')")
	require.NoError(t, err)
	opts := backup.Options{DB: db, DatabasePath: "state.db", BackupDir: filepath.Join(t.TempDir(), "odd ?%# 'name'")}
	m, err := backup.CreateRuntimeBackup(context.Background(), opts)
	require.NoError(t, err)
	_, err = backup.ValidateBackup(context.Background(), opts, m.Stamp)
	require.NoError(t, err)
	require.NoFileExists(t, "state.db")
	_, err = db.Exec("INSERT INTO memory VALUES (2, 'the handle works on')")
	require.NoError(t, err)
}

func testCancelled(t *testing.T, open Opener) {
	dir := t.TempDir()
	path := filepath.Join(dir, "live.db")
	makeDatabase(t, path, "wal")
	db, err := open(path)
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	busy, err := db.Conn(context.Background())
	require.NoError(t, err)
	defer busy.Close()
	ctx, cancel := context.WithCancel(context.Background())
	opts := backup.Options{DB: db, DatabasePath: path, BackupDir: filepath.Join(dir, "backups"),
		OnProgress: func(p backup.Progress) {
			if p.Phase == backup.PhaseDatabase {
				cancel()
			}
		}}
	_, err = backup.CreateRuntimeBackup(ctx, opts)
	require.ErrorIs(t, err, context.Canceled)
	list, err := backup.ListRuntimeBackups(context.Background(), opts)
	require.NoError(t, err)
	require.Empty(t, list)
}
