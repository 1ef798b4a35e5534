package backup_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A database that its users open by another name is neither copied nor replaced.
func TestOtherNameIsRefused(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	s.IncludeChroma = false
	stamp := s.Create().Stamp
	link := filepath.Join(t.TempDir(), filepath.Base(s.DatabasePath))
	s.Must(os.Link(s.DatabasePath, link))
	service := backuptest.Start(t, "write", s.DatabasePath)
	require.Equal(t, "busy", service.Hear())

	opts := s.Options
	opts.DatabasePath, opts.FromOtherStore = link, true
	refused := func(want string) {
		t.Helper()
		for _, online := range []bool{false, true} {
			opts.OnlineBackup = online
			_, err := backup.CreateRuntimeBackup(t.Context(), opts)
			require.ErrorIs(t, err, backup.ErrSourceInvalid)
			require.ErrorContains(t, err, want)
		}
		_, err := backup.RestoreRuntimeBackup(t.Context(), opts, stamp)
		require.ErrorContains(t, err, want)
		require.NoFileExists(t, link+"-wal")
		require.Equal(t, []string{stamp}, s.Stamps())
	}
	refused("open by another name")
	s.Create() // by its own name
	s.RemoveAll(s.SnapshotPath(s.Stamps()[1]))
	service.Kill()
	refused("has 2 hard links")
}

// A host may have Chroma's database open as well, and keeps its locks on that, too.
func TestHostKeepsItsLocksOnChroma(t *testing.T) {
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			s := backuptest.NewSmallStore(t)
			path := s.InChroma("chroma.sqlite3")
			db := backuptest.OpenDB(t, path, "_pragma=journal_mode("+mode+")")
			conn, err := db.Conn(t.Context())
			require.NoError(t, err)
			defer conn.Close()
			_, err = conn.ExecContext(t.Context(), "BEGIN; SELECT count(*) FROM account")
			require.NoError(t, err)
			other := backuptest.Start(t, "try-lock", path)
			attempt := "BEGIN EXCLUSIVE; ROLLBACK"
			if mode == "wal" {
				attempt = "PRAGMA journal_mode=delete"
			}
			require.Equal(t, "refused", other.Ask(attempt), "before")
			locks, shm := backuptest.LocksOn(t, path), ""
			if mode == "wal" {
				shm = path + "-shm"
				require.NotEmpty(t, backuptest.LocksOn(t, shm))
			}
			for range 3 {
				s.Create()
				require.Equal(t, locks, backuptest.LocksOn(t, path))
				if shm != "" {
					require.NotEmpty(t, backuptest.LocksOn(t, shm))
				}
				require.Equal(t, "refused", other.Ask(attempt), "the host's locks are gone")
			}
		})
	}
}
