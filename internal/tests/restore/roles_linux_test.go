package restore

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var killStride = flag.Int("kill-stride", 40, "kill a restore at every `n`-th of its steps")

func TestMain(m *testing.M) {
	backuptest.Main(m, backuptest.Roles{"call": call, "call-as": callAs, "call-parts": callParts, "hold": hold, "restore": restore, "restore-offline": restoreOffline, "restore-as": restoreAs, "restore-in-sandbox": restoreInSandbox})
}

// call makes the call args[1] on the store in args[0], whose snapshot is
// args[2]. If there is an args[3], it says when that phase begins and waits for
// a line. If there is an args[4], it is the backup directory. In the end it says
// "done".
func call(p *backuptest.Parent, args []string) error {
	opts, stamp := optionsIn(args[0]), args[2]
	if len(args) > 4 {
		opts.BackupDir = args[4]
	}
	if len(args) > 3 {
		waited := false
		opts.OnProgress = func(now backup.Progress) {
			if string(now.Phase) == args[3] && !waited {
				waited = true
				p.Say("at " + args[3])
				p.Hear()
			}
		}
	}
	err := callByName(opts, args[1], stamp)
	if err != nil {
		return err
	}
	p.Say("done")
	return nil
}

// restore restores the snapshot args[1] of the store in args[0]. If there is an
// args[3], it says what could not be kept. strace counts the calls of each thread
// by itself, so it stays on one.
func restore(p *backuptest.Parent, args []string) error {
	runtime.LockOSThread()
	r, err := backup.RestoreRuntimeBackup(context.Background(), optionsIn(args[0]), args[1])
	if err == nil && len(args) > 3 {
		for _, part := range r.Parts {
			for _, text := range part.NotKept {
				p.Say(text)
			}
		}
	}
	return err
}

// restoreAs is restore by the user args[2].
func restoreAs(p *backuptest.Parent, args []string) error {
	if err := become(args[2]); err != nil {
		return err
	}
	return restore(p, args)
}

// restoreInSandbox is restore where every call is refused that an old sandbox
// doesn't know.
func restoreInSandbox(p *backuptest.Parent, args []string) error {
	if err := backuptest.Refuse(syscall.EPERM, backuptest.RefusableCalls()...); err != nil {
		return err
	}
	return restore(p, args)
}

// callAs makes the call args[1] on the store in args[0], whose snapshot is
// args[2], as the user args[3].
func callAs(_ *backuptest.Parent, args []string) error {
	if err := become(args[3]); err != nil {
		return err
	}
	return callByName(optionsIn(args[0]), args[1], args[2])
}

// callParts restores the parts args[1] of the snapshot args[2] of the store in
// args[0]. It says when the phase args[3] begins and waits for a line.
func callParts(p *backuptest.Parent, args []string) error {
	opts := optionsIn(args[0])
	for part := backup.PartDatabase; part <= backup.PartChroma; part <<= 1 {
		if strings.Contains(args[1], part.String()) {
			opts.Parts |= part
		}
	}
	opts.OnProgress = func(now backup.Progress) {
		if string(now.Phase) == args[3] {
			p.Say("at " + args[3])
			p.Hear()
		}
	}
	_, err := backup.RestoreRuntimeBackup(context.Background(), opts, args[2])
	return err
}

// hold opens the database args[0], reads it, and holds the idle connection until
// it is killed.
func hold(p *backuptest.Parent, args []string) error {
	db, err := backuptest.Open(args[0])
	if err != nil {
		return err
	}
	var n int
	if err := db.QueryRow("SELECT count(*) FROM sqlite_schema").Scan(&n); err != nil {
		return err
	}
	p.Say("open")
	p.Hear()
	return nil
}

// become makes this process that of another user.
func become(user string) error {
	uid, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid))
}

// openFor lets every user search dir and the directories above it.
func openFor(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
}

// cutOff kills a restore of the snapshot when a phase of it begins.
func cutOff(t *testing.T, s *backuptest.Store, stamp, phase string) {
	t.Helper()
	c := backuptest.Start(t, "call", s.Dir, "restore", stamp, phase, s.BackupDir)
	require.Equal(t, "at "+phase, c.Hear())
	c.Kill()
}

// callByName makes one of the public calls on a store.
func callByName(opts backup.Options, name, stamp string) (err error) {
	ctx := context.Background()
	switch name {
	case "create":
		_, err = backup.CreateRuntimeBackup(ctx, opts)
	case "list":
		_, err = backup.ListRuntimeBackups(ctx, opts)
	case "validate":
		_, err = backup.ValidateBackup(ctx, opts, stamp)
	case "restore":
		_, err = backup.RestoreRuntimeBackup(ctx, opts, stamp)
	case "prune":
		_, err = backup.PruneRuntimeBackups(ctx, opts, backup.Retention{KeepLast: 100})
	case "remove":
		err = backup.RemoveRuntimeBackup(ctx, opts, stamp)
	case "export":
		err = backup.ExportRuntimeBackup(ctx, opts, stamp, io.Discard)
	case "import":
		_, err = backup.ImportRuntimeBackup(ctx, opts, strings.NewReader("no archive"))
	}
	return err
}

// A strace runs the role "restore" and injects faults into its system calls.
type strace struct {
	tool string
	role string // instead of "restore"
	path string // if not empty, only into calls on this file or directory
	// failing is a file of which nothing can be read. It needs path.
	failing string
	// sandboxed makes it run "restore-in-sandbox" instead.
	sandboxed bool
}

// needStrace skips the test where there is no strace.
func needStrace(t *testing.T) strace {
	t.Helper()
	tool, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace to inject faults with")
	}
	return strace{tool: tool}
}

// journalLines are the beginnings of the lines of a journal, as far as
// a restore writes them that is not undone.
var journalLines = []string{
	"{", "safety", "swapping", "begin chroma", "out chroma", "end chroma", "begin config", "out config", "end config",
	"begin db", "out db", "end db", "done", "cleaned chroma", "cleaned config", "cleaned db",
}

// cutAfter returns a copy of a store whose restore was killed when its journal
// ended with this line: before a system call of one kind, the first of that kind
// for pwrite64, which writes the next line.
func (s strace) cutAfter(t *testing.T, call, line, stamp string, fresh func(t *testing.T) *backuptest.Store) *backuptest.Store {
	t.Helper()
	first := 1
	if call == "pwrite64" { // the number of the next line, unless some are left out
		first = max(1, slices.Index(journalLines, line)+1)
	}
	for n := first; n < 100; n++ {
		store := fresh(t)
		s.path = ""
		if call == "pwrite64" {
			s.path = journalOf(store)
		}
		_, hit, err := s.run(t, call, fmt.Sprintf("signal=SIGKILL:when=%d", n), store.Dir, stamp)
		require.True(t, hit || err == nil)
		if err == nil {
			break
		}
		if info, err := os.Stat(journalOf(store)); err == nil && info.Size() > 0 {
			lines := append([]string{"{"}, linesOf(t, store)...)
			if last := lines[len(lines)-1]; last == line || line == "safety" && strings.HasPrefix(last, line) {
				return store
			}
		}
	}
	require.FailNow(t, "no restore was cut off there", "%s, %q", call, line)
	return nil
}

// run restores, with inject applied to the system calls of one kind. It returns
// what was printed and whether any call was hit. strace counts calls for each
// thread by itself, so a run may end before its n-th call.
func (s strace) run(t *testing.T, call, inject string, args ...string) (text string, hit bool, err error) {
	t.Helper()
	if call == "ftruncate" || call == "fcntl" { // as 32-bit systems call them
		call += ",?" + call + "64"
	}
	log := filepath.Join(t.TempDir(), "log")
	flags := []string{"-f", "-qq", "-o", log, "-e", "trace=" + call, "-e", "inject=" + call + ":" + inject}
	if s.path != "" {
		flags = append(flags, "-P", s.path)
	}
	if s.failing != "" {
		flags = append(flags, "-P", s.failing, "-e", "trace="+call+",pread64", "-e", "inject=pread64:error=EIO")
	}
	name := cmp.Or(s.role, "restore")
	if s.sandboxed {
		name = "restore-in-sandbox"
	}
	role := backuptest.Command(t, name, args...)
	cmd := exec.Command(s.tool, append(flags, role.Args...)...)
	cmd.Env = append(role.Env, "GOMAXPROCS=1")
	out, err := cmd.CombinedOutput()
	text = string(out)
	if strings.Contains(strings.ToLower(text), "ptrace") {
		t.Skipf("strace may not trace here: %s", text)
	}
	trace, logErr := os.ReadFile(log)
	require.NoError(t, logErr)
	return text, strings.Contains(string(trace), "(INJECTED)") || strings.Contains(string(trace), "killed by SIGKILL"), err
}
