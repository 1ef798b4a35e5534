package backup_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
)

// A database that is gone is let go when another one is copied.
func TestRemovedDatabasesAreLetGo(t *testing.T) {
	for range 5 {
		s := backuptest.NewStore(t)
		s.IncludeChroma = false
		s.Create()
		s.RemoveAll(s.DatabasePath)
	}
	gone := 0
	for _, file := range backuptest.OpenFiles(t) {
		if strings.HasSuffix(file, "atocore.db (deleted)") {
			gone++
		}
	}
	require.LessOrEqual(t, gone, 1)
}
