package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serverGuide returns docs/server.md.
func serverGuide(t *testing.T) string {
	t.Helper()
	guide, err := os.ReadFile(filepath.FromSlash("../../docs/server.md"))
	require.NoError(t, err)
	return string(guide)
}

// The five lines of the guide are those of an example that is run.
func TestServerGuideShowsTestedCode(t *testing.T) {
	found := regexp.MustCompile("(?s)<!-- (\\S+) -->\n```go\n(.*?)```").FindStringSubmatch(serverGuide(t))
	require.NotNil(t, found)
	require.Equal(t, 5, strings.Count(found[2], "\n"))
	source, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(found[1])))
	require.NoError(t, err)
	require.Contains(t, strings.ReplaceAll(string(source), "\n\t", "\n"), found[2])
}

// The commands of the guide work as they are written, and there is one for each
// route of the documentation of package backuphttp.
func TestServerGuideCommands(t *testing.T) {
	for _, tool := range []string{"sh", "curl", "grep", "head", "cut"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	_, s := newSite(t)
	s.create()
	// Each request tells on its standard error how it was answered.
	script := strings.Builder{}
	script.WriteString(`curl() { command curl -w '%{stderr}%{method} %{http_code} %{url}\n' "$@"; }` + "\n")
	for line := range strings.Lines(serverGuide(t)) {
		if command, ok := strings.CutPrefix(line, "    "); ok && !strings.HasPrefix(command, "atocore_") {
			script.WriteString(strings.ReplaceAll(command, "http://127.0.0.1:8080", s.url))
		}
	}
	command := exec.Command("sh", "-eu", "-c", script.String())
	command.Dir = t.TempDir()
	var messages strings.Builder
	command.Stderr = &messages
	ended := make(chan struct{})
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		wakeFollower(s, ended)
	}()
	err := command.Run()
	close(ended)
	<-woken
	require.NoError(t, err, messages.String())

	refused := map[string]string{"DELETE /operations/{id}": "409", "POST /prune": "400"} // as the guide says
	answered := make(map[string]bool)
	for _, found := range regexp.MustCompile(`(?m)^(GET|POST|DELETE) (\d+) `+regexp.QuoteMeta(s.url+mount)+`(\S*)$`).FindAllStringSubmatch(messages.String(), -1) {
		route := found[1] + " /" + routeOf(found[3])
		require.True(t, found[2][0] == '2' || found[2] == refused[route], found[0])
		answered[route] = true
	}
	doc := newDriver(s)
	doc.driven = answered
	doc.requireAll()
}

// wakeFollower makes something happen as soon as a client follows the events: curl
// notices that nobody reads its output any more when it writes the next time.
func wakeFollower(s *site, ended <-chan struct{}) {
	for {
		_, metrics := s.send("GET", mount+"metrics", "")
		if strings.Contains(metrics, "atocore_backup_event_followers 1\n") {
			_, _ = s.send("GET", mount+"none/validate", "")
		}
		select {
		case <-ended:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// routeOf returns a path as the documentation writes it.
func routeOf(path string) string {
	path = regexp.MustCompile(`^operations/.+`).ReplaceAllString(path, "operations/{id}")
	path = regexp.MustCompile(`^page/.+`).ReplaceAllString(path, "page/{name}")
	return regexp.MustCompile(`^\d{8}T\d{6}Z[-\d]*`).ReplaceAllString(path, "{stamp}")
}
