//go:build linux || darwin

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// A drill removes what killed drills have left, and nothing else.
func TestDrillRemovesWhatKilledOnesLeft(t *testing.T) {
	s := newStore(t)
	s.snapshot(t)
	scratch := t.TempDir()
	make := func(name string) string {
		path := filepath.Join(scratch, name)
		require.NoError(t, os.MkdirAll(filepath.Join(path, "data", "chroma"), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(path, "data", "atocore.db"), []byte("data"), 0o600))
		require.NoError(t, os.Chmod(filepath.Join(path, "data", "chroma"), 0o500))
		return path
	}
	make("atocore-drill-0123456789abcdef")
	make("atocore-drill-fedcba9876543210")
	held := make("atocore-drill-00000000000000aa")
	dir, err := fsat.OpenDir(held)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, dir.TryLock())
	keep := []string{held, make("atocore-drill-1234"), make("atocore-drill-0123456789ABCDEF"), make("atocore-drill-notes"), make("other")}
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "file"), nil, 0o600))
	link := filepath.Join(scratch, "atocore-drill-00000000000000bb")
	require.NoError(t, os.Symlink(outside, link))
	file := filepath.Join(scratch, "atocore-drill-00000000000000cc")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	keep = append(keep, link, file)

	o := atocore(t, "drill", "--backup-dir", s.backups, "--scratch", scratch)
	require.Equal(t, exitDone, o.code, o.stderr)
	left, err := filepath.Glob(filepath.Join(scratch, "*"))
	require.NoError(t, err)
	require.ElementsMatch(t, keep, left)
	require.FileExists(t, filepath.Join(outside, "file"))
	require.FileExists(t, filepath.Join(held, "data", "atocore.db"))
}

// A drill is killed at many moments. The next one leaves nothing.
func TestDrillKilled(t *testing.T) {
	s := newStore(t)
	s.snapshot(t)
	scratch := t.TempDir()
	left := 0
	for n := range 12 {
		before, _ := filepath.Glob(filepath.Join(scratch, "*"))
		cmd := command(t, "drill", "--backup-dir", s.backups, "--scratch", scratch)
		require.NoError(t, cmd.Start())
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		// It is killed when it has created so many files and directories.
		require.NoError(t, poll.Until(t.Context(), time.Millisecond, time.Millisecond, func() (bool, error) {
			select {
			case <-ended:
				return true, nil
			default:
			}
			created := 0
			_ = filepath.WalkDir(scratch, func(path string, entry fs.DirEntry, err error) error {
				if slices.Contains(before, path) {
					return filepath.SkipDir
				}
				created++
				return nil
			})
			return created > 1+n, nil
		}))
		_ = cmd.Process.Kill()
		<-ended
		found, err := filepath.Glob(filepath.Join(scratch, "*"))
		require.NoError(t, err)
		left += len(found)
	}
	require.Positive(t, left, "none was killed in its work")
	o := atocore(t, "drill", "--backup-dir", s.backups, "--scratch", scratch)
	require.Equal(t, exitDone, o.code, o.stderr)
	requireEmpty(t, scratch)
}
