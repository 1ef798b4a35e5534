package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// hoursAgo returns a time that many hours and a minute ago, so that a test may
// last.
func hoursAgo(hours int) time.Time {
	return backup.SystemClock().Now().Add(-time.Duration(hours)*time.Hour - time.Minute)
}

func (s store) status(t *testing.T, args ...string) (statusResult, outcome) {
	t.Helper()
	o := atocore(t, append([]string{"status", "--backup-dir", s.backups}, args...)...)
	return decode[statusResult](t, o), o
}

// Snapshots that are too old, or not known to be good, fail a monitor, and the
// message says which limit they exceed.
func TestStatusLimits(t *testing.T) {
	s := newStore(t)
	old := s.createAt(t, hoursAgo(9*24))
	require.Equal(t, exitDone, atocore(t, "validate", "--backup-dir", s.backups, old).code)
	newest := s.createAt(t, hoursAgo(27))
	for _, test := range []struct {
		args   []string
		faults []string
	}{
		{nil, []string{}},
		{[]string{"--max-age", "28h"}, []string{}},
		{[]string{"--max-age", "2d"}, []string{}},
		{[]string{"--max-age", "26h"}, []string{"The newest snapshot, " + newest + ", is 27h old, more than 26h0m0s."}},
		{[]string{"--max-unverified", "10d"}, []string{}},
		{[]string{"--max-unverified", "8d"}, []string{"The newest snapshot that was found valid, " + old + ", is 9d old, more than 8 days."}},
		{[]string{"--max-unverified", "8d", "--max-age", "1d"}, []string{
			"The newest snapshot, " + newest + ", is 27h old, more than 1 day.",
			"The newest snapshot that was found valid, " + old + ", is 9d old, more than 8 days.",
		}},
	} {
		r, o := s.status(t, test.args...)
		require.Equal(t, test.faults, r.Faults, test.args)
		require.Equal(t, len(test.faults) == 0, r.OK)
		require.Equal(t, newest, r.Newest.Stamp)
		require.Equal(t, old, r.LastVerified.Stamp)
		want, messages := exitDone, ""
		for _, fault := range test.faults {
			want, messages = exitInvalid, messages+fault+"\n"
		}
		require.Equal(t, want, o.code)
		require.Equal(t, messages, o.stderr)
	}
}

// The newest snapshot that is good counts; a bad one is a fault, and those that are
// dated in the future or unreadable hide no age.
func TestStatusCounts(t *testing.T) {
	s := newStore(t)
	good := s.createAt(t, hoursAgo(30))
	bad := s.createAt(t, hoursAgo(2))
	s.createAt(t, hoursAgo(-48))
	require.NoError(t, os.Mkdir(filepath.Join(s.backups, "snapshots", "unreadable"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(s.backups, "snapshots", bad, "surplus"), nil, 0o600))
	r, _ := s.status(t, "--max-age=3h")
	require.True(t, r.OK)
	require.Equal(t, bad, r.Newest.Stamp, "nothing is known about it")
	require.Nil(t, r.LastVerified)
	require.Equal(t, 3, r.Count)
	require.Equal(t, 1, r.Unreadable)
	require.Positive(t, r.Bytes)
	require.Zero(t, *r.GrowthBytes)
	require.Nil(t, r.NextRemoved)

	require.Equal(t, exitInvalid, atocore(t, "validate", "--backup-dir", s.backups, bad).code)
	r, o := s.status(t, "--max-age=3h")
	require.Equal(t, exitInvalid, o.code)
	require.Equal(t, good, r.Newest.Stamp)
	require.Equal(t, []string{
		"The newest snapshot, " + bad + ", was not valid when it was last checked.",
		"The newest snapshot, " + good + ", is 30h old, more than 3h0m0s.",
	}, r.Faults)
	r, _ = s.status(t, "--max-unverified=1d")
	require.Contains(t, r.Faults, "No snapshot is known to be valid.")
}

// With the rules of a prune, status says what that would remove, and removes
// nothing.
func TestStatusBeforeAPrune(t *testing.T) {
	s := newStore(t)
	var stamps []string
	for i := range 5 {
		stamps = append(stamps, s.createAt(t, hoursAgo(10-i)))
	}
	r, _ := s.status(t, "--keep-last=2")
	require.Equal(t, stamps[:3], r.NextRemoved)
	r, _ = s.status(t, "--keep-last=5")
	require.Equal(t, []string{}, r.NextRemoved)
	require.Len(t, s.stamps(t), 5)
}

// Another store in the same directory does not count.
func TestStatusOfOneStore(t *testing.T) {
	mine, other := newStore(t), newStore(t)
	other.backups = mine.backups
	stamp := mine.createAt(t, hoursAgo(50))
	other.createAt(t, hoursAgo(1))
	r, o := mine.status(t, "--db", mine.db, "--max-age=1d")
	require.Equal(t, exitInvalid, o.code)
	require.Equal(t, stamp, r.Newest.Stamp)
	require.Equal(t, 1, r.Count)
	o = atocore(t, "status", "--backup-dir", mine.backups)
	o.requireFailed(t, "several stores", "--db")
}
