package faults

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite"

	"github.com/atocore/backup/internal/backuptest"
)

var (
	seed      = flag.Uint64("seed", 1, "of everything that is chosen at random")
	injectAll = flag.Bool("inject-all", false, "fail every call with every error and swap at every moment, not a sample")
)

// roles are the roles in which the test binary can be started as a child process.
var roles = backuptest.Roles{}

func TestMain(m *testing.M) {
	backuptest.Play(roles)
	flag.Parse()
	code := m.Run()
	if builtIn != "" {
		os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// random returns a random sequence of the test's own.
func random(t *testing.T) *rand.Rand {
	t.Logf("-seed %d", *seed)
	sum := sha256.Sum256(fmt.Append(nil, *seed, t.Name()))
	return rand.New(rand.NewChaCha8(sum))
}

// now returns the time since an arbitrary moment, to measure durations.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// builtIn is the directory of the programs that were built.
var builtIn string

// The programs of other packages that tests run.
var (
	buildCommand = sync.OnceValues(func() (string, error) { return build("../../../cmd/atocore-backup") })
	buildOnline  = sync.OnceValues(func() (string, error) { return build("./testdata/online") })
)

func build(source string) (path string, err error) {
	tool, err := exec.LookPath("go")
	if err != nil {
		return "", err
	}
	if builtIn == "" {
		if builtIn, err = os.MkdirTemp("", "faults"); err != nil {
			return "", err
		}
	}
	path = filepath.Join(builtIn, filepath.Base(source))
	cmd := exec.Command(tool, "build", "-o", path, source)
	// Without the system's loader, whose calls are not those of the program.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
}

// hang is how long a run of the command may take before it is killed because it
// seems to hang.
const hang = 2 * time.Minute

// command prepares a run of the real command.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return program(t, buildCommand, args...)
}

// program prepares a run of a program that may have to be built first.
func program(t *testing.T, build func() (string, error), args ...string) *exec.Cmd {
	t.Helper()
	path, err := build()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("no go tool to build the program with")
	}
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, args...)
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "ATOCORE_") {
			cmd.Env = append(cmd.Env, entry)
		}
	}
	return cmd
}

// An outcome describes how a run of the command ended. code is -1 if the process
// was killed.
type outcome struct {
	code           int
	stdout, stderr string
}

func do(t *testing.T, cmd *exec.Cmd) outcome {
	t.Helper()
	require.NoError(t, start(cmd))
	return wait(t, cmd)
}

func start(cmd *exec.Cmd) error {
	cmd.Stdout, cmd.Stderr = new(bytes.Buffer), new(bytes.Buffer)
	return cmd.Start()
}

func wait(t *testing.T, cmd *exec.Cmd) outcome {
	t.Helper()
	err := cmd.Wait()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return outcome{cmd.ProcessState.ExitCode(), fmt.Sprint(cmd.Stdout), fmt.Sprint(cmd.Stderr)}
}

// requireDone checks that the run succeeded.
func (o outcome) requireDone(t *testing.T) outcome {
	t.Helper()
	require.Equal(t, 0, o.code, "stdout: %s\nstderr: %s", o.stdout, o.stderr)
	return o
}

// stamp returns the stamp that a run of create printed.
func (o outcome) stamp(t *testing.T) string {
	t.Helper()
	var meta struct{ Stamp string }
	require.NoError(t, json.Unmarshal([]byte(o.stdout), &meta), "stdout: %s", o.stdout)
	require.NotEmpty(t, meta.Stamp)
	return meta.Stamp
}

// failure matches the one line that a failed create prints, with the step and a
// path.
var failure = regexp.MustCompile(`^atocore-backup: create backup: [a-z][A-Za-z ]+: .*/[^\n]*\n$`)

// lastWords returns the end of a message, after the paths and without numbers.
func lastWords(message string) string {
	message = strings.TrimSpace(message)
	return regexp.MustCompile(`\d+`).ReplaceAllString(message[strings.LastIndex(message, ": ")+2:], "N")
}

// memoryDir returns a directory in memory if there is one, for tests that do not
// need a disk and would only wait for it.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "faults")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// addFiles adds n small files to the Chroma directory.
func (s *store) addFiles(n int) *store {
	s.T.Helper()
	dir := filepath.Join(s.ChromaPath, "many")
	require.NoError(s.T, os.MkdirAll(dir, 0o755))
	for i := range n {
		require.NoError(s.T, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), fmt.Appendf(nil, "file %d", i), 0o644))
	}
	return s
}

// A store is a machine store for the real command.
type store struct {
	*backuptest.Store

	// What the tests under load have seen: the generations in snapshots, and the
	// largest size of the WAL.
	generations map[int]bool
	wal         int64
}

// newStore creates a machine store in dir: a database in the given journal mode
// with balanced accounts, a registry, and a real Chroma directory that also has
// a deep and a read-only directory.
func newStore(t *testing.T, dir, mode string) *store {
	t.Helper()
	s := &store{Store: &backuptest.Store{T: t, Dir: dir, Options: backuptest.OptionsIn(dir)}}
	for _, path := range []string{s.DatabasePath, s.RegistryPath} {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	}
	makeDatabase(t, s.DatabasePath, mode)
	require.NoError(t, os.WriteFile(s.RegistryPath, []byte(`{"projects": ["α"]}`), 0o640))
	require.NoError(t, backuptest.WriteChroma(s.ChromaPath))
	closed := s.InChroma("closed")
	deep := filepath.Join(closed, "a", "b", "c")
	require.NoError(t, os.MkdirAll(deep, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(deep, "new\nline"), []byte("deep"), 0o400))
	require.NoError(t, os.Chmod(closed, 0o555))
	t.Cleanup(func() { _ = os.Chmod(closed, 0o755) }) // so that it can be removed
	return s
}

// makeDatabase creates a database with balanced accounts and a table of 100 KB. In
// WAL mode it leaves a WAL with transactions that are not in the database file
// yet, as if the service had died.
func makeDatabase(t *testing.T, path, mode string) {
	t.Helper()
	db := backuptest.OpenDB(t, path, "_pragma=journal_mode("+mode+")", "_pragma=synchronous(off)")
	backuptest.FillDatabase(t, db)
	_, err := db.Exec("CREATE TABLE bulk (pad BLOB NOT NULL); INSERT INTO bulk SELECT randomblob(1000) FROM account")
	require.NoError(t, err)
	if mode != "wal" {
		require.NoError(t, db.Close())
		return
	}
	_, err = db.Exec("PRAGMA wal_checkpoint(TRUNCATE)")
	require.NoError(t, err)
	for i := range 10 {
		require.NoError(t, backuptest.Move(t.Context(), db, i, i+1, 10*i))
	}
	backuptest.KeepWAL(t, db, path)
}

// flags returns the command's flags for this store.
func (s *store) flags() []string {
	return []string{"--db", s.DatabasePath, "--registry", s.RegistryPath, "--chroma", s.ChromaPath, "--backup-dir", s.BackupDir}
}

// createCmd prepares a run of the command create that includes Chroma.
func (s *store) createCmd() *exec.Cmd {
	s.T.Helper()
	return command(s.T, append([]string{"create", "--include-chroma"}, s.flags()...)...)
}

// validateCmd prepares a run of the command validate.
func (s *store) validateCmd(stamp string) *exec.Cmd {
	s.T.Helper()
	return command(s.T, append([]string{"validate", stamp}, s.flags()...)...)
}

// requireLiveSound checks that the live database is sound.
func (s *store) requireLiveSound() {
	s.T.Helper()
	db := backuptest.OpenDB(s.T, s.DatabasePath)
	backuptest.RequireBalanced(s.T, db)
	require.NoError(s.T, db.Close())
}
