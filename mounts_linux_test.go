package backup_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// bind makes target another place of source, until the test ends.
func bind(t *testing.T, source, target string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(target, 0o700))
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("this process may not mount: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(target, unix.MNT_DETACH)) })
}

// A backup directory that lies inside the Chroma directory under another name is
// refused before anything of it is copied: the copy would contain itself. Neither
// path shows it.
func TestBackupDirectoryInsideChromaByAMount(t *testing.T) {
	for name, place := range map[string]string{"below": "a/b/backups", "at the top": "."} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewBareStore(t)
			inside := filepath.Join(s.ChromaPath, place)
			require.NoError(t, os.MkdirAll(inside, 0o700))
			bind(t, inside, s.BackupDir)
			before := backuptest.ReadTree(t, s.ChromaPath)

			_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
			require.ErrorIs(t, err, backup.ErrInvalidOptions)
			require.ErrorContains(t, err, inside)
			require.Less(t, len(err.Error()), 1000)
			if name == "below" {
				after := backuptest.ReadTree(t, s.ChromaPath)
				require.Len(t, after, len(before)+1, "only snapshots/ was made")
			}
			require.Empty(t, s.Staging())
			require.Empty(t, s.Stamps())

			// Without Chroma it harms nobody. A restore over such a Chroma directory
			// would move the snapshots away, and is refused.
			opts := s.Options
			opts.IncludeChroma = false
			_, err = backup.CreateRuntimeBackup(t.Context(), opts)
			require.NoError(t, err)
			elsewhere := s.Options
			elsewhere.ChromaPath = filepath.Join(s.Dir, "elsewhere")
			require.NoError(t, os.Mkdir(elsewhere.ChromaPath, 0o700))
			meta, err := backup.CreateRuntimeBackup(t.Context(), elsewhere)
			require.NoError(t, err)
			_, err = backup.RestoreRuntimeBackup(t.Context(), s.Options, meta.Stamp)
			require.ErrorIs(t, err, backup.ErrInvalidOptions)
			require.Contains(t, s.Stamps(), meta.Stamp)
			s.RequireNoRemains()
		})
	}
}

// The backup directory itself may be a mount point, and so may its snapshots' and
// the Chroma directory's parents.
func TestBackupDirectoryIsAMount(t *testing.T) {
	s := backuptest.NewStore(t)
	bind(t, t.TempDir(), s.BackupDir)
	s.Create()
}
