package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// Parts of one store may have the same name, because they are in different
// directories there. In one directory they get places of their own, and other
// parts get the places that they have always had.
func TestPlacesInOneDirectory(t *testing.T) {
	for _, test := range []struct{ db, registry, wantDB, wantRegistry string }{
		{"core.db", "registry.json", "core.db", "registry.json"},
		{"db", "config", "db", "config"},
		{"core.db", "", "core.db", ""},
		{"core.db", "core.db-journal.json", "core.db", "core.db-journal.json"},
		{"store", "store", "db/store", "config/store"},
		{"Store", "store", "db/Store", "config/store"},
		{"store", "store-wal", "db/store", "config/store-wal"},
		{"store-wal", "store", "store-wal", "store"},
		{"chroma", "registry.json", "db/chroma", "config/registry.json"},
		{"chroma", "", "db/chroma", ""},
		{"core.db", "chroma", "db/core.db", "config/chroma"},
		{"core.db", "Chroma", "db/core.db", "config/Chroma"},
		{"chroma", "chroma", "db/chroma", "config/chroma"},
		{"config", "config", "db/config", "config/config"},
		{"db", "db", "db/db", "config/db"},
	} {
		recorded := func(name string) string {
			if name == "" {
				return ""
			}
			return filepath.Join("anywhere", name)
		}
		snapshot := backup.Snapshot{Metadata: &backup.Metadata{DBSnapshotPath: recorded(test.db), RegistrySnapshotPath: recorded(test.registry)}}
		want := func(name string) string {
			if name == "" {
				return ""
			}
			return filepath.Join("into", filepath.FromSlash(name))
		}
		opts := new(storeFlags).optionsIn("into", snapshot)
		require.Equal(t, want(test.wantDB), opts.DatabasePath, test)
		require.Equal(t, want(test.wantRegistry), opts.RegistryPath, test)
		require.Equal(t, want("chroma"), opts.ChromaPath, test)
	}
}

// Snapshots of such stores can be rehearsed and restored elsewhere.
func TestDrillAndRestoreOfPartsWithOneName(t *testing.T) {
	for _, names := range []struct{ db, registry string }{{"store", "store"}, {"chroma", "config"}} {
		t.Run(names.db+" and "+names.registry, func(t *testing.T) {
			s := newStore(t)
			require.NoError(t, s.live.Close())
			move := func(path *string, name string) {
				to := filepath.Join(t.TempDir(), name)
				require.NoError(t, os.Rename(*path, to))
				*path = to
			}
			move(&s.db, names.db)
			move(&s.registry, names.registry)
			stamp := s.snapshot(t)

			o := atocore(t, "drill", "--backup-dir", s.backups, stamp)
			require.Equal(t, exitDone, o.code, o.stderr)

			into := filepath.Join(t.TempDir(), "new")
			o = atocore(t, "restore", "--into", into, "--backup-dir", s.backups, stamp)
			require.Equal(t, exitDone, o.code, o.stderr)
			r := decode[restored](t, o)
			require.Equal(t, filepath.Join(into, "db", names.db), r.DBPath)
			require.Equal(t, filepath.Join(into, "config", names.registry), r.RegistryPath)
			requireNotes(t, r.DBPath, "first")
			requireFile(t, r.RegistryPath, `{"projects": []}`)
			requireFile(t, filepath.Join(into, "chroma", "segment", "data.bin"), "vectors")
		})
	}
}
