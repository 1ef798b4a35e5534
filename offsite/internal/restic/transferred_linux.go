package restic

import (
	"bytes"
	"fmt"
	"os"
)

// transferred returns how many bytes a process has read and written, sockets and
// pipes included (proc_pid_io(5): rchar and wchar), or 0 if that is not known.
func transferred(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0
	}
	var sum int64
	for line := range bytes.Lines(text) {
		var n int64
		if _, err := fmt.Sscanf(string(line), "rchar: %d", &n); err == nil {
			sum += n
		} else if _, err := fmt.Sscanf(string(line), "wchar: %d", &n); err == nil {
			sum += n
		}
	}
	return sum
}
