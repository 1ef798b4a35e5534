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
	empty, absent := t.TempDir(), filepath.Join(t.TempDir(), "absent")
	in := func(dir string, args ...string) []string { return append(args, "--backup-dir", dir) }
	here := func(args ...string) []string { return in(s.backups, args...) }
	for _, test := range []struct {
		status int
		args   []string
	}{
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

		{exitDone, here("list")},
		{exitDone, in(empty, "list")},
		{exitMissing, in(absent, "list")},
		{exitFailed, in(s.registry, "list")},

		{exitDone, here("validate", good)},
		{exitInvalid, here("validate", bad)},
		{exitInvalid, here("validate", "--all")},
		{exitDone, here("validate", "latest")},
		{exitMissing, here("validate", "absent")},
		{exitMissing, in(empty, "validate", "latest")},
		{exitMissing, in(empty, "validate", "--all")},
		{exitMissing, in(absent, "validate", good)},
		{exitMissing, in(absent, "validate", "latest")},
		{exitMissing, in(absent, "validate", "--all")},
		{exitFailed, in(s.registry, "validate", good)},
		{exitFailed, here("validate")},
		{exitFailed, here("validate", "--all", good)},

		{exitInvalid, here("status")}, // the newest is not valid
		{exitMissing, in(empty, "status")},
		{exitMissing, in(absent, "status")},
		{exitFailed, here("status", "--max-age", "soon")},

		{exitDone, here("drill")},
		{exitInvalid, here("drill", bad)},
		{exitMissing, here("drill", "absent")},
		{exitMissing, in(empty, "drill")},
		{exitMissing, in(absent, "drill")},
		{exitFailed, here("drill", "--scratch", absent)},

		{exitInvalid, here("restore", "--into", absent, bad)},
		{exitMissing, here("restore", "--into", absent, "20991231T000000Z")},
		{exitMissing, in(empty, "restore", "--into", absent, "latest")},
		{exitMissing, in(absent, "restore", "--into", absent, good)},
		{exitFailed, append([]string{"restore", good}, s.flags()...)}, // without --yes

		{exitDone, here("protect", good)},
		{exitMissing, here("protect", "absent")},
		{exitMissing, in(absent, "protect", good)},
		{exitDone, here("unprotect", good)},
		{exitMissing, here("unprotect", "absent")},

		{exitFailed, here("remove", old)}, // without --yes
		{exitDone, here("remove", "--yes", old)},
		{exitMissing, here("remove", "--yes", old)},
		{exitMissing, in(absent, "remove", "--yes", good)},
		{exitFailed, here("remove", "--yes", good)}, // it is the newest that is valid

		{exitDone, here("prune", "--keep-last=1", "--dry-run")},
		{exitDone, in(empty, "prune", "--keep-last=1")},
		{exitMissing, in(absent, "prune", "--keep-last=1")},
		{exitFailed, here("prune")},

		{exitMissing, here("export", "absent")},
		{exitMissing, in(empty, "export", "latest")},
		{exitMissing, in(absent, "export", good)},
		{exitFailed, here("import", absent)},

		{exitDone, append([]string{"create", "--verify"}, s.flags()...)},
		{exitFailed, here("create", "--db", absent)},
		{exitDone, here("status", "--max-age", "1h", "--max-unverified", "1h")},
	} {
		o := atocore(t, test.args...)
		require.Equal(t, test.status, o.code, "%q: %s", test.args, o.stderr)
		if test.status > exitInvalid {
			require.NotEmpty(t, o.stderr, test.args)
		}
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
