package sqlitedb

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// A database that the disk cannot read counts as broken, so that it can be
// replaced. One that cannot be written to, for want of space for example, does
// not: then a restore has to be refused.
func TestLockOfAnUnreadableDatabase(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace to inject faults with")
	}
	for _, test := range []struct {
		mode    string
		inject  string
		invalid bool
	}{
		{"delete", "pread64:error=EIO", true},
		{"delete", "pread64:error=EIO:when=2+", true},
		{"wal", "pread64:error=EIO", true},
		{"wal", "pread64:error=EIO:when=3+", true},
		{"wal", "pread64:error=EIO:when=5+", true},
		{"wal", "pwrite64:error=ENOSPC", false},
		{"wal", "pwrite64:error=EDQUOT", false},
		{"wal", "fsync:error=EIO", false},
		{"delete", "fcntl,?fcntl64:error=ENOLCK", false},
	} {
		t.Run(test.mode+" "+test.inject, func(t *testing.T) {
			path := newDatabase(t, test.mode, true)
			role := roleCmd(t, "lock", path)
			cmd := exec.Command(strace, append([]string{"-f", "-qq", "-o", filepath.Join(t.TempDir(), "log"),
				"-P", path, "-P", path + "-wal", "-e", "inject=" + test.inject}, role.Args...)...)
			cmd.Env = role.Env
			text, err := cmd.CombinedOutput()
			if strings.Contains(strings.ToLower(string(text)), "ptrace") {
				t.Skipf("strace may not trace here: %s", text)
			}
			require.NoError(t, err, string(text))
			want := "locked false, invalid false, broken false, code "
			if test.invalid {
				want = "locked false, invalid true, broken true, code "
			}
			require.Contains(t, string(text), want)
			require.NotContains(t, string(text), "code 0")
		})
	}
}

// A process that has the file open is reported once it has had it open for a
// while. One that closes it soon, as a process does that is being started, is
// not, nor are several such processes one after the other.
func TestCheckNotOpen(t *testing.T) {
	path := newDatabase(t, "delete", false)
	first, second := startHolder(t, path), startHolder(t, path)

	synctest.Test(t, func(t *testing.T) { // the pauses take no time
		require.NoError(t, CheckNotOpen(t.Context(), path))

		first.do("open")
		var passed atomic.Int32
		for _, d := range []time.Duration{200 * time.Millisecond, 300 * time.Millisecond} {
			defer time.AfterFunc(d, func() { passed.Add(1) }).Stop()
		}
		err := CheckNotOpen(t.Context(), path)
		require.ErrorIs(t, err, errdefs.ErrDatabaseInUse)
		require.ErrorContains(t, err, fmt.Sprintf("process %d has %s open", first.cmd.Process.Pid, path))
		require.EqualValues(t, 1, passed.Load(), "it took less than 200 ms, or more than 300 ms")

		time.AfterFunc(150*time.Millisecond, func() { first.do("close") })
		require.NoError(t, CheckNotOpen(t.Context(), path))

		first.do("open")
		time.AfterFunc(150*time.Millisecond, func() { second.do("open"); first.do("close") })
		time.AfterFunc(250*time.Millisecond, func() { second.do("close") })
		require.NoError(t, CheckNotOpen(t.Context(), path))

		first.do("open")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		require.ErrorIs(t, CheckNotOpen(ctx, path), context.Canceled)
		first.do("close")
	})
}

// This process's own descriptors are reported at once, but for those that are
// kept open.
func TestCheckNotOpenOfThisProcess(t *testing.T) {
	path := newDatabase(t, "delete", false)
	info, err := fsat.Stat(path)
	require.NoError(t, err)
	_, err = keepDescriptor(path, info.ID())
	require.NoError(t, err)
	require.NoError(t, CheckNotOpen(t.Context(), path))

	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	err = CheckNotOpen(t.Context(), path)
	require.ErrorIs(t, err, errdefs.ErrDatabaseInUse)
	require.ErrorContains(t, err, fmt.Sprintf("process %d ", os.Getpid()))
}

// A process that has a file on a hung mount open does not hang the search.
func TestCheckNotOpenBesideADeadMount(t *testing.T) {
	path := newDatabase(t, "delete", false)
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	dir := t.TempDir()
	if err := unix.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)); err != nil {
		unix.Close(server)
		t.Skipf("cannot mount here: %v", err)
	}
	opened, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // asks no server
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- CheckNotOpen(t.Context(), path) }()
	select {
	case err = <-ended:
	case <-time.After(10 * time.Second):
		err = fmt.Errorf("it waits for the server")
	}
	// Without its server the mount fails each call, so that a waiting one ends.
	require.NoError(t, unix.Close(server))
	require.NoError(t, unix.Close(opened))
	require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH))
	require.NoError(t, err)
}
