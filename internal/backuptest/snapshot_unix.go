//go:build linux || darwin

package backuptest

import (
	"path"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// SpecialFiles put a FIFO or a socket in the place of a file. There are none
// where the system has no such files.
var SpecialFiles = []Damage{
	{"fifo", func(s *Snapshot, file string) bool {
		s.Remove(file)
		require.NoError(s.T, unix.Mkfifo(s.Path(file), 0o600))
		return true
	}},
	{"socket", func(s *Snapshot, file string) bool {
		s.Remove(file)
		// The path of a socket may have only about 100 bytes, so it is created
		// under a short one.
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		require.NoError(s.T, err)
		defer unix.Close(fd)
		s.T.Chdir(path.Dir(s.Path(file)))
		require.NoError(s.T, unix.Bind(fd, &unix.SockaddrUnix{Name: path.Base(file)}))
		return true
	}},
}

// changeTime returns the time of the last change to a file's inode.
func changeTime(t *testing.T, path string) any {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return st.Ctim
}
