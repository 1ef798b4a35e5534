package sqlitedb

import (
	"os"
	"path/filepath"
	"strconv"

	"github.com/atocore/backup/internal/fsat"
)

// openedBy returns the numbers of the processes that have the file open. The
// descriptors that this package keeps (see keptDescriptors) do not count, but
// duplicates of them in other processes do.
func openedBy(file fsat.ID) (pids []int) {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err == nil && hasOpen(pid, file) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func hasOpen(pid int, file fsat.ID) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	descriptors, err := os.ReadDir(dir)
	if err != nil {
		return false // it has ended, or this process may not look into it
	}
	for _, descriptor := range descriptors {
		// The link leads to the open file itself. Nothing is opened, and no server
		// is asked: one of all those files may be on a mount that hangs.
		id, err := fsat.StatNoSync(filepath.Join(dir, descriptor.Name()))
		if err != nil || id != file {
			continue
		}
		if pid != os.Getpid() || !isKeptDescriptor(descriptor.Name()) {
			return true
		}
	}
	return false
}
