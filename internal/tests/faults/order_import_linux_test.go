package faults

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() { roles["import"] = roleImport }

// roleImport imports the archive args[1] into the backup directory args[0].
func roleImport(_ *backuptest.Parent, args []string) error {
	f, err := os.Open(args[1])
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = backup.ImportRuntimeBackup(context.Background(), backup.Options{BackupDir: args[0]}, f)
	return err
}

// TestOrderOfImport checks the order of the system calls of one import: everything
// is synced before the rename, and the directories on both sides of it after it.
func TestOrderOfImport(t *testing.T) {
	for _, test := range []struct {
		name   string
		files  int
		syncfs bool
	}{
		{"few files", 0, false},
		{"many files", 1000, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t, memoryDir(t), "wal").addFiles(test.files)
			meta := s.Create()
			file := filepath.Join(s.Dir, "archive.tar")
			f, err := os.Create(file)
			require.NoError(t, err)
			require.NoError(t, backup.ExportRuntimeBackup(t.Context(), s.Options, meta.Stamp, f))
			require.NoError(t, f.Close())
			s.RemoveAll(s.SnapshotPath(meta.Stamp))

			events := record(t, backuptest.Command(t, "import", s.BackupDir, file))
			require.Equal(t, []string{meta.Stamp}, s.RequireValid())

			var publish *event
			for _, e := range events {
				if strings.HasPrefix(e.name, "rename") && e.ret == 0 && strings.HasSuffix(strings.TrimSuffix(e.args, ", RENAME_NOREPLACE"), `"`+meta.Stamp+`"`) {
					publish = e
				}
			}
			require.NotNil(t, publish)
			staging := publish.places()[0]
			before, syncfs := newLedger(t, staging), 0
			for _, e := range events {
				if e.begin >= publish.begin {
					break
				}
				before.follow(e)
				if e.name == "syncfs" && e.ret == 0 {
					syncfs++
				}
			}
			require.Greater(t, len(before.paths()), test.files+15, "the record was not understood")
			for _, path := range before.paths() {
				require.True(t, before.durable(path, publish.begin), "%s is not durable before the rename", path)
			}
			require.Equal(t, test.syncfs, syncfs == 1)

			after := newLedger(t, s.BackupDir)
			for _, e := range events {
				if e.begin >= publish.begin {
					after.follow(e)
				}
			}
			require.Contains(t, after.paths(), staging)
			require.Contains(t, after.paths(), s.SnapshotPath(meta.Stamp))
			for _, path := range after.paths() {
				require.True(t, after.durable(path, events[len(events)-1].end+1), "%s is not durable in the end", path)
			}
		})
	}
}
