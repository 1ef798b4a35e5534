package restorer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
)

// writeTree creates files, named with slashes, and the directories above them.
func writeTree(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
}

// readTree returns the contents of all files below root.
func readTree(t *testing.T, root string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(root, path)
		tree[filepath.ToSlash(rel)] = string(data)
		return err
	}))
	return tree
}

// database returns the bytes of a small database.
func database(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	_, err = db.Exec("CREATE TABLE " + name + " (value)")
	require.NoError(t, err)
	require.NoError(t, db.Close())
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

// A fixture is a live store and the snapshot that replaces it.
type fixture struct {
	dir         string
	old, new    map[string]string // the files of the store
	backups     *fsat.Dir
	replacement *Replacement
}

// newFixture creates a store of generation "old", unless empty is set, and a
// snapshot of generation "new".
func newFixture(t *testing.T, empty bool) *fixture {
	t.Helper()
	x := &fixture{dir: fsat.RealPath(t.TempDir())}
	x.new = map[string]string{"store/atocore.db": database(t, "new"), "store/registry.json": "{}", "store/chroma/same": "new", "store/chroma/only-new/x": "new"}
	snapshot := filepath.Join(x.dir, "backups", "snapshot")
	writeTree(t, snapshot, map[string]string{
		"db/atocore.db": x.new["store/atocore.db"], "config/registry.json": "{}", "chroma/same": "new", "chroma/only-new/x": "new",
	})
	require.NoError(t, os.Chmod(filepath.Join(snapshot, "chroma"), 0o750))
	require.NoError(t, os.Chtimes(filepath.Join(snapshot, "chroma"), time.Time{}, time.Unix(1e9, 0)))
	x.old = map[string]string{}
	if !empty {
		x.old = map[string]string{
			"store/atocore.db": database(t, "old"), "store/atocore.db-wal": "", "store/registry.json": "[]",
			"store/chroma/same": "old", "store/chroma/only-old/x": "old",
		}
	}
	writeTree(t, x.dir, x.old)
	x.backups = openDir(t, filepath.Join(x.dir, "backups"))
	held := openDir(t, snapshot)
	contents, err := Contents(t.Context(), held)
	require.NoError(t, err)
	x.replacement = &Replacement{
		Stamp: "snapshot", Snapshot: held, Contents: contents,
		From:     Places{"db/atocore.db", "config/registry.json", "chroma"},
		Live:     Places{filepath.Join(x.dir, "store", "atocore.db"), filepath.Join(x.dir, "store", "registry.json"), filepath.Join(x.dir, "store", "chroma")},
		OnStage:  func(string, int64, int64) {},
		OnVerify: func(string, int64, int64) {},
	}
	require.NoError(t, x.replacement.Plan())
	return x
}

// store returns the files outside backups/, which may have no journal.
func (x *fixture) store(t *testing.T) map[string]string {
	t.Helper()
	tree := readTree(t, x.dir)
	for name := range tree {
		if strings.HasPrefix(name, "backups/snapshot/") {
			delete(tree, name)
		}
	}
	return tree
}

// run carries the replacement out up to a step.
func (x *fixture) run(t *testing.T, last string) {
	t.Helper()
	ctx := t.Context()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"begin", func() error { return x.replacement.Begin(x.backups) }},
		{"stage", func() error { return x.replacement.Stage(ctx) }},
		{"swap", func() error { return x.replacement.Swap(ctx) }},
		{"verify", func() error { return x.replacement.Verify(ctx) }},
		{"commit", x.replacement.Commit},
	} {
		require.NoError(t, step.do(), step.name)
		if step.name == last {
			return
		}
	}
}

func TestReplacement(t *testing.T) {
	x := newFixture(t, false)
	x.run(t, "commit")
	require.EqualValues(t, 4, x.replacement.Files)
	require.EqualValues(t, len(x.new["store/atocore.db"])+len("{}newnew"), x.replacement.Bytes)
	setAside, err := x.replacement.Finish()
	require.NoError(t, err)
	require.Empty(t, setAside)
	require.NoError(t, x.replacement.Close())
	require.Equal(t, x.new, x.store(t))
	info, err := os.Stat(x.replacement.Live.Chroma)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o750), info.Mode().Perm())
	require.True(t, info.ModTime().Equal(time.Unix(1e9, 0)))
}

func TestReplacementInAnEmptyPlace(t *testing.T) {
	x := newFixture(t, true)
	require.NoError(t, x.replacement.Begin(nil))
	require.FileExists(t, filepath.Join(x.dir, "store", JournalName))
	require.NoError(t, x.replacement.Stage(t.Context()))
	require.NoError(t, x.replacement.Swap(t.Context()))
	require.NoError(t, x.replacement.Verify(t.Context()))
	require.NoError(t, x.replacement.Commit())
	_, err := x.replacement.Finish()
	require.NoError(t, err)
	require.NoError(t, x.replacement.Close())
	require.Equal(t, x.new, x.store(t))
}

func TestReplacementSetsTheOldStoreAside(t *testing.T) {
	x := newFixture(t, false)
	x.replacement.SetAside = true
	require.NoError(t, x.replacement.Plan())
	x.run(t, "commit")
	setAside, err := x.replacement.Finish()
	require.NoError(t, err)
	require.NoError(t, x.replacement.Close())
	id := x.replacement.journal.id
	require.Equal(t, []string{
		x.replacement.Live.Chroma + ".set-aside-" + id, x.replacement.Live.Registry + ".set-aside-" + id, x.replacement.Live.Database + ".set-aside-" + id,
	}, setAside)
	require.Equal(t, map[string]string{"same": "old", "only-old/x": "old"}, readTree(t, setAside[0]))
	require.Equal(t, map[string]string{"registry.json": "[]"}, readTree(t, setAside[1]))
	require.Equal(t, map[string]string{"atocore.db": x.old["store/atocore.db"], "atocore.db-wal": ""}, readTree(t, setAside[2]))
	for name := range x.new {
		require.Equal(t, x.new[name], x.store(t)[name])
	}
}

// After each step before Commit, Close brings the old store back.
func TestCloseUndoes(t *testing.T) {
	for _, last := range []string{"begin", "stage", "swap", "verify"} {
		for _, empty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in an empty place: %t", last, empty), func(t *testing.T) {
				x := newFixture(t, empty)
				x.run(t, last)
				require.NoError(t, x.replacement.Close())
				require.Equal(t, x.old, x.store(t))
				require.Equal(t, !empty, fsat.Exists(x.replacement.Live.Chroma))
			})
		}
	}
}

// If the process dies after a step, the journal alone is enough to undo or
// finish the restore.
func TestRecoveryFromTheJournal(t *testing.T) {
	for _, last := range []string{"begin", "stage", "swap", "verify", "commit"} {
		for _, empty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in an empty place: %t", last, empty), func(t *testing.T) {
				x := newFixture(t, empty)
				x.run(t, last)
				path := filepath.Join(x.dir, "backups", JournalName)
				j, err := ReadJournal(path)
				require.NoError(t, err)
				want := x.old
				if last == "commit" {
					want = x.new
					_, err = j.Finish()
				} else {
					err = j.RollBack()
				}
				require.NoError(t, err)
				j.Close()
				require.Equal(t, want, x.store(t))
				x.replacement.journal.state = StateDone // the journal is gone
				require.NoError(t, x.replacement.Close())
			})
		}
	}
}

func TestFailureOfCommitIsUndone(t *testing.T) {
	x := newFixture(t, false)
	x.run(t, "verify")
	journal := filepath.Join(x.dir, "backups", JournalName)
	require.NoError(t, os.Rename(journal, journal+".away"))
	require.Error(t, x.replacement.Commit())
	require.True(t, x.replacement.journal.doneUncertain)
	require.NoError(t, os.Rename(journal+".away", journal))
	require.NoError(t, x.replacement.Close())
	require.Equal(t, x.old, x.store(t))
}

func TestVerifyFindsDifferences(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, live Places){
		"the database is changed": func(t *testing.T, live Places) {
			f, err := os.OpenFile(live.Database, os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte{1}, 100)
			require.NoError(t, err) // and not closed, because that would drop the lock
			t.Cleanup(func() { f.Close() })
		},
		"the database is another file": func(t *testing.T, live Places) {
			require.NoError(t, os.Rename(live.Database, live.Database+".away"))
			require.NoError(t, os.WriteFile(live.Database, nil, 0o600))
		},
		"the registry is changed": func(t *testing.T, live Places) {
			require.NoError(t, os.WriteFile(live.Registry, []byte("[]"), 0o600))
		},
		"a Chroma file is changed": func(t *testing.T, live Places) {
			require.NoError(t, os.WriteFile(filepath.Join(live.Chroma, "same"), []byte("odd"), 0o600))
		},
		"a Chroma file is missing": func(t *testing.T, live Places) {
			require.NoError(t, os.Remove(filepath.Join(live.Chroma, "same")))
		},
		"a Chroma file is too many": func(t *testing.T, live Places) {
			require.NoError(t, os.WriteFile(filepath.Join(live.Chroma, "zzz"), nil, 0o600))
		},
		"a Chroma file is a link": func(t *testing.T, live Places) {
			require.NoError(t, os.Remove(filepath.Join(live.Chroma, "same")))
			require.NoError(t, os.Symlink("only-new/x", filepath.Join(live.Chroma, "same")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newFixture(t, false)
			x.run(t, "swap")
			damage(t, x.replacement.Live)
			require.ErrorIs(t, x.replacement.Verify(t.Context()), errDiffers)
			_ = x.replacement.Close()
		})
	}
}

func TestSwapIsNotBegunAfterTheContext(t *testing.T) {
	x := newFixture(t, false)
	x.run(t, "stage")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, x.replacement.Swap(ctx), context.Canceled)
	require.Equal(t, StateStaging, x.replacement.journal.State())
	require.NoError(t, x.replacement.Close())
	require.Equal(t, x.old, x.store(t))
}

// Whatever was moved when a swap was interrupted, undo moves it back.
func TestUndoOfHalfASwap(t *testing.T) {
	const file, tree = ".atocore-restore-0123456789abcdef-db/", "chroma/.atocore-restore-0123456789abcdef-chroma/"
	for _, tt := range []struct {
		name         string
		before, want map[string]string
		without      bool // there was no old part
	}{
		{name: "file, nothing moved",
			before: map[string]string{"db": "old", "db-wal": "wal", file + "new/db": "new", file + "old/": ""},
			want:   map[string]string{"db": "old", "db-wal": "wal"}},
		{name: "file, WAL moved",
			before: map[string]string{"db": "old", file + "new/db": "new", file + "old/db-wal": "wal"},
			want:   map[string]string{"db": "old", "db-wal": "wal"}},
		{name: "file, old one linked",
			before: map[string]string{"db": "old", file + "new/db": "new", file + "old/db": "old", file + "old/db-wal": "wal"},
			want:   map[string]string{"db": "old", "db-wal": "wal"}},
		{name: "file, old one moved and no new one",
			before: map[string]string{file + "new/db": "new", file + "old/db": "old"},
			want:   map[string]string{"db": "old"}},
		{name: "file, in place",
			before: map[string]string{"db": "new", file + "new/": "", file + "old/db": "old", file + "old/db-wal": "wal"},
			want:   map[string]string{"db": "old", "db-wal": "wal"}},
		{name: "file, in place, and a WAL created by somebody",
			before: map[string]string{"db": "new", "db-shm": "other", file + "new/": "", file + "old/db": "old", file + "old/db-shm": "shm"},
			want:   map[string]string{"db": "old", "db-shm": "other"}},
		{name: "no file before, in place", without: true,
			before: map[string]string{"db": "new", file + "new/": "", file + "old/": ""},
			want:   map[string]string{}},
		{name: "no file before, and one created while an undo was interrupted", without: true,
			before: map[string]string{"db": "other", file + "new/": ""},
			want:   map[string]string{"db": "other"}},
		{name: "tree, nothing moved",
			before: map[string]string{"chroma/a": "old", "chroma/b": "old", tree + "new/a": "new", tree + "old.incomplete/": ""},
			want:   map[string]string{"chroma/a": "old", "chroma/b": "old"}},
		{name: "tree, half moved away",
			before: map[string]string{"chroma/b": "old", tree + "new/a": "new", tree + "old.incomplete/a": "old"},
			want:   map[string]string{"chroma/a": "old", "chroma/b": "old"}},
		{name: "tree, all moved away",
			before: map[string]string{tree + "new/a": "new", tree + "old/a": "old", tree + "old/b": "old"},
			want:   map[string]string{"chroma/a": "old", "chroma/b": "old"}},
		{name: "tree, half in place",
			before: map[string]string{"chroma/a": "new", tree + "new/c": "new", tree + "old/a": "old", tree + "old/b": "old"},
			want:   map[string]string{"chroma/a": "old", "chroma/b": "old"}},
		{name: "no tree before, in place", without: true,
			before: map[string]string{"chroma/a": "new", tree + "new/": "", tree + "old/": ""},
			want:   map[string]string{}},
		{name: "no tree before, and a file created by somebody while staging", without: true,
			before: map[string]string{"chroma/made": "other", tree + "new/": "", tree + "old.incomplete/": ""},
			want:   map[string]string{"chroma/made": "other"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tt.before {
				if strings.HasSuffix(name, "/") {
					require.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
				} else {
					writeTree(t, dir, map[string]string{name: text})
				}
			}
			j := &Journal{id: "0123456789abcdef", hadDatabase: !tt.without, hadChroma: !tt.without, state: StateSwapping}
			if strings.Contains(tt.name, "tree") {
				j.Live.Chroma = filepath.Join(dir, "chroma")
			} else {
				j.Live.Database = filepath.Join(dir, "db")
			}
			require.NoError(t, j.begin(openDir(t, dir)))
			require.NoError(t, j.advance(StateSwapping))
			part := j.parts(Places{})[0]
			require.NoError(t, part.undo())
			require.NoError(t, part.undo(), "it can be repeated")
			require.NoError(t, j.RollBack())
			require.Equal(t, tt.want, readTree(t, dir))
		})
	}
}

// A WAL that is not empty is not thrown away for one that somebody created.
func TestUndoRefusesToReplaceAWAL(t *testing.T) {
	dir := t.TempDir()
	j := &Journal{id: "0123456789abcdef", hadDatabase: true, Live: Places{Database: filepath.Join(dir, "db")}}
	staging := j.stagingName(format.DBDir) + "/"
	writeTree(t, dir, map[string]string{"db": "new", "db-wal": "other", staging + "old/db": "old", staging + "old/db-wal": "wal", staging + "new/x": ""})
	require.ErrorIs(t, j.parts(Places{})[0].undo(), fs.ErrExist)
	require.Equal(t, "wal", readTree(t, dir)[staging+"old/db-wal"])
}

func TestContents(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, map[string]string{"db/atocore.db": "x", "chroma/a": "y"})
	hashed, err := Contents(t.Context(), openDir(t, dir))
	require.NoError(t, err)
	require.Equal(t, []string{"chroma/a", "db/atocore.db"}, []string{hashed[0].Path, hashed[1].Path})
	var manifest strings.Builder
	for _, entry := range hashed {
		manifest.WriteString(format.Line(entry.Sum, entry.Path))
	}
	writeTree(t, dir, map[string]string{format.ManifestName: manifest.String(), "chroma/a": "changed"})
	listed, err := Contents(t.Context(), openDir(t, dir))
	require.NoError(t, err)
	require.Equal(t, hashed, listed, "a manifest is believed")
	writeTree(t, dir, map[string]string{format.ManifestName: "rubbish\n"})
	_, err = Contents(t.Context(), openDir(t, dir))
	require.True(t, errors.Is(err, format.ErrMalformed), err)
}
