package backup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func TestSnapshotLayout(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Clock = backuptest.Noon
	stamp := s.Create().Stamp
	require.Equal(t, "20261124T120000Z", stamp)

	got := map[string]string{}
	for path, file := range backuptest.ReadTree(t, s.BackupDir) {
		if !strings.Contains(path, "/chroma/") { // see TestChromaCopy
			got[path] = file.Mode.String()
		}
	}
	at := "snapshots/" + stamp
	require.Equal(t, map[string]string{
		".":                                  "drwx------",
		"snapshots":                          "drwx------",
		at:                                   "drwx------",
		at + "/SHA256SUMS":                   "-rw-------",
		at + "/backup-metadata.json":         "-rw-------",
		at + "/chroma":                       "drwxr-xr-x",
		at + "/config":                       "drwx------",
		at + "/config/project-registry.json": "-rw-r-----",
		at + "/db":                           "drwx------",
		at + "/db/" + filepath.Base(s.DatabasePath): "-rw-------",
	}, got)
}

// An existing backup directory keeps its mode, and missing parents are created.
func TestBackupDirectory(t *testing.T) {
	s := backuptest.NewStore(t)
	s.IncludeChroma = false
	require.NoError(t, os.Mkdir(s.BackupDir, 0o755))
	require.NoError(t, os.Chmod(s.BackupDir, 0o750))
	s.Create()
	require.Equal(t, "drwxr-x---", backuptest.ReadTree(t, s.BackupDir)["."].Mode.String())

	s.BackupDir = filepath.Join(s.Dir, "a", "b", "c")
	s.Create()
	require.Equal(t, "drwx------", backuptest.ReadTree(t, filepath.Join(s.Dir, "a"))["."].Mode.String())

	require.NoError(t, os.WriteFile(filepath.Join(s.Dir, "file"), nil, 0o600))
	opts := s.Options
	opts.BackupDir = filepath.Join(s.Dir, "file", "backups")
	_, err := backup.CreateRuntimeBackup(t.Context(), opts)
	require.ErrorContains(t, err, filepath.Join(s.Dir, "file"))
	opts.BackupDir = filepath.Join(s.Dir, "file")
	_, err = backup.CreateRuntimeBackup(t.Context(), opts)
	require.ErrorContains(t, err, opts.BackupDir)
}

// realPath returns path with all links resolved.
func realPath(t *testing.T, path string) string {
	t.Helper()
	resolved, err := filepath.EvalSymlinks(path)
	require.NoError(t, err)
	return resolved
}

// The metadata that create returns describe the files, and are in the metadata
// file byte for byte.
func TestMetadataMatchTheFiles(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Clock, s.Host = backuptest.Noon, "the host"
	s.DatabasePath = realPath(t, s.DatabasePath)
	meta := s.Create()
	root := s.SnapshotPath(meta.Stamp)

	var files, size int64
	for _, file := range backuptest.ReadTree(t, filepath.Join(root, "chroma")) {
		if file.Mode.IsRegular() {
			files, size = files+1, size+file.Size
		}
	}
	dbInfo, err := os.Stat(filepath.Join(root, "db", "atocore.db"))
	require.NoError(t, err)
	want := &backup.Metadata{
		CreatedAt:              backuptest.Noon.Time,
		BackupRoot:             root,
		DBSnapshotPath:         filepath.Join(root, "db", "atocore.db"),
		DBSizeBytes:            dbInfo.Size(),
		RegistrySnapshotPath:   filepath.Join(root, "config", "project-registry.json"),
		ChromaSnapshotPath:     filepath.Join(root, "chroma"),
		ChromaSnapshotBytes:    size,
		ChromaSnapshotFiles:    files,
		ChromaSnapshotIncluded: true,
		VectorStoreNote:        meta.VectorStoreNote,
		FormatVersion:          1,
		Stamp:                  "20261124T120000Z",
		SourceDBPath:           s.DatabasePath,
		SourceHost:             "the host",
		Cost:                   meta.Cost,
	}
	require.Equal(t, want, meta)

	data, err := os.ReadFile(filepath.Join(root, "backup-metadata.json"))
	require.NoError(t, err)
	quoted := func(path ...string) string {
		b, err := json.Marshal(filepath.Join(append([]string{root}, path...)...))
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, fmt.Sprintf(`{
  "created_at": "2026-11-24T12:00:00.123456+00:00",
  "backup_root": %s,
  "db_snapshot_path": %s,
  "db_size_bytes": %d,
  "registry_snapshot_path": %s,
  "chroma_snapshot_path": %s,
  "chroma_snapshot_bytes": %d,
  "chroma_snapshot_files": %d,
  "chroma_snapshot_included": true,
  "vector_store_note": %q,
  "format_version": 1,
  "stamp": "20261124T120000Z",
  "source_db_path": %q,
  "source_host": "the host"
}
`, quoted(), quoted("db", "atocore.db"), dbInfo.Size(), quoted("config", "project-registry.json"),
		quoted("chroma"), size, files, meta.VectorStoreNote, s.DatabasePath), string(data))
}

// Parts that do not exist are recorded as missing, and logged if they were asked
// for.
func TestMetadataOfMissingParts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		change     func(*backuptest.Store)
		registry   bool
		logMessage string
	}{
		{"Chroma not asked for", func(s *backuptest.Store) { s.IncludeChroma = false }, true, ""},
		{"no Chroma path", func(s *backuptest.Store) { s.IncludeChroma, s.ChromaPath = false, "" }, true, ""},
		{"Chroma missing", func(s *backuptest.Store) { s.RemoveAll(s.ChromaPath) }, true, "chroma_snapshot_skipped_missing path=DIR/data/chroma"},
		{"Chroma's parent missing", func(s *backuptest.Store) { s.ChromaPath = filepath.Join(s.Dir, "no", "chroma") }, true, "chroma_snapshot_skipped_missing path=DIR/no/chroma"},
		{"no registry path", func(s *backuptest.Store) { s.IncludeChroma, s.RegistryPath = false, "" }, false, ""},
		{"registry missing", func(s *backuptest.Store) { s.IncludeChroma = false; s.RemoveAll(s.RegistryPath) }, false, "registry_snapshot_skipped_missing path=DIR/config/project-registry.json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			tt.change(s)
			log := s.Record()
			meta := s.Create()
			require.False(t, meta.ChromaSnapshotIncluded)
			require.Empty(t, meta.ChromaSnapshotPath)
			require.Zero(t, meta.ChromaSnapshotFiles)
			require.Zero(t, meta.ChromaSnapshotBytes)
			require.NoDirExists(t, s.SnapshotPath(meta.Stamp, "chroma"))
			require.Contains(t, meta.VectorStoreNote, "no Chroma copy")

			require.Equal(t, tt.registry, meta.RegistrySnapshotPath != "")
			entries, err := os.ReadDir(s.SnapshotPath(meta.Stamp, "config"))
			require.NoError(t, err)
			require.Equal(t, tt.registry, len(entries) == 1)

			if tt.logMessage == "" {
				require.Len(t, log.Lines(), 1, "only runtime_backup_created")
			} else {
				require.Equal(t, tt.logMessage, strings.ReplaceAll(log.Lines()[0], s.Dir, "DIR"))
			}
		})
	}
}

// The copy is marked as a rollback-journal database, so that opening it read-only
// neither creates a file beside it nor needs the right to.
func TestDatabaseCopyOpensOnReadOnlyDisk(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		for _, online := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,online=%t", mode, online), func(t *testing.T) {
				s := backuptest.NewStore(t)
				s.IncludeChroma, s.OnlineBackup = false, online
				db := backuptest.OpenDB(t, s.DatabasePath)
				_, err := db.Exec("PRAGMA journal_mode=" + mode)
				require.NoError(t, err)
				require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 5))
				meta := s.Create()

				data, err := os.ReadFile(meta.DBSnapshotPath)
				require.NoError(t, err)
				require.Equal(t, []byte{1, 1}, data[18:20], "the journal mode in the header")

				dir := filepath.Dir(meta.DBSnapshotPath)
				require.NoError(t, os.Chmod(meta.DBSnapshotPath, 0o400))
				require.NoError(t, os.Chmod(dir, 0o500))
				t.Cleanup(func() { require.NoError(t, os.Chmod(dir, 0o700)) })
				reader := backuptest.OpenDB(t, meta.DBSnapshotPath, "mode=ro")
				var text string
				require.NoError(t, reader.QueryRow("PRAGMA journal_mode").Scan(&text))
				require.Equal(t, "delete", text)
				var n int
				require.NoError(t, reader.QueryRow("SELECT count(*) FROM transfer").Scan(&n))
				require.Equal(t, 1, n)
				entries, err := os.ReadDir(dir)
				require.NoError(t, err)
				require.Len(t, entries, 1, "a sidecar file was created")
				backuptest.RequireSound(t, meta.DBSnapshotPath)
			})
		}
	}
}

// sha256sum can check a snapshot, whatever bytes its names have.
func TestSHA256SumChecks(t *testing.T) {
	if _, err := exec.LookPath("sha256sum"); err != nil {
		t.Skip("no sha256sum to check with:", err)
	}
	s := backuptest.NewStore(t)
	for _, name := range backuptest.AwkwardNames(t) {
		file := filepath.Join(s.ChromaPath, name, name)
		require.NoError(t, os.Mkdir(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(name), 0o644))
	}
	meta := s.Create()

	check := func() (string, error) {
		cmd := exec.Command("sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS")
		cmd.Dir = meta.BackupRoot
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := check()
	require.NoError(t, err, out)
	require.Empty(t, out)

	// The manifest covers every file.
	lines, err := os.ReadFile(filepath.Join(meta.BackupRoot, "SHA256SUMS"))
	require.NoError(t, err)
	files := 0
	for _, file := range backuptest.ReadTree(t, meta.BackupRoot) {
		if file.Mode.IsRegular() {
			files++
		}
	}
	require.Equal(t, files-1, bytes.Count(lines, []byte("\n")))
	require.NoError(t, os.WriteFile(filepath.Join(meta.BackupRoot, "backup-metadata.json"), []byte("{}"), 0o600))
	out, err = check()
	require.Error(t, err)
	require.Contains(t, out, "backup-metadata.json: FAILED")
	s.RemoveAll(meta.BackupRoot)
}

// Awkward names of the database and the registry are kept in the snapshot, its
// metadata and its manifest.
func TestAwkwardNames(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	wal, err := os.ReadFile(s.DatabasePath)
	require.NoError(t, err)
	rollback := bytes.Clone(wal)
	copy(rollback[18:20], []byte{1, 1})
	for i, name := range backuptest.AwkwardNames(t) {
		t.Run(fmt.Sprintf("%q", name[:min(len(name), 20)]), func(t *testing.T) {
			opts := s.Options
			opts.IncludeChroma = i%2 == 0
			opts.DatabasePath = filepath.Join(s.Dir, "data", name)
			opts.RegistryPath = filepath.Join(s.Dir, "config", name)
			data := wal
			if len(name+"-wal") > 255 {
				data = rollback // a WAL database of such a name cannot be opened
			}
			require.NoError(t, os.WriteFile(opts.DatabasePath, data, 0o600))
			require.NoError(t, os.WriteFile(opts.RegistryPath, []byte("[]"), 0o600))
			meta, err := backup.CreateRuntimeBackup(t.Context(), opts)
			require.NoError(t, err)
			require.Equal(t, s.SnapshotPath(meta.Stamp, "db", name), meta.DBSnapshotPath)
			require.Equal(t, s.SnapshotPath(meta.Stamp, "config", name), meta.RegistrySnapshotPath)
			require.FileExists(t, meta.DBSnapshotPath)
			require.FileExists(t, meta.RegistrySnapshotPath)
		})
	}
}

// Entries of other tools in the backup directory are not touched, even if they
// have the name of the next snapshot.
func TestNothingIsOverwritten(t *testing.T) {
	s := backuptest.NewBareStore(t)
	s.Clock = backuptest.Noon
	for _, elem := range [][]string{{"snapshots", "20261124T120000Z", "theirs"}, {"snapshots", "20261124T120000Z-003", "theirs"}, {"other", "theirs"}} {
		file := filepath.Join(append([]string{s.BackupDir}, elem...)...)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		backuptest.Write(t, file, "theirs")
	}
	backuptest.Write(t, filepath.Join(s.BackupDir, "snapshots", "20261124T120000Z-002"), "a file")
	require.NoError(t, os.Symlink("nowhere", filepath.Join(s.BackupDir, "snapshots", "20261124T120000Z-004")))
	before := backuptest.ReadTree(t, s.BackupDir)
	require.Equal(t, "20261124T120000Z-005", s.Create().Stamp)
	after := backuptest.ReadTree(t, s.BackupDir)
	for path, file := range before {
		if path != "." && path != "snapshots" { // their times changed
			require.Equal(t, file, after[path], path)
		}
	}
}

// A new snapshot is logged with its size, and a log handler that fails does not
// fail the backup.
func TestCreatedIsLogged(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Clock = backuptest.Noon
	log := s.Record()
	meta := s.Create()
	require.Equal(t, []string{fmt.Sprintf("runtime_backup_created stamp=%s backup_root=%s db_snapshot=%s db_bytes=%d chroma_included=true chroma_files=%d chroma_bytes=%d "+
		"cost.duration=0s cost.guarded=0s cost.files=%d cost.bytes=%d cost.manifest_sha256=%s",
		meta.Stamp, meta.BackupRoot, meta.DBSnapshotPath, meta.DBSizeBytes, meta.ChromaSnapshotFiles, meta.ChromaSnapshotBytes,
		meta.Cost.Files, meta.Cost.Bytes, meta.Cost.ManifestSHA256)}, log.Lines())

	s.Logger = slog.New(brokenHandler{})
	s.Create()
}

// A brokenHandler fails to log anything.
type brokenHandler struct{}

func (brokenHandler) Enabled(context.Context, slog.Level) bool { return true }
func (brokenHandler) Handle(context.Context, slog.Record) error {
	return errors.New("no space for logs")
}
func (h brokenHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h brokenHandler) WithGroup(string) slog.Handler      { return h }

// A snapshot is not visible before it is complete.
func TestNothingIsVisibleBeforePublishing(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	s.Locker = new(backuptest.Guard)
	calls := 0
	s.OnProgress = func(p backup.Progress) {
		calls++
		if p.Share == 1 {
			return
		}
		list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
		require.NoError(t, err)
		require.Empty(t, list, p.Phase)
		if p.Phase == backup.PhasePublish {
			// Only the two files that depend on the stamp are missing.
			for _, staging := range s.Staging() {
				require.FileExists(t, filepath.Join(staging, "db", "atocore.db"))
				require.NoFileExists(t, filepath.Join(staging, "backup-metadata.json"))
			}
		}
	}
	s.Create()
	require.Greater(t, calls, len(backuptest.CreatePhases))
}

// The stamp that was free when the call began may be taken when the snapshot is
// published.
func TestStampTakenMeanwhile(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Clock = backuptest.Noon
	inner := s.Options
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhasePublish && p.Share < 1 {
			meta, err := backup.CreateRuntimeBackup(t.Context(), inner)
			require.NoError(t, err)
			require.Equal(t, "20261124T120000Z", meta.Stamp)
		}
	}
	meta := s.Create()
	require.Equal(t, "20261124T120000Z-002", meta.Stamp)
	require.Equal(t, s.SnapshotPath(meta.Stamp), meta.BackupRoot)
	require.Equal(t, s.SnapshotPath(meta.Stamp, "db", "atocore.db"), meta.DBSnapshotPath)
}

// The numbers of stamps in one second have three digits until more are needed.
func TestThousandthStampOfASecond(t *testing.T) {
	t.Parallel()
	s := backuptest.NewBareStore(t)
	s.Clock = backuptest.Noon
	for n := 1; n < 1000; n++ {
		name := backuptest.Noon.Time.Format("20060102T150405Z")
		if n > 1 {
			name += fmt.Sprintf("-%03d", n)
		}
		require.NoError(t, os.MkdirAll(s.SnapshotPath(name), 0o700))
	}
	require.Equal(t, "20261124T120000Z-1000", s.Create().Stamp)
	require.Equal(t, "20261124T120000Z-1001", s.Create().Stamp)
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Equal(t, "20261124T120000Z-1001", list[1000].Stamp)
}

// staleName is the name of the staging of a dead process.
const staleName = ".atocore-staging-0123456789abcdef"

// The staging of a dead process is removed whatever is in it. What its links point
// to is not.
func TestStaleStagingIsRemoved(t *testing.T) {
	s := backuptest.NewStore(t)
	outside := filepath.Join(s.Dir, "outside")
	require.NoError(t, os.Mkdir(outside, 0o755))
	backuptest.Write(t, filepath.Join(outside, "precious"), "do not remove")
	stale := filepath.Join(s.BackupDir, staleName)
	deep := filepath.Join(stale, "chroma", "a", "b", "c")
	require.NoError(t, os.MkdirAll(deep, 0o755))
	backuptest.Write(t, filepath.Join(deep, "file"), "x")
	require.NoError(t, os.Symlink(outside, filepath.Join(deep, "link")))
	require.NoError(t, os.Symlink(outside, filepath.Join(stale, "link")))
	require.NoError(t, os.Link(filepath.Join(outside, "precious"), filepath.Join(deep, "hard")))
	// A create that was killed may have copied read-only directories.
	for _, dir := range []string{deep, filepath.Dir(deep), stale} {
		require.NoError(t, os.Chmod(dir, 0o500))
	}
	before := backuptest.ReadTree(t, outside)

	log := s.Record()
	s.Create()
	require.NoDirExists(t, stale)
	require.Equal(t, before, backuptest.ReadTree(t, outside))
	require.Equal(t, "stale_staging_removed path="+stale, log.Lines()[0])
}

// Names that are only similar to those of staging are not touched, nor are files
// and links with the name of staging.
func TestNamesSimilarToStagingAreLeft(t *testing.T) {
	s := backuptest.NewBareStore(t)
	require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
	for _, name := range []string{
		".atocore-staging-",
		".atocore-staging-0123456789abcde",   // 15 digits
		".atocore-staging-0123456789abcdef0", // 17
		".atocore-staging-0123456789ABCDEF",
		".atocore-staging-0123456789abcdeg",
		"atocore-staging-0123456789abcdef",
		".atocore-staging-0123456789abcdef.bak",
		"other",
	} {
		dir := filepath.Join(s.BackupDir, name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		backuptest.Write(t, filepath.Join(dir, "file"), name)
	}
	backuptest.Write(t, filepath.Join(s.BackupDir, ".atocore-staging-1111111111111111"), "a file")
	outside := filepath.Join(s.Dir, "outside")
	require.NoError(t, os.Mkdir(outside, 0o755))
	backuptest.Write(t, filepath.Join(outside, "precious"), "do not remove")
	require.NoError(t, os.Symlink(outside, filepath.Join(s.BackupDir, ".atocore-staging-2222222222222222")))
	before := backuptest.ReadTree(t, s.BackupDir)

	log := s.Record()
	s.Create()
	after := backuptest.ReadTree(t, s.BackupDir)
	for path, file := range before {
		if path != "." { // its time changed
			require.Equal(t, file, after[path], path)
		}
	}
	require.FileExists(t, filepath.Join(outside, "precious"))
	require.Len(t, log.Lines(), 1)
}

// Staging that cannot be removed does not fail a backup, but is logged.
func TestStaleStagingThatCannotBeRemoved(t *testing.T) {
	s := backuptest.NewBareStore(t)
	stale := filepath.Join(s.BackupDir, staleName)
	require.NoError(t, os.MkdirAll(filepath.Join(stale, "db"), 0o700))
	outside := filepath.Join(s.Dir, "outside")
	require.NoError(t, os.Mkdir(outside, 0o700))
	backuptest.Write(t, filepath.Join(outside, "precious"), "do not remove")
	backuptest.MountBind(t, outside, filepath.Join(stale, "db"))

	log := s.Record()
	s.Create()
	require.DirExists(t, stale)
	require.FileExists(t, filepath.Join(outside, "precious"), "what was mounted in the staging directory is gone")
	require.Contains(t, log.Lines()[0], "level=WARN stale_staging_left path="+stale)
	require.Len(t, log.Lines(), 2)
}

// BackupDir may be a link. snapshots/ may not, since list and validate would not
// follow it.
func TestLinksInTheBackupDirectory(t *testing.T) {
	s := backuptest.NewStore(t)
	real := filepath.Join(s.Dir, "disk", "backups")
	require.NoError(t, os.MkdirAll(real, 0o700))
	require.NoError(t, os.Symlink(real, s.BackupDir))
	meta := s.Create()
	require.DirExists(t, filepath.Join(real, "snapshots", meta.Stamp))

	s = backuptest.NewStore(t)
	require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
	require.NoError(t, os.Symlink(real, filepath.Join(s.BackupDir, "snapshots")))
	_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
	require.ErrorContains(t, err, filepath.Join(s.BackupDir, "snapshots"))
	require.Empty(t, s.Staging())
	entries, err := os.ReadDir(real)
	require.NoError(t, err)
	require.Len(t, entries, 1, "something was created through the link")
	s.RemoveAll(filepath.Join(s.BackupDir, "snapshots"))

	backuptest.Write(t, filepath.Join(s.BackupDir, "snapshots"), "a file")
	_, err = backup.CreateRuntimeBackup(t.Context(), s.Options)
	require.ErrorContains(t, err, filepath.Join(s.BackupDir, "snapshots"))
	s.RemoveAll(filepath.Join(s.BackupDir, "snapshots"))
}

// The error names a backup directory that cannot be read or written.
func TestBackupDirectoryWithoutRights(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root needs no permissions")
	}
	for _, mode := range []fs.FileMode{0, 0o500, 0o300} {
		s := backuptest.NewStore(t)
		require.NoError(t, os.Mkdir(s.BackupDir, mode))
		_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
		require.ErrorIs(t, err, fs.ErrPermission)
		require.ErrorContains(t, err, s.BackupDir)
		require.NoError(t, os.Chmod(s.BackupDir, 0o700))
		require.Empty(t, s.Staging())
	}
}

// If a rename cannot publish the snapshot, the call fails before it copies anything.
func TestSnapshotsOnAnotherFileSystem(t *testing.T) {
	for name, mount := range map[string]func(t *testing.T, s *backuptest.Store, target string){
		"another file system": func(t *testing.T, s *backuptest.Store, target string) { backuptest.MountTmpfs(t, target, "") },
		"another mount of one": func(t *testing.T, s *backuptest.Store, target string) {
			backuptest.MountBind(t, filepath.Join(s.Dir, "config"), target)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewBareStore(t)
			require.NoError(t, os.MkdirAll(s.SnapshotPath(""), 0o700))
			mount(t, s, s.SnapshotPath(""))
			s.Locker = backup.LockerFunc(nil) // calling it would panic
			s.OnProgress = func(p backup.Progress) { require.Equal(t, backup.PhaseInit, p.Phase) }
			_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
			require.ErrorIs(t, err, backup.ErrCrossDevice)
			require.ErrorContains(t, err, s.SnapshotPath(""))
			require.Empty(t, s.Staging())
		})
	}
}

// The backup directory may be on another file system than the store.
func TestStoreOnOtherFileSystems(t *testing.T) {
	s := backuptest.NewStore(t)
	require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
	backuptest.MountTmpfs(t, s.BackupDir, "")
	// When NewStore validates at the end, this is already unmounted.
	_, err := backup.ValidateBackup(t.Context(), s.Options, s.Create().Stamp)
	require.NoError(t, err)
}

// If the snapshot cannot fit on the disk, the call fails before it copies anything.
func TestNotEnoughSpace(t *testing.T) {
	for name, options := range map[string]string{"bytes": "size=1m", "inodes": "nr_inodes=12"} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewBareStore(t)
			require.NoError(t, os.Mkdir(s.BackupDir, 0o700))
			backuptest.MountTmpfs(t, s.BackupDir, options)
			require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "large"), make([]byte, 2<<20), 0o600))
			s.Locker = backup.LockerFunc(nil) // calling it would panic
			err := s.CreateFails()
			require.ErrorIs(t, err, backup.ErrNoSpace)
			require.ErrorContains(t, err, s.BackupDir)
		})
	}
}
