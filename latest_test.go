package backup_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func latestOf(t *testing.T, opts backup.Options) *backup.Latest {
	t.Helper()
	latest, err := backup.LatestRuntimeBackup(t.Context(), opts)
	require.NoError(t, err)
	return latest
}

// The latest snapshot is the newest by its metadata that a restore should take;
// the newer ones are named with the reasons.
func TestLatest(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(4)
	latest := latestOf(t, s.Options)
	require.Equal(t, &backup.Latest{Snapshot: entryOf(t, s.Options, stamps[3])}, latest)

	s.verdict(false, stamps[3])
	s.put("20260101T000000Z", map[string]any{"created_at": "2026-11-24T12:00:00.123457Z"}) // a microsecond after the clock
	s.put("20260102T000000Z", map[string]any{"created_at": "2099-01-01T00:00:00Z"})
	s.put("20260103T000000Z", map[string]any{"created_at": "2026-11-24T11:00:00Z", "safety_of": "x"})
	s.put("20260104T000000Z", map[string]any{"created_at": "2020-01-01T00:00:00Z"})
	require.NoError(t, os.Mkdir(s.SnapshotPath("notes"), 0o700))
	latest = latestOf(t, s.Options)
	require.NoError(t, os.Remove(s.SnapshotPath("notes")))
	require.Equal(t, stamps[2], latest.Snapshot.Stamp)
	skipped := []backup.SkippedSnapshot{
		{Stamp: "20260102T000000Z", Reason: "dated in the future"},
		{Stamp: "20260101T000000Z", Reason: "dated in the future"},
		{Stamp: "20260103T000000Z", Reason: "safety snapshot of a restore"},
		{Stamp: stamps[3], Reason: "not valid when it was last checked"},
		{Stamp: "notes", Reason: "no metadata"},
	}
	require.Equal(t, skipped, latest.Skipped)

	// One that was found valid, or was never checked, is as good as the other.
	s.verdict(true, stamps[2])
	require.Equal(t, stamps[2], latestOf(t, s.Options).Snapshot.Stamp)

	// If none qualifies, that is an error, which has the reasons.
	for _, stamp := range append(stamps[:3], "20260104T000000Z") {
		require.NoError(t, os.RemoveAll(s.SnapshotPath(stamp)))
	}
	_, err := backup.LatestRuntimeBackup(t.Context(), s.Options)
	require.ErrorIs(t, err, fs.ErrNotExist)
	for _, p := range skipped[:4] {
		require.ErrorContains(t, err, fmt.Sprintf("%s (%s)", p.Stamp, p.Reason))
	}
	for i := range 20 {
		s.put(fmt.Sprintf("2026010%dT%02d0000Z", i%10, i), map[string]any{"created_at": "2099-01-01T00:00:00Z"})
	}
	_, err = backup.LatestRuntimeBackup(t.Context(), s.Options)
	require.ErrorContains(t, err, "and 14 more")
	require.Equal(t, 10, strings.Count(err.Error(), "(dated in the future)"))
}

func TestLatestErrors(t *testing.T) {
	s := newSnapshotSet(t)
	_, err := backup.LatestRuntimeBackup(t.Context(), s.Options)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoDirExists(t, s.BackupDir)
	_, err = backup.LatestRuntimeBackup(t.Context(), backup.Options{})
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	stamps := s.putDays(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = backup.LatestRuntimeBackup(ctx, s.Options)
	require.ErrorIs(t, err, context.Canceled)
	opts := s.Options
	opts.Clock = backuptest.ClockFunc(func() time.Time { panic(errHandler) })
	_, err = backup.LatestRuntimeBackup(t.Context(), opts)
	require.ErrorIs(t, err, backup.ErrPanic)

	// Beside an unfinished restore there is an answer, too: whoever wants to
	// finish it by restoring the latest needs it.
	journal := filepath.Join(filepath.Dir(s.DatabasePath), ".atocore-restore.journal")
	backuptest.Write(t, journal, "no journal\n")
	latest, err := backup.LatestRuntimeBackup(t.Context(), s.Options)
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	require.Equal(t, stamps[0], latest.Snapshot.Stamp)
	require.NoError(t, os.Remove(journal))
}

// If the store has a Chroma directory and the newest snapshot has none, the
// newest that has one is named.
func TestLatestWithChroma(t *testing.T) {
	s := backuptest.NewStore(t)
	create := func(chroma bool, age time.Duration) string {
		t.Helper()
		opts := s.Options
		opts.IncludeChroma, opts.Clock = chroma, backuptest.Clock{Time: backuptest.Noon.Time.Add(-age)}
		meta, err := backup.CreateRuntimeBackup(t.Context(), opts)
		require.NoError(t, err)
		return meta.Stamp
	}
	s.Clock = backuptest.Noon
	create(false, 5*time.Hour)
	require.Empty(t, latestOf(t, s.Options).WithChroma, "none has one")
	create(true, 4*time.Hour)
	with := create(true, 3*time.Hour)
	create(false, 2*time.Hour)
	without := create(false, time.Hour)
	latest := latestOf(t, s.Options)
	require.Equal(t, without, latest.Snapshot.Stamp)
	require.Equal(t, with, latest.WithChroma)
	require.Empty(t, latest.Skipped)

	opts := s.Options
	opts.ChromaPath = ""
	require.Empty(t, latestOf(t, opts).WithChroma, "nobody wants one")

	// One that is passed over is not named either.
	ahead := create(true, -time.Hour)
	latest = latestOf(t, s.Options)
	require.Equal(t, with, latest.WithChroma)
	require.Len(t, latest.Skipped, 1)
	s.Clock = backuptest.Clock{Time: backuptest.Noon.Time.Add(2 * time.Hour)}
	latest = latestOf(t, s.Options)
	require.Equal(t, ahead, latest.Snapshot.Stamp)
	require.Empty(t, latest.WithChroma)
}
