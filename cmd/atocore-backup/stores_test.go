package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two stores may share a backup directory. Each command looks at one of them, and
// asks for the database if none is given.
func TestTwoStores(t *testing.T) {
	sales := newStore(t)
	hr := newStore(t)
	hr.backups = sales.backups
	renamed := filepath.Join(filepath.Dir(hr.db), "hr.db")
	require.NoError(t, hr.live.Close())
	require.NoError(t, os.Rename(hr.db, renamed))
	hr.db = renamed
	first, _ := sales.create(t)
	second, _ := sales.create(t)
	hr.create(t)
	last, _ := hr.create(t)

	for _, args := range [][]string{{"prune", "--keep-last=1"}, {"drill"}, {"restore", "latest", "--into", t.TempDir()}} {
		o := atocore(t, append(args, "--backup-dir", sales.backups)...)
		o.requireFailed(t, "several stores", sales.db, hr.db, "--db")
	}
	o := atocore(t, append([]string{"prune", "--keep-last=2"}, hr.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Empty(t, decode[pruning](t, o).Removed)
	require.Contains(t, o.stderr, second+" (of another store: ")
	o = atocore(t, append([]string{"drill"}, sales.flags()...)...)
	require.Equal(t, second, decode[report](t, o).Stamp)
	o = atocore(t, append([]string{"drill"}, hr.flags()...)...)
	require.Equal(t, last, decode[report](t, o).Stamp)

	o = hr.restore(t, "--yes", first)
	o.requireFailed(t, "another store", sales.db, "--from-other-store")
	requireNotes(t, hr.db, "first")
	into := filepath.Join(t.TempDir(), "new")
	for range 2 { // a directory that the user names may have something in it
		o = hr.restore(t, "--yes", "--into", into, first)
		require.Equal(t, exitDone, o.code, o.stderr)
	}
	o = hr.restore(t, "--yes", "--from-other-store", first)
	require.Equal(t, exitDone, o.code, o.stderr)

	// The host is a part of what a store is.
	o = atocore(t, append([]string{"drill", "--host", "elsewhere"}, sales.flags()...)...)
	o.requireStatus(t, exitMissing, "no snapshot qualifies as the latest", "other stores", sales.db)
}

// latest says which snapshot it is, and what it is not.
func TestLatestWithoutChroma(t *testing.T) {
	s := newStore(t)
	with := s.snapshot(t)
	without, _ := s.create(t)
	require.NoError(t, s.live.Close())
	for _, path := range []string{s.db, s.registry, s.chroma} { // the disk is lost
		require.NoError(t, os.RemoveAll(path))
	}
	o := s.restore(t, "latest")
	require.Equal(t, exitFailed, o.code)
	require.Empty(t, o.stdout)
	require.Contains(t, o.stderr, "The newest snapshot that has one is "+with+".\n")
	require.Contains(t, o.stderr, "name the one that is to be restored, or give --yes")
	require.NoFileExists(t, s.db)

	o = s.restore(t, "--yes", "latest")
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, without, decode[restored](t, o).Stamp)
	require.Contains(t, o.stderr, with)
	require.NoDirExists(t, s.chroma)

	require.NoError(t, os.RemoveAll(s.db))
	require.NoError(t, os.RemoveAll(s.registry))
	o = s.restore(t, without) // the user knows
	require.Equal(t, exitDone, o.code, o.stderr)
	// Without --chroma nobody misses it.
	o = atocore(t, "restore", "latest", "--into", filepath.Join(t.TempDir(), "new"), "--backup-dir", s.backups)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.NotContains(t, o.stderr, "that has one")
}
