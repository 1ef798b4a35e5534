package offsite_test

import (
	"bufio"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite"
	"github.com/atocore/backup/offsite/internal/restic"
)

// packsOf returns the files of a repository below data, the largest first.
func packsOf(t *testing.T, r *offsite.Repository) (packs []string) {
	t.Helper()
	var largest int64
	require.NoError(t, filepath.WalkDir(filepath.Join(r.Location, "data"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > largest {
			largest, packs = info.Size(), append([]string{path}, packs...)
		} else {
			packs = append(packs, path)
		}
		return err
	}))
	require.NotEmpty(t, packs)
	return packs
}

func flipBit(t *testing.T, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	content[len(content)/2] ^= 4
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, os.WriteFile(path, content, 0o600))
}

// copyOfRepository returns a copy that can be damaged.
func copyOfRepository(t *testing.T, r *offsite.Repository) *offsite.Repository {
	t.Helper()
	c := *r
	c.Location = filepath.Join(t.TempDir(), "repository")
	require.NoError(t, os.CopyFS(c.Location, os.DirFS(r.Location)))
	return &c
}

func TestVerify(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile("segment/data_level0.bin", 3<<20)
	first := h.Create().Stamp
	h.push(r, first)
	h.change("segment/data_level0.bin", 1<<20, 1000)
	second := h.Create().Stamp
	h.push(r, second)
	storeTagged(t, r, time.Unix(1e9, 0), "h")
	storeTagged(t, r, time.Unix(1e9, 0), "h", "atocore", "stamp=garbled")
	verify := func(r *offsite.Repository, v offsite.VerifyOptions) (*offsite.Report, error) {
		v.Options.BackupDir = filepath.Join(t.TempDir(), "backups")
		report, err := r.Verify(context.Background(), v)
		requireNothingLeft(t, v.Options.BackupDir)
		return report, err
	}

	t.Run("whole", func(t *testing.T) {
		list, err := r.List(t.Context())
		require.NoError(t, err)
		require.Len(t, list, 2)
		require.Equal(t, []string{first, second}, []string{list[0].Stamp, list[1].Stamp})
		for _, share := range []string{"", "100%"} {
			report, err := verify(r, offsite.VerifyOptions{ReadData: share})
			require.NoError(t, err)
			want := &offsite.Report{OK: true, Copies: 2, ReadData: share, Problems: []string{}}
			if share == "" {
				want.ReadData = "5%"
			}
			require.Equal(t, want, report)
		}
	})
	t.Run("rehearsal", func(t *testing.T) {
		report, err := verify(r, offsite.VerifyOptions{Stamp: second})
		require.NoError(t, err)
		require.True(t, report.OK)
		require.True(t, report.Validation.Valid)
		require.Equal(t, second, report.Validation.Stamp)
		_, err = verify(r, offsite.VerifyOptions{Stamp: "20010101T000000Z"})
		require.ErrorIs(t, err, offsite.ErrNoCopy)
		require.ErrorContains(t, err, second)
	})
	t.Run("flipped bit", func(t *testing.T) {
		r := copyOfRepository(t, r)
		flipBit(t, packsOf(t, r)[0])
		report, err := verify(r, offsite.VerifyOptions{ReadData: "0"})
		require.NoError(t, err, "nobody has read it")
		require.Equal(t, "0", report.ReadData)
		report, err = verify(r, offsite.VerifyOptions{ReadData: "100%"})
		require.ErrorIs(t, err, offsite.ErrDamaged)
		require.False(t, report.OK)
		require.NotEmpty(t, report.Problems)
		report, err = verify(r, offsite.VerifyOptions{Stamp: first})
		require.ErrorIs(t, err, offsite.ErrDamaged)
		require.False(t, report.OK)
		require.NotEmpty(t, report.Problems)
	})
	t.Run("lost object", func(t *testing.T) {
		r := copyOfRepository(t, r)
		require.NoError(t, os.Remove(packsOf(t, r)[0]))
		report, err := verify(r, offsite.VerifyOptions{ReadData: "0"})
		require.ErrorIs(t, err, offsite.ErrDamaged)
		require.False(t, report.OK)
		require.Contains(t, report.Problems[0], "does not exist")
	})
	t.Run("forged copies", func(t *testing.T) {
		r := copyOfRepository(t, r)
		storeCopy(t, r, time.Unix(1e9, 0), "h", database) // without a recipe
		dir := filepath.Join(t.TempDir(), "tree")
		runRestic(t, r, "restore", "latest", "--tag", "stamp="+second, "--target", dir)
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "large")))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "files", "SHA256SUMS"), nil, 0o600))
		require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "files", "link")))
		cmd := exec.Command("restic", "-r", r.Location, "--password-file", r.PasswordFile, "--no-cache", "backup", "-q", "--host", "h",
			"--tag", "atocore,stamp="+second+",sums="+copyNamed(t, r, second).ManifestSHA256+",db="+database, ".")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)

		report, err := verify(r, offsite.VerifyOptions{})
		require.ErrorIs(t, err, offsite.ErrDamaged)
		require.Equal(t, 4, report.Copies)
		problems := strings.Join(report.Problems, "\n")
		require.Contains(t, problems, "it has no recipe")
		require.Contains(t, problems, `"files/SHA256SUMS" has 0 bytes instead of`)
		require.Contains(t, problems, `"files/link", a "symlink", is not in its recipe`)
		require.Contains(t, problems, `it lacks "large/chroma/segment/data_level0.bin/base-`)
		require.Contains(t, problems, `it lacks the directory "large/chroma`)
		for _, problem := range report.Problems {
			require.NotContains(t, problem, first)
		}
	})
}

// copyNamed returns the first copy of a stamp.
func copyNamed(t *testing.T, r *offsite.Repository, stamp string) offsite.Copy {
	t.Helper()
	list, err := r.List(t.Context())
	require.NoError(t, err)
	for _, c := range list {
		if c.Stamp == stamp {
			return c
		}
	}
	require.Fail(t, "no copy of "+stamp)
	return offsite.Copy{}
}

// A rehearsal of a copy whose database was damaged before the snapshot was made.
func TestVerifyFindings(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	require.NoError(t, os.WriteFile(h.RegistryPath, []byte("not JSON"), 0o644))
	stamp := h.Create().Stamp
	h.push(r, stamp)
	report, err := r.Verify(t.Context(), offsite.VerifyOptions{Stamp: stamp, Options: backup.Options{BackupDir: t.TempDir()}})
	require.ErrorIs(t, err, offsite.ErrDamaged)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.True(t, report.Validation.Intact)
	require.Len(t, report.Problems, 1)
}

func TestVerifyBadOptions(t *testing.T) {
	for name, v := range map[string]offsite.VerifyOptions{
		"no share":            {ReadData: "much"},
		"no percent":          {ReadData: "5"},
		"more than all":       {ReadData: "101%"},
		"negative":            {ReadData: "-5%"},
		"exponent":            {ReadData: "1e1%"},
		"a part":              {ReadData: "1/5"},
		"no backup directory": {Stamp: "20010101T000000Z"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := (&offsite.Repository{Program: "restic-that-nobody-has"}).Verify(t.Context(), v)
			require.ErrorIs(t, err, backup.ErrInvalidOptions)
		})
	}
}

// What all calls have in common.
func TestRepositoryErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(t *testing.T, r *offsite.Repository)
		want  error
	}{
		"no repository": {func(t *testing.T, r *offsite.Repository) { r.Location = filepath.Join(t.TempDir(), "none") }, offsite.ErrNoRepository},
		"wrong password": {func(t *testing.T, r *offsite.Repository) {
			require.NoError(t, os.WriteFile(r.PasswordFile, []byte("wrong"), 0o600))
		}, offsite.ErrPassword},
		"no password": {func(t *testing.T, r *offsite.Repository) { require.NoError(t, os.Remove(r.PasswordFile)) }, offsite.ErrPassword},
		"no program":  {func(t *testing.T, r *offsite.Repository) { r.Program = filepath.Join(t.TempDir(), "restic") }, offsite.ErrNoProgram},
	} {
		t.Run(name, func(t *testing.T) {
			r, opts := newRepository(t), storeOptions()
			opts.BackupDir = t.TempDir()
			test.spoil(t, r)
			_, err := r.List(t.Context())
			require.ErrorIs(t, err, test.want)
			_, err = r.Pull(t.Context(), opts, "20010101T000000Z")
			require.ErrorIs(t, err, test.want)
			_, err = r.Verify(t.Context(), offsite.VerifyOptions{})
			require.ErrorIs(t, err, test.want)
			_, err = r.Forget(t.Context(), opts, backup.Retention{KeepLast: 1})
			require.ErrorIs(t, err, test.want)
		})
	}
}

// A repository that another restic works on: one that stores keeps a check and a
// forget away, and one that removes keeps everything away.
func TestBusyRepository(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	storeCopy(t, r, noon, "h", database)
	hurried := *r
	hurried.Patience = time.Second
	busy := func(t *testing.T) {
		_, err := hurried.Forget(t.Context(), storeOptions(), backup.Retention{KeepLast: 1})
		require.ErrorIs(t, err, offsite.ErrBusy)
		_, err = hurried.Verify(t.Context(), offsite.VerifyOptions{})
		require.ErrorIs(t, err, offsite.ErrBusy)
	}
	t.Run("by a prune", func(t *testing.T) {
		dir := t.TempDir()
		keep, drop := filepath.Join(dir, "keep"), filepath.Join(dir, "drop")
		for _, path := range []string{keep, drop} {
			require.NoError(t, os.WriteFile(path, randomBytes(200<<10), 0o600))
		}
		by := restic.BackupArgs{Dir: dir, Host: "x"}
		both, err := programOf(r).Backup(t.Context(), by)
		require.NoError(t, err)
		require.NoError(t, os.Remove(drop))
		_, err = programOf(r).Backup(t.Context(), by)
		require.NoError(t, err)
		require.NoError(t, programOf(r).Forget(t.Context(), both.ID))

		// It reads the half that is still needed, at 1 KiB a second.
		prune := exec.Command("restic", "-r", r.Location, "--password-file", r.PasswordFile, "--no-cache", "prune", "--max-unused", "0", "--limit-download", "1")
		out, err := prune.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, prune.Start())
		stop := func() {
			_ = prune.Process.Kill()
			_ = prune.Wait()
		}
		t.Cleanup(stop)
		for lines := bufio.NewScanner(out); ; {
			require.True(t, lines.Scan(), "prune has ended")
			if strings.Contains(lines.Text(), "loading all snapshots") { // it has its lock
				break
			}
		}
		busy(t)
		_, err = hurried.List(t.Context())
		require.ErrorIs(t, err, offsite.ErrBusy)

		stop() // its lock stays
		_, err = r.Forget(t.Context(), storeOptions(), backup.Retention{KeepLast: 1})
		require.NoError(t, err)
	})
	t.Run("by a push", func(t *testing.T) {
		writer := exec.Command("restic", "-r", r.Location, "--password-file", r.PasswordFile, "--no-cache", "backup", "-q", "--stdin")
		data, err := writer.StdinPipe()
		require.NoError(t, err)
		require.NoError(t, writer.Start())
		t.Cleanup(func() {
			_ = writer.Process.Kill()
			_ = writer.Wait()
		})
		_, err = data.Write(make([]byte, 1<<20)) // more than a pipe takes, so restic has its lock
		require.NoError(t, err)
		busy(t)
		_, err = hurried.List(t.Context())
		require.NoError(t, err)
	})
}

func TestInit(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	require.ErrorContains(t, r.Init(t.Context()), "already")
	r.Location += "-2"
	require.NoError(t, r.Init(t.Context()))
	list, err := r.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
	require.NotNil(t, list)
}
