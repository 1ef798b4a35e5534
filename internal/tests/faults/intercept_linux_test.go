//go:build amd64 || arm64

package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

// An intercepted process asks this one before each system call of a chosen set
// (seccomp_unotify(2)). The calls of all its threads come in one order, so that
// "the N-th call" has a meaning. The fault injection of strace counts the calls of
// each thread by themselves, and a Go program moves between threads all the time.

// A call is a system call that waits for its verdict. Its layout is that of
// struct seccomp_notif.
type call struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// reply is struct seccomp_notif_resp.
type reply struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

func (c *call) name() string { return callNames[uint32(c.nr)] }

// fd returns the path that an argument refers to which is a descriptor.
func (c *call) fd(arg int) string {
	if int32(c.args[arg]) == unix.AT_FDCWD {
		return "."
	}
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.pid, int32(c.args[arg])))
	if err != nil {
		return "?"
	}
	return target
}

// text returns an argument that is a string.
func (c *call) text(arg int) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", c.pid))
	if err != nil {
		return "?"
	}
	defer f.Close()
	buf := make([]byte, 4096)
	n, _ := f.ReadAt(buf, int64(c.args[arg]))
	text, _, _ := strings.Cut(string(buf[:n]), "\x00")
	return text
}

// callNames are the calls that can be intercepted: those that work on files.
// oldCalls has those that not every architecture has.
var callNames = map[uint32]string{
	unix.SYS_OPENAT:          "openat",
	unix.SYS_READ:            "read",
	unix.SYS_PREAD64:         "pread64",
	unix.SYS_WRITE:           "write",
	unix.SYS_PWRITE64:        "pwrite64",
	unix.SYS_COPY_FILE_RANGE: "copy_file_range",
	unix.SYS_FALLOCATE:       "fallocate",
	unix.SYS_FTRUNCATE:       "ftruncate",
	unix.SYS_FSYNC:           "fsync",
	unix.SYS_FDATASYNC:       "fdatasync",
	unix.SYS_SYNCFS:          "syncfs",
	unix.SYS_SYNC_FILE_RANGE: "sync_file_range",
	unix.SYS_MKDIRAT:         "mkdirat",
	unix.SYS_RENAMEAT:        "renameat",
	unix.SYS_RENAMEAT2:       "renameat2",
	unix.SYS_LINKAT:          "linkat",
	unix.SYS_UNLINKAT:        "unlinkat",
	unix.SYS_FCHMOD:          "fchmod",
	unix.SYS_FCHOWN:          "fchown",
	unix.SYS_FCHOWNAT:        "fchownat",
	unix.SYS_UTIMENSAT:       "utimensat",
	unix.SYS_GETDENTS64:      "getdents64",
	unix.SYS_FSTAT:           "fstat",
	unix.SYS_STATX:           "statx",
	unix.SYS_FSTATFS:         "fstatfs",
	unix.SYS_LSEEK:           "lseek",
	unix.SYS_IOCTL:           "ioctl",
	unix.SYS_FCNTL:           "fcntl",
	unix.SYS_FLOCK:           "flock",
	unix.SYS_MMAP:            "mmap",
	unix.SYS_READLINKAT:      "readlinkat",
	unix.SYS_CLOSE:           "close",
}

func init() {
	roles["intercepted"] = beIntercepted
	for nr, name := range oldCalls {
		callNames[nr] = name
	}
}

// ours reports whether a call is the program's own. Failing a call of the Go
// runtime for memory or its event queue would end the process.
func (c *call) ours() bool {
	switch c.name() {
	case "mmap":
		return int32(c.args[4]) >= 0
	case "fcntl":
		return int32(c.args[0]) > 2 && strings.HasPrefix(c.fd(0), "/")
	case "read", "write", "close":
		if int32(c.args[0]) > 2 {
			return strings.HasPrefix(c.fd(0), "/")
		}
	}
	return true
}

// A verdict is 0 to let the kernel do the call, or the error it fails with.
type verdict = unix.Errno

// nothing is the verdict that the call is not made, and returns 0.
const nothing = verdict(0xfffe)

// nextRoleEnv has the role of a program that is intercepted and has one.
const nextRoleEnv = "FAULTS_NEXT_ROLE"

// intercept runs cmd and lets decide judge each of the named calls, one by one.
func intercept(t *testing.T, cmd *exec.Cmd, names []string, decide func(*call) verdict) outcome {
	t.Helper()
	var numbers []string
	for nr, name := range callNames {
		for _, wanted := range names {
			if name == wanted {
				numbers = append(numbers, fmt.Sprint(nr))
			}
		}
	}
	self, err := os.Executable()
	require.NoError(t, err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	mine, theirs := pair[0], os.NewFile(uintptr(pair[1]), "socket")
	defer unix.Close(mine)

	cmd.Args = append([]string{self, cmd.Path, strings.Join(numbers, ",")}, cmd.Args...)
	cmd.Path = self
	for _, entry := range cmd.Env {
		if role, ok := strings.CutPrefix(entry, backuptest.RoleEnv+"="); ok {
			cmd.Env = append(cmd.Env, nextRoleEnv+"="+role)
		}
	}
	cmd.Env = append(cmd.Env, backuptest.RoleEnv+"=intercepted")
	cmd.ExtraFiles = []*os.File{theirs}
	err = start(cmd)
	theirs.Close()
	require.NoError(t, err)

	listener, err := receive(mine)
	if err != nil {
		o := wait(t, cmd)
		if strings.Contains(o.stderr, errNoSeccomp.Error()) {
			t.Skip(o.stderr)
		}
		require.NoError(t, err, o.stderr)
	}
	served := make(chan error, 1)
	go func() { served <- serve(listener, decide) }()
	o := wait(t, cmd)
	require.NoError(t, <-served)
	require.NoError(t, unix.Close(listener))
	return o
}

// serve answers until the last process that can make calls has ended.
func serve(listener int, decide func(*call) verdict) error {
	running := false // the program itself, not the role that becomes it
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		switch _, err := unix.Poll(fds, -1); {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case fds[0].Revents&unix.POLLIN == 0:
			return nil
		}
		var c call
		switch err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&c)); err {
		case 0:
		case unix.ENOENT, unix.EINTR: // the caller was killed, or was interrupted and will call again
			continue
		default:
			return fmt.Errorf("receive: %w", err)
		}
		answer := reply{id: c.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if uint32(c.nr) == unix.SYS_EXECVE {
			running = true
		} else if running && c.ours() {
			switch err := decide(&c); err {
			case 0:
			case nothing:
				answer = reply{id: c.id}
			default:
				answer = reply{id: c.id, errno: -int32(err)}
			}
		}
		switch err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer)); err {
		case 0, unix.ENOENT:
		default:
			return fmt.Errorf("answer: %w", err)
		}
	}
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	return err
}

// receive takes the listener that beIntercepted sends.
func receive(socket int) (listener int, err error) {
	var text [16]byte
	control := make([]byte, unix.CmsgSpace(4))
	n, controlLen, _, _, err := unix.Recvmsg(socket, text[:], control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	if n == 0 {
		return -1, errors.New("nothing was sent")
	}
	messages, err := unix.ParseSocketControlMessage(control[:controlLen])
	if err != nil {
		return -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

var errNoSeccomp = errors.New("this system cannot intercept calls (seccomp_unotify(2), Linux 5.19)")

// beIntercepted becomes the program args[0] with the arguments from args[2] on,
// after it has sent the listener for the calls args[1] on descriptor 3.
func beIntercepted(_ *backuptest.Parent, args []string) error {
	runtime.LockOSThread() // the filter belongs to the thread, which must be the one that execs
	const (
		offsetNr   = 0
		offsetArch = 4
	)
	statement := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	program := []unix.SockFilter{statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offsetNr)}
	numbers := strings.Split(args[1]+","+fmt.Sprint(unix.SYS_EXECVE), ",")
	for _, text := range numbers {
		nr, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return err
		}
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(nr), Jt: 0, Jf: 1},
			statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_USER_NOTIF))
	}
	program = append(program, statement(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW))
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// From here on the calls of this thread wait for the receiver of the listener.
	// So it must make none before the listener is sent, not even the Go runtime
	// for memory.
	text, rights := []byte("listener"), unix.UnixRights(0)
	sent := (*int32)(unsafe.Pointer(&rights[unix.CmsgLen(0)]))
	part := unix.Iovec{Base: &text[0]}
	part.SetLen(len(text))
	message := unix.Msghdr{Iov: &part, Control: &rights[0]}
	message.SetIovlen(1)
	message.SetControllen(len(rights))
	listener, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		// Once a call is received, only a fatal signal interrupts it.
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
		uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("%w: %w", errNoSeccomp, errno)
	}
	*sent = int32(listener)
	if _, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, 3, uintptr(unsafe.Pointer(&message)), 0); errno != 0 {
		return errno
	}
	var env []string
	for _, entry := range os.Environ() {
		if role, ok := strings.CutPrefix(entry, nextRoleEnv+"="); ok {
			env = append(env, backuptest.RoleEnv+"="+role)
		} else if !strings.HasPrefix(entry, backuptest.RoleEnv+"=") {
			env = append(env, entry)
		}
	}
	unix.CloseOnExec(3)
	return syscall.Exec(args[0], args[2:], env)
}
