package backup_test

import (
	"testing"

	"github.com/atocore/backup/internal/backuptest"
)

// roles are the roles in which this test binary can be started as a child process.
var roles = backuptest.Roles{
	"leave-behind": roleLeaveBehind,
	"try-lock":     roleTryLock,
	"write":        roleWrite,
}

func TestMain(m *testing.M) { backuptest.Main(m, roles) }
