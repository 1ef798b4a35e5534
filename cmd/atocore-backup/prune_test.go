package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

type pruning struct {
	Kept []struct {
		Stamp   string
		Reasons []string
	}
	Removed []string
	Skipped []struct{ Stamp, Reason string }
	DryRun  bool `json:"dry_run"`
}

func TestPrune(t *testing.T) {
	s := newStore(t)
	var stamps []string
	for range 4 {
		stamp, _ := s.create(t)
		stamps = append(stamps, stamp)
	}
	require.NoError(t, os.Mkdir(filepath.Join(s.backups, "snapshots", "notes"), 0o700))

	prune := func(args ...string) outcome {
		t.Helper()
		return atocore(t, append([]string{"prune", "--backup-dir", s.backups}, args...)...)
	}
	for _, args := range [][]string{{"--keep-last", "2", "--dry-run"}, {"--keep-last=2", "-n"}, {"--keep-last=2"}} {
		o := prune(args...)
		require.Equal(t, exitDone, o.code, o.stderr)
		r := decode[pruning](t, o)
		require.Equal(t, []string{stamps[1], stamps[0]}, r.Removed)
		require.Len(t, r.Kept, 2)
		require.Equal(t, stamps[3], r.Kept[0].Stamp)
		require.Equal(t, []string{"newest snapshot", "last snapshot"}, r.Kept[0].Reasons)
		require.Len(t, r.Skipped, 1)
		dry := args[len(args)-1] != "--keep-last=2"
		require.Equal(t, dry, r.DryRun)
		words := "2 snapshots kept, 2 removed (2 of them never verified); skipped: notes (no metadata).\n"
		if dry {
			words = "2 snapshots kept, 2 would be removed (2 of them never verified); skipped: notes (no metadata).\n"
			require.Len(t, s.stamps(t), 5)
		}
		require.Equal(t, words, o.stderr)
	}
	require.Equal(t, append(stamps[2:], "notes"), s.stamps(t))

	// Every rule reaches the library.
	for rule, reason := range map[string]string{
		"--keep-last": "last snapshot", "--keep-hourly": "hourly snapshot", "--keep-daily": "daily snapshot", "--keep-weekly": "weekly snapshot",
		"--keep-monthly": "monthly snapshot", "--keep-yearly": "yearly snapshot",
	} {
		for _, args := range [][]string{{rule + "=-1"}, {rule, "7"}, {rule, "-1"}, {rule, "unlimited"}, {rule + "=unlimited"}} {
			o := prune(append(args, "--dry-run")...)
			require.Equal(t, exitDone, o.code, o.stderr)
			require.Equal(t, []string{"newest snapshot", reason}, decode[pruning](t, o).Kept[0].Reasons)
		}
	}
	o := prune("--keep-within", "24h", "--dry-run")
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, []string{"newest snapshot", "within 24h0m0s"}, decode[pruning](t, o).Kept[0].Reasons)
}

func TestPruneUsage(t *testing.T) {
	s := newStore(t)
	s.create(t)
	s.create(t)
	for _, test := range []struct {
		args  []string
		words []string
	}{
		{nil, []string{"--backup-dir", "no keep rule", "--keep-last"}},
		{[]string{"--backup-dir", s.backups}, []string{"no keep rule"}},
		{[]string{"--backup-dir", s.backups, "--dry-run"}, []string{"no keep rule"}},
		{[]string{"--backup-dir", s.backups, "--keep-last", "0"}, []string{"no keep rule"}},
		{[]string{"--backup-dir", s.backups, "--keep-last=-2"}, []string{"-2", "-1 means no limit"}},
		{[]string{"--backup-dir", s.backups, "--keep-last=few"}, []string{"--keep-last", "few", "unlimited"}},
		{[]string{"--backup-dir", s.backups, "--keep-last", "-2"}, []string{"-2", "-1 means no limit"}},
		{[]string{"--backup-dir", s.backups, "--keep-last", "--dry-run"}, []string{"--keep-last", "--dry-run"}},
		{[]string{"--backup-dir", s.backups, "--keep-last"}, []string{"--keep-last", "missing"}},
		{[]string{"--backup-dir", s.backups, "--keep-within=-1h"}, []string{"-1h"}},
		{[]string{"--backup-dir", s.backups, "--keep-within=-7d"}, []string{"-7d"}},
		{[]string{"--backup-dir", s.backups, "--keep-within=1h30m"}, []string{"--keep-within", "1h30m", "m is months"}},
		{[]string{"--backup-dir", s.backups, "--keep-last=1", "20260101T000000Z"}, []string{"20260101T000000Z"}},
		{[]string{"--backup-dir", s.registry, "--keep-last=1"}, []string{s.registry}},
	} {
		atocore(t, append([]string{"prune"}, test.args...)...).requireFailed(t, test.words...)
	}
	require.Len(t, s.stamps(t), 2)
	o := atocore(t, "prune", "--keep-last=1", "--backup-dir", t.TempDir())
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Empty(t, decode[pruning](t, o).Kept)
	require.Equal(t, "0 snapshots kept, 0 removed.\n", o.stderr)
}
