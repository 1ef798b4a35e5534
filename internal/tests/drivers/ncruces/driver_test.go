package ncruces

import (
	"database/sql"
	"testing"

	_ "github.com/ncruces/go-sqlite3/driver"

	"github.com/atocore/backup/internal/tests/drivers"
)

func open(dsn string) (*sql.DB, error) { return sql.Open("sqlite3", dsn) }

func TestMain(m *testing.M) { drivers.Main(m, open) }

func TestDriver(t *testing.T) { drivers.Run(t, open) }
