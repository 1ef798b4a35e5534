// Package restore tries to break restores: it runs them beside every other
// call, kills them at every step, fails their system calls, and restores into
// awkward places. It has no code but its tests, which are for Linux and small by
// default. After a change to restoring, kill at every call and fail every call,
// which needs strace:
//
//	go test ./internal/tests/restore -timeout 0 -kill-stride 1
package restore
