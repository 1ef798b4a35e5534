package backup_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() { roles["many databases"] = roleManyDatabases }

// A restore in the process that has made the snapshot leaves no removed file open:
// its space would not be free.
func TestRestoreFreesTheOldDatabase(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			s := backuptest.NewStore(t)
			host := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode("+mode+")")
			require.NoError(t, host.Ping())
			m := s.Create()
			require.NoError(t, host.Close())
			s.Create()
			for range 2 {
				s.Restore(m.Stamp)
				for _, file := range backuptest.OpenFiles(t) {
					require.False(t, strings.HasPrefix(file, s.Dir) && strings.HasSuffix(file, "(deleted)"), file)
				}
			}
			host = backuptest.OpenDB(t, s.DatabasePath)
			backuptest.RequireBalanced(t, host)
		})
	}
}

// roleManyDatabases lowers the limit for open files to args[1], backs up each
// database in the directory args[0], and says how many files are open then. After
// that it says whether a hard link to one of them is refused.
func roleManyDatabases(p *backuptest.Parent, args []string) error {
	limit, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
		return err
	}
	databases, err := filepath.Glob(filepath.Join(args[0], "*.db"))
	if err != nil {
		return err
	}
	for _, path := range databases {
		opts := backup.Options{DatabasePath: path, BackupDir: path + "-backups"}
		m, err := backup.CreateRuntimeBackup(context.Background(), opts)
		if err != nil {
			return err
		}
		if _, err := backup.ValidateBackup(context.Background(), opts, m.Stamp); err != nil {
			return err
		}
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	p.Say(fmt.Sprint(len(databases), " databases, ", len(open), " files"))
	link := filepath.Join(args[0], "link")
	if err := os.Link(databases[len(databases)-1], link); err != nil {
		return err
	}
	_, err = backup.CreateRuntimeBackup(context.Background(), backup.Options{DatabasePath: link, BackupDir: link + "-backups"})
	p.Say(fmt.Sprint(errors.Is(err, backup.ErrSourceInvalid)))
	return nil
}

// A host of many databases can back up each, and keeps most of its descriptors.
func TestManyDatabases(t *testing.T) {
	const databases, limit = 200, 64
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			dir := t.TempDir()
			model := filepath.Join(t.TempDir(), "model.db")
			backuptest.MakeDatabase(t, model, "_pragma=journal_mode("+mode+")")
			data, err := os.ReadFile(model)
			require.NoError(t, err)
			for i := range databases {
				require.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i, ".db")), data, 0o600))
			}
			child := backuptest.Start(t, "many databases", dir, fmt.Sprint(limit))
			var done, open int
			_, err = fmt.Sscanf(child.Hear(), "%d databases, %d files", &done, &open)
			require.NoError(t, err)
			require.Equal(t, databases, done)
			require.LessOrEqual(t, open, 20)
			require.Equal(t, fmt.Sprint(mode == "wal"), child.Hear(), "another name of a database in WAL mode")
			child.Wait()
		})
	}
}
