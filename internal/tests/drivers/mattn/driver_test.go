//go:build cgo

package mattn

import (
	"database/sql"
	"net/url"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/tests/drivers"
)

func open(dsn string) (*sql.DB, error) { return sql.Open("sqlite3", dsn) }

func TestMain(m *testing.M) {
	drivers.Main(m, open, backuptest.Roles{"capturing": drivers.CapturingHost(startFile, true)})
}

func TestDriver(t *testing.T) { drivers.Run(t, open) }

// startFile starts a host whose database is a file.
func startFile(path string) (*drivers.Host, error) {
	db, err := open((&url.URL{Scheme: "file", Path: path}).String())
	if err != nil {
		return nil, err
	}
	return drivers.SQLHost(db, false, Capture(db))
}

// startInMemory starts a host whose database is in memory, in its one connection.
func startInMemory(string) (*drivers.Host, error) {
	db, err := open(":memory:")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return drivers.SQLHost(db, true, Capture(db))
}

func TestCapture(t *testing.T) {
	t.Run("file", func(t *testing.T) { drivers.RunCapture(t, startFile, true) })
	t.Run("in memory", func(t *testing.T) { drivers.RunCapture(t, startInMemory, false) })
	t.Run("locks of the host survive", func(t *testing.T) { drivers.RunLocks(t, "capturing") })
}
