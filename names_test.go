package backup_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// No name that the library uses for files of its own meets the name of a part: a
// database or a registry may be called like any of them, and both alike.
func TestNamesOfParts(t *testing.T) {
	names := []string{
		"capture.db", "Capture.db", "CAPTURE.DB", "capture.db-wal", "capture", "db", "config", "chroma", "chroma.sqlite3",
		"snapshots", "backup-metadata.json", "SHA256SUMS", "sha256sums", "new", "old", "owner",
		".atocore-staging-0123456789abcdef", "20261124T115419Z", "lost+found", ".fuse_hidden0000000700000005", ".nfs0123",
		"#1 100%? ", "new\nline", `back\slash`, "bytes \xff\xc3",
	}
	if runtime.GOOS != "linux" {
		names = names[:16]
	}
	for i, name := range names {
		for _, registry := range []string{name, strings.ToUpper(names[(i+1)%len(names)])}[i%2 : i%2+1] {
			t.Run(fmt.Sprintf("%q and %q", name, registry), func(t *testing.T) {
				t.Parallel()
				s := backuptest.NewSmallStore(t)
				s.IncludeChroma = false
				moved := filepath.Join(s.Dir, "database", name)
				require.NoError(t, os.Mkdir(filepath.Dir(moved), 0o700))
				require.NoError(t, os.Rename(s.DatabasePath, moved))
				require.NoError(t, os.Rename(s.RegistryPath, filepath.Join(filepath.Dir(s.RegistryPath), registry)))
				s.DatabasePath, s.RegistryPath = moved, filepath.Join(filepath.Dir(s.RegistryPath), registry)
				stamp := s.Create().Stamp
				require.FileExists(t, s.SnapshotPath(stamp, "db", name))
				require.FileExists(t, s.SnapshotPath(stamp, "config", registry))
				entries, err := os.ReadDir(s.SnapshotPath(stamp, "db"))
				require.NoError(t, err)
				require.Len(t, entries, 1)
				want, err := os.ReadFile(s.RegistryPath)
				require.NoError(t, err)
				backuptest.Write(t, s.RegistryPath, "{}")
				s.Restore(stamp)
				got, err := os.ReadFile(s.RegistryPath)
				require.NoError(t, err)
				require.Equal(t, string(want), string(got))
				require.FileExists(t, s.DatabasePath)
				s.RequireNoRemains()
				s.RequireClean()
			})
		}
	}
}

// The names by which a restore finds its journal and its staging directories are
// refused.
func TestReservedNames(t *testing.T) {
	for _, name := range []string{".atocore-restore.journal", ".ATOCORE-restore.Journal", ".atocore-restore-0123456789abcdef-chroma"} {
		for _, part := range []string{"database", "registry", "Chroma directory"} {
			t.Run(part+" "+name, func(t *testing.T) {
				s := backuptest.NewSmallStore(t)
				stamp := s.Create().Stamp
				path := map[string]*string{"database": &s.DatabasePath, "registry": &s.RegistryPath, "Chroma directory": &s.ChromaPath}[part]
				moved := filepath.Join(filepath.Dir(*path), name)
				require.NoError(t, os.Rename(*path, moved))
				*path = moved
				before := backuptest.ReadTree(t, s.Dir)
				_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
				require.ErrorIs(t, err, backup.ErrInvalidOptions)
				require.ErrorContains(t, err, "the "+part+" "+moved)
				_, err = backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
				require.ErrorIs(t, err, backup.ErrInvalidOptions)
				require.Equal(t, before, backuptest.ReadTree(t, s.Dir))
			})
		}
	}
}
