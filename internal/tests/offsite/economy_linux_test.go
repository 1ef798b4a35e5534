package offsite

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
)

// TestEconomy pushes what a store becomes from day to day to Swift, and counts in
// the proxy what each push sends. Then everything comes back as it was, with this
// library and without.
func TestEconomy(t *testing.T) {
	t.Parallel()
	const mebibytes = 64
	p := newBucket(t)
	s := newStore(t, mebibytes)
	size := int64(0) // of the database
	// push takes a snapshot and pushes it, which may send at most so many bytes.
	push := func(what string, limit int64) string {
		t.Helper()
		stamp := s.Create().Stamp
		before := p.proxy.Traffic()
		pushed := p.push(s, stamp)
		sent := p.proxy.Since(before)
		t.Logf("%s: sent %d bytes in %d requests, received %d; read %d, changed %d, uploaded %d",
			what, sent.Up, sent.Requests, sent.Down, pushed.ReadBytes, pushed.ChangedBytes, pushed.UploadedBytes)
		require.LessOrEqual(t, sent.Up, limit, what)
		require.LessOrEqual(t, pushed.UploadedBytes, sent.Up+1<<20, "what restic says")
		require.False(t, pushed.AlreadyThere)
		size = backuptest.FileSize(t, s.SnapshotPath(stamp, "db", "atocore.db"))
		return stamp
	}
	first := push("first", 100<<20)
	require.GreaterOrEqual(t, size, int64(mebibytes<<20))
	push("nothing changed", 100_000)
	s.changePages(0.01)
	pages := push("1 % of the pages", size/50+1_000_000)
	s.changeSegment(100, 1000, 300_000)
	chroma := push("Chroma segment", 100*2*4096+300_000+300_000)

	before := p.proxy.Traffic()
	again, err := p.Push(p.context(), s.Options, chroma)
	require.NoError(t, err)
	require.True(t, again.AlreadyThere)
	require.Less(t, p.proxy.Since(before).Up, int64(50_000))
	require.Zero(t, again.ReadBytes)

	require.Len(t, p.stamps(), 4)
	for _, stamp := range []string{first, pages, chroma} {
		p.requirePulled(s, stamp)
	}
	t.Run("by hand", func(t *testing.T) {
		needPrograms(t, "rdiff")
		p := *p
		p.t = t
		p.byHand(s, pages)
		p.byHand(s, chroma)
	})
}

// byHand makes a snapshot again with restic and rdiff alone, as docs/offsite.md
// says, and compares it with the original.
func (p *place) byHand(s *store, stamp string) {
	p.t.Helper()
	got, made := p.t.TempDir(), filepath.Join(p.t.TempDir(), "made")
	p.restic("restore", "latest", "--tag", "atocore,stamp="+stamp, "--target", got)
	require.NoError(p.t, os.Rename(filepath.Join(got, "files"), made))
	large := filepath.Join(got, "large")
	deltas := 0
	require.NoError(p.t, filepath.WalkDir(large, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		parts, err := filepath.Glob(filepath.Join(dir, "????-*.delta"))
		require.NoError(p.t, err)
		bases, err := filepath.Glob(filepath.Join(dir, "base-*"))
		require.NoError(p.t, err)
		if len(bases) == 0 {
			return nil
		}
		require.Len(p.t, bases, 1)
		version := bases[0]
		for i, part := range parts { // sorted
			next := filepath.Join(dir, fmt.Sprint("version", i))
			out, err := exec.CommandContext(p.t.Context(), "rdiff", "patch", version, part, next).CombinedOutput()
			require.NoError(p.t, err, "%s", out)
			version = next
			deltas++
		}
		relative, err := filepath.Rel(large, dir)
		require.NoError(p.t, err)
		return os.Rename(version, filepath.Join(made, relative))
	}))
	require.Positive(p.t, deltas)
	want, gotTree := backuptest.ReadTree(p.t, s.SnapshotPath(stamp)), backuptest.ReadTree(p.t, made)
	require.Len(p.t, gotTree, len(want))
	for path, file := range want {
		require.Equal(p.t, file.Sum, gotTree[path].Sum, path)
	}
	sums := exec.CommandContext(p.t.Context(), "sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS")
	sums.Dir = made
	out, err := sums.CombinedOutput()
	require.NoError(p.t, err, "%s", out)
}

// TestManyPushes pushes more often than there may be deltas, so that they are
// merged, and the base is replaced, while snapshots are pruned locally.
func TestManyPushes(t *testing.T) {
	t.Parallel()
	p := newDirectory(t)
	s := newStore(t, 2)
	kept := filepath.Join(t.TempDir(), "kept")
	bases, most := map[string]bool{}, 0
	var stamps []string
	for i := range 36 {
		stamp := s.Create().Stamp
		p.push(s, stamp)
		base, deltas := p.parts(s, "db/atocore.db")
		bases[base] = true
		most = max(most, len(deltas))
		if i > 0 && i%5 != 0 {
			s.remove(stamps[len(stamps)-1])
		}
		stamps = append(stamps, stamp)
		if i%12 == 7 {
			p.requirePulled(s, stamp)
			require.NoError(t, os.CopyFS(filepath.Join(kept, stamp), os.DirFS(s.SnapshotPath(stamp))))
		}
		s.changePages(0.01)
	}
	require.Equal(t, stamps, p.stamps())
	require.Equal(t, 32, most, "deltas in a row")
	p.requirePulled(s, stamps[len(stamps)-1])
	p.check("--read-data")
	require.Len(t, bases, 1)
}
