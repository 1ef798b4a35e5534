package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The superuser is told to whom what was restored belongs, if that is not root.
func TestRestoreSaysWhoOwnsTheStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can change owners")
	}
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)
	require.NoError(t, os.Chown(s.db, 1234, 4321))
	require.NoError(t, os.Chown(s.chroma, 1234, 4321))
	o := s.restore(t, "--yes", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Contains(t, o.stderr, "What was restored of the database "+s.db+" belongs to 1234:4321 (user:group).")
	require.Contains(t, o.stderr, "the Chroma directory "+s.chroma+" belongs to 0:0, 1234:4321 (user:group).")
	require.NotContains(t, o.stderr, "the registry "+s.registry+" belongs")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(s.db, &st))
	require.EqualValues(t, 1234, st.Uid)
}
