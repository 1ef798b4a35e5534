package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

func TestMain(m *testing.M) {
	backuptest.Play(backuptest.Roles{"sandbox": backuptest.InSandbox})
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// The stores are in memory if possible: most calls are there too, and the syncs
	// need no disk.
	if memory, err := os.MkdirTemp("/dev/shm", "sandbox"); err == nil {
		os.Setenv("TMPDIR", memory)
		defer os.RemoveAll(memory)
	}
	defer func() {
		if builtIn != "" {
			os.RemoveAll(builtIn)
		}
	}()
	return m.Run()
}

// builtIn is the directory of the command.
var builtIn string

var buildCommand = sync.OnceValues(func() (path string, err error) {
	tool, err := exec.LookPath("go")
	if err != nil {
		return "", err
	}
	if builtIn, err = os.MkdirTemp("", "sandbox"); err != nil {
		return "", err
	}
	path = filepath.Join(builtIn, "atocore-backup")
	cmd := exec.Command(tool, "build", "-o", path, "../../../cmd/atocore-backup")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // without the system's loader, whose calls are not the program's
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// A sandbox refuses calls with an error.
type sandbox struct {
	name    string
	with    syscall.Errno
	refused []string
}

// sandboxes refuse the calls one by one and all at once, in the ways that
// sandboxes do.
func sandboxes() (all []sandbox) {
	calls := backuptest.RefusableCalls()
	for _, with := range []syscall.Errno{unix.EPERM, unix.ENOSYS} {
		for _, call := range calls {
			all = append(all, sandbox{unix.ErrnoName(with) + "/" + call, with, []string{call}})
		}
	}
	for _, with := range []syscall.Errno{unix.EPERM, unix.ENOSYS, unix.EACCES, unix.EINVAL, unix.EOPNOTSUPP} {
		all = append(all, sandbox{unix.ErrnoName(with) + "/all", with, calls})
	}
	// As on a file system without hard links, or where a profile forbids them.
	return append(all, sandbox{"EPERM/renameat2 and linkat", unix.EPERM, []string{"renameat2", "linkat"}})
}

// run runs the real command on a store in the sandbox, and returns its standard
// output. It must succeed.
func (b sandbox) run(t *testing.T, s *backuptest.Store, args ...string) string {
	t.Helper()
	out, message, err := b.try(t, s, args...)
	require.NoError(t, err, "%s: %s", args[0], message)
	return out
}

// try runs the real command and returns what it printed.
func (b sandbox) try(t *testing.T, s *backuptest.Store, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	path, err := buildCommand()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("no go tool to build the command with")
	}
	require.NoError(t, err)
	cmd := backuptest.Command(t, "sandbox", fmt.Sprint(int(b.with)), strings.Join(b.refused, ","), path)
	cmd.Args = append(append(cmd.Args, args...),
		"--db", s.DatabasePath, "--registry", s.RegistryPath, "--chroma", s.ChromaPath, "--backup-dir", s.BackupDir)
	cmd.Env = append(cmd.Env, "TMPDIR="+filepath.Join(s.Dir, "tmp"))
	messages := new(strings.Builder)
	cmd.Stderr = messages
	out, err := cmd.Output()
	if err != nil && strings.Contains(messages.String(), backuptest.ErrNoSandbox.Error()) {
		t.Skip(messages.String())
	}
	return string(out), messages.String(), err
}

// create takes a snapshot and returns its stamp.
func (b sandbox) create(t *testing.T, s *backuptest.Store) string {
	t.Helper()
	var made struct{ Stamp string }
	require.NoError(t, json.Unmarshal([]byte(b.run(t, s, "create", "--include-chroma")), &made))
	require.NotEmpty(t, made.Stamp)
	return made.Stamp
}

// newStore creates a machine store. If many is set, its Chroma directory has so
// many files that they would be synced together.
func newStore(t *testing.T, many bool) *backuptest.Store {
	t.Helper()
	s := backuptest.NewSmallStore(t)
	require.NoError(t, os.Mkdir(filepath.Join(s.Dir, "tmp"), 0o700))
	count := 3
	if many {
		count = 1000
	}
	for i := range count {
		backuptest.Write(t, s.InChroma(fmt.Sprint("file-", i)), fmt.Sprint("old ", i))
	}
	large := s.InChroma("large")
	backuptest.Write(t, large, strings.Repeat("0123456789abcdef", 17<<16)) // synced in steps
	sparse := s.InChroma("sparse")
	backuptest.Write(t, sparse, "begin")
	require.NoError(t, os.Truncate(sparse, 1<<20))
	return s
}

// contents returns what a restore of the store must bring back.
func contents(t *testing.T, s *backuptest.Store) map[string]any {
	t.Helper()
	tree := map[string]any{}
	for name, file := range backuptest.ReadTree(t, s.ChromaPath) {
		if name != "." {
			tree["chroma/"+name] = file
		}
	}
	registry, err := os.ReadFile(s.RegistryPath)
	require.NoError(t, err)
	tree["registry"] = string(registry)
	db := backuptest.OpenDB(t, backuptest.CopyWithWAL(t, s.DatabasePath))
	defer db.Close()
	backuptest.RequireBalanced(t, db)
	var sum string
	require.NoError(t, db.QueryRow("SELECT group_concat(balance) FROM account").Scan(&sum))
	tree["database"] = sum
	return tree
}

// change changes every part of the store.
func change(t *testing.T, s *backuptest.Store) {
	t.Helper()
	db := backuptest.OpenDB(t, s.DatabasePath)
	require.NoError(t, backuptest.Move(t.Context(), db, 1, 2, 3))
	require.NoError(t, db.Close())
	backuptest.Write(t, s.RegistryPath, `{"projects": ["since"]}`)
	backuptest.Write(t, s.InChroma("file-1"), "since")
	require.NoError(t, os.Remove(s.InChroma("file-2")))
	require.NoError(t, os.MkdirAll(s.InChroma("since/below"), 0o755))
}

// Everything works in each of the sandboxes.
func TestWholeCycle(t *testing.T) {
	for _, b := range sandboxes() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, strings.HasSuffix(b.name, "/syncfs") || len(b.refused) > 1)
			old := contents(t, s)
			stamp := b.create(t, s)
			b.run(t, s, "validate", stamp)
			require.Contains(t, b.run(t, s, "list"), stamp)
			b.run(t, s, "drill")
			for _, file := range []string{"chroma/sparse", "chroma/large"} {
				require.FileExists(t, s.SnapshotPath(stamp, file))
			}
			change(t, s)
			require.NotEqual(t, old, contents(t, s))

			b.run(t, s, "restore", stamp, "--yes")
			require.Equal(t, old, contents(t, s))
			require.Len(t, s.RequireValid(), 2, "the snapshot and that of what the restore replaced")
			s.RequireNoRemains()
			left, err := os.ReadDir(filepath.Join(s.Dir, "tmp"))
			require.NoError(t, err)
			require.Empty(t, left)

			last := b.create(t, s)
			b.run(t, s, "validate", last)
			b.run(t, s, "prune", "--keep-last", "1")
			require.Contains(t, s.Stamps(), last)
			require.NotContains(t, s.Stamps(), stamp)
			s.RequireClean()
		})
	}
}

// What is refused outside a sandbox is refused in one.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, s *backuptest.Store)
		call    string // create, or a restore
		want    string
	}{
		{"a mount below the Chroma directory", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.MkdirAll(s.InChroma("a/b"), 0o755))
			require.NoError(t, os.Mkdir(s.InChroma("mounted"), 0o755))
			backuptest.MountBind(t, s.InChroma("a"), s.InChroma("mounted"))
		}, "create", "chroma/mounted is a mount point"},
		{"a database without a WAL that is mounted alone", func(t *testing.T, s *backuptest.Store) {
			other := filepath.Join(s.Dir, "other.db")
			backuptest.MakeDatabase(t, other, "_pragma=journal_mode(wal)")
			require.NoError(t, os.RemoveAll(s.DatabasePath+"-wal"))
			backuptest.MountBind(t, other, s.DatabasePath)
		}, "create", "is mounted as a single file"},
		{"a database that somebody has open", func(t *testing.T, s *backuptest.Store) {
			db := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode(delete)")
			backuptest.RequireBalanced(t, db) // an idle connection holds no lock
		}, "restore", "the database is in use: process"},
	} {
		for _, with := range []syscall.Errno{unix.EPERM, unix.ENOSYS} {
			t.Run(tt.name+"/"+unix.ErrnoName(with), func(t *testing.T) {
				b := sandbox{with: with, refused: backuptest.RefusableCalls()}
				s := newStore(t, false)
				args := []string{"create", "--include-chroma"}
				if tt.call == "restore" {
					args = []string{"restore", b.create(t, s), "--yes"}
				}
				tt.prepare(t, s)
				_, message, err := b.try(t, s, args...)
				require.Error(t, err)
				require.Contains(t, message, tt.want)
			})
		}
	}
}

// A process has a file open on a mount whose server doesn't answer. A restore
// looks for the processes that have the database open, and doesn't wait for that
// server.
func TestDeadMount(t *testing.T) {
	calls := backuptest.RefusableCalls()
	for _, b := range []sandbox{
		{name: "outside a sandbox", with: unix.EPERM, refused: []string{"openat2"}}, // which isn't used
		{name: "without statx", with: unix.EPERM, refused: []string{"statx"}},
		{name: "without anything", with: unix.ENOSYS, refused: calls},
	} {
		t.Run(b.name, func(t *testing.T) {
			s := newStore(t, false)
			stamp := b.create(t, s)
			release := openOnADeadMount(t)
			// A call that waits for the server cannot be killed. Without its server the
			// mount fails it.
			late := time.AfterFunc(time.Minute, release)
			b.run(t, s, "restore", stamp, "--yes")
			require.True(t, late.Stop(), "it waited for the server")
		})
	}
}

// openOnADeadMount opens the root of a mount whose server doesn't answer, and
// returns a function that ends the server.
func openOnADeadMount(t *testing.T) (release func()) {
	t.Helper()
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	release = sync.OnceFunc(func() { unix.Close(server) })
	path := t.TempDir()
	if err := unix.Mount("dead", path, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)); err != nil {
		release()
		t.Skipf("cannot mount here: %v", err)
	}
	opened, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // asks no server
	t.Cleanup(func() {
		release()
		unix.Close(opened)
		require.NoError(t, unix.Unmount(path, unix.MNT_DETACH))
	})
	require.NoError(t, err)
	return release
}
