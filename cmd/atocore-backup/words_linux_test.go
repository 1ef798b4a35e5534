package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

// A failure says what is wrong and what to do, in the words of the command line.
func TestFailuresSayWhatToDo(t *testing.T) {
	create := []string{"create"}
	for _, tt := range []struct {
		name   string
		args   []string
		change func(t *testing.T, s *store)
		words  []string
	}{
		{"WAL on a read-only mount", create, func(t *testing.T, s *store) {
			dir := t.TempDir()
			backuptest.MountReadOnly(t, filepath.Dir(s.db), dir)
			s.db = filepath.Join(dir, filepath.Base(s.db))
		}, []string{"unable to open database file", "WAL mode", "mount the directory writable"}},
		{"encrypted", create, func(t *testing.T, s *store) {
			require.NoError(t, os.WriteFile(s.db, bytes.Repeat([]byte("secret!!"), 1024), 0o600))
		}, []string{"file is not a database", "it is encrypted"}},
		{"link", create, func(t *testing.T, s *store) {
			require.NoError(t, os.Mkdir(s.backups, 0o700))
			require.NoError(t, os.Symlink(t.TempDir(), filepath.Join(s.backups, "snapshots")))
		}, []string{"it is a symbolic link", "make the backup directory itself the link"}},
		{"backups in Chroma", append(create, "--include-chroma"), func(t *testing.T, s *store) {
			require.NoError(t, os.Symlink(s.chroma, s.backups))
		}, []string{"the backup directory ", " lies inside the Chroma directory "}},
		{"immutable database", []string{"restore", "--yes", "latest"}, func(t *testing.T, s *store) {
			s.create(t)
			backuptest.SetAttribute(t, s.db, unix.STATX_ATTR_IMMUTABLE)
		}, []string{"it has the attribute immutable (chattr -i takes that away)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			require.NoError(t, s.live.Close())
			tt.change(t, &s)
			o := atocore(t, append(tt.args, s.flags()...)...)
			require.Equal(t, exitFailed, o.code, o.stderr)
			for _, words := range tt.words {
				require.Contains(t, o.stderr, words)
			}
		})
	}
}

// A part that is not there is named.
func TestCreateNamesMissingParts(t *testing.T) {
	s := newStore(t)
	require.NoError(t, os.Remove(s.registry))
	require.NoError(t, os.RemoveAll(s.chroma))
	o := atocore(t, append([]string{"create", "--include-chroma"}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Contains(t, o.stderr, "There is no registry "+s.registry+"; the snapshot does not include it.\n")
	require.Contains(t, o.stderr, "There is no Chroma directory "+s.chroma+"; the snapshot does not include it.\n")
	s.registry = ""
	o = atocore(t, append([]string{"create"}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.NotContains(t, o.stderr, "There is no")
}
