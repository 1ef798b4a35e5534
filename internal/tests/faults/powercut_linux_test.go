package faults

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/fsat"
)

var cuts = flag.Int("cuts", 4, "how often to cut the power of each file system")

// A disk is a file system in a file of its own, mounted.
type disk struct {
	t                *testing.T
	image, mountedAt string
}

// newDisk creates and mounts a file system of at most size bytes. Its image is in
// the directory where. If a tool or a right is missing, it skips the test.
func newDisk(t *testing.T, where, kind string, size int64) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	mkfs := "mkfs." + kind
	for _, tool := range []string{mkfs, "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("no " + tool)
		}
	}
	d := &disk{t: t, image: filepath.Join(where, kind+".img"), mountedAt: filepath.Join(where, kind)}
	require.NoError(t, os.WriteFile(d.image, nil, 0o600))
	require.NoError(t, os.Truncate(d.image, size))
	args := map[string][]string{
		"ext4": {"-q", "-m", "0"},       // root has no more room than others
		"xfs":  {"-q", "--unsupported"}, // for less than 300 MB
	}[kind]
	d.run(mkfs, append(args, d.image)...)
	require.NoError(t, os.Mkdir(d.mountedAt, 0o700))
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.mountedAt).CombinedOutput(); err != nil {
		t.Skipf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", d.mountedAt).Run() })
	require.True(t, d.inUse())
	return d
}

func (d *disk) run(name string, args ...string) {
	d.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(d.t, err, "%s %v: %s", name, args, out)
}

func (d *disk) mount() { d.t.Helper(); d.run("mount", "-o", "loop", d.image, d.mountedAt) }

// unmount unmounts the disk and waits until its file system is gone. A process that
// was started meanwhile in a mount namespace of its own has it as well, and until
// that ends, the next mount would only show the same file system again.
func (d *disk) unmount() {
	d.t.Helper()
	d.run("umount", d.mountedAt)
	for began := now(); d.inUse(); time.Sleep(time.Millisecond) {
		require.Less(d.t, now()-began, time.Minute, "%s is still in use", d.image)
	}
}

// inUse reports whether a loop device has the disk's image.
func (d *disk) inUse() bool {
	d.t.Helper()
	image, err := os.Stat(d.image)
	require.NoError(d.t, err)
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	require.NoError(d.t, err)
	return slices.ContainsFunc(files, func(file string) bool {
		path, _ := os.ReadFile(file) // a device may go at any time
		info, err := os.Stat(strings.TrimSuffix(string(path), "\n"))
		return err == nil && os.SameFile(info, image)
	})
}

// cut ends all writing to the disk at once. What was not written out is lost, the
// journal included. That is the purpose of the ioctl FS_IOC_SHUTDOWN, whose number
// ext4 and XFS share; FS_SHUTDOWN_FLAGS_NOLOGFLUSH is 2.
func (d *disk) cut() error {
	dir, err := os.Open(d.mountedAt)
	if err != nil {
		return err
	}
	defer dir.Close()
	const shutdown, noLogFlush = 0x8004587d, 2
	flags := uint32(noLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return errno
	}
	return nil
}

// sync writes everything out.
func (d *disk) sync() {
	d.t.Helper()
	dir, err := os.Open(d.mountedAt)
	require.NoError(d.t, err)
	defer dir.Close()
	require.NoError(d.t, unix.Syncfs(int(dir.Fd())))
}

// TestNoSyncAfterShutdown syncs a directory after its file system has shut down,
// which must fail whatever the file system says.
func TestNoSyncAfterShutdown(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			d := newDisk(t, memoryDir(t), kind, 64<<20)
			dir, err := fsat.OpenDir(d.mountedAt)
			require.NoError(t, err)
			require.NoError(t, dir.Mkdir("synced", 0o700))
			require.NoError(t, dir.Sync())
			require.NoError(t, dir.Mkdir("lost", 0o700))
			require.NoError(t, d.cut())
			require.ErrorIs(t, dir.Sync(), unix.EIO)
			require.NoError(t, dir.Close())
			d.unmount()
			d.mount()
			require.DirExists(t, filepath.Join(d.mountedAt, "synced"))
			require.NoDirExists(t, filepath.Join(d.mountedAt, "lost"))
		})
	}
}

// TestPowerCut cuts the power at random moments, and right after create has
// returned. Each snapshot whose create succeeded must survive, and any other
// visible snapshot must be whole.
func TestPowerCut(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { cutPower(t, kind) })
	}
}

func cutPower(t *testing.T, kind string) {
	memory := memoryDir(t)
	d := newDisk(t, memory, kind, 256<<20)
	random := random(t)

	// Stores on another file system and on the same one, where XFS clones; with few
	// files, which are synced one by one, and many, which are synced together.
	var stores []*store
	for _, where := range []string{memory, d.mountedAt} {
		for _, files := range []int{0, 1000} {
			name := fmt.Sprintf("store-%d", files)
			s := newStore(t, filepath.Join(where, name), "wal").addFiles(files)
			s.BackupDir = filepath.Join(d.mountedAt, fmt.Sprintf("backups-%d", len(stores)))
			stores = append(stores, s)
		}
	}
	d.sync()

	returned := make([]map[string]bool, len(stores))
	for i := range returned {
		returned[i] = map[string]bool{}
	}
	survivors, others, failed := 0, 0, 0
	for i := range *cuts {
		s, mine := stores[i/2%len(stores)], returned[i/2%len(stores)]

		began := now()
		mine[do(t, s.createCmd()).requireDone(t).stamp(t)] = true
		took := now() - began
		require.Empty(t, s.Staging(), "what the last cut left was not cleared")

		if i%2 == 0 {
			require.NoError(t, d.cut())
		} else {
			// A create may only succeed if it was durable before the cut, so
			// every success counts, whenever it comes.
			cut := make(chan error, 1)
			moment := time.AfterFunc(time.Duration(random.Int64N(int64(3*took))), func() { cut <- d.cut() })
			for {
				o := do(t, s.createCmd())
				if o.code != 0 {
					require.Regexp(t, failure, o.stderr)
					failed++
					break
				}
				mine[o.stamp(t)] = true
			}
			require.False(t, moment.Stop(), "a create failed before the cut")
			require.NoError(t, <-cut)
		}
		d.unmount()
		d.mount()

		visible := s.RequireValid()
		for stamp := range mine {
			require.Contains(t, visible, stamp, "its create had returned")
		}
		survivors += len(mine)
		others += len(visible) - len(mine)
		s.requireLiveSound()
		if len(visible) > 5 {
			for _, stamp := range visible {
				require.NoError(t, os.RemoveAll(s.SnapshotPath(stamp)))
			}
			clear(mine)
			d.sync() // or the next cut would bring some of them back
		}
	}
	t.Logf("%d cuts, %d in a create; %d times a snapshot survived whose create had returned, %d times another one did",
		*cuts, failed, survivors, others)
}
