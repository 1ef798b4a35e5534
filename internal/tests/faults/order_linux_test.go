package faults

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() { roles["host"], roles["sandbox"] = beHost, backuptest.InSandbox }

// An event is one system call of a recorded run. begin and end are moments: the
// lines of the record on which it was made and returned.
type event struct {
	name       string
	args       string
	ret        int
	retPath    string // what a returned descriptor refers to
	begin, end int
}

var (
	callLine    = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)
	resumedLine = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)$`)
	// wideCall matches the names of calls that only 32-bit systems have.
	wideCall = regexp.MustCompile(`^(ftruncate|fchown|utimensat)(?:64|32|_time64)$`)
	returned = regexp.MustCompile(`^(.*)\) += (-?\d+)(?:<(.*?)>(?:\(deleted\))?)?(?: .*)?$`)
	// A descriptor and the path that strace -y shows of it.
	descriptor = regexp.MustCompile(`^(AT_FDCWD|\d+)<(.*?)>(?:\(deleted\))?(?:, |$)`)
	quoted     = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
)

// record runs cmd, which must succeed, under strace and returns its calls in the
// order in which they were made.
func record(t *testing.T, cmd *exec.Cmd) (events []*event) {
	t.Helper()
	events, o := trace(t, cmd)
	o.requireDone(t)
	return events
}

// trace runs cmd under strace with more flags, and returns its calls in the order
// in which they were made, and how it ended.
func trace(t *testing.T, cmd *exec.Cmd, flags ...string) (events []*event, o outcome) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace")
	}
	log := filepath.Join(t.TempDir(), "strace")
	args := []string{strace, "-f", "--seccomp-bpf", "-y", "-s", "8192", "-o", log, "-e", "trace=" +
		"openat,?open,?creat,close,write,pwrite64,copy_file_range,fallocate,ftruncate,ioctl," +
		"fsync,fdatasync,syncfs,mkdirat,?mkdir,renameat,renameat2,?rename,linkat,?link,unlinkat,?unlink,?rmdir," +
		"fchmod,?fchmodat,fchown,fchownat,utimensat,?ftruncate64,?fchown32,?utimensat_time64"}
	cmd.Args = slices.Concat(args, flags, []string{cmd.Path}, cmd.Args[1:])
	cmd.Path = strace
	if o = do(t, cmd); o.code != 0 && strings.Contains(o.stderr, "ptrace") {
		t.Skip(o.stderr)
	}

	f, err := os.Open(log)
	require.NoError(t, err)
	defer f.Close()
	unfinished := map[string]*event{} // by thread
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for moment := 0; lines.Scan(); moment++ {
		line := lines.Text()
		var e *event
		var rest string
		if m := resumedLine.FindStringSubmatch(line); m != nil {
			e, rest = unfinished[m[1]], m[3]
			require.NotNil(t, e, line)
			require.Equal(t, e.name, wideCall.ReplaceAllString(m[2], "$1"))
			delete(unfinished, m[1])
		} else if m := callLine.FindStringSubmatch(line); m != nil {
			e, rest = &event{name: wideCall.ReplaceAllString(m[2], "$1"), begin: moment}, m[3]
			events = append(events, e)
			if args, ok := strings.CutSuffix(rest, " <unfinished ...>"); ok {
				e.args = args
				unfinished[m[1]] = e
				continue
			}
		} else {
			continue // signals and exits
		}
		// The process ended, or a signal came and the call is made again.
		if strings.HasSuffix(rest, "= ?") || strings.Contains(rest, "= ? ERESTART") {
			e.ret = -1
			continue
		}
		m := returned.FindStringSubmatch(rest)
		require.NotNil(t, m, line)
		e.args += m[1]
		e.ret, err = strconv.Atoi(m[2])
		require.NoError(t, err)
		e.retPath, e.end = m[3], moment
	}
	require.NoError(t, lines.Err())
	for _, e := range unfinished { // the process was killed
		e.ret = -1
	}
	return events, o
}

// fd returns the first argument, a descriptor, and its path.
func (e *event) fd() (number, path string) {
	if m := descriptor.FindStringSubmatch(e.args); m != nil {
		return m[1], m[2]
	}
	return "", ""
}

// places returns the paths that a call names, descriptor and name joined.
func (e *event) places() (paths []string) {
	rest := e.args
	for rest != "" {
		dir := ""
		if m := descriptor.FindStringSubmatch(rest); m != nil {
			dir, rest = m[2], rest[len(m[0]):]
		}
		loc := quoted.FindStringSubmatchIndex(rest)
		if loc == nil {
			return paths
		}
		name := rest[loc[2]:loc[3]]
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		paths = append(paths, name)
		rest = strings.TrimPrefix(rest[loc[1]:], ", ")
	}
	return paths
}

// A ledger records when the files and directories below root were last changed
// and last synced. A name is a part of its directory: it is durable once the
// directory is synced. What it leads to is durable once that is synced itself; a
// new file or directory comes with its name, empty.
type ledger struct {
	root    string
	exists  map[string]bool
	named   map[string]int    // by path: when the name came, went or led elsewhere
	changed map[string]int    // by path: when what it leads to was changed
	synced  map[string][2]int // by path: begin and end of the last sync; "" is of everything
}

// newLedger returns the ledger of what is below root now, all of it durable.
func newLedger(t *testing.T, root string) *ledger {
	t.Helper()
	l := &ledger{root, map[string]bool{}, map[string]int{}, map[string]int{}, map[string][2]int{}}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		l.exists[path] = true
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(t, err)
	}
	return l
}

func (l *ledger) has(path string) bool { return strings.HasPrefix(path, l.root+"/") }

// name records that a name came or went.
func (l *ledger) name(path string, exists bool, moment int) {
	if l.has(path) {
		l.exists[path] = exists
		l.named[path] = moment
	}
}

func (l *ledger) change(path string, moment int) {
	if l.has(path) {
		l.changed[path] = moment
	}
}

// forget forgets what path led to, and what was below it.
func (l *ledger) forget(path string) {
	l.move(path, "")
}

// move moves what is known of what path leads to, and of what is below it.
func (l *ledger) move(path, to string) {
	moveKeys(l.exists, path, to, true)
	moveKeys(l.named, path, to, false)
	moveKeys(l.changed, path, to, true)
	moveKeys(l.synced, path, to, true)
}

// moveKeys moves the keys below path, and path itself if itself is set. They go
// if to is empty.
func moveKeys[V any](m map[string]V, path, to string, itself bool) {
	for _, key := range slices.Collect(maps.Keys(m)) {
		rest, below := strings.CutPrefix(key, path)
		if !below || rest == "" && !itself || rest != "" && rest[0] != '/' {
			continue
		}
		if to != "" {
			m[to+rest] = m[key]
		}
		delete(m, key)
	}
}

// follow records what an event changes or syncs.
func (l *ledger) follow(e *event) {
	if e.ret < 0 {
		return
	}
	switch e.name {
	case "openat", "open", "creat":
		if e.creates(l) {
			l.name(e.retPath, true, e.end)
		}
	case "mkdirat", "mkdir":
		l.name(e.places()[0], true, e.end)
	case "unlinkat", "unlink", "rmdir":
		l.forget(e.places()[0])
		l.name(e.places()[0], false, e.end)
	case "renameat2", "renameat", "rename":
		from, to := e.places()[0], e.places()[1]
		l.forget(to)
		l.move(from, to)
		l.name(from, false, e.end)
		l.name(to, true, e.end)
	case "linkat", "link":
		from, to := e.places()[0], e.places()[1]
		if moment, ok := l.changed[from]; ok {
			l.change(to, moment)
			l.synced[to] = l.synced[from]
		}
		l.name(to, true, e.end)
	case "utimensat", "fchmodat", "fchownat":
		l.change(e.places()[0], e.end)
	case "write", "pwrite64", "ftruncate", "fallocate", "fchmod", "fchown", "ioctl":
		_, path := e.fd()
		l.change(path, e.end)
	case "copy_file_range":
		l.change(e.copiesTo(), e.end)
	case "fsync", "fdatasync":
		_, path := e.fd()
		l.synced[path] = [2]int{e.begin, e.end}
	case "syncfs":
		l.synced[""] = [2]int{e.begin, e.end}
	}
}

// creates reports whether an open has created its file.
func (e *event) creates(l *ledger) bool {
	return strings.Contains(e.args, "O_CREAT") && !l.exists[e.retPath]
}

// copiesTo returns the path of the file that copy_file_range writes to.
func (e *event) copiesTo() string {
	_, from := e.fd()
	for _, m := range regexp.MustCompile(`\d+<(.*?)>`).FindAllStringSubmatch(e.args, -1) {
		if m[1] != from {
			return m[1]
		}
	}
	return from
}

// paths returns the paths of which anything was changed, sorted.
func (l *ledger) paths() []string {
	paths := slices.AppendSeq(slices.Collect(maps.Keys(l.named)), maps.Keys(l.changed))
	slices.Sort(paths)
	return slices.Compact(paths)
}

// durable reports whether the last changes of a name and of what it leads to were
// synced before the moment.
func (l *ledger) durable(path string, moment int) bool {
	after := func(change int, keys ...string) bool {
		return slices.ContainsFunc(keys, func(key string) bool {
			sync, ok := l.synced[key]
			return ok && sync[0] > change && sync[1] < moment
		})
	}
	if change, ok := l.named[path]; ok && !after(change, filepath.Dir(path), "") {
		return false
	}
	change, ok := l.changed[path]
	return !ok || after(change, path, "")
}

// inSandbox runs cmd where the calls are refused that an old sandbox doesn't know.
func inSandbox(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if err := do(t, backuptest.Command(t, "sandbox", append(sandboxArgs(), "/bin/true")...)); err.code != 0 {
		t.Skip(err.stderr)
	}
	return backuptest.Command(t, "sandbox", append(sandboxArgs(), cmd.Args...)...)
}

func sandboxArgs() []string {
	return []string{fmt.Sprint(int(unix.EPERM)), strings.Join(backuptest.RefusableCalls(), ",")}
}

// TestOrder checks the order of the system calls of one create: everything is
// synced before the rename, the metadata before the manifest, which is last,
// and the directories on both sides of the rename after it.
func TestOrder(t *testing.T) {
	for _, test := range []struct {
		name      string
		files     int
		sandboxed bool
		syncfs    bool
	}{
		{"few files", 0, false, false},
		{"many files", 1000, false, true},
		{"few files in a sandbox", 0, true, false},
		{"many files in a sandbox", 1000, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t, memoryDir(t), "wal").addFiles(test.files)
			cmd := s.createCmd()
			if test.sandboxed {
				cmd = inSandbox(t, cmd)
			}
			events := record(t, cmd)
			stamp := s.RequireValid()[0]

			var publish *event
			for _, e := range events {
				if strings.HasPrefix(e.name, "rename") && e.ret == 0 && strings.HasSuffix(strings.TrimSuffix(e.args, ", RENAME_NOREPLACE"), `"`+stamp+`"`) {
					publish = e
				}
			}
			require.NotNil(t, publish)
			require.Equal(t, test.sandboxed, publish.name == "renameat")
			staging := publish.places()[0]

			before := newLedger(t, staging)
			lastManifestChange, metadataSynced, syncfs := 0, 0, 0
			for _, e := range events {
				if e.begin >= publish.begin {
					break
				}
				before.follow(e)
				_, path := e.fd()
				switch {
				case e.name == "syncfs" && e.ret == 0:
					syncfs++
				case e.name == "fsync" && path == staging+"/backup-metadata.json":
					metadataSynced = e.end
				case e.name == "pwrite64" && path == staging+"/SHA256SUMS":
					lastManifestChange = e.begin
				}
			}
			require.Greater(t, len(before.paths()), test.files+15, "the record was not understood")
			for _, path := range before.paths() {
				require.True(t, before.durable(path, publish.begin), "%s is not durable before the rename", path)
			}
			require.Equal(t, test.syncfs, syncfs == 1)
			require.Positive(t, metadataSynced)
			require.Greater(t, lastManifestChange, metadataSynced, "the manifest is complete before the metadata are durable")

			after := newLedger(t, s.BackupDir)
			for _, e := range events {
				if e.begin >= publish.begin {
					after.follow(e)
				}
			}
			require.Contains(t, after.paths(), staging)
			require.Contains(t, after.paths(), s.SnapshotPath(stamp))
			for _, path := range after.paths() {
				require.True(t, after.durable(path, events[len(events)-1].end+1), "%s is not durable in the end", path)
			}
			requireNoneClosed(t, events, s.DatabasePath, false)
		})
	}
}

// requireNoneClosed checks that no descriptor of the live database or its -shm was
// closed. SQLite may close its own ones if the process holds no locks, which
// bySQLite forbids. Those are the ones that may block.
func requireNoneClosed(t *testing.T, events []*event, db string, bySQLite bool) {
	t.Helper()
	opened := map[string]string{} // the way a descriptor was opened
	ours := 0
	for _, e := range events {
		switch {
		case (e.name == "openat" || e.name == "open") && e.ret >= 0:
			opened[strconv.Itoa(e.ret)] = e.args
			if e.retPath == db && strings.Contains(e.args, "O_NONBLOCK") {
				ours++
			}
		case e.name == "close":
			number, path := e.fd()
			if path != db && path != db+"-shm" {
				continue
			}
			require.False(t, bySQLite, "closed though the host holds locks: %s", path)
			require.NotEmpty(t, opened[number])
			require.NotContains(t, opened[number], "O_NONBLOCK", "not SQLite's own descriptor of %s", path)
		}
	}
	require.Equal(t, 1, ours, "the record was not understood, or the descriptor is not kept")
}

// TestHostKeepsItsDescriptors records a process that holds locks of its own on the
// live database while it takes snapshots of it. No descriptor of the database may
// be closed there, by SQLite neither.
func TestHostKeepsItsDescriptors(t *testing.T) {
	for _, mode := range []string{"wal", "delete"} {
		t.Run(mode, func(t *testing.T) {
			s := newStore(t, memoryDir(t), mode)
			events := record(t, backuptest.Command(t, "host", s.Dir))
			require.Len(t, s.RequireValid(), 4)
			requireNoneClosed(t, events, s.DatabasePath, true)
		})
	}
}

// beHost holds locks on the database of the store in args[0] and takes snapshots
// of it in every way.
func beHost(_ *backuptest.Parent, args []string) error {
	opts := backuptest.OptionsIn(args[0])
	db, err := sql.Open("sqlite", backuptest.DSN(opts.DatabasePath))
	if err != nil {
		return err
	}
	ctx := context.Background()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE; SELECT * FROM account"); err != nil {
		return err
	}
	for _, online := range []bool{false, false, true, true} {
		opts.OnlineBackup = online
		meta, err := backup.CreateRuntimeBackup(ctx, opts)
		if err != nil {
			return err
		}
		if _, err := backup.ValidateBackup(ctx, opts, meta.Stamp); err != nil {
			return err
		}
		if _, err := backup.ListRuntimeBackups(ctx, opts); err != nil {
			return err
		}
	}
	fmt.Println("done")
	return nil // without closing anything
}
