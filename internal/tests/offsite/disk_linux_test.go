package offsite

import (
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/offsite"
)

// onTmpfs is elsewhere on a disk of its own.
func (s *store) onTmpfs(t *testing.T, options string) *store {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.Mkdir(disk, 0o700))
	backuptest.MountTmpfs(t, disk, options)
	twin := s.with(t)
	twin.Dir, twin.BackupDir = disk, filepath.Join(disk, "backups")
	t.Cleanup(func() { twin.RequireClean() })
	return twin
}

// TestFullDisk pulls onto a disk that is too small, and onto one that becomes full
// meanwhile.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	p := newBucket(t)
	s := newStore(t, 8)
	stamp := s.Create().Stamp
	p.push(s, stamp)

	t.Run("too small", func(t *testing.T) {
		twin := s.onTmpfs(t, "size=6m")
		_, err := p.Pull(p.context(), twin.Options, stamp)
		require.ErrorIs(t, err, backup.ErrNoSpace)
		twin.RequireNoSnapshot()
	})
	t.Run("becomes full", func(t *testing.T) {
		twin := s.onTmpfs(t, "size=64m")
		filler := filepath.Join(twin.Dir, "filler")
		var once sync.Once
		p.proxy.Watch(func(_ int, r *http.Request) {
			if r.Method == http.MethodGet && isData(r) {
				once.Do(func() {
					f, err := os.Create(filler)
					if err == nil {
						err = unix.Fallocate(int(f.Fd()), 0, 0, 60<<20)
						f.Close()
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
		})
		_, err := p.Pull(p.context(), twin.Options, stamp)
		p.proxy.Watch(nil)
		require.Error(t, err)
		twin.RequireNoSnapshot()
		require.NoError(t, os.Remove(filler))
		_, err = p.Pull(p.context(), twin.Options, stamp)
		require.NoError(t, err)
		require.Equal(t, backuptest.ReadTree(t, s.SnapshotPath(stamp)), backuptest.ReadTree(t, twin.SnapshotPath(stamp)))
	})
}

// TestForgeryThatFillsTheDisk: a forgery has a file that is not in its recipe and
// larger than the disk. It is found before anything is restored.
func TestForgeryThatFillsTheDisk(t *testing.T) {
	t.Parallel()
	m := newTemplate(t)
	_, p := m.forge(t, func(f *forgery) {
		backuptest.Write(t, f.in("files", "config", "evil"), "")
		f.must(os.Truncate(f.in("files", "config", "evil"), 64<<20))
	})
	twin := m.s.onTmpfs(t, "size=32m")
	_, err := p.Pull(p.context(), twin.Options, m.stamp)
	require.ErrorIs(t, err, offsite.ErrDamaged)
	twin.RequireNoSnapshot()
}
