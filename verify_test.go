package backup_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// entryOf returns the snapshot as a list has it.
func entryOf(t *testing.T, opts backup.Options, stamp string) backup.Snapshot {
	t.Helper()
	list, err := backup.ListRuntimeBackups(t.Context(), opts)
	require.NoError(t, err)
	for _, snapshot := range list {
		if snapshot.Stamp == stamp {
			return snapshot
		}
	}
	require.Fail(t, "it is not in the list", stamp)
	return backup.Snapshot{}
}

// A create with Verify validates what it made and records the verdict.
func TestCreateVerifies(t *testing.T) {
	s := backuptest.NewBareStore(t)
	s.Clock = backuptest.Noon
	s.Verify = true
	phases := make(map[backup.Phase]bool)
	s.OnProgress = func(p backup.Progress) { phases[p.Phase] = true }
	meta := s.Create()
	require.True(t, phases[backup.PhaseValidateFiles])
	require.True(t, phases[backup.PhaseValidateDatabase])
	entry := entryOf(t, s.Options, meta.Stamp)
	require.True(t, *entry.Verified)
	require.Equal(t, backuptest.Noon.Time, entry.VerifiedAt)
	require.Empty(t, entry.Note)

	clear(phases)
	s.Verify, s.Note = false, "before the upgrade"
	meta = s.Create()
	require.False(t, phases[backup.PhaseValidateFiles], "it was validated without being asked to")
	entry = entryOf(t, s.Options, meta.Stamp)
	require.Nil(t, entry.Verified)
	require.Zero(t, entry.VerifiedAt)
	require.Equal(t, "before the upgrade", entry.Note)

	s.Verify = true
	entry = entryOf(t, s.Options, s.Create().Stamp)
	require.True(t, *entry.Verified)
	require.Equal(t, "before the upgrade", entry.Note)
}

// If the store has findings, the snapshot stays. Metadata and error come
// together, the report by errors.As, and the verdict is recorded.
func TestCreateVerifiesABrokenStore(t *testing.T) {
	for name, broken := range brokenStores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := backuptest.NewSmallStore(t)
			broken.do(s)
			s.Verify = true
			meta, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
			require.NotNil(t, meta)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.True(t, strings.HasPrefix(err.Error(), "create backup: "), err)
			var invalid *backup.InvalidBackupError
			require.ErrorAs(t, err, &invalid)
			require.True(t, invalid.Report.Intact)
			require.False(t, invalid.Report.Valid)
			recorded := *meta
			recorded.Cost = nil
			require.Equal(t, &recorded, invalid.Report.Metadata)
			require.Equal(t, broken.findings, backuptest.Brief(invalid.Report.Problems))
			require.Equal(t, []string{meta.Stamp}, s.Stamps())
			entry := entryOf(t, s.Options, meta.Stamp)
			require.False(t, *entry.Verified)
			require.False(t, entry.VerifiedAt.IsZero())
		})
	}
}

// What fails after the snapshot is published comes together with its metadata,
// because it is there.
func TestCreateFailsToVerify(t *testing.T) {
	s := backuptest.NewBareStore(t)
	s.Verify = true
	validating := func(p backup.Progress) bool { return p.Phase == backup.PhaseValidateFiles }
	for name, tt := range map[string]struct {
		at   func(cancel func(), p backup.Progress)
		want error
	}{
		"cancelled": {func(cancel func(), p backup.Progress) {
			if validating(p) {
				cancel()
			}
		}, context.Canceled},
		"panic": {func(_ func(), p backup.Progress) {
			if validating(p) {
				panic(errHandler)
			}
		}, backup.ErrPanic},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opts := s.Options
			opts.OnProgress = func(p backup.Progress) { tt.at(cancel, p) }
			meta, err := backup.CreateRuntimeBackup(ctx, opts)
			require.ErrorIs(t, err, tt.want)
			require.False(t, errors.Is(err, backup.ErrInvalidBackup))
			require.NotNil(t, meta)
			require.Nil(t, entryOf(t, s.Options, meta.Stamp).Verified)
			require.NoError(t, os.RemoveAll(s.SnapshotPath(meta.Stamp)))
		})
	}
	_, err := os.Stat(filepath.Join(s.BackupDir, "records"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// A create that fails records nothing, and a note that is too long is refused
// before anything is done.
func TestCreateWithoutSnapshotRecordsNothing(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Verify, s.Note = true, "note"
	s.InitDB = func(context.Context) error { return errHandler }
	require.ErrorIs(t, s.CreateFails(), errHandler)
	s.InitDB = nil
	s.Note = strings.Repeat("n", 4097)
	require.ErrorIs(t, s.CreateFails(), backup.ErrInvalidOptions)
	s.Note, s.Host = "", strings.Repeat("h", 256)
	require.ErrorIs(t, s.CreateFails(), backup.ErrInvalidOptions)
	require.NoDirExists(t, filepath.Join(s.BackupDir, "records"))
}

// A snapshot is validated with Verify only after the guard was released: nobody
// needs to stand still for that.
func TestCreateVerifiesWithoutTheGuard(t *testing.T) {
	s := backuptest.NewBareStore(t)
	guard := new(backuptest.Guard)
	s.Locker, s.Verify = guard, true
	validated := false
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseValidateFiles || p.Phase == backup.PhaseValidateDatabase {
			validated = true
			require.False(t, guard.Held)
		}
	}
	s.Create()
	require.True(t, validated)
	guard.RequireReleased(t)
}
