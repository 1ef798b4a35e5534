package offsite

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/backuptest/resticrepo"
	"github.com/atocore/backup/internal/backuptest/s3server"
	"github.com/atocore/backup/offsite"
)

// A place is a repository, and restic for looking at it without our code.
type place struct {
	*offsite.Repository
	t      *testing.T
	dir    string           // of a repository in a directory
	server *s3server.Server // of one in Swift, as the next two
	bucket string
	proxy  *s3server.Proxy
	cache  string
}

func needPrograms(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
}

// newPlace returns a place without a repository, whose location is still missing.
func newPlace(t *testing.T) *place {
	t.Helper()
	needPrograms(t, "restic")
	p := &place{t: t, Repository: &offsite.Repository{Patience: time.Minute}, cache: t.TempDir()}
	p.PasswordFile = filepath.Join(t.TempDir(), "password")
	backuptest.Write(t, p.PasswordFile, resticrepo.Password+"\n")
	return p
}

// newDirectory returns a place with an empty repository in a directory.
func newDirectory(t *testing.T) *place {
	t.Helper()
	p := newPlace(t)
	p.dir = filepath.Join(t.TempDir(), "repository")
	p.Location = p.dir
	require.NoError(t, resticrepo.Make(p.dir))
	return p
}

var buckets atomic.Int64

// newBucket returns a place with an empty repository in Swift.
func newBucket(t *testing.T) *place {
	t.Helper()
	p := newPlace(t)
	p.server = swift.Get(t)
	p.bucket = strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	p.bucket = p.bucket[:min(len(p.bucket), 50)] + "-" + strconv.FormatInt(buckets.Add(1), 10)
	require.NoError(t, p.server.Put(t.Context(), p.bucket, resticrepo.Files()))
	return p.through(p.server.NewProxy(t))
}

// through returns the same place as it is seen through another proxy.
func (p *place) through(proxy *s3server.Proxy) *place {
	c, r := *p, *p.Repository
	c.Repository, c.proxy = &r, proxy
	c.Location, c.Args, c.Env = proxy.Location(p.bucket), proxy.Args(), proxy.Env()
	return &c
}

// command prepares a run of restic itself.
func (p *place) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.t.Context(), "restic", append(p.Args[:len(p.Args):len(p.Args)], args...)...)
	cmd.Env = append(os.Environ(), "RESTIC_REPOSITORY="+p.Location, "RESTIC_PASSWORD_FILE="+p.PasswordFile,
		"RESTIC_CACHE_DIR="+p.cache, "TZ=UTC")
	cmd.Env = append(cmd.Env, p.Env...)
	return cmd
}

// restic runs restic itself, which must succeed, and returns what it prints.
func (p *place) restic(args ...string) string {
	p.t.Helper()
	cmd := p.command(args...)
	var errors strings.Builder
	cmd.Stderr = &errors
	out, err := cmd.Output()
	require.NoError(p.t, err, "restic %s\n%s%s", args, out, &errors)
	return string(out)
}

// id returns the repository's.
func (p *place) id() string {
	p.t.Helper()
	var config struct{ ID string }
	require.NoError(p.t, json.Unmarshal([]byte(p.restic("cat", "config")), &config))
	return config.ID
}

// check checks the repository with restic itself.
func (p *place) check(args ...string) {
	p.t.Helper()
	p.restic("unlock")
	p.restic(append([]string{"check"}, args...)...)
}

// push pushes a snapshot of a store, which must succeed.
func (p *place) push(s *store, stamp string) *offsite.Pushed {
	p.t.Helper()
	pushed, err := p.Push(p.context(), s.Options, stamp)
	require.NoError(p.t, err)
	require.Equal(p.t, stamp, pushed.Stamp)
	return pushed
}

// stamps returns the stamps of the copies, in their order.
func (p *place) stamps() (stamps []string) {
	p.t.Helper()
	list, err := p.List(p.context())
	require.NoError(p.t, err)
	for _, c := range list {
		stamps = append(stamps, c.Stamp)
	}
	return stamps
}

// context returns one that bounds a call far beyond what it should need.
func (p *place) context() context.Context {
	ctx, cancel := context.WithTimeout(p.t.Context(), 3*time.Minute)
	p.t.Cleanup(cancel)
	return ctx
}

// start makes a call in another process, and returns when it begins.
func (p *place) start(name string, s *store, stamp string) *backuptest.Child {
	p.t.Helper()
	text, err := json.Marshal(call{
		Name: name, Location: p.Location, PasswordFile: p.PasswordFile, Args: p.Args, Env: p.Env, Patience: p.Patience,
		BackupDir: s.BackupDir, DatabasePath: s.DatabasePath, Host: s.Host, Stamp: stamp,
	})
	require.NoError(p.t, err)
	child := backuptest.Start(p.t, "call", string(text))
	require.Equal(p.t, "began", child.Hear())
	return child
}
