//go:build unix

package backup_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// Neither a list nor a prune opens a file of the live database that somebody
// linked to in the place of a manifest or a record: closing it would drop the
// locks of the host.
func TestRecordsDoNotOpenTheLiveDatabase(t *testing.T) {
	base := backuptest.NewSmallStore(t)
	base.Verify = true
	stamp := base.Create().Stamp
	for name, path := range map[string]string{
		"manifest": filepath.Join("snapshots", stamp, backuptest.ManifestFile),
		"record":   filepath.Join("records", stamp+".json"),
	} {
		t.Run(name, func(t *testing.T) {
			s := base.Snapshot(stamp).Copy(t)
			require.True(t, *entryOf(t, s.Options, stamp).Verified)
			s.DatabasePath = filepath.Join(filepath.Dir(s.BackupDir), "atocore.db")
			backuptest.MakeDatabase(t, s.DatabasePath)
			host := backuptest.OpenDB(t, s.DatabasePath)
			_, err := host.Exec("BEGIN IMMEDIATE")
			require.NoError(t, err)
			path := filepath.Join(s.BackupDir, path)
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Link(s.DatabasePath, path))

			require.Nil(t, entryOf(t, s.Options, stamp).Verified)
			_, err = backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
			require.NoError(t, err)
			opts := s.Options
			opts.RecordVerdicts = true
			_, err = backup.ValidateBackup(t.Context(), opts, stamp)
			require.Equal(t, name == "record", err == nil)
			other := backuptest.Start(t, "try-lock", s.DatabasePath)
			require.Equal(t, "refused", other.Ask("BEGIN IMMEDIATE"), "the host's lock was dropped")
		})
	}
}
