package faults

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() { roles["host"] = beHost }

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
	returned    = regexp.MustCompile(`^(.*)\) += (-?\d+)(?:<(.*?)>(?:\(deleted\))?)?(?: .*)?$`)
	// A descriptor and the path that strace -y shows of it.
	descriptor = regexp.MustCompile(`^(AT_FDCWD|\d+)<(.*?)>(?:\(deleted\))?(?:, |$)`)
	quoted     = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
)

// record runs cmd under strace and returns its calls in the order in which they
// were made.
func record(t *testing.T, cmd *exec.Cmd) (events []*event) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace")
	}
	log := filepath.Join(t.TempDir(), "strace")
	cmd.Args = append([]string{strace, "-f", "--seccomp-bpf", "-y", "-s", "8192", "-o", log, "-e", "trace=" +
		"openat,?open,?creat,close,write,pwrite64,copy_file_range,fallocate,ftruncate,ioctl," +
		"fsync,fdatasync,syncfs,mkdirat,?mkdir,renameat,renameat2,?rename,unlinkat,?unlink,fchmod,fchown,utimensat", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = strace
	if o := do(t, cmd); o.code != 0 && strings.Contains(o.stderr, "ptrace") {
		t.Skip(o.stderr)
	} else {
		o.requireDone(t)
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
			require.Equal(t, e.name, m[2])
			delete(unfinished, m[1])
		} else if m := callLine.FindStringSubmatch(line); m != nil {
			e, rest = &event{name: m[2], begin: moment}, m[3]
			events = append(events, e)
			if args, ok := strings.CutSuffix(rest, " <unfinished ...>"); ok {
				e.args = args
				unfinished[m[1]] = e
				continue
			}
		} else {
			continue // signals and exits
		}
		m := returned.FindStringSubmatch(rest)
		require.NotNil(t, m, line)
		e.args += m[1]
		e.ret, err = strconv.Atoi(m[2])
		require.NoError(t, err)
		e.retPath, e.end = m[3], moment
	}
	require.NoError(t, lines.Err())
	return events
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

// A ledger records when each file and directory below root was last changed and
// last synced.
type ledger struct {
	root    string
	changed map[string]int    // files and directories: the end of the last change
	synced  map[string][2]int // begin and end of the last sync
}

func (l *ledger) change(path string, moment int) {
	if path == l.root || strings.HasPrefix(path, l.root+"/") {
		l.changed[path] = moment
	}
}

// follow records what an event changes or syncs.
func (l *ledger) follow(e *event) {
	if e.ret < 0 {
		return
	}
	switch e.name {
	case "openat", "open", "creat":
		if strings.Contains(e.args, "O_CREAT") {
			l.change(e.retPath, e.end)
			l.change(filepath.Dir(e.retPath), e.end)
		}
	case "mkdirat", "mkdir":
		path := e.places()[0]
		l.change(path, e.end)
		l.change(filepath.Dir(path), e.end)
	case "unlinkat", "unlink":
		path := e.places()[0]
		delete(l.changed, path)
		l.change(filepath.Dir(path), e.end)
	case "renameat2", "renameat", "rename":
		paths := e.places()
		l.change(filepath.Dir(paths[0]), e.end)
		l.change(filepath.Dir(paths[1]), e.end)
		if moment, ok := l.changed[paths[0]]; ok {
			delete(l.changed, paths[0])
			l.change(paths[1], moment)
		}
	case "utimensat":
		l.change(e.places()[0], e.end)
	case "write", "pwrite64", "ftruncate", "fallocate", "fchmod", "fchown", "ioctl":
		_, path := e.fd()
		l.change(path, e.end)
	case "copy_file_range":
		_, from := e.fd()
		for _, m := range regexp.MustCompile(`\d+<(.*?)>`).FindAllStringSubmatch(e.args, -1) {
			if m[1] != from {
				l.change(m[1], e.end)
			}
		}
	case "fsync", "fdatasync":
		_, path := e.fd()
		l.synced[path] = [2]int{e.begin, e.end}
	case "syncfs":
		l.synced[""] = [2]int{e.begin, e.end} // the whole
	}
}

// durable reports whether the last change of path was synced before the moment.
func (l *ledger) durable(path string, moment int) bool {
	for _, key := range []string{path, ""} {
		if sync, ok := l.synced[key]; ok && sync[0] > l.changed[path] && sync[1] < moment {
			return true
		}
	}
	return false
}

// TestOrder checks the order of the system calls of one create: everything is
// synced before the rename, the metadata before the manifest, which is last,
// and the directories on both sides of the rename after it.
func TestOrder(t *testing.T) {
	for _, test := range []struct {
		name   string
		files  int
		syncfs bool
	}{
		{"few files", 0, false},
		{"many files", 1000, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t, memoryDir(t), "wal").addFiles(test.files)
			cmd := s.createCmd()
			events := record(t, cmd)
			stamp := s.RequireValid()[0]

			var publish *event
			for _, e := range events {
				if strings.HasPrefix(e.name, "rename") && e.ret == 0 && strings.HasSuffix(e.args, `"`+stamp+`", RENAME_NOREPLACE`) {
					publish = e
				}
			}
			require.NotNil(t, publish)
			staging := publish.places()[0]

			before := ledger{root: staging, changed: map[string]int{}, synced: map[string][2]int{}}
			lastManifestChange, metadataSynced, syncfs := 0, 0, 0
			for _, e := range events {
				if e.begin >= publish.begin {
					break
				}
				before.follow(e)
				_, path := e.fd()
				switch {
				case e.name == "syncfs":
					syncfs++
				case e.name == "fsync" && path == staging+"/backup-metadata.json":
					metadataSynced = e.end
				case e.name == "pwrite64" && path == staging+"/SHA256SUMS":
					lastManifestChange = e.begin
				}
			}
			require.Greater(t, len(before.changed), test.files+15, "the record was not understood")
			for path := range before.changed {
				require.True(t, before.durable(path, publish.begin), "%s is not durable before the rename", path)
			}
			require.Equal(t, test.syncfs, syncfs == 1)
			require.Positive(t, metadataSynced)
			require.Greater(t, lastManifestChange, metadataSynced, "the manifest is complete before the metadata are durable")

			after := ledger{root: s.BackupDir, changed: map[string]int{}, synced: map[string][2]int{}}
			for _, e := range events {
				if e.begin >= publish.begin {
					after.follow(e)
				}
			}
			require.Contains(t, after.changed, s.BackupDir)
			require.Contains(t, after.changed, s.BackupDir+"/snapshots")
			for path := range after.changed {
				if filepath.Base(path) != stamp { // the rename does not change it
					require.True(t, after.durable(path, events[len(events)-1].end+1), "%s is not durable in the end", path)
				}
			}
			requireNoneClosed(t, events, s.DatabasePath, false)
		})
	}
}

// requireNoneClosed checks that no descriptor of the live database or its -shm was
// closed. SQLite may close its own ones if the process holds no locks, which
// bySQLite forbids.
func requireNoneClosed(t *testing.T, events []*event, db string, bySQLite bool) {
	t.Helper()
	opened := map[string]string{} // the way a descriptor was opened
	ours := 0
	for _, e := range events {
		switch {
		case (e.name == "openat" || e.name == "open") && e.ret >= 0:
			opened[strconv.Itoa(e.ret)] = e.args
			if e.retPath == db && strings.Contains(e.args, "O_RDONLY") {
				ours++
			}
		case e.name == "close":
			number, path := e.fd()
			if path != db && path != db+"-shm" {
				continue
			}
			require.False(t, bySQLite, "closed though the host holds locks: %s", path)
			require.Contains(t, opened[number], "O_RDWR", "not SQLite's own descriptor of %s", path)
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
