//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// hold takes the guard as another process would, and returns a function that
// releases it.
func hold(t *testing.T, path string) (release func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	t.Cleanup(func() { f.Close() })
	return func() { require.NoError(t, f.Close()) }
}

// A waiter is a command that waits for a guard held by the test.
type waiter struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr chan string // its remaining standard error, once it has ended
}

// createGuarded starts a create that waits for the guard.
func (s store) createGuarded(t *testing.T, guard string) *waiter {
	t.Helper()
	return s.guarded(t, guard, "create", "--include-chroma")
}

// guarded starts a command that waits for the guard.
func (s store) guarded(t *testing.T, guard string, args ...string) *waiter {
	t.Helper()
	w := &waiter{stderr: make(chan string, 1)}
	w.cmd = command(t, append(append(args, "--guard-file", guard), s.flags()...)...)
	w.cmd.Stdout = &w.stdout
	pipe, err := w.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, w.cmd.Start())
	stderr := bufio.NewReader(pipe)
	line, err := stderr.ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "Waiting for the guard file "+guard)
	go func() {
		rest, _ := io.ReadAll(stderr)
		w.stderr <- string(rest)
	}()
	return w
}

func (w *waiter) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	require.NoError(t, w.cmd.Process.Signal(sig))
}

// requireWaiting checks that the command continues to wait for several attempts.
func (w *waiter) requireWaiting(t *testing.T) {
	t.Helper()
	select {
	case rest := <-w.stderr:
		t.Fatalf("ended: %s", rest)
	case <-time.After(15 * guardPoll):
	}
}

// end waits for the command to end.
func (w *waiter) end(t *testing.T) outcome {
	t.Helper()
	select {
	case stderr := <-w.stderr:
		_ = w.cmd.Wait() // the exit code is returned
		return outcome{w.cmd.ProcessState.ExitCode(), w.stdout.String(), stderr}
	case <-time.After(time.Minute):
		t.Fatal("still running after a minute")
		return outcome{}
	}
}

func TestSignalEndsTheWaitForTheGuard(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			if signal.Ignored(sig) {
				t.Skip("this process was started with the signal ignored, and so is the command")
			}
			s := newStore(t)
			guard := filepath.Join(t.TempDir(), "guard")
			hold(t, guard)
			w := s.createGuarded(t, guard)
			w.signal(t, sig)
			w.end(t).requireStatus(t, exitSignal+int(sig), "cancelled", sig.String(), guard)
			s.requireNoSnapshot(t)
		})
	}
}

// timeout(1) sends its signal twice.
func TestSignalSentTwiceStillEndsCleanly(t *testing.T) {
	s := newStore(t)
	guard := filepath.Join(t.TempDir(), "guard")
	hold(t, guard)
	w := s.createGuarded(t, guard)
	w.signal(t, syscall.SIGTERM)
	_ = w.cmd.Process.Signal(syscall.SIGTERM) // unless it has ended already
	w.end(t).requireStatus(t, exitSignal+int(syscall.SIGTERM), "cancelled")
	s.requireNoSnapshot(t)
}

func TestIgnoredSignalStaysIgnored(t *testing.T) {
	s := newStore(t)
	guard := filepath.Join(t.TempDir(), "guard")
	release := hold(t, guard)
	signal.Ignore(syscall.SIGHUP) // inherited, as from nohup(1)
	defer signal.Reset(syscall.SIGHUP)
	w := s.createGuarded(t, guard)
	w.signal(t, syscall.SIGHUP)
	w.requireWaiting(t)
	release()
	require.Equal(t, exitDone, w.end(t).code)
}

func TestGuardIsTakenOnceReleased(t *testing.T) {
	s := newStore(t)
	guard := filepath.Join(t.TempDir(), "guard")
	require.NoError(t, os.WriteFile(guard, []byte("kept"), 0o640))
	release := hold(t, guard)
	w := s.createGuarded(t, guard)
	w.requireWaiting(t)
	release()
	o := w.end(t)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, true, decode[map[string]any](t, o)["chroma_snapshot_included"])
	content, err := os.ReadFile(guard)
	require.NoError(t, err)
	require.Equal(t, "kept", string(content))
}

func TestRestoreWaitsForTheGuard(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)
	guard := filepath.Join(t.TempDir(), "guard")
	release := hold(t, guard)
	w := s.guarded(t, guard, "restore", "--yes", stamp)
	w.requireWaiting(t)
	requireNotes(t, s.db, "first", "second")
	release()
	o := w.end(t)
	require.Equal(t, exitDone, o.code, o.stderr)
	requireNotes(t, s.db, "first")
}

func TestGuardFileIsCreatedIfMissing(t *testing.T) {
	s := newStore(t)
	guard := filepath.Join(t.TempDir(), "guard")
	o := atocore(t, append([]string{"create", "--include-chroma", "--guard-file", guard}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, 1, strings.Count(o.stderr, "\n"), "it should not have had to wait: %s", o.stderr)
	info, err := os.Stat(guard)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	require.Zero(t, info.Size())
}

// A lock on a file that is no longer the guard file does not count.
func TestGuardFileMayBeReplaced(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	guard, next := filepath.Join(dir, "guard"), filepath.Join(dir, "next")
	releaseFirst := hold(t, guard)
	releaseNext := hold(t, next)
	w := s.createGuarded(t, guard)
	require.NoError(t, os.Rename(next, guard))
	releaseFirst()
	w.requireWaiting(t)
	releaseNext()
	require.Equal(t, exitDone, w.end(t).code)
}

func TestGuardIsTakenOnlyForChroma(t *testing.T) {
	s := newStore(t)
	guard := filepath.Join(t.TempDir(), "guard")
	hold(t, guard)
	o := atocore(t, append([]string{"create", "--guard-file", guard}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
}

func TestGuardThatCannotBeTakenFailsTheBackup(t *testing.T) {
	s := newStore(t)
	guard := filepath.Join(t.TempDir(), "absent", "guard")
	atocore(t, append([]string{"create", "--include-chroma", "--guard-file", guard}, s.flags()...)...).
		requireFailed(t, guard, "no such file")
	s.requireNoSnapshot(t)
}

// Create, prune and restore wait for a backup directory that is in use, as --wait
// says, and say that nothing is wrong but that.
func TestCommandsGiveUpWaitingForTheBackupDirectory(t *testing.T) {
	s := newStore(t)
	stamp, _ := s.create(t)
	require.NoError(t, s.live.Close())
	dir, err := os.Open(s.backups)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	for _, args := range [][]string{{"create"}, {"prune", "--keep-last", "9"}, {"restore", stamp, "--yes"}} {
		t.Run(args[0], func(t *testing.T) {
			o := atocore(t, slices.Concat(args, []string{"--wait", "50ms"}, s.flags())...)
			o.requireFailed(t, "the backup directory is in use", "50ms")
			require.NotContains(t, o.stderr, "unfinished")
			atocore(t, slices.Concat(args, []string{"--wait=-1s"}, s.flags())...).requireFailed(t, "--wait is negative")
		})
	}
}
