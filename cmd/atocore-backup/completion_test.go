package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Candidates are what the parser would accept next.
func TestCompletion(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"20261124T115419Z", "20261125T000000Z", "with space", "\x1b[2J", "two\nlines"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "snapshots", name), 0o700))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "snapshots", "file"), nil, 0o600))
	for _, test := range []struct {
		words string // separated by spaces
		want  string
	}{
		{"v", "validate version"},
		{"", "create list status validate restore drill protect unprotect prune remove export import offsite run help version completion man"},
		{"frob", ""},
		{"prune --keep-m", "--keep-monthly"},
		{"list -", "--last --reverse --db --registry --chroma --backup-dir --host --help --json --verbose --version"},
		{"create --db ", wantFiles},
		{"create --db=x", wantFiles},
		{"create --db = x", wantFiles},
		{"create --db =", wantFiles},
		{"create --backup-dir ", wantDirs},
		{"create --note ", ""},
		{"create ", ""},
		{"validate 2", ""},
		{"validate ", "latest"},
		{"validate --backup-dir DIR 2", "20261125T000000Z 20261124T115419Z"},
		{"validate --backup-dir=DIR 20261125", "20261125T000000Z"},
		{"validate --backup-dir = DIR w", "with_space"},
		{"remove --backup-dir DIR l", ""},
		{"remove --backup-dir DIR ", "20261124T115419Z 20261125T000000Z with_space"},
		{"--json validate --backup-dir DIR -- l", "latest"},
		{"validate --backup-dir DIR x ", ""},
		{"import ", wantFiles},
		{"help st", "status"},
		{"help offsite ", "init push list verify pull forget"},
		{"help offsite push ", ""},
		{"help frob ", ""},
		{"offsite ", "init push list verify pull forget"},
		{"offsite p", "push pull"},
		{"offsite -", "--help --json --verbose --version"},
		{"offsite push --backup-dir DIR ", "latest 20261124T115419Z 20261125T000000Z with_space"},
		{"offsite pull --backup-dir DIR ", "latest"},
		{"offsite verify --read-data --backup-dir DIR ", "latest"},
		{"offsite verify --read-", "--read-data"},
		{"offsite list --repo ", wantDirs},
		{"offsite list --password-file=", wantFiles},
		{"offsite list ", ""},
		{"completion ", "bash fish zsh"},
		{"completion bash ", ""},
	} {
		parser, err := newParser(new(commandLine), io.Discard, 80, nil)
		require.NoError(t, err)
		words := strings.Split(strings.ReplaceAll(test.words, "DIR", dir), " ")
		var got []string
		for _, c := range candidates(parser.Model.Node, words, func(string) string { return "" }) {
			got = append(got, strings.ReplaceAll(c.text, " ", "_"))
			require.Equal(t, c.about, oneLine(c.about))
		}
		require.ElementsMatch(t, strings.Fields(test.want), got, "%q", test.words)
	}
}

// The scripts work in the shells for which they are.
func TestCompletionScripts(t *testing.T) {
	s := newStore(t)
	stamp, _ := s.create(t)
	require.NoError(t, os.Mkdir(filepath.Join(s.backups, "snapshots", "a b"), 0o700))
	bin := t.TempDir()
	for _, test := range []struct{ shell, script, want string }{
		{"bash", `. "$SCRIPT"
			try() { COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _atocore_backup "$1"; printf '%s\n' "${COMPREPLY[@]}"; }
			try atocore-backup vali; try atocore-backup validate ""; try atocore-backup list --backup-dir = ""`, "validate\nlatest\na\\ b\nSTAMP\nsub\n"},
		{"fish", `source "$SCRIPT"
			complete -C "atocore-backup vali"; complete -C "atocore-backup validate "; complete -C "atocore-backup list --backup-dir=s"`,
			"validate\tCheck a snapshot, or all, and print the report\nSTAMP\na b\nlatest\tthe newest snapshot that a restore should take\n--backup-dir=sub/\tDirectory\n"},
		{"zsh", `zsh -n "$SCRIPT" && echo parsed`, "parsed\n"},
	} {
		t.Run(test.shell, func(t *testing.T) {
			shell, err := exec.LookPath(test.shell)
			if err != nil {
				t.Skip("no", test.shell)
			}
			o := atocore(t, "completion", test.shell)
			require.Equal(t, exitDone, o.code, o.stderr)
			script := filepath.Join(t.TempDir(), "script")
			require.NoError(t, os.WriteFile(script, []byte(o.stdout), 0o600))
			// The test binary is the command if its environment says so.
			self := command(t)
			require.NoError(t, os.RemoveAll(filepath.Join(bin, "atocore-backup")))
			require.NoError(t, os.WriteFile(filepath.Join(bin, "atocore-backup"),
				[]byte("#!/bin/sh\nexec '"+strings.Join(self.Args, "' '")+"' \"$@\"\n"), 0o700))
			cmd := exec.Command(shell, "-c", test.script)
			cmd.Dir = t.TempDir()
			require.NoError(t, os.Mkdir(filepath.Join(cmd.Dir, "sub"), 0o700))
			cmd.Env = append(self.Env, "PATH="+bin+":"+os.Getenv("PATH"), "SCRIPT="+script, "ATOCORE_BACKUP_DIR="+s.backups, "HOME="+cmd.Dir)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Equal(t, strings.ReplaceAll(test.want, "STAMP", stamp), string(out))
		})
	}
}
