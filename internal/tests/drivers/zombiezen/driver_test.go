package zombiezen

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/tests/drivers"
)

func open(dsn string) (*sql.DB, error) { return nil, fmt.Errorf("no database/sql for %s", dsn) }

func TestMain(m *testing.M) {
	drivers.Main(m, open, backuptest.Roles{
		"capturing": drivers.CapturingHost(startFile, true),
		"plain":     drivers.CapturingHost(startFile, false),
	})
}

// start starts a host with a pool for a database.
func start(uri string, flags sqlite.OpenFlags) (*drivers.Host, error) {
	pool, err := sqlitex.NewPool(uri, sqlitex.PoolOptions{Flags: flags | sqlite.OpenReadWrite | sqlite.OpenCreate | sqlite.OpenURI, PoolSize: 2})
	if err != nil {
		return nil, err
	}
	conn, err := pool.Take(context.Background())
	if err != nil {
		return nil, err
	}
	return &drivers.Host{
		Capture: Capture(pool),
		Exec: func(statement string) error {
			return sqlitex.ExecuteTransient(conn, statement, nil)
		},
		Close: sync.OnceValue(func() error {
			pool.Put(conn)
			return pool.Close()
		}),
	}, nil
}

func startFile(path string) (*drivers.Host, error) {
	return start((&url.URL{Scheme: "file", Path: path}).String(), 0)
}

var databases atomic.Int64

// startInMemory starts a host whose database is in memory, where the connections of
// the pool share it.
func startInMemory(string) (*drivers.Host, error) {
	return start(fmt.Sprintf("file:memory%d?mode=memory&cache=shared", databases.Add(1)), sqlite.OpenSharedCache)
}

// The driver and the library have the same SQLite. So a host needs to set nothing.
func TestWithoutCapture(t *testing.T) { drivers.RunLocks(t, "plain") }

func TestCapture(t *testing.T) {
	t.Run("file", func(t *testing.T) { drivers.RunCapture(t, startFile, true) })
	t.Run("in memory", func(t *testing.T) { drivers.RunCapture(t, startInMemory, false) })
	t.Run("locks of the host survive", func(t *testing.T) { drivers.RunLocks(t, "capturing") })
}
