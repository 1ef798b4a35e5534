//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A service is a run of the command that goes on.
type service struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout strings.Builder
	stderr *bufio.Scanner
	said   []string
}

// startRun starts run for a store.
func startRun(t *testing.T, s store, args ...string) *service {
	t.Helper()
	v := &service{t: t, cmd: command(t, append(append([]string{"run"}, s.flags()...), args...)...)}
	v.cmd.Stdout = &v.stdout
	stderr, err := v.cmd.StderrPipe()
	require.NoError(t, err)
	v.stderr = bufio.NewScanner(stderr)
	require.NoError(t, v.cmd.Start())
	t.Cleanup(func() {
		if v.cmd.ProcessState == nil {
			_ = v.cmd.Process.Kill()
			_ = v.cmd.Wait()
		}
	})
	return v
}

// hear returns the next line that matches.
func (v *service) hear(pattern string) []string {
	v.t.Helper()
	for v.stderr.Scan() {
		v.said = append(v.said, v.stderr.Text())
		if found := regexp.MustCompile(pattern).FindStringSubmatch(v.stderr.Text()); found != nil {
			return found
		}
	}
	require.FailNow(v.t, "it has ended", "%q was not said: %q", pattern, v.said)
	return nil
}

// stop sends a signal and returns what the service says until it has ended.
func (v *service) stop(sig syscall.Signal) outcome {
	v.t.Helper()
	require.NoError(v.t, v.cmd.Process.Signal(sig))
	said := ""
	for v.stderr.Scan() {
		said += v.stderr.Text() + "\n"
	}
	_ = v.cmd.Wait()
	return outcome{v.cmd.ProcessState.ExitCode(), v.stdout.String(), said}
}

// ask makes a request.
func ask(t *testing.T, method, url string, edit func(*http.Request)) (status int, header http.Header, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	if edit != nil {
		edit(r)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, answer.Header, string(text)
}

// run takes snapshots until a signal ends it, with status 0, and goes on where it
// was afterwards.
func TestRun(t *testing.T) {
	s := newStore(t)
	scratch := t.TempDir()
	args := []string{"--every", "1h", "--verify", "--keep-last", "2", "--drill-every", "7d", "--scratch", scratch, "--include-chroma"}
	v := startRun(t, s, args...)
	stamp := v.hear(`^Snapshot (\S+): database .*, registry, Chroma 1 file 7 B\.$`)[1]
	v.hear(`^Snapshot "` + stamp + `" is valid\.$`)
	v.hear(`^Pruned: 1 snapshot kept, 0 removed\.$`)
	v.hear(`^Snapshot ` + stamp + ` can be restored: 3 files, `)
	require.Equal(t, outcome{exitDone, "", "Stopping: terminated.\n"}, v.stop(syscall.SIGTERM))
	requireEmpty(t, scratch)
	require.Equal(t, []string{stamp}, s.stamps(t))

	v = startRun(t, s, append(args, "--listen", "0")...)
	v.hear("^Listening on ")
	sig := syscall.SIGINT
	if signal.Ignored(sig) { // as in a background job, and inherited
		sig = syscall.SIGTERM
	}
	o := v.stop(sig)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.NotContains(t, o.stderr, "Snapshot")
	require.Equal(t, []string{stamp}, s.stamps(t))
}

// What fails is said with the time of the next attempt.
func TestRunSaysWhatFails(t *testing.T) {
	s := newStore(t)
	s.db = filepath.Join(t.TempDir(), "absent.db")
	v := startRun(t, s, "--cron", "0 3 * * *")
	line := v.hear(`^The snapshot failed: .*absent\.db.*It is tried again after (\S+)\.$`)
	require.Equal(t, "1m", line[1])
	require.Equal(t, exitDone, v.stop(syscall.SIGTERM).code)
	require.Empty(t, s.snapshots(t).Stamps())
}

// The handler is served at / beside the schedule, to this machine only.
func TestRunServes(t *testing.T) {
	s := newStore(t)
	v := startRun(t, s, "--every", "24h", "--verify", "--listen", "127.0.0.1:0", "--allow", "protect,remove", "--max-age", "1ms", "--max-unverified", "8d")
	url := v.hear(`^Listening on (http://127\.0\.0\.1:\d+/)\.$`)[1]
	stamp := v.hear(`^Snapshot (\S+): database`)[1]
	v.hear(`is valid`)

	status, header, body := ask(t, "GET", url, nil)
	require.Equal(t, http.StatusOK, status, body)
	require.Contains(t, header.Get("Content-Type"), "application/json")
	var list []entry
	require.NoError(t, json.Unmarshal([]byte(body), &list))
	require.Equal(t, []entry{{Stamp: stamp, HasMetadata: true}}, list)

	status, header, body = ask(t, "POST", url, nil)
	require.Equal(t, http.StatusCreated, status, body)
	require.NotEmpty(t, header.Get("Location"))
	require.Len(t, s.stamps(t), 2)
	_, _, body = ask(t, "GET", url+"metrics", nil)
	require.Regexp(t, `(?m)^atocore_backup_\S+ 2$`, body)

	_, _, body = ask(t, "GET", url, func(r *http.Request) { r.Header.Set("Accept", "text/html") })
	require.Contains(t, body, "The newest snapshot is older than")
	require.NotContains(t, body, "found valid is older than")

	_, _, body = ask(t, "GET", url+"operations", nil)
	require.Contains(t, body, `"verify"`, "what is scheduled is shown, too")

	for path, want := range map[string]int{
		stamp + "/protect": http.StatusOK, stamp + "/restore": http.StatusForbidden, "prune": http.StatusForbidden, "import": http.StatusForbidden,
	} {
		status, _, body = ask(t, "POST", url+path, nil)
		require.Equal(t, want, status, "%s: %s", path, body)
	}

	// A page of another site can make its name resolve to this machine.
	for host, want := range map[string]int{
		"evil.example": 421, "evil.example:80": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421, "192.0.2.1": 421, "[2001:db8::1]:80": 421, "0.0.0.0": 421,
		"localhost": 200, "LOCALHOST:1": 200, "127.0.0.1": 200, "[::1]:8077": 200, "127.1.2.3": 200,
	} {
		status, _, body = ask(t, "GET", url, func(r *http.Request) { r.Host = host })
		require.Equal(t, want, status, "%s: %s", host, body)
	}
	status, _, _ = ask(t, "POST", url, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") })
	require.Equal(t, http.StatusForbidden, status)

	// A follower of the events is no reason to stay.
	events, err := http.Get(url + "events")
	require.NoError(t, err)
	defer events.Body.Close()
	require.Equal(t, exitDone, v.stop(syscall.SIGTERM).code)
	_, err = io.ReadAll(events.Body)
	require.NoError(t, err, "the stream was cut off and not ended")
	require.Len(t, s.stamps(t), 2)
}

// With a token, requests need it, whatever they ask for.
func TestRunAsksForTheToken(t *testing.T) {
	s := newStore(t)
	const token = "correct-horse-battery-staple"
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
	v := startRun(t, s, "--every", "24h", "--listen", "0.0.0.0:0", "--token-file", file)
	port := v.hear(`^Listening on http://(?:0\.0\.0\.0|\[::\]):(\d+)/\.$`)[1]
	v.hear(`^Snapshot `)
	for _, path := range []string{"", "latest", "metrics", "events", "page/style.css", "absent"} {
		for _, method := range []string{"GET", "HEAD", "POST", "DELETE", "OPTIONS"} {
			status, header, body := ask(t, method, "http://127.0.0.1:"+port+"/"+path, nil)
			require.Equal(t, http.StatusUnauthorized, status)
			require.Len(t, header.Values("WWW-Authenticate"), 2)
			require.NotContains(t, body, s.backups)
			require.NotContains(t, body, token)
		}
	}
	for name, test := range map[string]struct {
		edit func(*http.Request)
		want int
	}{
		"bearer":             {func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }, 200},
		"bearer in capitals": {func(r *http.Request) { r.Header.Set("Authorization", "BEARER "+token) }, 200},
		"a browser":          {func(r *http.Request) { r.SetBasicAuth("anybody", token) }, 200},
		"another machine":    {func(r *http.Request) { r.Host = "store.example"; r.SetBasicAuth("", token) }, 200},
		"as the user":        {func(r *http.Request) { r.SetBasicAuth(token, "") }, 401},
		"wrong":              {func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token+"x") }, 401},
		"cut off":            {func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token[1:]) }, 401},
		"another scheme":     {func(r *http.Request) { r.Header.Set("Authorization", "Token "+token) }, 401},
		"no scheme":          {func(r *http.Request) { r.Header.Set("Authorization", token) }, 401},
		"empty":              {func(r *http.Request) { r.Header.Set("Authorization", "Bearer ") }, 401},
		"in the query":       {func(r *http.Request) { r.URL.RawQuery = "access_token=" + token }, 401},
	} {
		status, _, _ := ask(t, "GET", "http://127.0.0.1:"+port+"/", test.edit)
		require.Equal(t, test.want, status, name)
	}
	require.Equal(t, exitDone, v.stop(syscall.SIGTERM).code)
	require.NotContains(t, strings.Join(v.said, "\n"), token)
}

// A command line that cannot work, or should not, is refused at once.
func TestRunRefuses(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	tokens := make(map[string]string)
	for name, text := range map[string]string{
		"good": "0123456789abcdef", "short": "0123456789abcde\n", "empty": "", "spaces": "0123456789 abcdef", "binary": "0123456789\x00abcdef", "lines": "0123456789\nabcdefg",
		"long": strings.Repeat("x", 5000),
	} {
		tokens[name] = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(tokens[name], []byte(text), 0o600))
	}
	for _, test := range []struct {
		args  string
		words string
	}{
		{"", "--every or --cron"},
		{"--every 1h --cron @daily", "not both"},
		{"--every soon", "soon"},
		{"--every -1h", "--every"},
		{"--cron tomorrow", "cron expression"},
		{"--cron @every_1h", "@every"},
		{"--every 1h --wait -1s", "--wait"},
		{"--every 1h --scratch=", "--scratch is empty"},
		{"--every 1h --guard-file=", "--guard-file is empty"},
		{"--every 1h --keep-last -2", "-2"},
		{"--every 1h --push", "--repo"},
		{"--every 1h --listen=", "--listen is empty"},
		{"--every 1h --listen 0.0.0.0:0", "--token-file"},
		{"--every 1h --listen [::]:0", "--token-file"},
		{"--every 1h --listen 192.0.2.1:0", "--token-file"},
		{"--every 1h --listen [::ffff:192.0.2.1]:0", "--token-file"},
		{"--every 1h --listen store.example:80", "not an IP address"},
		{"--every 1h --listen 127.0.0.1", "not a port"},
		{"--every 1h --listen http", "not a port"},
		{"--every 1h --listen 65536", "not a port"},
		{"--every 1h --listen 192.0.2.1:0 --token-file " + tokens["good"], "192.0.2.1"}, // not of this machine
		{"--every 1h --token-file " + tokens["good"], "--listen"},
		{"--every 1h --allow prune", "--listen"},
		{"--every 1h --max-unverified 8d", "--listen"},
		{"--every 1h --listen 0 --allow everything", "everything"},
		{"--every 1h --listen 0 --token-file " + filepath.Join(dir, "absent"), "absent"},
		{"--every 1h --listen 0 --token-file=", "--token-file is empty"},
		{"--every 1h --listen 0 --token-file " + tokens["short"], "shorter"},
		{"--every 1h --listen 0 --token-file " + tokens["empty"], "shorter"},
		{"--every 1h --listen 0 --token-file " + tokens["spaces"], "printable"},
		{"--every 1h --listen 0 --token-file " + tokens["binary"], "printable"},
		{"--every 1h --listen 0 --token-file " + tokens["lines"], "printable"},
		{"--every 1h --listen 0 --token-file " + tokens["long"], "longer"},
	} {
		args := strings.Fields(test.args)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "every_", "every ")
		}
		atocore(t, append(append([]string{"run"}, s.flags()...), args...)...).requireFailed(t, test.words)
	}
	require.Empty(t, s.snapshots(t).Stamps())
	// A port that is in use is told before anything is done.
	v := startRun(t, s, "--every", "1h", "--listen", "0")
	address := v.hear(`^Listening on http://(\S+)/\.$`)[1]
	other := newStore(t)
	atocore(t, append(append([]string{"run"}, other.flags()...), "--every", "1h", "--listen", address)...).requireFailed(t, "in use")
	require.NoDirExists(t, other.backups)
	require.Equal(t, exitDone, v.stop(syscall.SIGTERM).code)
}
