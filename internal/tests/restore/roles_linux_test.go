package restore

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
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
	backuptest.Main(m, backuptest.Roles{"call": call, "restore": restore, "restore-as": restoreAs})
}

// call makes the call args[1] on the store in args[0], whose snapshot is
// args[2]. If there is an args[3], it says when that phase begins and waits for
// a line. In the end it says "done".
func call(p *backuptest.Parent, args []string) error {
	opts, stamp := optionsIn(args[0]), args[2]
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

// restore restores the snapshot args[1] of the store in args[0].
func restore(_ *backuptest.Parent, args []string) error {
	_, err := backup.RestoreRuntimeBackup(context.Background(), optionsIn(args[0]), args[1])
	return err
}

// restoreAs is restore by the user args[2].
func restoreAs(p *backuptest.Parent, args []string) error {
	uid, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
		return err
	}
	return restore(p, args)
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
	}
	return err
}

// A strace runs the role "restore" and injects faults into its system calls.
type strace struct {
	tool string
	path string // if not empty, only into calls on this directory
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

// run restores, with inject applied to the system calls of one kind. It returns
// what was printed and whether any call was hit. strace counts calls for each
// thread by itself, so a run may end before its n-th call.
func (s strace) run(t *testing.T, call, inject string, args ...string) (text string, hit bool, err error) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	flags := []string{"-f", "-qq", "-o", log, "-e", "trace=" + call, "-e", "inject=" + call + ":" + inject}
	if s.path != "" {
		flags = append(flags, "-P", s.path)
	}
	role := backuptest.Command(t, "restore", args...)
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
