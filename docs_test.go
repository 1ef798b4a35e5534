package backup_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
)

// readDoc returns a file of docs.
func readDoc(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("docs", name))
	require.NoError(t, err)
	return string(data)
}

// The messages that the guides quote exist in the source.
func TestGuidesQuoteRealMessages(t *testing.T) {
	var source strings.Builder
	for _, pattern := range []string{"*.go", "internal/*/*.go", "offsite/*.go", "offsite/internal/*/*.go", "cmd/atocore-backup/*.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") || filepath.Base(filepath.Dir(file)) == "backuptest" {
				continue
			}
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			source.Write(data)
		}
	}
	// The guide has an ellipsis for each verb of a format string.
	text := regexp.MustCompile(`%[sdvw]`).ReplaceAllString(source.String(), "…")
	for _, guide := range []struct {
		text   string
		quotes int // at least
	}{{readDoc(t, "restore.md"), 20}, {section(t, "offsite.md", "When something is wrong"), 8}} {
		var quoted int
		for _, line := range strings.Split(guide.text, "\n") {
			row, ok := strings.CutPrefix(line, "| `")
			if !ok {
				continue
			}
			messages, _, _ := strings.Cut("`"+row, " | ")
			for i, message := range strings.Split(messages, "`") {
				if i%2 == 1 {
					quoted++
					require.True(t, strings.Contains(text, strings.TrimSuffix(message, ":")), "no message has %q", message)
				}
			}
		}
		require.GreaterOrEqual(t, quoted, guide.quotes)
	}
}

// section returns a section of a file of docs.
func section(t *testing.T, name, title string) string {
	t.Helper()
	_, text, found := strings.Cut(readDoc(t, name), "\n## "+title+"\n")
	require.True(t, found, "%s: no section %q", name, title)
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// The script of the guide to copies is the one that the tests of package offsite
// run.
func TestOffsiteGuideShowsTheScript(t *testing.T) {
	script, err := os.ReadFile(filepath.Join("offsite", "testdata", "by-hand.sh"))
	require.NoError(t, err)
	require.Equal(t, string(script), strings.TrimRight(handBlock(t, "offsite.md", "offsite/testdata/by-hand.sh"), "\n")+"\n")
}

// The code that the guide for hosts shows is that which the suite of drivers runs.
func TestHostsGuideShowsTestedCode(t *testing.T) {
	blocks := regexp.MustCompile("(?s)<!-- (\\S+) -->\n```go\n(.*?)```").FindAllStringSubmatch(readDoc(t, "hosts.md"), -1)
	require.Len(t, blocks, 4)
	for _, block := range blocks {
		source, err := os.ReadFile(filepath.FromSlash(block[1]))
		require.NoError(t, err)
		require.True(t, strings.Contains(string(source), "\n"+block[2]), "%s does not have the code that the guide shows", block[1])
	}
}

// handBlock returns the commands of a guide that follow a mark.
func handBlock(t *testing.T, guide, mark string) string {
	t.Helper()
	_, after, found := strings.Cut(readDoc(t, guide), "<!-- "+mark+" -->\n")
	require.True(t, found)
	var script strings.Builder
	for _, line := range strings.Split(strings.TrimLeft(after, "\n"), "\n") {
		command, indented := strings.CutPrefix(line, "    ")
		if !indented && line != "" {
			break
		}
		script.WriteString(command + "\n")
	}
	return script.String()
}

// The commands of the guide restore a store by hand, also over what a restore left
// that was cut off.
func TestRestoreByHand(t *testing.T) {
	for _, tool := range []string{"sh", "sha256sum", "find"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs coreutils:", err)
		}
	}
	home := t.TempDir()
	s := backuptest.NewBareStore(t)
	require.NoError(t, os.Rename(s.Dir, filepath.Join(home, "store")))
	s.Options = backuptest.OptionsIn(filepath.Join(home, "store"))
	s.BackupDir = filepath.Join(home, "backups")
	meta := s.Create()
	chroma := backuptest.ReadTree(t, s.ChromaPath)
	registry, err := os.ReadFile(s.RegistryPath)
	require.NoError(t, err)

	// A WAL, which would be applied to any database that lies beside it.
	db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=wal_autocheckpoint(0)")
	for range 100 {
		require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 3))
	}
	backuptest.KeepWAL(t, db, s.DatabasePath)
	require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{}"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "later"), nil, 0o600))
	for part, dir := range map[string]string{"db": filepath.Dir(s.DatabasePath), "config": filepath.Dir(s.RegistryPath), "chroma": s.ChromaPath} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, ".atocore-restore-0123456789abcdef-"+part, "old"), 0o700))
	}
	journal := filepath.Join(filepath.Dir(s.DatabasePath), ".atocore-restore.journal")
	backuptest.Write(t, journal, "no journal\n")
	pointer := filepath.Join(s.BackupDir, ".atocore-restore.journal")
	backuptest.Write(t, pointer, "no pointer\n")

	run := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-euxc", strings.ReplaceAll(script, "STAMP", meta.Stamp))
		cmd.Env = append(os.Environ(), "HOME="+home)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	require.Contains(t, run(handBlock(t, "restore.md", "a test runs this block")), "\nintact\n")
	run(handBlock(t, "restore.md", "a test runs this block, too"))

	backuptest.RequireSound(t, s.DatabasePath)
	require.Zero(t, backuptest.CountTransfers(t, s.DatabasePath))
	require.NoFileExists(t, s.DatabasePath+"-wal")
	require.Equal(t, chroma, backuptest.ReadTree(t, s.ChromaPath))
	got, err := os.ReadFile(s.RegistryPath)
	require.NoError(t, err)
	require.Equal(t, registry, got)
	for path, kept := range map[string]string{journal: ".atocore-restore.journal", pointer: "pointer"} {
		require.NoFileExists(t, path)
		require.FileExists(t, filepath.Join(home, "before-restore", "cut-off", kept))
	}
	left, err := filepath.Glob(filepath.Join(home, "store", "*", ".atocore*"))
	require.NoError(t, err)
	require.Empty(t, left)
	require.FileExists(t, filepath.Join(home, "before-restore", "atocore.db-wal"), "the old WAL is lost")
	s.RequireClean()
	s.Create() // nothing is in its way any more
}
