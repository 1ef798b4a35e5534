package backuptest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// RoleEnv in the environment makes a test binary that calls Main or Play take
// on the role that it names. Command and Start set it.
const RoleEnv = "BACKUPTEST_ROLE"

// tiedEnv in the environment of a role ends the process when its standard input
// ends, so that it does not outlive the test.
const tiedEnv = "BACKUPTEST_TIED"

// A Role is a function that the test binary runs as a separate process. Its
// error ends the process with exit status 1 and goes to standard error.
type Role func(p *Parent, args []string) error

// Roles are the roles of a test binary by name.
type Roles map[string]Role

// Main is the TestMain of a package whose tests start their own binary in one
// of the roles.
func Main(m *testing.M, roles Roles) {
	Play(roles)
	os.Exit(m.Run())
}

// Play plays the role that the process was started in, and then ends the
// process. It returns if there is none: then the process is the test itself.
func Play(roles Roles) {
	name := os.Getenv(RoleEnv)
	if name == "" {
		return
	}
	role := roles[name]
	if role == nil {
		fmt.Fprintln(os.Stderr, "no such role:", name)
		os.Exit(2)
	}
	p := &Parent{lines: make(chan string)}
	if os.Getenv(tiedEnv) != "" {
		go func() {
			for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
				p.lines <- lines.Text()
			}
			os.Exit(3)
		}()
	}
	if err := role(p, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A Parent is the test that started a role, as the role sees it.
type Parent struct{ lines chan string }

// Say sends a line to the test, where Hear or Ask returns it.
func (*Parent) Say(line string) { fmt.Println(line) }

// Hear waits for the next line that the test sends with Tell or Ask.
func (p *Parent) Hear() string { return <-p.lines }

// Heard reports whether the test has sent a line that was not heard yet, and
// hears it.
func (p *Parent) Heard() bool {
	select {
	case <-p.lines:
		return true
	default:
		return false
	}
}

// Command prepares a run of the test binary in a role that does not hear its
// parent. Its standard input, output and error are the caller's to set. The
// process is killed when the test ends.
func Command(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), RoleEnv+"="+role)
	return cmd
}

// A Child is a process that plays a role.
type Child struct {
	// Cmd is the process. Its standard streams are the Child's.
	Cmd *exec.Cmd
	// Stderr holds what the process has written to standard error once it has
	// ended.
	Stderr *bytes.Buffer

	t      *testing.T
	stdin  io.WriteCloser
	stdout *bufio.Scanner
}

// Start starts the test binary in one of its roles. The process is killed when
// the test ends, and ends by itself if the test's process does.
func Start(t *testing.T, role string, args ...string) *Child {
	t.Helper()
	cmd := Command(t, role, args...)
	cmd.Env = append(cmd.Env, tiedEnv+"=1")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	c := &Child{Cmd: cmd, Stderr: new(bytes.Buffer), t: t, stdin: stdin, stdout: bufio.NewScanner(stdout)}
	cmd.Stderr = c.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			c.Kill()
		}
	})
	return c
}

// Hear waits for the next line that the child says.
func (c *Child) Hear() string {
	c.t.Helper()
	if !c.stdout.Scan() {
		err := c.Cmd.Wait()
		require.FailNow(c.t, "the child process ended", "%v\n%s", err, c.Stderr)
	}
	return c.stdout.Text()
}

// Tell sends a line to the child.
func (c *Child) Tell(line string) {
	c.t.Helper()
	_, err := fmt.Fprintln(c.stdin, line)
	require.NoError(c.t, err)
}

// Ask sends a line to the child and waits for the answer.
func (c *Child) Ask(line string) string {
	c.t.Helper()
	c.Tell(line)
	return c.Hear()
}

// Kill ends the child with SIGKILL, whatever it is doing.
func (c *Child) Kill() {
	_ = c.Cmd.Process.Kill() // it may have ended by itself
	_ = c.Cmd.Wait()
}

// Wait waits for the end of the child, which must succeed.
func (c *Child) Wait() {
	c.t.Helper()
	for c.stdout.Scan() {
		c.t.Log(c.stdout.Text())
	}
	require.NoError(c.t, c.Cmd.Wait(), c.Stderr)
}
