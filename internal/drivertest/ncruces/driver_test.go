package ncruces

import (
	"database/sql"
	"testing"

	_ "github.com/ncruces/go-sqlite3/driver"

	"github.com/atocore/backup/internal/drivertest"
)

func open(dsn string) (*sql.DB, error) { return sql.Open("sqlite3", dsn) }

func TestMain(m *testing.M) { drivertest.Main(m, open) }

func TestDriver(t *testing.T) { drivertest.Run(t, open) }
