package backup_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() { roles["create as user"] = roleCreateAsUser }

// roleCreateAsUser backs up the database args[0] to the backup directory args[1]
// and says which error that returned.
func roleCreateAsUser(p *backuptest.Parent, args []string) error {
	_, err := backup.CreateRuntimeBackup(context.Background(), backup.Options{DatabasePath: args[0], BackupDir: args[1]})
	p.Say(errorText(err))
	return nil
}

// closedWAL returns a bare store whose database is in WAL mode and has no WAL.
func closedWAL(t *testing.T) *backuptest.Store {
	t.Helper()
	s := backuptest.NewBareStore(t)
	db, err := backuptest.Open(s.DatabasePath)
	require.NoError(t, err)
	_, err = db.Exec("PRAGMA journal_mode=wal; CREATE TABLE words(a); INSERT INTO words VALUES (1)")
	require.NoError(t, err)
	require.NoError(t, db.Close())
	require.NoFileExists(t, s.DatabasePath+"-wal")
	return s
}

// An error of SQLite about the live database says what it means and what to do.
func TestSourceErrorsSayWhatToDo(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, s *backuptest.Store)
		user   bool // another user makes the snapshot
		want   error
		words  []string
	}{
		{"WAL on a read-only mount", func(t *testing.T, s *backuptest.Store) {
			dir := filepath.Dir(s.DatabasePath)
			backuptest.MountReadOnly(t, dir, dir)
		}, false, syscall.EROFS, []string{"unable to open database file", "WAL mode", "-shm", "mount the directory writable"}},
		{"WAL in another user's directory", func(*testing.T, *backuptest.Store) {}, true, nil,
			[]string{"attempt to write a readonly database", "WAL mode", "-shm", "run this as a user who may", "permission denied"}},
		{"another user's file", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.Chmod(s.DatabasePath, 0o600))
		}, true, nil, []string{"permission denied", "it belongs to user 0 and group 0, with mode 0600, and this process runs as user 65534"}},
		{"encrypted", func(t *testing.T, s *backuptest.Store) {
			data := make([]byte, 8192)
			_, err := rand.Read(data)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(s.DatabasePath, data, 0o600))
		}, false, backup.ErrSourceInvalid, []string{"file is not a database", "it is encrypted", "only by a program that can read it"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := closedWAL(t)
			require.NoError(t, os.Chmod(s.DatabasePath, 0o644))
			tt.change(t, s)
			s.BackupDir = t.TempDir()
			var text string
			if tt.user {
				if os.Getuid() != 0 {
					t.Skip("this needs two users")
				}
				for _, dir := range []string{filepath.Dir(s.Dir), filepath.Dir(s.BackupDir)} {
					require.NoError(t, os.Chmod(dir, 0o755))
				}
				require.NoError(t, os.Chmod(filepath.Dir(s.DatabasePath), 0o755))
				require.NoError(t, os.Chmod(s.BackupDir, 0o777))
				cmd := backuptest.Command(t, "create as user", s.DatabasePath, s.BackupDir)
				cmd.Path, cmd.Dir = "/proc/self/exe", "/"
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
				out, err := cmd.Output()
				require.NoError(t, err)
				text = string(bytes.TrimSpace(out))
			} else {
				s.IncludeChroma, s.RegistryPath = false, ""
				err := s.CreateFails()
				require.ErrorIs(t, err, tt.want)
				text = err.Error()
			}
			for _, words := range tt.words {
				require.Contains(t, text, words)
			}
			require.Contains(t, text, filepath.Dir(s.DatabasePath))
		})
	}
}

// A database in WAL mode on a disk that is read-only for everybody needs no -shm:
// nobody can change it.
func TestDatabaseOnAReadOnlyDisk(t *testing.T) {
	for _, online := range []bool{false, true} {
		s := closedWAL(t)
		disk := t.TempDir()
		backuptest.MountTmpfs(t, disk, "")
		require.NoError(t, os.CopyFS(disk, os.DirFS(filepath.Dir(s.DatabasePath))))
		require.NoError(t, unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		want := backuptest.CountRows(t, s.DatabasePath)
		s.DatabasePath = filepath.Join(disk, filepath.Base(s.DatabasePath))
		s.IncludeChroma, s.OnlineBackup = false, online
		m := s.Create()
		require.Equal(t, want, backuptest.CountRows(t, backuptest.CopyOf(t, m.DBSnapshotPath)))
		s.RequireValid()
	}
}

// A link in the place of snapshots/ is called one by every call.
func TestLinkInThePlaceOfSnapshots(t *testing.T) {
	s := backuptest.NewBareStore(t)
	require.NoError(t, os.MkdirAll(s.BackupDir, 0o700))
	link := filepath.Join(s.BackupDir, "snapshots")
	require.NoError(t, os.Symlink(t.TempDir(), link))
	defer os.Remove(link)
	const stamp = "20260101T000000Z"
	for name, call := range map[string]func(ctx context.Context) error{
		"create":   func(ctx context.Context) error { _, err := backup.CreateRuntimeBackup(ctx, s.Options); return err },
		"list":     func(ctx context.Context) error { _, err := backup.ListRuntimeBackups(ctx, s.Options); return err },
		"latest":   func(ctx context.Context) error { _, err := backup.LatestRuntimeBackup(ctx, s.Options); return err },
		"validate": func(ctx context.Context) error { _, err := backup.ValidateBackup(ctx, s.Options, stamp); return err },
		"restore": func(ctx context.Context) error {
			_, err := backup.RestoreRuntimeBackup(ctx, s.Options, stamp)
			return err
		},
		"protect": func(ctx context.Context) error { return backup.ProtectRuntimeBackup(ctx, s.Options, stamp, true) },
		"prune": func(ctx context.Context) error {
			_, err := backup.PruneRuntimeBackups(ctx, s.Options, backup.Retention{KeepLast: 1})
			return err
		},
	} {
		err := call(t.Context())
		require.ErrorContains(t, err, link+": it is a symbolic link, which is not followed", name)
		require.ErrorContains(t, err, "make the backup directory itself the link", name)
	}
}

// A restore refuses a store of which something cannot be replaced, before it
// touches anything, and names it.
func TestRestoreLooksForAttributes(t *testing.T) {
	for _, tt := range []struct {
		name      string
		path      func(s *backuptest.Store) string
		attribute int
		words     string
	}{
		{"immutable database", func(s *backuptest.Store) string { return s.DatabasePath }, unix.STATX_ATTR_IMMUTABLE, "immutable (chattr -i takes that away)"},
		{"append-only database", func(s *backuptest.Store) string { return s.DatabasePath }, unix.STATX_ATTR_APPEND, "append-only (chattr -a takes that away)"},
		{"immutable registry", func(s *backuptest.Store) string { return s.RegistryPath }, unix.STATX_ATTR_IMMUTABLE, "immutable"},
		{"directory of the database", func(s *backuptest.Store) string { return filepath.Dir(s.DatabasePath) }, unix.STATX_ATTR_IMMUTABLE, "immutable"},
		{"directory of the registry", func(s *backuptest.Store) string { return filepath.Dir(s.RegistryPath) }, unix.STATX_ATTR_APPEND, "append-only"},
		{"Chroma directory", func(s *backuptest.Store) string { return s.ChromaPath }, unix.STATX_ATTR_IMMUTABLE, "immutable"},
		{"file deep in Chroma", func(s *backuptest.Store) string { return s.InChroma("deep/in/file") }, unix.STATX_ATTR_IMMUTABLE, "immutable"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			require.NoError(t, os.MkdirAll(s.InChroma("deep/in"), 0o700))
			backuptest.Write(t, s.InChroma("deep/in/file"), "x")
			m := s.Create()
			// What is equal is not touched.
			backuptest.Write(t, s.InChroma("deep/in/file"), "y")
			backuptest.Write(t, s.RegistryPath, "{}")
			release := backuptest.SetAttribute(t, tt.path(s), tt.attribute)
			// Locking the database may bring its WAL into it.
			tree := func() map[string]backuptest.File {
				tree := backuptest.ReadTree(t, s.Dir)
				maps.DeleteFunc(tree, func(name string, _ backuptest.File) bool {
					return name == "data" || strings.Contains(name, "atocore.db")
				})
				return tree
			}
			before := tree()
			_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, m.Stamp)
			require.ErrorIs(t, err, backup.ErrCannotReplace)
			require.ErrorIs(t, err, fs.ErrPermission)
			require.ErrorContains(t, err, tt.path(s)+": it has the attribute "+tt.words)
			require.Equal(t, before, tree())
			release()
			s.Restore(m.Stamp)
		})
	}
}
