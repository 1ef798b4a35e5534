package restore

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// What a restore does about an earlier one that was interrupted, and about what
// somebody did to the store in between.

// useStore does what a service does that is started on the store and killed: it
// writes to all parts, to the database in WAL mode.
func useStore(t *testing.T, s *backuptest.Store) {
	t.Helper()
	db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode(wal)")
	_, err := db.Exec("CREATE TABLE later (value); INSERT INTO later VALUES ('written since')")
	require.NoError(t, err)
	backuptest.KeepWAL(t, db, s.DatabasePath)
	backuptest.Write(t, s.RegistryPath, `{"gen":"written since"}`)
	backuptest.Write(t, filepath.Join(s.ChromaPath, "later"), "written since")
}

// requireUsed checks that the parts at these paths have what useStore wrote.
func requireUsed(t *testing.T, database, registry, chroma string) {
	t.Helper()
	db := backuptest.OpenDB(t, backuptest.CopyWithWAL(t, database))
	defer db.Close()
	backuptest.RequireIntegrity(t, db)
	var value string
	require.NoError(t, db.QueryRow("SELECT value FROM later").Scan(&value))
	require.Equal(t, "written since", value)
	for path, want := range map[string]string{registry: `{"gen":"written since"}`, filepath.Join(chroma, "later"): "written since"} {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, want, string(data))
	}
}

// requireGeneration restores a snapshot into an empty place and checks which
// generation it is.
func requireGeneration(t *testing.T, s *backuptest.Store, stamp, want string) {
	t.Helper()
	opts := optionsIn(t.TempDir())
	opts.BackupDir = s.BackupDir
	_, err := backup.RestoreRuntimeBackup(context.Background(), opts, stamp)
	require.NoError(t, err)
	require.Equal(t, want, generationOf(t, opts))
}

// stampsIn returns the stamps of the snapshots, also while a restore is
// unfinished.
func stampsIn(t *testing.T, s *backuptest.Store) (stamps []string) {
	t.Helper()
	entries, err := os.ReadDir(s.SnapshotPath(""))
	require.NoError(t, err)
	for _, entry := range entries {
		stamps = append(stamps, entry.Name())
	}
	return stamps
}

// otherBackups copies the backup directory and returns the options of the store
// with the copy.
func otherBackups(t *testing.T, s *backuptest.Store) *backuptest.Store {
	t.Helper()
	other := *s
	other.BackupDir = filepath.Join(s.Dir, "other-backups")
	require.NoError(t, os.CopyFS(other.BackupDir, os.DirFS(s.BackupDir)))
	require.NoError(t, os.RemoveAll(filepath.Join(other.BackupDir, journalName)))
	return &other
}

// requireTold checks that the result, the error and the log say what became of
// an interrupted restore although the call failed.
func requireTold(t *testing.T, r *backup.RestoreResult, err error, log *backuptest.Log, outcome, stamp string) {
	t.Helper()
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
	require.NotNil(t, r)
	require.Equal(t, outcome, r.Recovered)
	require.Equal(t, stamp, r.RecoveredStamp)
	require.ErrorContains(t, err, "before that, the interrupted restore of "+stamp+" was "+outcome)
	told := strings.Join(log.Lines(), "\n")
	require.Contains(t, told, "interrupted_restore_recovered outcome="+outcome+" stamp="+stamp)
	for _, path := range r.SetAside {
		require.DirExists(t, path)
		require.ErrorContains(t, err, path)
		require.Contains(t, told, path)
	}
}

// A restore is killed when the new store is in place and only its verification is
// left. The service starts and writes. The next call of any kind refuses, and the
// next restore, whatever it is to restore, keeps what was written.
func TestServiceRunsOnTheNewStoreAfterAKill(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	cutOff(t, s, stamp, "verify")
	useStore(t, s)
	for _, call := range []string{"create", "prune", "list", "validate"} {
		require.ErrorIs(t, callByName(s.Options, call, stamp), backup.ErrRestoreUnfinished, call)
	}
	log := s.Record()
	r, err := recovery(s)
	requireTold(t, r, err, log, "finished", stamp)
	require.Empty(t, r.SetAside)
	require.Empty(t, r.SafetyStamp, "of the snapshot that was asked for")
	requireUsed(t, s.DatabasePath, s.RegistryPath, s.ChromaPath)
	s.RequireNoRemains()

	// The old store is in the safety snapshot.
	stamps := s.RequireValid()
	require.Len(t, stamps, 2)
	requireGeneration(t, s, stamps[1], "old")
	s.Create()
}

// Without the safety snapshot, finishing sets the old store aside, and says where.
func TestFinishWithoutTheSafetySnapshot(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(t *testing.T, path string){
		"missing": func(t *testing.T, path string) { require.NoError(t, os.RemoveAll(path)) },
		"damaged": func(t *testing.T, path string) {
			backuptest.Write(t, filepath.Join(path, "config", "registry.json"), "{}")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, stamp := newStore(t)
			cutOff(t, s, stamp, "verify")
			stamps := stampsIn(t, s)
			require.Len(t, stamps, 2)
			lose(t, s.SnapshotPath(stamps[1]))
			log := s.Record()
			r, err := recovery(s)
			requireTold(t, r, err, log, "finished", stamp)
			require.Len(t, r.SetAside, 3)
			require.Equal(t, "new", generationOf(t, s.Options))
			old := s.Options
			old.ChromaPath = r.SetAside[0]
			old.RegistryPath = filepath.Join(r.SetAside[1], filepath.Base(s.RegistryPath))
			old.DatabasePath = filepath.Join(r.SetAside[2], filepath.Base(s.DatabasePath))
			require.Equal(t, "old", generationOf(t, old))
			require.NoError(t, os.RemoveAll(s.BackupDir)) // of the damaged snapshot
		})
	}
}

// What an interrupted restore became is told although the snapshot that was asked
// for does not exist.
func TestRecoveryIsToldByARestoreThatFails(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newTemplate(t)
	for _, tt := range []struct{ line, outcome, want string }{
		{"swapping", "undone", "old"},
		{"out config", "undone", "old"},
		{"end db", "finished", "new"},
		{"done", "finished", "new"},
	} {
		t.Run(tt.line, func(t *testing.T) {
			s := tracer.cutAfter(t, "pwrite64", tt.line, stamp, fresh)
			log := s.Record()
			r, err := recovery(s)
			requireTold(t, r, err, log, tt.outcome, stamp)
			require.Empty(t, r.SetAside)
			require.Equal(t, tt.want, generationOf(t, s.Options))
			info, err := os.Stat(s.ChromaPath)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o755), info.Mode().Perm())

			// Only once.
			r, err = recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Nil(t, r)
			require.NotContains(t, err.Error(), "before that")
		})
	}
}

// A restore that succeeds tells it in its result.
func TestRecoveryIsToldByARestoreThatSucceeds(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	cutOff(t, s, stamp, "swap")
	backuptest.Write(t, filepath.Join(s.ChromaPath, "only-old"), "old") // unchanged
	r := s.Restore(stamp)
	require.Equal(t, "undone", r.Recovered)
	require.Equal(t, stamp, r.RecoveredStamp)
	require.Equal(t, stamp, r.Stamp)
	require.NotEmpty(t, r.SafetyStamp)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// A restore is killed half-way through the swap, and then each of the parts is
// written to. Undoing sets aside whole what is not what was staged.
func TestUndoSetsAsideWhatWasWrittenSince(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newTemplate(t)
	for _, line := range []string{"out chroma", "out config", "out db"} {
		t.Run(line, func(t *testing.T) {
			s := tracer.cutAfter(t, "pwrite64", line, stamp, fresh)
			for _, path := range []string{s.DatabasePath, s.RegistryPath, filepath.Join(s.ChromaPath, "same"), filepath.Join(s.ChromaPath, "later")} {
				backuptest.Write(t, path, "written since")
			}
			log := s.Record()
			r, err := recovery(s)
			requireTold(t, r, err, log, "undone", stamp)
			require.NotEmpty(t, r.SetAside)
			want := map[string]string{}
			switch line { // the parts whose swap had begun
			case "out db":
				want[s.DatabasePath] = filepath.Base(s.DatabasePath)
				fallthrough
			case "out config":
				want[s.RegistryPath] = filepath.Base(s.RegistryPath)
				fallthrough
			case "out chroma":
				want[s.ChromaPath] = "later"
			}
			require.Len(t, r.SetAside, len(want))
			for path, name := range want {
				found, err := filepath.Glob(filepath.Join(path+".set-aside-*", name))
				require.NoError(t, err)
				require.Len(t, found, 1, path)
				require.Contains(t, r.SetAside, filepath.Dir(found[0]))
				data, err := os.ReadFile(found[0])
				require.NoError(t, err)
				require.Equal(t, "written since", string(data))
			}
			// The Chroma directory is set aside whole.
			require.FileExists(t, filepath.Join(r.SetAside[0], "only-new"))
			require.FileExists(t, filepath.Join(r.SetAside[0], "segment-new", "header"))
			require.FileExists(t, filepath.Join(s.ChromaPath, "only-old"))
			if line == "out db" {
				require.Equal(t, "old", generationOf(t, s.Options))
			}
		})
	}
}

// The new store is in place, nobody has verified it, and what is there now cannot
// be a store that works. The old store comes back, and nothing is lost.
func TestUndoOfANewStoreThatIsBroken(t *testing.T) {
	t.Parallel()
	for name, breakStore := range map[string]func(t *testing.T, s *backuptest.Store){
		"rubbish in the database": func(t *testing.T, s *backuptest.Store) { backuptest.Write(t, s.DatabasePath, "written since") },
		"a damaged database": func(t *testing.T, s *backuptest.Store) {
			db := backuptest.OpenDB(t, s.DatabasePath)
			_, err := db.Exec("CREATE TABLE later (value); CREATE INDEX i ON later (value)")
			require.NoError(t, err)
			require.NoError(t, db.Close())
			backuptest.WithoutIndex(t, s.DatabasePath, "i", func(db *sql.DB) {
				_, err := db.Exec("INSERT INTO later VALUES ('missing in the index')")
				require.NoError(t, err)
			})
		},
		"no database":         func(t *testing.T, s *backuptest.Store) { s.RemoveAll(s.DatabasePath) },
		"no registry":         func(t *testing.T, s *backuptest.Store) { s.RemoveAll(s.RegistryPath) },
		"no Chroma directory": func(t *testing.T, s *backuptest.Store) { emptyChroma(t, s) },
	} {
		t.Run(name, func(t *testing.T) {
			s, stamp := newStore(t)
			cutOff(t, s, stamp, "verify")
			if strings.HasPrefix(name, "no ") {
				useStore(t, s)
			}
			breakStore(t, s)
			log := s.Record()
			r, err := recovery(s)
			requireTold(t, r, err, log, "undone", stamp)
			require.NotEmpty(t, r.SetAside)
			require.Equal(t, "old", generationOf(t, s.Options))
			require.Len(t, s.Stamps(), 1, "the safety snapshot has the store that is live again")
			for part, path := range map[string]string{"database": s.DatabasePath, "registry": s.RegistryPath} {
				if name == "no "+part || !strings.HasPrefix(name, "no ") {
					continue
				}
				found, err := filepath.Glob(filepath.Join(path+".set-aside-*", filepath.Base(path)))
				require.NoError(t, err)
				require.Len(t, found, 1, part)
			}
		})
	}
}

// emptyChroma removes everything in the Chroma directory but the staging
// directory of a restore.
func emptyChroma(t *testing.T, s *backuptest.Store) {
	t.Helper()
	entries, err := os.ReadDir(s.ChromaPath)
	require.NoError(t, err)
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".atocore") {
			require.NoError(t, os.RemoveAll(filepath.Join(s.ChromaPath, entry.Name())))
		}
	}
}

// The WAL of a database that was used since must never meet the old database:
// SQLite would apply it.
func TestUndoDoesNotLeaveTheNewWAL(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(t *testing.T, s *backuptest.Store){
		"the database was moved away": func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.Rename(s.DatabasePath, filepath.Join(s.Dir, "moved-away")))
		},
		"the database was damaged": func(t *testing.T, s *backuptest.Store) {
			backuptest.Write(t, s.DatabasePath, strings.Repeat("rubbish ", 1000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, stamp := newStore(t)
			cutOff(t, s, stamp, "verify")
			useStore(t, s)
			wal, err := os.ReadFile(s.DatabasePath + "-wal")
			require.NoError(t, err)
			lose(t, s)
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, "undone", r.Recovered)
			for _, suffix := range []string{"-wal", "-journal"} {
				info, err := os.Stat(s.DatabasePath + suffix)
				require.True(t, errors.Is(err, os.ErrNotExist) || info.Size() == 0, suffix)
			}
			require.Equal(t, "old", generationOf(t, s.Options))
			// Nothing is lost: if SQLite could read the database with the WAL, it has
			// moved the rows into it.
			require.Len(t, r.SetAside, 3)
			kept, err := os.ReadFile(filepath.Join(r.SetAside[2], "atocore.db-wal"))
			require.NoError(t, err)
			if len(kept) == 0 {
				kept, err = os.ReadFile(filepath.Join(r.SetAside[2], "atocore.db"))
				require.NoError(t, err)
			} else {
				require.True(t, bytes.Equal(wal, kept))
			}
			require.True(t, bytes.Contains(kept, []byte("written since")))
		})
	}
}

// A restore that was cut off concerns the store, so it is found with another
// backup directory as well, and not again with the first one, months later.
func TestRecoveryWithAnotherBackupDirectory(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newTemplate(t)
	for _, tt := range []struct{ line, outcome string }{{"safety", "undone"}, {"out db", "undone"}, {"end db", "finished"}, {"done", "finished"}} {
		t.Run(tt.line, func(t *testing.T) {
			line := tt.line
			if line == "safety" {
				line = "swapping" // after it
			}
			s := tracer.cutAfter(t, "pwrite64", line, stamp, fresh)
			other := otherBackups(t, s)
			for _, call := range []string{"create", "prune", "list", "validate"} {
				require.ErrorIs(t, callByName(other.Options, call, stamp), backup.ErrRestoreUnfinished, call)
			}
			r := other.Restore(stamp)
			require.Equal(t, tt.outcome, r.Recovered)
			require.NoFileExists(t, pointerOf(s), "the pointer of the first restore")
			require.Equal(t, "new", generationOf(t, s.Options))
			stamps := len(s.Stamps())
			require.Equal(t, map[string]int{"undone": 1, "finished": 2}[tt.outcome], stamps, "the first restore's safety snapshot")

			useStore(t, s)
			before := backuptest.ReadTree(t, filepath.Join(s.Dir, "live"))
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Nil(t, r)
			require.Equal(t, before, backuptest.ReadTree(t, filepath.Join(s.Dir, "live")))
			requireUsed(t, s.DatabasePath, s.RegistryPath, s.ChromaPath)
			s.Create()
			other.Create()
		})
	}
}

// A Chroma server that is started on a directory whose entries are half moved
// creates files under the names of old ones.
func TestChromaServerInAHalfSwappedDirectory(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	for _, file := range []string{"chroma.sqlite3"} {
		backuptest.MakeDatabase(t, filepath.Join(template.ChromaPath, file))
	}
	s := tracer.cutAfter(t, "renameat2", "begin chroma", stamp, func(t *testing.T) *backuptest.Store { return copyStore(t, template.Dir) })
	old, err := filepath.Glob(filepath.Join(stagingOf(t, s, "chroma"), "old", "*"))
	require.NoError(t, err)
	if len(old) == 0 { // killed before the first of the moves
		require.NoError(t, os.Rename(filepath.Join(s.ChromaPath, "chroma.sqlite3"), filepath.Join(stagingOf(t, s, "chroma"), "old", "chroma.sqlite3")))
	}
	backuptest.Write(t, filepath.Join(s.ChromaPath, "chroma.sqlite3"), "the server's")
	log := s.Record()
	r, err := recovery(s)
	requireTold(t, r, err, log, "undone", stamp)
	require.Len(t, r.SetAside, 1)
	data, err := os.ReadFile(filepath.Join(r.SetAside[0], "chroma.sqlite3"))
	require.NoError(t, err)
	require.Equal(t, "the server's", string(data))
	backuptest.RequireSound(t, filepath.Join(s.ChromaPath, "chroma.sqlite3"))
	require.NoError(t, os.Remove(filepath.Join(s.ChromaPath, "chroma.sqlite3")))
	require.Equal(t, "old", generationOf(t, s.Options))
}

// Staging directories of a restore without its journal may hold the only copy of
// an old store. No call but a restore that finds them empty does anything.
func TestRemainsOfARestore(t *testing.T) {
	t.Parallel()
	places := map[string]func(s *backuptest.Store) string{
		"chroma": func(s *backuptest.Store) string { return s.ChromaPath },
		"config": func(s *backuptest.Store) string { return filepath.Dir(s.RegistryPath) },
		"db":     func(s *backuptest.Store) string { return filepath.Dir(s.DatabasePath) },
	}
	for part, place := range places {
		t.Run(part, func(t *testing.T) {
			s, stamp := newStore(t)
			remains := filepath.Join(place(s), ".atocore-restore-0123456789abcdef-"+part)
			require.NoError(t, os.MkdirAll(filepath.Join(remains, "old"), 0o700))
			require.NoError(t, os.MkdirAll(filepath.Join(remains, "new"), 0o700))
			backuptest.Write(t, filepath.Join(remains, "old", "precious"), "old")
			before := backuptest.ReadTree(t, s.Dir)
			for _, call := range []string{"create", "prune", "restore"} {
				err := callByName(s.Options, call, stamp)
				require.ErrorIs(t, err, backup.ErrRestoreUnfinished, call)
				require.ErrorContains(t, err, remains, call)
			}
			for _, call := range []string{"list", "validate"} { // which do not touch the store
				require.NoError(t, callByName(s.Options, call, stamp), call)
			}
			require.Equal(t, before, backuptest.ReadTree(t, s.Dir))

			// They hold nothing of an old store: a restore removes them.
			require.NoError(t, os.Remove(filepath.Join(remains, "old", "precious")))
			backuptest.Write(t, filepath.Join(remains, "new", "staged"), "new")
			for _, call := range []string{"create", "prune"} {
				require.ErrorIs(t, callByName(s.Options, call, stamp), backup.ErrRestoreUnfinished, call)
			}
			log := s.Record()
			require.Equal(t, "old", recovered(s))
			require.NoDirExists(t, remains)
			require.Contains(t, strings.Join(log.Lines(), "\n"), "remains_of_restore_removed path="+remains)

			// And what is called alike is the host's.
			for _, name := range []string{".atocore-restore-notes", ".atocore-restore-0123456789abcdef", ".atocore-restore-0123456789abcdef-2"} {
				require.NoError(t, os.Mkdir(filepath.Join(filepath.Dir(s.DatabasePath), name), 0o700))
			}
			backuptest.Write(t, filepath.Join(filepath.Dir(s.DatabasePath), ".atocore-restore-0123456789abcdef-db"), "a file")
			s.Create()
			for _, name := range []string{".atocore-restore-notes", ".atocore-restore-0123456789abcdef", ".atocore-restore-0123456789abcdef-2", ".atocore-restore-0123456789abcdef-db"} {
				require.NoError(t, os.Remove(filepath.Join(filepath.Dir(s.DatabasePath), name)))
			}
		})
	}
}

// Two restores with different backup directories into the same empty place: the
// second one must not take the first for one that was cut off.
func TestRestoresIntoOneEmptyPlace(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	removeParts(t, s.Options)
	other := otherBackups(t, s)
	for _, phase := range []string{"stage", "verify"} {
		c := backuptest.Start(t, "call", s.Dir, "restore", stamp, phase)
		require.Equal(t, "at "+phase, c.Hear())
		_, err := backup.RestoreRuntimeBackup(context.Background(), other.Options, stamp)
		require.ErrorIs(t, err, backup.ErrBusy)
		require.NoFileExists(t, pointerOf(s), "an empty place concerns nobody else")
		require.ErrorIs(t, callByName(other.Options, "create", ""), backup.ErrBusy)
		require.NoError(t, callByName(other.Options, "list", ""), "a restore that is running does not concern readers")
		require.Equal(t, "done", c.Ask(""))
		c.Wait()
		require.Equal(t, "new", generationOf(t, s.Options))
		removeParts(t, s.Options)
	}
}

// A finish that was cut off after it had set part of the old store aside tells of
// all of it in the end.
func TestSetAsideIsToldCompletely(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	backuptest.Write(t, template.DatabasePath, strings.Repeat("rubbish ", 1000))
	require.NoError(t, os.Remove(template.DatabasePath+"-wal")) // which has all of its pages
	fresh := func(t *testing.T) *backuptest.Store { return copyStore(t, template.Dir) }
	for _, line := range []string{"done", "cleaned config"} {
		t.Run(line, func(t *testing.T) {
			s := tracer.cutAfter(t, "unlinkat", line, stamp, fresh)
			r := s.Restore(stamp)
			require.Equal(t, "finished", r.Recovered)
			require.Len(t, r.SetAside, 3)
			for i, name := range []string{"only-old", filepath.Base(s.RegistryPath), filepath.Base(s.DatabasePath)} {
				require.FileExists(t, filepath.Join(r.SetAside[i], name))
			}
			require.Empty(t, r.SafetyStamp, "the first restore's store is the snapshot already")
		})
	}
}

// Whoever may read the backups and may not search the directory of the store gets
// a list and a verdict, whatever a restore is doing there.
func TestReadersWhoMayNotSearchTheStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can become another user")
	}
	for _, cut := range []bool{false, true} {
		s, stamp := newStore(t)
		if cut {
			cutOff(t, s, stamp, "verify")
		}
		openFor(t, s.Dir)
		require.NoError(t, exec.Command("chmod", "-R", "a+rX", s.BackupDir).Run())
		require.NoError(t, os.Chmod(filepath.Dir(s.DatabasePath), 0o700))
		for _, call := range []string{"list", "validate"} {
			backuptest.Start(t, "call-as", s.Dir, call, stamp, "65534").Wait()
		}
		if cut {
			recovered(s)
		}
	}
}

// Recovery takes the guard and locks the database, as a restore does.
func TestRecoveryKeepsOthersAway(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newTemplate(t)
	for _, line := range []string{"out db", "end db"} {
		t.Run(line, func(t *testing.T) {
			s := tracer.cutAfter(t, "pwrite64", line, stamp, fresh)
			if line == "end db" {
				useStore(t, s) // in WAL mode an idle connection holds a lock
			} else {
				db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode(wal)")
				require.NoError(t, db.Close())
			}
			before := backuptest.ReadTree(t, s.ChromaPath)
			guard := new(backuptest.Guard)
			s.Locker = guard
			c := backuptest.Start(t, "hold", s.DatabasePath)
			require.Equal(t, "open", c.Hear())
			_, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.ErrorIs(t, err, backup.ErrDatabaseInUse)
			require.Equal(t, 1, guard.Taken)
			guard.RequireReleased(t)
			require.FileExists(t, journalOf(s))
			require.Equal(t, before, backuptest.ReadTree(t, s.ChromaPath))
			c.Kill()

			chroma := backuptest.Start(t, "hold", filepath.Join(s.ChromaPath, "chroma.sqlite3"))
			require.Equal(t, "open", chroma.Hear())
			_, err = recovery(s)
			require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.ErrorIs(t, err, backup.ErrDatabaseInUse)
			require.FileExists(t, journalOf(s))
			chroma.Kill()

			s.Locker = backup.LockerFunc(func(context.Context) (func(), error) { return nil, errors.ErrUnsupported })
			_, err = recovery(s)
			require.ErrorIs(t, err, errors.ErrUnsupported)
			require.FileExists(t, journalOf(s))

			s.Locker = guard
			_, err = recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.NoFileExists(t, journalOf(s))
			require.Equal(t, 3, guard.Taken)
			guard.RequireReleased(t)
		})
	}
}

// A recovery that fails says so, and does not say that anything was finished or
// undone.
func TestRecoveryThatFailsDoesNotTellOfSuccess(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newTemplate(t)
	for _, line := range []string{"out db", "done"} {
		t.Run(line, func(t *testing.T) {
			s := tracer.cutAfter(t, "pwrite64", line, stamp, fresh)
			staging := stagingOf(t, s, "config")
			require.NoError(t, os.Rename(staging, s.Dir+".away"))
			log := s.Record()
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.Nil(t, r)
			require.NotContains(t, err.Error(), "before that")
			require.NotContains(t, strings.Join(log.Lines(), "\n"), "interrupted_restore_recovered")
			require.NoError(t, os.Rename(s.Dir+".away", staging))
			require.Equal(t, map[string]string{"out db": "old", "done": "new"}[line], recovered(s))
		})
	}
}
