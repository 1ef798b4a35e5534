package restore

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A journal lies among backups, which may come from anywhere, so one that names
// other paths than the options is not acted on.
func TestJournalOfOtherPaths(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	c := backuptest.Start(t, "call", s.Dir, "restore", stamp, "verify")
	require.Equal(t, "at verify", c.Hear())
	c.Kill()
	other := s.Options
	other.DatabasePath = filepath.Join(s.Dir, "other.db")
	backuptest.MakeDatabase(t, other.DatabasePath)
	before := backuptest.ReadTree(t, filepath.Dir(s.DatabasePath))
	_, err := backup.RestoreRuntimeBackup(context.Background(), other, stamp)
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	require.ErrorContains(t, err, s.DatabasePath)
	require.Equal(t, before, backuptest.ReadTree(t, filepath.Dir(s.DatabasePath)))

	r := s.Restore(stamp)
	require.Equal(t, "undone", r.Recovered)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// A journal that cannot be read as one is reported by every call and left alone.
func TestUnreadableJournals(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"rubbish":    "rubbish\n",
		"no object":  "[]\n",
		"no fields":  "{}\n",
		"binary":     "\x00\x01\n",
		"large":      string(make([]byte, 1<<20)),
		"later form": `{"version":2,"id":"0123456789abcdef","stamp":"x","db_path":"/x","registry_path":"","chroma_path":"","had_db":true,"had_registry":false,"had_chroma":false,"set_aside":false,"chroma_mode":0,"chroma_mtime_ns":0}` + "\n",
		"hostile id": `{"version":1,"id":"../../x","stamp":"x","db_path":"/x","registry_path":"","chroma_path":"","had_db":true,"had_registry":false,"had_chroma":false,"set_aside":false,"chroma_mode":0,"chroma_mtime_ns":0}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			s, stamp := newStore(t)
			journal := journalOf(s)
			require.NoError(t, os.WriteFile(journal, []byte(text), 0o600))
			for _, call := range []string{"create", "list", "validate", "restore", "prune"} {
				require.ErrorIs(t, callByName(s.Options, call, stamp), backup.ErrRestoreUnfinished, call)
			}
			require.Equal(t, "old", generationOf(t, s.Options))
			require.NoError(t, os.Remove(journal))
		})
	}
	t.Run("begun and never written", func(t *testing.T) {
		s, stamp := newStore(t)
		require.NoError(t, os.WriteFile(journalOf(s), []byte(`{"version":1,"id":`), 0o600))
		s.Restore(stamp)
		require.Equal(t, "new", generationOf(t, s.Options))
	})
}
