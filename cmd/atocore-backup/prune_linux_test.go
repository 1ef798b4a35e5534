package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

// What cannot be removed is named by each prune, whose status is 2, until it is
// removed: a snapshot with an immutable file, which stays whole, and the staging
// of a process that died.
func TestPruneOfWhatCannotBeRemoved(t *testing.T) {
	for _, tt := range []struct {
		name string
		hold func(t *testing.T, s store, stamp string) (path, words string)
	}{
		{"snapshot", func(t *testing.T, s store, stamp string) (path, words string) {
			return filepath.Join(s.backups, "snapshots", stamp, backuptest.DBFile),
				"skipped: " + stamp + " (not removed: " + backuptest.DBFile + ": it has the attribute immutable (chattr -i takes that away))"
		}},
		{"staging", func(t *testing.T, s store, _ string) (path, words string) {
			staging := filepath.Join(s.backups, ".atocore-staging-00000000000000aa")
			path = filepath.Join(staging, backuptest.DBFile)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			backuptest.Write(t, path, "x")
			return path, "Not removed, and tried again by the next prune: " + staging + " (" + backuptest.DBFile + ": operation not permitted)."
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			first, _ := s.create(t)
			s.create(t)
			path, words := tt.hold(t, s, first)
			release := backuptest.SetAttribute(t, path, unix.STATX_ATTR_IMMUTABLE)
			for range 2 {
				o := atocore(t, "prune", "--backup-dir", s.backups, "--keep-last=1")
				require.Equal(t, exitFailed, o.code, o.stderr)
				require.Contains(t, o.stderr, words)
				require.FileExists(t, path)
			}
			release()
			o := atocore(t, "prune", "--backup-dir", s.backups, "--keep-last=1")
			require.Equal(t, exitDone, o.code, o.stderr)
			require.NoFileExists(t, path)
		})
	}
}
