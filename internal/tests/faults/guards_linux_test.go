//go:build amd64 || arm64

package faults

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

// The calls by which files are synced and renamed.
var (
	syncCalls   = []string{"fsync", "fdatasync"}
	renameCalls = []string{"renameat", "renameat2", "rename"}
)

func isOneOf(c *call, names []string) bool {
	for _, name := range names {
		if c.name() == name {
			return true
		}
	}
	return false
}

// TestRenameIsTakenBack lets the sync fail that makes a snapshot's name durable. It
// is not known then whether the snapshot would survive a power cut, so it is taken
// back; if that fails, too, the message says what there is.
func TestRenameIsTakenBack(t *testing.T) {
	for _, synced := range []string{"snapshots", "backups"} {
		for _, back := range []bool{true, false} {
			t.Run(synced+" "+map[bool]string{true: "back", false: "not back"}[back], func(t *testing.T) {
				s := newStore(t, memoryDir(t), "wal")
				do(t, s.createCmd()).requireDone(t) // so that snapshots/ exists
				s.removeSnapshots()
				renamed, failed := false, false
				o := intercept(t, s.createCmd(), append(syncCalls, renameCalls...), func(c *call) verdict {
					isRename := isOneOf(c, renameCalls) && strings.Contains(c.on(), "/snapshots")
					switch {
					case isRename && failed && !back:
						return unix.EIO
					case isRename && !failed:
						renamed = true
					case renamed && !failed && isOneOf(c, syncCalls) && filepath.Base(c.on()) == synced:
						failed = true
						return unix.EIO
					}
					return 0
				})
				require.True(t, failed)
				require.Equal(t, 2, o.code, o.stderr)
				require.Regexp(t, failure, o.stderr)
				require.Empty(t, s.Staging())
				if back {
					require.Empty(t, s.Stamps(), "it is visible")
					require.NotContains(t, o.stderr, "visible")
				} else {
					require.Len(t, s.RequireValid(), 1)
					require.Contains(t, o.stderr, "snapshot "+s.Stamps()[0]+" is visible but may not survive a power cut")
				}
			})
		}
	}
}

// TestCopyFileRangeReturnsNothing lets copy_file_range(2) copy nothing and say so,
// which it does at the end of a file, and on file systems that have no sizes
// (copy_file_range(2), BUGS). What is copied is whole all the same.
func TestCopyFileRangeReturnsNothing(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		s := newStore(t, memoryDir(t), mode)
		large := bytes.Repeat([]byte("large"), 20_000)
		require.NoError(t, os.WriteFile(s.InChroma("large"), large, 0o600))
		calls := 0
		o := intercept(t, s.createCmd(), []string{"copy_file_range"}, func(*call) verdict { calls++; return nothing })
		stamp := o.requireDone(t).stamp(t)
		require.Greater(t, calls, 1)
		require.Equal(t, []string{stamp}, s.RequireValid())
		got, err := os.ReadFile(s.SnapshotPath(stamp, "chroma", "large"))
		require.NoError(t, err)
		require.True(t, bytes.Equal(large, got))
		backuptest.RequireSound(t, s.SnapshotPath(stamp, "db", "atocore.db"))
	}
}

// TestRegistryIsReadTwice changes the registry when it is opened for the second
// time. What is copied was found twice.
func TestRegistryIsReadTwice(t *testing.T) {
	s := newStore(t, memoryDir(t), "wal")
	opened := 0
	o := intercept(t, s.createCmd(), []string{"openat", "open"}, func(c *call) verdict {
		if strings.HasSuffix(c.on(), s.RegistryPath) {
			if opened++; opened == 2 {
				require.NoError(t, os.WriteFile(s.RegistryPath, []byte(`{"projects": ["second"]}`), 0o640))
			}
		}
		return 0
	})
	stamp := o.requireDone(t).stamp(t)
	require.GreaterOrEqual(t, opened, 3, "it was not found twice")
	got, err := os.ReadFile(s.SnapshotPath(stamp, "config", "project-registry.json"))
	require.NoError(t, err)
	require.Equal(t, `{"projects": ["second"]}`, string(got))
}

// TestDatabaseIsReplacedWhileCopied puts another database in the place of the one
// that is being copied, before the WAL is copied, which is found by its path: it is
// that of the other database.
func TestDatabaseIsReplacedWhileCopied(t *testing.T) {
	s := newStore(t, memoryDir(t), "wal")
	other := newStore(t, memoryDir(t), "wal")
	replaced := false
	o := intercept(t, s.createCmd(), []string{"copy_file_range"}, func(c *call) verdict {
		if !replaced && c.fd(0) == s.DatabasePath {
			replaced = true
			for _, suffix := range []string{"", "-wal"} {
				data, err := os.ReadFile(other.DatabasePath + suffix)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(s.DatabasePath+suffix+".new", data, 0o600))
				require.NoError(t, os.Rename(s.DatabasePath+suffix+".new", s.DatabasePath+suffix))
			}
		}
		return 0
	})
	require.True(t, replaced, o.stderr)
	require.Equal(t, 2, o.code, o.stderr)
	require.Contains(t, o.stderr, "another file took the database's place")
	require.Empty(t, s.Staging())
	require.Empty(t, s.Stamps())
}

// TestRecordIsDurable checks the order of the calls that write a first record: the
// directory, and then the record, are there after a power cut, whole.
func TestRecordIsDurable(t *testing.T) {
	s := newStore(t, memoryDir(t), "wal")
	stamp := do(t, s.createCmd()).requireDone(t).stamp(t)
	var events []string
	calls := append(append([]string{"mkdirat", "write", "pwrite64"}, syncCalls...), renameCalls...)
	o := intercept(t, command(t, append([]string{"protect", stamp}, s.flags()...)...), calls, func(c *call) verdict {
		on := strings.ReplaceAll(c.on(), s.BackupDir, "B")
		if strings.HasPrefix(on, "B") {
			events = append(events, strings.SplitN(c.name(), "at", 2)[0]+" "+strings.Split(on, ".atocore-staging-")[0])
		}
		return 0
	})
	require.Equal(t, 0, o.code, o.stderr)
	require.Equal(t, []string{
		"mkdir B records", "fsync B",
		"write B/records/", "fsync B/records/", "rename B/records ", "fsync B/records",
	}, events)
}
