package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

const despiteQuestion = "Type yes to restore it all the same:"

// On a terminal the findings are shown, and the user is asked. Only "yes"
// restores.
func TestRestoreAsksDespiteFindings(t *testing.T) {
	s := newStore(t)
	s.breakDatabase(t)
	stamp := s.snapshot(t)
	require.NoError(t, os.WriteFile(s.registry, []byte(`{"projects": ["new"]}`), 0o600))
	for _, answer := range []string{"no\n", "\n", "\x04", "yes\n"} {
		tm := newTerminal(t)
		cmd, stdout := tm.start(append([]string{"restore", "--yes", stamp}, s.flags()...)...)
		seen := tm.see(despiteQuestion)
		require.Contains(t, seen, brokenIndex)
		require.Contains(t, seen, "every byte is what was backed up")
		_, err := tm.user.WriteString(answer)
		require.NoError(t, err)
		seen = tm.rest()
		err = cmd.Wait()
		if answer == "yes\n" {
			require.NoError(t, err, seen)
			require.Equal(t, stamp, decode[restored](t, outcome{stdout: stdout.String()}).Stamp)
			requireFile(t, s.registry, `{"projects": []}`)
			break
		}
		require.Error(t, err)
		require.Equal(t, exitInvalid, cmd.ProcessState.ExitCode())
		require.Contains(t, decode[truth](t, outcome{stdout: stdout.String()}).Findings, brokenIndex)
		requireFile(t, s.registry, `{"projects": ["new"]}`)
	}

	// There is no question about damage.
	s.snapshots(t).Snapshot(stamp).Write("config/registry.json", []byte("{}"))
	tm := newTerminal(t)
	cmd, _ := tm.start(append([]string{"restore", "--yes", stamp}, s.flags()...)...)
	seen := tm.rest()
	require.Error(t, cmd.Wait())
	require.NotContains(t, seen, despiteQuestion)
	require.NotContains(t, seen, "despite")
}

// Even if nothing would be replaced, the user is asked before a snapshot without
// Chroma is restored while there is an older one that has it.
func TestRestoreAsksWithoutChroma(t *testing.T) {
	s := newStore(t)
	with := s.snapshot(t)
	without, _ := s.create(t)
	require.NoError(t, s.live.Close())
	for _, path := range []string{s.db, s.registry, s.chroma} {
		require.NoError(t, os.RemoveAll(path))
	}
	for _, answer := range []string{"no\n", "yes\n"} {
		tm := newTerminal(t)
		cmd, stdout := tm.start(append([]string{"restore", "latest"}, s.flags()...)...)
		seen := tm.see(question)
		require.Contains(t, seen, "The newest snapshot that has one is "+with)
		_, err := tm.user.WriteString(answer)
		require.NoError(t, err)
		seen = tm.rest()
		err = cmd.Wait()
		require.Equal(t, answer == "yes\n", err == nil, seen)
		if err == nil {
			require.Equal(t, without, decode[restored](t, outcome{stdout: stdout.String()}).Stamp)
		} else {
			require.NoFileExists(t, s.db)
		}
	}
}
