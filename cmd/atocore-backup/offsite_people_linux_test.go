package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// On a terminal, copies are a table that fits, and progress takes one line.
func TestOffsiteForPeople(t *testing.T) {
	p := newRepository(t)
	stamp := p.snapshot(t)
	for _, test := range []struct {
		columns  int
		args     []string
		progress string
		words    []string
	}{
		{80, []string{"push"}, "% uploading", []string{"Snapshot " + stamp + " is copied to the repository: "}},
		{40, []string{"list"}, "", []string{"STAMP", stamp, "1 copy in the repository."}},
		{200, []string{"list"}, "", []string{"STAMP", "AGE", "STORE", "RESTIC'S ID", stamp, ":" + p.db, "1 copy in the repository."}},
		{80, []string{"forget", "--keep-last=1", "--dry-run"}, "0% removing copies", []string{"STAMP", "RESULT", stamp, "kept", "1 copy kept, 0 would be removed."}},
		{60, []string{"verify"}, "checking repository 0%", []string{"The repository is sound: 1 copy, and 5% of the data was read."}},
	} {
		environment := p.prepare(t).Env
		seen, status := newWideTerminal(t, test.columns).run(environment, append([]string{"offsite"}, test.args...)...)
		require.Equal(t, exitDone, status, seen)
		require.Contains(t, seen, test.progress)
		left := requireFits(t, seen, test.columns)
		for _, word := range test.words {
			require.Contains(t, left, word, test.args)
		}
		require.NotContains(t, left, "{")
	}
}
