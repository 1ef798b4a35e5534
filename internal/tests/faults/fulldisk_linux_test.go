package faults

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var fills = flag.Int("fills", 4, "to how many levels to fill a disk")

// newTmpfs mounts a file system in memory.
func newTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o700))
	backuptest.MountTmpfs(t, dir, options)
}

// fill takes all space of a file system but about left bytes, and returns a
// function that frees it again.
func fill(dir string, left int64) (empty func() error, err error) {
	name := filepath.Join(dir, "filler")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// In smaller and smaller pieces, since one file cannot get everything that the
	// file system reports as free.
	for piece := int64(64 << 20); piece >= 4<<10; {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return nil, err
		}
		if int64(st.Bavail)*int64(st.Bsize)-piece < left {
			piece /= 2
			continue
		}
		size, err := f.Seek(0, 2)
		if err != nil {
			return nil, err
		}
		if err := unix.Fallocate(int(f.Fd()), 0, size, piece); err == unix.ENOSPC {
			piece /= 2
		} else if err != nil {
			return nil, err
		}
	}
	return func() error { return os.Remove(name) }, nil
}

// TestFullDisk takes snapshots onto a disk that has too little room, or just
// enough. They may fail early or late, but cleanly.
func TestFullDisk(t *testing.T) {
	const size = 48 << 20
	for _, test := range []struct {
		name   string
		mount  func(t *testing.T, parent string) (dir string)
		inside bool // the live store is on the disk too
	}{
		{"tmpfs", mountTmpfs(size), false},
		{"tmpfs, with the store", mountTmpfs(size), true},
		{"ext4", mountExt4(size), false},
		{"ext4, with the store", mountExt4(size), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			parent := memoryDir(t)
			dir := test.mount(t, parent)
			random := random(t)
			where := parent
			if test.inside {
				where = dir
			}
			s := newStore(t, where, "wal").addFiles(100)
			s.BackupDir = filepath.Join(dir, "backups")
			need := s.sizeOfOne()

			exits := map[string]int{}
			for i := range *fills {
				step := 3 * need / 2 / int64(*fills)
				empty, err := fill(dir, int64(i)*step+random.Int64N(step))
				require.NoError(t, err)
				o := do(t, s.createCmd())
				exits[s.judgeFull(t, o)]++
				require.NoError(t, empty())
				s.requireLiveSound()
				do(t, s.createCmd()).requireDone(t)
				s.removeSnapshots()
			}
			t.Logf("a snapshot of %d bytes, %d levels: %v", need, *fills, exits)
		})
	}
}

func mountTmpfs(size int64) func(t *testing.T, parent string) string {
	return func(t *testing.T, parent string) string {
		dir := filepath.Join(parent, "tmpfs")
		newTmpfs(t, dir, fmt.Sprintf("size=%d", size))
		return dir
	}
}

func mountExt4(size int64) func(t *testing.T, parent string) string {
	return func(t *testing.T, parent string) string {
		return newDisk(t, parent, "ext4", size).mountedAt
	}
}

// sizeOfOne takes a snapshot and returns how much of the disk it fills.
func (s *store) sizeOfOne() int64 {
	t := s.T
	require.NoError(t, os.MkdirAll(s.BackupDir, 0o700))
	var before, after unix.Statfs_t
	require.NoError(t, unix.Statfs(s.BackupDir, &before))
	do(t, s.createCmd()).requireDone(t)
	require.NoError(t, unix.Statfs(s.BackupDir, &after))
	s.RequireValid()
	s.removeSnapshots()
	return int64(before.Bfree-after.Bfree) * int64(before.Bsize)
}

// removeSnapshots removes all snapshots.
func (s *store) removeSnapshots() {
	for _, stamp := range s.Stamps() {
		require.NoError(s.T, os.RemoveAll(s.SnapshotPath(stamp)))
	}
}

// judgeFull checks that nothing is left but valid snapshots, and returns how the run
// ended.
func (s *store) judgeFull(t *testing.T, o outcome) string {
	t.Helper()
	require.Empty(t, s.Staging(), o.stderr)
	visible := s.RequireValid()
	if o.code == 0 {
		require.Len(t, visible, 1)
		return "done"
	}
	require.Equal(t, 2, o.code)
	require.Regexp(t, failure, o.stderr)
	require.Empty(t, visible)
	return lastWords(o.stderr)
}

// TestOutOfInodes is TestFullDisk for inodes instead of bytes.
func TestOutOfInodes(t *testing.T) {
	parent := memoryDir(t)
	dir := filepath.Join(parent, "tmpfs")
	newTmpfs(t, dir, "nr_inodes=60")
	s := newStore(t, parent, "wal")
	s.BackupDir = filepath.Join(dir, "backups")
	s.sizeOfOne()
	exits := map[string]int{}
	for left := 0; left < 40; left += max(1, 40 / *fills) {
		var fillers []string
		for free := inodes(t, dir); free > left; free-- {
			fillers = append(fillers, filepath.Join(dir, fmt.Sprint(free)))
			require.NoError(t, os.WriteFile(fillers[len(fillers)-1], nil, 0o600))
		}
		exits[s.judgeFull(t, do(t, s.createCmd()))]++
		for _, name := range fillers {
			require.NoError(t, os.Remove(name))
		}
		do(t, s.createCmd()).requireDone(t)
		s.removeSnapshots()
	}
	t.Logf("%v", exits)
}

func inodes(t *testing.T, dir string) int {
	t.Helper()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	return int(st.Ffree)
}

// TestDiskFillsUp fills the disk while a snapshot is being taken, after the free
// space was checked.
func TestDiskFillsUp(t *testing.T) {
	for name, mount := range map[string]func(*testing.T, string) string{"tmpfs": mountTmpfs(48 << 20), "ext4": mountExt4(48 << 20)} {
		t.Run(name, func(t *testing.T) {
			parent := memoryDir(t)
			dir := mount(t, parent)
			s := newStore(t, parent, "wal").addFiles(100)
			s.BackupDir = filepath.Join(dir, "backups")
			need := s.sizeOfOne()
			ends := map[string]int{}
			for _, phase := range backuptest.CreatePhases {
				for _, left := range []int64{0, need / 8, need / 2} {
					ends[s.createWhileFilling(t, dir, phase, left)]++
				}
			}
			s.requireLiveSound()
			t.Logf("%v", ends)
		})
	}
}

// createWhileFilling takes a snapshot, fills dir up to left bytes when the phase
// begins, and returns how the call ended.
func (s *store) createWhileFilling(t *testing.T, dir string, phase backup.Phase, left int64) (end string) {
	t.Helper()
	filled, empty := false, func() error { return nil }
	opts := s.Options
	opts.Locker = backup.LockerFunc(func(context.Context) (func(), error) { return func() {}, nil })
	opts.OnProgress = func(p backup.Progress) {
		if p.Phase == phase && !filled {
			filled = true
			var err error
			empty, err = fill(dir, left)
			require.NoError(t, err)
		}
	}
	_, err := backup.CreateRuntimeBackup(context.Background(), opts)
	require.True(t, filled, phase)
	require.Empty(t, s.Staging())
	visible := s.RequireValid()
	if err == nil {
		require.Len(t, visible, 1)
		end = "done"
	} else {
		require.True(t, errors.Is(err, unix.ENOSPC) || errors.Is(err, backup.ErrNoSpace), "%v", err)
		require.Empty(t, visible)
		end = lastWords(err.Error())
	}
	require.NoError(t, empty())
	s.removeSnapshots()
	return end
}
