package sqlitedb

import (
	"bytes"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/fsat"
)

const insert = "INSERT INTO t VALUES (randomblob(20000))"

// readFiles returns the content of a database and of the WAL and the journal
// beside it, by suffix. A file that is missing is nil.
func readFiles(t *testing.T, path string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	for _, suffix := range []string{"", "-wal", "-journal"} {
		data, err := os.ReadFile(path + suffix)
		if !errors.Is(err, os.ErrNotExist) {
			require.NoError(t, err)
			files[suffix] = data
		}
	}
	return files
}

// requireFiles checks that the files of a database are as they were, but for
// those with one of the suffixes in except.
func requireFiles(t *testing.T, want map[string][]byte, path string, except ...string) {
	t.Helper()
	got := readFiles(t, path)
	for _, suffix := range []string{"", "-wal", "-journal"} {
		if slices.Contains(except, suffix) {
			continue
		}
		require.Equal(t, want[suffix] == nil, got[suffix] == nil, "%s came or went", suffix)
		require.True(t, bytes.Equal(want[suffix], got[suffix]), "%s was written to", filepath.Base(path)+suffix)
	}
}

// copyOf makes a sealed copy of the database and returns its path.
func copyOf(t *testing.T, c *Capture) string {
	t.Helper()
	dir, err := fsat.OpenDir(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	into, err := fsat.OpenDir(t.TempDir())
	require.NoError(t, err)
	defer into.Close()
	made, err := c.CopyTo(t.Context(), dir)
	require.NoError(t, err)
	defer made.Discard()
	require.NoError(t, c.Close())
	_, err = made.Seal(t.Context(), dir, into, "copy.db")
	require.NoError(t, err)
	return filepath.Join(into.Path(), "copy.db")
}

func number(t *testing.T, path, query string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", URI(path, "ro", "immutable=1"))
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, db.QueryRow(query).Scan(&n))
	return n
}

// execute executes statements in the database at path, and closes it.
func execute(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", URI(path, "rw"))
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	for _, statement := range statements {
		_, err := db.Exec(statement)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
}

// newClosed creates a database in a journal mode, which nobody has open and which
// has nothing beside it.
func newClosed(t *testing.T, mode string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.db")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	execute(t, path, "PRAGMA journal_mode="+mode, "CREATE TABLE t (x)", insert)
	return path
}
