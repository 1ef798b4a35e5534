package restore

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A place that was empty when a restore began and is not any more must not be
// replaced: there is no snapshot of what it holds.
func TestRestoreIntoAPlaceThatFills(t *testing.T) {
	for name, fill := range map[string]func(t *testing.T, s *backuptest.Store){
		"a store": func(t *testing.T, s *backuptest.Store) {
			for _, path := range []string{s.DatabasePath, s.RegistryPath} {
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			}
			writeGeneration(t, s.Options, "old")
		},
		"a registry": func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.MkdirAll(filepath.Dir(s.RegistryPath), 0o755))
			require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{}"), 0o600))
		},
		"a Chroma directory": func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.MkdirAll(s.ChromaPath, 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "only-old"), []byte("old"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, stamp := newStore(t)
			opts := s.Options
			live := t.TempDir()
			opts.DatabasePath = filepath.Join(live, "a", "atocore.db")
			opts.RegistryPath = filepath.Join(live, "b", "registry.json")
			opts.ChromaPath = filepath.Join(live, "c", "chroma")
			filled := &backuptest.Store{T: t, Dir: live, Options: opts}
			var before map[string]backuptest.File
			opts.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseValidateDatabase && before == nil {
					fill(t, filled)
					before = backuptest.ReadTree(t, live)
				}
			}
			_, err := backup.RestoreRuntimeBackup(context.Background(), opts, stamp)
			require.ErrorIs(t, err, backup.ErrBusy)
			after := backuptest.ReadTree(t, live)
			require.Equal(t, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
			if name == "a store" {
				require.Equal(t, "old", generationOf(t, opts))
			}
		})
	}
}

// A restore whose Chroma directory is a dangling link fails and is undone. That
// there is no Chroma directory must not look like a failure of undoing, or no
// call would ever succeed again.
func TestRestoreWithChromaOnAMissingVolume(t *testing.T) {
	s, stamp := newStore(t)
	require.NoError(t, os.Rename(s.ChromaPath, s.ChromaPath+".away"))
	require.NoError(t, os.Symlink(filepath.Join(s.Dir, "volume"), s.ChromaPath))
	_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, stamp)
	require.Error(t, err)
	require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
	require.NotErrorIs(t, err, backup.ErrPanic)
	s.RequireNoRemains()
	require.NoError(t, os.Remove(s.ChromaPath))
	require.NoError(t, os.Rename(s.ChromaPath+".away", s.ChromaPath))
	require.Equal(t, "old", generationOf(t, s.Options))
}

// SQLite needs room for "-journal" after the name of a database, and what is set
// aside gets a longer name.
func TestRestoreOfLongNames(t *testing.T) {
	for name, breakStore := range map[string]func(t *testing.T, s *backuptest.Store){
		"replaced": func(*testing.T, *backuptest.Store) {},
		"set aside": func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.Truncate(s.DatabasePath, 1000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			for path, length := range map[*string]int{&s.DatabasePath: 255 - len("-journal"), &s.RegistryPath: 255, &s.ChromaPath: 255} {
				long := filepath.Join(filepath.Dir(*path), strings.Repeat("n", length-1)+filepath.Base(*path)[:1])
				require.NoError(t, os.Rename(*path, long))
				*path = long
			}
			m := s.Create()
			breakStore(t, s)
			r := s.Restore(m.Stamp)
			backuptest.RequireSound(t, s.DatabasePath)
			s.RequireNoRemains()
			for _, path := range r.SetAside {
				require.DirExists(t, path)
			}
			require.Equal(t, name == "set aside", len(r.SetAside) == 3)
		})
	}
}

// A service may have the right to write to its Chroma directory but not to the
// directory above, and what it restores may be read-only.
func TestRestoreByAServiceWithFewRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can become another user")
	}
	for _, tt := range []struct {
		name   string
		before func(s *backuptest.Store) // the snapshot is taken; may be nil
		after  func(s *backuptest.Store) // may be nil
	}{
		{"set aside where nothing can be created", nil, func(s *backuptest.Store) {
			require.NoError(t, os.Truncate(s.RegistryPath, 1))
		}},
		{"a read-only Chroma directory in the snapshot", func(s *backuptest.Store) {
			require.NoError(t, os.Chmod(s.ChromaPath, 0o555))
			require.NoError(t, os.Chmod(filepath.Join(s.ChromaPath, "segment-new"), 0o555))
		}, nil},
		{"a read-only directory in the live one", nil, func(s *backuptest.Store) {
			require.NoError(t, os.Chmod(filepath.Join(s.ChromaPath, "segment-old"), 0o555))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for parent := dir; parent != os.TempDir() && parent != "/"; parent = filepath.Dir(parent) {
				require.NoError(t, os.Chmod(parent, 0o755))
			}
			s := &backuptest.Store{T: t, Dir: dir, Options: optionsIn(dir)}
			require.NoError(t, os.MkdirAll(filepath.Join(dir, "live"), 0o755))
			writeGeneration(t, s.Options, "new")
			if tt.before != nil {
				tt.before(s)
			}
			stamp := s.Create().Stamp
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "live")))
			require.NoError(t, os.Mkdir(filepath.Join(dir, "live"), 0o755))
			writeGeneration(t, s.Options, "old")
			if tt.after != nil {
				tt.after(s)
			}
			// The database and the registry are links into directories of the
			// service. The directory above the Chroma directory is root's.
			for _, path := range []string{s.DatabasePath, s.RegistryPath} {
				own := filepath.Join(dir, "own-"+filepath.Base(path))
				require.NoError(t, os.Mkdir(own, 0o755))
				for _, suffix := range []string{"", "-wal"} {
					if err := os.Rename(path+suffix, filepath.Join(own, filepath.Base(path)+suffix)); suffix == "" {
						require.NoError(t, err)
					}
				}
				require.NoError(t, os.Symlink(filepath.Join(own, filepath.Base(path)), path))
			}
			require.NoError(t, exec.Command("chown", "-R", fmt.Sprint(nobody), dir).Run())
			require.NoError(t, os.Chown(filepath.Join(dir, "live"), 0, 0))

			backuptest.Start(t, "restore-as", dir, stamp, fmt.Sprint(nobody)).Wait()
			s.RequireNoRemains()
			if entries, err := filepath.Glob(filepath.Join(s.ChromaPath, "*.set-aside-*")); len(entries) > 0 {
				require.NoError(t, err)
				require.NoError(t, os.RemoveAll(entries[0]))
			}
			require.Equal(t, "new", generationOf(t, s.Options))
		})
	}
}

// A file that is a mount point, as in containers, cannot be replaced by a rename.
// Then nothing is replaced.
func TestRestoreOverAFileThatIsAMountPoint(t *testing.T) {
	for name, file := range map[string]func(s *backuptest.Store) string{
		"the database":           func(s *backuptest.Store) string { return s.DatabasePath },
		"the registry":           func(s *backuptest.Store) string { return s.RegistryPath },
		"a file in Chroma's own": func(s *backuptest.Store) string { return filepath.Join(s.ChromaPath, "same") },
	} {
		t.Run(name, func(t *testing.T) {
			s, stamp := newStore(t)
			path := file(s)
			backuptest.MountBind(t, path, path)
			_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, stamp)
			require.ErrorIs(t, err, syscall.EBUSY)
			require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
			s.RequireNoRemains()
			require.Equal(t, "old", generationOf(t, s.Options))
		})
	}
}

// Paths may have any bytes, in the journal as well, and may be relative.
func TestRestoreOfAwkwardPaths(t *testing.T) {
	for _, name := range []string{"\xff\xfe", "new\nline", "q?%#&=", `"\`, "\xed\xb2\x80"} {
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			require.NoError(t, os.MkdirAll(filepath.Join(name, "live"), 0o755))
			abs := &backuptest.Store{T: t, Dir: dir, Options: optionsIn(filepath.Join(dir, name))}
			writeGeneration(t, abs.Options, "new")
			rel := &backuptest.Store{T: t, Dir: dir, Options: optionsIn(name)}
			stamp := rel.Create().Stamp
			require.NoError(t, os.RemoveAll(filepath.Join(name, "live")))
			require.NoError(t, os.Mkdir(filepath.Join(name, "live"), 0o755))
			writeGeneration(t, abs.Options, "old")

			c := backuptest.Start(t, "call", filepath.Join(dir, name), "restore", stamp, "verify")
			require.Equal(t, "at verify", c.Hear())
			c.Kill()
			_, err := backup.RestoreRuntimeBackup(context.Background(), rel.Options, "none")
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, "old", generationOf(t, abs.Options))
			rel.Restore(stamp)
			require.Equal(t, "new", generationOf(t, abs.Options))
			rel.RequireNoRemains()
		})
	}
}

func TestRestoreFromAReadOnlyBackupDirectory(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	readOnly := filepath.Join(s.Dir, "read-only")
	require.NoError(t, os.Mkdir(readOnly, 0o755))
	backuptest.MountReadOnly(t, s.BackupDir, readOnly)
	opts := s.Options
	opts.BackupDir = readOnly
	r, err := backup.RestoreRuntimeBackup(context.Background(), opts, stamp)
	require.NoError(t, err)
	require.Empty(t, r.SafetyStamp)
	require.Len(t, r.SetAside, 3, "without a safety snapshot, the old store is set aside")
	require.Equal(t, "new", generationOf(t, s.Options))
}

func TestRestoreFromAMovedBackupDirectory(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	moved := filepath.Join(s.Dir, "moved")
	require.NoError(t, os.Rename(s.BackupDir, moved))
	s.BackupDir = moved
	s.Restore(stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// What the superuser restores belongs to the service's user as before.
func TestRestoreKeepsOwners(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can change owners")
	}
	s, stamp := newStore(t)
	for _, path := range []string{s.DatabasePath, s.RegistryPath, s.ChromaPath} {
		require.NoError(t, os.Chown(path, 12345, 54321))
	}
	s.Restore(stamp)
	for _, path := range []string{s.DatabasePath, s.RegistryPath, s.ChromaPath, filepath.Join(s.ChromaPath, "same"), filepath.Join(s.ChromaPath, "segment-new", "header")} {
		uid, gid := ownerOf(t, path)
		require.Equal(t, []int{12345, 54321}, []int{uid, gid}, path)
	}
}

func ownerOf(t *testing.T, path string) (uid, gid int) {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return int(st.Uid), int(st.Gid)
}

// nobody is the user and the group without rights.
const nobody = 65534
