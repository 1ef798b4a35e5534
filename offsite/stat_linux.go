package offsite

import (
	"io/fs"
	"syscall"
)

// stateOf returns what changes whenever the content of a file does: its size,
// times and inode. ok is false if the system does not say.
func stateOf(info fs.FileInfo) (s fileState, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return s, false
	}
	m := info.ModTime()
	return fileState{info.Size(), m.Unix(), int64(m.Nanosecond()), int64(st.Ctim.Sec), int64(st.Ctim.Nsec), int64(st.Ino)}, true
}
