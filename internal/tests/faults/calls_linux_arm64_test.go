package faults

import "golang.org/x/sys/unix"

var oldCalls = map[uint32]string{
	unix.SYS_FSTATAT:   "newfstatat",
	unix.SYS_FACCESSAT: "faccessat",
}
