package backup_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A strace runs roles while it meddles with their system calls.
type strace struct {
	tool string
	path string // if not empty, only calls on this directory
}

func needStrace(t *testing.T) strace {
	t.Helper()
	tool, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("there is no strace, which makes chosen system calls fail")
	}
	return strace{tool: tool}
}

// run plays the role restore with the calls of one kind meddled with, and
// returns what it printed and whether any call was hit.
func (s strace) run(t *testing.T, call, inject string, args ...string) (text string, hit bool, err error) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	flags := []string{"-f", "-qq", "-o", log, "-e", "trace=" + call, "-e", "inject=" + call + ":" + inject}
	if s.path != "" {
		flags = append(flags, "-P", s.path)
	}
	cmd := exec.Command(s.tool, append(append(flags, os.Args[0]), args...)...)
	cmd.Env = append(os.Environ(), backuptest.RoleEnv+"=restore", "GOMAXPROCS=1")
	stdin, hold, perr := os.Pipe() // a role ends when its input does
	require.NoError(t, perr)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	require.NoError(t, errors.Join(stdin.Close(), hold.Close()))
	text = string(out)
	if strings.Contains(strings.ToLower(text), "ptrace") {
		t.Skipf("strace may not trace here: %s", text)
	}
	trace, lerr := os.ReadFile(log)
	require.NoError(t, lerr)
	return text, strings.Contains(string(trace), "(INJECTED)") || strings.Contains(string(trace), "killed by SIGKILL"), err
}

// template makes a store in generation "old" with a snapshot in generation
// "new", and gives a function that copies it to a directory of its own.
func restoreTemplate(t *testing.T) (stamp string, fresh func(t *testing.T) *backuptest.Store) {
	t.Helper()
	template, m := smallStore(t)
	return m, func(t *testing.T) *backuptest.Store {
		t.Helper()
		dir := t.TempDir()
		require.NoError(t, os.RemoveAll(dir))
		require.NoError(t, exec.Command("cp", "-a", template.Dir, dir).Run())
		return &backuptest.Store{T: t, Dir: dir, Options: storeAt(dir)}
	}
}

// recovered deals with what a restore left, by a call that can do nothing
// else, and tells what the store is then.
func recovered(s *backuptest.Store) string {
	s.T.Helper()
	_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, "none")
	require.ErrorIs(s.T, err, backup.ErrInvalidBackup)
	s.RequireNoRemains()
	return generationOf(s.T, s.Options)
}

// A call that fails, once or from then on, makes the restore fail with the old
// store in place, or says that it is unfinished; then the next one deals with
// it. What reports success is the new store.
func TestRestoreWithFailingCalls(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := restoreTemplate(t)
	faults, unfinished := 0, 0
	calls := []string{"renameat2", "linkat", "fsync", "pwrite64"}
	if *killStride == 1 {
		calls = append(calls, "renameat", "unlinkat", "mkdirat", "fchmod", "utimensat", "openat")
	}
	for _, call := range calls {
		stride := *killStride
		if call == "renameat2" || call == "linkat" || call == "unlinkat" {
			stride = (stride + 3) / 4
		}
		for i := 0; ; i++ {
			n := 1 + i*stride
			how := []string{"error=EIO:when=%d", "error=ENOSPC:when=%d+", "error=EACCES:when=%d"}[i%3]
			name := fmt.Sprintf("%s "+how, call, n)
			s := fresh(t)
			text, hit, err := tracer.run(t, call, fmt.Sprintf(how, n), s.Dir, stamp)
			if !hit {
				require.NoError(t, err, "%s: %s", name, text)
				break
			}
			faults++
			require.NotContains(t, text, "panic", name)
			_, lerr := backup.ListRuntimeBackups(context.Background(), s.Options)
			said := strings.Contains(text, backup.ErrRestoreUnfinished.Error())
			if said {
				unfinished++
			} else {
				require.NoError(t, lerr, "%s: %s", name, text)
				want := "old"
				if err == nil {
					want = "new"
				}
				require.Equal(t, want, generationOf(t, s.Options), "%s: %s", name, text)
				s.RequireNoRemains()
			}
			recovered(s)
			s.Restore(stamp)
			require.Equal(t, "new", generationOf(t, s.Options), name)
			s.RequireNoRemains()
			require.NoError(t, os.RemoveAll(s.Dir))
		}
	}
	t.Logf("%d faults, %d of them left the restore unfinished", faults, unfinished)
}

// Undoing and finishing are killed themselves, at each step, and killed again.
func TestRecoveryKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := restoreTemplate(t)
	for _, tt := range []struct {
		name string
		cut  func(t *testing.T, s *backuptest.Store)
		want string
	}{
		{"undo of a whole swap", func(t *testing.T, s *backuptest.Store) {
			c := backuptest.Start(t, "call", s.Dir, "restore", stamp, "verify")
			require.Equal(t, "at verify", c.Hear())
			c.Kill()
		}, "old"},
		{"undo of half a swap", func(t *testing.T, s *backuptest.Store) {
			_, hit, _ := tracer.run(t, "renameat", "signal=SIGKILL:when=1", s.Dir, stamp)
			require.True(t, hit)
		}, "old"},
		{"finish", func(t *testing.T, s *backuptest.Store) {
			for n := 1; ; n++ {
				journal, _ := os.ReadFile(filepath.Join(s.BackupDir, ".atocore-restore.journal"))
				if strings.HasSuffix(string(journal), "done\n") {
					return
				}
				if n > 1 {
					recovered(s)
				}
				_, hit, _ := tracer.run(t, "unlinkat", fmt.Sprintf("signal=SIGKILL:when=%d", n), s.Dir, stamp)
				require.True(t, hit)
			}
		}, "new"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := fresh(t)
			tt.cut(t, s)
			half := s.Dir
			kills := 0
			for _, call := range []string{"renameat2", "unlinkat", "fsync"} {
				for n := 1; ; n += (*killStride + 3) / 4 {
					dir := t.TempDir()
					require.NoError(t, os.RemoveAll(dir))
					require.NoError(t, exec.Command("cp", "-a", half, dir).Run())
					// The journal names absolute places.
					opts := storeAt(dir)
					journal := filepath.Join(opts.BackupDir, ".atocore-restore.journal")
					data, err := os.ReadFile(journal)
					require.NoError(t, err)
					require.NoError(t, os.WriteFile(journal, []byte(strings.ReplaceAll(string(data), half, dir)), 0o600))
					s := &backuptest.Store{T: t, Dir: dir, Options: opts}
					_, hit, _ := tracer.run(t, call, fmt.Sprintf("signal=SIGKILL:when=%d", n), dir, "none")
					if !hit {
						break
					}
					kills++
					require.Equal(t, tt.want, recovered(s), "killed at %s %d", call, n)
					require.NoError(t, os.RemoveAll(dir))
				}
			}
			t.Logf("%d kills", kills)
		})
	}
}
