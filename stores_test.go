package backup_test

import (
	"database/sql"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// twoStores returns two stores that share a backup directory, on one host, and
// two snapshots of each.
func twoStores(t *testing.T) (sales, hr *backuptest.Store, stamps [4]string) {
	t.Helper()
	sales, hr = backuptest.NewSmallStore(t), backuptest.NewSmallStore(t)
	hr.BackupDir = sales.BackupDir
	sales.Host, hr.Host = "host", "host"
	require.NoError(t, os.Rename(hr.DatabasePath, filepath.Join(filepath.Dir(hr.DatabasePath), "hr.db")))
	hr.DatabasePath = filepath.Join(filepath.Dir(hr.DatabasePath), "hr.db")
	for i, s := range []*backuptest.Store{sales, sales, hr, hr} {
		stamps[i] = s.Create().Stamp
	}
	return sales, hr, stamps
}

// name returns how messages call a store.
func storeName(t *testing.T, s *backuptest.Store) string {
	return s.Host + ":" + realPath(t, s.DatabasePath)
}

// Rules are applied to the snapshots of one store only; those of others are
// skipped, and named as that.
func TestPruneOfTwoStores(t *testing.T) {
	sales, hr, stamps := twoStores(t)
	result, err := backup.PruneRuntimeBackups(t.Context(), hr.Options, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.Equal(t, []string{stamps[2]}, result.Removed)
	require.Equal(t, []backup.SkippedSnapshot{
		{Stamp: stamps[1], Reason: "of another store: " + storeName(t, sales)},
		{Stamp: stamps[0], Reason: "of another store: " + storeName(t, sales)},
	}, result.Skipped)
	require.Equal(t, []string{stamps[0], stamps[1], stamps[3]}, sales.Stamps())

	// Without a database it is not known which store is meant.
	opts := backup.Options{BackupDir: sales.BackupDir}
	_, err = backup.PruneRuntimeBackups(t.Context(), opts, backup.Retention{KeepLast: 1})
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	require.ErrorContains(t, err, storeName(t, sales))
	require.ErrorContains(t, err, storeName(t, hr))
	_, err = backup.LatestRuntimeBackup(t.Context(), opts)
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	require.Len(t, sales.Stamps(), 3)

	// That of one store needs none.
	require.NoError(t, os.RemoveAll(sales.SnapshotPath(stamps[3])))
	result, err = backup.PruneRuntimeBackups(t.Context(), opts, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.Equal(t, []string{stamps[0]}, result.Removed)
}

// A store is a database on a host: the same path on another host is another
// store, and the same database by a link is the same.
func TestStoresAreToldApart(t *testing.T) {
	sales, _, stamps := twoStores(t)
	require.Equal(t, stamps[1], latestOf(t, sales.Options).Snapshot.Stamp)
	link := filepath.Join(sales.Dir, "link.db")
	require.NoError(t, os.Symlink(sales.DatabasePath, link))
	opts := sales.Options
	opts.DatabasePath = link
	require.Equal(t, stamps[1], latestOf(t, opts).Snapshot.Stamp)
	opts = sales.Options
	opts.Host = "other"
	_, err := backup.LatestRuntimeBackup(t.Context(), opts)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "there are snapshots of other stores: "+storeName(t, sales))
	_, err = backup.RestoreRuntimeBackup(t.Context(), opts, stamps[0])
	require.ErrorIs(t, err, backup.ErrOtherStore)

	// By default, it is the name that the system has.
	opts.Host = ""
	meta, err := backup.CreateRuntimeBackup(t.Context(), opts)
	require.NoError(t, err)
	host, err := os.Hostname()
	require.NoError(t, err)
	require.Equal(t, host, meta.SourceHost)
	require.Equal(t, realPath(t, sales.DatabasePath), meta.SourceDBPath)
	require.Equal(t, meta.Stamp, latestOf(t, opts).Snapshot.Stamp)
}

// A snapshot of another store replaces a store only if the caller says so.
func TestRestoreOfAnotherStore(t *testing.T) {
	sales, hr, stamps := twoStores(t)
	before := backuptest.ReadTree(t, filepath.Dir(hr.DatabasePath))
	backups := backuptest.ReadTree(t, hr.BackupDir)
	_, err := backup.RestoreRuntimeBackup(t.Context(), hr.Options, stamps[0])
	require.ErrorIs(t, err, backup.ErrOtherStore)
	require.ErrorContains(t, err, storeName(t, sales))
	require.ErrorContains(t, err, "would replace this one")
	require.Equal(t, before, backuptest.ReadTree(t, filepath.Dir(hr.DatabasePath)))
	require.Equal(t, backups, backuptest.ReadTree(t, hr.BackupDir))

	// What is not there cannot be the wrong one: a new machine, a drill.
	empty := hr.Options
	empty.DatabasePath = filepath.Join(hr.Dir, "new", "atocore.db")
	empty.RegistryPath = filepath.Join(hr.Dir, "new", "r.json")
	empty.ChromaPath = filepath.Join(hr.Dir, "new", "chroma")
	_, err = backup.RestoreRuntimeBackup(t.Context(), empty, stamps[0])
	require.NoError(t, err)
	// Any one part that is there is enough to ask.
	require.NoError(t, os.RemoveAll(filepath.Dir(empty.DatabasePath)))
	require.NoError(t, os.MkdirAll(empty.ChromaPath, 0o700))
	backuptest.Write(t, filepath.Join(empty.ChromaPath, "x"), "x")
	_, err = backup.RestoreRuntimeBackup(t.Context(), empty, stamps[0])
	require.ErrorIs(t, err, backup.ErrOtherStore)

	db := backuptest.OpenDB(t, hr.DatabasePath)
	require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 3))
	require.NoError(t, db.Close())
	hr.FromOtherStore = true
	result := hr.Restore(stamps[0])
	requireRestored(t, sales.Snapshot(stamps[0]), hr.Options)
	safety := entryOf(t, hr.Options, result.SafetyStamp)
	require.Equal(t, realPath(t, hr.DatabasePath), safety.Metadata.SourceDBPath, "it is of the store that was replaced")
	hr.FromOtherStore = false
	hr.Restore(result.SafetyStamp)
}

// Snapshots that do not record their store, older ones and the Python module's,
// count by the name of their database.
func TestOlderSnapshotsCountByName(t *testing.T) {
	sales, hr, stamps := twoStores(t)
	older := map[string]any{"source_db_path": nil, "source_host": nil}
	for _, stamp := range stamps {
		s := sales.Snapshot(stamp)
		s.Set(older)
		s.Reseal()
	}
	sales.Snapshot(stamps[0]).MakePython()
	require.Equal(t, stamps[1], latestOf(t, sales.Options).Snapshot.Stamp)
	require.Equal(t, stamps[3], latestOf(t, hr.Options).Snapshot.Stamp)
	sales.Restore(stamps[0])
	_, err := backup.RestoreRuntimeBackup(t.Context(), hr.Options, stamps[0])
	require.ErrorIs(t, err, backup.ErrOtherStore)
	_, err = backup.LatestRuntimeBackup(t.Context(), backup.Options{BackupDir: sales.BackupDir})
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	require.ErrorContains(t, err, "(atocore.db, hr.db)")

	// Together with newer ones of a database of that name they are of one store.
	for _, stamp := range stamps[2:] {
		require.NoError(t, os.RemoveAll(sales.SnapshotPath(stamp)))
	}
	newer := sales.Create().Stamp
	opts := backup.Options{BackupDir: sales.BackupDir}
	require.Equal(t, newer, latestOf(t, opts).Snapshot.Stamp)
	result, err := backup.PruneRuntimeBackups(t.Context(), opts, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.Subset(t, result.Removed, stamps[:2])
	require.Empty(t, result.Skipped)
}

// A create says if the snapshot before its own is of another store.
func TestCreateWarnsOfOtherStores(t *testing.T) {
	sales, hr, _ := twoStores(t)
	warning := "backup_directory_has_other_stores path=" + sales.BackupDir
	log := hr.Record()
	hr.Create()
	require.NotContains(t, strings.Join(log.Lines(), "\n"), warning)
	log = sales.Record()
	sales.Create()
	require.Contains(t, strings.Join(log.Lines(), "\n"), warning+" store="+storeName(t, hr))
	log.Clear()
	sales.Create()
	require.NotContains(t, strings.Join(log.Lines(), "\n"), warning)
	sales.Options.Logger = nil
	sales.Create()
}

// The safety snapshot of a restore to another place lies among those of the
// store, and must not make two stores of one.
func TestSafetySnapshotsAreOfNoStore(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	stamp := s.Create().Stamp
	place := s.Options
	place.DatabasePath = filepath.Join(s.Dir, "place", "a.db")
	place.RegistryPath = filepath.Join(s.Dir, "place", "r.json")
	place.ChromaPath = filepath.Join(s.Dir, "place", "chroma")
	place.FromOtherStore = true
	_, err := backup.RestoreRuntimeBackup(t.Context(), place, stamp)
	require.NoError(t, err)
	backuptest.InDatabase(t, place.DatabasePath, func(db *sql.DB) {
		_, err := db.Exec("CREATE TABLE x (a)")
		require.NoError(t, err)
	})
	result, err := backup.RestoreRuntimeBackup(t.Context(), place, stamp)
	require.NoError(t, err)
	require.NotEmpty(t, result.SafetyStamp)
	opts := backup.Options{BackupDir: s.BackupDir}
	require.Equal(t, stamp, latestOf(t, opts).Snapshot.Stamp)
	_, err = backup.PruneRuntimeBackups(t.Context(), opts, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
}
