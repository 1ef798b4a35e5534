package main

import (
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The help of each command says by itself what the command does and what each of
// its arguments and flags means, in lines that fit the terminal.
func TestHelp(t *testing.T) {
	parser, err := newParser(new(commandLine), io.Discard, 80, nil)
	require.NoError(t, err)
	app := parser.Model.Node
	for _, node := range append(leavesOf(app), app) {
		require.True(t, strings.HasSuffix(node.Help, "."), "%s: %q", node.Name, node.Help)
		for _, arg := range node.Positional {
			require.True(t, strings.HasSuffix(arg.Help, "."), "%s %s", node.Name, arg.Name)
		}
		for _, f := range flagsOf(node) {
			require.True(t, strings.HasSuffix(f.Help, "."), "%s --%s", node.Name, f.Name)
			require.True(t, f.IsBool() || f.PlaceHolder == strings.ToUpper(f.PlaceHolder), "%s --%s", node.Name, f.Name)
		}
		for _, width := range []int{40, 80, 200} {
			var b strings.Builder
			require.NoError(t, printHelp(&b, node, width))
			for line := range strings.Lines(b.String()) {
				// A word may be wider: the name of a variable.
				require.True(t, textWidth(strings.TrimSuffix(line, "\n")) <= width || len(strings.Fields(line)) == 1, "%d: %q", width, line)
			}
		}
	}
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}} {
		require.Contains(t, atocore(t, args...).stdout, "Usage: atocore-backup COMMAND", args)
	}
	for _, args := range [][]string{{"help", "prune"}, {"prune", "--help"}, {"prune", "-h"}} {
		require.Contains(t, atocore(t, args...).stdout, "Usage: atocore-backup prune [FLAGS]", args)
	}
	for _, args := range [][]string{{"help", "offsite"}, {"offsite", "--help"}} {
		require.Contains(t, atocore(t, args...).stdout, "Usage: atocore-backup offsite COMMAND [ARGUMENTS] [FLAGS]", args)
		require.Contains(t, atocore(t, args...).stdout, "\natocore-backup help offsite COMMAND describes", args)
	}
	for _, args := range [][]string{{"help", "offsite", "verify"}, {"offsite", "verify", "--help"}} {
		require.Contains(t, atocore(t, args...).stdout, "Usage: atocore-backup offsite verify [STAMP] [FLAGS]", args)
		require.Contains(t, atocore(t, args...).stdout, "\n  --read-data[=SHARE]\n", args)
	}
	require.Equal(t, atocore(t, "--version"), atocore(t, "version"))
	// Without a command, the help is a message.
	o := atocore(t)
	require.Equal(t, outcome{exitFailed, "", atocore(t, "help").stdout}, o)
	require.Equal(t, outcome{exitFailed, "", atocore(t, "help", "offsite").stdout}, atocore(t, "offsite"))
}

// The manual page is one, by the judgement of mandoc.
func TestManualPage(t *testing.T) {
	page := atocore(t, "man")
	require.Equal(t, exitDone, page.code)
	parser, err := newParser(new(commandLine), io.Discard, 80, nil)
	require.NoError(t, err)
	for _, c := range leavesOf(parser.Model.Node) {
		require.Contains(t, page.stdout, "\n.SS "+strings.Join(pathOf(c), " "))
		for _, f := range c.Flags {
			require.Contains(t, page.stdout, roff("--"+f.Name))
		}
	}
	require.NotRegexp(t, `(?m)^[^.].*[^\\]--`, page.stdout, "a hyphen that cannot be searched for or copied")
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		t.Skip("no mandoc")
	}
	cmd := exec.Command(mandoc, "-T", "lint", "-W", "style")
	cmd.Stdin = strings.NewReader(page.stdout)
	out, _ := cmd.Output()
	for line := range strings.Lines(string(out)) {
		// A build outside a repository has no date.
		require.Contains(t, line, `missing date, using ""`)
	}
}
