package sqlitedb

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/errdefs"
)

// roleEnv in the environment makes the test binary one of the roles.
const roleEnv = "SQLITEDB_TEST_ROLE"

var roles = map[string]func(path string) error{"hold": hold, "read": readOnce, "lock": lockOnce}

func TestMain(m *testing.M) {
	if name := os.Getenv(roleEnv); name != "" {
		if err := roles[name](os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func roleCmd(t *testing.T, name, path string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self, path)
	cmd.Env = append(os.Environ(), roleEnv+"="+name, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// hold does with the file at path what each line of standard input says, and
// says "done" then. It ends with its input.
func hold(path string) error {
	var file *os.File
	db, err := sql.Open("sqlite", URI(path, "rw", "_pragma=busy_timeout(0)"))
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1) // so that each statement finds the transaction of the one before
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch line := lines.Text(); line {
		case "open":
			file, err = os.Open(path)
		case "close":
			err = file.Close()
		default:
			_, err = db.Exec(line)
		}
		if err != nil {
			return err
		}
		fmt.Println("done")
	}
	return nil
}

// readOnce reads from the database, as a service does.
func readOnce(path string) error {
	db, err := sql.Open("sqlite", URI(path, "rw", "_pragma=busy_timeout(0)"))
	if err != nil {
		return err
	}
	defer db.Close()
	var n int
	return db.QueryRow("SELECT count(*) FROM t").Scan(&n)
}

// lockOnce locks the database and says which kind of error that was.
func lockOnce(path string) error {
	source, err := Lock(context.Background(), path)
	var code int
	if e := new(sqlite.Error); errors.As(err, &e) {
		code = e.Code()
	}
	fmt.Printf("locked %t, invalid %t, broken %t, code %d\n", source != nil, errors.Is(err, errdefs.ErrSourceInvalid), IsBroken(err), code)
	return nil
}

// A holder is a process in the role "hold".
type holder struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

func startHolder(t *testing.T, path string, statements ...string) *holder {
	t.Helper()
	h := &holder{t: t, cmd: roleCmd(t, "hold", path)}
	var err error
	h.stdin, err = h.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := h.cmd.StdoutPipe()
	require.NoError(t, err)
	h.stdout = bufio.NewReader(stdout)
	h.cmd.Stderr = os.Stderr
	require.NoError(t, h.cmd.Start())
	t.Cleanup(h.end)
	for _, statement := range statements {
		h.do(statement)
	}
	return h
}

func (h *holder) do(line string) {
	h.t.Helper()
	_, err := fmt.Fprintln(h.stdin, line)
	require.NoError(h.t, err)
	answer, err := h.stdout.ReadString('\n')
	require.NoError(h.t, err)
	require.Equal(h.t, "done\n", answer)
}

func (h *holder) end() {
	h.stdin.Close()
	_ = h.cmd.Wait()
}

// newDatabase creates a database in a journal mode and returns its path. If
// keepWAL is set, its content is in the WAL, as after the writer was killed.
func newDatabase(t *testing.T, mode string, keepWAL bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.db")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	h := startHolder(t, path, "PRAGMA journal_mode="+mode, "CREATE TABLE t (x)", "INSERT INTO t VALUES (randomblob(20000))")
	if keepWAL {
		require.NoError(t, h.cmd.Process.Kill())
	}
	h.end()
	return path
}

// Lock notices each connection that could write to the database or read from
// it: in WAL mode an idle one, too.
func TestLockNoticesConnections(t *testing.T) {
	for _, mode := range []string{"delete", "wal"} {
		for _, test := range []struct {
			name       string
			statements []string
			free       bool // of rollback mode
		}{
			{"idle", []string{"SELECT * FROM t"}, true},
			{"reader", []string{"BEGIN", "SELECT * FROM t"}, false},
			{"writer", []string{"BEGIN IMMEDIATE"}, false},
		} {
			t.Run(mode+" "+test.name, func(t *testing.T) {
				path := newDatabase(t, mode, false)
				h := startHolder(t, path, test.statements...)
				source, err := Lock(t.Context(), path)
				if mode == "delete" && test.free {
					require.NoError(t, err)
					require.NoError(t, source.Close())
				} else {
					require.ErrorIs(t, err, errdefs.ErrDatabaseInUse)
					require.False(t, IsBroken(err))
				}
				h.end()
				source, err = Lock(t.Context(), path)
				require.NoError(t, err, "nobody has it open any more")
				require.NoError(t, source.Close())
			})
		}
	}
}

// Until the Source is closed, nobody reads the database or writes to it.
func TestLockKeepsOthersOut(t *testing.T) {
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			path := newDatabase(t, mode, false)
			source, err := Lock(t.Context(), path)
			require.NoError(t, err)
			require.ErrorContains(t, run(roleCmd(t, "read", path)), "SQLITE_BUSY")
			_, err = Lock(t.Context(), path)
			require.ErrorIs(t, err, errdefs.ErrDatabaseInUse)
			require.NoError(t, source.Close())
			require.NoError(t, run(roleCmd(t, "read", path)))
		})
	}
}

// run returns what the process wrote to standard error as its error.
func run(cmd *exec.Cmd) error {
	_, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return errors.New(string(exit.Stderr))
	}
	return err
}
