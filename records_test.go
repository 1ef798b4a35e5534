package backup_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// recordPath returns the path of the record of a snapshot.
func recordPath(opts backup.Options, stamp string) string {
	return filepath.Join(opts.BackupDir, "records", stamp+".json")
}

// A validation records its verdict if it is asked to, and otherwise changes
// nothing.
func TestValidateRecordsItsVerdict(t *testing.T) {
	s := backuptest.NewBareStore(t)
	s.Clock = backuptest.Noon
	snapshot := s.CreateSnapshot()
	snapshot.RequireProblems() // which checks that nothing changes
	require.NoDirExists(t, filepath.Join(s.BackupDir, "records"))
	require.Nil(t, entryOf(t, s.Options, snapshot.Stamp).Verified)

	opts := s.Options
	opts.RecordVerdicts = true
	before := backuptest.ReadTree(t, s.SnapshotPath(snapshot.Stamp))
	_, err := backup.ValidateBackup(t.Context(), opts, snapshot.Stamp)
	require.NoError(t, err)
	entry := entryOf(t, s.Options, snapshot.Stamp)
	require.True(t, *entry.Verified)
	require.Equal(t, backuptest.Noon.Time, entry.VerifiedAt)
	require.Equal(t, before, backuptest.ReadTree(t, s.SnapshotPath(snapshot.Stamp)), "a snapshot never changes")

	// Damage is recorded in its place, with what was found.
	good := snapshot.Read(backuptest.RegistryFile)
	snapshot.Write(backuptest.RegistryFile, []byte("{}"))
	later := backuptest.Clock{Time: backuptest.Noon.Time.Add(time.Hour)}
	opts.Clock = later
	_, err = backup.ValidateBackup(t.Context(), opts, snapshot.Stamp)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	entry = entryOf(t, s.Options, snapshot.Stamp)
	require.False(t, *entry.Verified)
	require.Equal(t, later.Time, entry.VerifiedAt)
	data, err := os.ReadFile(recordPath(s.Options, snapshot.Stamp))
	require.NoError(t, err)
	var record map[string]any
	require.NoError(t, json.Unmarshal(data, &record))
	require.Equal(t, []any{"file_changed: " + backuptest.RegistryFile}, record["findings"])
	require.Equal(t, false, record["intact"])

	// And the other way round.
	snapshot.Write(backuptest.RegistryFile, good)
	_, err = backup.ValidateBackup(t.Context(), opts, snapshot.Stamp)
	require.NoError(t, err)
	require.True(t, *entryOf(t, s.Options, snapshot.Stamp).Verified)

	// What does not exist has no record.
	for _, stamp := range []string{"20000101T000000Z", "../x", ""} {
		_, err = backup.ValidateBackup(t.Context(), opts, stamp)
		require.ErrorIs(t, err, backup.ErrInvalidBackup)
	}
	entries, err := os.ReadDir(filepath.Join(s.BackupDir, "records"))
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

// A restore, and so a drill, validates the snapshot and records the verdict if it
// is asked to.
func TestRestoreRecordsItsVerdict(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	good, broken := s.CreateSnapshot(), s.CreateSnapshot()
	broken.LoseIndexEntries(1)
	broken.Reseal()
	place := s.Options
	place.DatabasePath = filepath.Join(s.Dir, "place", "a.db")
	place.RegistryPath = filepath.Join(s.Dir, "place", "r.json")
	place.ChromaPath = filepath.Join(s.Dir, "place", "chroma")
	restore := func(stamp string) error {
		_, err := backup.RestoreRuntimeBackup(t.Context(), place, stamp)
		return err
	}
	require.NoError(t, restore(good.Stamp))
	require.Nil(t, entryOf(t, s.Options, good.Stamp).Verified, "nobody asked for it")
	require.NoError(t, os.RemoveAll(filepath.Join(s.Dir, "place")))

	place.RecordVerdicts = true
	require.NoError(t, restore(good.Stamp))
	require.True(t, *entryOf(t, s.Options, good.Stamp).Verified)
	require.NoError(t, os.RemoveAll(filepath.Join(s.Dir, "place")))
	require.ErrorIs(t, restore(broken.Stamp), backup.ErrInvalidBackup)
	require.False(t, *entryOf(t, s.Options, broken.Stamp).Verified)
	place.DespiteFindings = true
	require.NoError(t, restore(broken.Stamp))
	require.False(t, *entryOf(t, s.Options, broken.Stamp).Verified)
	require.ErrorIs(t, restore("20000101T000000Z"), backup.ErrInvalidBackup)
	require.NoFileExists(t, recordPath(s.Options, "20000101T000000Z"))
}

// A verdict counts for the snapshot that it is about, and for no other one that
// got its name.
func TestVerdictOfAnotherSnapshot(t *testing.T) {
	s := backuptest.NewBareStore(t)
	s.Verify = true
	first, second := s.Create().Stamp, s.Create().Stamp
	swap := s.SnapshotPath("swap")
	require.NoError(t, os.Rename(s.SnapshotPath(first), swap))
	require.NoError(t, os.Rename(s.SnapshotPath(second), s.SnapshotPath(first)))
	require.Nil(t, entryOf(t, s.Options, first).Verified)
	require.Nil(t, entryOf(t, s.Options, "swap").Verified)
	require.NoError(t, os.Rename(s.SnapshotPath(first), s.SnapshotPath(second)))
	require.NoError(t, os.Rename(swap, s.SnapshotPath(first)))
	require.True(t, *entryOf(t, s.Options, first).Verified)
	require.True(t, *entryOf(t, s.Options, second).Verified)
}

// A record that is lost or damaged, or cannot be written, costs nothing else.
func TestRecordsAreNotRequired(t *testing.T) {
	s := backuptest.NewBareStore(t)
	s.Verify, s.Note = true, "note"
	stamp := s.Create().Stamp
	records := filepath.Join(s.BackupDir, "records")
	log := s.Record()
	check := func(name string, recorded bool) {
		t.Helper()
		log.Clear()
		entry := entryOf(t, s.Options, stamp)
		if recorded {
			require.True(t, *entry.Verified, name)
			require.Equal(t, "note", entry.Note, name)
		} else {
			require.Nil(t, entry.Verified, name)
			require.Empty(t, entry.Note, name)
		}
		opts := s.Options
		opts.RecordVerdicts = true
		_, err := backup.ValidateBackup(t.Context(), opts, stamp)
		require.NoError(t, err, name)
		made, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
		require.NoError(t, err, name)
		require.NoError(t, os.RemoveAll(s.SnapshotPath(made.Stamp)))
	}
	check("whole", true)
	require.NotContains(t, strings.Join(log.Lines(), "\n"), "not_recorded")
	require.NoError(t, os.WriteFile(recordPath(s.Options, stamp), []byte("{"), 0o600))
	check("damaged", false)
	require.NoError(t, os.RemoveAll(records))
	check("lost", false)
	require.NoError(t, os.RemoveAll(records))
	backuptest.Write(t, records, "a file")
	check("a file in the place of the directory", false)
	require.Contains(t, strings.Join(log.Lines(), "\n"), "verdict_not_recorded stamp="+stamp)
	require.Contains(t, strings.Join(log.Lines(), "\n"), "note_not_recorded")
	_, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.Error(t, backup.ProtectRuntimeBackup(t.Context(), s.Options, stamp, true), "that is what is asked for")
	require.NoError(t, os.Remove(records))

	if runtime.GOOS == "windows" || os.Geteuid() == 0 {
		return
	}
	require.NoError(t, os.Chmod(s.BackupDir, 0o500))
	defer func() { require.NoError(t, os.Chmod(s.BackupDir, 0o700)) }()
	opts := s.Options
	opts.RecordVerdicts = true
	_, err = backup.ValidateBackup(t.Context(), opts, stamp)
	require.NoError(t, err)
}

// A prune removes the record together with its snapshot, and those of snapshots
// that somebody else removed.
func TestPruneRemovesRecords(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(4)
	for _, stamp := range stamps {
		require.NoError(t, backup.ProtectRuntimeBackup(t.Context(), s.Options, stamp, true))
		require.NoError(t, backup.ProtectRuntimeBackup(t.Context(), s.Options, stamp, false))
		require.FileExists(t, recordPath(s.Options, stamp))
	}
	require.NoError(t, os.RemoveAll(s.SnapshotPath(stamps[0])))
	draft := filepath.Join(s.BackupDir, "records", ".atocore-staging-0123456789abcdef")
	backuptest.Write(t, draft, "{")

	s.prune(backup.Retention{KeepLast: 2, DryRun: true})
	require.FileExists(t, recordPath(s.Options, stamps[0]), "a dry run removes nothing")
	require.Equal(t, []string{stamps[1]}, s.prune(backup.Retention{KeepLast: 2}).Removed)
	for i, stamp := range stamps {
		_, err := os.Stat(recordPath(s.Options, stamp))
		require.Equal(t, i < 2, os.IsNotExist(err), stamp)
	}
	require.NoFileExists(t, draft)
	require.NoError(t, os.RemoveAll(s.SnapshotPath(stamps[2])))
	require.Empty(t, s.prune(backup.Retention{KeepLast: 2}).Removed)
	require.NoFileExists(t, recordPath(s.Options, stamps[2]), "nothing was to be removed, and it is cleared all the same")
}

// A protected snapshot is never removed, until its protection is ended.
func TestPruneKeepsProtected(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(4)
	before := backuptest.ReadTree(t, s.SnapshotPath(stamps[0]))
	require.NoError(t, backup.ProtectRuntimeBackup(t.Context(), s.Options, stamps[0], true))
	require.Equal(t, before, backuptest.ReadTree(t, s.SnapshotPath(stamps[0])))
	require.True(t, entryOf(t, s.Options, stamps[0]).Protected)
	result := s.prune(backup.Retention{KeepLast: 1})
	require.Equal(t, []string{stamps[2], stamps[1]}, result.Removed)
	require.Equal(t, []string{"protected"}, result.Kept[1].Reasons)

	require.NoError(t, backup.ProtectRuntimeBackup(t.Context(), s.Options, stamps[0], false))
	require.False(t, entryOf(t, s.Options, stamps[0]).Protected)
	require.Equal(t, []string{stamps[0]}, s.prune(backup.Retention{KeepLast: 1}).Removed)

	for _, stamp := range []string{stamps[0], "", "..", "a/b"} {
		require.ErrorIs(t, backup.ProtectRuntimeBackup(t.Context(), s.Options, stamp, true), os.ErrNotExist, stamp)
	}
	require.ErrorIs(t, backup.ProtectRuntimeBackup(t.Context(), backup.Options{}, stamps[3], true), backup.ErrInvalidOptions)
	missing := backup.Options{BackupDir: filepath.Join(s.Dir, "missing")}
	require.ErrorIs(t, backup.ProtectRuntimeBackup(t.Context(), missing, stamps[3], true), os.ErrNotExist)
	require.NoDirExists(t, missing.BackupDir)
}

// verdict records what a validation would say about snapshots.
func (s *snapshotSet) verdict(valid bool, stamps ...string) {
	s.T.Helper()
	for _, stamp := range stamps {
		snapshot := s.Snapshot(stamp)
		snapshot.Reseal()
		if !valid {
			snapshot.Add("notes", nil)
		}
		opts := s.Options
		opts.RecordVerdicts = true
		_, err := backup.ValidateBackup(s.T.Context(), opts, stamp)
		require.Equal(s.T, valid, err == nil, "%v", err)
		snapshot.Remove("notes")
	}
}

// The newest snapshot of which the last verdict is valid is always kept: those
// after it may all be of a store that was broken already. A prune says which of
// those that it removes were never checked.
func TestPruneKeepsTheNewestValid(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(6)
	s.verdict(true, stamps[0], stamps[1])
	s.verdict(false, stamps[3], stamps[5])
	for _, dry := range []bool{true, false} {
		result := s.prune(backup.Retention{KeepLast: 1, DryRun: dry})
		require.Equal(t, []string{stamps[4], stamps[3], stamps[2], stamps[0]}, result.Removed)
		require.Equal(t, []string{stamps[4], stamps[2]}, result.NeverVerified)
		require.Equal(t, stamps[5], result.Kept[0].Stamp)
		require.Equal(t, stamps[1], result.Kept[1].Stamp)
		require.Equal(t, []string{"newest snapshot that was found valid"}, result.Kept[1].Reasons)
	}

	// A verdict that is not about the snapshot any more protects nothing, and
	// neither does a valid snapshot that is dated in the future, or a safety
	// snapshot, in the place of an ordinary one.
	s.put("20260101T000000Z", map[string]any{"created_at": "2026-01-01T00:00:00Z"})
	s.verdict(true, "20260101T000000Z")
	s.put("20990101T000000Z", map[string]any{"created_at": "2099-01-01T00:00:00Z"})
	s.put("20260102T000000Z", map[string]any{"created_at": "2026-11-23T00:00:00Z", "safety_of": "x"})
	s.verdict(true, "20990101T000000Z", "20260102T000000Z")
	require.Empty(t, s.prune(backup.Retention{KeepLast: 3}).Removed)
	snapshot := s.Snapshot(stamps[1])
	snapshot.Write(backuptest.ManifestFile, append(snapshot.Read(backuptest.ManifestFile), '\n'))
	result := s.prune(backup.Retention{KeepLast: 1})
	require.Equal(t, []string{stamps[1]}, result.Removed)
	require.Equal(t, []string{stamps[1]}, result.NeverVerified)
	require.Contains(t, s.Stamps(), "20260101T000000Z")
}
