package backup_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// Nothing can be seen of a snapshot before it is whole.
func TestNothingIsVisibleBeforePublishing(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	s.Locker = new(backuptest.Guard)
	calls := 0
	s.OnProgress = func(p backup.Progress) {
		calls++
		list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
		require.NoError(t, err)
		require.Empty(t, list, p.Phase)
		if p.Phase == backup.PhasePublish {
			// Nothing but the two files that name the stamp is missing.
			for _, staging := range s.Staging() {
				require.FileExists(t, filepath.Join(staging, "db", "atocore.db"))
				require.NoFileExists(t, filepath.Join(staging, "backup-metadata.json"))
			}
		}
	}
	s.Create()
	require.Greater(t, calls, len(backuptest.CreatePhases))
}

// The stamp that was free when the call began may be taken when it ends.
func TestStampTakenMeanwhile(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Clock = backuptest.Noon
	inner := s.Options
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhasePublish {
			meta, err := backup.CreateRuntimeBackup(t.Context(), inner)
			require.NoError(t, err)
			require.Equal(t, "20261124T120000Z", meta.Stamp)
		}
	}
	meta := s.Create()
	require.Equal(t, "20261124T120000Z-002", meta.Stamp)
	require.Equal(t, s.SnapshotPath(meta.Stamp), meta.BackupRoot)
	require.Equal(t, s.SnapshotPath(meta.Stamp, "db", "atocore.db"), meta.DBSnapshotPath)
}

// Numbers have three digits until more are needed.
func TestThousandthStampOfASecond(t *testing.T) {
	t.Parallel()
	s := backuptest.NewBareStore(t)
	s.Clock = backuptest.Noon
	for n := 1; n < 1000; n++ {
		name := backuptest.Noon.Time.Format("20060102T150405Z")
		if n > 1 {
			name += fmt.Sprintf("-%03d", n)
		}
		require.NoError(t, os.MkdirAll(s.SnapshotPath(name), 0o700))
	}
	require.Equal(t, "20261124T120000Z-1000", s.Create().Stamp)
	require.Equal(t, "20261124T120000Z-1001", s.Create().Stamp)
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Equal(t, "20261124T120000Z-1001", list[1000].Stamp)
}

// With files beyond the number from which one syncfs is called instead of many
// fsyncs.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	for dir := range 4 {
		path := filepath.Join(s.ChromaPath, fmt.Sprint("dir-", dir))
		require.NoError(t, os.Mkdir(path, 0o755))
		for file := range 250 {
			require.NoError(t, os.WriteFile(filepath.Join(path, fmt.Sprint(file)), fmt.Appendf(nil, "%d", file), 0o644))
		}
	}
	meta := s.Create()
	require.EqualValues(t, 1009, meta.ChromaSnapshotFiles)
	require.Equal(t, backuptest.ReadTree(t, s.ChromaPath), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
}
