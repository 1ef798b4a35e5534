//go:build linux || darwin

package backup_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

func init() {
	roles["validate"] = validateRole
	roles["try to lock"] = tryToLockRole
}

// A finding is what validating and listing gave in another process.
type finding struct {
	Verdict    string // "valid", "invalid", "error"
	Error      string
	Permission bool // the error is fs.ErrPermission
	HasReport  bool
	Problems   []string
}

type findings struct {
	Snapshots map[string]finding
	List      map[string]string // metadata errors by stamp
	ListError string
}

// validateRole validates the stamps given in a backup directory, and lists it.
// What it does with files lies between two calls that a trace shows.
func validateRole(p parent, args []string) error {
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
			f.Problems = brief(report.Problems)
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
		p.say(string(data))
	}
	return err
}

const (
	traceBegin = "/the-validation-begins-here"
	traceEnd   = "/the-validation-ends-here"
)

// findAsUser runs validateRole as a user that file permissions mean something
// to.
func findAsUser(t *testing.T, backupDir string, stamps ...string) (found findings) {
	t.Helper()
	program := os.Args[0]
	cmd := exec.Command(program, append([]string{backupDir}, stamps...)...)
	if os.Getuid() == 0 {
		if runtime.GOOS != "linux" {
			t.Skip("root is not told apart from other users")
		}
		// Its own program, which is in a directory of root's.
		cmd.Path = "/proc/self/exe"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
	}
	cmd.Env = append(os.Environ(), roleEnv+"=validate")
	stdin, err := cmd.StdinPipe() // the role ends with it
	require.NoError(t, err)
	defer stdin.Close()
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	require.NoError(t, json.Unmarshal(out, &found))
	return found
}

// forUser makes a specimen that findAsUser can get at.
func (s *specimen) forUser(t *testing.T) *specimen {
	t.Helper()
	c := s.copy(t)
	require.NoError(t, os.Chmod(filepath.Dir(filepath.Dir(c.BackupDir)), 0o755))
	return c
}

// What may not be read is not judged: nothing is known then.
func TestValidateUnreadable(t *testing.T) {
	base := newSpecimen(t)
	require.Equal(t, "valid", findAsUser(t, base.forUser(t).BackupDir, base.stamp).Snapshots[base.stamp].Verdict)
	for _, name := range []string{
		metadataFile, manifestFile, dbFile, registryFile, chromaFile, base.files()[1],
		"db", "config", "chroma", "chroma/" + strings.Split(base.files()[1], "/")[1], "", "..",
	} {
		t.Run(name, func(t *testing.T) {
			s := base.forUser(t)
			file := s.path(name)
			info, err := os.Stat(file)
			require.NoError(t, err)
			require.NoError(t, os.Chmod(file, 0))
			t.Cleanup(func() { _ = os.Chmod(file, info.Mode()) })
			found := findAsUser(t, s.BackupDir, s.stamp)
			f := found.Snapshots[s.stamp]
			require.Equal(t, "error", f.Verdict, f)
			require.True(t, f.Permission, f.Error)
			require.Contains(t, f.Error, filepath.Base(file), "the error names it")
			require.False(t, f.HasReport)
			switch name {
			case "..":
				require.Contains(t, found.ListError, "permission denied")
			case "", metadataFile:
				require.Equal(t, map[string]string{s.stamp: "unreadable: permission denied"}, found.List)
			default:
				require.Equal(t, map[string]string{s.stamp: ""}, found.List)
			}
		})
	}
}

// Nothing needs to be written.
func TestValidateReadOnlyFiles(t *testing.T) {
	s := newSpecimen(t).forUser(t)
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
			require.NoError(t, os.Chmod(s.path(""), 0o755))
			require.NoError(t, os.Chmod(s.path(metadataFile), 0o644))
			s.makePython()
			require.NoError(t, os.Chmod(s.path(""), 0o555))
		}
		before := s.tree()
		found := findAsUser(t, s.BackupDir, s.stamp)
		require.Equal(t, "valid", found.Snapshots[s.stamp].Verdict, found)
		require.Equal(t, map[string]string{s.stamp: ""}, found.List)
		require.Equal(t, before, s.tree())
	}
}

// tryToLockRole tells whether a database's write lock can be had.
func tryToLockRole(p parent, args []string) error {
	db, err := sql.Open("sqlite", "file:"+args[0])
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("BEGIN IMMEDIATE"); err == nil {
		p.say("got it")
	} else {
		p.say(err.Error())
	}
	return nil
}

// A hard link to the live database in a snapshot is told and not opened:
// closing it would drop the locks of the host's own connections.
func TestValidateOpensNoLiveDatabase(t *testing.T) {
	base := newSpecimen(t)
	for mode, files := range map[string][]string{
		"delete": {dbFile, registryFile, chromaFile, base.files()[1], metadataFile, manifestFile},
		"wal":    {dbFile, metadataFile},
	} {
		for _, file := range files {
			t.Run(mode+" "+filepath.Base(file), func(t *testing.T) {
				s := base.copy(t)
				s.DatabasePath = filepath.Join(filepath.Dir(s.BackupDir), "live.db")
				makeDatabase(t, s.DatabasePath, "_pragma=journal_mode("+mode+")")
				host := openDB(t, s.DatabasePath)
				_, err := host.Exec("BEGIN IMMEDIATE")
				require.NoError(t, err)
				defer host.Close()

				live := s.DatabasePath
				if mode == "wal" {
					live += "-shm" // that is where its locks are
				}
				s.remove(file)
				require.NoError(t, os.Link(live, s.path(file)))
				report := s.validate()
				list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
				require.NoError(t, err)
				require.Len(t, list, 1)

				lock := startChild(t, "try to lock", s.DatabasePath)
				require.Contains(t, lock.hear(), "locked", "the host's lock was dropped")
				want := "file_not_regular: " + file
				switch file {
				case metadataFile:
					require.Equal(t, "not_a_file", list[0].MetadataError)
					require.Contains(t, brief(report.Problems), "metadata_not_a_file")
				case manifestFile:
					want = "manifest_not_a_file"
				}
				require.Contains(t, brief(report.Problems), want)
			})
		}
	}
}
