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
)

// mount mounts something for the time of the test, if that is allowed.
func mount(t *testing.T, source, target, kind string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(target, unix.MNT_DETACH)) })
}

func TestValidateOnAReadOnlyDisk(t *testing.T) {
	base := newSpecimen(t)
	for _, form := range []string{"format 1", "Python", "Python in WAL form"} {
		t.Run(form, func(t *testing.T) {
			s := base.copy(t)
			if strings.HasPrefix(form, "Python") {
				s.makePython()
			}
			if form == "Python in WAL form" {
				setJournalForm(s, 2)
			}
			target := t.TempDir()
			mount(t, s.BackupDir, target, "", unix.MS_BIND)
			require.NoError(t, unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
			s.BackupDir = target
			require.ErrorIs(t, os.WriteFile(s.path("x"), nil, 0o600), unix.EROFS)
			s.requireProblems()
		})
	}
}

// What is mounted in a snapshot is none of its files.
func TestValidateEntersNoMountPoint(t *testing.T) {
	base := newSpecimen(t)
	for _, dir := range []string{"db", "chroma", "chroma/empty", "other"} {
		t.Run(dir, func(t *testing.T) {
			s := base.copy(t)
			require.NoError(t, os.MkdirAll(s.path(dir), 0o755))
			mount(t, "tmpfs", s.path(dir), "tmpfs", 0)
			require.NoError(t, os.WriteFile(s.path(dir+"/x"), nil, 0o600))
			require.Contains(t, brief(s.validate().Problems), "file_not_regular: "+dir)
		})
	}
}

// hostileTrees makes snapshots that would lead a careless reader out. Each is
// one of these, and what it would read lies in outside.
func hostileTrees(t *testing.T, outside string) (base *specimen, stamps []string) {
	base = newSpecimen(t)
	require.NoError(t, os.CopyFS(outside, os.DirFS(base.path(""))))
	add := func(stamp string, harm func(s *specimen)) {
		s := *base
		s.stamp = stamp
		require.NoError(t, os.CopyFS(s.path(""), os.DirFS(base.path(""))))
		harm(&s)
		stamps = append(stamps, stamp)
	}
	segment := filepath.Dir(base.files()[1])
	for i, file := range append(base.files(), manifestFile, "db", "config", "chroma", segment) {
		for j, target := range []string{filepath.Join(outside, file), strings.Repeat("../", 20) + filepath.Join(outside, file)} {
			for _, python := range []bool{false, true} {
				add(fmt.Sprintf("link-%d-%d-%t", i, j, python), func(s *specimen) {
					if python {
						s.makePython()
					}
					s.link(file, target)
				})
			}
		}
	}
	for i, change := range []map[string]any{
		{"db_snapshot_path": filepath.Join(outside, dbFile)},
		{"db_snapshot_path": base.root() + strings.Repeat("/..", 20) + filepath.Join(outside, dbFile)},
		{"registry_snapshot_path": filepath.Join(outside, registryFile)},
		{"chroma_snapshot_path": filepath.Join(outside, "chroma")},
		{"backup_root": outside},
		{"backup_root": "/", "db_snapshot_path": filepath.Join(outside, dbFile)},
		{"backup_root": outside, "db_snapshot_path": filepath.Join(outside, dbFile),
			"registry_snapshot_path": filepath.Join(outside, registryFile), "chroma_snapshot_path": filepath.Join(outside, "chroma")},
	} {
		add(fmt.Sprintf("path-%d", i), func(s *specimen) { s.set(change); s.reseal() })
		add(fmt.Sprintf("path-%d-python", i), func(s *specimen) { s.makePython(); s.set(change) })
	}
	for i, name := range []string{filepath.Join(outside, dbFile), "../../../outside/" + dbFile, "db/../../../../outside/" + dbFile} {
		add(fmt.Sprintf("manifest-%d", i), func(s *specimen) {
			s.write(manifestFile, append([]byte(sumLine(nil, name)), s.read(manifestFile)...))
		})
	}
	add("fifo", func(s *specimen) {
		s.remove(registryFile)
		require.NoError(t, unix.Mkfifo(s.path(registryFile), 0o600))
	})
	// SQLite must not be led out by what a database says.
	add("attach", func(s *specimen) {
		data := s.read(dbFile)
		copy(data[len(data)-100:], outside)
		s.write(dbFile, data)
	})
	require.NoError(t, os.Symlink(outside, filepath.Join(base.BackupDir, "snapshots", "linked")))
	return base, append(stamps, base.stamp, "linked", "../../outside", "..", ".", "", outside, "../outside/db")
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
	cmd.Env = append(os.Environ(), roleEnv+"=validate")
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
		if stamp == base.stamp || strings.HasPrefix(stamp, "path-6") {
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
