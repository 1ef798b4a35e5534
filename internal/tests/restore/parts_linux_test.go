package restore

import (
	"context"
	"errors"
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

// Restores of some parts, and parts that are left alone.

// actionsOf returns what a restore did with database, registry and Chroma
// directory.
func actionsOf(r *backup.RestoreResult) (actions [3]backup.RestoreAction) {
	for i, part := range r.Parts {
		actions[i] = part.Action
	}
	return actions
}

// inodeOf identifies a file as it is: replacing it, writing to it and changing
// what it has in its inode change this.
func inodeOf(t *testing.T, path string) any {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err == unix.ENOENT {
		return nil
	} else {
		require.NoError(t, err)
	}
	return []any{st.Ino, st.Ctim, st.Mtim, st.Uid}
}

// partPath returns the path of a part.
func partPath(s *backuptest.Store, part backup.Parts) string {
	return map[backup.Parts]string{backup.PartDatabase: s.DatabasePath, backup.PartRegistry: s.RegistryPath, backup.PartChroma: s.ChromaPath}[part]
}

var eachPart = []backup.Parts{backup.PartDatabase, backup.PartRegistry, backup.PartChroma}

// partGeneration returns the generation of one part.
func partGeneration(t *testing.T, s *backuptest.Store, part backup.Parts) string {
	t.Helper()
	switch part {
	case backup.PartDatabase:
		db := backuptest.OpenDB(t, backuptest.CopyWithWAL(t, s.DatabasePath))
		defer db.Close()
		var gen string
		require.NoError(t, db.QueryRow("SELECT value FROM gen").Scan(&gen))
		return gen
	case backup.PartRegistry:
		data, err := os.ReadFile(s.RegistryPath)
		require.NoError(t, err)
		return strings.Trim(strings.TrimPrefix(string(data), `{"gen":`), `"}`)
	}
	data, err := os.ReadFile(filepath.Join(s.ChromaPath, "same"))
	require.NoError(t, err)
	return string(data)
}

// A part that has the snapshot's content already is not touched, not even its
// inode, and if all are equal, nothing at all is done.
func TestEqualPartsAreNotTouched(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	s.Restore(stamp)
	inodes := func() (all []any) {
		for _, path := range []string{s.DatabasePath, s.RegistryPath, s.ChromaPath, filepath.Join(s.ChromaPath, "same"), filepath.Join(s.ChromaPath, "segment-new")} {
			all = append(all, inodeOf(t, path))
		}
		return all
	}
	before, stamps := inodes(), s.Stamps()
	r := s.Restore(stamp)
	require.Equal(t, [3]backup.RestoreAction{backup.ActionEqual, backup.ActionEqual, backup.ActionEqual}, actionsOf(r))
	require.Equal(t, []string{s.DatabasePath, s.RegistryPath, s.ChromaPath}, []string{r.DatabasePath, r.RegistryPath, r.ChromaPath})
	require.Empty(t, r.SafetyStamp)
	require.Zero(t, r.Files)
	require.Equal(t, before, inodes())
	require.Equal(t, stamps, s.Stamps(), "there is nothing to be saved")

	// A journal mode is no difference.
	db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode(wal)")
	require.NoError(t, db.Close())
	for _, change := range []struct {
		name string
		do   func() error
		part backup.Parts
	}{
		{"a registry of equal size", func() error { return os.WriteFile(s.RegistryPath, []byte(`{"gen":"NEW"}`), 0o600) }, backup.PartRegistry},
		{"a file of equal size", func() error { return os.WriteFile(filepath.Join(s.ChromaPath, "same"), []byte("NEW"), 0o600) }, backup.PartChroma},
		{"a file more", func() error { return os.WriteFile(filepath.Join(s.ChromaPath, "zz"), nil, 0o600) }, backup.PartChroma},
		{"a file less", func() error { return os.Remove(filepath.Join(s.ChromaPath, "same")) }, backup.PartChroma},
		{"an empty directory more", func() error { return os.Mkdir(filepath.Join(s.ChromaPath, "empty"), 0o700) }, backup.PartChroma},
		{"a link", func() error {
			return errors.Join(os.Rename(filepath.Join(s.ChromaPath, "same"), filepath.Join(s.Dir, "same")),
				os.Symlink(filepath.Join(s.Dir, "same"), filepath.Join(s.ChromaPath, "same")))
		}, backup.PartChroma},
		{"no registry", func() error { return os.Remove(s.RegistryPath) }, backup.PartRegistry},
		{"a row more", func() error {
			db, err := backuptest.Open(s.DatabasePath)
			if err != nil {
				return err
			}
			_, err = db.Exec("UPDATE gen SET value = 'NEW'")
			return errors.Join(err, db.Close())
		}, backup.PartDatabase},
	} {
		require.NoError(t, change.do())
		var same []any
		for _, part := range eachPart {
			same = append(same, inodeOf(t, partPath(s, part)))
		}
		r := s.Restore(stamp)
		for i, part := range r.Parts {
			require.Equal(t, part.Part == change.part, part.Action != backup.ActionEqual, "%s: %s", change.name, part.Part)
			if part.Action == backup.ActionEqual && part.Part != backup.PartDatabase {
				require.Equal(t, same[i], inodeOf(t, part.Path), change.name)
			}
		}
		require.False(t, r.Mixed)
		require.Equal(t, "new", generationOf(t, s.Options))
		s.RequireNoRemains()
	}
	// Another process finds nothing of it open.
	s.Restore(stamp)
	backuptest.Start(t, "call", s.Dir, "restore", stamp).Wait()
}

// Only the parts are restored that the caller names. The safety snapshot has the
// whole store.
func TestRestoreOfSomeParts(t *testing.T) {
	t.Parallel()
	for parts := backup.PartDatabase; parts <= backup.PartDatabase|backup.PartRegistry|backup.PartChroma; parts++ {
		t.Run(parts.String(), func(t *testing.T) {
			s, stamp := newStore(t)
			s.Parts = parts
			log := s.Record()
			before := make(map[backup.Parts]any)
			for _, part := range eachPart {
				before[part] = inodeOf(t, partPath(s, part))
			}
			r := s.Restore(stamp)
			for i, part := range eachPart {
				if parts&part != 0 {
					require.Equal(t, backup.ActionReplace, r.Parts[i].Action)
					require.Equal(t, "new", partGeneration(t, s, part))
					continue
				}
				require.Equal(t, backup.ActionLeaveOut, r.Parts[i].Action)
				require.Equal(t, "old", partGeneration(t, s, part))
				require.Equal(t, before[part], inodeOf(t, partPath(s, part)))
			}
			require.Equal(t, parts != backup.PartDatabase|backup.PartRegistry|backup.PartChroma, r.Mixed)
			require.Contains(t, strings.Join(log.Lines(), "\n"), "restore_planned")
			require.Equal(t, parts&backup.PartDatabase != 0, r.DatabasePath != "")
			s.RequireNoRemains()
			requireGeneration(t, &backuptest.Store{T: t, Dir: s.Dir, Options: s.Options}, r.SafetyStamp, "old")
		})
	}
}

// Parts that are left out may be in use, and those that are restored may not.
func TestRestoreBesideUsersOfOtherParts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		open func(s *backuptest.Store) string
		part backup.Parts
	}{
		{func(s *backuptest.Store) string { return s.DatabasePath }, backup.PartDatabase},
		{func(s *backuptest.Store) string { return filepath.Join(s.ChromaPath, "chroma.sqlite3") }, backup.PartChroma},
	} {
		t.Run(tt.part.String(), func(t *testing.T) {
			s, _ := newStore(t)
			if tt.part == backup.PartChroma {
				backuptest.MakeDatabase(t, tt.open(s))
			}
			stamp := s.Create().Stamp
			s.Disturb()
			db := backuptest.OpenDB(t, s.DatabasePath)
			_, err := db.Exec("CREATE TABLE more (x)")
			require.NoError(t, err)
			require.NoError(t, db.Close())
			server := backuptest.Start(t, "hold", tt.open(s))
			require.Equal(t, "open", server.Hear())
			_, err = backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
			require.ErrorIs(t, err, backup.ErrDatabaseInUse)
			require.ErrorContains(t, err, tt.open(s))
			if tt.part == backup.PartChroma {
				require.NotContains(t, err.Error(), s.DatabasePath, "it is not the database that is in use")
			}
			s.Parts = (backup.PartDatabase | backup.PartRegistry | backup.PartChroma) &^ tt.part
			r := s.Restore(stamp)
			require.True(t, r.Mixed)
			require.NotEmpty(t, r.SafetyStamp)
			require.NoFileExists(t, filepath.Join(s.ChromaPath, map[bool]string{true: "disturbed"}[tt.part == backup.PartDatabase]))
			server.Kill()
		})
	}
}

// A host that has the database open through a handle of its own restores the other
// parts, and the safety snapshot is taken through the handle.
func TestRestoreBesideAHandle(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	s.DB = backuptest.OpenDB(t, s.DatabasePath)
	require.NoError(t, s.DB.Ping())
	for _, parts := range []backup.Parts{0, backup.PartDatabase, backup.PartDatabase | backup.PartRegistry} {
		s.Parts = parts
		_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
		require.ErrorIs(t, err, backup.ErrInvalidOptions)
	}
	s.Parts = backup.PartRegistry | backup.PartChroma
	r := s.Restore(stamp)
	require.Equal(t, "new", partGeneration(t, s, backup.PartRegistry))
	require.Equal(t, "new", partGeneration(t, s, backup.PartChroma))
	s.DB, s.Parts = nil, 0
	requireGeneration(t, s, r.SafetyStamp, "old")
}

// A restore of parts that was cut off is finished or undone, and the database
// that it leaves alone may be in use meanwhile.
func TestRecoveryOfSomeParts(t *testing.T) {
	t.Parallel()
	for phase, want := range map[string]string{"stage": "old", "swap": "old", "verify": "new"} {
		t.Run(phase, func(t *testing.T) {
			s, stamp := newStore(t)
			c := backuptest.Start(t, "call-parts", s.Dir, "registry,chroma", stamp, phase)
			require.Equal(t, "at "+phase, c.Hear())
			c.Kill()
			for _, call := range []string{"list", "create", "prune"} {
				require.ErrorIs(t, callByName(s.Options, call, stamp), backup.ErrRestoreUnfinished)
			}
			server := backuptest.Start(t, "hold", s.DatabasePath)
			require.Equal(t, "open", server.Hear())
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.Equal(t, map[string]string{"old": "undone", "new": "finished"}[want], r.Recovered)
			require.Equal(t, "old", partGeneration(t, s, backup.PartDatabase))
			require.Equal(t, want, partGeneration(t, s, backup.PartRegistry))
			require.Equal(t, want, partGeneration(t, s, backup.PartChroma))
			s.RequireNoRemains()
			server.Kill()
		})
	}
}

// New parts that were used since a restore was cut off stay, with what was written
// to them.
func TestUsedPartsAreKept(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	c := backuptest.Start(t, "call-parts", s.Dir, "registry,chroma", stamp, "verify")
	require.Equal(t, "at verify", c.Hear())
	c.Kill()
	backuptest.Write(t, s.RegistryPath, `{"gen":"used"}`)
	r, err := recovery(s)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.Equal(t, "finished", r.Recovered)
	require.Empty(t, r.SetAside)
	require.Equal(t, "used", partGeneration(t, s, backup.PartRegistry))
	require.Equal(t, "new", partGeneration(t, s, backup.PartChroma))
	require.Equal(t, "old", partGeneration(t, s, backup.PartDatabase))
	s.RequireNoRemains()
}

// A Chroma directory that the restore left alone may be in use in this process: a
// recovery must not drop the locks on its database by reading it.
func TestRecoveryDropsNoLocksOfChroma(t *testing.T) {
	for name, include := range map[string]bool{"in the snapshot": true, "in no snapshot": false} {
		t.Run(name, func(t *testing.T) {
			s, _ := newStore(t)
			chroma := filepath.Join(s.ChromaPath, "chroma.sqlite3")
			backuptest.MakeDatabase(t, chroma)
			s.IncludeChroma = include
			stamp := s.Create().Stamp
			backuptest.Write(t, s.RegistryPath, `{"gen":"else"}`)
			before := len(s.Stamps())
			c := backuptest.Start(t, "call-parts", s.Dir, "registry", stamp, "stage")
			require.Equal(t, "at stage", c.Hear())
			c.Kill()
			db := backuptest.OpenDB(t, chroma)
			db.SetMaxOpenConns(1)
			rows, err := db.Query("SELECT * FROM account")
			require.NoError(t, err)
			defer rows.Close()
			require.True(t, rows.Next())
			locks := backuptest.LocksOn(t, chroma)
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, "undone", r.Recovered)
			require.Equal(t, locks, backuptest.LocksOn(t, chroma))
			require.Len(t, s.Stamps(), before+1, "it is not known whether the safety snapshot is needed")
		})
	}
}

// What can't be replaced is named before anything is touched, with the way out,
// unless it is equal or left out.
func TestPartsThatCannotBeReplaced(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name  string
		part  backup.Parts
		seal  func(t *testing.T, s *backuptest.Store)
		errno error
		way   string
	}{
		{"the registry in a read-only directory", backup.PartRegistry, func(t *testing.T, s *backuptest.Store) {
			backuptest.MountReadOnly(t, filepath.Dir(s.RegistryPath), filepath.Dir(s.RegistryPath))
		}, syscall.EROFS, "--only database,chroma"},
		{"the registry as a read-only file", backup.PartRegistry, func(t *testing.T, s *backuptest.Store) {
			backuptest.MountReadOnly(t, s.RegistryPath, s.RegistryPath)
		}, syscall.EROFS, "--only database,chroma"},
		{"an immutable registry", backup.PartRegistry, func(t *testing.T, s *backuptest.Store) { fix(t, "+i", s.RegistryPath) }, syscall.EPERM, "--only database,chroma"},
		{"an immutable database", backup.PartDatabase, func(t *testing.T, s *backuptest.Store) { fix(t, "+i", s.DatabasePath) }, syscall.EPERM, "--only registry,chroma"},
		{"an immutable file in the Chroma directory", backup.PartChroma, func(t *testing.T, s *backuptest.Store) {
			fix(t, "+i", filepath.Join(s.ChromaPath, "segment-old", "header"))
		}, syscall.EPERM, "--only database,registry"},
		{"a file to which can only be appended", backup.PartChroma, func(t *testing.T, s *backuptest.Store) {
			fix(t, "+a", filepath.Join(s.ChromaPath, "same"))
		}, syscall.EPERM, "--only database,registry"},
		{"the Chroma directory is read-only", backup.PartChroma, func(t *testing.T, s *backuptest.Store) {
			backuptest.MountReadOnly(t, s.ChromaPath, s.ChromaPath)
		}, syscall.EROFS, "--only database,registry"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, stamp := newStore(t)
			tt.seal(t, s)
			before := backuptest.ReadTree(t, s.Dir)
			_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, stamp)
			require.ErrorIs(t, err, backup.ErrCannotReplace)
			require.ErrorIs(t, err, tt.errno)
			require.ErrorContains(t, err, partPath(s, tt.part))
			require.ErrorContains(t, err, tt.way)
			require.ErrorContains(t, err, "set Parts to")
			require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
			for name, file := range before {
				if !strings.Contains(name, "atocore.db") && !file.Mode.IsDir() { // locking it has emptied the WAL
					require.Equal(t, file, backuptest.ReadTree(t, s.Dir)[name], name)
				}
			}
			require.Equal(t, []string{stamp}, s.Stamps())
			s.RequireNoRemains()
			s.Parts = (backup.PartDatabase | backup.PartRegistry | backup.PartChroma) &^ tt.part
			r := s.Restore(stamp)
			require.True(t, r.Mixed)
			require.Equal(t, "old", partGeneration(t, s, tt.part))
		})
	}
	// Every restore needs the directory of the database, so there is no way out.
	t.Run("the directory of the database", func(t *testing.T) {
		s, stamp := newStore(t)
		chroma := filepath.Join(s.Dir, "chroma")
		require.NoError(t, os.Rename(s.ChromaPath, chroma))
		s.ChromaPath = chroma
		backuptest.MountReadOnly(t, filepath.Dir(s.DatabasePath), filepath.Dir(s.DatabasePath))
		for _, s.Parts = range []backup.Parts{0, backup.PartChroma} {
			_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, stamp)
			require.ErrorIs(t, err, backup.ErrCannotReplace)
			require.ErrorIs(t, err, syscall.EROFS)
			require.ErrorContains(t, err, filepath.Dir(s.DatabasePath)+": ")
			require.ErrorContains(t, err, "keeps its journal")
			require.NotContains(t, err.Error(), "--only")
		}
		require.Equal(t, []string{stamp}, s.Stamps())
	})
	t.Run("equal, so it need not be", func(t *testing.T) {
		s, stamp := newStore(t)
		backuptest.Write(t, s.RegistryPath, `{"gen":"new"}`)
		backuptest.MountReadOnly(t, filepath.Dir(s.RegistryPath), filepath.Dir(s.RegistryPath))
		r := s.Restore(stamp)
		require.Equal(t, [3]backup.RestoreAction{backup.ActionReplace, backup.ActionEqual, backup.ActionReplace}, actionsOf(r))
		require.Equal(t, "new", generationOf(t, s.Options))
	})
}

// fix sets an attribute of chattr(1) until the test ends.
func fix(t *testing.T, how, path string) {
	t.Helper()
	run(t, "chattr", how, path)
	t.Cleanup(func() { run(t, "chattr", "-"+how[1:], path) })
}

// The host is asked before anything is touched, and may say no.
func TestRestoreAsksTheHost(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	backuptest.Write(t, s.RegistryPath, `{"gen":"new"}`)
	require.NoError(t, os.Remove(filepath.Join(s.ChromaPath, "same")))
	mountFile(t, s.RegistryPath)
	refused := errors.New("no")
	var plans [][]backup.RestorePart
	s.Confirm = func(_ context.Context, plan []backup.RestorePart) error {
		plans = append(plans, plan)
		_, err := os.Stat(journalOf(s))
		require.ErrorIs(t, err, os.ErrNotExist)
		return refused
	}
	before := backuptest.ReadTree(t, s.ChromaPath)
	_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
	require.ErrorIs(t, err, refused)
	require.Equal(t, before, backuptest.ReadTree(t, s.ChromaPath))
	require.Equal(t, []backup.RestorePart{
		{Part: backup.PartDatabase, Path: s.DatabasePath, Action: backup.ActionReplace},
		{Part: backup.PartRegistry, Path: s.RegistryPath, Action: backup.ActionEqual},
		{Part: backup.PartChroma, Path: s.ChromaPath, Action: backup.ActionReplace},
	}, plans[0])
	s.Confirm = func(context.Context, []backup.RestorePart) error { panic("of the host") }
	_, err = backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
	require.ErrorIs(t, err, backup.ErrPanic)
	s.Confirm = nil
	require.Equal(t, []string{stamp}, s.Stamps())
	s.RequireNoRemains()
}

func TestPartsThatThereAreNot(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	bare := s.Options
	bare.RegistryPath, bare.IncludeChroma = "", false
	m, err := backup.CreateRuntimeBackup(t.Context(), bare)
	require.NoError(t, err)
	for parts, want := range map[backup.Parts]string{
		backup.PartRegistry: "registry", backup.PartDatabase | backup.PartChroma: "chroma", 8: "unknown parts",
	} {
		s.Parts = parts
		_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, m.Stamp)
		require.ErrorIs(t, err, backup.ErrInvalidOptions)
		require.ErrorContains(t, err, want)
	}
	require.Equal(t, "old", generationOf(t, s.Options))
}
