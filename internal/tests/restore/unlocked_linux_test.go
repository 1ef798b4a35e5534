package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// A database that cannot be read when a restore begins cannot be locked, so its
// WAL is not moved into it. If it can be read when that restore is undone, its WAL
// must be beside it again: it has the last commits.
func TestUndoBringsTheWALBack(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	for _, line := range []string{"begin db", "out db"} {
		for _, undoAgain := range []bool{false, true} {
			s := copyStore(t, template.Dir)
			wal, err := os.ReadFile(s.DatabasePath + "-wal")
			require.NoError(t, err)
			require.NotEmpty(t, wal)
			cut := tracer
			cut.path, cut.failing = journalOf(s), s.DatabasePath+"-wal"
			_, hit, _ := cut.run(t, "pwrite64", fmt.Sprintf("signal=SIGKILL:when=%d", slices.Index(journalLines, line)+2), s.Dir, stamp)
			require.True(t, hit)
			lines := linesOf(t, s)
			require.Equal(t, []string{"keep-old", line}, []string{lines[0], lines[len(lines)-1]})
			moved, err := os.ReadFile(filepath.Join(stagingOf(t, s, "db"), "old", "atocore.db-wal"))
			require.NoError(t, err)
			require.Equal(t, wal, moved)
			if undoAgain { // and is killed when the database is back and its WAL is not
				kill := tracer
				kill.path = filepath.Join(stagingOf(t, s, "db"), "old")
				_, hit, _ := kill.run(t, "renameat2", "signal=SIGKILL:when=1", s.Dir, "none")
				require.True(t, hit)
				require.FileExists(t, filepath.Join(kill.path, "atocore.db-wal"))
			}
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, "undone", r.Recovered)
			require.Equal(t, "old", generationOf(t, s.Options))
			require.Empty(t, r.SetAside)
			s.RequireNoRemains()
		}
	}
}

// The disk cannot read the header of the live database. A dying disk is why people
// restore: the database is set aside whole.
func TestRestoreOverADatabaseWithAnUnreadableHeader(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	s, stamp := newStore(t)
	live, err := os.ReadFile(s.DatabasePath)
	require.NoError(t, err)
	tracer.path = s.DatabasePath
	// Only SQLite's first read: one comes before it, for the names of the
	// database, and later ones are of the new database, by the same path.
	text, hit, err := tracer.run(t, "pread64", "error=EIO:when=1..2", s.Dir, stamp)
	require.True(t, hit)
	require.NoError(t, err, text)
	require.Equal(t, "new", generationOf(t, s.Options))
	aside, err := filepath.Glob(filepath.Join(s.DatabasePath+".set-aside-*", "atocore.db"))
	require.NoError(t, err)
	require.Len(t, aside, 1)
	kept, err := os.ReadFile(aside[0])
	require.NoError(t, err)
	require.Equal(t, live, kept)
	require.FileExists(t, aside[0]+"-wal")
}
