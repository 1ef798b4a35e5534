package backup_test

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

// roles are what this test binary can be as a process of its own. A role says
// lines on standard output and hears lines that startChild's caller sends. It
// does not outlive the test: when standard input ends, so does the process.
var roles = map[string]func(p parent, args []string) error{
	"create":       roleCreate,
	"leave-behind": roleLeaveBehind,
	"try-lock":     roleTryLock,
	"write":        roleWrite,
}

const roleEnv = "BACKUP_TEST_ROLE"

func TestMain(m *testing.M) {
	name := os.Getenv(roleEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	role := roles[name]
	if role == nil {
		fmt.Fprintln(os.Stderr, "no such role:", name)
		os.Exit(2)
	}
	p := parent{make(chan string)}
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			p.lines <- lines.Text()
		}
		os.Exit(3)
	}()
	if err := role(p, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A parent is how a role talks with the test that started it.
type parent struct{ lines chan string }

func (parent) say(line string) { fmt.Println(line) }

func (p parent) hear() string { return <-p.lines }

// A child is a process that plays a role.
type child struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Scanner
	stderr *bytes.Buffer
}

// startChild starts this test binary in one of the roles. It is killed when
// the test ends.
func startChild(t *testing.T, role string, args ...string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	c := &child{t: t, cmd: cmd, stdin: stdin, stdout: bufio.NewScanner(stdout), stderr: new(bytes.Buffer)}
	cmd.Stderr = c.stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			c.kill()
		}
	})
	return c
}

// hear waits for the next line that the child says.
func (c *child) hear() string {
	c.t.Helper()
	if !c.stdout.Scan() {
		err := c.cmd.Wait()
		require.FailNow(c.t, "the child process ended", "%v\n%s", err, c.stderr)
	}
	return c.stdout.Text()
}

// ask sends a line and waits for the answer.
func (c *child) ask(line string) string {
	c.t.Helper()
	c.tell(line)
	return c.hear()
}

func (c *child) tell(line string) {
	c.t.Helper()
	_, err := fmt.Fprintln(c.stdin, line)
	require.NoError(c.t, err)
}

// kill ends the child with SIGKILL, whatever it is doing.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended by itself
	_ = c.cmd.Wait()
}

// wait waits for the child's end, which must be a good one.
func (c *child) wait() {
	c.t.Helper()
	for c.stdout.Scan() {
		c.t.Log(c.stdout.Text())
	}
	require.NoError(c.t, c.cmd.Wait(), c.stderr)
}
