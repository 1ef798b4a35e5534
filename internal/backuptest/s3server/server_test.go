package s3server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/backuptest/s3server"
)

func TestMain(m *testing.M) {
	backuptest.Main(m, backuptest.Roles{"server": func(p *backuptest.Parent, args []string) error {
		s, err := s3server.Start(context.Background(), args[0])
		if err != nil {
			return err
		}
		p.Say(s.Address())
		p.Hear() // until it is killed
		return nil
	}})
}

// restic runs restic through a proxy.
type restic struct {
	t        *testing.T
	proxy    *s3server.Proxy
	location string
}

func (r *restic) try(args ...string) (string, error) {
	cmd := exec.CommandContext(r.t.Context(), "restic", append(r.proxy.Args(), args...)...)
	cmd.Env = append(os.Environ(), "RESTIC_REPOSITORY="+r.location, "RESTIC_PASSWORD=secret", "RESTIC_CACHE_DIR="+r.t.TempDir())
	cmd.Env = append(cmd.Env, r.proxy.Env()...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *restic) run(args ...string) string {
	r.t.Helper()
	out, err := r.try(args...)
	require.NoError(r.t, err, out)
	return out
}

// TestRestic makes a repository, stores and restores a tree, while requests are
// broken, and with the server down and up again.
func TestRestic(t *testing.T) {
	needRestic(t)
	server := s3server.New(t)
	tree := t.TempDir()
	content := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	require.NoError(t, os.WriteFile(filepath.Join(tree, "file"), []byte(content), 0o600))

	for _, c := range []struct {
		name  string
		fault s3server.Fault
	}{
		{"whole", s3server.Fault{}},
		{"503", s3server.Fault{Kind: s3server.Unavailable, Every: 3}},
		{"cut", s3server.Fault{Kind: s3server.Cut, Every: 4}},
		{"slow", s3server.Fault{Delay: 10 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			proxy := server.NewProxy(t)
			bucket := strings.ToLower(c.name)
			r := &restic{t, proxy, proxy.Location(bucket + "/repo")}
			r.run("init")
			proxy.Break(c.fault)
			before := proxy.Traffic()
			r.run("backup", tree)
			require.Positive(t, proxy.Since(before).Up)
			target := t.TempDir()
			r.run("restore", "latest", "--target", target)
			got, err := os.ReadFile(filepath.Join(target, tree, "file"))
			require.NoError(t, err)
			require.Equal(t, content, string(got))
			proxy.Mend()
			r.run("check", "--read-data")

			objects, err := server.Objects(bucket)
			require.NoError(t, err)
			require.Contains(t, objects, "repo/config")
			var config struct{ ID string }
			require.NoError(t, json.Unmarshal([]byte(r.run("cat", "config")), &config))
			require.Len(t, config.ID, 64)
		})
	}
}

func needRestic(t *testing.T) {
	if _, err := exec.LookPath("restic"); err != nil {
		t.Skip("restic is not installed")
	}
}

// TestFaults makes requests that are broken in each way.
func TestFaults(t *testing.T) {
	server := s3server.New(t)
	proxy := server.NewProxy(t)
	roots := x509.NewCertPool()
	text, err := os.ReadFile(proxy.Args()[1])
	require.NoError(t, err)
	require.True(t, roots.AppendCertsFromPEM(text))
	url := "https://" + strings.TrimPrefix(proxy.Location("healthcheck"), "s3:https://")
	request := func(ctx context.Context, method, body string) (int, string, error) {
		// A client of its own, because a request that is broken is repeated on a
		// connection that was used before.
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
		r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
		require.NoError(t, err)
		answer, err := client.Do(r)
		if err != nil {
			return 0, "", err
		}
		defer answer.Body.Close()
		data, err := io.ReadAll(answer.Body)
		return answer.StatusCode, string(data), err
	}
	answered := func() {
		t.Helper()
		status, body, err := request(t.Context(), http.MethodGet, "")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, "OK", body)
	}

	answered()
	require.Equal(t, int64(1), proxy.Traffic().Requests)
	before := proxy.Traffic()
	_, _, err = request(t.Context(), http.MethodPut, strings.Repeat("x", 100_000))
	require.NoError(t, err)
	require.Greater(t, proxy.Since(before).Up, int64(100_000))
	require.Less(t, proxy.Since(before).Up, int64(110_000))

	proxy.Break(s3server.Fault{Kind: s3server.Unavailable, Every: 2})
	answered()
	status, _, err := request(t.Context(), http.MethodGet, "")
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, status)
	answered()

	proxy.Break(s3server.Fault{Kind: s3server.Cut})
	_, _, err = request(t.Context(), http.MethodGet, "")
	require.Error(t, err)
	_, _, err = request(t.Context(), http.MethodPut, strings.Repeat("x", 100_000))
	require.Error(t, err)

	// A request that hangs ends when the proxy is mended, when it is stopped, and
	// when the client gives up.
	for name, end := range map[string]func(cancel func()){
		"mended":   func(func()) { proxy.Mend() },
		"stopped":  func(func()) { proxy.Stop() },
		"given up": func(cancel func()) { cancel() },
	} {
		proxy.Stop()
		require.NoError(t, proxy.Start())
		proxy.Break(s3server.Fault{Kind: s3server.Hang})
		ctx, cancel := context.WithCancel(t.Context())
		arrived := make(chan bool)
		proxy.Watch(func(n int, _ *http.Request) {
			if n == 1 {
				close(arrived)
			}
		})
		failed := make(chan error)
		go func() {
			_, _, err := request(ctx, http.MethodGet, "")
			failed <- err
		}()
		<-arrived
		end(cancel)
		require.Error(t, <-failed, name)
		cancel()
	}
	proxy.Watch(nil)
	proxy.Mend()

	proxy.Stop()
	_, _, err = request(t.Context(), http.MethodGet, "")
	require.Error(t, err)
	require.NoError(t, proxy.Start())
	answered()
}

// TestKilled kills a process that has started a server: it must end as well.
func TestKilled(t *testing.T) {
	s3server.New(t) // skips
	child := backuptest.Start(t, "server", t.TempDir())
	address := child.Hear()
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer c.Close()
	child.Kill()
	// The connection ends with the daemon.
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
}
