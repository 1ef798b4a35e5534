package backup_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// whileCopying calls do once, while the database is being copied.
func whileCopying(s *backuptest.Store, do func()) {
	once := false
	s.Clock = backuptest.Noon // it stands still, so that no report is dropped
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseDatabase && p.Bytes > 0 && !once {
			once = true
			do()
		}
	}
	s.T.Cleanup(func() { require.True(s.T, once, "it was not copied in pieces") })
}

// bulky makes the database larger than one piece of a copy.
func bulky(t *testing.T, path string) {
	t.Helper()
	db := backuptest.OpenDB(t, path)
	_, err := db.Exec("CREATE TABLE bulk (pad BLOB); INSERT INTO bulk VALUES (zeroblob(6000000)); INSERT INTO bulk VALUES (randomblob(6000000))")
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

// A database without a WAL is hashed while it is copied. If a commit gets into the
// copy by a WAL that appeared meanwhile, the hash is that of another file, and is
// not used.
func TestCommitWhileTheCopyIsHashed(t *testing.T) {
	s := backuptest.NewStore(t)
	s.IncludeChroma = false
	bulky(t, s.DatabasePath)
	writer := backuptest.OpenDB(t, s.DatabasePath)
	whileCopying(s, func() { require.NoError(t, backuptest.Transfer(context.Background(), writer, 1, 2, 3)) })
	meta := s.Create() // which is validated when the test ends
	require.Equal(t, 1, backuptest.CountTransfers(t, meta.DBSnapshotPath), "the commit is not in the copy")
}

// A database that somebody cuts short while it is copied is refused: by the size
// that SQLite said, and by the size in its header. Databases of SQLite before 3.7
// have none there.
func TestDatabaseIsCutShort(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the online backup reads through SQLite, which notices")
	}
	for _, mode := range []string{"delete", "wal"} {
		for _, old := range []bool{false, true} {
			t.Run(fmt.Sprint(mode, " old=", old), func(t *testing.T) {
				if old && mode == "wal" {
					t.Skip("there was no WAL then")
				}
				s := backuptest.NewStore(t)
				s.IncludeChroma = false
				s.DatabasePath = filepath.Join(s.Dir, "cut.db")
				backuptest.MakeDatabase(t, s.DatabasePath, "_pragma=journal_mode("+mode+")")
				bulky(t, s.DatabasePath)
				if old {
					data, err := os.ReadFile(s.DatabasePath)
					require.NoError(t, err)
					binary.BigEndian.PutUint32(data[92:], 0) // the change for which the size counts
					require.NoError(t, os.WriteFile(s.DatabasePath, data, 0o600))
				}
				whileCopying(s, func() { require.NoError(t, os.Truncate(s.DatabasePath, 9<<20)) })
				require.ErrorIs(t, s.CreateFails(), backup.ErrSourceInvalid)
			})
		}
	}
}
