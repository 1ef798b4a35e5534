//go:build linux || darwin

package backup_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() { roles["validate"] = roleValidate }

// A finding is the result of validating a snapshot in another process.
type finding struct {
	Verdict    string // "valid", "invalid", "error"
	Error      string
	Permission bool // the error is fs.ErrPermission
	HasReport  bool
	Problems   []string
}

// findings are the results of roleValidate.
type findings struct {
	Snapshots map[string]finding
	List      map[string]string // metadata errors by stamp
	ListError string
}

// roleValidate validates the snapshots args[1:] of the backup directory args[0], and
// lists them. Between two calls that a trace shows, only the library works.
func roleValidate(p *backuptest.Parent, args []string) error {
	backupDir, stamps := args[0], args[1:]
	_, _ = os.Lstat(traceBegin)
	found := findings{Snapshots: map[string]finding{}, List: map[string]string{}}
	opts := backup.Options{BackupDir: backupDir}
	for _, stamp := range stamps {
		report, err := backup.ValidateBackup(context.Background(), opts, stamp)
		f := finding{Verdict: "valid", HasReport: report != nil, Permission: errors.Is(err, fs.ErrPermission)}
		switch {
		case errors.Is(err, backup.ErrInvalidBackup):
			f.Verdict = "invalid"
			f.Problems = backuptest.Brief(report.Problems)
		case err != nil:
			f.Verdict = "error"
		}
		f.Error = fmt.Sprint(err)
		found.Snapshots[stamp] = f
	}
	list, err := backup.ListRuntimeBackups(context.Background(), opts)
	for _, snapshot := range list {
		found.List[snapshot.Stamp] = snapshot.MetadataError
	}
	if err != nil {
		found.ListError = err.Error()
	}
	_, _ = os.Lstat(traceEnd)
	data, err := json.Marshal(found)
	if err == nil {
		p.Say(string(data))
	}
	return err
}

const (
	traceBegin = "/the-validation-begins-here"
	traceEnd   = "/the-validation-ends-here"
)

// findAsUser runs roleValidate as a user to whom file permissions apply.
func findAsUser(t *testing.T, backupDir string, stamps ...string) (found findings) {
	t.Helper()
	cmd := backuptest.Command(t, "validate", append([]string{backupDir}, stamps...)...)
	if os.Getuid() == 0 {
		if runtime.GOOS != "linux" {
			t.Skip("this needs a program that other users may run")
		}
		// The program lies in a directory of root.
		cmd.Path = "/proc/self/exe"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
	}
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	require.NoError(t, json.Unmarshal(out, &found))
	return found
}

// forUser copies a snapshot to where findAsUser can read it.
func forUser(t *testing.T, s *backuptest.Snapshot) *backuptest.Snapshot {
	t.Helper()
	c := s.Copy(t)
	require.NoError(t, os.Chmod(filepath.Dir(filepath.Dir(c.BackupDir)), 0o755))
	return c
}

// If a file may not be read, validating fails without a verdict.
func TestValidateUnreadable(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	require.Equal(t, "valid", findAsUser(t, forUser(t, base).BackupDir, base.Stamp).Snapshots[base.Stamp].Verdict)
	for _, name := range []string{
		backuptest.MetadataFile, backuptest.ManifestFile, backuptest.DBFile, backuptest.RegistryFile, backuptest.ChromaFile, base.Files()[1],
		"db", "config", "chroma", "chroma/" + strings.Split(base.Files()[1], "/")[1], "", "..",
	} {
		t.Run(name, func(t *testing.T) {
			s := forUser(t, base)
			file := s.Path(name)
			info, err := os.Stat(file)
			require.NoError(t, err)
			require.NoError(t, os.Chmod(file, 0))
			t.Cleanup(func() { _ = os.Chmod(file, info.Mode()) })
			found := findAsUser(t, s.BackupDir, s.Stamp)
			f := found.Snapshots[s.Stamp]
			require.Equal(t, "error", f.Verdict, f)
			require.True(t, f.Permission, f.Error)
			require.Contains(t, f.Error, filepath.Base(file), "the error names it")
			require.False(t, f.HasReport)
			switch name {
			case "..":
				require.Contains(t, found.ListError, "permission denied")
			case "", backuptest.MetadataFile:
				require.Equal(t, map[string]string{s.Stamp: "unreadable: permission denied"}, found.List)
			default:
				require.Equal(t, map[string]string{s.Stamp: ""}, found.List)
			}
		})
	}
}

// Validating does not need to write anything.
func TestValidateReadOnlyFiles(t *testing.T) {
	s := forUser(t, backuptest.NewSnapshot(t))
	require.NoError(t, filepath.WalkDir(s.BackupDir, func(name string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		if d.IsDir() {
			t.Cleanup(func() { _ = os.Chmod(name, 0o755) })
			return os.Chmod(name, 0o555)
		}
		return os.Chmod(name, 0o444)
	}))
	for _, form := range []string{"format 1", "Python"} {
		if form == "Python" {
			require.NoError(t, os.Chmod(s.Path(""), 0o755))
			require.NoError(t, os.Chmod(s.Path(backuptest.MetadataFile), 0o644))
			s.MakePython()
			require.NoError(t, os.Chmod(s.Path(""), 0o555))
		}
		before := s.State()
		found := findAsUser(t, s.BackupDir, s.Stamp)
		require.Equal(t, "valid", found.Snapshots[s.Stamp].Verdict, found)
		require.Equal(t, map[string]string{s.Stamp: ""}, found.List)
		require.Equal(t, before, s.State())
	}
}

// A hard link to the live database in a snapshot is reported and not opened: closing
// it would drop the locks of the host's connections.
func TestValidateOpensNoLiveDatabase(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	for mode, files := range map[string][]string{
		"delete": {backuptest.DBFile, backuptest.RegistryFile, backuptest.ChromaFile, base.Files()[1], backuptest.MetadataFile, backuptest.ManifestFile},
		"wal":    {backuptest.DBFile, backuptest.MetadataFile},
	} {
		for _, file := range files {
			t.Run(mode+" "+filepath.Base(file), func(t *testing.T) {
				s := base.Copy(t)
				s.DatabasePath = filepath.Join(filepath.Dir(s.BackupDir), "live.db")
				backuptest.MakeDatabase(t, s.DatabasePath, "_pragma=journal_mode("+mode+")")
				host := backuptest.OpenDB(t, s.DatabasePath)
				_, err := host.Exec("BEGIN IMMEDIATE")
				require.NoError(t, err)
				defer host.Close()

				live := s.DatabasePath
				if mode == "wal" {
					live += "-shm" // that is where its locks are
				}
				s.Remove(file)
				require.NoError(t, os.Link(live, s.Path(file)))
				report := s.Validate()
				list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
				require.NoError(t, err)
				require.Len(t, list, 1)

				other := backuptest.Start(t, "try-lock", s.DatabasePath)
				require.Equal(t, "refused", other.Ask("BEGIN IMMEDIATE"), "the host's lock was dropped")
				want := "file_not_regular: " + file
				switch file {
				case backuptest.MetadataFile:
					require.Equal(t, "not_a_file", list[0].MetadataError)
					require.Contains(t, backuptest.Brief(report.Problems), "metadata_not_a_file")
				case backuptest.ManifestFile:
					want = "manifest_not_a_file"
				}
				require.Contains(t, backuptest.Brief(report.Problems), want)
			})
		}
	}
}

// hostileTrees creates snapshots that would lead a careless reader out of the backup
// directory, to outside.
func hostileTrees(t *testing.T, outside string) (base *backuptest.Snapshot, stamps []string) {
	base = backuptest.NewSnapshot(t)
	require.NoError(t, os.CopyFS(outside, os.DirFS(base.Path(""))))
	add := func(stamp string, harm func(s *backuptest.Snapshot)) {
		s := base.Named(t, stamp)
		require.NoError(t, os.CopyFS(s.Path(""), os.DirFS(base.Path(""))))
		harm(s)
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
	// SQLite must not follow a path in a database.
	add("attach", func(s *backuptest.Snapshot) {
		data := s.Read(backuptest.DBFile)
		copy(data[len(data)-100:], outside)
		s.Write(backuptest.DBFile, data)
	})
	require.NoError(t, os.Symlink(outside, filepath.Join(base.BackupDir, "snapshots", "linked")))
	return base, append(stamps, base.Stamp, "linked", "../../outside", "..", ".", "", outside, "../outside/db")
}

// Whatever a snapshot contains, nothing outside of it is opened, and nothing is opened
// for writing. A trace of the system calls shows it.
func TestValidateOpensNothingOutside(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace to watch with:", err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	base, stamps := hostileTrees(t, outside)

	trace := filepath.Join(t.TempDir(), "trace")
	role := backuptest.Command(t, "validate", append([]string{base.BackupDir}, stamps...)...)
	cmd := exec.Command(strace, append([]string{"-f", "-y", "-s", "10000", "-e", "trace=%file", "-o", trace}, role.Args...)...)
	cmd.Env = role.Env
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
			want = "valid" // the paths in path-6 are those of a snapshot that was moved
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
		// Also what could not be opened, or was only looked up. SQLite looks for
		// links in the path of a file.
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

// systemFile reports whether the Go runtime or SQLite read a file for themselves.
func systemFile(name string) bool {
	for _, prefix := range []string{"/etc/localtime", "/proc/self", "/sys", "/dev/urandom", "/usr/share/zoneinfo"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
