package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// latest means the same for validate as for restore and drill.
func TestValidateLatest(t *testing.T) {
	s := newStore(t)
	good, _ := s.create(t)
	bad, dir := s.create(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "surplus"), nil, 0o600))
	validate := func() outcome { return atocore(t, "validate", "latest", "--backup-dir", s.backups) }
	o := validate()
	require.Equal(t, exitInvalid, o.code)
	require.Equal(t, bad, decode[report](t, o).Stamp)
	o = validate() // and it passes over what was found not to be valid
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, good, decode[report](t, o).Stamp)
	require.Contains(t, o.stderr, "passed over: "+bad)
}

// All snapshots are validated, of all stores, even if one of them is not valid or
// cannot be checked.
func TestValidateAll(t *testing.T) {
	s, other := newStore(t), newStore(t)
	other.backups = s.backups
	bad, dir := s.create(t)
	good, _ := s.create(t)
	others, _ := other.create(t)
	validate := func() ([]report, outcome) {
		o := atocore(t, "validate", "--all", "--backup-dir", s.backups)
		return decode[[]report](t, o), o
	}
	reports, o := validate()
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Len(t, reports, 3)
	require.Contains(t, o.stderr, "3 of 3 snapshots are valid.\n")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "surplus"), nil, 0o600))
	reports, o = validate()
	require.Equal(t, exitInvalid, o.code)
	require.Equal(t, []string{bad, good, others}, []string{reports[0].Stamp, reports[1].Stamp, reports[2].Stamp})
	require.False(t, reports[0].Valid)
	require.True(t, reports[1].Valid)
	require.True(t, reports[2].Valid)
	require.Contains(t, o.stderr, "  file_unknown: surplus\n")
	require.Contains(t, o.stderr, "2 of 3 snapshots are valid.\n")
	require.False(t, *s.verified(t, bad).Verified, "the verdict is recorded")
}
