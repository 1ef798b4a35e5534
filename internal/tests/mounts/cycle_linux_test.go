package mounts

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/poll"
)

// builtIn is the directory of the command that was built.
var builtIn string

var buildCommand = sync.OnceValues(func() (path string, err error) {
	if builtIn, err = os.MkdirTemp("", "mounts"); err != nil {
		return "", err
	}
	path = filepath.Join(builtIn, "atocore-backup")
	out, err := exec.Command("go", "build", "-o", path, "../../../cmd/atocore-backup").CombinedOutput()
	if err != nil {
		return string(out), err
	}
	return path, nil
})

// newStore makes a store on a file system.
func newStore(t *testing.T, on system) *backuptest.Store {
	t.Helper()
	dir := on.mount(t, func(dir string) { populate(t, dir) })
	return &backuptest.Store{T: t, Dir: dir, Options: backuptest.OptionsIn(dir)}
}

func populate(t *testing.T, dir string) {
	t.Helper()
	opts := backuptest.OptionsIn(dir)
	require.NoError(t, os.MkdirAll(opts.ChromaPath, 0o755))
	require.NoError(t, os.MkdirAll(filepath.Dir(opts.RegistryPath), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(opts.ChromaPath, "segment", "sub"), 0o755))
	backuptest.MakeDatabase(t, opts.DatabasePath, "_pragma=journal_mode(wal)")
	backuptest.MakeDatabase(t, filepath.Join(opts.ChromaPath, "chroma.sqlite3"))
	change(t, opts, "first")
}

// change makes a state of the store that is called so.
func change(t *testing.T, opts backup.Options, state string) {
	t.Helper()
	db := backuptest.OpenDB(t, opts.DatabasePath)
	for _, statement := range []string{
		"CREATE TABLE IF NOT EXISTS state(name)", "DELETE FROM state", "INSERT INTO state VALUES ('" + state + "')",
	} {
		_, err := db.Exec(statement)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
	backuptest.Write(t, opts.RegistryPath, `{"state": "`+state+`"}`)
	for _, name := range []string{"segment/data.bin", "segment/sub/data.bin", "segment/" + state} {
		backuptest.Write(t, filepath.Join(opts.ChromaPath, filepath.FromSlash(name)), state)
	}
}

// stateOf returns the state of a store, all parts of which must have the same.
func stateOf(t *testing.T, opts backup.Options) (state string) {
	t.Helper()
	db := backuptest.OpenDB(t, opts.DatabasePath)
	require.NoError(t, db.QueryRow("SELECT name FROM state").Scan(&state))
	require.NoError(t, db.Close())
	data, err := os.ReadFile(opts.RegistryPath)
	require.NoError(t, err)
	require.Equal(t, `{"state": "`+state+`"}`, string(data))
	for _, name := range []string{"segment/data.bin", "segment/sub/data.bin", "segment/" + state} {
		data, err := os.ReadFile(filepath.Join(opts.ChromaPath, filepath.FromSlash(name)))
		require.NoError(t, err)
		require.Equal(t, state, string(data))
	}
	entries, err := os.ReadDir(filepath.Join(opts.ChromaPath, "segment"))
	require.NoError(t, err)
	names := []string{}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	require.ElementsMatch(t, []string{"data.bin", "sub", state}, names)
	return state
}

// requireTidy checks that nothing is left of a restore, of staging, or of a file
// that was removed while it was open.
func requireTidy(t *testing.T, dir string) {
	t.Helper()
	var left []string
	// A FUSE server learns some moments later that a file was closed.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, poll.Until(ctx, time.Millisecond, 100*time.Millisecond, func() (bool, error) {
		left = remains(dir)
		return len(left) == 0, nil
	}), "left: %v; open: %v", &left, backuptest.OpenFiles(t))
}

func remains(dir string) (left []string) {
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		for _, part := range []string{"atocore-", "fuse_hidden", "set-aside"} {
			if err == nil && strings.Contains(entry.Name(), part) {
				left = append(left, path)
			}
		}
		return nil
	})
	return left
}

// The whole cycle of a store, on each file system: nothing is refused, nothing is
// lost and nothing is left.
func TestCycle(t *testing.T) {
	for _, on := range systems {
		t.Run(on.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, on)
			ctx := context.Background()
			first := s.Create().Stamp
			report, err := backup.ValidateBackup(ctx, s.Options, first)
			require.NoError(t, err)
			require.True(t, report.Intact)
			require.Equal(t, []string{first}, s.Stamps())

			change(t, s.Options, "first")
			drill(t, s, first)
			require.NoError(t, os.Remove(filepath.Join(s.ChromaPath, "segment", "first")))
			change(t, s.Options, "second")
			r := s.Restore(first)
			require.Equal(t, "first", stateOf(t, s.Options))
			require.Empty(t, r.SetAside)
			requireTidy(t, s.Dir)

			s.Restore(r.SafetyStamp)
			require.Equal(t, "second", stateOf(t, s.Options))
			last := s.Create().Stamp
			s.RequireValid()
			s.Restore(last)
			require.Equal(t, "second", stateOf(t, s.Options))
			pruned, err := backup.PruneRuntimeBackups(ctx, s.Options, backup.Retention{KeepLast: 1})
			require.NoError(t, err)
			require.NotEmpty(t, pruned.Removed)
			s.RequireClean()
			requireTidy(t, s.Dir)
		})
	}
}

// drill runs the command's drill with its scratch directory on the same file
// system, where it must leave nothing.
func drill(t *testing.T, s *backuptest.Store, stamp string) {
	t.Helper()
	command, err := buildCommand()
	require.NoError(t, err, command)
	scratch := filepath.Join(s.Dir, "scratch")
	require.NoError(t, os.MkdirAll(scratch, 0o700))
	cmd := exec.CommandContext(t.Context(), command, "drill", stamp, "--backup-dir", s.BackupDir, "--scratch", scratch)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "can be restored")
	left, err := os.ReadDir(scratch)
	require.NoError(t, err)
	require.Empty(t, left)
}

// A restore is undone on each file system.
func TestUndo(t *testing.T) {
	for _, on := range systems {
		t.Run(on.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, on)
			stamp := s.Create().Stamp
			require.NoError(t, os.Remove(filepath.Join(s.ChromaPath, "segment", "first")))
			change(t, s.Options, "second")
			ctx, cancel := context.WithCancel(t.Context())
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseVerify {
					cancel()
				}
			}
			_, err := backup.RestoreRuntimeBackup(ctx, s.Options, stamp)
			require.ErrorIs(t, err, context.Canceled)
			require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
			s.OnProgress = nil
			require.Equal(t, "second", stateOf(t, s.Options))
			requireTidy(t, s.Dir)
			s.Create()
		})
	}
}
