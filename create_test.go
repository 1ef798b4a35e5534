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
	"runtime"
	"strings"
	"testing"
	"time"

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

// A backup directory that is there keeps its mode, and its missing parents are
// made.
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

func TestMetadataIsWhatIsOnDisk(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Clock = backuptest.Noon
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
	require.Equal(t, &backup.Metadata{
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
	}, meta)

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
  "stamp": "20261124T120000Z"
}
`, quoted(), quoted("db", "atocore.db"), dbInfo.Size(), quoted("config", "project-registry.json"),
		quoted("chroma"), size, files, meta.VectorStoreNote), string(data))
}

// What is not there is recorded as not there, whether it was asked for or not.
func TestMetadataOfWhatIsMissing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		change     func(*backuptest.Store)
		registry   bool
		logMessage string
	}{
		{"Chroma not asked for", func(s *backuptest.Store) { s.IncludeChroma = false }, true, ""},
		{"no Chroma path", func(s *backuptest.Store) { s.IncludeChroma, s.ChromaPath = false, "" }, true, ""},
		{"Chroma missing", func(s *backuptest.Store) { s.RemoveAll(s.ChromaPath) }, true, "chroma_snapshot_skipped_missing path=" + chromaPlace},
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

const chromaPlace = "DIR/data/chroma"

// The copy is marked as a rollback-journal database, so opening it read-only
// makes no file beside it and needs no right to.
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
				require.Len(t, entries, 1, "a sidecar file was made")
				backuptest.RequireSound(t, meta.DBSnapshotPath)
			})
		}
	}
}

// sha256sum checks a snapshot, whatever bytes are in its names.
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

	// Every file is covered, so sha256sum misses any of them.
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

// The database's and the registry's own names get into the snapshot, its
// metadata and the manifest.
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

// The copy is the registry byte for byte, with its mode and time.
func TestRegistryCopy(t *testing.T) {
	s := backuptest.NewStore(t)
	s.IncludeChroma = false
	mtime := time.Unix(1700000000, 987654321)
	for _, tt := range []struct{ name, content string }{
		{"CRLF", "{\r\n\t\"a\": 1\r\n}\r\n"},
		{"no newline at the end", "{}"},
		{"blanks around", " \n\t[1]\n\n\n"},
		{"names that are there twice", `{"a": 1, "a": 2}`},
		{"a scalar", "null"},
		{"escapes", `{"\u00e9\ud83d\ude00": "\/"}`},
		{"raw UTF-8", `{"é😀": "\u2028"}`},
		{"numbers beyond float64", `[1e400, 123456789012345678901234567890]`},
		{"large", `["` + strings.Repeat("x", 3<<20) + `"]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(s.RegistryPath, []byte(tt.content), 0o600))
			require.NoError(t, os.Chmod(s.RegistryPath, 0o604))
			require.NoError(t, os.Chtimes(s.RegistryPath, mtime, mtime))
			meta := s.Create()
			got, err := os.ReadFile(meta.RegistrySnapshotPath)
			require.NoError(t, err)
			require.True(t, string(got) == tt.content, "the bytes differ")
			info, err := os.Stat(meta.RegistrySnapshotPath)
			require.NoError(t, err)
			require.Equal(t, mtime.UnixNano(), info.ModTime().UnixNano())
			if runtime.GOOS != "windows" {
				require.Equal(t, "-rw----r--", info.Mode().String())
			}
		})
	}
}

// A registry that would make the snapshot invalid is refused.
func TestRegistryRefused(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(t *testing.T, path string)
		want    error
		mention string
	}{
		{"not JSON", func(t *testing.T, path string) { backuptest.Write(t, path, "{not json") }, backup.ErrSourceInvalid, "not JSON"},
		{"empty", func(t *testing.T, path string) { backuptest.Write(t, path, "") }, backup.ErrSourceInvalid, "not JSON"},
		{"two values", func(t *testing.T, path string) { backuptest.Write(t, path, "{}{}") }, backup.ErrSourceInvalid, "not JSON"},
		{"byte order mark", func(t *testing.T, path string) { backuptest.Write(t, path, "\ufeff{}") }, backup.ErrSourceInvalid, "not JSON"},
		{"invalid UTF-8", func(t *testing.T, path string) { backuptest.Write(t, path, "\"\xff\"") }, backup.ErrSourceInvalid, "not JSON"},
		{"UTF-16", func(t *testing.T, path string) { backuptest.Write(t, path, "\xff\xfe{\x00}\x00") }, backup.ErrSourceInvalid, "not JSON"},
		{"too large", func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 17<<20)) }, backup.ErrSourceInvalid, "too many"},
		{"a directory", func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Mkdir(path, 0o755))
		}, nil, "not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // each waits a while for the registry to become better
			s := backuptest.NewStore(t)
			tt.change(t, s.RegistryPath)
			err := s.CreateFails()
			if tt.want != nil {
				require.ErrorIs(t, err, tt.want)
			}
			require.ErrorContains(t, err, tt.mention)
			require.ErrorContains(t, err, s.RegistryPath)
		})
	}
}

// A registry that is replaced and written into all the time is copied as one
// of its versions, or the backup fails.
func TestRegistryRewrittenWhileRead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		write func(path string, data []byte) error
	}{
		{"replaced", func(path string, data []byte) error {
			if err := os.WriteFile(path+".new", data, 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}},
		{"written into", func(path string, data []byte) error { return os.WriteFile(path, data, 0o600) }},
		{"written into in pieces", func(path string, data []byte) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			for len(data) > 0 {
				n := min(len(data), 64)
				if _, err := f.Write(data[:n]); err != nil {
					return err
				}
				data = data[n:]
			}
			return nil
		}},
		{"removed and made again", func(path string, data []byte) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.WriteFile(path, data, 0o600)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := backuptest.NewStore(t)
			s.IncludeChroma = false
			version := func(n int) []byte {
				return fmt.Appendf(nil, `["%s"]`, strings.Repeat(string(rune('a'+n%26)), 100+n*37%2000))
			}
			require.NoError(t, os.WriteFile(s.RegistryPath, version(0), 0o600))
			stop, ended := make(chan struct{}), make(chan error, 1)
			go func() {
				for n := 1; ; n++ {
					if err := tt.write(s.RegistryPath, version(n)); err != nil {
						ended <- err
						return
					}
					pause := time.Duration(0)
					if n%300 == 299 { // so that some calls find it at rest
						pause = 70 * time.Millisecond
					}
					select {
					case <-stop:
						ended <- nil
						return
					case <-time.After(pause):
					}
				}
			}()
			copied := 0
			for range 6 {
				meta, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
				if err != nil {
					require.True(t, errors.Is(err, backup.ErrSourceChanged) || errors.Is(err, backup.ErrSourceInvalid), err)
					continue
				}
				if meta.RegistrySnapshotPath == "" {
					continue // it was away at that moment
				}
				copied++
				data, err := os.ReadFile(meta.RegistrySnapshotPath)
				require.NoError(t, err)
				var got []string
				require.NoError(t, json.Unmarshal(data, &got), string(data))
				require.Len(t, got, 1)
				require.Equal(t, strings.Repeat(got[0][:1], len(got[0])), got[0], "two versions in one copy")
			}
			close(stop)
			require.NoError(t, <-ended)
			t.Logf("%d of 6 copied", copied)
		})
	}
}

// The copy equals the real directory in bytes, modes and times, directories
// included.
func TestChromaCopy(t *testing.T) {
	s := backuptest.NewStore(t)
	// Times and modes that a copy does not get by itself.
	n := int64(0)
	require.NoError(t, filepath.WalkDir(s.ChromaPath, func(path string, d fs.DirEntry, err error) error {
		n++
		mtime := time.Unix(1600000000+n, 123456789+n)
		return errors.Join(err,
			os.Chmod(path, map[bool]fs.FileMode{true: 0o751, false: 0o640}[d.IsDir()]),
			os.Chtimes(path, mtime, mtime))
	}))
	before := backuptest.ReadTree(t, s.ChromaPath)
	require.Len(t, before, 1+2+9)
	meta := s.Create()
	require.Equal(t, before, backuptest.ReadTree(t, meta.ChromaSnapshotPath))
	require.Equal(t, before, backuptest.ReadTree(t, s.ChromaPath), "the source was changed")
}

func TestChromaRoot(t *testing.T) {
	t.Parallel()
	t.Run("a link to a directory", func(t *testing.T) {
		s := backuptest.NewStore(t)
		require.NoError(t, os.Rename(s.ChromaPath, filepath.Join(s.Dir, "elsewhere")))
		require.NoError(t, os.Symlink("../elsewhere", s.ChromaPath))
		meta := s.Create()
		require.Equal(t, backuptest.ReadTree(t, filepath.Join(s.Dir, "elsewhere")), backuptest.ReadTree(t, meta.ChromaSnapshotPath))
		require.True(t, backuptest.ReadTree(t, meta.BackupRoot)["chroma"].Mode.IsDir())
	})
	t.Run("a dangling link", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.RemoveAll(s.ChromaPath)
		require.NoError(t, os.Symlink("../elsewhere", s.ChromaPath))
		err := s.CreateFails()
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.ErrorContains(t, err, s.ChromaPath)
	})
	t.Run("a file", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.ChromaPath = s.RegistryPath
		require.ErrorContains(t, s.CreateFails(), s.ChromaPath)
	})
	t.Run("empty", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.RemoveAll(s.ChromaPath)
		require.NoError(t, os.Mkdir(s.ChromaPath, 0o755))
		meta := s.Create()
		require.True(t, meta.ChromaSnapshotIncluded)
		require.Zero(t, meta.ChromaSnapshotFiles)
		require.DirExists(t, meta.ChromaSnapshotPath)
	})
}

// A database that is missing is not made, by nobody and nowhere.
func TestDatabaseMissing(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*backuptest.Store){
		"file":      func(s *backuptest.Store) { s.RemoveAll(s.DatabasePath) },
		"directory": func(s *backuptest.Store) { s.DatabasePath = filepath.Join(s.Dir, "no", "atocore.db") },
		"dangling link": func(s *backuptest.Store) {
			s.RemoveAll(s.DatabasePath)
			require.NoError(s.T, os.Symlink("nowhere", s.DatabasePath))
		},
		"file as parent": func(s *backuptest.Store) { s.DatabasePath = filepath.Join(s.RegistryPath, "atocore.db") },
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			change(s)
			before := backuptest.ReadTree(t, s.Dir)
			err := s.CreateFails()
			if name != "file as parent" { // that is ENOTDIR
				require.ErrorIs(t, err, fs.ErrNotExist)
			}
			require.ErrorContains(t, err, s.DatabasePath)
			require.Equal(t, before, backuptest.ReadTree(t, s.Dir), "something was made")
		})
	}
}

// What cannot be a database is refused, and nothing of it kept.
func TestDatabaseInvalid(t *testing.T) {
	t.Parallel()
	s := backuptest.NewStore(t)
	whole, err := os.ReadFile(s.DatabasePath)
	require.NoError(t, err)
	garbage := bytes.Repeat([]byte("no database "), 1000)
	for _, tt := range []struct {
		name    string
		content []byte
		want    error
	}{
		{"0 bytes", nil, backup.ErrSourceInvalid},
		{"1 byte", whole[:1], backup.ErrSourceInvalid},
		{"text", garbage, backup.ErrSourceInvalid},
		{"less than a header", whole[:99], backup.ErrSourceInvalid},
		{"only a header", whole[:100], backup.ErrSourceInvalid},
		{"half of its pages", whole[:len(whole)/2/4096*4096], backup.ErrSourceInvalid},
		{"garbage behind the header", append(whole[:100:100], garbage...), backup.ErrSourceInvalid},
		{"a directory", nil, nil},
	} {
		for _, online := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,online=%t", tt.name, online), func(t *testing.T) {
				s := backuptest.NewStore(t)
				s.OnlineBackup = online
				s.RemoveAll(s.DatabasePath)
				if tt.want == nil {
					require.NoError(t, os.Mkdir(s.DatabasePath, 0o755))
				} else {
					require.NoError(t, os.WriteFile(s.DatabasePath, tt.content, 0o600))
				}
				err := s.CreateFails()
				if tt.want != nil {
					require.ErrorIs(t, err, tt.want)
				}
				require.ErrorContains(t, err, s.DatabasePath)
			})
		}
	}
}

// The host makes its schema before anything is looked at.
func TestInitDB(t *testing.T) {
	t.Parallel()
	t.Run("makes the database", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.RemoveAll(s.DatabasePath)
		type key struct{}
		calls := 0
		s.InitDB = func(ctx context.Context) error {
			calls++
			require.Equal(t, "mine", ctx.Value(key{}))
			backuptest.MakeDatabase(t, s.DatabasePath)
			return nil
		}
		meta, err := backup.CreateRuntimeBackup(context.WithValue(t.Context(), key{}, "mine"), s.Options)
		require.NoError(t, err)
		require.Equal(t, 1, calls)
		backuptest.RequireSound(t, meta.DBSnapshotPath)
	})
	t.Run("its rows are in the copy", func(t *testing.T) {
		s := backuptest.NewStore(t)
		s.InitDB = func(ctx context.Context) error {
			db := backuptest.OpenDB(t, s.DatabasePath)
			defer db.Close()
			return backuptest.Transfer(ctx, db, 3, 4, 1)
		}
		require.Equal(t, 1, backuptest.CountTransfers(t, s.Create().DBSnapshotPath))
	})
	t.Run("its error is returned", func(t *testing.T) {
		s := backuptest.NewStore(t)
		broken := errors.New("migration 7 failed")
		s.InitDB = func(context.Context) error { return broken }
		before := backuptest.ReadTree(t, s.Dir)
		err := s.CreateFails()
		require.ErrorIs(t, err, broken)
		require.Equal(t, before, backuptest.ReadTree(t, s.Dir), "something was made")
	})
}

// Nothing that a snapshot's directory holds under another name, such as
// snapshots of other tools, is touched.
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

// A handler that fails does not fail a backup, and its words are complete.
func TestCreatedIsLogged(t *testing.T) {
	s := backuptest.NewStore(t)
	s.Clock = backuptest.Noon
	log := s.Record()
	meta := s.Create()
	require.Equal(t, []string{fmt.Sprintf("runtime_backup_created stamp=%s backup_root=%s db_snapshot=%s db_bytes=%d chroma_included=true chroma_files=%d chroma_bytes=%d",
		meta.Stamp, meta.BackupRoot, meta.DBSnapshotPath, meta.DBSizeBytes, meta.ChromaSnapshotFiles, meta.ChromaSnapshotBytes)}, log.Lines())

	s.Logger = slog.New(brokenHandler{})
	s.Create()
}

type brokenHandler struct{}

func (brokenHandler) Enabled(context.Context, slog.Level) bool { return true }
func (brokenHandler) Handle(context.Context, slog.Record) error {
	return errors.New("no space for logs")
}
func (h brokenHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h brokenHandler) WithGroup(string) slog.Handler      { return h }
