package concurrency

import (
	"database/sql"
	"fmt"
	"os/exec"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A host that starts programs all the time makes its calls as if it did not.
// Between fork(2) and execve(2) such a program has duplicates of all
// descriptors of the host, with the locks of calls that have ended since, and
// with the database open.
func TestCallsWhileTheHostStartsPrograms(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no program to start")
	}
	s := backuptest.NewSmallStore(t)
	end := make(chan struct{})
	var starters sync.WaitGroup
	defer starters.Wait()
	defer close(end)
	for range 4 {
		starters.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
					_ = exec.Command(program).Run()
				}
			}
		})
	}
	for i := range 12 {
		stamp := s.Create().Stamp // keeps a descriptor of the database
		s.Disturb()               // what is equal would not be replaced
		backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) {
			_, err := db.Exec(fmt.Sprint("PRAGMA user_version = ", 1000+i))
			require.NoError(t, err)
		})
		s.Restore(stamp)
		result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
		require.NoError(t, err)
		require.Empty(t, result.Skipped)
		require.Len(t, s.Stamps(), 2) // that one and the safety snapshot
	}
}
