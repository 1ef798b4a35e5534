package main

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite"
)

// What is missing is said in the words of the command, before restic is run.
func TestOffsiteUsageErrors(t *testing.T) {
	here := []string{"--repo", "r", "--password-file", "p"}
	for _, test := range []struct {
		args  string
		words []string
	}{
		{"offsite frobnicate", []string{"frobnicate"}},
		{"offsite init", []string{"--repo", "ATOCORE_OFFSITE_REPO", "--password-file", "ATOCORE_OFFSITE_PASSWORD_FILE"}},
		{"offsite list --repo r", []string{"offsite list: no password: give --password-file or set ATOCORE_OFFSITE_PASSWORD_FILE"}},
		{"offsite list HERE --patience 0", []string{"--patience", `"0" is not a length of time`}},
		{"offsite list HERE --patience -5m", []string{"--patience"}},
		{"offsite list HERE --limit-upload 1.5", []string{"--limit-upload", `"1.5" is not a number of KiB`}},
		{"offsite list HERE x", []string{"x"}},
		{"offsite push HERE", []string{"--backup-dir", "ATOCORE_BACKUP_DIR"}},
		{"offsite pull HERE --backup-dir b", []string{"stamp"}},
		{"offsite pull HERE latest", []string{"--backup-dir"}},
		{"offsite verify HERE latest", []string{"--backup-dir"}},
		{"offsite verify HERE latest --backup-dir b --read-data", []string{"a stamp or --read-data, not both"}},
		{"offsite verify HERE --backup-dir b --read-data 5%", []string{"--read-data=5%"}},
		{"offsite verify HERE --backup-dir b EMPTY", []string{"the stamp is empty"}},
		{"offsite verify HERE --read-data=half", []string{`"half" is not a share of the data`}},
		{"offsite forget HERE --backup-dir b", []string{"--keep-last"}},
		{"create --push --db d --backup-dir b", []string{"--repo", "--password-file"}},
	} {
		t.Run(test.args, func(t *testing.T) {
			args := strings.Fields(strings.ReplaceAll(test.args, "HERE", strings.Join(here, " ")))
			if last := len(args) - 1; args[last] == "EMPTY" { // as of a variable that is not set
				args[last] = ""
			}
			atocore(t, args...).requireFailed(t, test.words...)
		})
	}
}

// A variable that is set to nothing is as if it were not set.
func TestEmptyVariables(t *testing.T) {
	s := newStore(t)
	cmd := command(t, append([]string{"create"}, s.flags()...)...)
	parser, err := newParser(new(commandLine), io.Discard, 80, nil)
	require.NoError(t, err)
	for _, f := range repositoryFlagsOf(parser.Model.Node) {
		cmd.Env = append(cmd.Env, f.Envs[0]+"=")
	}
	o := do(t, cmd)
	require.Equal(t, exitDone, o.code, o.stderr)
	cmd = command(t, "offsite", "list", "--repo", filepath.Join(t.TempDir(), "absent"), "--restic", filepath.Join(t.TempDir(), "absent"))
	cmd.Env = append(cmd.Env, "ATOCORE_OFFSITE_PATIENCE=", "ATOCORE_OFFSITE_LIMIT_UPLOAD=", "RESTIC_PASSWORD=x")
	do(t, cmd).requireFailed(t, "restic is not installed")
}

// --read-data alone means all, and takes a share only with an equals sign, so that
// a stamp may follow it.
func TestReadData(t *testing.T) {
	for args, want := range map[string]share{
		"":                             "",
		"--read-data":                  "100%",
		"--read-data=5%":               "5%",
		"--read-data=0.5%":             "0.5%",
		"--read-data=100%":             "100%",
		"--read-data=0":                "0",
		"--read-data=0%":               "0",
		"--read-data=":                 "refused",
		"--read-data=5":                "refused",
		"--read-data=101%":             "refused",
		"--read-data=-5%":              "refused",
		"--read-data=0.0%":             "refused",
		"--read-data=NaN%":             "refused",
		"--read-data=1e1%":             "refused",
		"--read-data=%":                "refused",
		"--read-data 20261124T115419Z": "100%",
	} {
		var parsed commandLine
		parser, err := newParser(&parsed, io.Discard, 80, nil)
		require.NoError(t, err)
		_, err = parser.Parse(append([]string{"offsite", "verify"}, strings.Fields(args)...))
		if want == "refused" {
			require.ErrorContains(t, err, "is not a share of the data", args)
			continue
		}
		require.NoError(t, err, args)
		require.Equal(t, want, parsed.Offsite.Verify.ReadData, args)
	}
}

// Whatever kept a snapshot from being pushed, the create failed, and says so.
func TestStatusOfASnapshotThatWasNotPushed(t *testing.T) {
	for _, reason := range []error{
		backup.ErrInvalidBackup, backup.ErrNoSnapshot, offsite.ErrDamaged, offsite.ErrNoCopy, offsite.ErrBusy, errProblems, io.ErrUnexpectedEOF,
	} {
		err := (&pushedSnapshot{Metadata: &backup.Metadata{Stamp: "20261124T115419Z"}, err: reason}).failure()
		require.Equal(t, exitFailed, exitStatus(t.Context(), err), reason)
		require.False(t, isReported(err), reason)
		require.ErrorIs(t, err, reason)
	}
	require.NoError(t, (*pushedSnapshot)(nil).failure())
}
