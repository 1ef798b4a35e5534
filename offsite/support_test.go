package offsite_test

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/backuptest/resticrepo"
	"github.com/atocore/backup/offsite"
)

const password = resticrepo.Password

func TestMain(m *testing.M) {
	// restic waits most of the time: 0.2 seconds for each lock (lockRepo in its
	// internal/restic/lock.go). More tests than there are processors can wait.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// need skips the test without a program.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
}

// newRepository returns an empty repository in a directory, which opens quickly.
func newRepository(t *testing.T) *offsite.Repository {
	t.Helper()
	need(t, "restic")
	dir := t.TempDir()
	file := filepath.Join(dir, "password")
	require.NoError(t, os.WriteFile(file, []byte(password+"\n"), 0o600))
	r := &offsite.Repository{Location: filepath.Join(dir, "repository"), PasswordFile: file, Patience: time.Minute}
	require.NoError(t, resticrepo.Make(r.Location))
	return r
}

// runRestic runs restic by hand and returns what it prints.
func runRestic(t *testing.T, r *offsite.Repository, args ...string) string {
	t.Helper()
	cmd := exec.Command("restic", append([]string{"-r", r.Location, "--password-file", r.PasswordFile, "--no-cache", "-q"}, args...)...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "restic %v: %s", args, out)
	return string(out)
}

// A host is a machine with a store, whose clock goes a second further at each look.
type host struct {
	*backuptest.Store
	now time.Time
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{Store: backuptest.NewSmallStore(t), now: backuptest.Noon.Time}
	h.Clock = backuptest.ClockFunc(func() time.Time {
		h.now = h.now.Add(time.Second)
		return h.now
	})
	h.Host = "host.example"
	return h
}

// writeFile writes random bytes to a file of the Chroma directory.
func (h *host) writeFile(name string, size int) {
	h.T.Helper()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	path := h.InChroma(name)
	h.Must(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644))
}

// change changes n bytes of a file of the Chroma directory in place.
func (h *host) change(name string, at int64, n int) {
	h.T.Helper()
	f, err := os.OpenFile(h.InChroma(name), os.O_WRONLY, 0)
	require.NoError(h.T, err)
	data := make([]byte, n)
	_, _ = rand.Read(data)
	_, err = f.WriteAt(data, at)
	h.Must(err, f.Close())
}

// push pushes a snapshot, which must succeed.
func (h *host) push(r *offsite.Repository, stamp string) *offsite.Pushed {
	h.T.Helper()
	p, err := r.Push(context.Background(), h.Options, stamp)
	require.NoError(h.T, err)
	require.Equal(h.T, stamp, p.Stamp)
	return p
}

// pull pulls a snapshot onto an empty machine, and compares the result with the
// snapshot of h if that is there still.
func (h *host) pull(r *offsite.Repository, stamp string) backup.Options {
	h.T.Helper()
	opts := backup.Options{BackupDir: filepath.Join(h.T.TempDir(), "backups")}
	h.T.Cleanup(func() { removable(h.T, opts.BackupDir) })
	meta, err := r.Pull(context.Background(), opts, stamp)
	require.NoError(h.T, err)
	require.Equal(h.T, stamp, meta.Stamp)
	requireNothingLeft(h.T, opts.BackupDir)
	requireSame(h.T, h.SnapshotPath(stamp), filepath.Join(opts.BackupDir, "snapshots", stamp))
	return opts
}

// requireNothingLeft checks that nothing of a pull is left in a backup directory.
func requireNothingLeft(t *testing.T, backupDir string) {
	t.Helper()
	for _, pattern := range []string{".atocore-offsite/*/pull-*", ".atocore-offsite/*/tmp/*", ".atocore-staging-*"} {
		found, err := filepath.Glob(filepath.Join(backupDir, pattern))
		require.NoError(t, err)
		require.Empty(t, found)
	}
}

// requireSame checks that two trees have the same names, contents, modes and times.
func requireSame(t *testing.T, want, got string) {
	t.Helper()
	require.Equal(t, describe(t, want), describe(t, got))
}

func describe(t *testing.T, dir string) map[string]string {
	t.Helper()
	tree := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		if !d.IsDir() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = backuptest.ManifestLine(data, "")
		}
		rel, err := filepath.Rel(dir, path)
		tree[rel] = fmt.Sprintf("%v %s %s", info.Mode(), info.ModTime().UTC().Format(time.RFC3339Nano), content)
		return err
	}))
	return tree
}

// flip changes a byte in the middle of a file in place. With keepTime its
// modification time is what it was.
func flip(t *testing.T, path string, keepTime bool) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(path, 0o600))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{data[len(data)/2] ^ 1}, int64(len(data)/2))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	if keepTime {
		require.NoError(t, os.Chtimes(path, time.Time{}, info.ModTime()))
	}
}

// unlink makes a file in the tree one of its own, so that it can be damaged without
// the snapshot's.
func unlink(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, data, info.Mode()))
	require.NoError(t, os.Chtimes(path, time.Time{}, info.ModTime()))
}
