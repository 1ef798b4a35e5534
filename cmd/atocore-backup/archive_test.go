package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A snapshot moves to another machine through a pipe, or in a file, and is whole
// there.
func TestExportAndImport(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	archive := filepath.Join(t.TempDir(), "snapshot.tar")
	file := atocore(t, "export", "latest", "-o", archive, "--backup-dir", s.backups)
	require.Equal(t, exitDone, file.code, file.stderr)
	require.Empty(t, file.stdout)
	require.Regexp(t, "Snapshot "+stamp+" is exported: .* kB\\.\n$", file.stderr)
	pipe := atocore(t, "export", stamp, "--backup-dir", s.backups)
	require.Equal(t, exitDone, pipe.code, pipe.stderr)
	content, err := os.ReadFile(archive)
	require.NoError(t, err)
	require.True(t, string(content) == pipe.stdout, "the same bytes")
	info, err := os.Stat(archive)
	require.NoError(t, err)
	if runtime.GOOS != "windows" {
		require.Equal(t, os.FileMode(0o600), info.Mode())
	}

	for _, form := range []string{"file", "pipe", "-"} {
		backups := t.TempDir()
		args := []string{"import", "--backup-dir", backups, "--note", "from elsewhere"}
		switch form {
		case "file":
			args = append(args, archive)
		case "-":
			args = append(args, "-")
		}
		for n := range 2 { // the second time it is there
			cmd := command(t, args...)
			cmd.Stdin = bytes.NewReader(content)
			o := do(t, cmd)
			require.Equal(t, exitDone, o.code, o.stderr)
			require.Equal(t, stamp, decode[report](t, o).Stamp)
			require.Equal(t, n == 1, strings.Contains(o.stderr, "is there already"), o.stderr)
		}
		moved := s
		moved.backups = backups
		require.True(t, *moved.verified(t, stamp).Verified)
		require.Equal(t, exitDone, atocore(t, "drill", "--backup-dir", backups).code)
	}
}

// A file gets its name when it is complete, and none is overwritten.
func TestExportToAFile(t *testing.T) {
	s := newStore(t)
	stamp, dir := s.create(t)
	files := t.TempDir()
	archive := filepath.Join(files, "a.tar")
	require.NoError(t, os.WriteFile(archive, []byte("precious"), 0o600))
	atocore(t, "export", stamp, "-o", archive, "--backup-dir", s.backups).requireFailed(t, archive, "exists")
	requireFile(t, archive, "precious")
	atocore(t, "export", stamp, "-o", filepath.Join(files, "absent", "a.tar"), "--backup-dir", s.backups).requireFailed(t, "no such file")
	atocore(t, "export", stamp, "-o", "", "--backup-dir", s.backups).requireFailed(t, "--output is empty")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "config", "registry.json"), []byte("{}"), 0o600))
	o := atocore(t, "export", stamp, "-o", filepath.Join(files, "b.tar"), "--backup-dir", s.backups)
	require.Equal(t, exitInvalid, o.code, o.stderr)
	require.Contains(t, o.stderr, "  file_changed: config/registry.json")
	entries, err := os.ReadDir(files)
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing is left of a part")
}

// What is not a whole archive is refused, and leaves nothing.
func TestImportRefuses(t *testing.T) {
	s := newStore(t)
	stamp, _ := s.create(t)
	whole := atocore(t, "export", stamp, "--backup-dir", s.backups).stdout
	for name, archive := range map[string]string{
		"nothing": "", "something else": strings.Repeat("no archive", 1000), "a part": whole[:len(whole)/2], "changed": strings.Replace(whole, `{"projects": []}`, `{"projects": {}}`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			backups := t.TempDir()
			cmd := command(t, "import", "--backup-dir", backups)
			cmd.Stdin = strings.NewReader(archive)
			o := do(t, cmd)
			require.Equal(t, exitInvalid, o.code, o.stderr)
			require.NotEmpty(t, o.stderr)
			require.Equal(t, "[]\n", atocore(t, "list", "--backup-dir", backups).stdout)
		})
	}
}

// A signal ends an import whose input stalls, and an export whose reader does.
func TestSignalEndsAStalledArchive(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs signals")
	}
	s := newStore(t)
	_, err := s.live.Exec("CREATE TABLE big AS SELECT randomblob(3000000) AS data") // more than a pipe holds
	require.NoError(t, err)
	stamp, _ := s.create(t)
	t.Run("export", func(t *testing.T) {
		cmd := command(t, "export", stamp, "--backup-dir", s.backups)
		r, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = io.ReadFull(r, make([]byte, 512)) // it has begun
		require.NoError(t, err)
		require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
		require.Equal(t, exitSignal+int(syscall.SIGINT), exitCode(t, cmd))
	})
	t.Run("import", func(t *testing.T) {
		whole := atocore(t, "export", stamp, "--backup-dir", s.backups).stdout
		backups := t.TempDir()
		cmd := command(t, "import", "--backup-dir", backups)
		w, err := cmd.StdinPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = io.WriteString(w, whole[:len(whole)/2]) // it has begun to read, for this is more than a pipe holds
		require.NoError(t, err)
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.Equal(t, exitSignal+int(syscall.SIGTERM), exitCode(t, cmd))
		entries, err := os.ReadDir(backups)
		require.NoError(t, err)
		for _, e := range entries {
			require.NotContains(t, e.Name(), "staging")
		}
	})
}

// exitCode waits for a command that may leave its pipes open.
func exitCode(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	state, err := cmd.Process.Wait()
	require.NoError(t, err)
	return state.ExitCode()
}
