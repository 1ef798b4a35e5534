//go:build linux || darwin

package backup_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() {
	roles["hold"] = roleHold
	roles["drill"] = roleDrill
}

// roleHold validates the snapshot args[1] of the backup directory args[0]. During
// that it says so and waits for a line. In the end it says whether the snapshot is
// valid.
func roleHold(p *backuptest.Parent, args []string) error {
	held := false
	_, err := backup.ValidateBackup(context.Background(), backup.Options{
		BackupDir: args[0],
		OnProgress: func(backup.Progress) {
			if !held {
				held = true
				p.Say("holding")
				p.Hear()
			}
		},
	}, args[1])
	if errors.Is(err, backup.ErrInvalidBackup) {
		p.Say(err.Error())
		return nil
	}
	p.Say("valid")
	return err
}

// A snapshot that is being validated is not removed, but the next time it is.
func TestPruneSkipsASnapshotInUse(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(4)
	inUse := stamps[1]
	one := backuptest.Start(t, "hold", s.BackupDir, inUse)
	two := backuptest.Start(t, "hold", s.BackupDir, inUse)
	require.Equal(t, "holding", one.Hear())
	require.Equal(t, "holding", two.Hear())

	result := s.prune(backup.Retention{KeepLast: 1})
	require.Equal(t, []string{stamps[2], stamps[0]}, result.Removed)
	require.Equal(t, []backup.SkippedSnapshot{{inUse, "in use"}}, result.Skipped)
	require.Equal(t, "valid", one.Ask("go on"))
	one.Wait()
	require.Equal(t, []backup.SkippedSnapshot{{inUse, "in use"}}, s.prune(backup.Retention{KeepLast: 1}).Skipped)
	two.Kill() // its lock ends with the process

	require.Equal(t, []string{inUse}, s.prune(backup.Retention{KeepLast: 1}).Removed)
	require.Equal(t, stamps[3:], s.Stamps())
}

// roleDrill restores the snapshot args[2] of the backup directory args[1] into the
// directory args[0]. When it begins to copy, it says so and waits for a line. In
// the end it says what was restored.
func roleDrill(p *backuptest.Parent, args []string) error {
	opts := backuptest.OptionsIn(args[0])
	opts.BackupDir = args[1]
	held := false
	opts.OnProgress = func(at backup.Progress) {
		if at.Phase == backup.PhaseStage && !held {
			held = true
			p.Say("holding")
			p.Hear()
		}
	}
	result, err := backup.RestoreRuntimeBackup(context.Background(), opts, args[2])
	if err == nil {
		p.Say(result.Stamp)
	}
	return err
}

// A snapshot that is being restored elsewhere is not removed either.
func TestPruneSkipsASnapshotInADrill(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(3)
	drill := backuptest.Start(t, "drill", t.TempDir(), s.BackupDir, stamps[0])
	require.Equal(t, "holding", drill.Hear())
	result := s.prune(backup.Retention{KeepLast: 1})
	require.Equal(t, []string{stamps[1]}, result.Removed)
	require.Equal(t, []backup.SkippedSnapshot{{stamps[0], "in use"}}, result.Skipped)
	require.Equal(t, stamps[0], drill.Ask("go on"))
	drill.Wait()
	require.Equal(t, stamps[:1], s.prune(backup.Retention{KeepLast: 1}).Removed)
}

// Nothing is removed while a restore has locked the backup directory.
func TestPruneRefusesBesideARestore(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(2)
	dir, err := os.Open(s.BackupDir)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	for _, dry := range []bool{false, true} {
		_, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1, DryRun: dry})
		require.ErrorIs(t, err, backup.ErrBusy)
		require.NotErrorIs(t, err, backup.ErrRestoreUnfinished, "nothing is unfinished")
	}
	require.Equal(t, stamps, s.Stamps())
	require.NoError(t, syscall.Flock(int(dir.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), "a create or a prune")
	require.Equal(t, stamps[:1], s.prune(backup.Retention{KeepLast: 1}).Removed)
}

// The staging of a dead process is removed, that of a live one is left alone.
func TestPruneClearsStaging(t *testing.T) {
	s := newSnapshotSet(t)
	s.putDays(1)
	live := filepath.Join(s.BackupDir, ".atocore-staging-00000000000000aa")
	dead := filepath.Join(s.BackupDir, ".atocore-staging-00000000000000bb")
	for _, dir := range []string{live, dead} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "db"), 0o700))
		backuptest.Write(t, filepath.Join(dir, "db", "file"), "x")
	}
	lock, err := os.Open(live)
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))

	s.prune(backup.Retention{KeepLast: 1, DryRun: true})
	require.Equal(t, []string{live, dead}, s.Staging())
	s.prune(backup.Retention{KeepLast: 1})
	require.Equal(t, []string{live}, s.Staging())
	require.FileExists(t, filepath.Join(live, "db", "file"))
	require.NoError(t, lock.Close())
	s.prune(backup.Retention{KeepLast: 1})
	require.Empty(t, s.Staging())
}
