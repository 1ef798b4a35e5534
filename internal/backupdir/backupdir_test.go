//go:build unix

package backupdir

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

const noonStamp = "20261124T120000Z"

func openDir(t *testing.T, path string) *fsat.Dir {
	t.Helper()
	dir, err := fsat.OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

// snapshotIn creates a snapshot with one file and returns snapshots/ and the
// snapshot's directory.
func snapshotIn(t *testing.T, backupDir, stamp string) (root, dir *fsat.Dir) {
	t.Helper()
	path := filepath.Join(backupDir, format.SnapshotsName, stamp)
	require.NoError(t, os.MkdirAll(path, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(path, "file"), []byte(stamp), 0o600))
	return openDir(t, filepath.Dir(path)), openDir(t, path)
}

func names(t *testing.T, path string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(path)
	require.NoError(t, err)
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestEnter(t *testing.T) {
	path := t.TempDir()
	create, err := Enter(path)
	require.NoError(t, err)
	prune, err := Enter(path)
	require.NoError(t, err, "any number of creates and prunes run side by side")
	_, err = EnterExclusive(path)
	require.ErrorIs(t, err, fsat.ErrLocked)
	require.NoError(t, create.Close())
	_, err = EnterExclusive(path)
	require.ErrorIs(t, err, fsat.ErrLocked)
	require.NoError(t, prune.Close())

	restore, err := EnterExclusive(path)
	require.NoError(t, err)
	_, err = Enter(path)
	require.ErrorIs(t, err, fsat.ErrLocked)
	_, err = EnterExclusive(path)
	require.ErrorIs(t, err, fsat.ErrLocked)
	require.NoError(t, restore.Close())
	again, err := Enter(path)
	require.NoError(t, err)
	require.NoError(t, again.Close())

	_, err = Enter(filepath.Join(path, "missing"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestOpenSnapshots(t *testing.T) {
	path := t.TempDir()
	_, err := OpenSnapshots(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, os.Symlink(t.TempDir(), filepath.Join(path, format.SnapshotsName)))
	_, err = OpenSnapshots(path)
	require.Error(t, err, "a link is not followed")
}

func TestOpenSnapshot(t *testing.T) {
	path := t.TempDir()
	root, _ := snapshotIn(t, path, "a")
	dir, err := OpenSnapshot(t.Context(), path, "a")
	require.NoError(t, err)
	_, err = Remove(t.Context(), openDir(t, path), root, "a", func() { t.Error("removed while in use") })
	require.ErrorIs(t, err, fsat.ErrLocked)
	require.NoError(t, dir.Close())
	_, err = OpenSnapshot(t.Context(), path, "b")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestHoldWaits(t *testing.T) {
	for _, tt := range []struct {
		name string
		// meanwhile is done while another process holds the exclusive lock.
		meanwhile func(t *testing.T, path string)
		gone      bool
	}{
		{"until the lock is released", func(*testing.T, string) {}, false},
		{"until the snapshot is removed", func(t *testing.T, path string) {
			require.NoError(t, os.Rename(path, path+"-removed"))
		}, true},
		{"until another snapshot has its name", func(t *testing.T, path string) {
			require.NoError(t, os.Rename(path, path+"-removed"))
			require.NoError(t, os.Mkdir(path, 0o700))
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := t.TempDir()
			root, dir := snapshotIn(t, path, "a")
			synctest.Test(t, func(t *testing.T) {
				other := openDir(t, dir.Path())
				require.NoError(t, other.TryLock())
				var gone bool
				var err error
				ended := make(chan struct{})
				go func() {
					gone, err = Hold(t.Context(), root, dir, "a")
					close(ended)
				}()
				time.Sleep(time.Second) // of the bubble's clock
				synctest.Wait()
				select {
				case <-ended:
					require.Fail(t, "it did not wait")
				default:
				}
				tt.meanwhile(t, dir.Path())
				if !tt.gone {
					require.NoError(t, other.Close())
				}
				<-ended
				require.NoError(t, err)
				require.Equal(t, tt.gone, gone)
			})
		})
	}
}

func TestHoldEndsWithTheContext(t *testing.T) {
	root, dir := snapshotIn(t, t.TempDir(), "a")
	require.NoError(t, openDir(t, dir.Path()).TryLock())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Hold(ctx, root, dir, "a")
	require.ErrorIs(t, err, context.Canceled)
}

func TestIsStill(t *testing.T) {
	root, dir := snapshotIn(t, t.TempDir(), "a")
	require.True(t, IsStill(root, "a", dir))
	require.NoError(t, os.Rename(dir.Path(), dir.Path()+"-removed"))
	require.False(t, IsStill(root, "a", dir))
	require.NoError(t, os.Mkdir(dir.Path(), 0o700))
	require.False(t, IsStill(root, "a", dir), "another directory has the name")
}

func TestRemove(t *testing.T) {
	path := t.TempDir()
	root, _ := snapshotIn(t, path, "a")
	backupDir := openDir(t, path)
	gone := 0
	_, err := Remove(t.Context(), backupDir, root, "a", func() {
		gone++
		require.Empty(t, names(t, root.Path()), "it has lost its name")
		require.Len(t, names(t, path), 2, "and not all of its files are removed")
	})
	require.NoError(t, err)
	require.Equal(t, 1, gone)
	require.Equal(t, []string{format.SnapshotsName}, names(t, path))
	_, err = Remove(t.Context(), backupDir, root, "a", func() { gone++ })
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Equal(t, 1, gone)
}

func TestRemoveIsInterrupted(t *testing.T) {
	path := t.TempDir()
	root, dir := snapshotIn(t, path, "a")
	require.NoError(t, os.WriteFile(filepath.Join(dir.Path(), "other"), nil, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	left, err := Remove(ctx, openDir(t, path), root, "a", cancel)
	require.ErrorIs(t, err, context.Canceled)
	require.DirExists(t, left)
	require.Empty(t, names(t, root.Path()))
	require.Len(t, names(t, path), 2)
	requireReaped(t, path, slog.New(slog.DiscardHandler))
	require.Equal(t, []string{format.SnapshotsName}, names(t, path))
}

func requireReaped(t *testing.T, path string, log *slog.Logger) {
	t.Helper()
	left, err := Reap(t.Context(), path, log)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestReap(t *testing.T) {
	path := t.TempDir()
	var log bytes.Buffer
	reap := func() string {
		log.Reset()
		requireReaped(t, path, slog.New(slog.NewTextHandler(&log, nil)))
		return log.String()
	}
	live, err := NewStaging(path)
	require.NoError(t, err)
	require.Empty(t, reap())
	require.DirExists(t, live.PathOf(), "its lock is held")

	require.NoError(t, os.WriteFile(live.PathOf("file"), nil, 0o600))
	live.closeAll() // as if the process had died
	for _, name := range []string{".atocore-staging-", ".atocore-staging-0123456789ABCDEF", "other"} {
		require.NoError(t, os.Mkdir(filepath.Join(path, name), 0o700))
	}
	file, link := filepath.Join(path, format.NewStagingName()), filepath.Join(path, format.NewStagingName())
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Symlink(t.TempDir(), link))
	require.Contains(t, reap(), "msg=stale_staging_removed path="+live.PathOf())
	require.Len(t, names(t, path), 6)
	require.NoDirExists(t, live.PathOf())

	requireReaped(t, filepath.Join(path, "missing"), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, os.Mkdir(filepath.Join(path, format.NewStagingName()), 0o700))
	_, err = Reap(ctx, path, nil)
	require.ErrorIs(t, err, context.Canceled)
}

func TestClaim(t *testing.T) {
	for _, tt := range []struct {
		name    string
		reaper  func(t *testing.T, path string)
		claimed bool
	}{
		{"undisturbed", func(*testing.T, string) {}, true},
		{"locked by a reaper", func(t *testing.T, path string) { require.NoError(t, openDir(t, path).TryLock()) }, false},
		{"removed by a reaper", func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) }, false},
		{"replaced", func(t *testing.T, path string) {
			require.NoError(t, os.Rename(path, path+"-old"))
			require.NoError(t, os.Mkdir(path, 0o700))
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := t.TempDir()
			st := &Staging{backupDir: openDir(t, path), name: format.NewStagingName()}
			require.NoError(t, os.Mkdir(st.PathOf(), 0o700))
			dir := openDir(t, st.PathOf())
			tt.reaper(t, st.PathOf())
			claimed, err := st.claim(dir)
			require.NoError(t, err)
			require.Equal(t, tt.claimed, claimed)
		})
	}
}

func TestPublish(t *testing.T) {
	path := t.TempDir()
	root, _ := snapshotIn(t, path, noonStamp)
	st, err := NewStaging(path)
	require.NoError(t, err)
	require.NoError(t, st.In("db", func(dir *fsat.Dir) error { return dir.Mkdir("inner", 0o700) }))
	var completed []string
	stamp, err := st.Publish(t.Context(), noon.Add(time.Millisecond), func(stamp string) error {
		if completed = append(completed, stamp); len(completed) == 1 {
			snapshotIn(t, path, stamp) // another create is faster
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, []string{noonStamp + "-002", noonStamp + "-003"}, completed)
	require.Equal(t, noonStamp+"-003", stamp)
	require.NoError(t, st.Discard())
	require.DirExists(t, filepath.Join(root.Path(), stamp, "db", "inner"))
	require.Equal(t, []string{format.SnapshotsName}, names(t, path))
}

func TestPublishFails(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	reason := errors.New("disk on fire")
	for _, tt := range []struct {
		name     string
		complete func(string) error
		want     error
	}{
		{"in complete", func(string) error { return reason }, reason},
		{"cancelled in complete", func(string) error { cancel(); return nil }, context.Canceled},
		{"cancelled before", func(string) error { t.Error("called"); return nil }, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := t.TempDir()
			st, err := NewStaging(path)
			require.NoError(t, err)
			_, err = st.Publish(ctx, noon, tt.complete)
			require.ErrorIs(t, err, tt.want)
			require.True(t, strings.HasPrefix(st.PathOf("a", "b"), filepath.Join(path, ".atocore-staging-")))
			require.NoError(t, st.Discard())
			require.Equal(t, []string{format.SnapshotsName}, names(t, path))
			require.Empty(t, names(t, filepath.Join(path, format.SnapshotsName)))
		})
	}
}

func TestPublishAs(t *testing.T) {
	path := t.TempDir()
	root, _ := snapshotIn(t, path, noonStamp)
	st, err := NewStaging(path)
	require.NoError(t, err)
	require.ErrorIs(t, st.PublishAs(noonStamp), fs.ErrExist)
	require.FileExists(t, filepath.Join(root.Path(), noonStamp, "file"), "it was replaced")
	require.NoError(t, st.PublishAs("other"))
	require.NoError(t, st.Discard())
	require.Equal(t, []string{noonStamp, "other"}, names(t, root.Path()))
	require.Equal(t, []string{format.SnapshotsName}, names(t, path))
}

func TestRemoveUnprotected(t *testing.T) {
	path := t.TempDir()
	root, _ := snapshotIn(t, path, "a")
	backupDir := openDir(t, path)
	protect := func(on bool) {
		require.NoError(t, UpdateRecord(t.Context(), backupDir, "a", nil, func(r *Record) { r.Protected = on }))
	}
	protect(true)
	_, err := RemoveUnprotected(t.Context(), backupDir, root, "a", nil, func() { t.Error("removed") })
	require.ErrorIs(t, err, errdefs.ErrProtected)
	protect(false)
	_, err = RemoveUnprotected(t.Context(), backupDir, root, "a", nil, func() {})
	require.NoError(t, err)
	require.Empty(t, names(t, root.Path()))
}
