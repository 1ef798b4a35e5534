package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest/resticrepo"
	"github.com/atocore/backup/offsite"
)

// A place is a store, and a directory in which restic keeps copies of its
// snapshots.
type place struct {
	store
	repo, password string
}

// newPlace returns a place whose repository is not made yet.
func newPlace(t *testing.T) place {
	t.Helper()
	if _, err := exec.LookPath("restic"); err != nil {
		t.Skip("needs restic:", err)
	}
	dir := t.TempDir()
	p := place{newStore(t), filepath.Join(dir, "repo"), filepath.Join(dir, "password")}
	require.NoError(t, os.WriteFile(p.password, []byte(resticrepo.Password+"\n"), 0o600))
	return p
}

// newRepository returns a place with an empty repository, which opens quickly.
func newRepository(t *testing.T) place {
	t.Helper()
	p := newPlace(t)
	require.NoError(t, resticrepo.Make(p.repo))
	return p
}

// prepare prepares a command with the flags of the store and of the repository,
// which those in args override.
func (p place) prepare(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := command(t, args...)
	cmd.Env = append(cmd.Env, "ATOCORE_DB_PATH="+p.db, "ATOCORE_PROJECT_REGISTRY_PATH="+p.registry,
		"ATOCORE_CHROMA_PATH="+p.chroma, "ATOCORE_BACKUP_DIR="+p.backups,
		"ATOCORE_OFFSITE_REPO="+p.repo, "ATOCORE_OFFSITE_PASSWORD_FILE="+p.password)
	return cmd
}

// offsite runs a command of offsite, of which list and init take no store.
func (p place) offsite(t *testing.T, args ...string) outcome {
	t.Helper()
	return do(t, p.prepare(t, append([]string{"offsite"}, args...)...))
}

// A repository is made once.
func TestOffsiteInit(t *testing.T) {
	p := newPlace(t)
	p.offsite(t, "list").requireFailed(t, "make one with atocore-backup offsite init")
	o := p.offsite(t, "init")
	require.Equal(t, outcome{exitDone, "", "The repository is made. Keep its password in a second place: without it, no copy can be read.\n"}, o)
	p.offsite(t, "init").requireFailed(t, "exist")
	require.Equal(t, outcome{exitDone, "[]\n", "0 copies in the repository.\n"}, p.offsite(t, "list"))
}

// A snapshot goes to the repository and comes back, once each, and every command
// says what it did.
func TestOffsite(t *testing.T) {
	p := newRepository(t)
	p.offsite(t, "pull", "latest").requireStatus(t, exitMissing, "the repository has none")
	p.offsite(t, "push", "absent").requireStatus(t, exitMissing, "absent")

	stamp := p.snapshot(t)
	o := p.offsite(t, "push")
	require.Equal(t, exitDone, o.code, o.stderr)
	pushed := decode[offsite.Pushed](t, o)
	require.Equal(t, stamp, pushed.Stamp)
	require.Equal(t, p.db, pushed.DatabasePath)
	require.False(t, pushed.AlreadyThere)
	require.Positive(t, pushed.UploadedBytes)
	require.Contains(t, o.stderr, "Snapshot "+stamp+" is copied to the repository: ")
	o = p.offsite(t, "push", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.True(t, decode[offsite.Pushed](t, o).AlreadyThere)
	require.Equal(t, "The repository has a copy of "+stamp+" already.\n", o.stderr)

	o = p.offsite(t, "list")
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, []offsite.Copy{pushed.Copy}, decode[[]offsite.Copy](t, o))
	require.Equal(t, "1 copy in the repository.\n", o.stderr)

	o = p.offsite(t, "verify", "--read-data")
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, 1, decode[offsite.Report](t, o).Copies)
	require.Equal(t, "The repository is sound: 1 copy, and all of the data was read.\n", o.stderr)
	o = p.offsite(t, "verify", "latest")
	require.Equal(t, exitDone, o.code, o.stderr)
	require.True(t, decode[struct{ Validation report }](t, o).Validation.Valid)
	require.Contains(t, o.stderr, "The copy of "+stamp+" is valid.\n")

	there := p
	there.backups = filepath.Join(t.TempDir(), "new")
	o = there.offsite(t, "pull", "latest", "--note", "came back")
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, stamp, decode[backup.Metadata](t, o).Stamp)
	require.Contains(t, o.stderr, "The newest copy is "+stamp)
	for _, name := range []string{"SHA256SUMS", "backup-metadata.json", "db/atocore.db", "chroma/segment/data.bin"} {
		want, err := os.ReadFile(filepath.Join(p.backups, "snapshots", stamp, name))
		require.NoError(t, err)
		requireFile(t, filepath.Join(there.backups, "snapshots", stamp, name), string(want))
	}
	o = there.offsite(t, "pull", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, "Snapshot "+stamp+" is there already.\n", o.stderr)
	there.offsite(t, "pull", "20991231T000000Z").requireStatus(t, exitMissing, "20991231T000000Z", stamp)
	require.Equal(t, []string{stamp}, there.stamps(t))
}

// Each command of offsite has each status that it can have.
func TestOffsiteExitStatuses(t *testing.T) {
	p := newRepository(t)
	stamp := p.snapshot(t)
	empty, absent := t.TempDir(), filepath.Join(t.TempDir(), "absent")
	for _, test := range []exitCase{
		{exitFailed, []string{"init"}}, // there is one already
		{exitDone, []string{"list"}},
		{exitFailed, []string{"list", "--repo", absent}},
		{exitMissing, []string{"push", "absent"}},
		{exitMissing, in(empty, "push")},
		{exitMissing, in(absent, "push", stamp)},
		{exitMissing, []string{"pull", "latest"}},
		{exitMissing, []string{"verify", "latest"}},
		{exitDone, []string{"push", stamp}},
		{exitMissing, []string{"pull", "20991231T000000Z"}},
		{exitMissing, []string{"pull", "../x"}},
		{exitMissing, []string{"verify", "20991231T000000Z"}},
		{exitDone, []string{"verify", "--read-data=0"}},
		{exitDone, in(absent, "pull", stamp)},
		{exitFailed, in(p.registry, "pull", stamp)},
		{exitDone, []string{"forget", "--keep-last=1"}},
		{exitFailed, []string{"forget"}},
	} {
		o := p.offsite(t, test.args...)
		require.Equal(t, test.status, o.code, "%q: %s", test.args, o.stderr)
		if test.status > exitInvalid {
			require.NotEmpty(t, o.stderr, test.args)
		}
	}
}

// Forget keeps what the rules keep, and the newest copy in any case.
func TestOffsiteForget(t *testing.T) {
	p := newRepository(t)
	first := p.createAt(t, backup.SystemClock().Now().Add(-time.Hour))
	require.Equal(t, exitDone, p.offsite(t, "push").code)
	second := p.snapshot(t)
	require.Equal(t, exitDone, p.offsite(t, "push").code)
	for _, dry := range []bool{true, false} {
		o := p.offsite(t, "forget", "--keep-last=1", fmt.Sprintf("--dry-run=%v", dry))
		require.Equal(t, exitDone, o.code, o.stderr)
		forgotten := decode[offsite.Forgotten](t, o)
		require.Equal(t, dry, forgotten.DryRun)
		require.Len(t, forgotten.Kept, 1)
		require.Equal(t, second, forgotten.Kept[0].Stamp)
		require.Len(t, forgotten.Removed, 1)
		require.Equal(t, first, forgotten.Removed[0].Stamp)
		words := map[bool]string{true: "1 copy kept, 1 would be removed.\n", false: "1 copy kept, 1 removed.\n"}
		require.Equal(t, words[dry], o.stderr)
	}
	o := p.offsite(t, "list")
	require.Len(t, decode[[]offsite.Copy](t, o), 1)
}

// A snapshot that is damaged is not pushed, and a copy that is damaged is not
// pulled.
func TestOffsiteDamage(t *testing.T) {
	p := newRepository(t)
	p.snapshot(t)
	require.Equal(t, exitDone, p.offsite(t, "push").code)
	bad, dir := p.create(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config", "registry.json"), []byte(`{"projects": [1]}`), 0o600))
	o := p.offsite(t, "push", bad)
	require.Equal(t, exitInvalid, o.code, o.stderr)
	require.Empty(t, o.stdout)
	require.NotEmpty(t, o.stderr)
	require.Len(t, decode[[]offsite.Copy](t, p.offsite(t, "list")), 1)

	packs, err := filepath.Glob(filepath.Join(p.repo, "data", "*", "*"))
	require.NoError(t, err)
	require.NotEmpty(t, packs)
	for _, pack := range packs {
		data, err := os.ReadFile(pack)
		require.NoError(t, err)
		data[len(data)/3] ^= 1
		require.NoError(t, os.Chmod(pack, 0o600))
		require.NoError(t, os.WriteFile(pack, data, 0o600))
	}
	o = p.offsite(t, "verify", "--read-data")
	require.Equal(t, exitInvalid, o.code, o.stderr)
	found := decode[offsite.Report](t, o)
	require.False(t, found.OK)
	require.NotEmpty(t, found.Problems)
	require.Contains(t, o.stderr, "The repository is not as it should be:\n  ")
	p.backups = filepath.Join(t.TempDir(), "new")
	o = p.offsite(t, "pull", "latest")
	require.Contains(t, []int{exitInvalid, exitFailed}, o.code, o.stderr)
	p.requireNoSnapshot(t)
}

// A failure is told in one line with what to do, and in none with a credential.
func TestOffsiteFailures(t *testing.T) {
	p := newRepository(t)
	stamp := p.snapshot(t)
	dir := t.TempDir()
	wrong := filepath.Join(dir, "wrong")
	require.NoError(t, os.WriteFile(wrong, []byte("hunter2\n"), 0o600))
	old := filepath.Join(dir, "restic-old")
	require.NoError(t, os.WriteFile(old, []byte("#!/bin/sh\necho 'restic 0.13.1 compiled with go1.18 on linux/amd64'\n"), 0o700))
	for name, test := range map[string]struct {
		args  []string
		words []string
	}{
		"no restic":       {[]string{"--restic", filepath.Join(dir, "absent")}, []string{"apt install restic", "--restic"}},
		"old restic":      {[]string{"--restic", old}, []string{"0.14", "--restic"}},
		"no repository":   {[]string{"--repo", filepath.Join(dir, "absent")}, []string{"offsite init"}},
		"wrong password":  {[]string{"--password-file", wrong}, []string{"--password-file"}},
		"no such file":    {[]string{"--password-file", filepath.Join(dir, "absent")}, []string{"--password-file"}},
		"no server there": {[]string{"--repo", "rest:http://user:hunter2@127.0.0.1:1/", "--patience", "1s"}, []string{"127.0.0.1:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if runtime.GOOS == "windows" && name == "old restic" {
				t.Skip("needs a shell script")
			}
			cmd := p.prepare(t, append([]string{"offsite", "push", stamp}, test.args...)...)
			cmd.Env = append(cmd.Env, "AWS_SECRET_ACCESS_KEY=hunter2hunter2")
			o := do(t, cmd)
			o.requireFailed(t, test.words...)
			require.NotContains(t, o.stderr, "hunter2")
			require.NotContains(t, o.stderr, resticrepo.Password)
		})
	}
	t.Run("no restic in PATH", func(t *testing.T) {
		cmd := p.prepare(t, "offsite", "list")
		cmd.Env = append(cmd.Env, "PATH="+dir)
		do(t, cmd).requireFailed(t, "apt install restic")
	})
	require.Equal(t, []string{stamp}, p.stamps(t))
}

// The snapshot of a create stands whatever becomes of its push.
func TestCreateAndPush(t *testing.T) {
	type result struct {
		Stamp  string
		Pushed *offsite.Pushed
		Error  *string `json:"push_error"`
	}
	p := newRepository(t)
	o := do(t, p.prepare(t, "create", "--push", "--verify"))
	require.Equal(t, exitDone, o.code, o.stderr)
	first := decode[result](t, o)
	require.Equal(t, first.Stamp, first.Pushed.Stamp)
	require.Nil(t, first.Error)
	require.Contains(t, o.stderr, "It is valid.\nSnapshot "+first.Stamp+" is copied to the repository: ")

	require.NoError(t, os.WriteFile(p.password, []byte("another\n"), 0o600))
	o = do(t, p.prepare(t, "create", "--push"))
	require.Equal(t, exitFailed, o.code, o.stderr)
	second := decode[result](t, o)
	require.Nil(t, second.Pushed)
	require.Contains(t, *second.Error, "--password-file")
	require.Contains(t, o.stderr, "atocore-backup: create: snapshot "+second.Stamp+" is complete, but not pushed: ")
	require.Equal(t, exitDone, atocore(t, "validate", second.Stamp, "--backup-dir", p.backups).code)
	require.ElementsMatch(t, []string{first.Stamp, second.Stamp}, p.stamps(t))
}

// The commands of the guide lead from nothing to a verified copy.
func TestOffsiteGuide(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	p := newPlace(t)
	_, after, found := strings.Cut(readRepository(t, "docs", "offsite.md"), "<!-- a test runs this block -->\n")
	require.True(t, found)
	var script strings.Builder
	for line := range strings.Lines(strings.TrimLeft(after, "\n")) {
		text, indented := strings.CutPrefix(line, "    ")
		if !indented && line != "\n" {
			break
		}
		script.WriteString(text)
	}
	require.LessOrEqual(t, strings.Count(strings.ReplaceAll(script.String(), "\n\n", "\n"), "\n"), 10)

	home := t.TempDir()
	for _, dir := range []string{"data", "config", "bin"} {
		require.NoError(t, os.Mkdir(filepath.Join(home, dir), 0o700))
	}
	makeDatabase(t, filepath.Join(home, "data", "atocore.db"))
	require.NoError(t, os.Rename(p.registry, filepath.Join(home, "config", "project-registry.json")))
	require.NoError(t, os.Rename(p.chroma, filepath.Join(home, "data", "chroma")))
	self := command(t)
	require.NoError(t, os.WriteFile(filepath.Join(home, "bin", "atocore-backup"),
		[]byte("#!/bin/sh\nexec '"+strings.Join(self.Args, "' '")+"' \"$@\"\n"), 0o700))
	cmd := exec.Command("sh", "-euxc", strings.ReplaceAll(script.String(), "/mnt/usb", home))
	cmd.Dir = home
	cmd.Env = append(self.Env, "HOME="+home, "PATH="+filepath.Join(home, "bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Regexp(t, `The copy of \S+ is valid\.`, string(out))
}
