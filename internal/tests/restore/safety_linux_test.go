package restore

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A restore that does not come to its end leaves no safety snapshot: the store
// that it has is live. Else each attempt would cost a store's size, and a prune
// would protect the last attempt's instead of that of the last restore.
func TestFailedRestoresLeaveNoSafetySnapshot(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	first := s.Restore(stamp)
	require.NotEmpty(t, first.SafetyStamp)
	s.Disturb()
	for _, phase := range []backup.Phase{
		backup.PhaseValidateDatabase, backup.PhaseDatabase, backup.PhasePublish, backup.PhaseStage, backup.PhaseSwap, backup.PhaseVerify,
	} {
		for how, fail := range map[string]func(cancel func()){
			"cancelled": func(cancel func()) { cancel() },
			"panicked":  func(func()) { panic("of the host") },
		} {
			ctx, cancel := context.WithCancel(t.Context())
			opts := s.Options
			failed := false
			opts.OnProgress = func(p backup.Progress) {
				if p.Phase == phase && !failed {
					failed = true
					fail(cancel)
				}
			}
			r, err := backup.RestoreRuntimeBackup(ctx, opts, stamp)
			require.Error(t, err, "%s at %s", how, phase)
			require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.Nil(t, r)
			require.Equal(t, []string{stamp, first.SafetyStamp}, s.Stamps(), "%s at %s", how, phase)
			cancel()
		}
	}
	requireKept(t, s, first.SafetyStamp)
	requireGeneration(t, s, first.SafetyStamp, "old")
}

// requireKept prunes with the least retention, later, and checks that the safety
// snapshot is kept.
func requireKept(t *testing.T, s *backuptest.Store, safety string) {
	t.Helper()
	list, err := backup.ListRuntimeBackups(context.Background(), s.Options)
	require.NoError(t, err)
	opts := s.Options
	opts.Clock = backuptest.Clock{Time: list[len(list)-1].Metadata.CreatedAt.Add(time.Hour)}
	_, err = backup.CreateRuntimeBackup(context.Background(), opts)
	require.NoError(t, err)
	_, err = backup.PruneRuntimeBackups(context.Background(), opts, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.Contains(t, s.Stamps(), safety)
}

// The disk of the store is full: the likeliest failure of all.
func TestFullDiskLeavesNoSafetySnapshot(t *testing.T) {
	s, _ := newStore(t)
	large := filepath.Join(s.ChromaPath, "large")
	backuptest.Write(t, large, strings.Repeat("x", 1<<20))
	stamp := s.Create().Stamp
	require.NoError(t, os.RemoveAll(s.ChromaPath))
	require.NoError(t, os.Mkdir(s.ChromaPath, 0o755))
	backuptest.MountTmpfs(t, s.ChromaPath, "size=512k")
	writeGeneration(t, s.Options, "old")
	before := s.Stamps()
	for range 2 {
		_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, stamp)
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.ErrorContains(t, err, "stage:")
		require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
		require.Equal(t, before, s.Stamps())
		require.Equal(t, "old", generationOf(t, s.Options))
	}
	backuptest.Unmount(t, s.ChromaPath)
	s.Restore(stamp)
	require.FileExists(t, large)
}

// A restore is killed between publishing its safety snapshot and recording it in
// the journal. Undoing finds the safety snapshot by its metadata, and takes no
// other one for it.
func TestSafetySnapshotThatWasNotRecorded(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	first := template.Restore(stamp)
	removeParts(t, template.Options)
	writeGeneration(t, template.Options, "old")
	fresh := func(t *testing.T) *backuptest.Store { return copyStore(t, template.Dir) }
	for _, line := range []string{"{", "swapping", "out db"} {
		t.Run(line, func(t *testing.T) {
			s := tracer.cutAfter(t, "pwrite64", line, stamp, fresh)
			require.Len(t, stampsIn(t, s), 3)
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, "undone", r.Recovered)
			require.Equal(t, []string{stamp, first.SafetyStamp}, s.Stamps())
			requireKept(t, s, first.SafetyStamp)
		})
	}
}

// A restore into an empty place takes no safety snapshot, so undoing it removes
// none, also not that of another store that was restored from the same snapshot
// meanwhile.
func TestUndoInAnEmptyPlaceRemovesNoSafetySnapshot(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	empty := &backuptest.Store{T: t, Dir: t.TempDir()}
	empty.Options = optionsIn(empty.Dir)
	empty.BackupDir = s.BackupDir
	cutOff(t, empty, stamp, "stage")
	r := s.Restore(stamp)
	require.NotEmpty(t, r.SafetyStamp)

	undone, err := recovery(empty)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.Equal(t, "undone", undone.Recovered)
	require.Equal(t, []string{stamp, r.SafetyStamp}, s.Stamps())
	requireGeneration(t, s, r.SafetyStamp, "old")
}

// Undoing is killed after each call that removes something or moves it. When no
// restore is unfinished any more, its safety snapshot is gone, and that of the
// last restore is the one that a prune protects.
func TestUndoKilledLeavesNoSafetySnapshot(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	first := template.Restore(stamp)
	removeParts(t, template.Options)
	writeGeneration(t, template.Options, "old")
	s := tracer.cutAfter(t, "pwrite64", "out db", stamp, func(t *testing.T) *backuptest.Store { return copyStore(t, template.Dir) })
	half := s.Dir + ".half"
	require.NoError(t, os.Rename(s.Dir, half))
	kills := 0
	for _, call := range []string{"unlinkat", "renameat2"} {
		for n := 1; ; n++ {
			require.NoError(t, os.RemoveAll(s.Dir))
			require.NoError(t, exec.Command("cp", "-a", half, s.Dir).Run())
			_, hit, _ := tracer.run(t, call, "signal=SIGKILL:when="+strconv.Itoa(n), s.Dir, "none")
			if !hit {
				break
			}
			kills++
			if err := callByName(s.Options, "list", ""); err == nil {
				require.Equal(t, []string{stamp, first.SafetyStamp}, s.Stamps(), "killed at %s %d", call, n)
			}
			require.Equal(t, "old", recovered(s))
			require.Equal(t, []string{stamp, first.SafetyStamp}, s.Stamps(), "killed at %s %d", call, n)
		}
	}
	require.NoError(t, os.RemoveAll(half))
	t.Logf("%d kills", kills)
}
