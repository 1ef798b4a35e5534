package backup_test

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// The database and the registry may be links to a disk that was lost and
// replaced by an empty one. They are restored to where the links lead, and the
// links stay.
func TestRestoreThroughDanglingLinks(t *testing.T) {
	for name, lost := range map[string]func(disk string) error{
		"files":       func(disk string) error { return os.Remove(filepath.Join(disk, "file")) },
		"directories": os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) {
				_, err := db.Exec("PRAGMA journal_mode=delete")
				require.NoError(t, err)
			})
			disks := map[string]string{}
			for _, path := range []string{s.DatabasePath, s.RegistryPath} {
				disk := filepath.Join(s.Dir, "disk-of-"+filepath.Base(path))
				require.NoError(t, os.Mkdir(disk, 0o755))
				require.NoError(t, os.Rename(path, filepath.Join(disk, "file")))
				disks[path] = filepath.Join(disk, "file")
			}
			require.NoError(t, os.Symlink(disks[s.DatabasePath], filepath.Join(s.Dir, "absolute")))
			require.NoError(t, os.Symlink("../absolute", s.DatabasePath)) // a chain
			require.NoError(t, os.Symlink("../disk-of-"+filepath.Base(s.RegistryPath)+"/file", s.RegistryPath))
			registry, err := os.ReadFile(s.RegistryPath)
			require.NoError(t, err)
			m := s.Create()

			for _, file := range disks {
				require.NoError(t, lost(filepath.Dir(file)))
			}
			_, err = backup.CreateRuntimeBackup(context.Background(), s.Options)
			require.ErrorIs(t, err, os.ErrNotExist)

			r := s.Restore(m.Stamp)
			require.Equal(t, s.DatabasePath, r.DatabasePath)
			require.Equal(t, s.RegistryPath, r.RegistryPath)
			for path, file := range disks {
				info, err := os.Lstat(path)
				require.NoError(t, err)
				require.Equal(t, os.ModeSymlink, info.Mode().Type())
				info, err = os.Lstat(file)
				require.NoError(t, err)
				require.True(t, info.Mode().IsRegular())
			}
			backuptest.RequireSound(t, s.DatabasePath)
			restored, err := os.ReadFile(s.RegistryPath)
			require.NoError(t, err)
			require.Equal(t, registry, restored)
			s.RequireNoRemains()
		})
	}
}
