package backup_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// validationTimeout is far longer than a cancelled call may take, and far shorter
// than the same call takes otherwise.
const validationTimeout = 5 * time.Second

// The report of a sound snapshot has its metadata and no problem.
func TestValidateReportsASoundSnapshot(t *testing.T) {
	store := backuptest.NewStore(t)
	s := store.CreateSnapshot()
	s.Options = store.Options
	report := s.RequireProblems()
	require.Equal(t, s.Stamp, report.Stamp)
	require.Equal(t, s.Path(""), report.Path)
	require.True(t, *report.RegistryOK)
	require.True(t, *report.ChromaOK)
	require.Equal(t, s.Stamp, report.Metadata.Stamp)

	data, err := json.Marshal(report)
	require.NoError(t, err)
	var got struct{ Metadata json.RawMessage }
	require.NoError(t, json.Unmarshal(data, &got))
	require.JSONEq(t, string(s.Read(backuptest.MetadataFile)), string(got.Metadata))
}

// Parts that a snapshot does not have are neither sound nor damaged.
func TestValidateWithoutRegistryAndChroma(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	store.IncludeChroma = false
	store.RegistryPath = ""
	s := store.CreateSnapshot()
	report := s.RequireProblems()
	require.Nil(t, report.RegistryOK, "not applicable")
	require.Nil(t, report.ChromaOK, "not applicable")

	s.Add("config/late.json", []byte("{}"))
	s.RequireProblems("file_unknown: config/late.json")
}

// A snapshot may have been moved, copied or renamed, or have another path than when
// it was created.
func TestValidateElsewhere(t *testing.T) {
	made := backuptest.NewSnapshot(t)
	for name, move := range map[string]func(t *testing.T, s *backuptest.Snapshot){
		"copied": func(t *testing.T, s *backuptest.Snapshot) {},
		"moved": func(t *testing.T, s *backuptest.Snapshot) {
			to := filepath.Join(t.TempDir(), "moved away")
			require.NoError(t, os.Rename(s.BackupDir, to))
			s.BackupDir = to
		},
		"renamed": func(t *testing.T, s *backuptest.Snapshot) {
			from := s.Path("")
			s.Stamp = "before the upgrade, -002 (α)"
			require.NoError(t, os.Rename(from, s.Path("")))
		},
		"awkward name": func(t *testing.T, s *backuptest.Snapshot) {
			if runtime.GOOS == "windows" {
				t.Skip("Windows has no such names")
			}
			from := s.Path("")
			s.Stamp = "100%?mode=rw&x#y 'z' \"\n\xff"
			require.NoError(t, os.Rename(from, s.Path("")))
		},
		"awkward backup directory": func(t *testing.T, s *backuptest.Snapshot) {
			if runtime.GOOS == "windows" {
				t.Skip("Windows has no such names")
			}
			to := filepath.Join(t.TempDir(), "a?b%20c#d\n\xfe")
			require.NoError(t, os.Rename(s.BackupDir, to))
			s.BackupDir = to
		},
		"relative backup directory": func(t *testing.T, s *backuptest.Snapshot) {
			t.Chdir(filepath.Dir(s.BackupDir))
			s.BackupDir = filepath.Base(s.BackupDir)
		},
		"link to the backup directory": func(t *testing.T, s *backuptest.Snapshot) {
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(s.BackupDir, link); err != nil {
				t.Skipf("no symbolic links here: %v", err)
			}
			s.BackupDir = link
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, form := range []string{"format 1", "Python"} {
				t.Run(form, func(t *testing.T) {
					s := made.Copy(t)
					if form == "Python" {
						s.MakePython()
					}
					move(t, s)
					s.RequireProblems()
					// This checks the files there, not the ones they were copied from.
					s.Write(backuptest.RegistryFile, []byte("{"))
					require.NotEmpty(t, s.Validate().Problems)
					require.Equal(t, "{", string(s.Read(backuptest.RegistryFile)))
				})
			}
		})
	}
}

// SQLite does not open paths of more than 512 bytes, but for its checks it gets no
// path.
func TestValidateBelowALongPath(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such paths")
	}
	made := backuptest.NewSnapshot(t)
	for _, length := range []int{400, 900} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			s := made.Copy(t)
			deep := t.TempDir()
			for len(deep) < length-150 {
				deep = filepath.Join(deep, strings.Repeat("d", 100))
			}
			require.NoError(t, os.MkdirAll(deep, 0o755))
			require.NoError(t, os.Rename(s.BackupDir, filepath.Join(deep, "backups")))
			s.BackupDir = filepath.Join(deep, "backups")
			s.RequireProblems()
			s.Flip(backuptest.DBFile, 100)
			require.False(t, s.Validate().DBOK)
		})
	}
}

// A stamp that cannot be the name of a snapshot does not lead anywhere.
func TestValidateStamps(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	snapshots := filepath.Join(s.BackupDir, "snapshots")
	real := s.Stamp
	require.NoError(t, os.WriteFile(filepath.Join(snapshots, "file"), nil, 0o600))
	for _, stamp := range []string{
		"", ".", "..", "/", "/etc", "../x", "../snapshots", "../snapshots/" + real, "./" + real, real + "/", real + "/.",
		real + "/db", "/" + real, real + "\x00", "\x00", "a\x00b", "a/b", strings.Repeat("a", 256), strings.Repeat("../", 100) + "etc",
		s.Path(""), "file",
	} {
		t.Run(fmt.Sprintf("%.30q", stamp), func(t *testing.T) {
			bad := s.Named(t, stamp)
			report, err := backup.ValidateBackup(t.Context(), bad.Options, stamp)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			backuptest.RequireReport(t, report, err)
			require.Equal(t, []string{"stamp_invalid"}, backuptest.Brief(report.Problems))
			require.False(t, report.Exists)
			require.Nil(t, report.Metadata)
			require.Equal(t, stamp, report.Stamp)
			rel, err := filepath.Rel(snapshots, report.Path)
			require.NoError(t, err)
			require.True(t, filepath.IsLocal(rel), "%q leads out", report.Path)
		})
	}
	for _, stamp := range []string{"link", "loop", "nothing"} {
		t.Run(stamp, func(t *testing.T) {
			target := map[string]string{"link": s.Path(""), "loop": "loop", "nothing": "no such"}[stamp]
			if err := os.Symlink(target, filepath.Join(snapshots, stamp)); err != nil {
				t.Skipf("no symbolic links here: %v", err)
			}
			bad := s.Named(t, stamp)
			bad.RequireProblems("stamp_invalid")
		})
	}
	for _, stamp := range []string{"no such", "...", " ", "-", strings.Repeat("a", 255), "\xff\xfe", "-rf *", real + " "} {
		if runtime.GOOS == "windows" {
			break // there some of these are other names
		}
		t.Run(fmt.Sprintf("%.30q", stamp), func(t *testing.T) {
			bad := s.Named(t, stamp)
			bad.RequireProblems("snapshot_directory_missing")
		})
	}
}

// Without a backup directory there is no snapshot.
func TestValidateWithoutBackupDirectory(t *testing.T) {
	dir := t.TempDir()
	for name, backupDir := range map[string]string{"none": filepath.Join(dir, "no", "such"), "no snapshots": dir} {
		t.Run(name, func(t *testing.T) {
			report, err := backup.ValidateBackup(t.Context(), backup.Options{BackupDir: backupDir}, "x")
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			backuptest.RequireReport(t, report, err)
			require.Equal(t, []string{"snapshot_directory_missing"}, backuptest.Brief(report.Problems))
		})
	}
	_, err := backup.ValidateBackup(t.Context(), backup.Options{}, "x")
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	require.NotErrorIs(t, err, backup.ErrInvalidBackup)
}

// If snapshots/ is a link it may lead anywhere, so validate and list do not follow
// it and fail.
func TestValidateDoesNotFollowALinkToSnapshots(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	away := filepath.Join(t.TempDir(), "away")
	snapshots := filepath.Join(s.BackupDir, "snapshots")
	require.NoError(t, os.Rename(snapshots, away))
	if err := os.Symlink(away, snapshots); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	report, err := backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
	require.Error(t, err)
	require.NotErrorIs(t, err, backup.ErrInvalidBackup)
	require.Nil(t, report)
	_, err = backup.ListRuntimeBackups(t.Context(), s.Options)
	require.Error(t, err)

	require.NoError(t, os.Remove(snapshots))
	require.NoError(t, os.WriteFile(snapshots, nil, 0o600))
	report, err = backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
	require.Error(t, err)
	require.NotErrorIs(t, err, backup.ErrInvalidBackup)
	require.Nil(t, report)
}

// Every row of SQLite's check is reported, up to a limit.
func TestValidateReportsAllRowsOfTheIntegrityCheck(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	store.IncludeChroma = false
	backuptest.InDatabase(t, store.DatabasePath, func(db *sql.DB) {
		_, err := db.Exec("PRAGMA journal_mode = delete")
		require.NoError(t, err)
	})
	for _, test := range []struct{ lost, want int }{{1, 2}, {299, 301}, {2000, 1001}} {
		t.Run(fmt.Sprint(test.lost), func(t *testing.T) {
			backuptest.LoseIndexEntries(t, store.DatabasePath, test.lost)
			s := store.CreateSnapshot()
			report := s.Validate()
			require.Equal(t, test.want, len(report.Problems), "the first is %s", report.Problems[0])
			require.False(t, report.DBOK)
			for i, p := range report.Problems {
				if i == 1000 {
					require.Equal(t, backup.CodeTooManyProblems, p.Code)
					break
				}
				require.Equal(t, backup.CodeDBIntegrity, p.Code)
				require.Equal(t, backuptest.DBFile, p.Path)
				require.NotEmpty(t, p.Detail)
			}
		})
	}
}

// A schema may need functions or modules that only the host's connections have. The
// rest of the database is checked, and what SQLite can't check without them is noted.
// SQLite does not check CHECK constraints in a database that it may only read.
func TestValidateDatabasesThatNeedTheHost(t *testing.T) {
	noted := []string{"collation", "function in an index", "function in a generated column", "virtual table"}
	for name, statements := range map[string]string{
		"virtual table": `INSERT INTO sqlite_schema VALUES ('table', 'vec', 'vec', 0, 'CREATE VIRTUAL TABLE vec USING vec0(a float[3])')`,
		"collation": `CREATE TABLE word (text TEXT COLLATE nocase); INSERT INTO word VALUES ('b'), ('A');
			CREATE INDEX word_text ON word (text);
			UPDATE sqlite_schema SET sql = replace(sql, 'nocase', 'hosts') WHERE name = 'word'`,
		"function in an index": `CREATE TABLE word (text TEXT); INSERT INTO word VALUES ('b'), ('A');
			CREATE INDEX word_text ON word (upper(text));
			UPDATE sqlite_schema SET sql = replace(sql, 'upper', 'hosts') WHERE name = 'word_text'`,
		"function in a check": `CREATE TABLE word (text TEXT CHECK (upper(text) > '')); INSERT INTO word VALUES ('b'), ('A');
			UPDATE sqlite_schema SET sql = replace(sql, 'upper', 'hosts') WHERE name = 'word'`,
		"row against a check": `PRAGMA ignore_check_constraints = on;
			CREATE TABLE word (text TEXT CHECK (text > 'a')); INSERT INTO word VALUES ('A')`,
		"function in a generated column": `CREATE TABLE word (text TEXT, up AS (upper(text))); INSERT INTO word VALUES ('b'), ('A');
			UPDATE sqlite_schema SET sql = replace(sql, 'upper', 'hosts') WHERE name = 'word'`,
		"function in a trigger": `INSERT INTO sqlite_schema VALUES ('trigger', 'tr', 'account', 0,
			'CREATE TRIGGER tr AFTER INSERT ON account BEGIN SELECT hosts(); END')`,
		"function in a view": `INSERT INTO sqlite_schema VALUES ('view', 'v', 'v', 0, 'CREATE VIEW v AS SELECT hosts() FROM nowhere')`,
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSnapshot(t)
			s.InDatabase(func(db *sql.DB) {
				_, err := db.Exec("PRAGMA writable_schema = on; " + statements)
				require.NoError(t, err)
			})
			report := s.RequireProblems()
			require.Equal(t, slices.Contains(noted, name), len(report.Notes) > 0, "%v", report.Notes)
		})
	}
}

// Databases of every page size are checked.
func TestValidateReadsEveryPageSize(t *testing.T) {
	for size := 512; size <= 65536; size *= 2 {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := backuptest.NewSnapshot(t)
			s.InDatabase(func(db *sql.DB) {
				_, err := db.Exec(fmt.Sprintf("PRAGMA page_size = %d; VACUUM", size))
				require.NoError(t, err)
			})
			s.RequireProblems()
			// Damage to the tree of the first page, after a sound header.
			data := s.Read(backuptest.DBFile)
			data[100] = 0xff
			s.Write(backuptest.DBFile, data)
			s.Reseal()
			report := s.Validate()
			require.NotEmpty(t, report.Problems)
			require.Contains(t, []backup.Code{backup.CodeDBOpen, backup.CodeDBIntegrity}, report.Problems[0].Code)
		})
	}
}

// Each byte of a database's header is changed. Whatever SQLite makes of it, there is
// a verdict.
func TestValidateAnyDatabaseHeader(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	store.IncludeChroma = false
	s := store.CreateSnapshot()
	good := s.Read(backuptest.DBFile)
	for offset := range 100 {
		for _, mask := range []byte{0x01, 0x02, 0xff} {
			data := bytes.Clone(good)
			data[offset] ^= mask
			s.Write(backuptest.DBFile, data)
			report, err := backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
			require.ErrorIs(t, err, backup.ErrInvalidBackup, "byte %d xor %#x", offset, mask)
			require.Contains(t, backuptest.Brief(report.Problems), "file_changed: "+backuptest.DBFile)
		}
	}
}

// A cancelled call ends promptly in each phase, without a report.
func TestValidateHeedsItsContext(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	slowDatabase(t, s)
	// More than can be hashed within the timeout, without taking disk space.
	name := s.Path("chroma/sparse")
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	require.NoError(t, os.Truncate(name, 1<<38))
	manifest := append(s.Read(backuptest.ManifestFile), fmt.Sprintf("%064d  zzz\n", 0)...)
	s.Write(backuptest.ManifestFile, manifest)

	for when, reached := range map[string]func(p backup.Progress) bool{
		"database": func(p backup.Progress) bool { return p.Phase == backup.PhaseValidateDatabase },
		"files":    func(p backup.Progress) bool { return p.Phase == backup.PhaseValidateFiles },
		"in a file": func(p backup.Progress) bool {
			return p.Phase == backup.PhaseValidateFiles && p.Bytes > 20<<20
		},
	} {
		t.Run(when, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			opts := s.Options
			opts.Clock = backuptest.Noon // it stands still, so that no report is dropped
			opts.OnProgress = func(p backup.Progress) {
				if reached(p) {
					cancel(errors.New("cancelled"))
				}
			}
			report, err := validateInTime(t, ctx, opts, s.Stamp)
			require.ErrorIs(t, err, context.Canceled)
			require.NotErrorIs(t, err, backup.ErrInvalidBackup)
			require.Nil(t, report)
		})
	}
	t.Run("before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := backup.ValidateBackup(ctx, s.Options, s.Stamp)
		require.ErrorIs(t, err, context.Canceled)
		_, err = backup.ValidateBackup(ctx, s.Options, "no such")
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		report, err := validateInTime(t, ctx, s.Options, s.Stamp)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Nil(t, report)
	})
	t.Run("at the very end", func(t *testing.T) {
		python := backuptest.NewSnapshot(t)
		python.MakePython()
		// So that no check but that of the files is running.
		python.Set(map[string]any{"db_snapshot_path": "", "chroma_snapshot_path": ""})
		files := int64(len(python.Files()))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		opts := python.Options
		opts.Clock = backuptest.Noon // it stands still, so that no report is dropped
		opts.OnProgress = func(p backup.Progress) {
			if p.Files == files {
				cancel()
			}
		}
		_, err := backup.ValidateBackup(ctx, opts, python.Stamp)
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("only the database is slow", func(t *testing.T) {
		require.NoError(t, os.Remove(name))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		opts := s.Options
		opts.Clock = backuptest.Noon // it stands still, so that no report is dropped
		opts.OnProgress = func(p backup.Progress) {
			if p.Path == "zzz" || p.Path == backuptest.DBFile && p.Phase == backup.PhaseValidateFiles {
				cancel()
			}
		}
		_, err := validateInTime(t, ctx, opts, s.Stamp)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// validateInTime fails the test if the call does not end soon after its context, or
// takes as long as the check of the slow database.
func validateInTime(t *testing.T, ctx context.Context, opts backup.Options, stamp string) (report *backup.Report, err error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		report, err = backup.ValidateBackup(ctx, opts, stamp)
	}()
	select {
	case <-done:
		return report, err
	case <-ctx.Done():
	case <-time.After(validationTimeout):
	}
	select {
	case <-done:
	case <-time.After(validationTimeout):
		require.FailNow(t, "it does not end with its context")
	}
	return report, err
}

// slowDatabase makes the check of the database copy take at least 15 seconds:
// computing each key of an index goes through some megabytes.
func slowDatabase(t *testing.T, s *backuptest.Snapshot) {
	t.Helper()
	s.InDatabase(func(db *sql.DB) {
		_, err := db.Exec(`CREATE TABLE slow (id INTEGER PRIMARY KEY);
			WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
			INSERT INTO slow SELECT i FROM n;
			CREATE INDEX slow_id ON slow (id + 0);
			PRAGMA writable_schema = on;
			UPDATE sqlite_schema SET sql = replace(sql, 'id + 0', 'id + 0 * length(hex(zeroblob(1000000 + id)))')
			WHERE name = 'slow_id'`)
		require.NoError(t, err)
	})
}

// A panic of the host is returned as an error, and the check of the database ends.
func TestValidateSurvivesAPanickingHost(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	slowDatabase(t, s)
	files := int64(len(s.Files()))
	for when, reached := range map[string]func(p backup.Progress) bool{
		"database":     func(p backup.Progress) bool { return p.Phase == backup.PhaseValidateDatabase },
		"files":        func(p backup.Progress) bool { return p.Phase == backup.PhaseValidateFiles },
		"almost done":  func(p backup.Progress) bool { return p.Files == files-1 },
		"between both": func(p backup.Progress) bool { return p.Files == 1 },
	} {
		for name, value := range map[string]any{"string": "ouch", "error": fs.ErrClosed, "nil": nil} {
			t.Run(when+" "+name, func(t *testing.T) {
				opts := s.Options
				opts.Clock = backuptest.Noon // it stands still, so that no report is dropped
				opts.OnProgress = func(p backup.Progress) {
					if reached(p) {
						panic(value)
					}
				}
				descriptors := backuptest.OpenFiles(t)
				report, err := validateInTime(t, t.Context(), opts, s.Stamp)
				require.Equal(t, descriptors, backuptest.OpenFiles(t), "the check of the database has not ended")
				require.ErrorIs(t, err, backup.ErrPanic)
				require.NotErrorIs(t, err, backup.ErrInvalidBackup)
				require.Nil(t, report)
				if name == "error" {
					require.ErrorIs(t, err, fs.ErrClosed)
				}
			})
		}
	}
}

// Progress is reported for the database and for each file.
func TestValidateReportsProgress(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	opts := s.Options
	opts.Clock = backuptest.Noon // it stands still, so that no report is dropped
	var phases []backup.Phase
	var last backup.Progress
	opts.OnProgress = func(p backup.Progress) { // on one goroutine, or the race detector complains
		if !slices.Contains(phases, p.Phase) {
			phases = append(phases, p.Phase)
		}
		if p.Phase == backup.PhaseValidateFiles {
			require.GreaterOrEqual(t, p.Files, last.Files)
			require.GreaterOrEqual(t, p.Bytes, last.Bytes)
			last = p
		}
	}
	_, err := backup.ValidateBackup(t.Context(), opts, s.Stamp)
	require.NoError(t, err)
	require.ElementsMatch(t, []backup.Phase{backup.PhaseValidateDatabase, backup.PhaseValidateFiles}, phases)
	require.EqualValues(t, len(s.Files()), last.Files)
	var size int64
	for _, name := range s.Files() {
		size += int64(len(s.Read(name)))
	}
	require.Equal(t, size, last.Bytes)
}

// However a call ends, no goroutine and no descriptor of it is left.
func TestValidateLeavesNothingOpen(t *testing.T) {
	sound := backuptest.NewSnapshot(t)
	damaged := sound.Copy(t)
	damaged.Remove("chroma")
	damaged.Flip(backuptest.DBFile, 5000)
	hostile := sound.Copy(t)
	hostile.Write(backuptest.MetadataFile, []byte("["))
	python := sound.Copy(t)
	python.MakePython()
	panicking := sound.Copy(t)
	panicking.Clock = backuptest.Noon // it stands still, so that no report is dropped
	panicking.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseValidateFiles && p.Files > 2 {
			panic("ouch")
		}
	}
	missing := sound.Copy(t)
	missing.Stamp = "missing"
	all := func() {
		for _, s := range []*backuptest.Snapshot{sound, damaged, hostile, python, panicking, missing} {
			_, _ = backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
			_, _ = backup.ListRuntimeBackups(t.Context(), s.Options)
			ctx, cancel := context.WithCancel(t.Context())
			opts := s.Options
			opts.Clock = backuptest.Noon
			opts.OnProgress = func(p backup.Progress) {
				if p.Files > 1 {
					cancel()
				}
			}
			_, _ = backup.ValidateBackup(ctx, opts, s.Stamp)
			cancel()
		}
	}
	all()
	descriptors := backuptest.OpenFiles(t)
	routines := runtime.NumGoroutine()
	for range 10 {
		all()
	}
	require.Equal(t, descriptors, backuptest.OpenFiles(t))
	// A goroutine may take a moment to end.
	for timeout := time.After(time.Minute); runtime.NumGoroutine() > routines; {
		select {
		case <-time.After(time.Millisecond):
		case <-timeout:
			require.FailNow(t, "goroutines are left")
		}
	}
}

// Several calls for one snapshot may run at the same time.
func TestValidateAtOnce(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			_, err := backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
			errs <- err
		}()
	}
	for range cap(errs) {
		require.NoError(t, <-errs)
	}
}

// Nothing is written, so the disk may be read-only.
func TestValidateOnAReadOnlyDisk(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	for _, form := range []string{"format 1", "Python", "Python in WAL form"} {
		t.Run(form, func(t *testing.T) {
			s := base.Copy(t)
			if strings.HasPrefix(form, "Python") {
				s.MakePython()
			}
			if form == "Python in WAL form" {
				s.SetJournalForm(2)
			}
			target := t.TempDir()
			backuptest.MountReadOnly(t, s.BackupDir, target)
			s.BackupDir = target
			require.ErrorIs(t, os.WriteFile(s.Path("x"), nil, 0o600), syscall.EROFS)
			s.RequireProblems()
		})
	}
}

// A mount point in a snapshot is reported and not entered.
func TestValidateEntersNoMountPoint(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	for _, dir := range []string{"db", "chroma", "chroma/empty", "other"} {
		t.Run(dir, func(t *testing.T) {
			s := base.Copy(t)
			require.NoError(t, os.MkdirAll(s.Path(dir), 0o755))
			backuptest.MountTmpfs(t, s.Path(dir), "")
			require.NoError(t, os.WriteFile(s.Path(dir+"/x"), nil, 0o600))
			require.Contains(t, backuptest.Brief(s.Validate().Problems), "file_not_regular: "+dir)
		})
	}
}
