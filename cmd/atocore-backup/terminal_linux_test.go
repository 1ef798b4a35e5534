package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A terminal is a pseudo-terminal, with the test in the role of the user.
type terminal struct {
	t      *testing.T
	user   *os.File // the user's end
	device *os.File
	seen   strings.Builder
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { user.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	device, err := os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { device.Close() })
	return &terminal{t: t, user: user, device: device}
}

// start starts a command on the terminal, except for its standard output.
func (tm *terminal) start(args ...string) (cmd *exec.Cmd, stdout *bytes.Buffer) {
	tm.t.Helper()
	cmd, stdout = command(tm.t, args...), new(bytes.Buffer)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tm.device, stdout, tm.device
	cmd.Env = append(cmd.Env, "TERM=xterm")
	require.NoError(tm.t, cmd.Start())
	require.NoError(tm.t, tm.device.Close())
	return cmd, stdout
}

// see reads the output of the command until it contains text, and returns it.
func (tm *terminal) see(text string) string {
	buf := make([]byte, 4096)
	for !strings.Contains(tm.seen.String(), text) {
		n, err := tm.user.Read(buf)
		tm.seen.Write(buf[:n])
		if err != nil { // EIO: no process has the device open any more
			break
		}
	}
	require.Contains(tm.t, tm.seen.String(), text)
	return tm.seen.String()
}

// rest reads everything that the command writes until it ends.
func (tm *terminal) rest() string {
	_, _ = io.Copy(&tm.seen, tm.user)
	return tm.seen.String()
}

const question = "Type yes to continue:"

// Before anything is replaced, the user is shown what would be replaced and has to
// confirm. Only "yes" confirms.
func TestRestoreAsks(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)
	restore := append([]string{"restore", stamp}, s.flags()...)
	for _, answer := range []string{"no\n", "y\n", "\n", "YES\n", "yes!\n", "\x04"} {
		t.Run(strconv.Quote(answer), func(t *testing.T) {
			tm := newTerminal(t)
			cmd, stdout := tm.start(restore...)
			seen := tm.see(question)
			for _, words := range []string{
				"Snapshot " + stamp + ", made ", "the database " + s.db + " with ", "the registry " + s.registry,
				"the Chroma directory " + s.chroma + " with 1 file, 7 B",
			} {
				require.Contains(t, seen, words)
			}
			_, err := tm.user.WriteString(answer)
			require.NoError(t, err)
			require.Contains(t, tm.rest(), "not confirmed; nothing was changed")
			require.Error(t, cmd.Wait())
			require.Equal(t, exitFailed, cmd.ProcessState.ExitCode())
			require.Empty(t, stdout.String())
			require.Equal(t, []string{stamp}, s.stamps(t))
			requireNotes(t, s.db, "first", "second")
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		tm := newTerminal(t)
		cmd, _ := tm.start(restore...)
		tm.see(question)
		require.NoError(t, cmd.Process.Signal(os.Interrupt))
		require.Contains(t, tm.rest(), "cancelled: interrupt")
		require.Error(t, cmd.Wait())
		require.Equal(t, exitSignal+int(syscall.SIGINT), cmd.ProcessState.ExitCode())
		requireNotes(t, s.db, "first", "second")
	})
	t.Run("yes", func(t *testing.T) {
		tm := newTerminal(t)
		cmd, stdout := tm.start(restore...)
		tm.see(question)
		_, err := tm.user.WriteString("yes\n")
		require.NoError(t, err)
		require.Contains(t, tm.rest(), "is restored")
		require.NoError(t, cmd.Wait())
		require.Equal(t, stamp, decode[restored](t, outcome{stdout: stdout.String()}).Stamp)
		requireNotes(t, s.db, "first")
	})
}

// The user is shown what will be done with each part, before the question.
func TestRestoreShowsThePlan(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)
	require.NoError(t, os.RemoveAll(s.chroma))
	require.NoError(t, os.WriteFile(s.registry, []byte(`{"projects": []}`), 0o600))
	for only, words := range map[string][]string{
		"": {"the database " + s.db + " with ", "the registry " + s.registry + ": not at all, it is equal already",
			"the Chroma directory " + s.chroma + ", which does not exist, with 1 file"},
		"database": {"the database " + s.db + " with ", "the registry " + s.registry + ": not at all, --only leaves it out", "mixture of two points in time"},
	} {
		args := append([]string{"restore", stamp}, s.flags()...)
		if only != "" {
			args = append(args, "--only", only)
		}
		tm := newTerminal(t)
		cmd, _ := tm.start(args...)
		seen := tm.see(question)
		for _, text := range words {
			require.Contains(t, seen, text)
		}
		_, err := tm.user.WriteString("no\n")
		require.NoError(t, err)
		require.Contains(t, tm.rest(), "not confirmed; nothing was changed")
		require.Error(t, cmd.Wait())
		requireNotes(t, s.db, "first", "second")
	}
}

// With --yes, or if nothing would be replaced, there is no question.
func TestRestoreAsksOnlyIfNecessary(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)
	for _, args := range [][]string{{"--yes"}, {"--into", filepath.Join(t.TempDir(), "new")}} {
		tm := newTerminal(t)
		cmd, _ := tm.start(append(append([]string{"restore", stamp}, args...), s.flags()...)...)
		_, err := tm.user.WriteString("no\n")
		require.NoError(t, err)
		require.NotContains(t, tm.rest(), question)
		require.NoError(t, cmd.Wait())
	}
}

// There is no question if the user could not see or answer it.
func TestRestoreDoesNotAskWithoutATerminal(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)
	for _, end := range []string{"stdin", "stderr"} {
		tm := newTerminal(t)
		cmd := command(t, append([]string{"restore", stamp}, s.flags()...)...)
		var stderr bytes.Buffer
		if end == "stdin" {
			cmd.Stdin, cmd.Stderr = tm.device, &stderr
		} else {
			cmd.Stderr = tm.device
		}
		require.NoError(t, cmd.Start())
		require.NoError(t, tm.device.Close())
		_, err := tm.user.WriteString("no\n")
		require.NoError(t, err)
		seen := tm.rest()
		require.Error(t, cmd.Wait())
		seen += stderr.String()
		require.NotContains(t, seen, question)
		require.Contains(t, seen, "give --yes")
	}
}

// On a terminal, the progress bar names the phases of each command.
func TestProgressBar(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.snapshot(t) // the one that is pruned: the first is found valid here, and the last is the newest
	s.snapshot(t)
	s.change(t)
	for _, test := range []struct {
		args  []string
		words []string
	}{
		{append([]string{"restore", "--yes", stamp}, s.flags()...),
			[]string{" 0% ", "comparing files", "hashing", "copying snapshot", "replacing store", "% comparing with snapshot"}},
		{[]string{"drill", "--backup-dir", s.backups, stamp}, []string{"copying snapshot", "comparing with snapshot"}},
		{[]string{"prune", "--keep-last=1", "--backup-dir", s.backups}, []string{"0% removing snapshots"}},
	} {
		tm := newTerminal(t)
		cmd, _ := tm.start(test.args...)
		seen := tm.rest()
		require.NoError(t, cmd.Wait(), seen)
		for _, words := range test.words {
			require.Contains(t, seen, words)
		}
	}
}
