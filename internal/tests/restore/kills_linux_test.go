package restore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
		name       string
		call, line string // where the restore is cut off
		written    bool   // whether the store is written to afterwards
		want       string
	}{
		{"undo of a whole swap", "pwrite64", "out db", false, "old"},
		{"undo of half a swap", "renameat", "out config", false, "old"},
		{"undo of a swap that was written to", "pwrite64", "out db", true, "old"},
		{"finish of a swap that was not verified", "pwrite64", "end db", false, "new"},
		{"finish of a swap that was verified", "unlinkat", "done", false, "new"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := tracer.cutAfter(t, tt.call, tt.line, stamp, fresh)
			if tt.written {
				for _, path := range []string{s.DatabasePath, s.RegistryPath, filepath.Join(s.ChromaPath, "same")} {
					backuptest.Write(t, path, "written since")
				}
			}
			// The journal has absolute paths, so each copy has to be where the store
			// was.
			half := s.Dir + ".half"
			require.NoError(t, os.Rename(s.Dir, half))
			t.Cleanup(func() { os.RemoveAll(half) })
			kills := 0
			for _, call := range []string{"renameat2", "unlinkat", "fsync", "pwrite64"} {
				for n := 1; ; n += (*killStride + 3) / 4 {
					require.NoError(t, exec.Command("cp", "-a", half, s.Dir).Run())
					_, hit, _ := tracer.run(t, call, fmt.Sprintf("signal=SIGKILL:when=%d", n), s.Dir, "none")
					if hit {
						kills++
						require.Equal(t, tt.want, recovered(s), "killed at %s %d", call, n)
						if tt.written {
							requireSetAside(t, s)
						}
						require.NoError(t, callByName(s.Options, "prune", "")) // of what is half removed
						s.RequireClean()
						require.Len(t, s.Stamps(), map[string]int{"old": 1, "new": 2}[tt.want], "killed at %s %d: the safety snapshot", call, n)
					}
					require.NoError(t, os.RemoveAll(s.Dir))
					if !hit {
						break
					}
				}
			}
			t.Logf("%d kills", kills)
		})
	}
}

// requireSetAside checks that what was written to all parts after a restore was
// cut off is in one of the directories that were set aside, and nowhere else.
func requireSetAside(t *testing.T, s *backuptest.Store) {
	t.Helper()
	for path, name := range map[string]string{s.DatabasePath: filepath.Base(s.DatabasePath), s.RegistryPath: filepath.Base(s.RegistryPath), s.ChromaPath: "same"} {
		found, err := filepath.Glob(filepath.Join(path+".set-aside-*", name))
		require.NoError(t, err)
		require.Len(t, found, 1, path)
		data, err := os.ReadFile(found[0])
		require.NoError(t, err)
		require.Equal(t, "written since", string(data))
	}
}

// After a restore was cut off while staging, the host creates the Chroma
// directory that did not exist before. It is the host's.
func TestChromaCreatedAfterARestoreWasCutOff(t *testing.T) {
	s, stamp := newStore(t)
	require.NoError(t, os.RemoveAll(s.ChromaPath))
	cutOff(t, s, stamp, "stage")
	require.NoError(t, os.MkdirAll(s.ChromaPath, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "made"), []byte("x"), 0o600))
	_, err := recovery(s)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.FileExists(t, filepath.Join(s.ChromaPath, "made"))
	s.Restore(stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// Undoing is cut off while it removes the staged files, and then the host creates
// the database that did not exist before. It is the host's.
func TestDatabaseCreatedAfterUndoWasCutOff(t *testing.T) {
	tracer := needStrace(t)
	template, stamp := newStore(t)
	for _, suffix := range []string{"", "-wal"} {
		require.NoError(t, os.Remove(template.DatabasePath+suffix))
	}
	s := tracer.cutAfter(t, "pwrite64", "begin db", stamp, func(t *testing.T) *backuptest.Store { return copyStore(t, template.Dir) })
	require.FileExists(t, s.DatabasePath)
	tracer.path = stagingOf(t, s, "db")
	_, hit, _ := tracer.run(t, "unlinkat", "signal=SIGKILL:when=1", s.Dir, "none")
	require.True(t, hit)
	require.NoFileExists(t, s.DatabasePath)
	backuptest.MakeDatabase(t, s.DatabasePath)
	_, err := recovery(s)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	backuptest.RequireSound(t, s.DatabasePath)
	s.RequireNoRemains()
}
