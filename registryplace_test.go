package backup_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A create refuses the places of a registry to which it could not be restored.
func TestPlacesOfARegistryThatCannotWork(t *testing.T) {
	s := backuptest.NewBareStore(t)
	m := s.Create()
	for _, tt := range []struct {
		name  string
		path  string
		fault string
	}{
		{"in Chroma", s.InChroma("registry.json"), "lies inside the Chroma directory"},
		{"missing, deep in Chroma", s.InChroma("a/b/registry.json"), "lies inside the Chroma directory"},
		{"in Chroma through a link", filepath.Join(s.Dir, "link.json"), "lies inside the Chroma directory"},
		{"in Chroma through a link to nothing", filepath.Join(s.Dir, "dangling.json"), "lies inside the Chroma directory"},
		{"a missing journal of the database", s.DatabasePath + "-journal", "is the database file"},
		{"a missing -wal of the database, through a directory that is a link", filepath.Join(s.Dir, "linked", "atocore.db-wal"), "is the database file"},
		{"in a snapshot", s.SnapshotPath(m.Stamp, "config", "project-registry.json"), "lies inside"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			backuptest.Write(t, s.InChroma("registry.json"), "{}")
			for link, target := range map[string]string{"link.json": s.InChroma("registry.json"), "dangling.json": s.InChroma("none.json"), "linked": "data"} {
				if err := os.Symlink(target, filepath.Join(s.Dir, link)); err != nil && !os.IsExist(err) {
					t.Skip(err)
				}
			}
			opts := s.Options
			opts.RegistryPath = tt.path
			opts.InitDB = func(context.Context) error { panic("something was done") }
			_, err := backup.CreateRuntimeBackup(t.Context(), opts)
			requireFaults(t, err, []string{tt.fault})
			require.ErrorContains(t, err, "the registry "+tt.path)
			_, err = backup.RestoreRuntimeBackup(t.Context(), opts, m.Stamp)
			requireFaults(t, err, []string{tt.fault})
		})
	}
}
