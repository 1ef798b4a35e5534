package backup_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// All faults are reported at once, and nothing is done.
func TestFaultyOptions(t *testing.T) {
	for _, tt := range []struct {
		name   string
		opts   backup.Options
		faults []string
	}{
		{"nothing set", backup.Options{}, []string{"the path of the backup directory is empty", "the path of the database is empty"}},
		{"Chroma without a path", backup.Options{IncludeChroma: true},
			[]string{"the path of the backup directory is empty", "the path of the database is empty", "the path of the Chroma directory is empty"}},
		{"only a database", backup.Options{DatabasePath: "a.db"}, []string{"the path of the backup directory is empty"}},
		{"only a backup directory", backup.Options{BackupDir: "backups"}, []string{"the path of the database is empty"}},
		{"NUL in all paths",
			backup.Options{BackupDir: "b\x00", DatabasePath: "/d\x00.db", RegistryPath: "\x00", ChromaPath: "c\x00c"},
			[]string{`the path of the backup directory, "b\x00", has a NUL`, `the path of the database, "/d\x00.db", has a NUL`, `the path of the registry, "\x00", has a NUL`, `the path of the Chroma directory, "c\x00c", has a NUL`}},
		{"empty and NUL", backup.Options{IncludeChroma: true, BackupDir: "b\x00"},
			[]string{`the path of the backup directory, "b\x00", has a NUL`, "the path of the database is empty", "the path of the Chroma directory is empty"}},
		{"a root as database", backup.Options{BackupDir: "backups", DatabasePath: "/"}, []string{"names no file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			tt.opts.InitDB = func(context.Context) error { panic("something was done") }
			_, err := backup.CreateRuntimeBackup(t.Context(), tt.opts)
			requireFaults(t, err, tt.faults)
			require.Len(t, backuptest.ReadTree(t, dir), 1, "something was made")
		})
	}
}

// requireFaults checks that an error names exactly these faults of the options.
func requireFaults(t *testing.T, err error, faults []string) {
	t.Helper()
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	for _, fault := range faults {
		require.ErrorContains(t, err, fault)
	}
	require.Len(t, strings.Split(err.Error(), "\n"), len(faults), err)
}

// Paths are rejected if a snapshot would contain itself or a live database would be
// closed.
func TestPathsThatCannotWork(t *testing.T) {
	link := func(t *testing.T, target, name string) {
		t.Helper()
		require.NoError(t, os.Symlink(target, name))
	}
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, s *backuptest.Store)
		faults []string
	}{
		{"backups in Chroma", func(t *testing.T, s *backuptest.Store) {
			s.BackupDir = filepath.Join(s.ChromaPath, "backups")
		}, []string{"lies inside the Chroma directory"}},
		{"backups deep in Chroma", func(t *testing.T, s *backuptest.Store) {
			s.BackupDir = filepath.Join(s.ChromaPath, "a", "b", "c")
		}, []string{"lies inside the Chroma directory"}},
		{"backups in Chroma under a name with dots", func(t *testing.T, s *backuptest.Store) {
			s.BackupDir = filepath.Join(s.ChromaPath, "..backups")
		}, []string{"lies inside the Chroma directory"}},
		{"Chroma as backups", func(t *testing.T, s *backuptest.Store) {
			s.BackupDir = s.ChromaPath
		}, []string{"lies inside the Chroma directory"}},
		{"Chroma in backups", func(t *testing.T, s *backuptest.Store) {
			s.BackupDir = filepath.Dir(s.ChromaPath)
		}, []string{"lies inside the backup directory"}},
		{"backups in Chroma, which is not asked for", func(t *testing.T, s *backuptest.Store) {
			s.IncludeChroma = false
			s.BackupDir = filepath.Join(s.ChromaPath, "backups")
		}, []string{"lies inside the Chroma directory"}},
		{"backups in Chroma through a link", func(t *testing.T, s *backuptest.Store) {
			link(t, s.ChromaPath, filepath.Join(s.Dir, "linked"))
			s.BackupDir = filepath.Join(s.Dir, "linked", "not", "there", "yet")
		}, []string{"lies inside the Chroma directory"}},
		{"Chroma as a link to the backups' parent", func(t *testing.T, s *backuptest.Store) {
			s.RemoveAll(s.ChromaPath)
			link(t, s.Dir, s.ChromaPath)
		}, []string{"the backup directory ", "the database ", "the registry "}},
		{"backups as a link to Chroma's parent", func(t *testing.T, s *backuptest.Store) {
			link(t, "data", filepath.Join(s.Dir, "linked"))
			s.BackupDir = filepath.Join(s.Dir, "linked")
		}, []string{"lies inside the backup directory"}},
		{"database in Chroma", func(t *testing.T, s *backuptest.Store) {
			s.DatabasePath = filepath.Join(s.ChromaPath, "chroma.sqlite3")
		}, []string{"the database "}},
		{"database in Chroma through a link", func(t *testing.T, s *backuptest.Store) {
			link(t, filepath.Join(s.ChromaPath, "chroma.sqlite3"), filepath.Join(s.Dir, "link.db"))
			s.DatabasePath = filepath.Join(s.Dir, "link.db")
		}, []string{"the database "}},
		{"database and backups in Chroma", func(t *testing.T, s *backuptest.Store) {
			s.DatabasePath = filepath.Join(s.ChromaPath, "chroma.sqlite3")
			s.BackupDir = filepath.Join(s.ChromaPath, "backups")
		}, []string{"the database ", "the backup directory "}},
		{"database in a snapshot", func(t *testing.T, s *backuptest.Store) {
			s.DatabasePath = s.SnapshotPath("20261124T120000Z", "db", "atocore.db")
		}, []string{"the database "}},
		{"database as registry", func(t *testing.T, s *backuptest.Store) {
			s.RegistryPath = s.DatabasePath
		}, []string{"the registry "}},
		{"database as registry, through a link", func(t *testing.T, s *backuptest.Store) {
			s.RegistryPath = filepath.Join(s.Dir, "registry.json")
			link(t, s.DatabasePath, s.RegistryPath)
		}, []string{"the registry "}},
		{"database as registry, by a hard link", func(t *testing.T, s *backuptest.Store) {
			s.RegistryPath = filepath.Join(s.Dir, "registry.json")
			require.NoError(t, os.Link(s.DatabasePath, s.RegistryPath))
		}, []string{"the registry "}},
		{"backups deeper than the paths of SQLite", func(t *testing.T, s *backuptest.Store) {
			s.BackupDir = filepath.Join(s.Dir, strings.Repeat("a", 200), strings.Repeat("b", 250))
		}, []string{"too long for SQLite"}},
		{"the database's -shm as registry", func(t *testing.T, s *backuptest.Store) {
			s.RegistryPath = s.DatabasePath + "-shm"
			backuptest.Write(t, s.RegistryPath, "{}")
		}, []string{"the registry "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := backuptest.NewBareStore(t)
			tt.change(t, s)
			s.InitDB = func(context.Context) error { panic("something was done") }
			before := backuptest.ReadTree(t, s.Dir)
			_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
			requireFaults(t, err, tt.faults)
			require.Equal(t, before, backuptest.ReadTree(t, s.Dir))
		})
	}
}

// Similar paths are accepted.
func TestPathsThatWork(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(s *backuptest.Store){
		"a name that begins like Chroma's": func(s *backuptest.Store) { s.BackupDir = s.ChromaPath + "-backups" },
		"the beginning of Chroma's name":   func(s *backuptest.Store) { s.BackupDir = strings.TrimSuffix(s.ChromaPath, "ma") },
		"database and registry in backups": func(s *backuptest.Store) { s.BackupDir = filepath.Join(s.Dir, "config") },
		"backups beside all":               func(s *backuptest.Store) { s.BackupDir = filepath.Join(s.Dir, "data", "backups") },
		"as deep as the paths of SQLite": func(s *backuptest.Store) {
			rest := 512 - len("-journal") - len("/snapshots/20060102T150405Z-1000/chroma/chroma.sqlite3") - len(s.Dir)
			s.BackupDir = filepath.Join(s.Dir, strings.Repeat("a", 150), strings.Repeat("b", rest-152))
		},
		"unclean paths":                func(s *backuptest.Store) { s.BackupDir = s.ChromaPath + "/../x/.././/backups/" },
		"the database's name and more": func(s *backuptest.Store) { s.BackupDir = s.DatabasePath + "-backups" },
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewBareStore(t)
			change(s)
			meta := s.Create()
			require.Equal(t, filepath.Join(filepath.Clean(s.BackupDir), "snapshots", meta.Stamp), meta.BackupRoot)
			_, err := backup.ValidateBackup(t.Context(), s.Options, meta.Stamp)
			require.NoError(t, err)
		})
	}
}

// Relative paths are relative to the working directory at the time of the call, and
// recorded paths are absolute.
func TestRelativePaths(t *testing.T) {
	s := backuptest.NewStore(t)
	real, err := filepath.EvalSymlinks(s.Dir) // Getwd may return either, like a shell
	require.NoError(t, err)
	t.Chdir(real)
	opts := backup.Options{
		DatabasePath:  filepath.Join("data", "atocore.db"),
		RegistryPath:  filepath.Join(".", "config", "..", "config", "project-registry.json"),
		ChromaPath:    filepath.Join("data", "chroma"),
		BackupDir:     "backups",
		IncludeChroma: true,
	}
	before := opts
	opts.OnProgress = func(backup.Progress) {
		require.NoError(t, os.Chdir(os.TempDir())) // the host may change it during the call
	}
	meta, err := backup.CreateRuntimeBackup(t.Context(), opts)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(real, "backups", "snapshots", meta.Stamp), meta.BackupRoot)
	require.Equal(t, filepath.Join(meta.BackupRoot, "db", "atocore.db"), meta.DBSnapshotPath)
	require.Equal(t, filepath.Join(meta.BackupRoot, "config", "project-registry.json"), meta.RegistrySnapshotPath)
	require.True(t, meta.ChromaSnapshotIncluded)
	opts.OnProgress = nil
	require.Equal(t, before, opts, "the caller's options were changed")
}

// A database and a backup directory are enough.
func TestZeroValuesAreUseful(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Options = backup.Options{DatabasePath: s.DatabasePath, BackupDir: s.BackupDir}
	backuptest.RequireSound(t, s.Create().DBSnapshotPath)
}

// Stamps within one second are numbered. The clock may be in any zone, stand still
// or go back.
func TestStamps(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	s.IncludeChroma = false
	east := time.FixedZone("east", 14*3600)
	west := time.FixedZone("west", -12*3600)
	for _, tt := range []struct {
		now  time.Time
		want string
	}{
		{backuptest.Noon.Time, "20261124T120000Z"},
		{backuptest.Noon.Time, "20261124T120000Z-002"},
		{backuptest.Noon.Time.Add(999 * time.Millisecond).Truncate(time.Second), "20261124T120001Z"},
		{backuptest.Noon.Time.In(east), "20261124T120000Z-003"},
		{backuptest.Noon.Time.In(west).Add(time.Second), "20261124T120001Z-002"},
		{backuptest.Noon.Time.Add(-time.Hour), "20261124T110000Z"},
		{time.Date(2026, 12, 31, 23, 59, 59, 999999999, time.UTC), "20261231T235959Z"},
		{time.Date(2027, 1, 1, 13, 59, 59, 0, east), "20261231T235959Z-002"},
		{time.Date(2028, 2, 29, 0, 0, 0, 0, time.UTC), "20280229T000000Z"},
		{time.Unix(0, 0), "19700101T000000Z"},
		{time.Time{}, "00010101T000000Z"},
		{time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), "99991231T235959Z"},
		{time.Date(10000, 1, 1, 0, 0, 0, 0, east), "99991231T100000Z"},
		{time.Date(0, 12, 31, 23, 0, 0, 0, west), "00010101T110000Z"},
	} {
		s.Clock = backuptest.Clock{Time: tt.now}
		meta := s.Create()
		require.Equal(t, tt.want, meta.Stamp, tt.now)
		require.True(t, meta.CreatedAt.Equal(tt.now.Truncate(time.Microsecond)), tt.now)
	}
}

// Only the years 1 to 9999 have a stamp.
func TestClockOutOfRange(t *testing.T) {
	for _, now := range []time.Time{
		time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("west", -12*3600)),
		time.Date(0, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Unix(1<<60, 0),
	} {
		s := backuptest.NewStore(t)
		s.Clock = backuptest.Clock{Time: now}
		require.ErrorContains(t, s.CreateFails(), "year", now.String())
	}
}

// The returned time equals the one in the file: in UTC, in microseconds, without a
// monotonic reading.
func TestCreatedAt(t *testing.T) {
	s := backuptest.NewStore(t)
	s.IncludeChroma = false
	for _, clock := range []backup.Clock{
		nil, // the system's, which has a monotonic reading and nanoseconds
		backuptest.Clock{Time: time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.FixedZone("east", 5*3600))},
		backuptest.Clock{Time: time.Date(2026, 1, 2, 3, 4, 5, 999, time.UTC)},
		backuptest.Clock{Time: time.Date(1969, 1, 2, 3, 4, 5, 999999999, time.UTC)},
	} {
		s.Clock = clock
		meta := s.Create()
		list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
		require.NoError(t, err)
		i := slices.IndexFunc(list, func(l backup.Snapshot) bool { return l.Stamp == meta.Stamp })
		meta.Cost = nil // it is not in the file
		require.Equal(t, *meta, *list[i].Metadata)
		require.Equal(t, time.UTC, meta.CreatedAt.Location())
		require.Zero(t, meta.CreatedAt.Nanosecond()%1000)
	}
}

// Every call refuses a nil context, before it does anything.
func TestNilContext(t *testing.T) {
	t.Parallel()
	s := backuptest.NewSmallStore(t)
	stamp := s.Create().Stamp
	before := backuptest.ReadTree(t, s.Dir)
	var none context.Context
	for name, call := range map[string]func() error{
		"create":   func() error { _, err := backup.CreateRuntimeBackup(none, s.Options); return err },
		"list":     func() error { _, err := backup.ListRuntimeBackups(none, s.Options); return err },
		"latest":   func() error { _, err := backup.LatestRuntimeBackup(none, s.Options); return err },
		"validate": func() error { _, err := backup.ValidateBackup(none, s.Options, stamp); return err },
		"restore":  func() error { _, err := backup.RestoreRuntimeBackup(none, s.Options, stamp); return err },
		"prune": func() error {
			_, err := backup.PruneRuntimeBackups(none, s.Options, backup.Retention{KeepLast: 1})
			return err
		},
		"protect": func() error { return backup.ProtectRuntimeBackup(none, s.Options, stamp, true) },
		"remove":  func() error { return backup.RemoveRuntimeBackup(none, s.Options, stamp) },
		"export":  func() error { return backup.ExportRuntimeBackup(none, s.Options, stamp, io.Discard) },
		"import":  func() error { _, err := backup.ImportRuntimeBackup(none, s.Options, strings.NewReader("")); return err },
		"validate a directory": func() error {
			_, err := backup.ValidateDir(none, s.Options, s.SnapshotPath(stamp))
			return err
		},
	} {
		err := call()
		require.ErrorIs(t, err, backup.ErrInvalidOptions, name)
		require.ErrorContains(t, err, "context is nil", name)
	}
	require.Equal(t, before, backuptest.ReadTree(t, s.Dir))
}
