package offsite_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/offsite"
)

// A snapshot that is there is not downloaded again, and another one of its name is
// left alone.
func TestPullWhatIsThere(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile("small", 1000)
	s := h.CreateSnapshot()
	h.push(r, s.Stamp)
	before := describe(t, h.BackupDir)
	meta, err := r.Pull(context.Background(), h.Options, s.Stamp)
	require.NoError(t, err)
	require.Equal(t, s.Stamp, meta.Stamp)
	require.Equal(t, before, describe(t, h.BackupDir))

	s.Write("chroma/small", []byte("x"))
	s.Reseal()
	before = describe(t, h.BackupDir)
	meta, err = r.Pull(context.Background(), h.Options, s.Stamp)
	require.ErrorIs(t, err, backup.ErrSnapshotExists)
	require.Nil(t, meta)
	require.Equal(t, before, describe(t, h.BackupDir))

	s.Remove("SHA256SUMS")
	_, err = r.Pull(context.Background(), h.Options, s.Stamp)
	require.ErrorIs(t, err, backup.ErrSnapshotExists)
}

// What can be refused without restic is, and the rest says what there is.
func TestPullRefuses(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	dir := filepath.Join(t.TempDir(), "backups")
	opts := backup.Options{BackupDir: dir}
	without := *r
	without.Program = filepath.Join(t.TempDir(), "restic")
	for _, stamp := range []string{"", "..", "a/b", "20261124T115419Z,x", "20261124T115419Z\n", "latest", "20261124T115419Z-001"} {
		_, err := without.Pull(context.Background(), opts, stamp)
		require.ErrorIs(t, err, offsite.ErrNoCopy, "%q", stamp)
	}
	_, err := without.Pull(context.Background(), opts, "20261124T115419Z")
	require.ErrorIs(t, err, offsite.ErrNoProgram)
	_, err = r.Pull(context.Background(), backup.Options{}, "20261124T115419Z")
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	_, err = r.Pull(context.Background(), opts, "20261124T115419Z")
	require.ErrorIs(t, err, offsite.ErrNoCopy)
	stamp := h.Create().Stamp
	h.push(r, stamp)
	_, err = r.Pull(context.Background(), opts, "20261124T115419Z")
	require.ErrorIs(t, err, offsite.ErrNoCopy)
	require.ErrorContains(t, err, stamp)
	require.NoDirExists(t, dir, "made for nothing")

	h.pull(r, stamp) // which makes the directory, with this mode
	opts = h.pull(r, stamp)
	info, err := os.Stat(opts.BackupDir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
}

// Two stores may have a snapshot of one second.
func TestPullOfTwoStores(t *testing.T) {
	t.Parallel()
	r, h, other := newRepository(t), newHost(t), newHost(t)
	other.writeFile("of the other", 10)
	stamp := h.Create().Stamp
	require.Equal(t, stamp, other.Create().Stamp)
	h.push(r, stamp)
	other.push(r, stamp)
	opts := backup.Options{BackupDir: t.TempDir()}
	_, err := r.Pull(context.Background(), opts, stamp)
	require.ErrorIs(t, err, offsite.ErrOtherStore)
	require.ErrorContains(t, err, h.DatabasePath)
	require.ErrorContains(t, err, other.DatabasePath)
	opts.DatabasePath, opts.Host = other.DatabasePath, "another.example"
	_, err = r.Pull(context.Background(), opts, stamp)
	require.Error(t, err)
	opts.Host = other.Options.Host
	meta, err := r.Pull(context.Background(), opts, stamp)
	require.NoError(t, err)
	require.Equal(t, other.DatabasePath, meta.SourceDBPath)
	requireSame(t, other.SnapshotPath(stamp), filepath.Join(opts.BackupDir, "snapshots", stamp))
}

// A copy that is not what a push stores is refused, and leaves nothing.
// internal/tests/offsite has many more of these.
func TestPullRefusesForgeries(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, mib)
	h.writeFile("small", 1000)
	h.push(r, h.Create().Stamp)
	h.change(large, 0, 10)
	stamp := h.Create().Stamp
	h.push(r, stamp)
	const other = "20200101T000000Z"
	list := snapshotsIn(t, r)
	made := list[len(list)-1]
	original := filepath.Join(t.TempDir(), "copy")
	runRestic(t, r, "restore", made.ID, "--target", original)
	replace := func(t *testing.T, path, old, with string) {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Contains(t, string(data), old)
		require.NoError(t, os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(with), 1), 0o600))
	}
	for name, c := range map[string]struct {
		forge func(t *testing.T, dir string)
		want  error
	}{
		"nothing":   {func(*testing.T, string) {}, nil},
		"no recipe": {func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "recipe.json"))) }, offsite.ErrDamaged},
		"a version": {func(t *testing.T, dir string) {
			replace(t, filepath.Join(dir, "recipe.json"), `"version":1`, `"version":2`)
		}, offsite.ErrDamaged},
		"a path": {func(t *testing.T, dir string) {
			replace(t, filepath.Join(dir, "recipe.json"), `"path":"db/`, `"path":"../`)
		}, offsite.ErrDamaged},
		"a size": {func(t *testing.T, dir string) { replace(t, filepath.Join(dir, "recipe.json"), `"size":`, `"size":1`) }, offsite.ErrDamaged},
		"a huge size": {func(t *testing.T, dir string) {
			replace(t, filepath.Join(dir, "recipe.json"), `"size":`, `"size":10000000000`)
		}, backup.ErrNoSpace},
		"other content":  {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "files/chroma/chroma.sqlite3"), true) }, offsite.ErrDamaged},
		"other metadata": {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "files/backup-metadata.json"), true) }, offsite.ErrDamaged},
		"other sums":     {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "files/SHA256SUMS"), true) }, offsite.ErrDamaged},
		"a delta": {func(t *testing.T, dir string) {
			found, err := filepath.Glob(filepath.Join(dir, "large/chroma/"+large+"/*.delta"))
			require.NoError(t, err)
			require.Len(t, found, 1)
			flip(t, found[0], true)
		}, offsite.ErrDamaged},
		"content of another": {func(t *testing.T, dir string) {
			path := filepath.Join(dir, "files/chroma/small")
			old := sumOf(t, path)
			flip(t, path, true)
			replace(t, filepath.Join(dir, "files/SHA256SUMS"), old, sumOf(t, path))
			replace(t, filepath.Join(dir, "recipe.json"), old, sumOf(t, path))
		}, offsite.ErrDamaged},
		"metadata of another": {func(t *testing.T, dir string) {
			replace(t, filepath.Join(dir, "recipe.json"), stamp, other)
		}, offsite.ErrDamaged},
		"a link": {func(t *testing.T, dir string) {
			path := filepath.Join(dir, "files/config/project-registry.json")
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Symlink("/etc/passwd", path))
		}, offsite.ErrDamaged},
		"a file too many": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "files/evil"), nil, 0o600))
		}, offsite.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			forged := newRepository(t)
			dir := filepath.Join(t.TempDir(), "copy")
			out, err := exec.Command("cp", "-a", original, dir).CombinedOutput()
			require.NoError(t, err, string(out))
			c.forge(t, dir)
			args := []string{"-r", forged.Location, "--password-file", forged.PasswordFile, "backup", "-q", "--no-cache", "--host", made.Hostname, "."}
			wanted := stamp
			if name == "metadata of another" {
				wanted = other
			}
			for _, tag := range made.Tags {
				args = append(args, "--tag", strings.Replace(tag, "="+stamp, "="+wanted, 1))
			}
			cmd := exec.Command("restic", args...)
			cmd.Dir = dir
			out, err = cmd.CombinedOutput()
			require.NoError(t, err, string(out))
			opts := backup.Options{BackupDir: t.TempDir()}
			_, err = forged.Pull(context.Background(), opts, wanted)
			if c.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, c.want)
			requireNothingLeft(t, opts.BackupDir)
			require.NoDirExists(t, filepath.Join(opts.BackupDir, "snapshots", wanted))
		})
	}
}

// A snapshot with so many files that SHA256SUMS is a large one. It is what a pull
// reads first, so it is never a base with deltas.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	deep := strings.Repeat(strings.Repeat("d", 250)+"/", 10)
	for i := range 450 {
		h.writeFile(fmt.Sprint(deep, i), 10)
	}
	stamp := h.Create().Stamp
	require.Greater(t, backuptest.FileSize(t, h.SnapshotPath(stamp, "SHA256SUMS")), int64(mib))
	h.push(r, stamp)
	h.pull(r, stamp)
	h.writeFile(deep+"7", 11)
	stamp = h.Create().Stamp
	require.Less(t, h.push(r, stamp).ReadBytes, int64(2*mib), "SHA256SUMS, and little more")
	h.pull(r, stamp)
}

// A snapshot with findings is pulled only if that is asked for, and is no damage.
func TestPullWithFindings(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	backuptest.Write(t, h.RegistryPath, "not JSON")
	stamp := h.Create().Stamp
	h.push(r, stamp)
	opts := backup.Options{BackupDir: t.TempDir()}
	_, err := r.Pull(context.Background(), opts, stamp)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.NotErrorIs(t, err, offsite.ErrDamaged)
	requireNothingLeft(t, opts.BackupDir)
	opts.DespiteFindings = true
	_, err = r.Pull(context.Background(), opts, stamp)
	require.NoError(t, err)
}
