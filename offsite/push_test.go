package offsite_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite"
)

// large is a file of the Chroma directory that is stored as a base and deltas.
const large = "segment/data_level0.bin"

const mib = 1 << 20

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 3*mib)
	h.writeFile("segment/header.bin", 100)
	h.writeFile("one byte less", mib-1)
	h.writeFile("a line\nand \\ another", 10)
	h.writeFile("large \xff and\nodd", mib)
	h.writeFile("\xff\xfe", 10)
	h.writeFile("\ufffd<&>", 10)
	h.writeFile("nothing", 0)
	h.writeFile("closed/only for reading", 20)
	h.writeFile("closed/too/x.bin", mib+1)
	h.Must(os.MkdirAll(h.InChroma("empty/below"), 0o755),
		os.Chmod(h.InChroma("closed/only for reading"), 0o400),
		os.Chmod(h.InChroma("closed/too/x.bin"), 0o440),
		os.Chmod(h.InChroma("closed/too"), 0o500),
		os.Chmod(h.InChroma("closed"), 0o2511),
		os.Chmod(h.InChroma("empty"), 0o1777))
	t.Cleanup(func() { removable(t, h.Dir) })

	first := h.Create().Stamp
	pushed := h.push(r, first)
	require.False(t, pushed.AlreadyThere)
	require.Greater(t, pushed.UploadedBytes, int64(3*mib))
	require.Equal(t, "host.example", pushed.Host)
	require.Equal(t, h.DatabasePath, pushed.DatabasePath)
	require.Equal(t, sumOf(t, h.SnapshotPath(first, "SHA256SUMS")), pushed.ManifestSHA256)
	h.pull(r, first)
	_, err := backup.ValidateBackup(context.Background(), h.Options, first)
	require.NoError(t, err, "although other names link to its files")

	h.change(large, mib, 1000)
	second := h.Create().Stamp
	pushed = h.push(r, second)
	require.Less(t, pushed.UploadedBytes, int64(100_000))
	h.pull(r, second)
	h.pull(r, first)

	again := h.push(r, second)
	require.True(t, again.AlreadyThere)
	require.Equal(t, pushed.Copy, again.Copy)
	require.Zero(t, again.ReadBytes+again.ChangedBytes+again.UploadedBytes)
	h.Must(os.RemoveAll(h.offsiteDir()))
	require.True(t, h.push(r, second).AlreadyThere, "without the state")
	require.Equal(t, []string{first, second}, stampsIn(t, r))
}

// removable lets the test remove directories whatever their modes are.
func removable(t *testing.T, dir string) {
	out, err := exec.Command("chmod", "-R", "u+rwx", dir).CombinedOutput()
	require.NoError(t, err, string(out))
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// A push reads what changed, and sends about that.
func TestPushCosts(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 8*mib)
	h.writeFile("small", 300_000)
	h.push(r, h.Create().Stamp)

	pushed := h.push(r, h.Create().Stamp)
	require.Less(t, pushed.ReadBytes, int64(100_000), "nothing changed but the metadata")
	require.Less(t, pushed.UploadedBytes, int64(100_000))
	repositoryBefore := sizeOf(t, r.Location)

	for page := range 20 { // 1 % of the pages
		h.change(large, int64(page*100)*4096, 4096)
	}
	pushed = h.push(r, h.Create().Stamp)
	require.Greater(t, pushed.ReadBytes, int64(8*mib))
	require.Less(t, pushed.ReadBytes, int64(8*mib+100_000))
	require.Greater(t, pushed.ChangedBytes, int64(20*4096))
	require.Less(t, pushed.ChangedBytes, int64(200_000))
	require.Less(t, sizeOf(t, r.Location)-repositoryBefore, int64(8*mib/50+100_000))
	require.Less(t, pushed.UploadedBytes, int64(8*mib/50+100_000))
	h.pull(r, pushed.Stamp)

	h.writeFile("small", 300_001)
	pushed = h.push(r, h.Create().Stamp)
	require.Less(t, pushed.ReadBytes, int64(500_000))
	require.Greater(t, pushed.ChangedBytes, int64(300_000))
	h.pull(r, pushed.Stamp)
}

func sizeOf(t *testing.T, dir string) (size int64) {
	t.Helper()
	require.NoError(t, filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
		return err
	}))
	return size
}

// Files grow, shrink, disappear, and become directories, and the other way round.
func TestShapes(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	steps := []func(){
		func() { h.writeFile("x", 2*mib); h.writeFile("y/z", 10); h.writeFile("w/v/u", 2*mib) },
		func() { h.writeFile("x", 10); h.writeFile("y/z", 2*mib) },                        // across the threshold
		func() { h.RemoveAll(h.InChroma("x")); h.writeFile("x/y", 2*mib) },                // a file becomes a directory
		func() { h.writeFile("x/base-0/z", 2*mib); h.RemoveAll(h.InChroma("y")) },         // a name like a part's
		func() { h.RemoveAll(h.InChroma("x")); h.writeFile("x", 3*mib) },                  // and back
		func() { h.writeFile("x", 3*mib+1) },                                              // all of it changed
		func() { h.Must(os.Truncate(h.InChroma("x"), mib)) },                              // the smallest large one
		func() { h.Must(os.Truncate(h.InChroma("w/v/u"), 3*mib)); h.change("x", 0, mib) }, // zeros at the end
		func() { h.RemoveAll(h.InChroma("w")); h.RemoveAll(h.InChroma("x")) },
	}
	var stamps []string
	for _, step := range steps {
		step()
		stamps = append(stamps, h.Create().Stamp)
		h.push(r, stamps[len(stamps)-1])
	}
	for _, stamp := range stamps {
		h.pull(r, stamp)
	}
	for _, e := range treeOf(t, h) {
		require.NotContains(t, e, "/large/chroma/", "of files that are gone")
	}
}

// offsiteDir is the state.
func (h *host) offsiteDir() string { return filepath.Join(h.BackupDir, ".atocore-offsite") }

// stateDir is the only store's state in the only repository.
func (h *host) stateDir() string {
	h.T.Helper()
	found, err := filepath.Glob(filepath.Join(h.offsiteDir(), "*", "*", "tree"))
	require.NoError(h.T, err)
	require.Len(h.T, found, 1)
	return filepath.Dir(found[0])
}

// treeOf returns the paths of the files in the state's tree, below it.
func treeOf(t *testing.T, h *host) (files []string) {
	t.Helper()
	root := filepath.Join(h.stateDir(), "tree")
	require.NoError(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, root))
		}
		return err
	}))
	return files
}

// parts returns the paths of what the tree has of a large file.
func parts(t *testing.T, h *host, name string) (base string, deltas []string) {
	t.Helper()
	for _, p := range treeOf(t, h) {
		switch rest, ok := strings.CutPrefix(p, "/large/chroma/"+name+"/"); {
		case !ok:
		case strings.HasPrefix(rest, "base-"):
			require.Empty(t, base)
			base = filepath.Join(h.stateDir(), "tree", p)
		default:
			deltas = append(deltas, filepath.Join(h.stateDir(), "tree", p))
		}
	}
	return base, deltas
}

// Deltas are merged when there are 32, and the file becomes a new base when they
// have more than 60 % of its size.
func TestMergeAndRebase(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.IncludeChroma = true
	h.writeFile(large, mib)
	stamps := []string{h.Create().Stamp}
	h.push(r, stamps[0])
	first, none := parts(t, h, large)
	require.Empty(t, none)
	var counts []int
	for i := range 40 {
		h.change(large, int64(i%200)*4096, 100)
		stamp := h.Create().Stamp
		stamps = append(stamps, stamp)
		h.push(r, stamp)
		base, deltas := parts(t, h, large)
		require.Equal(t, first, base)
		counts = append(counts, len(deltas))
	}
	require.Equal(t, 32, counts[31])
	require.Equal(t, 1, counts[32], "merged")
	require.Equal(t, 8, counts[39])
	for _, i := range []int{0, 1, 31, 32, 33, 40} {
		h.pull(r, stamps[i])
	}

	h.change(large, 0, mib/2)
	h.push(r, h.Create().Stamp)
	base, deltas := parts(t, h, large)
	require.Equal(t, first, base, "half of it is no reason")
	require.Len(t, deltas, 9)
	h.change(large, 0, mib/4)
	stamp := h.Create().Stamp
	h.push(r, stamp)
	base, deltas = parts(t, h, large)
	require.NotEqual(t, first, base, "together they have more than 60 %")
	require.Empty(t, deltas)
	h.change(large, 0, 700_000)
	stamp = h.Create().Stamp
	h.push(r, stamp)
	second := base
	base, deltas = parts(t, h, large)
	require.NotEqual(t, second, base, "one has more than 60 %")
	require.Empty(t, deltas)
	h.pull(r, stamp)
}

// Every restic snapshot is complete by itself: all others can be forgotten.
func TestEveryCopyIsComplete(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	var stamps []string
	for i := range 4 {
		h.writeFile(fmt.Sprint("small", i), 1000)
		if i == 0 {
			h.writeFile(large, 2*mib)
		}
		h.change(large, int64(i)*mib/4, 5000)
		stamps = append(stamps, h.Create().Stamp)
		h.push(r, stamps[i])
	}
	for _, kept := range stamps {
		alone := *r
		alone.Location = filepath.Join(t.TempDir(), "repository")
		require.NoError(t, os.CopyFS(alone.Location, os.DirFS(r.Location)))
		var others []string
		for _, s := range snapshotsIn(t, &alone) {
			if !strings.Contains(strings.Join(s.Tags, " ")+" ", "stamp="+kept+" ") {
				others = append(others, s.ID)
			}
		}
		require.Len(t, others, 3)
		runRestic(t, &alone, append([]string{"forget", "--prune"}, others...)...)
		runRestic(t, &alone, "check", "--read-data")
		h.pull(&alone, kept)
	}
}

// resticSnapshot is one of restic's, as it lists them.
type resticSnapshot struct {
	ID       string
	Tags     []string
	Hostname string
	Paths    []string
}

func snapshotsIn(t *testing.T, r *offsite.Repository) (list []resticSnapshot) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(runRestic(t, r, "snapshots", "--json")), &list))
	return list
}

func stampsIn(t *testing.T, r *offsite.Repository) (stamps []string) {
	t.Helper()
	for _, s := range snapshotsIn(t, r) {
		for _, tag := range s.Tags {
			if stamp, ok := strings.CutPrefix(tag, "stamp="); ok {
				stamps = append(stamps, stamp)
			}
		}
	}
	return stamps
}

// restic and rdiff alone bring everything back.
func TestByHand(t *testing.T) {
	t.Parallel()
	need(t, "rdiff", "sha256sum", "sh")
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 2*mib)
	h.writeFile("with a\nnewline and 'quotes'", 2*mib)
	h.writeFile("small", 10)
	var stamps []string
	for i := range 4 {
		h.change(large, int64(i)*mib/4, 5000)
		stamps = append(stamps, h.Create().Stamp)
		h.push(r, stamps[i])
	}
	script, err := filepath.Abs("testdata/by-hand.sh")
	require.NoError(t, err)
	for i, stamp := range []string{stamps[0], stamps[3]} {
		dir := t.TempDir()
		target := filepath.Join(dir, "restored")
		cmd := exec.Command("sh", script, stamp, []string{target, "restored/"}[i])
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "RESTIC_REPOSITORY="+r.Location, "RESTIC_PASSWORD_FILE="+r.PasswordFile, "RESTIC_CACHE_DIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "is what was pushed")
		for path, want := range describe(t, h.SnapshotPath(stamp)) {
			if !strings.HasPrefix(want, "d") {
				require.Equal(t, sumOf(t, h.SnapshotPath(stamp, path)), sumOf(t, filepath.Join(target, path)), path)
			}
		}
	}
}

// A relative location is that of this process, although restic runs elsewhere.
func TestRelativeLocation(t *testing.T) {
	r, h := newRepository(t), newHost(t)
	dir := filepath.Dir(r.Location)
	t.Chdir(dir)
	r.Location, r.PasswordFile = "repository", "password"
	h.BackupDir = filepath.Join(dir, "backups")
	stamp := h.Create().Stamp
	h.BackupDir = "backups"
	h.push(r, stamp)
	require.Len(t, stampsIn(t, r), 1)
	h.pull(r, stamp)

	// The same words name another repository in another directory.
	h.BackupDir = filepath.Join(dir, "backups")
	r.PasswordFile = filepath.Join(dir, "password")
	t.Chdir(t.TempDir())
	require.NoError(t, r.Init(t.Context())) // with an ID of its own
	h.push(r, stamp)
	require.Len(t, stampsIn(t, r), 1)
	states, err := os.ReadDir(filepath.Join(h.BackupDir, ".atocore-offsite"))
	require.NoError(t, err)
	require.Len(t, states, 2)
}

// The progress goes forward, on the goroutine of the call, and ends.
func TestProgress(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 4*mib)
	stamp := h.Create().Stamp
	var reports []backup.Progress
	watched := h.Options
	watched.OnProgress = func(p backup.Progress) { reports = append(reports, p) } // the race detector sees another goroutine
	check := func(phases ...backup.Phase) {
		t.Helper()
		seen, last := map[backup.Phase]bool{}, backup.Progress{}
		for _, p := range reports {
			require.GreaterOrEqual(t, p.Share, last.Share)
			seen[p.Phase], last = true, p
		}
		require.InDelta(t, 1, last.Share, 0)
		for _, phase := range phases {
			require.True(t, seen[phase], phase)
		}
		reports = nil
	}
	_, err := r.Push(context.Background(), watched, stamp)
	require.NoError(t, err)
	check(backup.PhaseHash, backup.PhaseExport)
	_, err = r.Push(context.Background(), watched, stamp)
	require.NoError(t, err)
	check(backup.PhaseHash)
	watched.BackupDir = t.TempDir()
	for range 2 {
		_, err = r.Pull(context.Background(), watched, stamp)
		require.NoError(t, err)
		check(backup.PhaseImport)
	}
}

// A function of the host that panics, and a context that ends, at any report.
func TestInterruptions(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 4*mib)
	stamp := h.Create().Stamp
	empty := t.TempDir()
	push := func(ctx context.Context, opts backup.Options) error {
		_, err := r.Push(ctx, opts, stamp)
		return err
	}
	pull := func(ctx context.Context, opts backup.Options) error {
		opts.BackupDir = empty
		_, err := r.Pull(ctx, opts, stamp)
		return err
	}
	for _, c := range []struct {
		call  func(ctx context.Context, opts backup.Options) error
		phase backup.Phase
	}{
		{push, backup.PhaseHash}, {push, backup.PhaseExport},
		{pull, backup.PhaseImport}, {pull, backup.PhaseValidateFiles},
	} {
		if c.phase == backup.PhaseImport {
			h.push(r, stamp)
		}
		opts := h.Options
		opts.OnProgress = func(p backup.Progress) {
			if p.Phase == c.phase && (p.Bytes > 0 || p.Phase == backup.PhaseExport) {
				panic("of the host")
			}
		}
		require.ErrorIs(t, c.call(context.Background(), opts), backup.ErrPanic, c.phase)
		ctx, cancel := context.WithCancel(context.Background())
		opts.OnProgress = func(p backup.Progress) {
			if p.Phase == c.phase && (p.Bytes > 0 || p.Phase == backup.PhaseExport) {
				cancel()
			}
		}
		require.ErrorIs(t, c.call(ctx, opts), context.Canceled, c.phase)
		requireNothingLeft(t, empty)
		require.NoDirExists(t, filepath.Join(empty, "snapshots", stamp))
	}
	h.pull(r, stamp)
}

// What the host logs has no password.
func TestLog(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	log := h.Record()
	stamp := h.Create().Stamp
	log.Clear()
	h.push(r, stamp)
	text := strings.Join(log.Lines(), "\n")
	require.Contains(t, text, "offsite_pushed")
	require.NotContains(t, text, password)
	var out bytes.Buffer
	require.NoError(t, json.NewEncoder(&out).Encode(h.push(r, stamp)))
	require.Contains(t, out.String(), `"already_there":true`)
}
