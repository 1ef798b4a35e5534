package sqlitedb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

func init() {
	roles["check-not-open"] = func(path string) error { return CheckNotOpen(context.Background(), path) }
}

// killed returns a database whose writer was killed after it had executed
// statements, with everything that these left in its WAL or its journal.
func killed(t *testing.T, mode string, statements ...string) string {
	t.Helper()
	path := newClosed(t, mode)
	h := startHolder(t, path, "PRAGMA wal_autocheckpoint=0", "PRAGMA cache_size=5")
	for _, statement := range statements {
		h.do(statement)
	}
	require.NoError(t, h.cmd.Process.Kill())
	h.end()
	return path
}

// A WAL that a dead writer left belongs to the database's next user. Neither a
// copy nor closing the last connection changes it, whatever the copy is made
// with and however much of the WAL is in the file already.
func TestWALOfADeadWriterStays(t *testing.T) {
	for name, statements := range map[string][]string{
		"full":              {insert, insert},
		"in part":           {insert, "PRAGMA wal_checkpoint(PASSIVE)", insert},
		"all checkpointed":  {insert, "PRAGMA wal_checkpoint(PASSIVE)"},
		"not yet committed": {insert, "BEGIN IMMEDIATE", insert, insert},
	} {
		for _, online := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", online ", online), func(t *testing.T) {
				path := killed(t, "wal", statements...)
				before := readFiles(t, path)
				require.NotEmpty(t, before["-wal"])
				want := 2
				if name == "full" || name == "in part" {
					want = 3
				}
				for range 2 {
					made := copyOf(t, &Capture{Path: path, Online: online})
					requireFiles(t, before, path)
					require.Equal(t, want, number(t, made, "SELECT count(*) FROM t"))
				}
			})
		}
	}
}

// A connection to a database that nobody uses makes a WAL, and leaves none.
func TestOwnWALIsRemoved(t *testing.T) {
	path := newClosed(t, "wal")
	src, err := Open(path)
	require.NoError(t, err)
	require.NoError(t, src.Begin(t.Context()))
	require.FileExists(t, path+"-wal")
	require.NoError(t, src.Close())
	require.NoFileExists(t, path+"-wal")
	require.NoFileExists(t, path+"-shm")

	// Somebody else needs it.
	src, err = Open(path)
	require.NoError(t, err)
	require.NoError(t, src.Begin(t.Context()))
	h := startHolder(t, path, "SELECT * FROM t")
	require.NoError(t, src.Close())
	h.do("BEGIN IMMEDIATE")
	require.FileExists(t, path+"-wal")

	// It was empty a moment ago.
	src, err = Open(path)
	require.NoError(t, err)
	require.NoError(t, src.Begin(t.Context()))
	src.noWAL = true
	h.do(insert)
	h.do("COMMIT")
	require.NoError(t, h.cmd.Process.Kill())
	h.end()
	before := readFiles(t, path)
	require.NotEmpty(t, before["-wal"])
	require.NoError(t, src.closeAndRemoveWAL())
	countSource(src.id, -1)
	requireFiles(t, before, path)
}

// SQLite deletes the WAL and the journal of an empty database when it opens it
// for writing.
func TestEmptyDatabaseKeepsItsWAL(t *testing.T) {
	for _, suffix := range []string{"-wal", "-journal"} {
		path := filepath.Join(t.TempDir(), "a.db")
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.WriteFile(path+suffix, []byte("all that is left"), 0o600))
		_, err := Open(path)
		require.ErrorIs(t, err, errdefs.ErrSourceInvalid)
		_, err = Lock(t.Context(), path)
		require.ErrorIs(t, err, errdefs.ErrSourceInvalid)
		require.FileExists(t, path+suffix)
	}
}

// An idle connection keeps no lock in the way of the database's users.
func TestReadyLocksNothing(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		path := newClosed(t, mode)
		c := &Capture{Path: path}
		require.NoError(t, c.Ready(t.Context(), nil))
		startHolder(t, path, "BEGIN EXCLUSIVE", insert, "COMMIT").end()
		require.NoError(t, c.Close())
	}
}

// A database that its users have open by another name is refused, whether they
// are there or not, and no other one is.
func TestOtherNames(t *testing.T) {
	link := func(t *testing.T, path string) string {
		other := filepath.Join(t.TempDir(), "a.db")
		require.NoError(t, os.Link(path, other))
		return other
	}
	mount := func(t *testing.T, path string) string {
		other := filepath.Join(t.TempDir(), "a.db")
		require.NoError(t, os.WriteFile(other, nil, 0o600))
		if err := unix.Mount(path, other, "", unix.MS_BIND, ""); err != nil {
			t.Skipf("cannot mount here: %v", err)
		}
		t.Cleanup(func() { require.NoError(t, unix.Unmount(other, unix.MNT_DETACH)) })
		return other
	}
	symlink := func(t *testing.T, path string) string {
		other := filepath.Join(t.TempDir(), "a.db")
		require.NoError(t, os.Symlink(path, other))
		return other
	}
	mountDir := func(t *testing.T, path string) string {
		other := t.TempDir()
		if err := unix.Mount(filepath.Dir(path), other, "", unix.MS_BIND, ""); err != nil {
			t.Skipf("cannot mount here: %v", err)
		}
		t.Cleanup(func() { require.NoError(t, unix.Unmount(other, unix.MNT_DETACH)) })
		return filepath.Join(other, filepath.Base(path))
	}
	same := func(t *testing.T, path string) string { return path }
	empty := func(another func(*testing.T, string) string) func(*testing.T, string) string {
		return func(t *testing.T, path string) string {
			other := another(t, path)
			require.NoError(t, os.WriteFile(other+"-wal", nil, 0o600))
			require.NoError(t, os.WriteFile(other+"-shm", make([]byte, 32<<10), 0o600))
			return other
		}
	}
	for _, tt := range []struct {
		name       string
		another    func(*testing.T, string) string
		mode       string
		statements []string
		refused    string
	}{
		{"link, idle", link, "wal", []string{insert}, "open by another name"},
		{"link, reader", link, "wal", []string{"BEGIN", "SELECT * FROM t"}, "open by another name"},
		{"link, writer", link, "wal", []string{"BEGIN IMMEDIATE", insert}, "open by another name"},
		{"link, empty WAL", empty(link), "wal", []string{insert}, "open by another name"},
		{"link, nobody", link, "wal", nil, "has 2 hard links"},
		{"link, nobody, empty WAL", empty(link), "wal", nil, "has 2 hard links"},
		{"mounted, idle", mount, "wal", []string{insert}, "open by another name"},
		{"mounted, nobody", mount, "wal", nil, "mounted as a single file"},

		{"link, rollback journal, reader", link, "delete", []string{"BEGIN", "SELECT * FROM t"}, ""},
		{"link, rollback journal", link, "delete", nil, ""},
		{"mounted, rollback journal", mount, "delete", nil, ""},
		{"symbolic link", symlink, "wal", []string{insert}, ""},
		{"symbolic link, nobody", symlink, "wal", nil, ""},
		{"directory mounted", mountDir, "wal", []string{insert}, ""},
		{"directory mounted, nobody", mountDir, "wal", nil, ""},
		{"this name, idle", same, "wal", []string{insert}, ""},
		{"this name, nobody", same, "wal", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := newClosed(t, tt.mode)
			if tt.statements != nil {
				startHolder(t, path, tt.statements...)
			}
			before := readFiles(t, path)
			other := tt.another(t, path)
			src, err := Open(other)
			require.NoError(t, err)
			begun, checked := src.Begin(t.Context()), CheckName(t.Context(), other)
			require.NoError(t, src.Close())
			for _, err := range []error{begun, checked} {
				if tt.refused == "" {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, errdefs.ErrSourceInvalid)
					require.ErrorContains(t, err, tt.refused)
				}
			}
			requireFiles(t, before, path)
		})
	}
}

// A hard link makes no difference to who uses the database by this name, also
// when nothing is in the WAL.
func TestHardLinkOfADatabaseInUse(t *testing.T) {
	const truncate = "PRAGMA wal_checkpoint(TRUNCATE)"
	t.Run("in another process", func(t *testing.T) {
		path := newClosed(t, "wal")
		require.NoError(t, os.Link(path, path+".old"))
		startHolder(t, path, insert, truncate)
		copyOf(t, &Capture{Path: path})
	})
	t.Run("in this process", func(t *testing.T) {
		path := newClosed(t, "wal")
		require.NoError(t, os.Link(path, path+".old"))
		host, err := sql.Open("sqlite", URI(path, "rw"))
		require.NoError(t, err)
		defer host.Close()
		_, err = host.Exec(insert + ";" + truncate)
		require.NoError(t, err)
		copyOf(t, &Capture{Path: path})
		copyOf(t, &Capture{Path: path, Online: true})
	})
}

// A connection that is being opened has the database locked before it has the
// -shm. That is no other name.
func TestNameIsLookedAtAgain(t *testing.T) {
	path := newClosed(t, "wal")
	h := startHolder(t, path, insert)
	shm, moved := path+"-shm", path+"-moved"
	require.NoError(t, os.Rename(shm, moved))
	synctest.Test(t, func(t *testing.T) { // the pauses take no time
		time.AfterFunc(150*time.Millisecond, func() { _ = os.Rename(moved, shm) })
		require.NoError(t, CheckName(t.Context(), path))
		require.FileExists(t, shm)

		require.NoError(t, os.Rename(shm, moved))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		require.ErrorIs(t, CheckName(ctx, path), context.Canceled)
	})
	h.end()
}

// A journal is played back only if nobody uses it: a writer whose locks cannot be
// seen goes on as if nothing had been.
func TestJournalInUse(t *testing.T) {
	const spill = "UPDATE t SET x = randomblob(200000)"
	path := killed(t, "delete", insert, insert, "BEGIN IMMEDIATE", spill)
	before := readFiles(t, path)
	require.NotEmpty(t, before["-journal"])

	begin := func() error {
		src, err := Open(path)
		require.NoError(t, err)
		defer src.Close()
		return src.Begin(t.Context())
	}
	h := startHolder(t, path+"-journal", "open")
	err := begin()
	require.ErrorIs(t, err, errdefs.ErrDatabaseInUse)
	require.ErrorContains(t, err, fmt.Sprintf("process %d has %s-journal open", h.cmd.Process.Pid, path))
	requireFiles(t, before, path)
	h.end()

	own, err := os.Open(path + "-journal")
	require.NoError(t, err)
	require.ErrorIs(t, begin(), errdefs.ErrDatabaseInUse)
	requireFiles(t, before, path)
	require.NoError(t, own.Close())

	require.NoError(t, os.WriteFile(path+".lock", nil, 0o600))
	err = begin()
	require.ErrorIs(t, err, errdefs.ErrDatabaseInUse)
	require.ErrorContains(t, err, path+".lock")
	requireFiles(t, before, path)
	require.NoError(t, os.Remove(path+".lock"))

	made := copyOf(t, &Capture{Path: path})
	require.NoFileExists(t, path+"-journal")
	require.Equal(t, 3*20000, number(t, made, "SELECT sum(length(x)) FROM t"))
}

// The lock of unix-dotfile, a directory, keeps this package from reading and from
// replacing a database; a file of that name means nothing.
func TestDotfileLock(t *testing.T) {
	path := newClosed(t, "delete")
	host, err := sql.Open("sqlite", URI(path, "rw", "vfs=unix-dotfile"))
	require.NoError(t, err)
	defer host.Close()
	tx, err := host.Begin()
	require.NoError(t, err)
	_, err = tx.Exec(insert)
	require.NoError(t, err)

	src, err := Open(path)
	require.NoError(t, err)
	defer src.Close()
	require.ErrorIs(t, src.Begin(t.Context()), errdefs.ErrDatabaseInUse)
	_, err = Lock(t.Context(), path)
	require.ErrorIs(t, err, errdefs.ErrDatabaseInUse)
	require.NoError(t, tx.Commit())

	require.NoError(t, os.WriteFile(path+".lock", nil, 0o600))
	require.NoError(t, src.Begin(t.Context()))
	src.End()
}

// What is beside the database and no file is refused before SQLite opens it,
// which would wait for the other end of a FIFO.
func TestSidecarsThatAreNoFiles(t *testing.T) {
	for _, suffix := range SidecarSuffixes {
		for name, create := range map[string]func(string) error{
			"FIFO":      func(path string) error { return unix.Mkfifo(path, 0o600) },
			"directory": func(path string) error { return os.Mkdir(path, 0o700) },
			"link":      func(path string) error { return os.Symlink("nowhere", path) },
		} {
			t.Run(name+suffix, func(t *testing.T) {
				path := newClosed(t, "delete")
				require.NoError(t, create(path+suffix))
				src, err := Open(path)
				require.NoError(t, err)
				defer src.Close()
				begun := make(chan error, 2)
				go func() {
					begun <- src.Begin(t.Context())
					_, err := Lock(t.Context(), path)
					begun <- err
				}()
				for range 2 {
					select {
					case err := <-begun:
						require.ErrorIs(t, err, fsat.ErrNotRegular)
						require.ErrorContains(t, err, path+suffix)
						require.False(t, errors.Is(err, errdefs.ErrSourceInvalid), "a restore would replace it")
					case <-time.After(10 * time.Second):
						require.FailNow(t, "it waits")
					}
				}
			})
		}
	}
}

// A process in another PID namespace, whose numbers mean nothing here, is found
// all the same.
func TestCheckNotOpenAcrossNamespaces(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("no unshare")
	}
	path := newClosed(t, "delete")
	check := func() error {
		role := roleCmd(t, "check-not-open", path)
		cmd := exec.Command(unshare, append([]string{"--pid", "--fork", "--mount-proc"}, role.Args...)...)
		cmd.Env = role.Env
		return run(cmd)
	}
	if err := check(); err != nil {
		t.Skipf("cannot unshare here: %v", err)
	}
	h := startHolder(t, path, "open")
	require.ErrorContains(t, check(), errdefs.ErrDatabaseInUse.Error())
	h.do("close")
	require.NoError(t, check())
	h.do("SELECT * FROM t") // an idle connection holds no lock
	require.ErrorContains(t, check(), "a process that cannot be seen from here")
	h.end()
	require.NoError(t, check())
}

// The descriptor that a lease takes is closed if nobody has the file open, and
// kept if closing it would drop locks.
func TestLeaseDropsNoLocks(t *testing.T) {
	path := newClosed(t, "delete")
	info, err := fsat.Stat(path)
	require.NoError(t, err)
	kept := func() bool {
		keptDescriptors.Lock()
		defer keptDescriptors.Unlock()
		return keptDescriptors.files[info.ID()] != nil
	}
	require.NoError(t, CheckNotOpen(t.Context(), path))
	require.False(t, kept())
	require.False(t, openedHere(path, info.ID()))

	_, err = keepDescriptor(path, info.ID())
	require.NoError(t, err)
	require.NoError(t, CheckNotOpen(t.Context(), path))
	require.False(t, kept(), "it would take up the space of the file that is replaced")

	host, err := sql.Open("sqlite", URI(path, "rw"))
	require.NoError(t, err)
	defer host.Close()
	host.SetMaxOpenConns(1)
	_, err = host.Exec("BEGIN EXCLUSIVE")
	require.NoError(t, err)
	for range 2 {
		require.ErrorContains(t, run(roleCmd(t, "read", path)), "SQLITE_BUSY")
		require.ErrorIs(t, CheckNotOpen(t.Context(), path), errdefs.ErrDatabaseInUse)
		require.Equal(t, openBySomebody, askKept(path, info))
	}
	require.ErrorContains(t, run(roleCmd(t, "read", path)), "SQLITE_BUSY", "the host's lock is gone")
}
