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

// A restore whose Chroma directory is a dangling link, or one to a place where
// nothing can be, fails and is undone: a volume may not be mounted. That there is
// no Chroma directory must not look like a failure of undoing, or no call would
// ever succeed again.
func TestRestoreWithChromaOnAMissingVolume(t *testing.T) {
	for _, target := range []string{"volume", "file/chroma"} {
		s, stamp := newStore(t)
		backuptest.Write(t, filepath.Join(s.Dir, "file"), "")
		require.NoError(t, os.Rename(s.ChromaPath, s.ChromaPath+".away"))
		require.NoError(t, os.Symlink(filepath.Join(s.Dir, target), s.ChromaPath))
		_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, stamp)
		require.Error(t, err)
		require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
		require.NotErrorIs(t, err, backup.ErrPanic)
		s.RequireNoRemains()
		require.NoError(t, os.Remove(s.ChromaPath))
		require.NoError(t, os.Rename(s.ChromaPath+".away", s.ChromaPath))
		require.Equal(t, "old", generationOf(t, s.Options))
		require.Equal(t, []string{stamp}, s.Stamps())
	}
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
			s.Disturb()
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
			writeGeneration(t, s.Options, "new")
			if tt.before != nil {
				tt.before(s)
			}
			stamp := s.Create().Stamp
			removeParts(t, s.Options)
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
			for _, above := range []string{"live", "config"} {
				require.NoError(t, os.Chown(filepath.Join(dir, above), 0, 0))
			}

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

// A service restores into a directory in which it may write and which belongs to
// somebody else, as volumes of container runtimes do: root:service 0775. It may
// not change the mode and the time of that directory, and perhaps not read the
// directory above.
func TestRestoreIntoADirectoryOfSomebodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can become another user")
	}
	for name, mode := range map[string]os.FileMode{"above readable": 0o755, "above searchable only": 0o711} {
		t.Run(name, func(t *testing.T) {
			s, stamp := newStore(t)
			openFor(t, s.Dir)
			require.NoError(t, exec.Command("chown", "-R", fmt.Sprint(nobody), s.Dir).Run())
			require.NoError(t, os.Chown(s.ChromaPath, 0, nobody))
			require.NoError(t, os.Chmod(s.ChromaPath, 0o775))
			// Database and registry are in directories of the service.
			for _, path := range []string{s.DatabasePath, s.RegistryPath} {
				own := filepath.Join(s.Dir, "own-"+filepath.Base(path))
				require.NoError(t, os.Mkdir(own, 0o755))
				require.NoError(t, os.Chown(own, nobody, nobody))
				for _, suffix := range []string{"", "-wal"} {
					if err := os.Rename(path+suffix, filepath.Join(own, filepath.Base(path)+suffix)); suffix == "" {
						require.NoError(t, err)
					}
				}
				require.NoError(t, os.Symlink(filepath.Join(own, filepath.Base(path)), path))
			}
			for _, above := range []string{"live", "config"} {
				require.NoError(t, os.Chown(filepath.Join(s.Dir, above), 0, 0))
				require.NoError(t, os.Chmod(filepath.Join(s.Dir, above), mode))
			}
			for range 2 {
				backuptest.Start(t, "restore-as", s.Dir, stamp, fmt.Sprint(nobody)).Wait()
				require.Equal(t, "new", generationOf(t, s.Options))
				s.RequireNoRemains()
				backuptest.Start(t, "call-as", s.Dir, "create", "", fmt.Sprint(nobody)).Wait()
			}
		})
	}
}

// What cannot be staged because nothing may be created there is not restored, and
// nothing is left to be undone.
func TestRestoreIntoADirectoryThatIsForbidden(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can become another user")
	}
	for name, mode := range map[string]os.FileMode{"not readable": 0o700, "not writable": 0o755} {
		for _, part := range []string{"chroma", "config"} {
			t.Run(part+" "+name, func(t *testing.T) {
				s, stamp := newStore(t)
				openFor(t, s.Dir)
				require.NoError(t, exec.Command("chown", "-R", fmt.Sprint(nobody), s.Dir).Run())
				dir := map[string]string{"chroma": s.ChromaPath, "config": filepath.Dir(s.RegistryPath)}[part]
				require.NoError(t, os.Chown(dir, 0, 0))
				require.NoError(t, os.Chmod(dir, mode))
				c := backuptest.Start(t, "restore-as", s.Dir, stamp, fmt.Sprint(nobody))
				require.Error(t, c.Cmd.Wait())
				require.NotContains(t, c.Stderr.String(), backup.ErrRestoreUnfinished.Error())
				require.Contains(t, c.Stderr.String(), "permission denied")
				require.Contains(t, c.Stderr.String(), backup.ErrCannotReplace.Error())
				require.Equal(t, "old", generationOf(t, s.Options))
				require.Equal(t, []string{stamp}, s.Stamps())
				s.RequireNoRemains()
			})
		}
	}
}

// Links to files on a disk that was lost are the very case for a restore. They
// stay links, and what they lead to is created.
func TestRestoreThroughDanglingLinks(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"the database", "the registry", "both"} {
		t.Run(which, func(t *testing.T) {
			s, stamp := newStore(t)
			disk := filepath.Join(s.Dir, "disk")
			require.NoError(t, os.Mkdir(disk, 0o755))
			links := map[string]string{"the database": s.DatabasePath, "the registry": s.RegistryPath}
			for name, path := range links {
				if which != name && which != "both" {
					delete(links, name)
					continue
				}
				require.NoError(t, os.RemoveAll(path))
				require.NoError(t, os.RemoveAll(path+"-wal"))
				require.NoError(t, os.Symlink(filepath.Join(disk, "new", filepath.Base(path)), path))
			}
			s.Restore(stamp)
			require.Equal(t, "new", generationOf(t, s.Options))
			for _, path := range links {
				info, err := os.Lstat(path)
				require.NoError(t, err)
				require.Equal(t, os.ModeSymlink, info.Mode().Type())
				require.FileExists(t, filepath.Join(disk, "new", filepath.Base(path)))
			}
			s.RequireNoRemains()
			s.Restore(stamp)
		})
	}
}

// The Chroma directory is left alone, so a Chroma server may run.
func TestRestoreWithoutChromaBesideAChromaServer(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	s.IncludeChroma = false
	stamp := s.Create().Stamp
	server := backuptest.Start(t, "hold", filepath.Join(s.ChromaPath, "chroma.sqlite3"))
	require.Equal(t, "open", server.Hear())
	s.Restore(stamp)

	// Nor is a chroma.sqlite3 looked at that is in the working directory.
	here := t.TempDir()
	local := backuptest.Start(t, "hold", filepath.Join(here, "chroma.sqlite3"))
	require.Equal(t, "open", local.Hear())
	s.ChromaPath = ""
	c := backuptest.Command(t, "restore", s.Dir, stamp)
	c.Dir = here
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
	server.Kill()
	require.NoError(t, os.Remove(filepath.Join(s.Dir, "live", "chroma", "chroma.sqlite3")))
}

// Paths may have any bytes, in the journal as well, and may be relative.
func TestRestoreOfAwkwardPaths(t *testing.T) {
	for i, name := range []string{"\xff\xfe", "new\nline", "q?%#&=", `"\`, "\xed\xb2\x80"} {
		// Recovery keeps a descriptor of the database open, so that another process
		// can't restore it any more.
		cut := []struct{ phase, want string }{{"swap", "old"}, {"verify", "new"}}[i%2]
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			abs := &backuptest.Store{T: t, Dir: dir, Options: optionsIn(filepath.Join(dir, name))}
			writeGeneration(t, abs.Options, "new")
			rel := &backuptest.Store{T: t, Dir: dir, Options: optionsIn(name)}
			stamp := rel.Create().Stamp
			removeParts(t, abs.Options)
			writeGeneration(t, abs.Options, "old")

			c := backuptest.Start(t, "call", filepath.Join(dir, name), "restore", stamp, cut.phase)
			require.Equal(t, "at "+cut.phase, c.Hear())
			c.Kill()
			_, err := recovery(rel)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, cut.want, generationOf(t, abs.Options))
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

func ownerOf(t *testing.T, path string) (uid, gid int) {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return int(st.Uid), int(st.Gid)
}

// nobody is the user and the group without rights.
const nobody = 65534
