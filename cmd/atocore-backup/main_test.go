package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// The test binary can be the command, so that the tests run it as a separate
// process.
func TestMain(m *testing.M) {
	backuptest.Main(m, backuptest.Roles{"cut": cutRestore, "command": func(*backuptest.Parent, []string) error {
		main()
		return nil
	}})
}

// command prepares a run of the command without the ATOCORE_ variables of the
// environment, and without those of restic and its places.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := backuptest.Command(t, "command", args...)
	cmd.Dir = t.TempDir()
	cmd.Env = slices.DeleteFunc(cmd.Env, func(entry string) bool {
		return strings.HasPrefix(entry, "ATOCORE_") || strings.HasPrefix(entry, "RESTIC_") || strings.HasPrefix(entry, "AWS_")
	})
	// The race detector would sleep for a second at each exit.
	cmd.Env = append(cmd.Env, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// An outcome describes how a run ended.
type outcome struct {
	code           int
	stdout, stderr string
}

// do runs a command that was prepared.
func do(t *testing.T, cmd *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// atocore runs the command.
func atocore(t *testing.T, args ...string) outcome {
	t.Helper()
	return do(t, command(t, args...))
}

// requireFailed checks that the command failed as every failure should: with exit
// status 2, no standard output, and a single message that contains all words.
func (o outcome) requireFailed(t *testing.T, words ...string) {
	t.Helper()
	o.requireStatus(t, exitFailed, words...)
}

// requireStatus checks the same with another status.
func (o outcome) requireStatus(t *testing.T, status int, words ...string) {
	t.Helper()
	require.Equal(t, status, o.code, "stderr: %s", o.stderr)
	require.Empty(t, o.stdout)
	require.True(t, strings.HasPrefix(o.stderr, "atocore-backup: "), "stderr: %s", o.stderr)
	require.Equal(t, len(o.stderr)-1, strings.IndexByte(o.stderr, '\n'), "more than one line: %s", o.stderr)
	for _, word := range words {
		require.Contains(t, o.stderr, word)
	}
}

// decode decodes standard output, which must be one indented JSON document.
func decode[T any](t *testing.T, o outcome) (v T) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(o.stdout))
	require.NoError(t, decoder.Decode(&v), "stdout: %s; stderr: %s", o.stdout, o.stderr)
	_, err := decoder.Token()
	require.ErrorIs(t, err, io.EOF, "more than one document")

	var compact, indented bytes.Buffer
	require.NoError(t, json.Compact(&compact, []byte(o.stdout)))
	require.NoError(t, json.Indent(&indented, compact.Bytes(), "", "  "))
	require.Equal(t, indented.String()+"\n", o.stdout)
	return v
}

type report struct {
	Stamp  string
	Exists bool
	DBOK   bool `json:"db_ok"`
	Errors []string
	Valid  bool
}

type entry struct {
	Stamp         string
	HasMetadata   bool   `json:"has_metadata"`
	MetadataError string `json:"metadata_error"`
}

// A store is a machine store whose database is in use.
type store struct {
	db, registry, chroma, backups string
	live                          *sql.DB // the connection that keeps it in use
}

// newStore creates a store with a few notes, a registry and one Chroma file.
func newStore(t *testing.T) store {
	t.Helper()
	dir := t.TempDir()
	s := store{
		db:       filepath.Join(dir, "atocore.db"),
		registry: filepath.Join(dir, "registry.json"),
		chroma:   filepath.Join(dir, "chroma"),
		backups:  filepath.Join(dir, "backups"),
	}
	s.live = makeDatabase(t, s.db)
	require.NoError(t, os.WriteFile(s.registry, []byte(`{"projects": []}`), 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(s.chroma, "segment"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(s.chroma, "segment", "data.bin"), []byte("vectors"), 0o600))
	return s
}

// makeDatabase creates a database and returns a connection to it.
func makeDatabase(t *testing.T, path string) *sql.DB {
	t.Helper()
	db := backuptest.OpenDB(t, path)
	_, err := db.Exec(`PRAGMA journal_mode = WAL; CREATE TABLE notes (text); INSERT INTO notes VALUES ('first')`)
	require.NoError(t, err)
	return db
}

// flags returns the command's flags for the store.
func (s store) flags() []string {
	return []string{"--db", s.db, "--registry", s.registry, "--chroma", s.chroma, "--backup-dir", s.backups}
}

// create takes a snapshot and returns its stamp and directory.
func (s store) create(t *testing.T) (stamp, dir string) {
	t.Helper()
	o := atocore(t, append([]string{"create"}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	stamp = decode[struct{ Stamp string }](t, o).Stamp
	return stamp, filepath.Join(s.backups, "snapshots", stamp)
}

// snapshots returns the store's snapshots as they are on the disk.
func (s store) snapshots(t *testing.T) *backuptest.Store {
	return &backuptest.Store{T: t, Options: backup.Options{BackupDir: s.backups}}
}

// requireNoSnapshot checks that an attempt left nothing behind.
func (s store) requireNoSnapshot(t *testing.T) {
	t.Helper()
	s.snapshots(t).RequireNoSnapshot()
}

func TestUsageErrors(t *testing.T) {
	for _, test := range []struct {
		args  []string
		words []string
	}{
		{[]string{"frobnicate"}, []string{"frobnicate"}},
		{[]string{"list", "--frobnicate"}, []string{"--frobnicate"}},
		{[]string{"list", "--backup-dir"}, []string{"--backup-dir", "missing"}},
		{[]string{"list", "surplus", "--backup-dir", "b"}, []string{"surplus"}},
		{[]string{"list"}, []string{"--backup-dir", "ATOCORE_BACKUP_DIR"}},
		{[]string{"validate", "--backup-dir", "b"}, []string{"stamp"}},
		{[]string{"validate", "--backup-dir", "b", "one", "two"}, []string{"two"}},
		{[]string{"validate", "one"}, []string{"--backup-dir", "ATOCORE_BACKUP_DIR"}},
		{[]string{"create"}, []string{"ATOCORE_DB_PATH", "ATOCORE_BACKUP_DIR"}},
		{[]string{"create", "--include-chroma"}, []string{"ATOCORE_DB_PATH", "ATOCORE_BACKUP_DIR", "ATOCORE_CHROMA_PATH"}},
		{[]string{"create", "--db", "d", "--backup-dir", "b", "--guard-file", ""}, []string{"--guard-file"}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			atocore(t, test.args...).requireFailed(t, test.words...)
		})
	}
}

func TestHelpAndVersionGoToStandardOutput(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"create", "--help"}, {"validate", "-h"}, {"--version"}} {
		o := atocore(t, args...)
		require.Equal(t, exitDone, o.code, o.stderr)
		require.Contains(t, o.stdout, "atocore-backup")
		require.Empty(t, o.stderr)
	}
}

func TestCreateThenListThenValidate(t *testing.T) {
	s := newStore(t)

	o := atocore(t, append([]string{"create", "--include-chroma"}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	metadata := decode[map[string]any](t, o)
	stamp := metadata["stamp"].(string)
	require.Equal(t, true, metadata["chroma_snapshot_included"])
	require.EqualValues(t, 1, metadata["chroma_snapshot_files"])
	require.Equal(t, 1, strings.Count(o.stderr, "\n"), o.stderr)
	require.Contains(t, o.stderr, stamp)
	require.Contains(t, o.stderr, "registry, Chroma 1 file 7 B")

	o = atocore(t, "list", "--backup-dir", s.backups)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, []entry{{Stamp: stamp, HasMetadata: true}}, decode[[]entry](t, o))
	require.Equal(t, fmt.Sprintf("1 snapshot in %s.\n", s.backups), o.stderr)

	o = atocore(t, "validate", "--backup-dir", s.backups, stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, report{Stamp: stamp, Exists: true, DBOK: true, Errors: []string{}, Valid: true}, decode[report](t, o))
	require.Equal(t, fmt.Sprintf("Snapshot %q is valid.\n", stamp), o.stderr)
}

func TestEnvironmentNamesTheStore(t *testing.T) {
	s := newStore(t)
	other := newStore(t)
	environment := []string{
		"ATOCORE_DB_PATH=" + s.db,
		"ATOCORE_PROJECT_REGISTRY_PATH=" + s.registry,
		"ATOCORE_CHROMA_PATH=" + s.chroma,
		"ATOCORE_BACKUP_DIR=" + s.backups,
	}
	with := func(args ...string) outcome {
		cmd := command(t, args...)
		cmd.Env = append(cmd.Env, environment...)
		return do(t, cmd)
	}

	o := with("create", "--include-chroma")
	require.Equal(t, exitDone, o.code, o.stderr)
	metadata := decode[map[string]any](t, o)
	stamp := metadata["stamp"].(string)
	snapshot := filepath.Join(s.backups, "snapshots", stamp)
	require.FileExists(t, filepath.Join(snapshot, "db", "atocore.db"))
	require.FileExists(t, filepath.Join(snapshot, "config", "registry.json"))
	require.FileExists(t, filepath.Join(snapshot, "chroma", "segment", "data.bin"))

	require.Equal(t, exitDone, with("validate", stamp).code)
	require.Len(t, decode[[]entry](t, with("list")), 1)

	// A flag overrides its variable.
	require.NoError(t, os.Mkdir(other.backups, 0o700))
	require.Empty(t, decode[[]entry](t, with("list", "--backup-dir", other.backups)))
}

func TestFlagsMayPrecedeOrFollowTheStamp(t *testing.T) {
	s := newStore(t)
	stamp, _ := s.create(t)
	for _, args := range [][]string{
		{"validate", "--backup-dir", s.backups, stamp},
		{"validate", stamp, "--backup-dir", s.backups},
		{"validate", stamp, "--backup-dir=" + s.backups},
		{"validate", "--db", s.db, stamp, "--backup-dir", s.backups, "--chroma=" + s.chroma},
		{"validate", "--backup-dir", s.backups, "--", stamp},
	} {
		o := atocore(t, args...)
		require.Equal(t, exitDone, o.code, o.stderr)
		require.Equal(t, stamp, decode[report](t, o).Stamp)
	}
}

func TestEveryStampReachesTheLibrary(t *testing.T) {
	s := newStore(t)
	s.create(t)
	for _, stamp := range []string{"", ".", "..", "../x", "/etc", "a/b", "-x", "--backup-dir", "a b", "no\nsuch", "\x1b[2J"} {
		t.Run(fmt.Sprintf("%q", stamp), func(t *testing.T) {
			o := atocore(t, "validate", "--backup-dir", s.backups, "--", stamp)
			require.Equal(t, exitMissing, o.code, o.stderr)
			r := decode[report](t, o)
			require.Equal(t, stamp, r.Stamp)
			require.False(t, r.Valid)
			require.NotEmpty(t, r.Errors)
			require.NotContains(t, o.stderr, "\x1b")
		})
	}
}

func TestInvalidSnapshotIsReported(t *testing.T) {
	s := newStore(t)
	stamp, dir := s.create(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config", "registry.json"), []byte("{"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "surplus"), nil, 0o600))

	o := atocore(t, "validate", stamp, "--backup-dir", s.backups)
	require.Equal(t, exitInvalid, o.code)
	r := decode[report](t, o)
	require.False(t, r.Valid)
	require.GreaterOrEqual(t, len(r.Errors), 3, "changed, not JSON, surplus: %q", r.Errors)
	lines := strings.Split(strings.TrimSuffix(o.stderr, "\n"), "\n")
	require.Len(t, lines, 1+len(r.Errors))
	for i, problem := range r.Errors {
		require.Equal(t, "  "+problem, lines[1+i])
	}
}

func TestListOfNothingIsAnEmptyArray(t *testing.T) {
	o := atocore(t, "list", "--backup-dir", t.TempDir())
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, "[]\n", o.stdout)
}

func TestListCountsSnapshotsWithoutMetadata(t *testing.T) {
	s := newStore(t)
	stamp, _ := s.create(t)
	for name, metadata := range map[string]string{"19990101T000000Z": "{", "19990102T000000Z": ""} {
		dir := filepath.Join(s.backups, "snapshots", name)
		require.NoError(t, os.Mkdir(dir, 0o700))
		if metadata != "" {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "backup-metadata.json"), []byte(metadata), 0o600))
		}
	}
	o := atocore(t, "list", "--backup-dir", s.backups)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, []entry{
		{Stamp: "19990101T000000Z", HasMetadata: true, MetadataError: "invalid_json"},
		{Stamp: "19990102T000000Z"},
		{Stamp: stamp, HasMetadata: true},
	}, decode[[]entry](t, o))
	require.Contains(t, o.stderr, "3 snapshots")
	require.Contains(t, o.stderr, "2 of them without readable metadata")
}

func TestFailuresNamePathAndReason(t *testing.T) {
	s := newStore(t)
	absent := filepath.Join(t.TempDir(), "absent\n.db")
	atocore(t, "create", "--db", absent, "--backup-dir", s.backups).
		requireFailed(t, "absent; .db", "no such file")
	require.NoFileExists(t, absent)
	s.requireNoSnapshot(t)

	atocore(t, "create", "--db", s.db, "--backup-dir", filepath.Join(s.chroma, "b"), "--chroma", s.chroma, "--include-chroma").
		requireFailed(t, s.chroma, "inside")
	require.NoDirExists(t, filepath.Join(s.chroma, "b"))

	atocore(t, "create", "--db", s.registry, "--backup-dir", s.backups).requireFailed(t, s.registry)
	s.requireNoSnapshot(t)

	for _, args := range [][]string{{"create", "--db", s.db}, {"list"}, {"validate", "x"}} {
		atocore(t, append(args, "--backup-dir", s.registry)...).requireFailed(t, s.registry)
	}
}

func TestMissingChromaDirectoryIsReported(t *testing.T) {
	s := newStore(t)
	s.chroma = filepath.Join(t.TempDir(), "absent")
	o := atocore(t, append([]string{"create", "--include-chroma"}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, false, decode[map[string]any](t, o)["chroma_snapshot_included"])
	require.Contains(t, o.stderr, s.chroma)
	require.Contains(t, o.stderr, "no Chroma")
}

func TestMissingRegistryIsReported(t *testing.T) {
	s := newStore(t)
	s.registry = filepath.Join(t.TempDir(), "absent")
	o := atocore(t, append([]string{"create"}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Contains(t, o.stderr, "There is no registry "+s.registry+"; the snapshot does not include it.\n")
	require.Contains(t, o.stderr, "no registry")
	o = atocore(t, "create", "--db", s.db, "--backup-dir", s.backups)
	require.NotContains(t, o.stderr, "There is no registry", "none was given")
}

func TestVerboseShowsTheLog(t *testing.T) {
	s := newStore(t)
	for _, args := range [][]string{{"create", "--verbose"}, {"-v", "create"}} {
		o := atocore(t, append(args, s.flags()...)...)
		require.Equal(t, exitDone, o.code, o.stderr)
		require.Contains(t, o.stderr, "msg=runtime_backup_created")
		decode[map[string]any](t, o)
	}
	o := atocore(t, append([]string{"create"}, s.flags()...)...)
	require.NotContains(t, o.stderr, "runtime_backup_created")
}

func TestPathsNeedNotBeUTF8(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs file names of arbitrary bytes")
	}
	s := newStore(t)
	s.db = filepath.Join(t.TempDir(), "db\xff")
	makeDatabase(t, s.db)
	_, dir := s.create(t)
	require.FileExists(t, filepath.Join(dir, "db", "db\xff"))
}

func TestUnwritableStandardOutputIsAFailure(t *testing.T) {
	s := newStore(t)
	stamp, _ := s.create(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("needs /dev/full:", err)
	}
	defer full.Close()
	readOnly, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer readOnly.Close()

	for _, stdout := range []*os.File{full, readOnly} {
		for _, args := range [][]string{
			append([]string{"create"}, s.flags()...),
			{"list", "--backup-dir", s.backups},
			{"validate", "--backup-dir", s.backups, stamp},
			{"validate", "--backup-dir", s.backups, "absent"},
			{"--help"},
			{"--version"},
		} {
			cmd := command(t, args...)
			cmd.Stdout = stdout
			o := do(t, cmd)
			o.requireFailed(t, "print the result")
			if args[0] == "create" {
				require.Regexp(t, `snapshot \d{8}T\d{6}Z\S* is complete`, o.stderr)
			}
		}
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "",
		"one\ntwo\n":                   "one; two",
		"tab\there":                    "tab here",
		"Übung \u6587":                 "Übung \u6587",
		"\x1b[2J\x00\u202e\u0085\xff'": `\x1b[2J\x00\u202e\u0085\xff'`,
	} {
		assert.Equal(t, want, oneLine(in))
	}
}
