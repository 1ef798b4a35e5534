package restic

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"
)

// activityOf returns how many bytes a process has read and written, sockets and
// pipes included (proc_pid_io(5): rchar and wchar), and how long it has used a
// processor. What is not known is 0.
func activityOf(pid int) activity {
	var a activity
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	for line := range bytes.Lines(text) {
		var n int64
		if _, err := fmt.Sscanf(string(line), "rchar: %d", &n); err == nil {
			a.bytes += n
		} else if _, err := fmt.Sscanf(string(line), "wchar: %d", &n); err == nil {
			a.bytes += n
		}
	}
	// The 14th and 15th fields are user and system time, in hundredths of a second
	// (proc_pid_stat(5)). The 2nd, a name in parentheses, may contain anything.
	text, _ = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) > 12 {
		var user, system int64
		_, _ = fmt.Sscan(fields[11], &user)
		_, _ = fmt.Sscan(fields[12], &system)
		a.cpu = time.Duration(user+system) * 10 * time.Millisecond
	}
	return a
}
