package mounts

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/poll"
)

// roles are the roles in which the test binary can be started as a child process.
var roles = backuptest.Roles{
	backuptest.FuseRole: backuptest.ServeFuse,
	"hold": func(p *backuptest.Parent, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		p.Say("open")
		p.Hear()
		return nil
	},
}

func systemCalled(name string) system {
	for _, on := range systems {
		if on.name == name {
			return on
		}
	}
	panic("no such system: " + name)
}

// chromaOf returns what is in the Chroma directory, but for the directories' times.
func chromaOf(t *testing.T, s *backuptest.Store) map[string]backuptest.File {
	tree := backuptest.ReadTree(t, s.ChromaPath)
	for name, file := range tree {
		if file.Mode.IsDir() {
			file.ModTime = 0
			tree[name] = file
		}
	}
	return tree
}

// Moving a directory of a lower layer fails half-way. All of it comes back.
func TestDirectoryThatCannotBeMovedApart(t *testing.T) {
	t.Parallel()
	s := newStore(t, systemCalled("overlay"))
	stamp := s.Create().Stamp
	change(t, s.Options, "second")
	busy := s.InChroma("segment/sub/data.bin")
	backuptest.MountBind(t, busy, busy)
	before := chromaOf(t, s)
	_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
	require.ErrorIs(t, err, syscall.EBUSY)
	require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
	require.Equal(t, before, chromaOf(t, s))
	requireTidy(t, s.Dir)
}

// Another process has a file of the old Chroma directory open, which the server of
// the file system hides when it is removed. The restore is done all the same, and
// what is hidden gets into no snapshot and goes when it is closed.
func TestRestoreWhileAFileIsHeldOpen(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"FUSE that hides removed files", "bindfs"} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, systemCalled(name))
			stamp := s.Create().Stamp
			holder := backuptest.Start(t, "hold", s.InChroma("segment/data.bin"))
			require.Equal(t, "open", holder.Hear())
			for range 2 {
				change(t, s.Options, "first") // other bytes of the database
				backuptest.Write(t, s.InChroma("segment/new"), "new")
				s.Restore(stamp)
				require.Equal(t, "first", stateOf(t, s.Options))
				require.NotEmpty(t, remains(s.Dir))
				m := s.Create()
				report, err := backup.ValidateBackup(t.Context(), s.Options, m.Stamp)
				require.NoError(t, err)
				require.EqualValues(t, 4, report.Metadata.ChromaSnapshotFiles)
			}
			holder.Tell("close")
			holder.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			require.NoError(t, poll.Until(ctx, time.Millisecond, 100*time.Millisecond, func() (bool, error) {
				_, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
				return len(remains(s.Dir)) == 0, err
			}))
		})
	}
}

// What a file system does not keep is logged, once for modes and once for times, and
// is no failure.
func TestWhatIsNotKeptIsLogged(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{"FUSE": 0, "FUSE without chmod and utimens": 1, "FUSE that forbids chmod, chown and utimens": 1} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, systemCalled(name))
			var log strings.Builder
			s.Logger = slog.New(slog.NewTextHandler(&log, nil))
			s.Create()
			require.Equal(t, want, strings.Count(log.String(), "modes_not_kept"), log.String())
			require.Equal(t, want, strings.Count(log.String(), "times_not_kept"), log.String())
		})
	}
}

// A FUSE server is told of an fsync and not of a syncfs, so each file is synced, of
// however many.
func TestFilesAreSyncedOnFUSE(t *testing.T) {
	t.Parallel()
	s := newStore(t, system{"FUSE without fsync", fuse("fsync=EIO")})
	for i := range 1000 {
		backuptest.Write(t, s.InChroma(fmt.Sprintf("segment/%d", i)), "small")
	}
	_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
	require.ErrorIs(t, err, syscall.EIO)
	require.Regexp(t, `fsync .*/chroma/`, err.Error())
}

// The lost+found of a Chroma directory that is a volume of its own is neither
// copied nor counted nor replaced.
func TestLostAndFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := &backuptest.Store{T: t, Dir: dir, Options: backuptest.OptionsIn(dir)}
	require.NoError(t, os.MkdirAll(s.ChromaPath, 0o755))
	volume := image("mkfs.ext4", "ext4", 16, "-q", "-F")(t, func(string) {})
	backuptest.MountBind(t, volume, s.ChromaPath)
	found := s.InChroma("lost+found/#42")
	backuptest.Write(t, found, "what fsck has found")
	populate(t, dir)
	m := s.Create()
	require.EqualValues(t, 4, m.ChromaSnapshotFiles)
	require.NoDirExists(t, s.SnapshotPath(m.Stamp, "chroma", "lost+found"))
	require.NoError(t, os.Remove(s.InChroma("segment/first")))
	change(t, s.Options, "second")
	r := s.Restore(m.Stamp)
	require.Equal(t, "first", stateOf(t, s.Options))
	s.Restore(r.SafetyStamp)
	require.Equal(t, "second", stateOf(t, s.Options))
	require.FileExists(t, found)

	// A volume on which there is nothing else is an empty place.
	for _, path := range []string{filepath.Dir(s.RegistryPath), s.InChroma("segment"), s.InChroma("chroma.sqlite3"), s.DatabasePath} {
		require.NoError(t, os.RemoveAll(path))
	}
	r = s.Restore(m.Stamp)
	require.Empty(t, r.SafetyStamp)
	require.Empty(t, r.SetAside)
	require.Equal(t, "first", stateOf(t, s.Options))
	require.FileExists(t, found)
	s.RequireClean()
}

// A database that came from a lower layer is copied up when it is first written to.
// A snapshot after that has what was written, although this process has had the
// file open before.
func TestDatabaseThatIsCopiedUp(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"overlay", "overlay of two"} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, systemCalled(name))
			s.Create()
			require.NoError(t, os.Remove(s.InChroma("segment/first")))
			change(t, s.Options, "second")
			m := s.Create()
			db := backuptest.OpenDB(t, backuptest.CopyOf(t, m.DBSnapshotPath))
			defer db.Close()
			var state string
			require.NoError(t, db.QueryRow("SELECT name FROM state").Scan(&state))
			require.Equal(t, "second", state)
		})
	}
}

// A hard link to the live database in the Chroma directory is recognized where
// directory entries have no inode numbers, and where files have other devices than
// their directories: opening and closing it would drop the host's locks.
func TestHardLinkToTheDatabase(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"tmpfs", "FUSE", "bindfs", "overlay of two"} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, systemCalled(name))
			db := backuptest.OpenDB(t, s.DatabasePath) // there must be a WAL, or the link alone is refused
			defer db.Close()
			_, err := db.Exec("INSERT INTO state VALUES ('linked')")
			require.NoError(t, err)
			require.NoError(t, os.Link(s.DatabasePath, s.InChroma("segment/link")))
			_, err = backup.CreateRuntimeBackup(t.Context(), s.Options)
			require.ErrorIs(t, err, backup.ErrUnsupportedFile)
			require.ErrorContains(t, err, "is a hard link to the live database")
		})
	}
}

// A single file that is mounted in the Chroma directory is refused, also from the
// same file system.
func TestMountedFileInChroma(t *testing.T) {
	t.Parallel()
	s := newStore(t, systemCalled("bind"))
	backuptest.MountBind(t, s.RegistryPath, s.InChroma("segment/data.bin"))
	_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
	require.ErrorIs(t, err, backup.ErrUnsupportedFile)
	require.ErrorContains(t, err, "segment/data.bin is a mount point")
}
