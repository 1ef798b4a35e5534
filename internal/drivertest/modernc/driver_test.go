package modernc

import (
	"database/sql"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/atocore/backup/internal/drivertest"
)

func open(dsn string) (*sql.DB, error) { return sql.Open("sqlite", dsn) }

func TestMain(m *testing.M) { drivertest.Main(m, open) }

func TestDriver(t *testing.T) { drivertest.Run(t, open) }
