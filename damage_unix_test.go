//go:build linux || darwin

package backup_test

import (
	"io/fs"
	"path"
	"syscall"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// systemDamages are those that only some systems know.
var systemDamages = []damage{
	{"fifo", func(s *specimen, file string) bool {
		s.remove(file)
		require.NoError(s.t, unix.Mkfifo(s.path(file), 0o600))
		return true
	}},
	{"socket", func(s *specimen, file string) bool {
		s.remove(file)
		// A socket's path may have about 100 bytes only, so it is made with a
		// short one.
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		require.NoError(s.t, err)
		defer unix.Close(fd)
		s.t.Chdir(path.Dir(s.path(file)))
		require.NoError(s.t, unix.Bind(fd, &unix.SockaddrUnix{Name: path.Base(file)}))
		return true
	}},
}

// changeTime gives the time of the last change to a file's inode.
func changeTime(info fs.FileInfo) any { return statChangeTime(info.Sys().(*syscall.Stat_t)) }
