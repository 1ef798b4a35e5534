package backup_test

import (
	"testing"

	"github.com/atocore/backup/internal/backuptest"
)

// roles are what this test binary can be as a process of its own.
var roles = backuptest.Roles{
	"leave-behind": roleLeaveBehind,
	"try-lock":     roleTryLock,
	"write":        roleWrite,
}

func TestMain(m *testing.M) { backuptest.Main(m, roles) }
