package main

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// After a second of waiting the command says so, once for the backup directory
// and once for the database.
func TestWaitIsAnnouncedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
		require.NoError(t, err)
		defer stderr.Close()
		said := func() string {
			text, err := os.ReadFile(stderr.Name())
			require.NoError(t, err)
			return string(text)
		}
		s := newSession(t.Context(), func() {}, os.Stdin, os.Stdout, stderr)
		opts := backup.Options{BackupDir: "/backups"}
		shown := 0
		opts.OnProgress = func(backup.Progress) { shown++ }
		s.announceWait(&opts)
		wait := backup.Progress{Phase: backup.PhaseWait, Path: "/data/a\nb.db"}
		opts.OnProgress(wait)
		time.Sleep(999 * time.Millisecond)
		opts.OnProgress(wait)
		require.Empty(t, said())
		time.Sleep(time.Millisecond)
		opts.OnProgress(backup.Progress{Phase: backup.PhaseInit})
		require.Empty(t, said())
		for range 3 {
			opts.OnProgress(wait)
			time.Sleep(time.Hour)
		}
		require.Equal(t, "Waiting for the database /data/a; b.db, which somebody keeps from being read.\n", said())
		require.Equal(t, 6, shown)
		require.NoError(t, os.Truncate(stderr.Name(), 0))
		_, err = stderr.Seek(0, 0)
		require.NoError(t, err)
		for range 4 {
			opts.OnProgress(backup.Progress{Phase: backup.PhaseWait, Path: "/backups"})
			time.Sleep(time.Second)
		}
		require.Equal(t, "Waiting for the backup directory /backups, which another call is using.\n", said())
	})
}

// Without progress reports of its own, the command hears of the wait all the same.
func TestWaitIsAnnouncedWithoutAMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSession(t.Context(), func() {}, os.Stdin, os.Stdout, os.NewFile(^uintptr(0), "closed"))
		var opts backup.Options
		s.announceWait(&opts)
		opts.OnProgress(backup.Progress{Phase: backup.PhaseWait})
	})
}

// Create gives up after --wait, and says what it has waited for.
func TestCreateGivesUpWaiting(t *testing.T) {
	s := newStore(t)
	_, err := s.live.Exec("PRAGMA journal_mode=delete; BEGIN EXCLUSIVE")
	require.NoError(t, err)
	atocore(t, append([]string{"create", "--wait", "50ms"}, s.flags()...)...).
		requireFailed(t, s.db, "the database is in use", "50ms")
	s.requireNoSnapshot(t)
	atocore(t, append([]string{"create", "--wait=-1s"}, s.flags()...)...).
		requireFailed(t, "--wait is negative")
}
