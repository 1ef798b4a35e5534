package restic_test

import (
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest/resticrepo"
	"github.com/atocore/backup/offsite/internal/restic"
)

// programsEnv lists further programs to test with, separated like PATH.
const programsEnv = "ATOCORE_TEST_RESTIC"

const password = resticrepo.Password

// withEach runs a test with every restic that there is. The tests of different
// programs run side by side.
func withEach(t *testing.T, test func(t *testing.T, p *restic.Program)) {
	t.Parallel()
	programs := filepath.SplitList(os.Getenv(programsEnv))
	if path, err := exec.LookPath("restic"); err == nil {
		programs = append(programs, path)
	}
	if len(programs) == 0 {
		t.Skip("restic is not installed")
	}
	for _, path := range programs {
		v, err := (&restic.Program{Path: path}).Version(t.Context())
		require.NoError(t, err)
		t.Run(strings.Join(strings.Fields(v.Text)[:2], "-"), func(t *testing.T) {
			t.Parallel()
			test(t, newProgram(t, path))
		})
	}
}

// newProgram returns a program with a location in a directory of its own, where
// there is no repository yet.
func newProgram(t *testing.T, path string) *restic.Program {
	dir := t.TempDir()
	return &restic.Program{
		Path: path, Location: filepath.Join(dir, "repository"), Cache: filepath.Join(dir, "cache"),
		Env: []string{"RESTIC_PASSWORD=" + password, "RESTIC_PASSWORD_FILE=", "RESTIC_PASSWORD_COMMAND=", "RESTIC_REPOSITORY_FILE="},
	}
}

// withRepository makes an empty repository whose key is derived in no time, for
// tests that run restic often.
func withRepository(t *testing.T, p *restic.Program) {
	t.Helper()
	require.NoError(t, resticrepo.Make(p.Location))
}

// with returns another program for the same repository.
func with(p *restic.Program, change func(p *restic.Program)) *restic.Program {
	changed := &restic.Program{
		Path: p.Path, Location: p.Location, Cache: p.Cache, Patience: p.Patience,
		Env: append([]string{}, p.Env...), Log: p.Log, Args: p.Args,
	}
	change(changed)
	return changed
}

// standIn writes a shell script that answers "version" like restic, and runs body
// for everything else.
func standIn(t *testing.T, version, body string) *restic.Program {
	t.Helper()
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("there is no /bin/sh")
	}
	path := filepath.Join(t.TempDir(), "restic")
	script := "#!/bin/sh\nif [ \"$1\" = version ]; then echo '" + version + "'; exit; fi\n" + body + "\n"
	// A child that is started meanwhile would hold the script open for writing, and it
	// could not be run (ETXTBSY, execve(2); go.dev/issue/22315).
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	require.NoError(t, os.WriteFile(path, []byte(script), 0o755))
	return newProgram(t, path)
}

func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return dir
}

// random returns n bytes that no compression makes less of.
func random(t *testing.T, n int) string {
	content := make([]byte, n)
	_, err := rand.NewChaCha8([32]byte{}).Read(content)
	require.NoError(t, err)
	return string(content)
}

// A repository from its beginning to its end. The calls depend on each other, so
// that there are few: restic takes most of a second for each.
func TestCommands(t *testing.T) {
	withEach(t, func(t *testing.T, p *restic.Program) {
		ctx := t.Context()
		_, err := p.ID(ctx)
		require.ErrorIs(t, err, restic.ErrNoRepository)

		require.NoError(t, p.Init(ctx))
		var exit *restic.ExitError
		require.ErrorAs(t, p.Init(ctx), &exit)
		require.Contains(t, exit.Message, "already exists")

		wrong := with(p, func(p *restic.Program) { p.Env = append(p.Env, "RESTIC_PASSWORD=wrong") })
		_, err = wrong.ID(ctx)
		require.ErrorIs(t, err, restic.ErrPassword)

		p.Location += "-2"
		withRepository(t, p)
		id, err := p.ID(ctx)
		require.NoError(t, err)
		require.Len(t, id, 64)

		tree := writeTree(t, map[string]string{"recipe.json": "{}", "files/a b/ä": "hello", "large": random(t, 1<<20)})
		at := time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.FixedZone("", 7200))
		first, err := p.Backup(ctx, restic.BackupArgs{Dir: tree, Host: "srv1", Tags: []string{"atocore", "db=/a b%2C"}, Time: at})
		require.NoError(t, err)
		require.Len(t, first.ID, 64)
		require.EqualValues(t, 3, first.Files)
		require.EqualValues(t, 1<<20+7, first.Bytes)
		require.Positive(t, first.Added)
		second, err := p.Backup(ctx, restic.BackupArgs{Dir: tree, Host: "srv1", Tags: []string{"atocore", "db=/a b%2C"}, Time: at.Add(time.Hour)})
		require.NoError(t, err)
		require.Less(t, second.Added, int64(4096))

		list, err := p.Snapshots(ctx, "atocore", "db=/a b%2C")
		require.NoError(t, err)
		require.Len(t, list, 2)
		want := restic.Snapshot{ID: first.ID, Host: "srv1", Tags: []string{"atocore", "db=/a b%2C"}, Paths: []string{tree}}
		require.True(t, list[0].Time.Equal(at.Truncate(time.Second)), list[0].Time)
		want.Time = list[0].Time
		require.Equal(t, want, list[0])

		sizes := make(map[string]int64)
		require.NoError(t, p.List(ctx, first.ID, func(n restic.Node) error {
			sizes[n.Type+n.Path] = n.Size
			return nil
		}))
		require.Equal(t, map[string]int64{"file/recipe.json": 2, "file/files/a b/ä": 5, "file/large": 1 << 20, "dir/files": 0, "dir/files/a b": 0}, sizes)
		require.ErrorIs(t, p.List(ctx, first.ID, func(restic.Node) error { return fs.ErrInvalid }), fs.ErrInvalid)

		text, err := p.Dump(ctx, first.ID, "/recipe.json", 2)
		require.NoError(t, err)
		require.Equal(t, "{}", string(text))
		_, err = p.Dump(ctx, first.ID, "/large", 1<<20-1)
		require.ErrorIs(t, err, restic.ErrTooMuch)
		_, err = p.Dump(ctx, first.ID, "/nothing", 2)
		require.ErrorAs(t, err, &exit)
		require.Contains(t, exit.Message, "not found")

		target := filepath.Join(t.TempDir(), "target")
		require.NoError(t, p.Restore(ctx, first.ID, target))
		restored, err := os.ReadFile(filepath.Join(target, "files", "a b", "ä"))
		require.NoError(t, err)
		require.Equal(t, "hello", string(restored))

		plan, err := p.Plan(ctx, "srv1", []string{"atocore", "db=/a b%2C"}, restic.Rules{Last: 1})
		require.NoError(t, err)
		require.Len(t, plan.Keep, 1)
		require.Equal(t, second.ID, plan.Keep[0].ID)
		require.Equal(t, []string{"last snapshot"}, plan.Keep[0].Reasons)
		require.Len(t, plan.Remove, 1)
		require.Equal(t, first.ID, plan.Remove[0].ID)
		plan, err = p.Plan(ctx, "srv1", []string{"atocore", "db=/a b%2C"}, restic.Rules{Hourly: -1, Within: "1y2m3d4h"})
		require.NoError(t, err)
		require.Len(t, plan.Keep, 2)

		require.NoError(t, p.Forget(ctx, first.ID))
		require.NoError(t, p.Prune(ctx))
		problems, err := p.Check(ctx, "5%")
		require.NoError(t, err)
		require.Empty(t, problems)
		list, err = p.Snapshots(ctx)
		require.NoError(t, err)
		require.Len(t, list, 1)

		damage(t, filepath.Join(p.Location, "data"))
		problems, err = p.Check(ctx, "100%")
		require.NoError(t, err)
		require.NotEmpty(t, problems)
		require.Regexp(t, `(?i)pack`, problems[0])
		_, err = p.Dump(ctx, second.ID, "/large", 1<<20)
		require.ErrorIs(t, err, restic.ErrDamaged)
		require.ErrorIs(t, p.Restore(ctx, second.ID, filepath.Join(t.TempDir(), "target")), restic.ErrDamaged)
	})
}

// damage changes a byte in the middle of the largest file below dir.
func damage(t *testing.T, dir string) {
	t.Helper()
	var largest string
	var size int64
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > size {
			largest, size = path, info.Size()
		}
		return err
	}))
	require.NotEmpty(t, largest)
	content, err := os.ReadFile(largest)
	require.NoError(t, err)
	content[len(content)/2] ^= 1
	require.NoError(t, os.Chmod(largest, 0o600))
	require.NoError(t, os.WriteFile(largest, content, 0o600))
}

// A repository that a running restic has locked, and the lock of one that was
// killed.
func TestLocks(t *testing.T) {
	withEach(t, func(t *testing.T, p *restic.Program) {
		ctx := t.Context()
		withRepository(t, p)
		holder := exec.Command(p.Path, "backup", "--stdin")
		holder.Env = append(append(os.Environ(), p.Env...), "RESTIC_REPOSITORY="+p.Location, "RESTIC_CACHE_DIR="+p.Cache)
		data, err := holder.StdinPipe()
		require.NoError(t, err)
		require.NoError(t, holder.Start())
		stop := func() {
			_ = holder.Process.Kill()
			_ = holder.Wait()
		}
		t.Cleanup(stop)
		_, err = data.Write(make([]byte, 1<<20)) // more than a pipe takes: restic has the lock, and reads
		require.NoError(t, err)

		hurried := with(p, func(p *restic.Program) { p.Patience = time.Second })
		err = hurried.Prune(ctx)
		require.ErrorIs(t, err, restic.ErrBusy)
		require.Contains(t, err.Error(), "already locked")

		stop()
		require.NoError(t, p.Prune(ctx))
	})
}

// listener accepts connections and never answers. Its channel gets a value for
// each.
func listener(t *testing.T) (address string, accepted <-chan struct{}) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	connections := make(chan struct{}, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var open []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			open = append(open, c)
			connections <- struct{}{}
		}
		for _, c := range open {
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String(), connections
}

func TestServerThatNeverAnswers(t *testing.T) {
	address, _ := listener(t)
	for name, location := range map[string]string{
		"rest": "rest:http://" + address + "/",
		"s3":   "s3:http://" + address + "/bucket",
	} {
		t.Run(name, func(t *testing.T) {
			withEach(t, func(t *testing.T, p *restic.Program) {
				p.Location, p.Patience = location, 2*time.Second
				p.Env = append(p.Env, "AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=key")
				_, err := p.ID(t.Context())
				require.ErrorIs(t, err, restic.ErrStuck)
			})
		})
	}
}

// A server that is out of order is not one without a repository. Restic 0.14 gives
// up at once, and later versions try for a quarter of an hour.
func TestServerOutOfOrder(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	t.Cleanup(server.Close)
	withEach(t, func(t *testing.T, p *restic.Program) {
		p.Location, p.Patience = "rest:"+server.URL+"/", 2*time.Second
		_, err := p.ID(t.Context())
		require.NotErrorIs(t, err, restic.ErrNoRepository)
		require.ErrorContains(t, err, "503")
	})
}

func TestCancel(t *testing.T) {
	withEach(t, func(t *testing.T, p *restic.Program) {
		address, accepted := listener(t)
		p.Location = "rest:http://" + address + "/"
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-accepted
			cancel()
		}()
		_, err := p.ID(ctx)
		require.ErrorIs(t, err, context.Canceled)
		_, err = p.ID(ctx)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// A backup that is cancelled leaves no lock.
func TestCancelledBackup(t *testing.T) {
	withEach(t, func(t *testing.T, p *restic.Program) {
		withRepository(t, p)
		ctx, cancel := context.WithCancel(t.Context())
		p.Args = []string{"--limit-upload", "2048"}
		p.Progress = func(restic.Status) { cancel() }
		_, err := p.Backup(ctx, restic.BackupArgs{Dir: writeTree(t, map[string]string{"f": random(t, 8<<20)}), Host: "h"})
		require.ErrorIs(t, err, context.Canceled)
		locks, err := os.ReadDir(filepath.Join(p.Location, "locks"))
		require.NoError(t, err)
		require.Empty(t, locks)
	})
}

// A slow transfer is no stuck one.
func TestSlow(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes as long as the transfer")
	}
	withEach(t, func(t *testing.T, p *restic.Program) {
		withRepository(t, p)
		p.Patience = time.Second
		p.Args = []string{"--limit-upload", "1024"}
		_, err := p.Backup(t.Context(), restic.BackupArgs{Dir: writeTree(t, map[string]string{"f": random(t, 3<<20)}), Host: "h"})
		require.NoError(t, err)
	})
}

func TestMissingSettings(t *testing.T) {
	t.Setenv("RESTIC_PASSWORD", "")
	t.Setenv("RESTIC_PASSWORD_FILE", "")
	t.Setenv("RESTIC_PASSWORD_COMMAND", "")
	t.Setenv("RESTIC_REPOSITORY", "")
	t.Setenv("RESTIC_REPOSITORY_FILE", "")
	for name, test := range map[string]struct {
		change func(p *restic.Program)
		want   error
	}{
		"no password":         {func(p *restic.Program) { p.Env = nil }, restic.ErrPassword},
		"an empty password":   {func(p *restic.Program) { p.Env = []string{"RESTIC_PASSWORD="} }, restic.ErrPassword},
		"no location":         {func(p *restic.Program) { p.Location = "" }, restic.ErrNoRepository},
		"no program":          {func(p *restic.Program) { p.Path = filepath.Join(t.TempDir(), "restic") }, restic.ErrNoProgram},
		"no program in PATH":  {func(p *restic.Program) { p.Path = "restic-that-nobody-has" }, restic.ErrNoProgram},
		"password by command": {func(p *restic.Program) { p.Env = []string{"RESTIC_PASSWORD_COMMAND=x"} }, nil},
		"password by flag":    {func(p *restic.Program) { p.Env, p.Args = nil, []string{"--password-file=x"} }, nil},
		"location by flag":    {func(p *restic.Program) { p.Location, p.Args = "", []string{"-r", "x"} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := standIn(t, "restic 0.14.0 compiled with go1.19.8 on linux/amd64", "echo started >&2; exit 1")
			test.change(p)
			_, err := p.ID(t.Context())
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
				require.NotContains(t, err.Error(), "started")
			} else {
				require.ErrorContains(t, err, "started")
			}
		})
	}
}

func TestPasswordFileThatIsMissing(t *testing.T) {
	withEach(t, func(t *testing.T, p *restic.Program) {
		p.PasswordFile = filepath.Join(t.TempDir(), "nothing")
		_, err := p.ID(t.Context())
		require.ErrorIs(t, err, restic.ErrPassword)
		require.ErrorContains(t, err, p.PasswordFile)
	})
}

func TestStandIns(t *testing.T) {
	const old, recent = "restic 0.14.0 compiled with go1.19.8 on linux/amd64", "restic 0.18.1-dev (compiled manually) compiled with go1.24 on linux/amd64"
	id := func(p *restic.Program) error {
		_, err := p.ID(context.Background())
		return err
	}
	for name, test := range map[string]struct {
		version, body string
		call          func(p *restic.Program) error
		want          error
		says          string
	}{
		"too old":              {"restic 0.13.1 compiled with go1.17", "exit 0", id, restic.ErrTooOld, "0.13.1"},
		"not restic":           {"busybox 1.36", "exit 0", id, restic.ErrNoProgram, "busybox"},
		"no version":           {"restic (unknown) compiled with go", "echo locked >&2; exit 12", id, restic.ErrPassword, "locked"},
		"another exit code":    {recent, "exit 7", id, nil, "exit code 7"},
		"code of an old one":   {old, "exit 12", id, nil, "exit code 12"},
		"killed":               {recent, "kill -9 $$", id, nil, "killed"},
		"no JSON":              {recent, "echo nonsense", id, restic.ErrOutput, ""},
		"not an ID":            {recent, `echo '{"id":"../../x"}'`, id, restic.ErrOutput, `../../x`},
		"endless output":       {recent, "exec yes", id, restic.ErrTooMuch, ""},
		"endless line":         {recent, "exec tr '\\0' x </dev/zero", func(p *restic.Program) error { return p.Prune(context.Background()) }, restic.ErrTooMuch, ""},
		"much on stderr":       {recent, "yes 'Load(x) returned error' | head -n 100000 >&2; echo 'Fatal: the end' >&2; exit 1", id, nil, "restic cat: the end"},
		"escape sequences":     {recent, `printf 'Fatal: \033[2J\r\n' >&2; exit 1`, id, nil, `restic cat: \x1b[2J`},
		"a stack":              {recent, `printf '{"message_type":"exit_error","code":1,"message":"open x: no\\nReadFull(y)\\nmain.main()\\n\\tmain.go:12"}\n' >&2; exit 1`, id, nil, "restic cat: open x: no"},
		"a stack in words":     {old, `printf 'open x: no\nmain.open\n\tmain.go:12\nmain.main\n\tmain.go:8\n' >&2; exit 1`, id, nil, "restic cat: open x: no"},
		"a panic":              {recent, `printf 'panic: oops\n\ngoroutine 1:\n' >&2; exit 2`, id, nil, "restic cat: panic: oops"},
		"access key":           {old, `echo 'Fatal: unable to open config file: The Access Key Id you provided does not exist in our records.' >&2; exit 1`, id, nil, "Access Key"},
		"no connection":        {old, `printf 'Fatal: unable to open config file: dial tcp: connection refused\nIs there a repository at the following location?\nx\n' >&2; exit 1`, id, nil, "connection refused"},
		"ends without reading": {recent, "exec </dev/null >/dev/null 2>&1; exit 0", id, restic.ErrOutput, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := standIn(t, test.version, test.body)
			err := test.call(p)
			require.ErrorContains(t, err, test.says)
			require.Less(t, len(err.Error()), 1000)
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
				return
			}
			var exit *restic.ExitError
			require.ErrorAs(t, err, &exit)
			require.NoError(t, exit.Unwrap())
		})
	}
}

// An incomplete snapshot can be forgotten by its ID.
func TestIncomplete(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 4)
	const warning = "Warning: at least one source file could not be read"
	for name, test := range map[string]struct{ id, item, warning string }{
		"restic 0.14.0": {long[:8], `"error":{"Op":"open","Path":"b","Err":13}`, warning},
		"restic 0.19.1": {long, `"error":{"message":"could not be read"}`, `{"message_type":"exit_error","code":3,"message":"` + warning + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			p := standIn(t, name, `
if [ "$1" = snapshots ]; then echo '[{"id":"`+long+`"}]'; exit; fi
echo '{"message_type":"summary","snapshot_id":"`+test.id+`"}'
echo '{"message_type":"error",`+test.item+`,"during":"archival","item":"/t/b"}' >&2
echo '`+test.warning+`' >&2
exit 3`)
			s, err := p.Backup(t.Context(), restic.BackupArgs{Dir: t.TempDir(), Host: "h"})
			require.ErrorIs(t, err, restic.ErrIncomplete)
			require.ErrorContains(t, err, "restic backup: /t/b: could not be read")
			require.Equal(t, long, s.ID)
		})
	}
}

// A program that ignores the interrupt is killed.
func TestDeaf(t *testing.T) {
	p := standIn(t, "restic 0.19.1", "trap '' INT; echo 'some trouble' >&2; while :; do sleep 1; done")
	p.Patience = 100 * time.Millisecond
	_, err := p.ID(t.Context())
	require.ErrorIs(t, err, restic.ErrStuck)
	require.ErrorContains(t, err, "some trouble")
}

// Progress has the numbers of restic's status lines, of old and new versions.
func TestProgress(t *testing.T) {
	var got []restic.Status
	p := standIn(t, "restic 0.19.1", `
echo 'restoring <Snapshot> to /x'
echo '{"message_type":"status","seconds_elapsed":1,"percent_done":0.1,"total_files":3,"files_done":1,"total_bytes":30,"bytes_done":10}'
echo '{"message_type":"status","seconds_elapsed":2,"percent_done":0.1,"total_files":3,"files_done":1,"total_bytes":30,"bytes_done":10}'
echo '{"message_type":"status","total_files":3,"files_restored":2,"total_bytes":30,"bytes_restored":20}'`)
	p.Progress = func(s restic.Status) { got = append(got, s) }
	require.NoError(t, p.Restore(t.Context(), "x", "y"))
	require.Equal(t, []restic.Status{{Files: 1, TotalFiles: 3, Bytes: 10, TotalBytes: 30}, {Files: 2, TotalFiles: 3, Bytes: 20, TotalBytes: 30}}, got)
}

func TestRedaction(t *testing.T) {
	var log bytes.Buffer
	file := filepath.Join(t.TempDir(), "location")
	require.NoError(t, os.WriteFile(file, []byte("rest:https://ann:p%26ssword@host/dir\n"), 0o600))
	for name, change := range map[string]func(p *restic.Program){
		"location": func(p *restic.Program) { p.Location = "rest:https://ann:p%26ssword@host/dir" },
		"in a file": func(p *restic.Program) {
			p.Location = ""
			p.Env = append(p.Env, "RESTIC_REPOSITORY=", "RESTIC_REPOSITORY_FILE="+file)
		},
		"in the environment": func(p *restic.Program) {
			p.Location = ""
			p.Env = append(p.Env, "RESTIC_REPOSITORY=rest:https://ann:p%26ssword@host/dir")
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := standIn(t, "restic 0.19.1", `
printf '{"message_type":"exit_error","code":11,"message":"Fatal: %s p\\u0026ssword %s %s http://bob:hunter2@proxy already locked"}\n' \
	"${RESTIC_REPOSITORY:-$(cat "$RESTIC_REPOSITORY_FILE")}" "$AWS_SECRET_ACCESS_KEY" "$MY_TOKEN" >&2
[ "$1" = unlock ] && exit 0
exit 11`)
			p.Env = append(p.Env, "AWS_SECRET_ACCESS_KEY=abc/def+ghi", "MY_TOKEN=tick tock")
			change(p)
			p.Patience = 100 * time.Millisecond
			p.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			_, err := p.ID(t.Context())
			require.ErrorIs(t, err, restic.ErrBusy)
			require.Contains(t, log.String(), "already locked")
			for _, secret := range []string{"p%26ssword", "p&ssword", "abc/def", "tick tock", "hunter2", password} {
				require.NotContains(t, err.Error(), secret)
				require.NotContains(t, log.String(), secret)
			}
			require.Contains(t, err.Error(), "ann:***@host/dir")
		})
	}
}

// A password with a slash is not escaped as it should be, and its place in the
// location is a guess. It is a secret nevertheless, in one piece and in several.
func TestRedactionOfASlash(t *testing.T) {
	p := standIn(t, "restic 0.19.1", `
printf 'Fatal: %s: invalid port ":sehr" after host, geheim@host\n' "$RESTIC_REPOSITORY" >&2
exit 1`)
	for _, location := range []string{"rest:http://ann:sehr/geheim@host/dir", "s3:https://ann:sehr/gehe@geheim@host/dir"} {
		p.Location = location
		_, err := p.ID(t.Context())
		require.ErrorContains(t, err, "ann:***@host/dir")
		for _, secret := range []string{"sehr", "gehe", "geheim"} {
			require.NotContains(t, err.Error(), secret)
		}
	}
}
