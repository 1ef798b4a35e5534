package backup_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() {
	// One call on the store in args[0], whose snapshot is args[2]. At the
	// beginning of the phase args[3], if there is one, it says so and waits for
	// a line.
	roles["call"] = func(p *backuptest.Parent, args []string) error {
		opts, stamp := storeAt(args[0]), args[2]
		if len(args) > 3 {
			waited := false
			opts.OnProgress = func(now backup.Progress) {
				if string(now.Phase) == args[3] && !waited {
					waited = true
					p.Say("at " + args[3])
					p.Hear()
				}
			}
		}
		err := callByName(opts, args[1], stamp)
		if err != nil {
			return err
		}
		p.Say("done")
		return nil
	}
}

func callByName(opts backup.Options, name, stamp string) (err error) {
	ctx := context.Background()
	switch name {
	case "create":
		_, err = backup.CreateRuntimeBackup(ctx, opts)
	case "list":
		_, err = backup.ListRuntimeBackups(ctx, opts)
	case "validate":
		_, err = backup.ValidateBackup(ctx, opts, stamp)
	case "restore":
		_, err = backup.RestoreRuntimeBackup(ctx, opts, stamp)
	case "prune":
		_, err = backup.PruneRuntimeBackups(ctx, opts, backup.Retention{KeepLast: 100})
	}
	return err
}

// smallStore makes a store in generation "old", with a snapshot in generation
// "new".
func smallStore(t *testing.T) (s *backuptest.Store, stamp string) {
	t.Helper()
	dir := t.TempDir()
	s = &backuptest.Store{T: t, Dir: dir, Options: storeAt(dir)}
	require.NoError(t, os.MkdirAll(filepath.Dir(s.DatabasePath), 0o755))
	writeGeneration(t, s.Options, "new")
	stamp = s.Create().Stamp
	require.NoError(t, os.RemoveAll(filepath.Dir(s.DatabasePath)))
	writeGeneration(t, s.Options, "old")
	t.Cleanup(func() { s.RequireClean(); s.RequireNoRemains() })
	return s, stamp
}

// Each call while another process is in the midst of one: who is refused, and
// how.
func TestCallsBesideEachOther(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		first, phase string
		second       string
		want         error
	}{
		{"restore", "stage", "create", backup.ErrRestoreUnfinished},
		{"restore", "verify", "create", backup.ErrRestoreUnfinished},
		{"restore", "stage", "prune", backup.ErrRestoreUnfinished},
		{"restore", "verify", "restore", backup.ErrBusy},
		{"restore", "stage", "list", nil},
		{"restore", "verify", "list", nil},
		{"restore", "stage", "validate", nil},
		{"restore", "verify", "validate", nil},
		{"create", "chroma", "restore", backup.ErrBusy},
		{"create", "hash", "restore", backup.ErrBusy},
		{"create", "hash", "prune", nil},
		{"create", "hash", "list", nil},
		{"create", "hash", "validate", nil},
		{"create", "hash", "create", nil},
		{"validate", "validate_files", "restore", nil},
		{"validate", "validate_files", "create", nil},
		{"validate", "validate_files", "prune", nil},
		{"prune", "prune", "restore", backup.ErrBusy},
		{"prune", "prune", "create", nil},
		{"prune", "prune", "prune", nil},
		{"prune", "prune", "validate", nil},
	} {
		t.Run(tt.second+" beside "+tt.first+" at "+tt.phase, func(t *testing.T) {
			s, stamp := smallStore(t)
			c := backuptest.Start(t, "call", s.Dir, tt.first, stamp, tt.phase)
			require.Equal(t, "at "+tt.phase, c.Hear())
			err := callByName(s.Options, tt.second, stamp)
			if tt.want != nil {
				require.ErrorIs(t, err, tt.want)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, "done", c.Ask(""))
			c.Wait()
			want := "old"
			if tt.first == "restore" || tt.second == "restore" && tt.want == nil {
				want = "new"
			}
			require.Equal(t, want, generationOf(t, s.Options))
		})
	}
}

// An idle connection to a rollback-journal database holds no lock, but it is
// open.
func TestRestoreNoticesIdleConnections(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("this system does not tell who has a file open")
	}
	for name, file := range map[string]func(s *backuptest.Store) string{
		"the database":     func(s *backuptest.Store) string { return s.DatabasePath },
		"Chroma's own one": func(s *backuptest.Store) string { return filepath.Join(s.ChromaPath, "chroma.sqlite3") },
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			m := s.Create()
			db := backuptest.OpenDB(t, file(s), "_pragma=journal_mode(delete)")
			var n int
			require.NoError(t, db.QueryRow("SELECT count(*) FROM sqlite_schema").Scan(&n))
			_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, m.Stamp)
			require.ErrorIs(t, err, backup.ErrDatabaseInUse)
			require.NoError(t, db.Close())
			s.Restore(m.Stamp)
		})
	}
}

func TestRestoreHoldsTheGuardForTheWholeSwap(t *testing.T) {
	t.Parallel()
	s, stamp := smallStore(t)
	held, taken := false, 0
	s.Locker = backup.LockerFunc(func(context.Context) (func(), error) {
		require.False(t, held)
		held = true
		taken++
		return func() { held = false }, nil
	})
	s.OnProgress = func(p backup.Progress) {
		switch p.Phase {
		case backup.PhaseDatabase, backup.PhaseStage, backup.PhaseSwap, backup.PhaseVerify:
			require.True(t, held, p.Phase)
		}
	}
	s.Restore(stamp)
	require.False(t, held)
	require.Equal(t, 1, taken, "the safety snapshot does not take it again")
	s.Locker, s.OnProgress = nil, nil
}

func TestRestoreFromAReadOnlyBackupDirectory(t *testing.T) {
	t.Parallel()
	s, stamp := smallStore(t)
	readOnly := filepath.Join(s.Dir, "read-only")
	require.NoError(t, os.Mkdir(readOnly, 0o755))
	backuptest.MountReadOnly(t, s.BackupDir, readOnly)
	opts := s.Options
	opts.BackupDir = readOnly
	r, err := backup.RestoreRuntimeBackup(context.Background(), opts, stamp)
	require.NoError(t, err)
	require.Empty(t, r.SafetyStamp)
	require.Len(t, r.SetAside, 3, "what cannot be snapshotted is kept beside")
	require.Equal(t, "new", generationOf(t, s.Options))
}

func TestRestoreFromAMovedBackupDirectory(t *testing.T) {
	t.Parallel()
	s, stamp := smallStore(t)
	moved := filepath.Join(s.Dir, "moved")
	require.NoError(t, os.Rename(s.BackupDir, moved))
	s.BackupDir = moved
	s.Restore(stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// A journal lies among backups, which may have come from anywhere.
func TestJournalOfOtherPathsIsNotObeyed(t *testing.T) {
	t.Parallel()
	s, stamp := smallStore(t)
	c := backuptest.Start(t, "call", s.Dir, "restore", stamp, "verify")
	require.Equal(t, "at verify", c.Hear())
	c.Kill()
	other := s.Options
	other.DatabasePath = filepath.Join(s.Dir, "other.db")
	backuptest.MakeDatabase(t, other.DatabasePath)
	before := backuptest.ReadTree(t, filepath.Dir(s.DatabasePath))
	_, err := backup.RestoreRuntimeBackup(context.Background(), other, stamp)
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	require.ErrorContains(t, err, s.DatabasePath)
	require.Equal(t, before, backuptest.ReadTree(t, filepath.Dir(s.DatabasePath)))

	r := s.Restore(stamp)
	require.Equal(t, "undone", r.Recovered)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// A journal that is not one of ours is reported and touched by nobody.
func TestStrangeJournals(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"rubbish":    "rubbish\n",
		"no object":  "[]\n",
		"no fields":  "{}\n",
		"binary":     "\x00\x01\n",
		"large":      string(make([]byte, 1<<20)),
		"later form": `{"version":2,"id":"0123456789abcdef","stamp":"x","db_path":"/x","registry_path":"","chroma_path":"","had_db":true,"had_registry":false,"had_chroma":false,"set_aside":false,"chroma_mode":0,"chroma_mtime_ns":0}` + "\n",
		"hostile id": `{"version":1,"id":"../../x","stamp":"x","db_path":"/x","registry_path":"","chroma_path":"","had_db":true,"had_registry":false,"had_chroma":false,"set_aside":false,"chroma_mode":0,"chroma_mtime_ns":0}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			s, stamp := smallStore(t)
			journal := filepath.Join(s.BackupDir, ".atocore-restore.journal")
			require.NoError(t, os.WriteFile(journal, []byte(text), 0o600))
			for _, call := range []string{"create", "list", "validate", "restore", "prune"} {
				require.ErrorIs(t, callByName(s.Options, call, stamp), backup.ErrRestoreUnfinished, call)
			}
			require.Equal(t, "old", generationOf(t, s.Options))
			require.NoError(t, os.Remove(journal))
		})
	}
	t.Run("begun and never written", func(t *testing.T) {
		s, stamp := smallStore(t)
		require.NoError(t, os.WriteFile(filepath.Join(s.BackupDir, ".atocore-restore.journal"), []byte(`{"version":1,"id":`), 0o600))
		s.Restore(stamp)
		require.Equal(t, "new", generationOf(t, s.Options))
	})
}

// A superuser restores for the service's user.
func TestRestoreKeepsOwners(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can give files away")
	}
	s, stamp := smallStore(t)
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
