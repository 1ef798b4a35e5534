package backup_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A restore replaces all parts and keeps the old store in a safety snapshot.
func TestRestoreBringsEverythingBack(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	db := backuptest.OpenDB(t, s.DatabasePath)
	for i := range 10 {
		require.NoError(t, backuptest.Transfer(context.Background(), db, i, i+1, i))
	}
	require.NoError(t, os.Chmod(s.DatabasePath, 0o640))
	chroma, registry := backuptest.ReadTree(t, s.ChromaPath), backuptest.ReadTree(t, s.RegistryPath)
	m := s.Create()

	// 10,000 rows more, all of them in the WAL.
	_, err := db.Exec(`PRAGMA wal_autocheckpoint=0;
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 10000)
		INSERT INTO transfer (amount, note) SELECT i, 'later' FROM n`)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{}"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "new"), []byte("x"), 0o600))
	require.NoError(t, os.RemoveAll(filepath.Join(s.ChromaPath, "chroma.sqlite3")))
	backuptest.KeepWAL(t, db, s.DatabasePath)

	r := s.Restore(m.Stamp)
	require.Equal(t, m.Stamp, r.Stamp)
	require.Empty(t, r.SetAside)
	require.Equal(t, chroma, backuptest.ReadTree(t, s.ChromaPath))
	require.Equal(t, registry, backuptest.ReadTree(t, s.RegistryPath))
	want, err := os.ReadFile(m.DBSnapshotPath)
	require.NoError(t, err)
	got, err := os.ReadFile(s.DatabasePath)
	require.NoError(t, err)
	require.Equal(t, want, got)
	info, err := os.Stat(s.DatabasePath)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o640), info.Mode(), "the mode of the old database")
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		require.NoFileExists(t, s.DatabasePath+suffix)
	}
	require.Equal(t, 10, backuptest.CountRows(t, s.DatabasePath))
	s.RequireNoRemains()

	// The old store is in the safety snapshot.
	list, err := backup.ListRuntimeBackups(context.Background(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, 2)
	safety := list[1].Metadata
	require.Equal(t, r.SafetyStamp, safety.Stamp)
	require.Equal(t, m.Stamp, safety.SafetyOf)
	require.Equal(t, 10010, backuptest.CountRows(t, backuptest.CopyOf(t, safety.DBSnapshotPath)))

	// It can be restored as well.
	s.Restore(r.SafetyStamp)
	require.Equal(t, 10010, backuptest.CountRows(t, s.DatabasePath))
	require.FileExists(t, filepath.Join(s.ChromaPath, "new"))
}

// A restore that is refused changes nothing.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		make func(t *testing.T, s *backuptest.Store, stamp string)
		want error
	}{
		{"a snapshot that is not there", func(t *testing.T, s *backuptest.Store, stamp string) {
			require.NoError(t, os.Rename(s.SnapshotPath(stamp), s.SnapshotPath("elsewhere")))
		}, backup.ErrInvalidBackup},
		{"a damaged snapshot", func(t *testing.T, s *backuptest.Store, stamp string) {
			path := s.SnapshotPath(stamp, "chroma", "chroma.sqlite3")
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			data[len(data)/2] ^= 1
			require.NoError(t, os.WriteFile(path, data, 0o600))
		}, backup.ErrInvalidBackup},
		{"an idle connection to a WAL database", func(t *testing.T, s *backuptest.Store, stamp string) {
			db := backuptest.OpenDB(t, s.DatabasePath)
			require.NoError(t, db.Ping())
			var n int
			require.NoError(t, db.QueryRow("SELECT count(*) FROM account").Scan(&n))
		}, backup.ErrDatabaseInUse},
		{"a writer to a rollback-journal database", func(t *testing.T, s *backuptest.Store, stamp string) {
			db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode(delete)")
			_, err := db.Exec("BEGIN IMMEDIATE")
			require.NoError(t, err)
		}, backup.ErrDatabaseInUse},
		{"a reader of a rollback-journal database", func(t *testing.T, s *backuptest.Store, stamp string) {
			db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode(delete)")
			rows, err := db.Query("SELECT * FROM account")
			require.NoError(t, err)
			t.Cleanup(func() { rows.Close() })
			require.True(t, rows.Next())
		}, backup.ErrDatabaseInUse},
		{"a handle", func(t *testing.T, s *backuptest.Store, stamp string) {
			s.DB = backuptest.OpenDB(t, s.DatabasePath)
		}, backup.ErrInvalidOptions},
		{"no place for the Chroma directory", func(t *testing.T, s *backuptest.Store, stamp string) {
			s.ChromaPath, s.IncludeChroma = "", false
		}, backup.ErrInvalidOptions},
		{"no place for the registry", func(t *testing.T, s *backuptest.Store, stamp string) {
			s.RegistryPath = ""
		}, backup.ErrInvalidOptions},
		{"a registry inside the Chroma directory", func(t *testing.T, s *backuptest.Store, stamp string) {
			s.RegistryPath = filepath.Join(s.ChromaPath, "registry.json")
		}, backup.ErrInvalidOptions},
		{"a database among the snapshots", func(t *testing.T, s *backuptest.Store, stamp string) {
			s.DatabasePath = s.SnapshotPath(stamp, "db", "new.db")
		}, backup.ErrInvalidOptions},
		{"a guard that fails", func(t *testing.T, s *backuptest.Store, stamp string) {
			s.Locker = backup.LockerFunc(func(context.Context) (func(), error) { return nil, errors.ErrUnsupported })
		}, errors.ErrUnsupported},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := backuptest.NewBareStore(t)
			m := s.Create()
			tt.make(t, s, m.Stamp)
			before := backuptest.ReadTree(t, filepath.Join(s.Dir, "data", "chroma"))
			_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, m.Stamp)
			require.ErrorIs(t, err, tt.want)
			require.Equal(t, before, backuptest.ReadTree(t, filepath.Join(s.Dir, "data", "chroma")))
			s.RequireNoRemains()
			s.RequireNoStaging()
			list, err := backup.ListRuntimeBackups(context.Background(), s.Options)
			require.NoError(t, err)
			require.Len(t, list, 1, "there must be no safety snapshot")
		})
	}
}

func TestRestoreWithoutChromaLeavesTheLiveOneAlone(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	s.IncludeChroma = false
	m := s.Create()
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "later"), []byte("x"), 0o600))
	before := backuptest.ReadTree(t, s.ChromaPath)
	r := s.Restore(m.Stamp)
	require.Empty(t, r.ChromaPath)
	require.Equal(t, before, backuptest.ReadTree(t, s.ChromaPath))
}

func TestRestoreIntoAnEmptyPlace(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	m := s.Create()
	chroma := backuptest.ReadTree(t, s.ChromaPath)
	drill := s.Options
	dir := t.TempDir()
	drill.DatabasePath = filepath.Join(dir, "a", "b", "drill.db")
	drill.RegistryPath = filepath.Join(dir, "registry.json")
	drill.ChromaPath = filepath.Join(dir, "c", "chroma")
	r, err := backup.RestoreRuntimeBackup(context.Background(), drill, m.Stamp)
	require.NoError(t, err)
	require.Empty(t, r.SafetyStamp)
	require.Equal(t, chroma, backuptest.ReadTree(t, drill.ChromaPath))
	backuptest.RequireSound(t, drill.DatabasePath)
	list, err := backup.ListRuntimeBackups(context.Background(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, 1)
	s.RequireNoRemains()
}

func TestRestoreSetsABrokenStoreAside(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		breakStore func(t *testing.T, s *backuptest.Store)
		kept       string // a file in one of the directories that were set aside
	}{
		{"no database", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.Remove(s.DatabasePath))
		}, "project-registry.json"},
		{"not a database", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.WriteFile(s.DatabasePath, []byte(strings.Repeat("rubbish ", 1000)), 0o600))
		}, "atocore.db"},
		{"an empty database file, with a WAL", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.Truncate(s.DatabasePath, 0))
			require.NoError(t, os.WriteFile(s.DatabasePath+"-wal", []byte("old"), 0o600))
		}, "atocore.db"},
		{"a link in the Chroma directory", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.Symlink("/etc", filepath.Join(s.ChromaPath, "link")))
		}, "link"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			m := s.Create()
			chroma := backuptest.ReadTree(t, s.ChromaPath)
			tt.breakStore(t, s)
			s.Disturb()
			r := s.Restore(m.Stamp)
			require.Empty(t, r.SafetyStamp)
			require.NotEmpty(t, r.SetAside)
			var kept []string
			for _, dir := range r.SetAside {
				entries, err := os.ReadDir(dir)
				require.NoError(t, err)
				for _, entry := range entries {
					kept = append(kept, entry.Name())
				}
			}
			require.Contains(t, kept, tt.kept)
			require.Equal(t, chroma, backuptest.ReadTree(t, s.ChromaPath))
			backuptest.RequireSound(t, s.DatabasePath)
			s.RequireNoRemains()
			s.Create()
		})
	}
}

// A store to which SQLite, or the JSON check, objects can be copied as it is. So
// there is a safety snapshot of it, which is intact and has these findings.
func TestRestoreOfAStoreWithFindings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		change  func(t *testing.T, s *backuptest.Store)
		finding backup.Code
	}{
		{"a database with a hole", func(t *testing.T, s *backuptest.Store) {
			f, err := os.OpenFile(s.DatabasePath, os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(make([]byte, 8192), 4096)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, backup.CodeDBIntegrity},
		{"a registry that is not JSON", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{"), 0o600))
		}, backup.CodeRegistryInvalidJSON},
		{"a Chroma database with a hole", func(t *testing.T, s *backuptest.Store) {
			f, err := os.OpenFile(s.InChroma("chroma.sqlite3"), os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(make([]byte, 8192), 4096)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, backup.CodeChromaDBCheck},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := backuptest.NewBareStore(t)
			m := s.Create()
			chroma := backuptest.ReadTree(t, s.ChromaPath)
			tt.change(t, s)
			database, err := os.ReadFile(s.DatabasePath)
			require.NoError(t, err)
			registry, err := os.ReadFile(s.RegistryPath)
			require.NoError(t, err)

			r := s.Restore(m.Stamp)
			require.Empty(t, r.SetAside)
			report, err := backup.ValidateBackup(t.Context(), s.Options, r.SafetyStamp)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.True(t, report.Intact)
			require.Equal(t, tt.finding, report.Problems[0].Code)
			saved, err := os.ReadFile(report.Metadata.DBSnapshotPath)
			require.NoError(t, err)
			require.Equal(t, database[100:], saved[100:], "the header may differ: the copy has its WAL folded in")
			saved, err = os.ReadFile(report.Metadata.RegistrySnapshotPath)
			require.NoError(t, err)
			require.Equal(t, registry, saved)

			require.Equal(t, chroma, backuptest.ReadTree(t, s.ChromaPath))
			backuptest.RequireSound(t, s.DatabasePath)
			s.RequireNoRemains()
			_, err = backup.ValidateBackup(t.Context(), s.Options, s.Create().Stamp)
			require.NoError(t, err)
		})
	}
}

func TestRestoreReplacesTheContentsOfALinkedChromaDirectory(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	volume := filepath.Join(s.Dir, "volume")
	require.NoError(t, os.Rename(s.ChromaPath, volume))
	require.NoError(t, os.Symlink(volume, s.ChromaPath))
	m := s.Create()
	before := backuptest.ReadTree(t, volume)
	inode, err := os.Stat(volume)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(volume, "later"), []byte("x"), 0o600))
	s.Restore(m.Stamp)
	require.Equal(t, before, backuptest.ReadTree(t, volume))
	info, err := os.Lstat(s.ChromaPath)
	require.NoError(t, err)
	require.Equal(t, fs.ModeSymlink, info.Mode().Type())
	now, err := os.Stat(volume)
	require.NoError(t, err)
	require.True(t, os.SameFile(inode, now), "the directory itself stays")
}

// A restore that fails after the swap is undone.
func TestRestoreIsUndone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		at   backup.Phase
		do   func(s *backuptest.Store, cancel func())
		want error
	}{
		{"cancelled while staging", backup.PhaseStage, func(_ *backuptest.Store, cancel func()) { cancel() }, context.Canceled},
		{"cancelled before the swap", backup.PhaseSwap, func(_ *backuptest.Store, cancel func()) { cancel() }, context.Canceled},
		{"cancelled after the swap", backup.PhaseVerify, func(_ *backuptest.Store, cancel func()) { cancel() }, context.Canceled},
		{"panic while staging", backup.PhaseStage, func(*backuptest.Store, func()) { panic("of the host") }, backup.ErrPanic},
		{"panic after the swap", backup.PhaseVerify, func(*backuptest.Store, func()) { panic("of the host") }, backup.ErrPanic},
		{"new Chroma file damaged after the swap", backup.PhaseVerify, func(s *backuptest.Store, _ func()) {
			if err := os.WriteFile(filepath.Join(s.ChromaPath, "chroma.sqlite3"), []byte("damage"), 0o600); err != nil {
				panic(err)
			}
		}, nil},
		{"new registry damaged after the swap", backup.PhaseVerify, func(s *backuptest.Store, _ func()) {
			if err := os.WriteFile(s.RegistryPath, []byte("damage"), 0o600); err != nil {
				panic(err)
			}
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			m := s.Create()
			db := backuptest.OpenDB(t, s.DatabasePath)
			require.NoError(t, backuptest.Transfer(context.Background(), db, 1, 2, 3))
			require.NoError(t, db.Close())
			s.Disturb()
			chroma := backuptest.ReadTree(t, s.ChromaPath)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			once := false
			opts := s.Options
			opts.OnProgress = func(p backup.Progress) {
				if p.Phase == tt.at && !once {
					once = true
					tt.do(s, cancel)
				}
			}
			held := 0
			opts.Locker = backup.LockerFunc(func(context.Context) (func(), error) {
				held++
				return func() { held-- }, nil
			})
			_, err := backup.RestoreRuntimeBackup(ctx, opts, m.Stamp)
			require.Error(t, err)
			if tt.want != nil {
				require.ErrorIs(t, err, tt.want)
			}
			require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.True(t, once)
			require.Zero(t, held, "the guard is released")
			require.Equal(t, 1, backuptest.CountRows(t, s.DatabasePath), "the old database")
			now := backuptest.ReadTree(t, s.ChromaPath)
			delete(now, ".")
			delete(chroma, ".") // its time has changed
			require.Equal(t, chroma, now, "the old Chroma directory")
			s.RequireNoRemains()
			s.Create()
		})
	}
}

func TestRestoreResultJSON(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(backup.RestoreResult{
		Stamp: "a", SetAside: []string{"/x", "/y"}, DatabasePath: "/db", Recovered: "undone", RecoveredStamp: "b", Mixed: true,
		Cost: backup.Cost{Duration: 3 * time.Second, Guarded: 2 * time.Second, Files: 1, Bytes: 5},
		Parts: []backup.RestorePart{
			{Part: backup.PartDatabase, Path: "/db", Action: backup.ActionReplace, Owners: []string{"1:2"}, NotKept: []string{"the owner of /db: no"}},
			{Part: backup.PartChroma, Action: backup.ActionLeaveOut},
		},
	})
	require.NoError(t, err)
	require.JSONEq(t, `{"stamp":"a","safety_stamp":"","set_aside":["/x","/y"],"db_path":"/db","registry_path":"",
		"chroma_path":"","files":0,"bytes":0,"recovered":"undone","recovered_stamp":"b","mixed":true,"parts":[
		{"part":"database","path":"/db","action":"replace","owners":["1:2"],"not_kept":["the owner of /db: no"]},
		{"part":"chroma","path":"","action":"leave_out","owners":[],"not_kept":[]}],
		"cost":{"duration_ns":3000000000,"guarded_ns":2000000000,"files":1,"bytes":5}}`, string(text))
}
