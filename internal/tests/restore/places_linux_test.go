package backup_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// What was an empty place when a restore began, and is one no longer, is
// nobody's to replace: no snapshot was taken of it.
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
			s, stamp := smallStore(t)
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

// A restore that failed and was undone leaves a Chroma directory alone that is
// not its own: it must not be taken for a failure of undoing, for ever.
func TestRestoreWithChromaOnAVolumeThatIsNotThere(t *testing.T) {
	s, stamp := smallStore(t)
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

// While a restore was cut off in staging, the host may have made itself the
// Chroma directory that was not there before.
func TestChromaMadeAfterARestoreWasCutOff(t *testing.T) {
	s, stamp := smallStore(t)
	require.NoError(t, os.RemoveAll(s.ChromaPath))
	c := backuptest.Start(t, "call", s.Dir, "restore", stamp, "stage")
	require.Equal(t, "at stage", c.Hear())
	c.Kill()
	require.NoError(t, os.MkdirAll(s.ChromaPath, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "made"), []byte("x"), 0o600))
	_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, "none")
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.FileExists(t, filepath.Join(s.ChromaPath, "made"))
	s.Restore(stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// SQLite wants room for "-journal" behind the name of a database; what is set
// aside gets a longer one.
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

// What comes after a restore is done does not make it fail.
func TestLoggerThatPanicsAfterARestore(t *testing.T) {
	s, stamp := smallStore(t)
	s.Logger = slog.New(panicAt{slog.DiscardHandler, "runtime_backup_restored"})
	r := s.Restore(stamp)
	require.Equal(t, stamp, r.Stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// panicAt panics at one message.
type panicAt struct {
	slog.Handler
	message string
}

func (panicAt) Enabled(context.Context, slog.Level) bool { return true }

func (p panicAt) Handle(_ context.Context, r slog.Record) error {
	if r.Message == p.message {
		panic("of the logger")
	}
	return nil
}

// If what was replaced cannot be removed, the new store is in place, and the
// error says so.
func TestRestoreThatCannotEnd(t *testing.T) {
	s := backuptest.NewStore(t)
	m := s.Create()
	require.NoError(t, os.WriteFile(s.DatabasePath, []byte(strings.Repeat("rubbish ", 1000)), 0o600))
	var inTheWay string
	opts := s.Options
	opts.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseVerify && inTheWay == "" {
			staging, err := filepath.Glob(filepath.Join(filepath.Dir(s.DatabasePath), ".atocore-restore-*-db"))
			require.NoError(t, err)
			require.Len(t, staging, 1)
			id := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(staging[0]), ".atocore-restore-"), "-db")
			inTheWay = s.DatabasePath + ".set-aside-" + id
			require.NoError(t, os.Mkdir(inTheWay, 0o700))
		}
	}
	_, err := backup.RestoreRuntimeBackup(context.Background(), opts, m.Stamp)
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	backuptest.RequireSound(t, s.DatabasePath)
	require.NoError(t, os.Remove(inTheWay))
	require.Equal(t, "finished", s.Restore(m.Stamp).Recovered)
}

// A list beside a restore that begins does not keep it away.
func TestListsDoNotKeepARestoreAway(t *testing.T) {
	s, stamp := smallStore(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 4)
	for range cap(ended) {
		go func() {
			for ctx.Err() == nil {
				if _, err := backup.ListRuntimeBackups(context.Background(), s.Options); err != nil {
					ended <- err
					return
				}
				runtime.Gosched()
			}
			ended <- nil
		}()
	}
	var err error
	for range 100 {
		// Of a snapshot that is not there: the locks are the same.
		_, err = backup.RestoreRuntimeBackup(context.Background(), s.Options, "none")
		if !errors.Is(err, backup.ErrInvalidBackup) {
			break
		}
	}
	cancel()
	for range cap(ended) {
		require.NoError(t, <-ended)
	}
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	s.Restore(stamp)
}

func init() {
	// restore, by a user who is not the superuser.
	roles["restore-as"] = func(p *backuptest.Parent, args []string) error {
		uid, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		if err := errors.Join(syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
			return err
		}
		_, err = backup.RestoreRuntimeBackup(context.Background(), storeAt(args[0]), args[1])
		if err != nil {
			p.Say(err.Error())
			return nil
		}
		p.Say("done")
		return nil
	}
}

const nobody = 65534

// A service may write to its Chroma directory and not to the one above, and
// what it restores may be read-only.
func TestRestoreByAServiceWithFewRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can become somebody else")
	}
	for _, tt := range []struct {
		name   string
		before func(s *backuptest.Store) // the snapshot is taken
		after  func(s *backuptest.Store)
	}{
		{"set aside where nothing can be made", nil, func(s *backuptest.Store) {
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
			s := &backuptest.Store{T: t, Dir: dir, Options: storeAt(dir)}
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
			// service; the Chroma directory lies in one that is not.
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

			c := backuptest.Start(t, "restore-as", dir, stamp, fmt.Sprint(nobody))
			require.Equal(t, "done", c.Hear())
			c.Wait()
			s.RequireNoRemains()
			if entries, err := filepath.Glob(filepath.Join(s.ChromaPath, "*.set-aside-*")); len(entries) > 0 {
				require.NoError(t, err)
				require.NoError(t, os.RemoveAll(entries[0]))
			}
			require.Equal(t, "new", generationOf(t, s.Options))
		})
	}
}

// A file that is a mount point, as containers have them, cannot be replaced by
// a rename: nothing is then.
func TestRestoreOverAFileThatIsAMountPoint(t *testing.T) {
	for name, file := range map[string]func(s *backuptest.Store) string{
		"the database":           func(s *backuptest.Store) string { return s.DatabasePath },
		"the registry":           func(s *backuptest.Store) string { return s.RegistryPath },
		"a file in Chroma's own": func(s *backuptest.Store) string { return filepath.Join(s.ChromaPath, "same") },
	} {
		t.Run(name, func(t *testing.T) {
			s, stamp := smallStore(t)
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

// Names are bytes, in the journal too; relative ones are as good as others.
func TestRestoreOfStrangePaths(t *testing.T) {
	for _, name := range []string{"\xff\xfe", "new\nline", "q?%#&=", `"\`, "\xed\xb2\x80"} {
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			require.NoError(t, os.MkdirAll(filepath.Join(name, "live"), 0o755))
			abs := &backuptest.Store{T: t, Dir: dir, Options: storeAt(filepath.Join(dir, name))}
			writeGeneration(t, abs.Options, "new")
			rel := &backuptest.Store{T: t, Dir: dir, Options: storeAt(name)}
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

// Undoing is cut off while it removes what was staged, and then somebody makes
// the database that there was none of: it is theirs.
func TestDatabaseMadeWhileUndoWasCutOff(t *testing.T) {
	tracer := needStrace(t)
	s, stamp := smallStore(t)
	for _, suffix := range []string{"", "-wal"} {
		require.NoError(t, os.Remove(s.DatabasePath+suffix))
	}
	c := backuptest.Start(t, "call", s.Dir, "restore", stamp, "verify")
	require.Equal(t, "at verify", c.Hear())
	c.Kill()
	staging, err := filepath.Glob(filepath.Join(filepath.Dir(s.DatabasePath), ".atocore-restore-*-db"))
	require.NoError(t, err)
	require.Len(t, staging, 1)
	tracer.path = staging[0]
	_, hit, _ := tracer.run(t, "unlinkat", "signal=SIGKILL:when=1", s.Dir, "none")
	require.True(t, hit)
	require.NoFileExists(t, s.DatabasePath)
	backuptest.MakeDatabase(t, s.DatabasePath)
	_, err = backup.RestoreRuntimeBackup(context.Background(), s.Options, "none")
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	backuptest.RequireSound(t, s.DatabasePath)
	s.RequireNoRemains()
}
