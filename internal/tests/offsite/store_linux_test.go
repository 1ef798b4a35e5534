package offsite

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A store is a machine store whose database has many pages of random bytes, which
// cannot be compressed.
type store struct {
	*backuptest.Store
	random *rand.Rand
	pages  int
}

// segment is a file of the store's Chroma directory, as an index of vectors is one:
// it grows at its end, and is changed in place.
const segment = "0a1b2c3d-1111-4222-8333-abcdef012345/data_level0.bin"

// newStore creates a store with a database of so many MiB and a Chroma segment of
// an eighth of that. At the end of the test, every visible snapshot must validate,
// and nothing but the state of repositories may be left.
func newStore(t *testing.T, mebibytes int) *store {
	t.Helper()
	s := &store{Store: backuptest.NewSmallStore(t), random: rand.New(rand.NewPCG(1, uint64(mebibytes))), pages: mebibytes << 8}
	t.Cleanup(func() { s.RequireClean() })
	// A second for each look, because restic keeps the seconds: of two copies of one
	// second, nobody knows which it takes for the newer.
	var seconds atomic.Int64
	s.Clock = backuptest.ClockFunc(func() time.Time { return backuptest.Noon.Time.Add(time.Duration(seconds.Add(1)) * time.Second) })
	backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) {
		_, err := db.Exec(fmt.Sprintf(`BEGIN;
			CREATE TABLE page (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) INSERT INTO page SELECT i, randomblob(4000) FROM n;
			COMMIT`, s.pages))
		require.NoError(t, err)
	})
	s.Must(os.Mkdir(filepath.Dir(s.InChroma(segment)), 0o755), os.WriteFile(s.InChroma(segment), s.bytes(mebibytes<<17), 0o644))
	return s
}

// bytes returns n random bytes.
func (s *store) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(s.random.Uint32())
	}
	return b
}

// changePages changes a share of the database's pages, chosen at random.
func (s *store) changePages(share float64) {
	s.T.Helper()
	db := backuptest.OpenDB(s.T, s.DatabasePath)
	defer db.Close()
	tx, err := db.Begin()
	require.NoError(s.T, err)
	for range int(share * float64(s.pages)) {
		_, err := tx.Exec("UPDATE page SET data = randomblob(4000) WHERE id = ?", 1+s.random.IntN(s.pages))
		require.NoError(s.T, err)
	}
	require.NoError(s.T, tx.Commit())
}

// changeSegment changes n bytes of the Chroma segment in each of places places,
// and appends some.
func (s *store) changeSegment(places, n, appended int) {
	s.T.Helper()
	f, err := os.OpenFile(s.InChroma(segment), os.O_RDWR, 0)
	require.NoError(s.T, err)
	defer f.Close()
	size := backuptest.FileSize(s.T, s.InChroma(segment))
	for range places {
		_, err := f.WriteAt(s.bytes(n), s.random.Int64N(size-int64(n)))
		require.NoError(s.T, err)
	}
	_, err = f.WriteAt(s.bytes(appended), size)
	s.Must(err, f.Close())
}

// next changes the store a little and takes a snapshot of it.
func (s *store) next() string {
	s.T.Helper()
	s.changePages(0.01)
	s.changeSegment(3, 100, 5000)
	return s.Create().Stamp
}

// with returns the same store for a subtest.
func (s *store) with(t *testing.T) *store {
	c, inner := *s, *s.Store
	inner.T, c.Store = t, &inner
	return &c
}

// elsewhere returns the store's twin on an empty machine: without anything.
func (s *store) elsewhere() *store {
	s.T.Helper()
	twin := &backuptest.Store{T: s.T, Dir: s.T.TempDir(), Options: s.Options}
	twin.BackupDir = filepath.Join(twin.Dir, "backups")
	s.T.Cleanup(func() { twin.RequireClean() })
	return &store{Store: twin, random: s.random, pages: s.pages}
}

// requirePulled pulls a snapshot to an empty machine, and compares it with the
// original in path: contents, modes, times.
func (p *place) requirePulled(s *store, stamp string) {
	p.t.Helper()
	p.requireEqual(s.SnapshotPath(stamp), s, stamp)
}

// requireEqual is requirePulled for an original at another place.
func (p *place) requireEqual(original string, s *store, stamp string) {
	p.t.Helper()
	twin := s.elsewhere()
	meta, err := p.Pull(p.context(), twin.Options, stamp)
	require.NoError(p.t, err)
	require.Equal(p.t, stamp, meta.Stamp)
	got := twin.SnapshotPath(stamp)
	require.Equal(p.t, backuptest.ReadTree(p.t, original), backuptest.ReadTree(p.t, got))
	twin.RequireClean()
	if sums, err := exec.LookPath("sha256sum"); err == nil {
		cmd := exec.CommandContext(p.t.Context(), sums, "--check", "--quiet", "--strict", "SHA256SUMS")
		cmd.Dir = got
		out, err := cmd.CombinedOutput()
		require.NoError(p.t, err, "%s", out)
		require.Empty(p.t, out)
	}
	require.NoError(p.t, os.RemoveAll(twin.Dir))
}

// pullFails pulls a snapshot to an empty machine, which must fail and leave
// nothing, and returns the error.
func (p *place) pullFails(ctx context.Context, s *store, stamp string) error {
	p.t.Helper()
	twin := s.elsewhere()
	meta, err := p.Pull(ctx, twin.Options, stamp)
	require.Error(p.t, err)
	require.Nil(p.t, meta)
	twin.RequireNoSnapshot()
	return err
}

// state returns the directory of the state of the store in the repository.
func (p *place) state(s *store) string {
	p.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.BackupDir, ".atocore-offsite", p.id(), "????????????????"))
	require.NoError(p.t, err)
	require.Len(p.t, found, 1)
	return found[0]
}

// remove removes a snapshot locally.
func (s *store) remove(stamp string) {
	s.T.Helper()
	require.NoError(s.T, backup.RemoveRuntimeBackup(s.T.Context(), s.Options, stamp))
}

// deltas returns the names of the deltas of a large file in the state, and its
// base's.
func (p *place) parts(s *store, file string) (base string, deltas []string) {
	p.t.Helper()
	entries, err := os.ReadDir(filepath.Join(p.state(s), "tree", "large", filepath.FromSlash(file)))
	require.NoError(p.t, err)
	for _, e := range entries {
		if regexp.MustCompile(`^base-[0-9a-f]{64}$`).MatchString(e.Name()) {
			base = e.Name()
			continue
		}
		require.Regexp(p.t, `^[0-9]{4}-[0-9a-f]{64}\.delta$`, e.Name())
		deltas = append(deltas, e.Name())
	}
	require.NotEmpty(p.t, base)
	return base, deltas
}
