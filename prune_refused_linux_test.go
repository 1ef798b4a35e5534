package backup_test

import (
	"context"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() { roles["prune as user"] = rolePruneAsUser }

// rolePruneAsUser removes all but the last snapshot of the backup directory args[0] and
// says what it did, and the error.
func rolePruneAsUser(p *backuptest.Parent, args []string) error {
	result, err := backup.PruneRuntimeBackups(context.Background(), backup.Options{BackupDir: args[0]}, backup.Retention{KeepLast: 1})
	for _, value := range []any{result, errorText(err)} {
		data, err := json.Marshal(value)
		if err != nil {
			return err
		}
		p.Say(string(data))
	}
	return nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

const nobody = 65534

// A snapshot of which something visibly cannot be removed stays whole, prune after
// prune, and each prune names what it is. When that is over, it is removed.
func TestPruneLooksBeforeItRemoves(t *testing.T) {
	attribute := func(attribute int) func(t *testing.T, path string) func() {
		return func(t *testing.T, path string) func() { return backuptest.SetAttribute(t, path, attribute) }
	}
	mount := func(mount func(t *testing.T, path string)) func(t *testing.T, path string) func() {
		return func(t *testing.T, path string) func() {
			mount(t, path)
			return func() { backuptest.Unmount(t, path) }
		}
	}
	readOnly := func(t *testing.T, path string) { backuptest.MountReadOnly(t, path, path) }
	for _, tt := range []struct {
		name, at string
		hold     func(t *testing.T, path string) (release func())
		reason   string
	}{
		{"immutable file", backuptest.DBFile, attribute(unix.STATX_ATTR_IMMUTABLE), backuptest.DBFile + ": it has the attribute immutable (chattr -i takes that away)"},
		{"append-only file", backuptest.DBFile, attribute(unix.STATX_ATTR_APPEND), backuptest.DBFile + ": it has the attribute append-only (chattr -a takes that away)"},
		{"immutable directory", "db", attribute(unix.STATX_ATTR_IMMUTABLE), "db: it has the attribute immutable (chattr -i takes that away)"},
		{"append-only directory", "db", attribute(unix.STATX_ATTR_APPEND), "db: it has the attribute append-only (chattr -a takes that away)"},
		{"immutable snapshot", "", attribute(unix.STATX_ATTR_IMMUTABLE), "it has the attribute immutable (chattr -i takes that away)"},
		{"append-only snapshot", "", attribute(unix.STATX_ATTR_APPEND), "it has the attribute append-only (chattr -a takes that away)"},
		{"tmpfs", "config", mount(func(t *testing.T, path string) { backuptest.MountTmpfs(t, path, "") }), "config: it is a mount point"},
		{"bind mount", "config", mount(func(t *testing.T, path string) { backuptest.MountBind(t, t.TempDir(), path) }), "config: it is a mount point"},
		{"mounted file", backuptest.DBFile, mount(func(t *testing.T, path string) { backuptest.MountBind(t, path, path) }), backuptest.DBFile + ": it is a mount point"},
		{"read-only mount", "db", mount(readOnly), "db: it is a mount point"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSnapshotSet(t)
			stamps := s.putDays(3)
			held := s.Snapshot(stamps[1])
			require.NoError(t, os.MkdirAll(held.Path("config"), 0o700))
			before := backuptest.ReadTree(t, held.Path(""))
			release := tt.hold(t, held.Path(tt.at))
			log := s.Record()
			for range 2 {
				log.Clear()
				result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
				var pathErr *fs.PathError
				require.ErrorAs(t, err, &pathErr)
				require.Equal(t, filepath.Clean(held.Path(tt.at)), pathErr.Path)
				require.ErrorContains(t, err, "remove snapshot "+stamps[1])
				require.Equal(t, []backup.SkippedSnapshot{{Stamp: stamps[1], Reason: "not removed: " + tt.reason}}, result.Skipped)
				require.Empty(t, result.Remains)
				require.Equal(t, stamps[1:], s.Stamps(), "the others are removed, and it is in sight")
				require.Contains(t, log.Lines()[len(log.Lines())-2], "runtime_backup_not_removed")
				s.RequireNoStaging()
			}
			release()
			require.Equal(t, before, backuptest.ReadTree(t, held.Path("")))
			require.Equal(t, stamps[1:2], s.prune(backup.Retention{KeepLast: 1}).Removed)
			s.RequireNoStaging()
		})
	}
}

// The same of files of another user.
func TestPruneOfAnotherUsersSnapshot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("this needs two users")
	}
	for _, tt := range []struct {
		name   string
		dir    fs.FileMode // of db/, which is root's; the rest of the snapshot is the user's
		reason string
	}{
		{"in a sticky directory", fs.ModeSticky | 0o777, backuptest.DBFile + ": it belongs to another user, and its directory is sticky"},
		{"in a directory that only the other may change", 0o755, "db: permission denied"},
		{"that the other keeps to himself", 0o700, "db: permission denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSnapshotSet(t)
			stamps := s.putDays(2)
			require.NoError(t, os.Chmod(filepath.Dir(s.Dir), 0o755))
			require.NoError(t, filepath.WalkDir(s.BackupDir, func(path string, _ fs.DirEntry, err error) error {
				require.NoError(t, err)
				return os.Chown(path, nobody, nobody)
			}))
			held := s.Snapshot(stamps[0])
			for _, name := range []string{"db", backuptest.DBFile} {
				require.NoError(t, os.Chown(held.Path(name), 0, 0))
			}
			require.NoError(t, os.Chmod(held.Path("db"), tt.dir))
			cmd := backuptest.Command(t, "prune as user", s.BackupDir)
			cmd.Path, cmd.Dir = "/proc/self/exe", "/" // the program lies in a directory of root
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			result, text := pruneOf(t, cmd)
			require.Contains(t, text, "remove snapshot "+stamps[0])
			require.Equal(t, []backup.SkippedSnapshot{{Stamp: stamps[0], Reason: "not removed: " + tt.reason}}, result.Skipped)
			require.Equal(t, stamps, s.Stamps())
			require.NoError(t, os.Chmod(held.Path("db"), 0o700))
			s.RequireValid()
		})
	}
}

// pruneOf runs rolePruneAsUser.
func pruneOf(t *testing.T, cmd *exec.Cmd) (result backup.PruneResult, text string) {
	t.Helper()
	pipe, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	in := json.NewDecoder(pipe)
	require.NoError(t, in.Decode(&result))
	require.NoError(t, in.Decode(&text))
	require.NoError(t, cmd.Wait())
	return result, text
}

// What cannot be removed after a snapshot is out of sight is reported by each
// prune, and logged by each create, until it is gone. Everything else of the
// snapshot is removed.
func TestPruneReportsWhatIsLeft(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(2)
	var release func()
	s.onEvents(func(event string) {
		if event == "gone "+stamps[0] {
			release = backuptest.SetAttribute(t, filepath.Join(s.Staging()[0], backuptest.DBFile), unix.STATX_ATTR_IMMUTABLE)
		}
	})
	result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
	require.ErrorContains(t, err, "remove snapshot "+stamps[0])
	require.ErrorIs(t, err, fs.ErrPermission)
	require.Equal(t, stamps[:1], result.Removed)
	left := []backup.Remnant{{Path: s.Staging()[0], Reason: backuptest.DBFile + ": operation not permitted"}}
	require.Equal(t, left, result.Remains)
	require.ElementsMatch(t, []string{".", "db", backuptest.DBFile}, slices.Collect(maps.Keys(backuptest.ReadTree(t, s.Staging()[0]))))

	s.OnProgress = nil
	log := s.Record()
	for range 2 {
		result, err = backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 9})
		require.ErrorContains(t, err, "remove old staging: remove "+s.Staging()[0])
		require.Empty(t, result.Removed)
		require.Equal(t, left, result.Remains)
		log.Clear()
		s.Create()
		require.Contains(t, log.Lines()[0], "level=WARN stale_staging_left path="+s.Staging()[0])
	}
	release()
	require.Empty(t, s.prune(backup.Retention{KeepLast: 9}).Remains)
	s.RequireNoStaging()
}

// So is a record that cannot be removed.
func TestPruneReportsRecordsThatAreLeft(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(2)
	s.verdict(true, stamps...)
	record := filepath.Join(s.BackupDir, "records", stamps[0]+".json")
	release := backuptest.SetAttribute(t, record, unix.STATX_ATTR_IMMUTABLE)
	s.RemoveAll(s.SnapshotPath(stamps[0]))
	for range 2 {
		result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
		require.ErrorContains(t, err, "remove an old record: remove "+record)
		require.Equal(t, []backup.Remnant{{Path: record, Reason: "operation not permitted"}}, result.Remains)
	}
	release()
	s.prune(backup.Retention{KeepLast: 1})
	require.NoFileExists(t, record)
}

// A snapshot whose first file cannot be removed, although nothing shows that, is
// renamed back: FUSE does not pass attributes on.
func TestPruneRenamesBack(t *testing.T) {
	program, err := exec.LookPath("bindfs")
	if err != nil {
		t.Skip("this needs bindfs")
	}
	s := newSnapshotSet(t)
	stamps := s.putDays(3)
	before := backuptest.ReadTree(t, s.SnapshotPath(stamps[0]))
	release := backuptest.SetAttribute(t, s.SnapshotPath(stamps[0], backuptest.ManifestFile), unix.STATX_ATTR_IMMUTABLE)
	direct := s.BackupDir
	s.BackupDir = t.TempDir()
	if out, err := exec.Command(program, direct, s.BackupDir).CombinedOutput(); err != nil {
		t.Skipf("bindfs: %s", out)
	}
	t.Cleanup(func() {
		require.NoError(t, unix.Unmount(s.BackupDir, unix.MNT_DETACH))
		s.BackupDir = direct
	})
	for range 2 {
		result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
		require.ErrorContains(t, err, "remove snapshot "+stamps[0])
		require.Len(t, result.Skipped, 1)
		require.Equal(t, stamps[0], result.Skipped[0].Stamp)
		require.Empty(t, result.Remains)
		require.Equal(t, []string{stamps[0], stamps[2]}, s.Stamps())
		require.Equal(t, before, backuptest.ReadTree(t, s.SnapshotPath(stamps[0])))
		s.RequireNoStaging()
	}
	release()
	require.Equal(t, stamps[:1], s.prune(backup.Retention{KeepLast: 1}).Removed)
}
