package backup_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A hand is a backup.Clock that a test turns.
type hand struct{ now time.Time }

// Now returns where the hand is.
func (h *hand) Now() time.Time { return h.now }

// turnedIn returns a clock that goes on by d at the first report of each of the
// phases, and sets it in opts.
func turnedIn(opts *backup.Options, d time.Duration, phases ...backup.Phase) *hand {
	clock := &hand{backuptest.Noon.Time}
	last := backup.Phase("")
	opts.Clock = clock
	opts.OnProgress = func(p backup.Progress) {
		for _, phase := range phases {
			if p.Phase == phase && last != phase {
				clock.now = clock.now.Add(d)
			}
		}
		last = p.Phase
	}
	return clock
}

// A create returns and logs what it cost. The file of the metadata does not have
// it, nor do lists and reports.
func TestCostOfACreate(t *testing.T) {
	for name, tt := range map[string]struct {
		verify           bool
		phases           []backup.Phase
		duration, logged time.Duration
		guarded          time.Duration
	}{
		"nothing takes time":   {false, nil, 0, 0, 0},
		"InitDB":               {false, []backup.Phase{backup.PhaseInit}, time.Second, time.Second, 0},
		"waiting and guarded":  {false, []backup.Phase{backup.PhaseGuard, backup.PhaseDatabase, backup.PhaseChroma, backup.PhaseHash}, 4 * time.Second, 4 * time.Second, 2 * time.Second},
		"with the verdict":     {true, []backup.Phase{backup.PhasePublish, backup.PhaseValidateFiles}, 2 * time.Second, time.Second, 0},
		"not with the verdict": {false, []backup.Phase{backup.PhasePublish, backup.PhaseValidateFiles}, time.Second, time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := backuptest.NewStore(t)
			s.Verify = tt.verify
			s.Locker = new(backuptest.Guard)
			turnedIn(&s.Options, time.Second, tt.phases...)
			log := s.Record()
			meta := s.Create()

			manifest := s.Snapshot(meta.Stamp).Read(backuptest.ManifestFile)
			sum := sha256.Sum256(manifest)
			require.Equal(t, &backup.Cost{
				Duration: tt.duration, Guarded: tt.guarded,
				Files:          meta.ChromaSnapshotFiles + 2,
				Bytes:          meta.ChromaSnapshotBytes + meta.DBSizeBytes + backuptest.FileSize(t, s.RegistryPath),
				ManifestSHA256: hex.EncodeToString(sum[:]),
			}, meta.Cost)
			require.Contains(t, log.Lines()[0], "runtime_backup_created ")
			require.Contains(t, log.Lines()[0], " cost.duration="+tt.logged.String()+" cost.guarded="+tt.guarded.String()+" cost.files=")
			require.Contains(t, log.Lines()[0], " cost.manifest_sha256="+meta.Cost.ManifestSHA256)
			require.Equal(t, tt.verify, strings.Contains(strings.Join(log.Lines(), "\n"), "runtime_backup_validated stamp="+meta.Stamp+
				" valid=true intact=true cost.duration=1s cost.guarded=0s cost.files="))

			text, err := json.Marshal(meta)
			require.NoError(t, err)
			require.Contains(t, string(text), `,"cost":{"duration_ns":`)
			require.NotContains(t, string(s.Snapshot(meta.Stamp).Read(backuptest.MetadataFile)), "cost")
			require.Nil(t, entryOf(t, s.Options, meta.Stamp).Metadata.Cost)
			s.Clock, s.OnProgress = nil, nil
			require.Nil(t, s.Snapshot(meta.Stamp).Validate().Metadata.Cost)
		})
	}
}

// A clock that is set back makes no cost negative.
func TestCostWithAClockThatGoesBack(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Locker = new(backuptest.Guard)
	turnedIn(&s.Options, -time.Hour, backup.PhaseDatabase)
	cost := s.Create().Cost
	require.Zero(t, cost.Duration)
	require.Zero(t, cost.Guarded)
}

// A metadata file that has a "cost" of somebody else's is read as one with any
// other unknown field.
func TestCostInAFile(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	for _, cost := range []any{map[string]int{"files": 1}, "much", nil} {
		s.Set(map[string]any{"cost": cost})
		s.Reseal()
		report := s.Validate()
		require.True(t, report.Valid)
		require.Nil(t, report.Metadata.Cost)
		requireRoundTrip(t, *report.Metadata)
	}
	s.Set(map[string]any{"cost": "much"})
	var m backup.Metadata
	require.ErrorContains(t, json.Unmarshal(s.Read(backuptest.MetadataFile), &m), "cost")
}

func TestCostOfAValidation(t *testing.T) {
	t.Parallel()
	s := backuptest.NewSnapshot(t)
	var size int64
	for _, name := range s.Files() {
		size += int64(len(s.Read(name)))
	}
	turnedIn(&s.Options, time.Second, backup.PhaseValidateFiles)
	report, err := backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
	require.NoError(t, err)
	require.Equal(t, backup.Cost{Duration: time.Second, Files: int64(len(s.Files())), Bytes: size}, report.Cost)

	s.Flip(backuptest.DBFile, 5000)
	turnedIn(&s.Options, time.Minute, backup.PhaseValidateFiles)
	report, err = backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.Equal(t, time.Minute, report.Cost.Duration)

	report, err = backup.ValidateBackup(t.Context(), s.Options, "missing")
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.Zero(t, report.Cost)
}

func TestCostOfARestore(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	stamp := s.Create().Stamp
	db := backuptest.OpenDB(t, s.DatabasePath)
	require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 3))
	require.NoError(t, db.Close())
	s.Locker = new(backuptest.Guard)
	log := s.Record()
	// The safety snapshot is taken under the guard, the validation is not.
	turnedIn(&s.Options, time.Second, backup.PhaseStage, backup.PhaseSeal, backup.PhaseVerify, backup.PhaseGuard)
	result := s.Restore(stamp)
	require.Equal(t, backup.Cost{Duration: 4 * time.Second, Guarded: 3 * time.Second, Files: result.Files, Bytes: result.Bytes}, result.Cost)
	require.Positive(t, result.Cost.Files)
	require.Contains(t, strings.Join(log.Lines(), "\n"), "mixed=false cost.duration=4s cost.guarded=3s cost.files=")
}

// A prune counts what the removed snapshots record, also if nothing is removed yet.
func TestCostOfAPrune(t *testing.T) {
	t.Parallel()
	for _, dry := range []bool{true, false} {
		s := newSnapshotSet(t)
		s.putDays(3)
		large := s.put("20260101T000000Z", map[string]any{"created_at": "2026-01-01T00:00:00Z", "chroma_snapshot_bytes": int64(1)<<62 + 1,
			"chroma_snapshot_files": 7})
		s.put("20260102T000000Z", map[string]any{"created_at": "2026-01-02T00:00:00Z", "chroma_snapshot_bytes": int64(1) << 62})
		log := s.Record()
		s.OnProgress = nil
		clock := &hand{backuptest.Noon.Time}
		s.Clock = clock
		s.OnProgress = func(p backup.Progress) {
			if p.Files == 0 && p.Path == "" {
				clock.now = clock.now.Add(time.Second)
			}
		}
		result := s.prune(backup.Retention{KeepLast: 1, DryRun: dry})
		require.Len(t, result.Removed, 4)
		require.Contains(t, result.Removed, filepath.Base(large.Path("")))
		require.Equal(t, time.Second, result.Cost.Duration)
		require.EqualValues(t, 4+7, result.Cost.Files)
		require.EqualValues(t, int64(math.MaxInt64), result.Cost.Bytes, "what a snapshot records is not to be trusted")
		lines := log.Lines()
		require.Contains(t, lines[len(lines)-1], "runtime_backups_pruned kept=1 removed=4 skipped=0 dry_run=")
		require.Contains(t, lines[len(lines)-1], "cost.duration=1s cost.guarded=0s cost.files=11 ")
	}
}
