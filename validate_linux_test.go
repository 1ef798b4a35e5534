package backup_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

func TestValidateOnAReadOnlyDisk(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	for _, form := range []string{"format 1", "Python", "Python in WAL form"} {
		t.Run(form, func(t *testing.T) {
			s := base.Copy(t)
			if strings.HasPrefix(form, "Python") {
				s.MakePython()
			}
			if form == "Python in WAL form" {
				s.SetJournalForm(2)
			}
			target := t.TempDir()
			backuptest.MountReadOnly(t, s.BackupDir, target)
			s.BackupDir = target
			require.ErrorIs(t, os.WriteFile(s.Path("x"), nil, 0o600), unix.EROFS)
			s.RequireProblems()
		})
	}
}

// What is mounted in a snapshot is none of its files.
func TestValidateEntersNoMountPoint(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	for _, dir := range []string{"db", "chroma", "chroma/empty", "other"} {
		t.Run(dir, func(t *testing.T) {
			s := base.Copy(t)
			require.NoError(t, os.MkdirAll(s.Path(dir), 0o755))
			backuptest.MountTmpfs(t, s.Path(dir), "")
			require.NoError(t, os.WriteFile(s.Path(dir+"/x"), nil, 0o600))
			require.Contains(t, backuptest.Brief(s.Validate().Problems), "file_not_regular: "+dir)
		})
	}
}

// hostileTrees makes snapshots that would lead a careless reader out. Each is
// one of these, and what it would read lies in outside.
func hostileTrees(t *testing.T, outside string) (base *backuptest.Snapshot, stamps []string) {
	base = backuptest.NewSnapshot(t)
	require.NoError(t, os.CopyFS(outside, os.DirFS(base.Path(""))))
	add := func(stamp string, harm func(s *backuptest.Snapshot)) {
		s := *base
		s.Stamp = stamp
		require.NoError(t, os.CopyFS(s.Path(""), os.DirFS(base.Path(""))))
		harm(&s)
		stamps = append(stamps, stamp)
	}
	segment := filepath.Dir(base.Files()[1])
	for i, file := range append(base.Files(), backuptest.ManifestFile, "db", "config", "chroma", segment) {
		for j, target := range []string{filepath.Join(outside, file), strings.Repeat("../", 20) + filepath.Join(outside, file)} {
			for _, python := range []bool{false, true} {
				add(fmt.Sprintf("link-%d-%d-%t", i, j, python), func(s *backuptest.Snapshot) {
					if python {
						s.MakePython()
					}
					s.Link(file, target)
				})
			}
		}
	}
	for i, change := range []map[string]any{
		{"db_snapshot_path": filepath.Join(outside, backuptest.DBFile)},
		{"db_snapshot_path": base.RecordedRoot() + strings.Repeat("/..", 20) + filepath.Join(outside, backuptest.DBFile)},
		{"registry_snapshot_path": filepath.Join(outside, backuptest.RegistryFile)},
		{"chroma_snapshot_path": filepath.Join(outside, "chroma")},
		{"backup_root": outside},
		{"backup_root": "/", "db_snapshot_path": filepath.Join(outside, backuptest.DBFile)},
		{"backup_root": outside, "db_snapshot_path": filepath.Join(outside, backuptest.DBFile),
			"registry_snapshot_path": filepath.Join(outside, backuptest.RegistryFile), "chroma_snapshot_path": filepath.Join(outside, "chroma")},
	} {
		add(fmt.Sprintf("path-%d", i), func(s *backuptest.Snapshot) { s.Set(change); s.Reseal() })
		add(fmt.Sprintf("path-%d-python", i), func(s *backuptest.Snapshot) { s.MakePython(); s.Set(change) })
	}
	for i, name := range []string{filepath.Join(outside, backuptest.DBFile), "../../../outside/" + backuptest.DBFile, "db/../../../../outside/" + backuptest.DBFile} {
		add(fmt.Sprintf("manifest-%d", i), func(s *backuptest.Snapshot) {
			s.Write(backuptest.ManifestFile, append([]byte(backuptest.ManifestLine(nil, name)), s.Read(backuptest.ManifestFile)...))
		})
	}
	add("fifo", func(s *backuptest.Snapshot) {
		s.Remove(backuptest.RegistryFile)
		require.NoError(t, unix.Mkfifo(s.Path(backuptest.RegistryFile), 0o600))
	})
	// SQLite must not be led out by what a database says.
	add("attach", func(s *backuptest.Snapshot) {
		data := s.Read(backuptest.DBFile)
		copy(data[len(data)-100:], outside)
		s.Write(backuptest.DBFile, data)
	})
	require.NoError(t, os.Symlink(outside, filepath.Join(base.BackupDir, "snapshots", "linked")))
	return base, append(stamps, base.Stamp, "linked", "../../outside", "..", ".", "", outside, "../outside/db")
}

// Whatever a snapshot says, nothing outside of it is opened, and nothing at
// all is opened for writing. The kernel is the witness.
func TestValidateOpensNothingOutside(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace to watch with:", err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	base, stamps := hostileTrees(t, outside)

	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, append([]string{"-f", "-y", "-s", "10000", "-e", "trace=%file", "-o", trace,
		os.Args[0], base.BackupDir}, stamps...)...)
	cmd.Env = append(os.Environ(), backuptest.RoleEnv+"=validate")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	defer stdin.Close()
	out, err := cmd.Output()
	if err != nil && strings.Contains(fmt.Sprint(err), "exit status 1") {
		t.Skip("strace cannot trace here")
	}
	require.NoError(t, err)
	var found findings
	require.NoError(t, json.Unmarshal(out, &found))
	for stamp, f := range found.Snapshots {
		want := "invalid"
		if stamp == base.Stamp || strings.HasPrefix(stamp, "path-6") {
			want = "valid" // the latter's paths are those of a snapshot that was moved
		}
		require.Equal(t, want, f.Verdict, "%s: %s", stamp, f.Error)
	}

	lines, err := os.ReadFile(trace)
	require.NoError(t, err)
	_, during, ok := strings.Cut(string(lines), traceBegin)
	require.True(t, ok)
	during, _, ok = strings.Cut(during, traceEnd)
	require.True(t, ok)
	_, during, _ = strings.Cut(during, "\n")

	snapshots := filepath.Join(base.BackupDir, "snapshots")
	opened := regexp.MustCompile(` = \d+<([^>]*)>`)
	absolute := regexp.MustCompile(`, "(/[^"]*)"|\("(/[^"]*)"`)
	writing := regexp.MustCompile(`O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND|O_TMPFILE| (mkdir|unlink|rename|link|symlink|mknod|chmod|fchmodat|chown|truncate|utime|utimensat|mount|setxattr)`)
	calls := 0
	for line := range strings.Lines(during) {
		if strings.Contains(line, "SIG") || strings.Contains(line, "exited with") {
			continue
		}
		calls++
		require.NotRegexp(t, writing, line)
		for _, m := range opened.FindAllStringSubmatch(line, -1) {
			inside := m[1] == base.BackupDir || m[1] == snapshots || strings.HasPrefix(m[1], snapshots+"/")
			require.True(t, inside || systemFile(m[1]), line)
		}
		// Also what could not be opened, or was only looked at. SQLite looks
		// whether there are links on its way to a file.
		for _, m := range absolute.FindAllStringSubmatch(line, -1) {
			name := filepath.Clean(m[1] + m[2])
			inside := strings.HasPrefix(base.BackupDir, strings.TrimSuffix(name, "/")) || strings.HasPrefix(name, base.BackupDir)
			require.True(t, inside || systemFile(name), line)
		}
		require.NotContains(t, strings.ReplaceAll(line, "linked", ""), outside)
	}
	require.Greater(t, calls, 1000)
	t.Logf("%d snapshots, %d calls", len(stamps), calls)
}

// systemFile tells what the runtime and SQLite read for themselves.
func systemFile(name string) bool {
	for _, prefix := range []string{"/etc/localtime", "/proc/self", "/sys", "/dev/urandom", "/usr/share/zoneinfo"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
