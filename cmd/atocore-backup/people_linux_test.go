package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rivo/uniseg"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
)

// newWideTerminal returns a terminal of that many columns.
func newWideTerminal(t *testing.T, columns int) *terminal {
	t.Helper()
	tm := newTerminal(t)
	require.NoError(t, unix.IoctlSetWinsize(int(tm.user.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(columns)}))
	return tm
}

// run runs a command of which everything is on the terminal, and returns what the
// user sees.
func (tm *terminal) run(environment []string, args ...string) (seen string, status int) {
	tm.t.Helper()
	cmd := command(tm.t, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tm.device, tm.device, tm.device
	cmd.Env = append(append(cmd.Env, "TERM=xterm"), environment...)
	require.NoError(tm.t, cmd.Start())
	require.NoError(tm.t, tm.device.Close())
	seen = strings.ReplaceAll(tm.rest(), "\r\n", "\n")
	_ = cmd.Wait()
	return seen, cmd.ProcessState.ExitCode()
}

// requireFits checks that no line of progress is too wide for the terminal, and
// returns what is left on it in the end.
func requireFits(t *testing.T, seen string, columns int) (left string) {
	t.Helper()
	controls := regexp.MustCompile("\x1b\\[[0-9;]*K")
	for line := range strings.Lines(seen) {
		drawn := strings.Split(line, "\r")
		for _, text := range drawn[:len(drawn)-1] {
			require.LessOrEqual(t, uniseg.StringWidth(controls.ReplaceAllString(text, "")), columns, "%q", text)
		}
		left += controls.ReplaceAllString(drawn[len(drawn)-1], "")
	}
	return left
}

// On a terminal the result is a table or sentences, in lines that fit; with --json
// it is what a pipe gets.
func TestResultsForPeople(t *testing.T) {
	s := newStore(t)
	first := s.snapshot(t)
	o := atocore(t, append([]string{"create", "--verify", "--note", "日本語\x1b[2J\u202e"}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	second := decode[struct{ Stamp string }](t, o).Stamp
	in := func(args ...string) []string { return append(args, "--backup-dir", s.backups) }
	for _, columns := range []int{40, 80, 200} {
		t.Run(fmt.Sprint(columns), func(t *testing.T) {
			for _, test := range []struct {
				args  []string
				words []string
			}{
				{in("list"), []string{"STAMP", "VERIFIED", first, second, "valid ", "2 snapshots in "}},
				{in("list", "--reverse"), []string{second, first}},
				{in("validate", first), []string{`Snapshot "` + first + `" is valid.`}},
				{in("validate", "latest"), []string{"The latest snapshot is " + second, `Snapshot "` + second + `" is valid.`}},
				{in("validate", "--all"), []string{`Snapshot "` + first + `" is valid.`, `Snapshot "` + second + `" is valid.`, "2 of 2 snapshots are valid."}},
				{in("prune", "--keep-last=1", "--dry-run"), []string{second, "kept", first, "1 snapshot kept, 1 would be removed"}},
				{in("drill"), []string{"Snapshot " + second + " can be restored"}},
				{in("status", "--keep-last=1"), []string{"Newest:        " + second, "Last verified: ", "Snapshots:     2 snapshots", "Next pruned:   " + first}},
			} {
				seen, status := newWideTerminal(t, columns).run([]string{"NO_COLOR=1"}, test.args...)
				require.Equal(t, exitDone, status, seen)
				left := requireFits(t, seen, columns)
				for _, word := range test.words {
					require.Contains(t, left, word, test.args)
				}
				require.NotContains(t, left, "{")
				require.NotContains(t, left, "\x1b[2J")
				require.NotContains(t, left, "\u202e")
				if test.args[0] == "list" {
					for line := range strings.Lines(left) {
						if strings.HasPrefix(line, "2026") || strings.HasPrefix(line, "STAMP") {
							require.LessOrEqual(t, uniseg.StringWidth(strings.TrimSuffix(line, "\n")), columns)
						}
					}
				}
			}
		})
	}
	for _, args := range [][]string{in("list"), in("validate", first), in("prune", "--keep-last=9"), in("drill", first)} {
		piped := atocore(t, args...)
		tm := newWideTerminal(t, 80)
		cmd := command(t, append(args, "--json")...)
		cmd.Stdout = tm.device
		require.NoError(t, cmd.Start())
		require.NoError(t, tm.device.Close())
		seen := strings.ReplaceAll(tm.rest(), "\r\n", "\n")
		require.NoError(t, cmd.Wait())
		verdictTime := regexp.MustCompile(`"verified_at": "[^"]*"|"duration_ns": \d+`) // a drill records one
		require.Equal(t, verdictTime.ReplaceAllString(piped.stdout, ""), verdictTime.ReplaceAllString(seen, ""))
	}
}

// The user says whether there are colours. A dumb terminal gets plain lines.
func TestColours(t *testing.T) {
	s := newStore(t)
	_, dir := s.create(t)
	require.NoError(t, os.Remove(filepath.Join(dir, "backup-metadata.json")))
	for _, test := range []struct {
		environment []string
		coloured    bool
	}{
		{nil, true}, {[]string{"NO_COLOR="}, true}, {[]string{"NO_COLOR=1"}, false}, {[]string{"TERM=dumb"}, false}, {[]string{"TERM="}, false},
	} {
		seen, status := newWideTerminal(t, 80).run(test.environment, "list", "--backup-dir", s.backups)
		require.Equal(t, exitDone, status)
		require.Equal(t, test.coloured, strings.Contains(seen, "\x1b[31mUNREADABLE\x1b[0m"), "%q: %q", test.environment, seen)
		require.Equal(t, test.coloured, strings.Contains(seen, "\x1b"))
		require.Contains(t, seen, "UNREADABLE")
	}
	seen, status := newWideTerminal(t, 80).run([]string{"TERM=dumb"}, append([]string{"create"}, s.flags()...)...)
	require.Equal(t, exitDone, status)
	require.NotRegexp(t, `\x1b|\r`, seen)
}

// The progress of a call takes one line of any terminal and leaves nothing.
func TestProgressFitsTheTerminal(t *testing.T) {
	s := newStore(t)
	for _, columns := range []int{10, 20, 40, 59, 60, 63, 64, 79, 80, 107, 108, 200} {
		seen, status := newWideTerminal(t, columns).run(nil, append([]string{"create", "--include-chroma", "--verify"}, s.flags()...)...)
		require.Equal(t, exitDone, status, seen)
		require.Contains(t, seen, "sealing", "progress is shown")
		left := strings.TrimSpace(requireFits(t, seen, columns))
		require.Regexp(t, `^Snapshot \S+: database .*\nIt is valid\.$`, left)
	}
}

// A bar fits with the longest numbers, too.
func TestLongProgressFitsTheTerminal(t *testing.T) {
	for _, columns := range []int{30, 64, 80, 107, 108, 120} {
		tm := newWideTerminal(t, columns)
		m := meter{out: tm.device}
		p := backup.Progress{Phase: backup.PhaseVerify, TotalBytes: 888_800_000_000_000}
		for range 3 {
			m.show(p)
			p.Bytes += 200_800_000_000_000
			m.bar = nil // otherwise it would be drawn every 100 ms at most
		}
		m.clear()
		require.NoError(t, tm.device.Close())
		seen := tm.rest()
		require.Contains(t, seen, "comparing with snapshot")
		requireFits(t, seen, columns)
	}
}

// An archive is neither written to a terminal nor read from one.
func TestArchivesAndTerminals(t *testing.T) {
	s := newStore(t)
	stamp, _ := s.create(t)
	for _, args := range [][]string{{"export", stamp}, {"export", "latest", "-o", "-"}, {"import"}, {"import", "-"}} {
		seen, status := newWideTerminal(t, 80).run(nil, append(args, "--backup-dir", s.backups)...)
		require.Equal(t, exitFailed, status)
		require.Regexp(t, `^atocore-backup: \w+: an archive is not (written to|read from) a terminal: .*\n$`, seen)
	}
}

// Without --yes a removal is confirmed first, and only "yes" confirms.
func TestRemoveAsks(t *testing.T) {
	s := newStore(t)
	stamp, dir := s.create(t)
	s.create(t)
	for _, answer := range []string{"no\n", "\n", "y\n", "\x04", "yes\n"} {
		tm := newTerminal(t)
		cmd, _ := tm.start("remove", stamp, "--backup-dir", s.backups)
		require.Contains(t, tm.see(question), "Snapshot "+stamp+" in "+s.backups+" will be removed")
		require.DirExists(t, dir)
		_, err := tm.user.WriteString(answer)
		require.NoError(t, err)
		seen := tm.rest()
		if answer == "yes\n" {
			require.NoError(t, cmd.Wait())
			require.Contains(t, seen, "Snapshot "+stamp+" is removed.")
			require.NoDirExists(t, dir)
			break
		}
		require.Error(t, cmd.Wait())
		require.Contains(t, seen, "not confirmed; nothing was removed")
	}
}
