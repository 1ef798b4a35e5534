package backup_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// Nothing can be seen of a snapshot before it is whole.
func TestNothingIsVisibleBeforePublishing(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.Locker = new(guard)
	calls := 0
	s.OnProgress = func(p backup.Progress) {
		calls++
		list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
		require.NoError(t, err)
		require.Empty(t, list, p.Phase)
		if p.Phase == backup.PhasePublish {
			// Nothing but the two files that name the stamp is missing.
			for _, staging := range stagings(t, s) {
				require.FileExists(t, filepath.Join(staging, "db", "atocore.db"))
				require.NoFileExists(t, filepath.Join(staging, "backup-metadata.json"))
			}
		}
	}
	s.create()
	require.Greater(t, calls, len(phases))
}

// The stamp that was free when the call began may be taken when it ends.
func TestStampTakenMeanwhile(t *testing.T) {
	s := newStore(t)
	s.Clock = noon
	inner := s.Options
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhasePublish {
			meta, err := createWith(t, inner)
			require.NoError(t, err)
			require.Equal(t, "20261124T120000Z", meta.Stamp)
		}
	}
	meta := s.create()
	require.Equal(t, "20261124T120000Z-002", meta.Stamp)
	require.Equal(t, s.snapshot(meta.Stamp), meta.BackupRoot)
	require.Equal(t, s.snapshot(meta.Stamp, "db", "atocore.db"), meta.DBSnapshotPath)
}

// Numbers have three digits until more are needed.
func TestThousandthStampOfASecond(t *testing.T) {
	t.Parallel()
	s := newBareStore(t)
	s.Clock = noon
	for n := 1; n < 1000; n++ {
		name := noon.now.Format("20060102T150405Z")
		if n > 1 {
			name += fmt.Sprintf("-%03d", n)
		}
		require.NoError(t, os.MkdirAll(s.snapshot(name), 0o700))
	}
	require.Equal(t, "20261124T120000Z-1000", s.create().Stamp)
	require.Equal(t, "20261124T120000Z-1001", s.create().Stamp)
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Equal(t, "20261124T120000Z-1001", list[1000].Stamp)
}

// With files beyond the number from which one syncfs is called instead of many
// fsyncs.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	for dir := range 4 {
		path := filepath.Join(s.ChromaPath, fmt.Sprint("dir-", dir))
		require.NoError(t, os.Mkdir(path, 0o755))
		for file := range 250 {
			require.NoError(t, os.WriteFile(filepath.Join(path, fmt.Sprint(file)), fmt.Appendf(nil, "%d", file), 0o644))
		}
	}
	meta := s.create()
	require.EqualValues(t, 1009, meta.ChromaSnapshotFiles)
	require.Equal(t, readTree(t, s.ChromaPath), readTree(t, meta.ChromaSnapshotPath))
}
