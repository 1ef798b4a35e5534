package restore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A restore is killed before each of the calls that change anything, one after
// the other. Whatever is left, every call reports an unfinished restore, until
// the next restore makes the store wholly old or wholly new.
func TestRestoreKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	calls := []string{"renameat2", "unlinkat", "fsync", "write", "pwrite64"}
	if *killStride == 1 {
		calls = append(calls, "renameat", "linkat", "mkdirat", "openat", "ftruncate",
			"fchmod", "utimensat", "copy_file_range", "flock", "fcntl", "close")
	}
	stamp, fresh := newTemplate(t)
	kills, unfinished := 0, 0
	outcomes := map[string]int{}
	stride := (*killStride + 3) / 4
	for call, n := 0, 1; call < len(calls); n += stride {
		s := fresh(t)
		text, _, err := tracer.run(t, calls[call], fmt.Sprintf("signal=SIGKILL:when=%d", n), s.Dir, stamp)
		if err == nil {
			require.Equal(t, "new", generationOf(t, s.Options))
			require.NoError(t, os.RemoveAll(s.Dir))
			call, n = call+1, 1-stride
			continue
		}
		require.Empty(t, text, "it failed before it was killed")
		kills++
		if isUnfinished(t, s, stamp) {
			unfinished++
		}
		outcomes[recovered(s)]++

		// Then a whole restore works.
		s.Restore(stamp)
		require.Equal(t, "new", generationOf(t, s.Options), "killed at %s number %d", calls[call], n)
		s.RequireClean()
		s.RequireNoRemains()
		require.NoError(t, os.RemoveAll(s.Dir))
	}
	if *killStride == 1 {
		require.NotZero(t, unfinished)
	}
	t.Logf("%d kills, %d of them left an unfinished restore; afterwards the store was %v", kills, unfinished, outcomes)
}

// isUnfinished reports whether the calls say that a restore is unfinished. All
// of them must agree, and list and validate must do their work all the same.
func isUnfinished(t *testing.T, s *backuptest.Store, stamp string) bool {
	t.Helper()
	ctx := context.Background()
	list, listErr := backup.ListRuntimeBackups(ctx, s.Options)
	require.NotEmpty(t, list)
	_, err := backup.ValidateBackup(ctx, s.Options, stamp)
	if listErr == nil {
		require.NoError(t, err)
		return false
	}
	require.ErrorIs(t, listErr, backup.ErrRestoreUnfinished)
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	_, err = backup.CreateRuntimeBackup(ctx, s.Options)
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	_, err = backup.PruneRuntimeBackups(ctx, s.Options, backup.Retention{KeepLast: 1})
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	return true
}

// Undoing and finishing a restore are killed as well, at each of their steps.
func TestRecoveryKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newTemplate(t)
	for _, tt := range []struct {
		name string
		cut  func(t *testing.T, s *backuptest.Store)
		want string
	}{
		{"undo of a whole swap", func(t *testing.T, s *backuptest.Store) {
			c := backuptest.Start(t, "call", s.Dir, "restore", stamp, "verify")
			require.Equal(t, "at verify", c.Hear())
			c.Kill()
		}, "old"},
		{"undo of half a swap", func(t *testing.T, s *backuptest.Store) {
			_, hit, _ := tracer.run(t, "renameat", "signal=SIGKILL:when=1", s.Dir, stamp)
			require.True(t, hit)
		}, "old"},
		{"finish", func(t *testing.T, s *backuptest.Store) {
			for n := 1; ; n++ {
				journal, _ := os.ReadFile(journalOf(s))
				if strings.HasSuffix(string(journal), "done\n") {
					return
				}
				if n > 1 {
					recovered(s)
				}
				_, hit, _ := tracer.run(t, "unlinkat", fmt.Sprintf("signal=SIGKILL:when=%d", n), s.Dir, stamp)
				require.True(t, hit)
			}
		}, "new"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := fresh(t)
			tt.cut(t, s)
			half := s.Dir
			kills := 0
			for _, call := range []string{"renameat2", "unlinkat", "fsync"} {
				for n := 1; ; n += (*killStride + 3) / 4 {
					s := copyStore(t, half)
					// The journal has absolute paths.
					data, err := os.ReadFile(journalOf(s))
					require.NoError(t, err)
					backuptest.Write(t, journalOf(s), strings.ReplaceAll(string(data), half, s.Dir))
					_, hit, _ := tracer.run(t, call, fmt.Sprintf("signal=SIGKILL:when=%d", n), s.Dir, "none")
					if !hit {
						break
					}
					kills++
					require.Equal(t, tt.want, recovered(s), "killed at %s %d", call, n)
					require.NoError(t, os.RemoveAll(s.Dir))
				}
			}
			t.Logf("%d kills", kills)
		})
	}
}

// After a restore was cut off while staging, the host creates the Chroma
// directory that did not exist before. It is the host's.
func TestChromaCreatedAfterARestoreWasCutOff(t *testing.T) {
	s, stamp := newStore(t)
	require.NoError(t, os.RemoveAll(s.ChromaPath))
	c := backuptest.Start(t, "call", s.Dir, "restore", stamp, "stage")
	require.Equal(t, "at stage", c.Hear())
	c.Kill()
	require.NoError(t, os.MkdirAll(s.ChromaPath, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "made"), []byte("x"), 0o600))
	_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, "none")
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.FileExists(t, filepath.Join(s.ChromaPath, "made"))
	s.Restore(stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// Undoing is cut off while it removes the staged files, and then the host creates
// the database that did not exist before. It is the host's.
func TestDatabaseCreatedAfterUndoWasCutOff(t *testing.T) {
	tracer := needStrace(t)
	s, stamp := newStore(t)
	for _, suffix := range []string{"", "-wal"} {
		require.NoError(t, os.Remove(s.DatabasePath+suffix))
	}
	c := backuptest.Start(t, "call", s.Dir, "restore", stamp, "verify")
	require.Equal(t, "at verify", c.Hear())
	c.Kill()
	staging, err := filepath.Glob(filepath.Join(filepath.Dir(s.DatabasePath), ".atocore-restore-*-db"))
	require.NoError(t, err)
	require.Len(t, staging, 1)
	tracer.path = staging[0]
	_, hit, _ := tracer.run(t, "unlinkat", "signal=SIGKILL:when=1", s.Dir, "none")
	require.True(t, hit)
	require.NoFileExists(t, s.DatabasePath)
	backuptest.MakeDatabase(t, s.DatabasePath)
	_, err = backup.RestoreRuntimeBackup(context.Background(), s.Options, "none")
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	backuptest.RequireSound(t, s.DatabasePath)
	s.RequireNoRemains()
}
