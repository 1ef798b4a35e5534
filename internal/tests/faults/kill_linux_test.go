package faults

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

var kills = flag.Int("kills", 20, "how often to kill the command")

// plant adds files to the backup directory that do not belong to the library, some
// of them with names like its own. It returns a check that nothing happened to
// them.
func (s *store) plant() (requireUntouched func()) {
	t := s.T
	t.Helper()
	outside := filepath.Join(s.Dir, "outside")
	for _, dir := range []string{
		outside,
		"notes",
		".atocore-staging-",
		".atocore-staging-0123456789abcde",
		".atocore-staging-0123456789abcdef0",
		".atocore-staging-0123456789ABCDEF",
		".atocore-staging-0123456789abcdeg",
		"atocore-staging-0123456789abcdef",
		".atocore-staging-0123456789abcdef.old",
	} {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(s.BackupDir, dir)
		}
		require.NoError(t, os.MkdirAll(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "keep"), []byte(dir), 0o644))
	}
	file, link := ".atocore-staging-00000000000000aa", ".atocore-staging-00000000000000bb"
	require.NoError(t, os.WriteFile(filepath.Join(s.BackupDir, file), []byte("a file"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(s.BackupDir, link)))
	require.NoError(t, os.WriteFile(filepath.Join(s.BackupDir, "SHA256SUMS"), nil, 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(s.BackupDir, "snapshots"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(s.BackupDir, "snapshots", "README"), []byte("hello"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(s.BackupDir, "snapshots", "20200101T000000Z")))

	look := func() [2]map[string]backuptest.File {
		tree := backuptest.ReadTree(t, s.BackupDir)
		// These change with every call, whose snapshots and staging are no part
		// of what was planted.
		delete(tree, ".")
		delete(tree, "snapshots")
		changing := s.dead()
		for _, stamp := range s.Stamps() {
			changing = append(changing, "snapshots/"+stamp)
		}
		maps.DeleteFunc(tree, func(path string, _ backuptest.File) bool {
			return slices.ContainsFunc(changing, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") })
		})
		return [2]map[string]backuptest.File{backuptest.ReadTree(t, outside), tree}
	}
	before := look()
	return func() {
		t.Helper()
		require.Equal(t, before, look())
	}
}

// dead returns the names of the directories that have exactly the form of staging.
func (s *store) dead() (names []string) {
	s.T.Helper()
	entries, err := os.ReadDir(s.BackupDir)
	require.NoError(s.T, err)
	for _, entry := range entries {
		digits, ok := strings.CutPrefix(entry.Name(), ".atocore-staging-")
		if ok && entry.IsDir() && len(digits) == 16 && strings.Trim(digits, "0123456789abcdef") == "" {
			names = append(names, entry.Name())
		}
	}
	return names
}

// TestKill ends the command without warning at random moments of its run.
func TestKill(t *testing.T) {
	random := random(t)
	s := newStore(t, t.TempDir(), "wal")
	requireUntouched := s.plant()
	db := backuptest.OpenDB(t, s.DatabasePath) // the host keeps working

	// How long a run takes when nothing else uses the disk, and a bit more.
	took := time.Hour
	for range 5 {
		began := now()
		do(t, s.createCmd()).requireDone(t)
		took = min(took, 3*(now()-began)/2)
	}
	for _, stamp := range s.RequireValid() {
		require.NoError(t, os.RemoveAll(s.SnapshotPath(stamp)))
	}

	killed, remains, visible := 0, 0, 0
	for i := range *kills {
		require.NoError(t, backuptest.Move(context.Background(), db, random.IntN(backuptest.Accounts), random.IntN(backuptest.Accounts), i))
		cmd := s.createCmd()
		require.NoError(t, start(cmd))
		moment := time.NewTimer(time.Duration(random.Int64N(int64(took))))
		<-moment.C
		require.NoError(t, ignore(cmd.Process.Kill(), os.ErrProcessDone))
		if wait(t, cmd).code == -1 {
			killed++
			visible += len(s.Stamps())
		}
		remains += len(s.dead())
		s.RequireValid()
		requireUntouched()

		stamp := do(t, s.createCmd()).requireDone(t).stamp(t)
		require.Empty(t, s.dead(), "the next create did not remove the staging")
		requireUntouched()
		require.Contains(t, s.RequireValid(), stamp)
		for _, stamp := range s.Stamps() {
			require.NoError(t, os.RemoveAll(s.SnapshotPath(stamp)))
		}
	}
	backuptest.RequireBalanced(t, db)
	require.Positive(t, remains, "no kill came at a moment that matters")
	t.Logf("%d runs of up to %v: %d were killed; %d left staging, %d a snapshot", *kills, took, killed, remains, visible)
}

func ignore(err, harmless error) error {
	if err == harmless {
		return nil
	}
	return err
}

// TestStoppedProcess stops a create. The staging of a process that is alive must be
// left alone.
func TestStoppedProcess(t *testing.T) {
	s := newStore(t, t.TempDir(), "wal")
	guard := filepath.Join(s.Dir, "guard")
	f, err := os.Create(guard)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))

	// It says that it waits for the guard after it has created and locked its
	// staging.
	waiting := s.createCmd()
	waiting.Args = append(waiting.Args, "--guard-file", guard)
	waiting.Stdout = new(bytes.Buffer)
	stderr, err := waiting.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, waiting.Start())
	line, err := bufio.NewReader(stderr).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "Waiting for the guard file")
	requireStopped(t, waiting.Process)
	staging := s.Staging()
	require.Len(t, staging, 1)
	before := backuptest.ReadTree(t, staging[0])

	first := do(t, s.createCmd()).requireDone(t).stamp(t)
	require.Equal(t, staging, s.Staging())
	require.Equal(t, before, backuptest.ReadTree(t, staging[0]))

	require.NoError(t, f.Close())
	require.NoError(t, waiting.Process.Signal(unix.SIGCONT))
	second := wait(t, waiting).requireDone(t).stamp(t)
	require.ElementsMatch(t, []string{first, second}, s.RequireValid())
	require.Empty(t, s.Staging())
}

// requireStopped stops a process and waits until it stands still.
func requireStopped(t *testing.T, process *os.Process) {
	t.Helper()
	require.NoError(t, process.Signal(unix.SIGSTOP))
	var info unix.Siginfo
	require.NoError(t, unix.Waitid(unix.P_PID, process.Pid, &info, unix.WSTOPPED|unix.WNOWAIT, nil))
}
