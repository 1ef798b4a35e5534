//go:build amd64 || arm64

package backuptest

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A refusal is a system call that Refuse can refuse, perhaps with only some values
// of one argument.
type refusal struct {
	calls  []uintptr
	arg    int
	values []uint32
	// try makes the call in a way that fails with another error if it isn't
	// refused.
	try func() error
}

func raw(nr uintptr, args ...uintptr) func() error {
	args = append(args, make([]uintptr, 6)...)
	return func() error {
		_, _, err := unix.Syscall6(nr, args[0], args[1], args[2], args[3], args[4], args[5])
		return err
	}
}

const none = ^uintptr(0) // a descriptor that isn't open

var refusals = map[string]refusal{
	"copy_file_range": {calls: []uintptr{unix.SYS_COPY_FILE_RANGE}, try: raw(unix.SYS_COPY_FILE_RANGE, none, 0, none, 0, 1)},
	"fadvise":         {calls: []uintptr{unix.SYS_FADVISE64}, try: raw(unix.SYS_FADVISE64, none)},
	"fallocate":       {calls: []uintptr{unix.SYS_FALLOCATE}, try: raw(unix.SYS_FALLOCATE, none, 0, 0, 1)},
	"fchmodat2":       {calls: []uintptr{unix.SYS_FCHMODAT2}, try: raw(unix.SYS_FCHMODAT2, none)},
	"FICLONE":         {calls: []uintptr{unix.SYS_IOCTL}, arg: 1, values: []uint32{unix.FICLONE}, try: raw(unix.SYS_IOCTL, none, unix.FICLONE)},
	"F_SETLEASE":      {calls: []uintptr{unix.SYS_FCNTL}, arg: 1, values: []uint32{unix.F_SETLEASE, unix.F_GETLEASE}, try: raw(unix.SYS_FCNTL, none, unix.F_SETLEASE)},
	"getrandom":       {calls: []uintptr{unix.SYS_GETRANDOM}, try: raw(unix.SYS_GETRANDOM)},
	"OFD locks": {calls: []uintptr{unix.SYS_FCNTL}, arg: 1, values: []uint32{unix.F_OFD_GETLK, unix.F_OFD_SETLK, unix.F_OFD_SETLKW},
		try: raw(unix.SYS_FCNTL, none, unix.F_OFD_GETLK)},
	"linkat":          {calls: []uintptr{unix.SYS_LINKAT}, try: raw(unix.SYS_LINKAT, none, 0, none)},
	"openat2":         {calls: []uintptr{unix.SYS_OPENAT2}, try: raw(unix.SYS_OPENAT2, none, 0, 0, 1<<20)},
	"renameat2":       {calls: []uintptr{unix.SYS_RENAMEAT2}, try: raw(unix.SYS_RENAMEAT2, none, 0, none, 0, unix.RENAME_NOREPLACE)},
	"SEEK_DATA":       {calls: []uintptr{unix.SYS_LSEEK}, arg: 2, values: []uint32{unix.SEEK_DATA, unix.SEEK_HOLE}, try: raw(unix.SYS_LSEEK, none, 0, unix.SEEK_DATA)},
	"statfs":          {calls: []uintptr{unix.SYS_STATFS, unix.SYS_FSTATFS}, try: raw(unix.SYS_FSTATFS, none)},
	"statx":           {calls: []uintptr{unix.SYS_STATX}, try: raw(unix.SYS_STATX, none)},
	"sync_file_range": {calls: []uintptr{unix.SYS_SYNC_FILE_RANGE}, try: raw(unix.SYS_SYNC_FILE_RANGE, none)},
	"syncfs":          {calls: []uintptr{unix.SYS_SYNCFS}, try: raw(unix.SYS_SYNCFS, none)},
}

// RefusableCalls returns the names of the calls that Refuse can refuse, sorted,
// except linkat, which every sandbox knows: those that an old one may not know, or
// that a strict one may leave out.
func RefusableCalls() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(refusals)), func(name string) bool { return name == "linkat" })
}

// ErrNoSandbox is returned by Refuse where there are no seccomp filters.
var ErrNoSandbox = errors.New("no seccomp filters here")

// Refuse puts this process, and those that it becomes or starts, in a sandbox in
// which the named calls fail with the error (seccomp(2)). Before it returns, it
// makes each of these calls, and checks that it fails so.
func Refuse(with syscall.Errno, names ...string) error {
	if err := filter(with, names); err != nil {
		return fmt.Errorf("%w: %w", ErrNoSandbox, err)
	}
	for _, name := range names {
		if err := refusals[name].try(); err != with {
			return fmt.Errorf("%s is not refused with %q: %w", name, with.Error(), err)
		}
	}
	return nil
}

// filter installs a filter on all threads.
func filter(with syscall.Errno, names []string) error {
	const (
		// Offsets in struct seccomp_data.
		offsetNr, offsetArch, offsetArgs = 0, 4, 16
		jump                             = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	)
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	end := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	// unlessEqual skips the next n statements.
	unlessEqual := func(k uint32, n uint8) unix.SockFilter { return unix.SockFilter{Code: jump, K: k, Jf: n} }

	refuse := end(unix.SECCOMP_RET_ERRNO | uint32(with))
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	program := []unix.SockFilter{
		// The numbers mean other calls on another architecture.
		load(offsetArch), {Code: jump, K: arch, Jt: 1}, end(unix.SECCOMP_RET_KILL_PROCESS),
	}
	for _, name := range names {
		r, ok := refusals[name]
		if !ok {
			return fmt.Errorf("no such call: %s", name)
		}
		for _, nr := range r.calls {
			if r.values == nil {
				program = append(program, load(offsetNr), unlessEqual(uint32(nr), 1), refuse)
			}
			for _, value := range r.values {
				low := offsetArgs + 8*uint32(r.arg) // of a little-endian number
				program = append(program, load(offsetNr), unlessEqual(uint32(nr), 3), load(low), unlessEqual(value, 1), refuse)
			}
		}
	}
	program = append(program, end(unix.SECCOMP_RET_ALLOW))

	runtime.LockOSThread() // no_new_privs belongs to the thread, which must be the one that installs the filter
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno != 0:
		return errno
	case thread != 0:
		return fmt.Errorf("thread %d has another filter", thread)
	}
	return nil
}

// InSandbox is a Role that becomes the program args[2] with the arguments from
// args[3] on, in a sandbox that refuses the calls args[1], which are separated by
// commas, with the error of the number args[0].
func InSandbox(_ *Parent, args []string) error {
	var with syscall.Errno
	if _, err := fmt.Sscan(args[0], &with); err != nil {
		return err
	}
	if err := Refuse(with, strings.Split(args[1], ",")...); err != nil {
		return err
	}
	env := slices.DeleteFunc(syscall.Environ(), func(entry string) bool { return strings.HasPrefix(entry, RoleEnv+"=") })
	return syscall.Exec(args[2], args[2:], env)
}
