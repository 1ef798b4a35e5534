package offsite

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/offsite"
)

// rewrite replaces a file by a changed copy of the same size and modification
// time, so that other links to it stay as they are.
func rewrite(t *testing.T, path string, change func(data []byte) []byte) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path+".new", change(data), info.Mode()))
	require.NoError(t, os.Chtimes(path+".new", info.ModTime(), info.ModTime()))
	require.NoError(t, os.Rename(path+".new", path))
}

func flipMiddle(data []byte) []byte {
	data[len(data)/2] ^= 0x10
	return data
}

// database is where the state has the database.
const database = "tree/large/db/atocore.db"

// one returns a file that the pattern matches.
func one(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, found, pattern)
	return found[0]
}

// stateDamages are what may happen to the state between two pushes.
var stateDamages = []struct {
	name   string
	damage func(t *testing.T, state string)
}{
	{"lost", func(t *testing.T, state string) { require.NoError(t, os.RemoveAll(state)) }},
	{"all lost", func(t *testing.T, state string) { require.NoError(t, os.RemoveAll(filepath.Dir(filepath.Dir(state)))) }},
	{"tree lost", func(t *testing.T, state string) { require.NoError(t, os.RemoveAll(state+"/tree")) }},
	{"cache lost", func(t *testing.T, state string) { require.NoError(t, os.RemoveAll(filepath.Dir(state)+"/cache")) }},
	{"index lost", func(t *testing.T, state string) { require.NoError(t, os.Remove(state+"/index.json")) }},
	{"index is garbage", func(t *testing.T, state string) { backuptest.Write(t, state+"/index.json", "{\"a\":") }},
	{"recipe is garbage", func(t *testing.T, state string) { backuptest.Write(t, state+"/tree/recipe.json", "[]") }},
	{"recipe lost", func(t *testing.T, state string) { require.NoError(t, os.Remove(state+"/tree/recipe.json")) }},
	{"bit of the base", func(t *testing.T, state string) { rewrite(t, one(t, state+"/"+database+"/base-*"), flipMiddle) }},
	{"bit of a delta", func(t *testing.T, state string) { rewrite(t, one(t, state+"/"+database+"/0001-*"), flipMiddle) }},
	{"short delta", func(t *testing.T, state string) {
		rewrite(t, one(t, state+"/"+database+"/0002-*"), func(data []byte) []byte { return data[:len(data)/2] })
	}},
	{"empty base", func(t *testing.T, state string) {
		rewrite(t, one(t, state+"/"+database+"/base-*"), func([]byte) []byte { return nil })
	}},
	{"base lost", func(t *testing.T, state string) { require.NoError(t, os.Remove(one(t, state+"/"+database+"/base-*"))) }},
	{"first delta lost", func(t *testing.T, state string) {
		require.NoError(t, os.Remove(one(t, state+"/"+database+"/0001-*")))
	}},
	{"deltas changed places", func(t *testing.T, state string) {
		first, second := one(t, state+"/"+database+"/0001-*"), one(t, state+"/"+database+"/0002-*")
		require.NoError(t, os.Rename(first, first+".x"))
		require.NoError(t, os.Rename(second, strings.Replace(second, "/0002-", "/0001-", 1)))
		require.NoError(t, os.Rename(first+".x", strings.Replace(first, "/0001-", "/0002-", 1)))
	}},
	{"bit of a small file", func(t *testing.T, state string) {
		rewrite(t, state+"/tree/files/config/project-registry.json", flipMiddle)
	}},
	{"link for a small file", func(t *testing.T, state string) {
		require.NoError(t, os.Remove(state+"/tree/files/config/project-registry.json"))
		require.NoError(t, os.Symlink("/etc/passwd", state+"/tree/files/config/project-registry.json"))
	}},
	{"file for a directory", func(t *testing.T, state string) {
		require.NoError(t, os.RemoveAll(state+"/tree/files/config"))
		backuptest.Write(t, state+"/tree/files/config", "x")
	}},
	{"things that do not belong there", func(t *testing.T, state string) {
		for _, name := range []string{"/tree/strange", "/tree/files/strange", "/tree/large/strange", "/" + database + "/strange", "/tmp/strange"} {
			backuptest.Write(t, state+name, "strange")
			require.NoError(t, os.Mkdir(state+name+"-dir", 0o700))
			backuptest.Write(t, state+name+"-dir/strange", "strange")
		}
	}},
	{"tree is a link", func(t *testing.T, state string) {
		outside := t.TempDir()
		require.NoError(t, os.RemoveAll(outside))
		require.NoError(t, os.Rename(state+"/tree", outside))
		require.NoError(t, os.Symlink(outside, state+"/tree"))
		before := backuptest.ReadTree(t, outside)
		t.Cleanup(func() { require.Equal(t, before, backuptest.ReadTree(t, outside)) })
	}},
	{"of another store", func(t *testing.T, state string) {
		p, other := newDirectory(t), newStore(t, 2)
		p.push(other, other.Create().Stamp)
		p.push(other, other.next())
		from := p.state(other)
		require.NoError(t, os.RemoveAll(state))
		require.NoError(t, os.Rename(from, state))
	}},
}

// TestBadState: whatever happens to the state between two pushes, the next one
// stores the right thing, of a store that has changed and of one that has not: then
// nothing but the damage is a reason to read anything.
func TestBadState(t *testing.T) {
	t.Parallel()
	for _, changed := range []bool{false, true} {
		t.Run(fmt.Sprintf("changed %v", changed), func(t *testing.T) {
			t.Parallel()
			p, s := newDirectory(t), newStore(t, 2)
			stamps := []string{s.Create().Stamp}
			p.push(s, stamps[0])
			for _, c := range stateDamages {
				p.t, s.T = t, t
				for {
					if _, deltas := p.parts(s, "db/atocore.db"); len(deltas) >= 2 {
						break
					}
					stamps = append(stamps, s.next())
					p.push(s, stamps[len(stamps)-1])
				}
				t.Run(c.name, func(t *testing.T) {
					p.t, s.T = t, t
					c.damage(t, p.state(s))
					if changed {
						s.changePages(0.01)
						s.changeSegment(3, 100, 5000)
					}
					stamp := s.Create().Stamp
					stamps = append(stamps, stamp)
					p.push(s, stamp)
					p.requirePulled(s, stamp)
					require.NotContains(t, p.restic("ls", "latest"), "strange")
					s.remove(stamps[0])
					stamps = stamps[1:]
				})
			}
			p.t, s.T = t, t
			require.Subset(t, p.stamps(), stamps)
			p.check("--read-data")
		})
	}
}

// TestTwoRepositories: one backup directory, two repositories. Each has a state of
// its own, and a state that was moved to the other does no harm.
func TestTwoRepositories(t *testing.T) {
	t.Parallel()
	p, q := newDirectory(t), newPlace(t)
	q.dir = filepath.Join(t.TempDir(), "other")
	q.Location = q.dir
	require.NoError(t, q.Init(q.context()))
	s := newStore(t, 2)
	first := s.Create().Stamp
	p.push(s, first)
	q.push(s, first)
	require.NotEqual(t, p.state(s), q.state(s))
	second := s.next()
	p.push(s, second)
	of, other := q.state(s), p.state(s)
	require.NoError(t, os.RemoveAll(of))
	require.NoError(t, os.CopyFS(of, os.DirFS(other)))
	third := s.next()
	q.push(s, third)
	p.push(s, third)
	for _, place := range []*place{p, q} {
		place.requirePulled(s, first)
		place.requirePulled(s, third)
		place.check("--read-data")
	}
}

// TestOtherRepositoryAtTheSamePlace: a repository is replaced by a new one.
func TestOtherRepositoryAtTheSamePlace(t *testing.T) {
	t.Parallel()
	p := newDirectory(t)
	s := newStore(t, 2)
	p.push(s, s.Create().Stamp)
	old := s.next()
	p.push(s, old)
	require.NoError(t, os.Rename(p.dir, p.dir+".old"))
	require.NoError(t, p.Init(p.context()))
	require.Empty(t, p.stamps())
	require.ErrorIs(t, p.pullFails(p.context(), s, old), offsite.ErrNoCopy)
	stamp := s.next()
	p.push(s, stamp)
	require.Equal(t, []string{stamp}, p.stamps())
	p.requirePulled(s, stamp)
	p.push(s, old)
	p.requirePulled(s, old)
	p.check("--read-data")
}

// TestPrunedLocally: the base stays in the state when its snapshot is pruned.
func TestPrunedLocally(t *testing.T) {
	t.Parallel()
	p := newDirectory(t)
	s := newStore(t, 4)
	first := s.Create().Stamp
	p.push(s, first)
	base, _ := p.parts(s, "db/atocore.db")
	kept := filepath.Join(t.TempDir(), "kept")
	require.NoError(t, os.CopyFS(kept, os.DirFS(s.SnapshotPath(first))))
	second := s.next()
	p.push(s, second)
	_, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.Equal(t, []string{second}, s.Stamps())
	stamp := s.next()
	pushed := p.push(s, stamp)
	require.Less(t, pushed.UploadedBytes, int64(1<<20))
	require.Less(t, pushed.ChangedBytes, int64(1<<20))
	still, deltas := p.parts(s, "db/atocore.db")
	require.Equal(t, base, still)
	require.Len(t, deltas, 2)
	for _, stamp := range []string{second, stamp} {
		p.requirePulled(s, stamp)
	}
	// The first one is on no machine of ours any more.
	twin := s.elsewhere()
	_, err = p.Pull(p.context(), twin.Options, first)
	require.NoError(t, err)
	want, got := backuptest.ReadTree(t, kept), backuptest.ReadTree(t, twin.SnapshotPath(first))
	for path := range want {
		require.Equal(t, want[path].Sum, got[path].Sum, path)
	}
}

// TestForgottenByHand: restic's forget and prune, by hand and between pushes, take
// nothing from the copies that stay.
func TestForgottenByHand(t *testing.T) {
	t.Parallel()
	p := newDirectory(t)
	s := newStore(t, 2)
	var stamps []string
	push := func() string {
		t.Helper()
		stamps = append(stamps, s.next())
		p.push(s, stamps[len(stamps)-1])
		return stamps[len(stamps)-1]
	}
	for range 4 {
		push()
	}
	p.restic("forget", "--keep-last", "2", "--prune")
	require.Equal(t, stamps[2:], p.stamps())
	push()
	for _, stamp := range p.stamps() {
		p.requirePulled(s, stamp)
	}
	// The parent of the next one, and then everything.
	p.restic("forget", "latest", "--prune")
	p.requirePulled(s, push())
	p.restic("forget", "--keep-last", "1", "--prune")
	p.restic("forget", "latest", "--prune")
	require.Empty(t, p.stamps())
	last := push()
	require.Equal(t, []string{last}, p.stamps())
	p.requirePulled(s, last)
	p.check("--read-data")
}

// stored returns how many bytes the repository has in its server's files.
func (p *place) stored() (n int64) {
	p.t.Helper()
	if p.server != nil {
		objects, err := p.server.Objects(p.bucket)
		require.NoError(p.t, err)
		for _, path := range objects {
			n += backuptest.FileSize(p.t, path)
		}
		return n
	}
	for _, file := range backuptest.ReadTree(p.t, p.dir) {
		n += file.Size
	}
	return n
}

// TestForget: what is forgotten frees its bytes in the store.
func TestForget(t *testing.T) {
	t.Parallel()
	p := newBucket(t)
	s := newStore(t, 2)
	var stamps []string
	for range 4 {
		s.changePages(2) // nearly all
		stamps = append(stamps, s.next())
		p.push(s, stamps[len(stamps)-1])
	}
	before := p.stored()
	forgotten, err := p.Forget(p.context(), s.Options, backup.Retention{KeepLast: 2})
	require.NoError(t, err)
	require.Len(t, forgotten.Kept, 2)
	require.Len(t, forgotten.Removed, 2)
	require.Equal(t, stamps[2:], p.stamps())
	t.Logf("%d bytes are stored, of %d", p.stored(), before)
	require.Less(t, p.stored(), before*7/10)
	for _, stamp := range p.stamps() {
		p.requirePulled(s, stamp)
	}
	_, err = p.Forget(p.context(), s.Options, backup.Retention{})
	require.Error(t, err)
	require.Len(t, p.stamps(), 2)
	p.check("--read-data")
}
