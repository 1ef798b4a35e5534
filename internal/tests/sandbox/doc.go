// Package sandbox proves that the library works where system calls are refused
// that are newer than a sandbox: in a container with an old seccomp profile, in a
// systemd unit with a SystemCallFilter, in gVisor. It has no code but its tests,
// which are for Linux.
package sandbox
