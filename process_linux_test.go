package backup_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// locksOf gives what the kernel lists of the locks on a database and its -shm.
func locksOf(t *testing.T, path string) (locks []string) {
	t.Helper()
	// The table is read in pieces while other processes change it: lines come
	// twice, or are missed. So it is read more than once.
	var data []byte
	for range 3 {
		more, err := os.ReadFile("/proc/locks")
		require.NoError(t, err)
		data = append(data, more...)
	}
	for _, file := range []string{path, path + "-shm"} {
		info, err := os.Stat(file)
		if os.IsNotExist(err) {
			continue
		}
		require.NoError(t, err)
		inode := fmt.Sprintf(":%d", info.Sys().(*syscall.Stat_t).Ino)
		for line := range strings.Lines(string(data)) {
			// number: POSIX ADVISORY READ pid major:minor:inode start end
			fields := strings.Fields(line)
			if len(fields) == 8 && fields[1] == "POSIX" && strings.HasSuffix(fields[5], inode) {
				locks = append(locks, strings.Join(fields[1:], " "))
			}
		}
	}
	slices.Sort(locks)
	locks = slices.Compact(locks)
	require.NotEmpty(t, locks, "the host holds no lock, so there is nothing to lose")
	return locks
}

// A database that is gone is let go when another one is copied.
func TestRemovedDatabasesAreLetGo(t *testing.T) {
	for range 5 {
		s := newStore(t)
		s.IncludeChroma = false
		s.create()
		s.removeAll(s.DatabasePath)
	}
	gone := 0
	for _, file := range openFiles(t) {
		if strings.HasSuffix(file, "atocore.db (deleted)") {
			gone++
		}
	}
	require.LessOrEqual(t, gone, 1)
}

// openFiles tells what this process has open.
func openFiles(t *testing.T) (files []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, entry := range entries {
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err == nil { // one of them was ReadDir's own
			files = append(files, target)
		}
	}
	slices.Sort(files)
	return files
}
