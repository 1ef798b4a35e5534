package backup_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

func (s *store) restore(stamp string) *backup.RestoreResult {
	s.t.Helper()
	r, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, stamp)
	require.NoError(s.t, err)
	return r
}

// treeOf describes every file of a tree: mode, time and contents.
func treeOf(t *testing.T, root string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String() + " " + info.ModTime().String()
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(data)
		}
		rel, err := filepath.Rel(root, path)
		tree[rel] = text
		return err
	}))
	return tree
}

// countRows counts the transfers in a database that nobody has open.
func countRows(t *testing.T, path string) (n int) {
	t.Helper()
	db := openDB(t, path)
	defer db.Close()
	require.NoError(t, db.QueryRow("SELECT count(*) FROM transfer").Scan(&n))
	return n
}

// requireNoRemains checks that a restore left nothing beside the live store.
func (s *store) requireNoRemains() {
	s.t.Helper()
	require.NoError(s.t, filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		require.NotContains(s.t, d.Name(), "atocore-restore", "left by a restore: %s", path)
		return err
	}))
}

func TestRestoreBringsEverythingBack(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	db := openDB(t, s.DatabasePath)
	for i := range 10 {
		require.NoError(t, transfer(context.Background(), db, i, i+1, i))
	}
	require.NoError(t, os.Chmod(s.DatabasePath, 0o640))
	chroma, registry := treeOf(t, s.ChromaPath), treeOf(t, s.RegistryPath)
	m := s.create()

	// 10,000 rows more, all of them in the WAL.
	_, err := db.Exec(`PRAGMA wal_autocheckpoint=0;
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 10000)
		INSERT INTO transfer (amount, note) SELECT i, 'later' FROM n`)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{}"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "new"), []byte("x"), 0o600))
	require.NoError(t, os.RemoveAll(filepath.Join(s.ChromaPath, "chroma.sqlite3")))
	keepWAL(t, db, s.DatabasePath)

	r := s.restore(m.Stamp)
	require.Equal(t, m.Stamp, r.Stamp)
	require.Empty(t, r.SetAside)
	require.Equal(t, chroma, treeOf(t, s.ChromaPath))
	require.Equal(t, registry, treeOf(t, s.RegistryPath))
	want, err := os.ReadFile(m.DBSnapshotPath)
	require.NoError(t, err)
	got, err := os.ReadFile(s.DatabasePath)
	require.NoError(t, err)
	require.Equal(t, want, got)
	info, err := os.Stat(s.DatabasePath)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o640), info.Mode(), "the mode of the database that was replaced")
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		require.NoFileExists(t, s.DatabasePath+suffix)
	}
	require.Equal(t, 10, countRows(t, s.DatabasePath))
	s.requireNoRemains()

	// What was there before is not lost.
	list, err := backup.ListRuntimeBackups(context.Background(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, 2)
	safety := list[1].Metadata
	require.Equal(t, r.SafetyStamp, safety.Stamp)
	require.Equal(t, m.Stamp, safety.SafetyOf)
	require.Equal(t, 10010, countRows(t, copyOf(t, safety.DBSnapshotPath)))

	// And can be brought back.
	s.restore(r.SafetyStamp)
	require.Equal(t, 10010, countRows(t, s.DatabasePath))
	require.FileExists(t, filepath.Join(s.ChromaPath, "new"))
}

// copyOf copies a file to a place of its own, so that opening it leaves the
// original alone.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	to := filepath.Join(t.TempDir(), filepath.Base(path))
	require.NoError(t, os.WriteFile(to, data, 0o600))
	return to
}

// keepWAL closes db so that its WAL stays, with everything in it, as a killed
// process leaves it.
func keepWAL(t *testing.T, db *sql.DB, path string) {
	t.Helper()
	var kept [2][]byte
	for i, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(path + suffix)
		require.NoError(t, err)
		kept[i] = data
	}
	require.NoError(t, db.Close())
	for i, suffix := range []string{"", "-wal"} {
		require.NoError(t, os.WriteFile(path+suffix, kept[i], 0o640))
	}
	require.NotEmpty(t, kept[1])
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		make func(t *testing.T, s *store, stamp string)
		want error
	}{
		{"a snapshot that is not there", func(t *testing.T, s *store, stamp string) {
			require.NoError(t, os.Rename(s.snapshot(stamp), s.snapshot("elsewhere")))
		}, backup.ErrInvalidBackup},
		{"a damaged snapshot", func(t *testing.T, s *store, stamp string) {
			path := s.snapshot(stamp, "chroma", "chroma.sqlite3")
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			data[len(data)/2] ^= 1
			require.NoError(t, os.WriteFile(path, data, 0o600))
		}, backup.ErrInvalidBackup},
		{"an idle connection to a WAL database", func(t *testing.T, s *store, stamp string) {
			db := openDB(t, s.DatabasePath)
			require.NoError(t, db.Ping())
			var n int
			require.NoError(t, db.QueryRow("SELECT count(*) FROM account").Scan(&n))
		}, backup.ErrDatabaseInUse},
		{"a writer to a rollback-journal database", func(t *testing.T, s *store, stamp string) {
			db := openDB(t, s.DatabasePath, "_pragma=journal_mode(delete)")
			_, err := db.Exec("BEGIN IMMEDIATE")
			require.NoError(t, err)
		}, backup.ErrDatabaseInUse},
		{"a reader of a rollback-journal database", func(t *testing.T, s *store, stamp string) {
			db := openDB(t, s.DatabasePath, "_pragma=journal_mode(delete)")
			rows, err := db.Query("SELECT * FROM account")
			require.NoError(t, err)
			t.Cleanup(func() { rows.Close() })
			require.True(t, rows.Next())
		}, backup.ErrDatabaseInUse},
		{"a handle", func(t *testing.T, s *store, stamp string) {
			s.DB = openDB(t, s.DatabasePath)
		}, backup.ErrInvalidOptions},
		{"no place for the Chroma directory", func(t *testing.T, s *store, stamp string) {
			s.ChromaPath, s.IncludeChroma = "", false
		}, backup.ErrInvalidOptions},
		{"no place for the registry", func(t *testing.T, s *store, stamp string) {
			s.RegistryPath = ""
		}, backup.ErrInvalidOptions},
		{"a registry inside the Chroma directory", func(t *testing.T, s *store, stamp string) {
			s.RegistryPath = filepath.Join(s.ChromaPath, "registry.json")
		}, backup.ErrInvalidOptions},
		{"a database among the snapshots", func(t *testing.T, s *store, stamp string) {
			s.DatabasePath = s.snapshot(stamp, "db", "new.db")
		}, backup.ErrInvalidOptions},
		{"a guard that says no", func(t *testing.T, s *store, stamp string) {
			s.Locker = backup.LockerFunc(func(context.Context) (func(), error) { return nil, errors.ErrUnsupported })
		}, errors.ErrUnsupported},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newBareStore(t)
			m := s.create()
			tt.make(t, s, m.Stamp)
			before := treeOf(t, filepath.Join(s.dir, "data", "chroma"))
			_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, m.Stamp)
			require.ErrorIs(t, err, tt.want)
			require.Equal(t, before, treeOf(t, filepath.Join(s.dir, "data", "chroma")))
			s.requireNoRemains()
			s.requireNoStaging()
			list, err := backup.ListRuntimeBackups(context.Background(), s.Options)
			require.NoError(t, err)
			require.Len(t, list, 1, "no safety snapshot of a restore that did not begin")
		})
	}
}

func TestRestoreWithoutChromaLeavesTheLiveOneAlone(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	s.IncludeChroma = false
	m := s.create()
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "later"), []byte("x"), 0o600))
	before := treeOf(t, s.ChromaPath)
	r := s.restore(m.Stamp)
	require.Empty(t, r.ChromaPath)
	require.Equal(t, before, treeOf(t, s.ChromaPath))
}

func TestRestoreIntoAnEmptyPlace(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	m := s.create()
	chroma := treeOf(t, s.ChromaPath)
	drill := s.Options
	dir := t.TempDir()
	drill.DatabasePath = filepath.Join(dir, "a", "b", "drill.db")
	drill.RegistryPath = filepath.Join(dir, "registry.json")
	drill.ChromaPath = filepath.Join(dir, "c", "chroma")
	r, err := backup.RestoreRuntimeBackup(context.Background(), drill, m.Stamp)
	require.NoError(t, err)
	require.Empty(t, r.SafetyStamp)
	require.Equal(t, chroma, treeOf(t, drill.ChromaPath))
	requireSound(t, drill.DatabasePath)
	list, err := backup.ListRuntimeBackups(context.Background(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, 1)
	s.requireNoRemains()
}

func TestRestoreSetsABrokenStoreAside(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		breakStore func(t *testing.T, s *store)
		kept       string // in one of the directories
	}{
		{"no database", func(t *testing.T, s *store) {
			require.NoError(t, os.Remove(s.DatabasePath))
		}, "project-registry.json"},
		{"not a database", func(t *testing.T, s *store) {
			require.NoError(t, os.WriteFile(s.DatabasePath, []byte(strings.Repeat("rubbish ", 1000)), 0o600))
		}, "atocore.db"},
		{"a database with a hole", func(t *testing.T, s *store) {
			f, err := os.OpenFile(s.DatabasePath, os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(make([]byte, 8192), 4096)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, "atocore.db"},
		{"an empty database file, with a WAL", func(t *testing.T, s *store) {
			require.NoError(t, os.Truncate(s.DatabasePath, 0))
			require.NoError(t, os.WriteFile(s.DatabasePath+"-wal", []byte("old"), 0o600))
		}, "atocore.db"},
		{"a registry that is not JSON", func(t *testing.T, s *store) {
			require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{"), 0o600))
		}, "project-registry.json"},
		{"a link in the Chroma directory", func(t *testing.T, s *store) {
			require.NoError(t, os.Symlink("/etc", filepath.Join(s.ChromaPath, "link")))
		}, "link"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			m := s.create()
			chroma := treeOf(t, s.ChromaPath)
			tt.breakStore(t, s)
			r := s.restore(m.Stamp)
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
			require.Equal(t, chroma, treeOf(t, s.ChromaPath))
			requireSound(t, s.DatabasePath)
			s.requireNoRemains()
			s.create()
		})
	}
}

func TestRestoreReplacesTheContentsOfALinkedChromaDirectory(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	volume := filepath.Join(s.dir, "volume")
	require.NoError(t, os.Rename(s.ChromaPath, volume))
	require.NoError(t, os.Symlink(volume, s.ChromaPath))
	m := s.create()
	before := treeOf(t, volume)
	inode, err := os.Stat(volume)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(volume, "later"), []byte("x"), 0o600))
	s.restore(m.Stamp)
	require.Equal(t, before, treeOf(t, volume))
	info, err := os.Lstat(s.ChromaPath)
	require.NoError(t, err)
	require.Equal(t, fs.ModeSymlink, info.Mode().Type())
	now, err := os.Stat(volume)
	require.NoError(t, err)
	require.True(t, os.SameFile(inode, now), "the directory itself stays")
}

// A step that fails after parts have changed places is undone.
func TestRestoreIsUndone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		at   backup.Phase
		do   func(s *store, cancel func())
		want error
	}{
		{"cancelled while staging", backup.PhaseStage, func(_ *store, cancel func()) { cancel() }, context.Canceled},
		{"cancelled before the swap", backup.PhaseSwap, func(_ *store, cancel func()) { cancel() }, context.Canceled},
		{"cancelled after the swap", backup.PhaseVerify, func(_ *store, cancel func()) { cancel() }, context.Canceled},
		{"panic while staging", backup.PhaseStage, func(*store, func()) { panic("of the host") }, backup.ErrPanic},
		{"panic after the swap", backup.PhaseVerify, func(*store, func()) { panic("of the host") }, backup.ErrPanic},
		{"new Chroma file damaged after the swap", backup.PhaseVerify, func(s *store, _ func()) {
			if err := os.WriteFile(filepath.Join(s.ChromaPath, "chroma.sqlite3"), []byte("damage"), 0o600); err != nil {
				panic(err)
			}
		}, nil},
		{"new registry damaged after the swap", backup.PhaseVerify, func(s *store, _ func()) {
			if err := os.WriteFile(s.RegistryPath, []byte("damage"), 0o600); err != nil {
				panic(err)
			}
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			m := s.create()
			db := openDB(t, s.DatabasePath)
			require.NoError(t, transfer(context.Background(), db, 1, 2, 3))
			require.NoError(t, db.Close())
			require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "later"), []byte("x"), 0o600))
			chroma := treeOf(t, s.ChromaPath)
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
			require.Equal(t, 1, countRows(t, s.DatabasePath), "the old database")
			now := treeOf(t, s.ChromaPath)
			delete(now, ".")
			delete(chroma, ".") // its time has changed
			require.Equal(t, chroma, now, "the old Chroma directory")
			s.requireNoRemains()
			s.create()
		})
	}
}

func TestRestoreResultJSON(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(backup.RestoreResult{Stamp: "a", SetAside: []string{"/x", "/y"}, DatabasePath: "/db"})
	require.NoError(t, err)
	require.JSONEq(t, `{"stamp":"a","safety_stamp":"","set_aside":["/x","/y"],"db_path":"/db","registry_path":"",
		"chroma_path":"","files":0,"bytes":0,"recovered":""}`, string(text))
}
