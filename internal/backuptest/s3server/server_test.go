package s3server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
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
	"github.com/atocore/backup/internal/backuptest/resticrepo"
	"github.com/atocore/backup/internal/backuptest/s3server"
)

// shared is the server of the tests that leave it as it is.
var shared s3server.Shared

func TestMain(m *testing.M) {
	backuptest.Play(backuptest.Roles{"server": func(p *backuptest.Parent, args []string) error {
		s, err := s3server.Start(context.Background(), args[0])
		if err != nil {
			return err
		}
		p.Say(s.Address())
		p.Hear() // until it is killed
		return nil
	}})
	status := m.Run()
	if err := shared.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// restic runs restic through a proxy.
type restic struct {
	t        *testing.T
	proxy    *s3server.Proxy
	location string
}

func (r *restic) try(args ...string) (string, error) {
	cmd := exec.CommandContext(r.t.Context(), "restic", append(r.proxy.Args(), args...)...)
	cmd.Env = append(os.Environ(), "RESTIC_REPOSITORY="+r.location, "RESTIC_PASSWORD="+resticrepo.Password, "RESTIC_CACHE_DIR="+r.t.TempDir())
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

// TestRestic stores and restores a tree, while requests are broken.
func TestRestic(t *testing.T) {
	if _, err := exec.LookPath("restic"); err != nil {
		t.Skip("restic is not installed")
	}
	server := shared.Get(t)
	tree := t.TempDir()
	content := make([]byte, 1<<20)
	_, err := rand.NewChaCha8([32]byte{}).Read(content) // incompressible
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(tree, "file"), content, 0o600))

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
			bucket := "bucket-" + c.name
			require.NoError(t, server.Put(t.Context(), bucket, resticrepo.Files()))
			r := &restic{t, proxy, proxy.Location(bucket)}
			proxy.Break(c.fault)
			before := proxy.Traffic()
			r.run("backup", tree)
			up := proxy.Since(before).Up
			require.Greater(t, up, int64(len(content)))
			if c.fault.Kind == 0 {
				require.Less(t, up, int64(len(content)+100_000))
			}
			target := t.TempDir()
			r.run("restore", "latest", "--target", target)
			got, err := os.ReadFile(filepath.Join(target, tree, "file"))
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, got))
			proxy.Mend()
			r.run("check", "--read-data")

			objects, err := server.Objects(bucket)
			require.NoError(t, err)
			require.Contains(t, objects, "config")
			var config struct{ ID string }
			require.NoError(t, json.Unmarshal([]byte(r.run("cat", "config")), &config))
			require.Len(t, config.ID, 64)
		})
	}
}

// TestFaults makes requests that are broken in each way.
func TestFaults(t *testing.T) {
	server := shared.Get(t)
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
	shared.Get(t) // skips
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

// TestInit makes a repository, and its bucket, with restic.
func TestInit(t *testing.T) {
	if testing.Short() {
		t.Skip("restic takes a few seconds")
	}
	if _, err := exec.LookPath("restic"); err != nil {
		t.Skip("restic is not installed")
	}
	server := shared.Get(t)
	proxy := server.NewProxy(t)
	r := &restic{t, proxy, proxy.Location("new/repo")}
	r.run("init")
	objects, err := server.Objects("new")
	require.NoError(t, err)
	require.Contains(t, objects, "repo/config")
}
