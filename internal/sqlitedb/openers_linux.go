package sqlitedb

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/atocore/backup/internal/fsat"
)

// openedBy returns the number of a process that has the file open, or 0. The
// descriptors that this package keeps (see keptDescriptors) do not count.
func openedBy(file fsat.Info) (pid int) {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", process.Name(), "fd")
		descriptors, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended, or this process may not look into it
		}
		for _, descriptor := range descriptors {
			// The link leads to the open file itself, and stat opens nothing.
			var st syscall.Stat_t
			if syscall.Stat(filepath.Join(dir, descriptor.Name()), &st) != nil {
				continue
			}
			if st.Ino != file.Ino || uint64(st.Dev) != file.Dev {
				continue
			}
			if pid == os.Getpid() && isKeptDescriptor(descriptor.Name()) {
				continue
			}
			return pid
		}
	}
	return 0
}
