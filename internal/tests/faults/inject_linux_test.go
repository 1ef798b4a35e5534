//go:build amd64 || arm64

package faults

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

var injected = []unix.Errno{unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EACCES, unix.EMFILE, unix.EINTR}

// kill stands for no error: the process is killed instead of making the call.
const kill = unix.Errno(0xffff)

// A fault is one call that fails, counted over all threads from the start of the
// process.
type fault struct {
	call   string
	n      int
	err    unix.Errno
	onward bool // every later call fails as well
}

func (f fault) String() string {
	what := f.err.Error()
	if f.err == kill {
		what = "killed"
	}
	onward := ""
	if f.onward {
		onward = " and onward"
	}
	return fmt.Sprintf("%s %d%s: %s", f.call, f.n, onward, what)
}

// looks are the calls that stat a file by its name.
var looks = []string{"stat", "lstat", "newfstatat", "statx"}

// calls returns the calls that fail. If an inode cannot be read, all calls that
// stat it fail.
func (f fault) calls() []string {
	if f.onward && slices.Contains(looks, f.call) {
		return looks
	}
	return []string{f.call}
}

// A hit is the call that failed.
type hit struct {
	call
	on string // the file that it works on
}

// in injects f into a run. met is nil if the run made too few calls for it.
func (f fault) in(run func(decide func(*call) verdict) outcome) (o outcome, met *hit) {
	count := 0
	o = run(func(c *call) verdict {
		if c.name() != f.call {
			if met == nil {
				return 0
			}
			return f.err
		}
		if f.onward && strings.HasPrefix(f.call, "write") && c.args[0] <= 2 {
			return 0 // so that the error can be printed
		}
		count++
		if count != f.n && (!f.onward || count < f.n) {
			return 0
		}
		if met == nil {
			met = &hit{call: *c, on: c.on()}
		}
		if f.err == kill {
			_ = unix.Kill(int(c.pid), unix.SIGKILL)
			return 0
		}
		return f.err
	})
	return o, met
}

// on returns the file that a call works on, for messages.
func (c *call) on() string {
	switch c.name() {
	case "openat", "newfstatat", "mkdirat", "unlinkat", "statx", "utimensat", "faccessat":
		return c.fd(0) + " " + c.text(1)
	case "renameat2", "renameat":
		return c.fd(0) + " " + c.text(1) + " to " + c.fd(2) + " " + c.text(3)
	case "open", "stat", "lstat", "access", "unlink", "rmdir", "mkdir", "readlink":
		return c.text(0)
	case "mmap":
		return c.fd(4)
	}
	return c.fd(0)
}

// A scenario is a command into which faults are injected.
type scenario struct {
	store *store
	calls []string // nil: all
	// sample is the number of faults without -inject-all.
	sample int
	// reset restores the store to what it was.
	reset func()
	// run runs the command.
	run func(decide func(*call) verdict, calls []string) outcome
	// judge checks that the outcome keeps the promises.
	judge func(t *testing.T, f fault, h *hit, o outcome)
}

func everyCall() []string {
	return slices.Compact(slices.Sorted(maps.Values(callNames)))
}

// locks are the calls by which SQLite takes locks. If they always fail, it looks
// like a database that is busy, and create waits for that until its context ends.
var locks = map[string]bool{"fcntl": true}

// inject injects every fault into the scenario, or a sample of them.
func (sc *scenario) inject(t *testing.T) {
	calls := sc.calls
	if calls == nil {
		calls = everyCall()
	}
	counts := map[string]int{}
	sc.reset()
	sc.run(func(c *call) verdict { counts[c.name()]++; return 0 }, calls)

	random := random(t)
	faults, exits := 0, map[int]int{}
	// try reports whether the run made the call that fails.
	try := func(f fault) (met bool) {
		sc.reset()
		o, h := f.in(func(decide func(*call) verdict) outcome { return sc.run(decide, f.calls()) })
		if h == nil {
			return false
		}
		faults++
		exits[o.code]++
		t.Run(f.String(), func(t *testing.T) {
			sc.store.T = t
			t.Logf("on %s\nexit %d\n%s", h.on, o.code, o.stderr)
			sc.judge(t, f, h, o)
		})
		sc.store.T = t
		return true
	}
	errs := slices.Concat(injected, []unix.Errno{kill})
	calls = slices.DeleteFunc(calls, func(name string) bool { return counts[name] == 0 })
	for i := range sc.sample {
		if *injectAll {
			break
		}
		if i%len(calls) == 0 {
			random.Shuffle(len(calls), func(i, j int) { calls[i], calls[j] = calls[j], calls[i] })
		}
		name := calls[i%len(calls)]
		f := fault{call: name, n: 1 + random.IntN(counts[name]), err: errs[random.IntN(len(errs))]}
		if random.IntN(3) == 0 && !locks[name] {
			f.err, f.onward = unix.EIO, true
		}
		try(f)
	}
	for _, name := range calls {
		if !*injectAll {
			break
		}
		for _, err := range errs {
			for n := 1; try(fault{call: name, n: n, err: err}); n++ {
			}
		}
		for _, err := range []unix.Errno{unix.EIO, unix.ENOSPC} {
			if locks[name] {
				break
			}
			for n := 1; try(fault{call: name, n: n, err: err, onward: true}); n++ {
			}
		}
	}
	t.Logf("%d faults in %d calls, by exit status: %v", faults, len(counts), exits)
}

// keepDatabase returns a function that brings the files of the live database back
// to what they are now.
func (s *store) keepDatabase() (restore func()) {
	t := s.T
	kept := map[string][]byte{}
	for _, suffix := range []string{"", "-wal", "-journal"} {
		data, err := os.ReadFile(s.DatabasePath + suffix)
		if !os.IsNotExist(err) {
			require.NoError(t, err)
			kept[suffix] = data
		}
	}
	return func() {
		for _, suffix := range []string{"", "-wal", "-journal", "-shm"} {
			require.NoError(t, ignoreNotExist(os.Remove(s.DatabasePath+suffix)))
			if data, ok := kept[suffix]; ok {
				require.NoError(t, os.WriteFile(s.DatabasePath+suffix, data, 0o644))
			}
		}
	}
}

func ignoreNotExist(err error) error {
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// clearBackups empties the backup directory, except for staging as a dead process
// leaves it.
func (s *store) clearBackups() {
	require.NoError(s.T, os.RemoveAll(s.BackupDir))
	dead := filepath.Join(s.BackupDir, deadStaging, "chroma", "sub")
	require.NoError(s.T, os.MkdirAll(dead, 0o700))
	require.NoError(s.T, os.WriteFile(filepath.Join(dead, "file"), nil, 0o600))
}

const deadStaging = ".atocore-staging-00000000000000dd"

// createScenario injects faults into create.
func createScenario(s *store, sample int) *scenario {
	restore := s.keepDatabase()
	return &scenario{
		store:  s,
		sample: sample,
		reset:  func() { restore(); s.clearBackups() },
		run: func(decide func(*call) verdict, calls []string) outcome {
			return intercept(s.T, s.createCmd(), calls, decide)
		},
		judge: s.judgeCreate,
	}
}

// judgeCreate checks that there is a snapshot that validates, or an error that
// names step and path and nothing left.
func (s *store) judgeCreate(t *testing.T, f fault, h *hit, o outcome) {
	stamps := s.RequireValid()
	switch {
	case f.err == kill:
		require.Equal(t, -1, o.code)
	case o.code == 0:
		require.Equal(t, []string{o.stamp(t)}, stamps)
		do(t, s.validateCmd(stamps[0])).requireDone(t)
		require.Subset(t, []string{deadStaging}, s.dead())
		// A sync that fails before a dead process's staging is removed is about
		// what that process wrote; the staging is left then.
		if reaped := !slices.Contains(s.dead(), deadStaging); reaped && s.inBackups(h) {
			// The failed call may have been the only one to report a lost write.
			waits := h.name() == "sync_file_range" && h.args[3]&unix.SYNC_FILE_RANGE_WAIT_AFTER != 0
			require.False(t, waits || slices.Contains([]string{"fsync", "fdatasync", "syncfs"}, h.name()),
				"create succeeded though a sync failed")
		}
	case strings.Contains(o.stderr, " is complete: print the result: "):
		require.Equal(t, 2, o.code)
		require.Len(t, stamps, 1)
	case strings.Contains(o.stderr, " is visible but may not survive a power cut: "):
		require.Equal(t, 2, o.code)
		require.Len(t, stamps, 1)
		require.True(t, f.onward, "a single fault must not lead to this")
	default:
		require.Equal(t, 2, o.code)
		require.Empty(t, o.stdout)
		if o.stderr != "" || h.name() != "write" || !f.onward && h.args[0] != 2 { // or the message could not be printed
			require.Regexp(t, failure, o.stderr)
		}
		require.Empty(t, stamps)
		left := slices.DeleteFunc(s.dead(), func(name string) bool { return name == deadStaging })
		if len(left) > 0 {
			require.Contains(t, o.stderr, "remove staging: ", "left behind without a message")
		}
	}
	s.requireLiveSound()
	// The next create succeeds and removes what is left.
	do(t, s.createCmd()).requireDone(t)
	require.Empty(t, s.dead())
}

// inBackups reports whether a call worked on the backup directory.
func (s *store) inBackups(h *hit) bool {
	return strings.Contains(h.on, s.BackupDir+"/") || strings.HasSuffix(h.on, s.BackupDir)
}

// TestInjectCreate fails system calls of create, one at a time.
func TestInjectCreate(t *testing.T) {
	t.Run("idle WAL database", func(t *testing.T) {
		// The command's connection is the only one: it recovers the WAL, and
		// checkpoints it when it is closed.
		createScenario(newStore(t, memoryDir(t), "wal"), 20).inject(t)
	})
	t.Run("online backup", func(t *testing.T) {
		s := newStore(t, memoryDir(t), "wal")
		sc := createScenario(s, 8)
		sc.run = func(decide func(*call) verdict, calls []string) outcome {
			return intercept(s.T, program(s.T, buildOnline, s.DatabasePath, s.RegistryPath, s.ChromaPath, s.BackupDir), calls, decide)
		}
		sc.inject(t)
	})
	t.Run("hot journal", func(t *testing.T) {
		s := newStore(t, memoryDir(t), "delete")
		leaveHotJournal(t, s.DatabasePath)
		createScenario(s, 8).inject(t)
	})
	t.Run("many files", func(t *testing.T) {
		sc := createScenario(newStore(t, memoryDir(t), "wal").addFiles(1000), 7)
		sc.calls = []string{"syncfs", "fsync", "write", "pwrite64", "renameat2", "ftruncate", "flock"}
		sc.inject(t)
	})
	t.Run("large file", func(t *testing.T) {
		s := newStore(t, memoryDir(t), "wal")
		require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "large"), make([]byte, 17<<20), 0o600))
		sc := createScenario(s, 5)
		sc.calls = []string{"sync_file_range", "copy_file_range", "fallocate", "fsync", "ftruncate"}
		sc.inject(t)
	})
	t.Run("create that fails anyway", func(t *testing.T) {
		// So that faults are injected into the cleanup.
		s := newStore(t, memoryDir(t), "wal")
		require.NoError(t, unix.Mkfifo(filepath.Join(s.ChromaPath, "zzz"), 0o600))
		sc := createScenario(s, 10)
		sc.judge = func(t *testing.T, f fault, h *hit, o outcome) {
			if f.err != kill {
				require.Equal(t, 2, o.code)
			}
			require.NoError(t, os.Remove(filepath.Join(s.ChromaPath, "zzz")))
			s.judgeCreate(t, f, h, o)
			require.NoError(t, unix.Mkfifo(filepath.Join(s.ChromaPath, "zzz"), 0o600))
		}
		sc.inject(t)
	})
}

// TestInjectOnePath fails every call that names one file of the live database.
func TestInjectOnePath(t *testing.T) {
	for _, test := range []struct {
		suffix, mode string
	}{
		{"-journal", "delete"},
		{"-wal", "wal"},
		{"-shm", "wal"},
		{"", "wal"},
	} {
		t.Run("the database's "+test.suffix, func(t *testing.T) {
			s := newStore(t, memoryDir(t), test.mode)
			if test.mode == "delete" {
				leaveHotJournal(t, s.DatabasePath)
			}
			met := 0
			o := intercept(t, s.createCmd(), everyCall(), func(c *call) verdict {
				for arg := range 2 {
					if slices.Contains(looks, c.name()) || strings.HasPrefix(c.name(), "open") || c.name() == "access" {
						if c.text(arg) == s.DatabasePath+test.suffix {
							met++
							return unix.EIO
						}
					}
				}
				return 0
			})
			require.Positive(t, met)
			require.Equal(t, 2, o.code, o.stderr)
			require.Regexp(t, failure, o.stderr)
			require.Empty(t, s.Stamps())
			require.Empty(t, s.Staging())
			s.requireLiveSound()
			do(t, s.createCmd()).requireDone(t)
			s.RequireValid()
		})
	}
}

// leaveHotJournal leaves the files of a writer that died while it was writing a
// transaction to the database.
func leaveHotJournal(t *testing.T, path string) {
	t.Helper()
	db := backuptest.OpenDB(t, path, "_pragma=cache_size(1)", "_pragma=synchronous(full)")
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	tx, err := db.Begin()
	require.NoError(t, err)
	_, err = tx.Exec("UPDATE bulk SET pad = randomblob(1500); UPDATE account SET balance = 7")
	require.NoError(t, err)
	torn := map[string][]byte{}
	for _, suffix := range []string{"", "-journal"} {
		torn[suffix], err = os.ReadFile(path + suffix)
		require.NoError(t, err)
	}
	require.NotEqual(t, before, torn[""], "the transaction was not written to the file yet")
	require.NoError(t, tx.Rollback())
	require.NoError(t, db.Close())
	for suffix, data := range torn {
		require.NoError(t, os.WriteFile(path+suffix, data, 0o644))
	}
}

// TestInjectValidate fails system calls of validate, one at a time. A snapshot that
// cannot be read is neither valid nor invalid.
func TestInjectValidate(t *testing.T) {
	for _, test := range []struct {
		name   string
		damage func(s *backuptest.Snapshot)
		right  int // the exit status that no fault may turn into another verdict
	}{
		{"good", func(*backuptest.Snapshot) {}, 0},
		{"good, of the Python module", (*backuptest.Snapshot).MakePython, 0},
		{"a flipped bit", func(s *backuptest.Snapshot) { s.Flip(backuptest.DBFile, 40_000) }, 1},
		{"a torn database of the Python module", func(s *backuptest.Snapshot) {
			s.MakePython() // without a manifest, only SQLite's checks can find the damage
			data := s.Read(backuptest.DBFile)
			clear(data[3*4096 : 4*4096])
			s.Write(backuptest.DBFile, data)
		}, 1},
		{"a missing file", func(s *backuptest.Snapshot) { s.Remove("chroma/closed/a/b/c/new\nline") }, 1},
		{"an added file", func(s *backuptest.Snapshot) { s.Write("config/z", nil) }, 1},
		{"no manifest", func(s *backuptest.Snapshot) { s.Remove(backuptest.ManifestFile) }, 1},
		{"a journal beside the database", func(s *backuptest.Snapshot) { s.Write(backuptest.DBFile+"-journal", nil) }, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t, memoryDir(t), "wal")
			stamp := do(t, s.createCmd()).requireDone(t).stamp(t)
			test.damage(s.Snapshot(stamp))
			require.Equal(t, test.right, do(t, s.validateCmd(stamp)).code)
			before := backuptest.ReadTree(t, s.SnapshotPath(stamp))
			sc := scenario{
				store:  s,
				sample: 6,
				reset:  func() {},
				run: func(decide func(*call) verdict, calls []string) outcome {
					return intercept(s.T, s.validateCmd(stamp), calls, decide)
				},
				judge: func(t *testing.T, f fault, h *hit, o outcome) {
					switch {
					case f.err == kill:
						require.Equal(t, -1, o.code)
					case o.code == test.right:
						require.NotEmpty(t, o.stdout)
					default:
						require.Equal(t, 2, o.code, o.stdout)
						require.Regexp(t, `^atocore-backup: (validate backup "`+stamp+`"|validate: print the result): [^\n]*/[^\n]*\n$`, o.stderr)
					}
				},
			}
			sc.inject(t)
			require.Equal(t, before, backuptest.ReadTree(t, s.SnapshotPath(stamp)))
		})
	}
}
