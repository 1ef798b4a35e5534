package faults

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
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

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var (
	seed      = flag.Uint64("seed", 1, "of everything that is chosen at random")
	injectAll = flag.Bool("inject-all", false, "fail every call with every error and swap at every moment, not a sample")
)

// roleEnv in the environment makes the test binary one of the other processes
// that a test needs.
const roleEnv = "FAULTS_ROLE"

var roles = map[string]func() error{}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := roles[role](); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	flag.Parse()
	code := m.Run()
	if builtIn != "" {
		os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// random gives a test its own sequence.
func random(t *testing.T) *rand.Rand {
	t.Logf("-seed %d", *seed)
	sum := sha256.Sum256(fmt.Append(nil, *seed, t.Name()))
	return rand.New(rand.NewChaCha8(sum))
}

// now is the time since an arbitrary moment, for durations that are measured
// and reported.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// builtIn is the directory of what was built.
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
	// Without the system's loader, whose calls are not the program's.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
}

// hang is how long a run of the command may take before it is taken for one
// that would never end.
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

// An outcome is how a run of the command ended. code is -1 for a process that
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

// stamp is the stamp of the snapshot that a run of create printed.
func (o outcome) stamp(t *testing.T) string {
	t.Helper()
	var meta struct{ Stamp string }
	require.NoError(t, json.Unmarshal([]byte(o.stdout), &meta), "stdout: %s", o.stdout)
	require.NotEmpty(t, meta.Stamp)
	return meta.Stamp
}

// failure is the form of the one line that a failed create prints: the step,
// and a path.
var failure = regexp.MustCompile(`^atocore-backup: create backup: [a-z][A-Za-z ]+: .*/[^\n]*\n$`)

// lastWords are the end of a message, behind the paths, without numbers.
func lastWords(message string) string {
	message = strings.TrimSpace(message)
	return regexp.MustCompile(`\d+`).ReplaceAllString(message[strings.LastIndex(message, ": ")+2:], "N")
}

// memoryDir is a directory in memory if there is one, for tests that make no
// use of a disk but would wait for it.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "faults")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// A store is a machine store and its backup directory.
type store struct {
	t                             *testing.T
	dir                           string
	db, registry, chroma, backups string

	// What a test of the load has seen: generations in snapshots, and the
	// largest size of the WAL.
	generations map[int]bool
	wal         int64
}

// newStore makes a machine store in dir: a database in the given journal mode
// with balanced accounts, a registry, and a real Chroma directory in which
// there are also a deep and a read-only directory.
func newStore(t *testing.T, dir, mode string) *store {
	t.Helper()
	s := &store{
		t:        t,
		dir:      dir,
		db:       filepath.Join(dir, "data", "atocore.db"),
		registry: filepath.Join(dir, "config", "project-registry.json"),
		chroma:   filepath.Join(dir, "data", "chroma"),
		backups:  filepath.Join(dir, "backups"),
	}
	for _, path := range []string{s.db, s.registry} {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	}
	makeDatabase(t, s.db, mode)
	require.NoError(t, os.WriteFile(s.registry, []byte(`{"projects": ["α"]}`), 0o640))
	require.NoError(t, backuptest.WriteChroma(s.chroma))
	closed := filepath.Join(s.chroma, "closed")
	deep := filepath.Join(closed, "a", "b", "c")
	require.NoError(t, os.MkdirAll(deep, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(deep, "new\nline"), []byte("deep"), 0o400))
	require.NoError(t, os.Chmod(closed, 0o555))
	t.Cleanup(func() { _ = os.Chmod(closed, 0o755) }) // so that it can be removed
	return s
}

// addFiles adds n small files to the Chroma directory.
func (s *store) addFiles(n int) *store {
	s.t.Helper()
	dir := filepath.Join(s.chroma, "many")
	require.NoError(s.t, os.MkdirAll(dir, 0o755))
	for i := range n {
		require.NoError(s.t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), fmt.Appendf(nil, "file %d", i), 0o644))
	}
	return s
}

// flags are the command's for this store.
func (s *store) flags() []string {
	return []string{"--db", s.db, "--registry", s.registry, "--chroma", s.chroma, "--backup-dir", s.backups}
}

// options are the library's for this store.
func (s *store) options() backup.Options {
	return backup.Options{DatabasePath: s.db, RegistryPath: s.registry, ChromaPath: s.chroma, BackupDir: s.backups, IncludeChroma: true}
}

// create prepares a run of create that includes Chroma.
func (s *store) create() *exec.Cmd {
	s.t.Helper()
	return command(s.t, append([]string{"create", "--include-chroma"}, s.flags()...)...)
}

// validate prepares a run of validate.
func (s *store) validate(stamp string) *exec.Cmd {
	s.t.Helper()
	return command(s.t, append([]string{"validate", stamp}, s.flags()...)...)
}

func (s *store) snapshot(stamp string) string { return filepath.Join(s.backups, "snapshots", stamp) }

// stamps are the snapshots that anybody can see.
func (s *store) stamps() (stamps []string) {
	s.t.Helper()
	list, err := backup.ListRuntimeBackups(context.Background(), backup.Options{BackupDir: s.backups})
	require.NoError(s.t, err)
	for _, snapshot := range list {
		stamps = append(stamps, snapshot.Stamp)
	}
	return stamps
}

// requireValid checks that every visible snapshot validates, and returns them.
func (s *store) requireValid() []string {
	s.t.Helper()
	stamps := s.stamps()
	for _, stamp := range stamps {
		_, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: s.backups}, stamp)
		require.NoError(s.t, err)
	}
	return stamps
}

// staging lists the staging directories.
func (s *store) staging() []string {
	s.t.Helper()
	names, err := filepath.Glob(filepath.Join(s.backups, ".atocore-staging-*"))
	require.NoError(s.t, err)
	return names
}

// requireLiveSound checks the live database: SQLite's own check, and the
// accounts.
func (s *store) requireLiveSound() {
	s.t.Helper()
	db := openDB(s.t, s.db)
	requireSound(s.t, db)
	require.NoError(s.t, db.Close())
}

// openDB opens a database with a pool of one connection.
func openDB(t *testing.T, path string, params ...string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, params...))
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

func dsn(path string, params ...string) string {
	u := url.URL{Scheme: "file", Path: path}
	return u.String() + "?" + strings.Join(append(params, "_pragma=busy_timeout(300000)"), "&")
}

const accounts = 100

// makeDatabase makes a database in which the balances of all accounts add up
// to 0; transfer keeps that. In WAL mode it leaves a WAL with transactions that
// are not in the database file yet.
func makeDatabase(t *testing.T, path, mode string) {
	t.Helper()
	db := openDB(t, path, "_pragma=journal_mode("+mode+")", "_pragma=synchronous(off)")
	_, err := db.Exec(fmt.Sprintf(`CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
		CREATE TABLE bulk (pad BLOB NOT NULL);
		WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO account SELECT i, 0 FROM n;
		INSERT INTO bulk SELECT randomblob(1000) FROM account;`, accounts-1))
	require.NoError(t, err)
	if mode != "wal" {
		require.NoError(t, db.Close())
		return
	}
	_, err = db.Exec("PRAGMA wal_checkpoint(TRUNCATE)")
	require.NoError(t, err)
	for i := range 10 {
		require.NoError(t, transfer(db, i, i+1, 10*i))
	}
	// As if the service had died: closing would empty the WAL.
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(path + suffix)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path+".copy"+suffix, data, 0o644))
	}
	require.NoError(t, db.Close())
	for _, suffix := range []string{"", "-wal"} {
		require.NoError(t, os.Rename(path+".copy"+suffix, path+suffix))
	}
}

func transfer(db *sql.DB, from, to, amount int) error {
	_, err := db.Exec(fmt.Sprintf(`BEGIN IMMEDIATE;
		UPDATE account SET balance = balance - %d WHERE id = %d;
		UPDATE account SET balance = balance + %d WHERE id = %d;
		COMMIT`, amount, from, amount, to))
	return err
}

// requireSound checks a database.
func requireSound(t *testing.T, db *sql.DB) {
	t.Helper()
	var text string
	require.NoError(t, db.QueryRow("PRAGMA integrity_check").Scan(&text))
	require.Equal(t, "ok", text)
	var sum, n int
	require.NoError(t, db.QueryRow("SELECT sum(balance), count(*) FROM account").Scan(&sum, &n))
	require.Zero(t, sum, "the balances do not add up")
	require.Equal(t, accounts, n)
}

// picture describes everything below dir, by path, so that two can be
// compared. Paths for which skip is true are left out with all below them.
func picture(t *testing.T, dir string, skip func(path string) bool) map[string]string {
	t.Helper()
	seen := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if rel == "." {
			return nil
		}
		if skip != nil && skip(rel) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		text := fmt.Sprint(info.Mode())
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %s %x", info.ModTime(), sha256.Sum256(data))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " " + target
		}
		seen[rel] = text
		return nil
	})
	require.NoError(t, err)
	return seen
}
