package backup_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// capturing creates a store whose database is in memory. Options.Capture writes
// it by VACUUM INTO, as a host would do with a driver of its own, and then calls
// after, which may be nil, with the path of the copy.
func capturing(t *testing.T, after func(path string) error) *backuptest.Store {
	s := memoryStore(t)
	db := s.DB
	s.DB = nil
	s.Capture = func(ctx context.Context, path string) error {
		_, err := db.ExecContext(ctx, "VACUUM INTO ?", path)
		if err == nil && after != nil {
			err = after(path)
		}
		return err
	}
	return s
}

// The host writes the copy by itself, under the guard, and DatabasePath is only a
// name, whatever is there.
func TestCapture(t *testing.T) {
	t.Parallel()
	for name, place := range map[string]func(path string) error{
		"nothing there": func(string) error { return nil },
		"another file":  func(path string) error { return os.WriteFile(path, []byte("of the driver's own format"), 0o600) },
		"a directory":   func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			s := capturing(t, nil)
			require.NoError(t, place(s.DatabasePath))
			var guard backuptest.Guard
			s.Locker = &guard
			type key struct{}
			write := s.Capture
			calls := 0
			s.Capture = func(ctx context.Context, path string) error {
				calls++
				require.Equal(t, "mine", ctx.Value(key{}))
				require.True(t, filepath.IsAbs(path))
				require.NoFileExists(t, path)
				require.True(t, guard.Held)
				return write(ctx, path)
			}
			meta, err := backup.CreateRuntimeBackup(context.WithValue(t.Context(), key{}, "mine"), s.Options)
			require.NoError(t, err)
			require.Equal(t, 1, calls)
			guard.RequireReleased(t)
			require.Equal(t, filepath.Base(s.DatabasePath), filepath.Base(meta.DBSnapshotPath))
			backuptest.RequireSound(t, meta.DBSnapshotPath)
			info, err := os.Stat(meta.DBSnapshotPath)
			require.NoError(t, err)
			if runtime.GOOS != "windows" {
				require.Equal(t, os.FileMode(0o600), info.Mode())
			}
		})
	}
}

// beside writes a file beside the copy.
func beside(suffix string, data []byte) func(path string) error {
	return func(path string) error { return os.WriteFile(path+suffix, data, 0o600) }
}

// instead writes something else in the place of the copy.
func instead(do func(path string) error) func(path string) error {
	return func(path string) error {
		if err := os.Remove(path); err != nil {
			return err
		}
		return do(path)
	}
}

// execIn creates a database at path, and runs statements in it.
func execIn(path, statements string) error {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.Exec(statements)
	return err
}

// What is not a copy is refused, in words that say why, and nothing is made.
func TestCaptureThatWritesNoCopy(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		after func(path string) error
		words string
	}{
		{"nothing", os.Remove, "nothing was written"},
		{"an empty file", instead(func(path string) error { return os.WriteFile(path, nil, 0o600) }), "it is empty"},
		{"an encrypted file", instead(func(path string) error { return os.WriteFile(path, make([]byte, 8192), 0o600) }), "without a key"},
		{"a file shorter than a header", instead(func(path string) error { return os.WriteFile(path, []byte("SQLite format 3\x00"), 0o600) }), "without a key"},
		{"an encrypted file with a plain header", func(path string) error {
			return overwriteAt(path, 32, make([]byte, 8192))
		}, "could not be validated"},
		{"half a copy", func(path string) error { return os.Truncate(path, 4096) }, ""},
		{"a database without a table", instead(func(path string) error { return execIn(path, "PRAGMA user_version=7") }), "no table"},
		{"a directory", instead(func(path string) error { return os.Mkdir(path, 0o700) }), "not a regular file"},
		{"a journal", beside("-journal", []byte("\xd9\xd5\x05\xf9 and so on")), "not committed"},
		{"something for a WAL", beside("-wal", []byte("something else")), "not a WAL"},
		{"an encrypted WAL", beside("-wal", make([]byte, 8192)), "not a WAL"},
		{"another file beside it", beside("-info", []byte("{}")), "must be one file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := capturing(t, tt.after).CreateFails()
			require.ErrorIs(t, err, backup.ErrSourceInvalid)
			require.ErrorContains(t, err, tt.words)
		})
	}
}

// overwriteAt writes data over a file from an offset on.
func overwriteAt(path string, off int64, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(data, off)
	return err
}

// What SQLite leaves beside a copy that is complete is no reason to refuse it, and
// what is in a WAL is not lost.
func TestCaptureWithSidecars(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		after     func(path string) error
		transfers int
	}{
		{"empty ones", func(path string) error {
			return errors.Join(beside("-wal", nil)(path), beside("-journal", nil)(path))
		}, 0},
		{"a journal after its commit", beside("-journal", make([]byte, 512)), 0},
		{"a -shm", beside("-shm", make([]byte, 32768)), 0},
		{"a WAL", func(path string) error {
			live := path + ".live"
			if err := os.Rename(path, live); err != nil {
				return err
			}
			db, err := backuptest.Open(live, "_pragma=journal_mode(wal)", "_pragma=wal_autocheckpoint(0)")
			if err != nil {
				return err
			}
			defer db.Close()
			for range 3 {
				if err := backuptest.Transfer(context.Background(), db, 1, 2, 5); err != nil {
					return err
				}
			}
			for _, suffix := range []string{"", "-wal"} {
				data, err := os.ReadFile(live + suffix)
				if err == nil {
					err = os.WriteFile(path+suffix, data, 0o644)
				}
				if err != nil {
					return err
				}
			}
			db.Close()
			return os.Remove(live)
		}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := capturing(t, tt.after)
			meta := s.Create()
			backuptest.RequireSound(t, meta.DBSnapshotPath)
			require.Equal(t, tt.transfers, backuptest.CountTransfers(t, meta.DBSnapshotPath))
			files, err := filepath.Glob(filepath.Join(filepath.Dir(meta.DBSnapshotPath), "*"))
			require.NoError(t, err)
			require.Equal(t, []string{meta.DBSnapshotPath}, files)
		})
	}
}

// A copy that is a link would make the live database part of the snapshot: its
// locks would be dropped, and its form changed.
func TestCaptureOfALinkIsRefused(t *testing.T) {
	t.Parallel()
	for name, link := range map[string]func(old, new string) error{"hard link": os.Link, "symbolic link": os.Symlink} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			s.Capture = func(_ context.Context, path string) error { return link(s.DatabasePath, path) }
			before, err := os.ReadFile(s.DatabasePath)
			require.NoError(t, err)
			require.ErrorIs(t, s.CreateFails(), backup.ErrSourceInvalid)
			after, err := os.ReadFile(s.DatabasePath)
			require.NoError(t, err)
			require.Equal(t, before, after)
		})
	}
}

// A copy that is still open could be written to after it was hashed.
func TestCaptureThatIsStillOpenIsRefused(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("what this process has open is known on Linux only")
	}
	s := capturing(t, func(path string) error {
		f, err := os.Open(path)
		if err == nil {
			t.Cleanup(func() { f.Close() })
		}
		return err
	})
	err := s.CreateFails()
	require.ErrorIs(t, err, backup.ErrSourceInvalid)
	require.ErrorContains(t, err, "still open")
}

// However Capture ends, its error is returned and nothing is left.
func TestCaptureThatFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("the driver failed")
	var end context.CancelFunc
	for _, tt := range []struct {
		name  string
		after func(path string) error
		want  error
	}{
		{"error", func(string) error { return broken }, broken},
		{"error, nothing written", func(path string) error { return errors.Join(os.Remove(path), broken) }, broken},
		{"panic", func(string) error { panic(broken) }, broken},
		{"panic of no error", func(string) error { panic("enough") }, backup.ErrPanic},
		{"ctx ends, and Capture heeds it", func(string) error { end(); return context.Canceled }, context.Canceled},
		{"ctx ends, and Capture does not heed it", func(string) error { end(); return nil }, context.Canceled},
		{"ctx ends, and Capture stops without an error", func(path string) error { end(); return os.Remove(path) }, context.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := capturing(t, tt.after)
			var guard backuptest.Guard
			s.Locker = &guard
			var ctx context.Context
			ctx, end = context.WithCancel(t.Context())
			defer end()
			_, err := backup.CreateRuntimeBackup(ctx, s.Options)
			require.ErrorIs(t, err, tt.want)
			s.RequireNoSnapshot()
			guard.RequireReleased(t)
		})
	}
	t.Run("goroutine ends", func(t *testing.T) {
		s := capturing(t, func(string) error { runtime.Goexit(); return nil })
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = backup.CreateRuntimeBackup(t.Context(), s.Options)
		}()
		<-ended
		s.RequireNoSnapshot()
	})
}

func TestCaptureIsTheOnlyOne(t *testing.T) {
	t.Parallel()
	write := func(context.Context, string) error { panic("called") }
	for name, opts := range map[string]backup.Options{
		"with DB":           {DB: new(sql.DB), Capture: write},
		"with OnlineBackup": {OnlineBackup: true, Capture: write},
	} {
		t.Run(name, func(t *testing.T) {
			opts.DatabasePath, opts.BackupDir = "a.db", filepath.Join(t.TempDir(), "backups")
			_, err := backup.CreateRuntimeBackup(t.Context(), opts)
			require.ErrorIs(t, err, backup.ErrInvalidOptions)
			require.ErrorContains(t, err, "Capture")
			require.NoDirExists(t, opts.BackupDir)
		})
	}
}

// A restore that leaves the database alone has Capture write that of the safety
// snapshot: the host has it open.
func TestRestoreOfOtherPartsCallsCapture(t *testing.T) {
	t.Parallel()
	calls := 0
	s := capturing(t, func(string) error { calls++; return nil })
	stamp := s.Create().Stamp
	require.NoError(t, os.WriteFile(s.RegistryPath, []byte("{}"), 0o600))
	s.Parts = backup.PartRegistry
	result := s.Restore(stamp)
	require.Equal(t, 2, calls)
	backuptest.RequireSound(t, s.SnapshotPath(result.SafetyStamp, "db", filepath.Base(s.DatabasePath)))
	require.NoFileExists(t, s.DatabasePath)
}

// A restore of the database does not call Capture. It saves the database that is in DatabasePath
// by its own means, and sets aside what is there if it is no plain database.
func TestRestoreDoesNotCallCapture(t *testing.T) {
	t.Parallel()
	calls := 0
	s := capturing(t, func(string) error { calls++; return nil })
	stamp := s.Create().Stamp
	s.Restore(stamp) // nothing is at DatabasePath
	backuptest.RequireSound(t, s.DatabasePath)
	backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) {
		require.NoError(t, backuptest.Transfer(t.Context(), db, 1, 2, 5))
	})
	result := s.Restore(stamp)
	require.Equal(t, 1, backuptest.CountTransfers(t, s.SnapshotPath(result.SafetyStamp, "db", filepath.Base(s.DatabasePath))))
	require.Zero(t, backuptest.CountTransfers(t, s.DatabasePath))

	encrypted := []byte("what a driver has encrypted")
	require.NoError(t, os.WriteFile(s.DatabasePath, encrypted, 0o600))
	result = s.Restore(stamp)
	require.Empty(t, result.SafetyStamp)
	require.Len(t, result.SetAside, 1)
	kept, err := os.ReadFile(filepath.Join(result.SetAside[0], filepath.Base(s.DatabasePath)))
	require.NoError(t, err)
	require.Equal(t, encrypted, kept)
	require.Equal(t, 1, calls)
}
