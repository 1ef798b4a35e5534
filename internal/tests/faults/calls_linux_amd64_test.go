package faults

import "golang.org/x/sys/unix"

var oldCalls = map[uint32]string{
	unix.SYS_NEWFSTATAT: "newfstatat",
	unix.SYS_OPEN:       "open",
	unix.SYS_STAT:       "stat",
	unix.SYS_LSTAT:      "lstat",
	unix.SYS_ACCESS:     "access",
	unix.SYS_UNLINK:     "unlink",
	unix.SYS_RMDIR:      "rmdir",
	unix.SYS_MKDIR:      "mkdir",
	unix.SYS_READLINK:   "readlink",
}
