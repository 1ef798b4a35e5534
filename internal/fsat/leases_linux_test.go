package fsat_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/fsat"
)

func openShared(t *testing.T) (*fsat.File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(path, []byte("content"), 0o600))
	f, err := fsat.OpenFile(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f, path
}

// A lease is granted if nobody else has the file open, to read or to write.
func TestTryLease(t *testing.T) {
	f, path := openShared(t)
	if err := f.TryLease(); err != nil {
		require.NotErrorIs(t, err, fsat.ErrLocked)
		t.Skipf("no leases here: %v", err)
	}
	require.NoError(t, f.Close())
	for _, flags := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR} {
		f, err := fsat.OpenFile(path)
		require.NoError(t, err)
		other, err := os.OpenFile(path, flags, 0)
		require.NoError(t, err)
		require.ErrorIs(t, f.TryLease(), fsat.ErrLocked)
		require.NoError(t, other.Close())
		require.NoError(t, f.TryLease())
		require.NoError(t, f.Close())
	}
}

// Whoever opens a file that has a lease waits until that is given up.
func TestOpenUnderALease(t *testing.T) {
	f, path := openShared(t)
	if err := f.TryLease(); err != nil {
		t.Skipf("no leases here: %v", err)
	}
	dir, err := fsat.OpenDir(filepath.Dir(path))
	require.NoError(t, err)
	defer dir.Close()
	opened := make(chan error, 2)
	for _, open := range []func() (*fsat.File, error){
		func() (*fsat.File, error) { return fsat.OpenFile(path) },
		func() (*fsat.File, error) { return dir.Open("f") },
	} {
		go func() {
			f, err := open()
			f.Close()
			opened <- err
		}()
	}
	for { // until the kernel wants the lease back
		kind, err := unix.FcntlInt(uintptr(f.Descriptor()), unix.F_GETLEASE, 0)
		require.NoError(t, err)
		if kind != unix.F_WRLCK {
			break
		}
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, f.Close())
	require.NoError(t, <-opened)
	require.NoError(t, <-opened)
}

// A FIFO with nobody at its other end is not waited for.
func TestOpenOfAFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, unix.Mkfifo(path, 0o600))
	f, err := fsat.OpenFile(path)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// The locks of other processes are seen, and those of this one are not.
func TestLockOf(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no Python to lock with")
	}
	f, path := openShared(t)
	_, found, err := f.LockOf(0, 0)
	require.NoError(t, err)
	require.False(t, found)
	for kind, exclusive := range map[string]bool{"LOCK_SH": false, "LOCK_EX": true} {
		cmd := exec.CommandContext(t.Context(), python, "-c", `import fcntl, sys
f = open(sys.argv[1], "r+"); fcntl.lockf(f, getattr(fcntl, sys.argv[2]), 10, 100)
print("locked", flush=True); sys.stdin.readline()`, path, kind)
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = stdout.Read(make([]byte, 10))
		require.NoError(t, err)

		lock, found, err := f.LockOf(109, 1)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, exclusive, lock.Exclusive)
		require.NotZero(t, lock.PID)
		for _, off := range []int64{99, 110} {
			_, found, err = f.LockOf(off, 1)
			require.NoError(t, err)
			require.False(t, found)
		}
		require.NoError(t, stdin.Close())
		require.NoError(t, cmd.Wait())
	}

	own, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer own.Close()
	require.NoError(t, unix.FcntlFlock(own.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	_, found, err = f.LockOf(0, 0)
	require.NoError(t, err)
	require.False(t, found)
}
