package main

import (
	"bytes"
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

// cutRestore is a role: a restore whose process is killed as soon as all parts
// are in place, before they are compared.
func cutRestore(_ *backuptest.Parent, args []string) error {
	opts := backup.Options{DatabasePath: args[0], RegistryPath: args[1], ChromaPath: args[2], BackupDir: args[3]}
	opts.OnProgress = func(p backup.Progress) {
		if p.Phase != backup.PhaseVerify {
			return
		}
		if self, err := os.FindProcess(os.Getpid()); err == nil && self.Kill() == nil {
			select {}
		}
	}
	_, err := backup.RestoreRuntimeBackup(context.Background(), opts, args[4])
	return errors.Join(errors.New("the restore was not interrupted"), err)
}

// cut interrupts a restore of the snapshot.
func (s store) cut(t *testing.T, stamp string) {
	t.Helper()
	out, err := backuptest.Command(t, "cut", s.db, s.registry, s.chroma, s.backups, stamp).CombinedOutput()
	require.Error(t, err)
	require.Empty(t, out)
	require.FileExists(t, s.journal())
}

func (s store) journal() string { return filepath.Join(filepath.Dir(s.db), ".atocore-restore.journal") }

// left returns the entries of a directory whose names contain a word.
func left(t *testing.T, dir, word string) (paths []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries {
		if strings.Contains(entry.Name(), word) {
			paths = append(paths, filepath.Join(dir, entry.Name()))
		}
	}
	return paths
}

// interrupted returns a store over which a restore was interrupted, and the
// stamp of the snapshot.
func interrupted(t *testing.T) (s store, stamp string) {
	t.Helper()
	s = newStore(t)
	stamp = s.snapshot(t)
	s.change(t)
	s.cut(t, stamp)
	return s, stamp
}

// The command reports what became of an interrupted restore, whether its own
// restore succeeds or not.
func TestRestoreReportsARecovery(t *testing.T) {
	finished := func(stamp string) string {
		return "An earlier restore, of snapshot " + stamp + ", was interrupted; it was finished first.\n"
	}
	undone := func(stamp string) string {
		return "An earlier restore, of snapshot " + stamp + ", was interrupted; it was undone first.\n"
	}
	damage := func(t *testing.T, s store) {
		require.NoError(t, os.WriteFile(s.db, []byte(strings.Repeat("no database", 1000)), 0o600))
	}

	t.Run("and succeeds", func(t *testing.T) {
		s, stamp := interrupted(t)
		o := s.restore(t, "--yes", stamp)
		require.Equal(t, exitDone, o.code, o.stderr)
		require.True(t, strings.HasPrefix(o.stderr, finished(stamp)+"Snapshot "), o.stderr)
		require.Equal(t, "finished", decode[restored](t, o).Recovered)
		requireNotes(t, s.db, "first")
	})
	t.Run("sets aside and succeeds", func(t *testing.T) {
		s, stamp := interrupted(t)
		damage(t, s)
		o := s.restore(t, "--yes", stamp)
		require.Equal(t, exitDone, o.code, o.stderr)
		aside := left(t, filepath.Dir(s.db), ".set-aside-")
		require.Equal(t, aside, decode[restored](t, o).SetAside)
		require.Len(t, aside, 1)
		require.True(t, strings.HasPrefix(o.stderr, undone(stamp)+"Files that are in no snapshot were moved to "+aside[0]+".\n"), o.stderr)
		require.NotContains(t, o.stderr, "No safety snapshot", "one was taken")
		require.Contains(t, o.stderr, "The previous store is saved as snapshot ")
	})
	t.Run("and the snapshot is not valid", func(t *testing.T) {
		s, stamp := interrupted(t)
		s.rewrite(t, stamp, "vector_store_note", "forged")
		o := s.restore(t, "--yes", stamp)
		require.Equal(t, exitInvalid, o.code, o.stderr)
		require.Equal(t, []string{"file_changed: backup-metadata.json"}, decode[report](t, o).Errors)
		require.True(t, strings.HasPrefix(o.stderr, finished(stamp)), o.stderr)
		require.NoFileExists(t, s.journal())
		requireNotes(t, s.db, "first")
	})
	t.Run("and there is no such snapshot", func(t *testing.T) {
		s, stamp := interrupted(t)
		damage(t, s)
		s.restore(t, "absent").requireFailed(t, "interrupted", "--yes")
		require.FileExists(t, s.journal())
		s.restore(t, "absent", "--yes", "--into", t.TempDir())
		require.FileExists(t, s.journal(), "a restore elsewhere does not concern it")
		o := s.restore(t, "--yes", "absent")
		require.Equal(t, exitMissing, o.code, o.stderr)
		require.Equal(t, []string{"snapshot_directory_missing"}, decode[report](t, o).Errors)
		aside := left(t, filepath.Dir(s.db), ".set-aside-")
		require.Len(t, aside, 1)
		require.True(t, strings.HasPrefix(o.stderr, undone(stamp)+"Files that are in no snapshot were moved to "+aside[0]+".\n"), o.stderr)
		require.NoFileExists(t, s.journal())
		requireNotes(t, s.db, "first", "second")
		requireFile(t, s.registry, `{"projects": ["new"]}`)
	})
	t.Run("and fails", func(t *testing.T) {
		s, stamp := interrupted(t)
		require.NoError(t, os.WriteFile(filepath.Join(s.backups, ".atocore-restore.journal"), []byte("no pointer\n"), 0o600))
		o := s.restore(t, "--yes", stamp)
		require.Equal(t, exitFailed, o.code, o.stderr)
		require.Empty(t, o.stdout)
		require.True(t, strings.HasPrefix(o.stderr, finished(stamp)+commandName+": "), o.stderr)
		require.NoFileExists(t, s.journal())
	})
}

// A recovery that could not be completed is not reported as one.
func TestRestoreDoesNotReportARecoveryThatFailed(t *testing.T) {
	s, stamp := interrupted(t)
	// Without its last line, the journal says that the database was not yet in
	// place.
	lines, err := os.ReadFile(s.journal())
	require.NoError(t, err)
	last := bytes.LastIndexByte(lines[:len(lines)-1], '\n') + 1
	require.True(t, bytes.HasPrefix(lines[last:], []byte("end db ")), "%s", lines)
	require.NoError(t, os.Truncate(s.journal(), int64(last)))

	staging := left(t, s.chroma, ".atocore-restore-")
	require.Len(t, staging, 1)
	away := filepath.Join(t.TempDir(), "staging")
	require.NoError(t, os.Rename(staging[0], away))
	o := s.restore(t, "--yes", stamp)
	o.requireFailed(t, "a restore is unfinished", "is its volume mounted?", staging[0])
	require.NotContains(t, o.stderr, "before that")
	require.FileExists(t, s.journal())

	require.NoError(t, os.Rename(away, staging[0]))
	o = s.restore(t, "--yes", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
}
