package faults

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var kills = flag.Int("kills", 20, "how often to kill the command")

// plant fills the backup directory with what is not ours, some of it with names
// that look so, and returns a check that all of it is as it was.
func (s *store) plant() (requireUntouched func()) {
	t := s.t
	t.Helper()
	outside := filepath.Join(s.dir, "outside")
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
			dir = filepath.Join(s.backups, dir)
		}
		require.NoError(t, os.MkdirAll(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "keep"), []byte(dir), 0o644))
	}
	file, link := ".atocore-staging-00000000000000aa", ".atocore-staging-00000000000000bb"
	require.NoError(t, os.WriteFile(filepath.Join(s.backups, file), []byte("a file"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(s.backups, link)))
	require.NoError(t, os.WriteFile(filepath.Join(s.backups, "SHA256SUMS"), nil, 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(s.backups, "snapshots"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(s.backups, "snapshots", "README"), []byte("hello"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(s.backups, "snapshots", "20200101T000000Z")))

	look := func() [2]map[string]string {
		made := s.stamps()
		staging := s.dead()
		return [2]map[string]string{
			picture(t, outside, nil),
			picture(t, s.backups, func(path string) bool {
				return path == "snapshots" || // its time changes; what is in it is looked at
					slices.Contains(staging, path) ||
					filepath.Dir(path) == "snapshots" && slices.Contains(made, filepath.Base(path))
			}),
		}
	}
	before := look()
	return func() {
		t.Helper()
		require.Equal(t, before, look())
	}
}

// dead lists the directories whose names are those of staging.
func (s *store) dead() (names []string) {
	s.t.Helper()
	entries, err := os.ReadDir(s.backups)
	require.NoError(s.t, err)
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
	db := openDB(t, s.db) // the host goes on working

	// What a run takes when no other work holds up the disk, and a bit.
	took := time.Hour
	for range 5 {
		began := now()
		do(t, s.create()).requireDone(t)
		took = min(took, 3*(now()-began)/2)
	}
	for _, stamp := range s.requireValid() {
		require.NoError(t, os.RemoveAll(s.snapshot(stamp)))
	}

	killed, remains, visible := 0, 0, 0
	for i := range *kills {
		require.NoError(t, transfer(db, random.IntN(accounts), random.IntN(accounts), i))
		cmd := s.create()
		require.NoError(t, start(cmd))
		moment := time.NewTimer(time.Duration(random.Int64N(int64(took))))
		<-moment.C
		require.NoError(t, ignore(cmd.Process.Kill(), os.ErrProcessDone))
		if wait(t, cmd).code == -1 {
			killed++
			visible += len(s.stamps())
		}
		remains += len(s.dead())
		s.requireValid()
		requireUntouched()

		stamp := do(t, s.create()).requireDone(t).stamp(t)
		require.Empty(t, s.dead(), "the next create did not clear what was left")
		requireUntouched()
		require.Contains(t, s.requireValid(), stamp)
		for _, stamp := range s.stamps() {
			require.NoError(t, os.RemoveAll(s.snapshot(stamp)))
		}
	}
	requireSound(t, db)
	require.Positive(t, remains, "no kill came at a moment that matters")
	t.Logf("%d runs of up to %v: %d were killed; %d left staging, %d a snapshot", *kills, took, killed, remains, visible)
}

func ignore(err, harmless error) error {
	if err == harmless {
		return nil
	}
	return err
}

// TestStoppedProcess: the staging of a process that lives is left alone,
// whatever it does.
func TestStoppedProcess(t *testing.T) {
	s := newStore(t, t.TempDir(), "wal")
	guard := filepath.Join(s.dir, "guard")
	f, err := os.Create(guard)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))

	// It waits for the guard when it has made its staging.
	waiting := s.create()
	waiting.Args = append(waiting.Args, "--guard-file", guard)
	require.NoError(t, start(waiting))
	for len(s.staging()) == 0 {
		require.Zero(t, exited(waiting.Process.Pid))
		time.Sleep(time.Millisecond)
	}
	requireStopped(t, waiting.Process)
	staging := s.staging()
	before := picture(t, staging[0], nil)

	first := do(t, s.create()).requireDone(t).stamp(t)
	require.Equal(t, staging, s.staging())
	require.Equal(t, before, picture(t, staging[0], nil))

	require.NoError(t, f.Close())
	require.NoError(t, waiting.Process.Signal(unix.SIGCONT))
	second := wait(t, waiting).requireDone(t).stamp(t)
	require.ElementsMatch(t, []string{first, second}, s.requireValid())
	require.Empty(t, s.staging())
}

// exited is the process's number if it has ended, or 0.
func exited(pid int) int {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil || info.Signo == 0 {
		return 0
	}
	return pid
}

// requireStopped stops a process and waits until it stands still.
func requireStopped(t *testing.T, process *os.Process) {
	t.Helper()
	require.NoError(t, process.Signal(unix.SIGSTOP))
	var info unix.Siginfo
	require.NoError(t, unix.Waitid(unix.P_PID, process.Pid, &info, unix.WSTOPPED|unix.WNOWAIT, nil))
}
