package s3server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// ErrUnavailable: the server cannot run here, because a program is missing or the
// file system has no extended attributes. A test skips.
var ErrUnavailable = errors.New("OpenStack Swift cannot run here")

// startTime bounds the start of the four daemons, on a machine that is busy.
const startTime = 2 * time.Minute

// A Server is an OpenStack Swift with its S3 API. It speaks plain HTTP, over which
// it refuses what S3 clients upload in signed chunks, so clients use a Proxy.
type Server struct {
	dir     string // without symbolic links, for Objects
	address string // of the proxy server, host and port
	daemons []*daemon
}

// New is Start for a test: the server ends when the test does. If it cannot run
// here, the test is skipped.
func New(tb testing.TB) *Server {
	tb.Helper()
	s, err := Start(context.Background(), tb.TempDir())
	if errors.Is(err, ErrUnavailable) {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// Start starts a server in the empty directory dir and waits until it answers.
// The caller closes it. The error matches ErrUnavailable if a program is missing.
// ctx bounds the start only.
func Start(ctx context.Context, dir string) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("start Swift: %w", err)
	}
	if err := possible(dir); err != nil {
		return nil, err
	}
	// Somebody may take a port between its choice and its use.
	for attempt := 0; ; attempt++ {
		s, err := start(ctx, filepath.Join(dir, strconv.Itoa(attempt)))
		if err == nil {
			return s, nil
		}
		if attempt == 2 || ctx.Err() != nil {
			return nil, fmt.Errorf("start Swift: %w", err)
		}
	}
}

// possible returns an error that matches ErrUnavailable if Swift cannot run in dir.
func possible(dir string) error {
	programs := []string{"sh", "swift-ring-builder"}
	for _, role := range roles {
		programs = append(programs, role.program())
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: %s is not installed (Debian: swift-proxy swift-account swift-container swift-object)", ErrUnavailable, program)
		}
	}
	// The daemons look up the name of their user.
	if _, err := user.LookupId(strconv.Itoa(os.Getuid())); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := haveAttributes(dir); err != nil {
		return fmt.Errorf("%w: no extended attributes in %s: %w", ErrUnavailable, dir, err)
	}
	return nil
}

func start(ctx context.Context, dir string) (s *Server, err error) {
	ports, err := freePorts(len(roles))
	if err != nil {
		return nil, err
	}
	if err := configure(ctx, dir, ports); err != nil {
		return nil, err
	}
	s = &Server{dir: dir, address: localhost(ports[roleProxy])}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	for _, role := range roles {
		d, err := startDaemon(dir, role)
		if err != nil {
			return nil, err
		}
		s.daemons = append(s.daemons, d)
	}
	for i, d := range s.daemons {
		if err := d.wait(ctx, localhost(ports[i])); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Address returns the host and the port of the server itself.
func (s *Server) Address() string { return s.address }

// Close ends the server. Its files stay.
func (s *Server) Close() {
	for _, d := range s.daemons {
		d.close()
	}
}

// A daemon is one of Swift's four, below a shell that ends it when the shell's
// standard input ends. So it does not outlive this process, however that ends.
// Pdeathsig would not do: it is sent when the thread ends that started the process.
type daemon struct {
	role  role
	log   string
	stdin io.WriteCloser
	ended chan struct{}
	once  sync.Once
}

// tied runs its arguments as a program. The reader is killed first when the program
// ends by itself, because its process number may belong to another one later.
const tied = `
exec 3<&0 </dev/null
"$@" 3<&- & program=$!
{ cat <&3 >/dev/null; kill -9 $program; } & reader=$!
exec 3<&-
wait $program
kill $reader`

func startDaemon(dir string, r role) (*daemon, error) {
	d := &daemon{role: r, log: filepath.Join(dir, r.name+".log"), ended: make(chan struct{})}
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command("sh", "-c", tied, "sh", r.program(), filepath.Join(dir, r.name+".conf"), "--verbose")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	if d.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait() // it is killed; if not, wait quotes the log
		close(d.ended)
	}()
	return d, nil
}

// wait waits until the daemon answers at address.
func (d *daemon) wait(ctx context.Context, address string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if healthy(ctx, client, address) {
			return nil
		}
		select {
		case <-d.ended:
			return fmt.Errorf("%s ended:\n%s", d.role.program(), d.lastLines())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w\n%s", d.role.program(), context.Cause(ctx), d.lastLines())
		case <-tick.C:
		}
	}
}

func healthy(ctx context.Context, client *http.Client, address string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/healthcheck", nil)
	if err != nil {
		return false
	}
	answer, err := client.Do(request)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

func (d *daemon) lastLines() string {
	data, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

func (d *daemon) close() {
	d.once.Do(func() { d.stdin.Close() })
	<-d.ended
}

// freePorts returns n different ports of 127.0.0.1 on which nothing listens.
func freePorts(n int) (ports []int, err error) {
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return slices.Clip(ports), nil
}

func localhost(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
