package backup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/atocore/backup/internal/fsat"
)

// openedBy gives the number of a process that has the file open, or 0. The
// descriptors that this package keeps (see liveHandles) do not count.
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
			continue // ended, or not ours to look into
		}
		for _, descriptor := range descriptors {
			// Through the link to the open file itself: nothing is opened.
			var st syscall.Stat_t
			if syscall.Stat(filepath.Join(dir, descriptor.Name()), &st) != nil {
				continue
			}
			if st.Ino != file.Ino || uint64(st.Dev) != file.Dev {
				continue
			}
			if pid == os.Getpid() && keptDescriptor(descriptor.Name()) {
				continue
			}
			return pid
		}
	}
	return 0
}

// keptDescriptor tells whether a descriptor of this process is one of
// liveHandles.
func keptDescriptor(number string) bool {
	liveHandles.Lock()
	defer liveHandles.Unlock()
	for _, f := range liveHandles.files {
		if fmt.Sprint(f.Descriptor()) == number {
			return true
		}
	}
	return false
}
