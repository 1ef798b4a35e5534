package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// The processes of the model: calls of the library that are killed or whose
// system calls fail, and the service.

func init() {
	if strings.HasPrefix(os.Getenv(backuptest.RoleEnv), "model-") {
		backuptest.Play(backuptest.Roles{"model-call": playModelCall, "model-service": playModelService})
	}
}

// A modelCall is one call of the library.
type modelCall struct {
	Name  string // create, restore, prune, list or validate
	Store modelPaths
	Stamp string
	Only  []string // the parts that are restored; all if it is empty
	Keep  int
	Clock time.Time
	Fault modelFault
}

// modelPaths are the options of a call that the model uses.
type modelPaths struct {
	Database, Registry, Chroma, BackupDir string
	IncludeChroma                         bool
}

// A modelFault is what happens to a call. The kinds "kill", "fail" and
// "fail-on" hit the At-th of the system calls that change something: the process
// is killed before it, it fails, or it and all that follow fail. The kinds
// "kill-phase" and "cancel" hit the At-th progress report of Phase.
type modelFault struct {
	Kind  string
	At    int
	Phase backup.Phase
	Errno syscall.Errno
}

// A modelResult is what a call returned.
type modelResult struct {
	Killed bool
	// Err is the text of the error, or empty. The other flags say what it
	// matches.
	Err                              string
	Unfinished, Invalid, Busy, InUse bool
	Stamp, Recovered, RecoveredStamp string
	SetAside, Removed                []string
	// Calls is the number of system calls that a fault could have hit.
	Calls int
}

func (c *modelCall) run() *modelResult {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	opts := backup.Options{
		DatabasePath: c.Store.Database, RegistryPath: c.Store.Registry, ChromaPath: c.Store.Chroma,
		BackupDir: c.Store.BackupDir, IncludeChroma: c.Store.IncludeChroma,
		Clock: backuptest.Clock{Time: c.Clock},
		// A registry that is a mount point may be empty, which is a finding.
		DespiteFindings: true,
	}
	if c.Fault.Phase != "" {
		reports := 0
		opts.OnProgress = func(now backup.Progress) {
			if now.Phase != c.Fault.Phase {
				return
			}
			reports++
			if reports != c.Fault.At {
				return
			}
			if c.Fault.Kind == "cancel" {
				cancel()
				return
			}
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	for part, of := range []backup.Parts{modelDB: backup.PartDatabase, modelRegistry: backup.PartRegistry, modelChroma: backup.PartChroma} {
		if len(c.Only) > 0 && c.restores(part) {
			opts.Parts |= of
		}
	}
	r := new(modelResult)
	var err error
	switch c.Name {
	case "create":
		var m *backup.Metadata
		if m, err = backup.CreateRuntimeBackup(ctx, opts); err == nil {
			r.Stamp = m.Stamp
		}
	case "restore":
		var restored *backup.RestoreResult
		restored, err = backup.RestoreRuntimeBackup(ctx, opts, c.Stamp)
		if restored != nil {
			r.Recovered, r.RecoveredStamp, r.SetAside = restored.Recovered, restored.RecoveredStamp, restored.SetAside
		}
	case "prune":
		var pruned *backup.PruneResult
		pruned, err = backup.PruneRuntimeBackups(ctx, opts, backup.Retention{KeepLast: c.Keep})
		if pruned != nil {
			r.Removed = pruned.Removed
		}
	case "list":
		_, err = backup.ListRuntimeBackups(ctx, opts)
	case "validate":
		_, err = backup.ValidateBackup(ctx, opts, c.Stamp)
	}
	if err != nil {
		r.Err = err.Error()
		r.Unfinished = errors.Is(err, backup.ErrRestoreUnfinished)
		r.Invalid = errors.Is(err, backup.ErrInvalidBackup)
		r.Busy = errors.Is(err, backup.ErrBusy)
		r.InUse = errors.Is(err, backup.ErrDatabaseInUse)
	}
	return r
}

// restores reports whether a restore is about the part.
func (c *modelCall) restores(part int) bool {
	return len(c.Only) == 0 || slices.Contains(c.Only, modelPartNames[part])
}

// runApart makes the call in a process of its own.
func (c *modelCall) runApart(t *testing.T) (*modelResult, error) {
	spec, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	cmd := backuptest.Command(t, "model-call", string(spec))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
			return &modelResult{Killed: true}, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the process of %s ended: %w\n%s", c.Name, err, stderr.String())
	}
	r := new(modelResult)
	return r, json.Unmarshal(out, r)
}

// playModelCall makes the call args[0] and says its result.
func playModelCall(p *backuptest.Parent, args []string) error {
	c := new(modelCall)
	if err := json.Unmarshal([]byte(args[0]), c); err != nil {
		return err
	}
	injector := &faultInjector{fault: c.Fault}
	switch c.Fault.Kind {
	case "kill", "fail", "fail-on":
		if err := injector.start(); err != nil {
			return err
		}
	}
	r := c.run()
	r.Calls = int(injector.calls.Load())
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	p.Say(string(text))
	return nil
}

// playModelService opens the database args[0] in the journal mode args[1],
// commits a row for each of the units in args[3], and ends as args[2] says:
//
//	close  it closes the database
//	kill   it is killed with everything in its WAL, if it has one
//	hot    it is killed amid a transaction that has changed the database file
//	stay   it keeps the database open until it hears "stop"; each other line
//	       that it hears is the unit of another row
func playModelService(p *backuptest.Parent, args []string) error {
	path, mode, end := args[0], args[1], args[2]
	db, err := backuptest.Open(path, "_pragma=wal_autocheckpoint(0)", "_pragma=cache_size(1)")
	if err != nil {
		return err
	}
	if _, err := db.Exec("PRAGMA journal_mode=" + mode + "; CREATE TABLE IF NOT EXISTS unit (id INTEGER PRIMARY KEY, name TEXT NOT NULL, pad TEXT)"); err != nil {
		return err
	}
	add := func(unit string) error {
		_, err := db.Exec("INSERT INTO unit (name, pad) VALUES (?, hex(zeroblob(400)))", unit)
		return err
	}
	for _, unit := range strings.Fields(args[3]) {
		if err := add(unit); err != nil {
			return err
		}
	}
	switch end {
	case "close":
		return db.Close()
	case "stay":
		p.Say("ready")
		for line := p.Hear(); line != "stop"; line = p.Hear() {
			if err := add(line); err != nil {
				return err
			}
			p.Say("ready")
		}
		return db.Close()
	case "hot":
		if _, err := db.Exec(`BEGIN; INSERT INTO unit (name, pad)
			WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)
			SELECT 'uncommitted', hex(zeroblob(400)) FROM n; UPDATE unit SET pad = pad || '1'`); err != nil {
			return err
		}
	}
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// changingCalls are the system calls by which the library changes anything.
var changingCalls = []uint32{
	unix.SYS_RENAMEAT2, unix.SYS_RENAMEAT, unix.SYS_UNLINKAT, unix.SYS_LINKAT, unix.SYS_MKDIRAT,
	unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_COPY_FILE_RANGE,
	unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FCHMOD, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT,
}

// A faultInjector stops this process before each of its changingCalls, with
// seccomp_unotify(2), and kills it or lets the call fail there. Unlike strace,
// it counts the calls of all kinds and threads together.
type faultInjector struct {
	fault    modelFault
	listener uintptr
	calls    atomic.Int64
}

// Constants of seccomp(2) and linux/seccomp.h.
const (
	seccompSetModeFilter = 1
	seccompFilterFlags   = 1 | 8 | 16 // TSYNC, NEW_LISTENER, TSYNC_ESRCH
	seccompRetNotify     = 0x7fc00000
	seccompRetAllow      = 0x7fff0000
	seccompReceive       = 0xc0502100
	seccompSend          = 0xc0182101
	seccompContinue      = 1
)

// seccompNotice and seccompReply are struct seccomp_notif and struct
// seccomp_notif_resp.
type (
	seccompNotice struct {
		id   uint64
		_    [2]uint32
		data [8]uint64
	}
	seccompReply struct {
		id           uint64
		value        int64
		errno, flags int32
	}
)

func (f *faultInjector) start() error {
	// If a thread stopped the world while another one waited for a reply, it
	// would wait for ever.
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0)))
	filter := seccompFilter()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	var errno syscall.Errno
	f.listener, _, errno = unix.Syscall(unix.SYS_SECCOMP, seccompSetModeFilter, seccompFilterFlags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("%s: %w", noSeccomp, errno)
	}
	go f.serve()
	return nil
}

const noSeccomp = "no seccomp_unotify(2) here"

// seccompFilter reports the changing calls, except the writes of eight bytes
// with which Go's runtime wakes itself, and those to the standard streams.
func seccompFilter() (filter []unix.SockFilter) {
	const number, descriptor, length = 0, 16, 32 // offsets in struct seccomp_data
	allow := 6 + len(changingCalls)
	notify := allow + 1
	load := func(offset uint32) {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
	}
	jump := func(how uint16, value uint32, yes, no int) {
		next := len(filter) + 1
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | how | unix.BPF_K, K: value, Jt: uint8(yes - next), Jf: uint8(no - next)})
	}
	load(number)
	jump(unix.BPF_JEQ, unix.SYS_WRITE, 2, 6)
	load(length)
	jump(unix.BPF_JEQ, 8, allow, 4)
	load(descriptor)
	jump(unix.BPF_JGT, 2, notify, allow)
	for _, call := range changingCalls {
		jump(unix.BPF_JEQ, call, notify, len(filter)+1)
	}
	for _, verdict := range []uint32{seccompRetAllow, seccompRetNotify} {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: verdict})
	}
	return filter
}

func (f *faultInjector) serve() {
	runtime.LockOSThread()
	for {
		var notice seccompNotice
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.listener, seccompReceive, uintptr(unsafe.Pointer(&notice))); errno != 0 {
			continue // the call was interrupted
		}
		reply := seccompReply{id: notice.id, flags: seccompContinue}
		n := int(f.calls.Add(1))
		switch {
		case f.fault.Kind == "kill" && n == f.fault.At:
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case f.fault.Kind == "fail" && n == f.fault.At, f.fault.Kind == "fail-on" && n >= f.fault.At:
			reply.errno, reply.flags = -int32(f.fault.Errno), 0
		}
		// It fails if the call was interrupted.
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, f.listener, seccompSend, uintptr(unsafe.Pointer(&reply)))
	}
}
