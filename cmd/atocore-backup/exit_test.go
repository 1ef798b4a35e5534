package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// documentedStatuses are the statuses of docs/command.md.
func documentedStatuses(t *testing.T) (rows []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "command.md"))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if len(line) > 2 && strings.HasPrefix(line, "| ") && line[2] >= '0' && line[2] <= '9' {
			rows = append(rows, strings.TrimSuffix(line, "\n"))
		}
	}
	return rows
}

// The help, the manual page and the guide have the same statuses.
func TestExitStatusesAreDocumented(t *testing.T) {
	var want, got []string
	for _, s := range exitStatuses {
		want = append(want, fmt.Sprintf("| %s | %s |", s.status, s.meaning))
	}
	require.Equal(t, want, documentedStatuses(t))
	help := strings.Join(strings.Fields(atocore(t, "help").stdout), " ")
	man := atocore(t, "man").stdout
	for _, s := range exitStatuses {
		require.Contains(t, help, " "+s.status+" "+s.meaning)
		require.Contains(t, man, "\n.B "+s.status+"\n")
		got = append(got, s.status)
	}
	require.Equal(t, []string{"0", "1", "2", "3", "130"}, got)
}

// Each command has each status that it can have.
func TestExitStatuses(t *testing.T) {
	s := newStore(t)
	old := s.createAt(t, backup.SystemClock().Now().Add(-100*time.Hour))
	good, _ := s.create(t)
	bad, dir := s.create(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "surplus"), nil, 0o600))
	places := exitPlaces{s, t.TempDir(), filepath.Join(t.TempDir(), "absent")}
	for _, test := range append(places.readers(good, bad), places.writers(old, good, bad)...) {
		o := atocore(t, test.args...)
		require.Equal(t, test.status, o.code, "%q: %s", test.args, o.stderr)
		if test.status > exitInvalid {
			require.NotEmpty(t, o.stderr, test.args)
		}
	}
}

// An exitCase is a command line with the status that it has.
type exitCase struct {
	status int
	args   []string
}

// exitPlaces are a store with snapshots, and backup directories without any.
type exitPlaces struct {
	store
	empty, absent string
}

func in(dir string, args ...string) []string { return append(args, "--backup-dir", dir) }

func (p exitPlaces) here(args ...string) []string { return in(p.backups, args...) }

// readers are the commands that change nothing but records.
func (p exitPlaces) readers(good, bad string) []exitCase {
	return []exitCase{
		{exitDone, []string{"help"}},
		{exitDone, []string{"help", "prune"}},
		{exitDone, []string{"--help"}},
		{exitDone, []string{"version"}},
		{exitDone, []string{"--version"}},
		{exitDone, []string{"man"}},
		{exitDone, []string{"completion", "zsh"}},
		{exitFailed, nil},
		{exitFailed, []string{"frobnicate"}},
		{exitFailed, []string{"help", "frobnicate"}},
		{exitFailed, []string{"completion", "csh"}},
		{exitFailed, []string{"list"}},
		{exitDone, []string{"help", "offsite"}},
		{exitDone, []string{"help", "offsite", "push"}},
		{exitFailed, []string{"help", "offsite", "frobnicate"}},
		{exitFailed, []string{"offsite"}},
		{exitFailed, []string{"offsite", "list"}},
		{exitFailed, p.here("offsite", "push", good)},
		{exitFailed, p.here("offsite", "pull", good, "--repo", p.absent)},

		{exitDone, p.here("list")},
		{exitDone, in(p.empty, "list")},
		{exitMissing, in(p.absent, "list")},
		{exitFailed, in(p.registry, "list")},

		{exitDone, p.here("validate", good)},
		{exitInvalid, p.here("validate", bad)},
		{exitInvalid, p.here("validate", "--all")},
		{exitDone, p.here("validate", "latest")},
		{exitMissing, p.here("validate", "absent")},
		{exitMissing, in(p.empty, "validate", "latest")},
		{exitMissing, in(p.empty, "validate", "--all")},
		{exitMissing, in(p.absent, "validate", good)},
		{exitMissing, in(p.absent, "validate", "latest")},
		{exitMissing, in(p.absent, "validate", "--all")},
		{exitFailed, in(p.registry, "validate", good)},
		{exitFailed, p.here("validate")},
		{exitFailed, p.here("validate", "--all", good)},
	}
}

// writers are the others.
func (p exitPlaces) writers(old, good, bad string) []exitCase {
	return []exitCase{
		{exitInvalid, p.here("status")}, // the newest is not valid
		{exitMissing, in(p.empty, "status")},
		{exitMissing, in(p.absent, "status")},
		{exitFailed, p.here("status", "--max-age", "soon")},

		{exitDone, p.here("drill")},
		{exitInvalid, p.here("drill", bad)},
		{exitMissing, p.here("drill", "absent")},
		{exitMissing, in(p.empty, "drill")},
		{exitMissing, in(p.absent, "drill")},
		{exitFailed, p.here("drill", "--scratch", p.absent)},

		{exitInvalid, p.here("restore", "--into", p.absent, bad)},
		{exitMissing, p.here("restore", "--into", p.absent, "20991231T000000Z")},
		{exitMissing, in(p.empty, "restore", "--into", p.absent, "latest")},
		{exitMissing, in(p.absent, "restore", "--into", p.absent, good)},
		{exitFailed, append([]string{"restore", good}, p.flags()...)}, // without --yes

		{exitDone, p.here("protect", good)},
		{exitMissing, p.here("protect", "absent")},
		{exitMissing, in(p.absent, "protect", good)},
		{exitDone, p.here("unprotect", good)},
		{exitMissing, p.here("unprotect", "absent")},

		{exitFailed, p.here("remove", old)}, // without --yes
		{exitDone, p.here("remove", "--yes", old)},
		{exitMissing, p.here("remove", "--yes", old)},
		{exitMissing, in(p.absent, "remove", "--yes", good)},
		{exitFailed, p.here("remove", "--yes", good)}, // it is the newest that is valid

		{exitDone, p.here("prune", "--keep-last=1", "--dry-run")},
		{exitDone, in(p.empty, "prune", "--keep-last=1")},
		{exitMissing, in(p.absent, "prune", "--keep-last=1")},
		{exitFailed, p.here("prune")},

		{exitMissing, p.here("export", "absent")},
		{exitMissing, in(p.empty, "export", "latest")},
		{exitMissing, in(p.absent, "export", good)},
		{exitFailed, p.here("import", p.absent)},

		// A signal ends it with exitDone: see TestRun.
		{exitFailed, append([]string{"run"}, p.flags()...)},
		{exitFailed, append([]string{"run", "--every=1h", "--listen=0.0.0.0:0"}, p.flags()...)},

		{exitDone, append([]string{"create", "--verify"}, p.flags()...)},
		{exitFailed, p.here("create", "--db", p.absent)},
		{exitDone, p.here("status", "--max-age", "1h", "--max-unverified", "1h")},
	}
}

// createAt takes a snapshot at another time than the present.
func (s store) createAt(t *testing.T, at time.Time) (stamp string) {
	t.Helper()
	meta, err := backup.CreateRuntimeBackup(t.Context(), backup.Options{DatabasePath: s.db, RegistryPath: s.registry, BackupDir: s.backups, Clock: clock(at)})
	require.NoError(t, err)
	return meta.Stamp
}

// A clock has stopped.
type clock time.Time

// Now returns the time at which it has stopped.
func (c clock) Now() time.Time { return time.Time(c) }
