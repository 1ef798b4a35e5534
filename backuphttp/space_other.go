//go:build !(linux || darwin || freebsd)

package backuphttp

// freeSpace returns no space: package syscall has no call for it here.
func freeSpace(string) (free uint64, ok bool) { return 0, false }
