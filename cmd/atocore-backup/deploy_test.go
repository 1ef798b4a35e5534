package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// repository returns the path of a file of this repository.
func repository(elem ...string) string {
	return filepath.Join(append([]string{"..", ".."}, elem...)...)
}

func readRepository(t *testing.T, elem ...string) string {
	t.Helper()
	text, err := os.ReadFile(repository(elem...))
	require.NoError(t, err)
	return string(text)
}

// Every command line of the documents and the files for deployment is one that the
// command takes.
func TestDocumentedCommandLines(t *testing.T) {
	called := regexp.MustCompile(`(?:^|[\s(=/"])(?:atocore-backup|run --rm backup) +([a-z][^|>;&)#"\x60]*)`)
	code := regexp.MustCompile("`[^`]+`")
	number := 0
	for _, file := range []string{
		"README.md", "docs/command.md", "docs/deploy.md", "docs/offsite.md", "docs/restore.md", "contrib/cron/atocore-backup", "contrib/compose/compose.yaml",
		"contrib/systemd/atocore-backup.service", "contrib/systemd/atocore-backup-drill.service", "contrib/systemd/atocore-backup-offsite.service",
		"contrib/systemd/atocore-backup-run.service",
	} {
		for line := range strings.Lines(readRepository(t, filepath.FromSlash(file))) {
			texts := []string{line}
			if strings.HasSuffix(file, ".md") && !strings.HasPrefix(line, "    ") {
				texts = code.FindAllString(line, -1)
			}
			for _, text := range texts {
				for _, found := range called.FindAllStringSubmatch(strings.Trim(text, "`\n"), -1) {
					args := regexp.MustCompile(`'[^']*'|\S+`).FindAllString(regexp.MustCompile(`\s2$`).ReplaceAllString(found[1], ""), -1)
					parser, err := newParser(new(commandLine), io.Discard, 80, func(int) {})
					require.NoError(t, err)
					_, err = parser.Parse(args)
					if !strings.HasPrefix(text, "`") || !strings.Contains(found[1], "COMMAND") {
						require.NoError(t, err, "%s: %s", file, line)
					}
					number++
				}
			}
		}
	}
	require.Greater(t, number, 30)
}

// systemd has no objection to the units.
func TestSystemdUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze")
	}
	dir := t.TempDir()
	verify := []string{"verify", "--man=no"}
	for _, name := range []string{
		"atocore-backup-run.service",
		"atocore-backup.service", "atocore-backup.timer", "atocore-backup-drill.service", "atocore-backup-drill.timer",
		"atocore-backup-offsite.service", "atocore-backup-offsite.timer", "atocore-backup-failed@.service",
	} {
		// The command need not be installed here.
		unit := strings.ReplaceAll(readRepository(t, "contrib", "systemd", name), "/usr/local/bin/atocore-backup", "/bin/sh")
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(unit), 0o600))
		verify = append(verify, filepath.Join(dir, strings.Replace(name, "@", "@test", 1)))
	}
	out, err := exec.Command(analyze, verify...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))

	// It does see what is wrong.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "atocore-backup.timer"), []byte("[Timer]\nOnCalender=daily\n"), 0o600))
	out, _ = exec.Command(analyze, verify...).CombinedOutput()
	require.NotEmpty(t, string(out))
}

// A line of the crontab prints nothing if all is well, and otherwise the status
// and the message.
func TestCrontab(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh")
	}
	bin := t.TempDir()
	stub := "#!/bin/sh\necho result\necho \"$1: message\" >&2\n[ \"$1\" != \"$FAIL\" ] || exit 3\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "atocore-backup"), []byte(stub), 0o700))
	job := regexp.MustCompile(`^(?:\S+ +){5}atocore +(.*)\n$`)
	printed := make(map[string]string)
	jobs := 0
	for line := range strings.Lines(readRepository(t, "contrib", "cron", "atocore-backup")) {
		found := job.FindStringSubmatch(line)
		if found == nil || strings.HasPrefix(line, "#") {
			continue
		}
		jobs++
		require.NotContains(t, found[1], "%", "cron takes it for the end of the line")
		for _, fail := range []string{"", "create", "prune", "drill"} {
			cmd := exec.Command(shell, "-c", found[1])
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "FAIL="+fail)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			if !strings.Contains(found[1], " status ") {
				printed[fail] += string(out)
			}
		}
	}
	require.Equal(t, 3, jobs)
	require.Equal(t, map[string]string{
		"": "", "create": "status 3: create: message\n", "prune": "status 3: prune: message\n", "drill": "status 3: drill: message\n",
	}, printed)
}

// What the guide says of containers is so in the file.
func TestComposeFile(t *testing.T) {
	type service struct {
		User        string            `yaml:"user"`
		PID         string            `yaml:"pid"`
		Profiles    []string          `yaml:"profiles"`
		Environment map[string]string `yaml:"environment"`
		Volumes     []string          `yaml:"volumes"`
	}
	var file struct {
		Services map[string]service `yaml:"services"`
		Volumes  map[string]any     `yaml:"volumes"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(readRepository(t, "contrib", "compose", "compose.yaml")), &file))
	host, command := file.Services["atocore"], file.Services["backup"]
	require.NotEmpty(t, host.User)
	require.Equal(t, host.User, command.User)
	require.Empty(t, command.PID)
	require.NotEmpty(t, command.Profiles)
	require.Subset(t, command.Volumes, host.Volumes, "at the same paths")
	require.NotEmpty(t, command.Environment["ATOCORE_HOST"])
	mounted := func(path string) bool {
		for _, volume := range command.Volumes {
			name, at, _ := strings.Cut(volume, ":")
			if _, declared := file.Volumes[name]; declared && (path == at || strings.HasPrefix(path, at+"/")) {
				return true
			}
		}
		return false
	}
	for _, name := range []string{"ATOCORE_DB_PATH", "ATOCORE_PROJECT_REGISTRY_PATH", "ATOCORE_CHROMA_PATH", "ATOCORE_BACKUP_DIR"} {
		require.True(t, mounted(command.Environment[name]), name)
	}
	require.Contains(t, command.Volumes, "backup:"+command.Environment["ATOCORE_BACKUP_DIR"], "whole")
}
