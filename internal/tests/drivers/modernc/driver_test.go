package modernc

import (
	"database/sql"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/atocore/backup/internal/tests/drivers"
)

func open(dsn string) (*sql.DB, error) { return sql.Open("sqlite", dsn) }

func TestMain(m *testing.M) { drivers.Main(m, open, nil) }

func TestDriver(t *testing.T) { drivers.Run(t, open) }
