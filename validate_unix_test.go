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
	"github.com/atocore/backup/internal/backuptest"
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
func validateRole(p *backuptest.Parent, args []string) error {
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
	cmd.Env = append(os.Environ(), backuptest.RoleEnv+"=validate")
	stdin, err := cmd.StdinPipe() // the role ends with it
	require.NoError(t, err)
	defer stdin.Close()
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

// What may not be read is not judged: nothing is known then.
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

// Nothing needs to be written.
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

// tryToLockRole tells whether a database's write lock can be had.
func tryToLockRole(p *backuptest.Parent, args []string) error {
	db, err := sql.Open("sqlite", "file:"+args[0])
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("BEGIN IMMEDIATE"); err == nil {
		p.Say("got it")
	} else {
		p.Say(err.Error())
	}
	return nil
}

// A hard link to the live database in a snapshot is told and not opened:
// closing it would drop the locks of the host's own connections.
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

				lock := backuptest.Start(t, "try to lock", s.DatabasePath)
				require.Contains(t, lock.Hear(), "locked", "the host's lock was dropped")
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
