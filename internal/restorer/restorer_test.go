package restorer

import (
	"context"
	"crypto/sha256"
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

func openDir(t *testing.T, path string) *fsat.Dir {
	t.Helper()
	dir, err := fsat.OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

// writeTree creates files, named with slashes, and the directories above them. A
// name that ends in a slash is that of a directory.
func writeTree(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if strings.HasSuffix(name, "/") {
			require.NoError(t, os.MkdirAll(path, 0o755))
			continue
		}
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
	replacement *Replacement
	point       bool // whether a pointer is written
	undone      int  // how often Undone was called
}

// newFixture creates a store of generation "old", unless empty is set, and a
// snapshot of generation "new".
func newFixture(t *testing.T, empty bool) *fixture {
	t.Helper()
	x := &fixture{dir: fsat.RealPath(t.TempDir()), point: !empty}
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
			"store/atocore.db": database(t, "old"), "store/atocore.db-wal": "", "store/atocore.db-journal": "", "store/registry.json": "[]",
			"store/chroma/same": "old", "store/chroma/only-old/x": "old",
		}
	}
	writeTree(t, x.dir, x.old)
	held := openDir(t, snapshot)
	contents, err := Contents(t.Context(), held)
	require.NoError(t, err)
	x.replacement = &Replacement{
		Stamp: "snapshot", BackupDir: filepath.Join(x.dir, "backups"), Snapshot: held, Contents: contents,
		Started: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC),
		From:    Places{"db/atocore.db", "config/registry.json", "chroma"},
		Live: Places{
			filepath.Join(x.dir, "store", "atocore.db"), filepath.Join(x.dir, "store", "registry.json"), filepath.Join(x.dir, "store", "chroma"),
		},
		OnStage:  func(string, int64, int64) {},
		OnVerify: func(string, int64, int64) {},
		Undone:   func() { x.undone++; require.FileExists(t, filepath.Join(x.dir, "store", JournalName)) },
	}
	return x
}

// store returns the files outside backups/snapshot/.
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

// steps are the steps of a replacement before Finish.
var steps = []string{"begin", "save", "stage", "swap", "verify", "commit"}

// run carries the replacement out up to a step.
func (x *fixture) run(t *testing.T, last string) {
	t.Helper()
	for _, step := range steps {
		require.NoError(t, x.step(t.Context(), step), step)
		if step == last {
			return
		}
	}
}

func (x *fixture) step(ctx context.Context, name string) error {
	r := x.replacement
	switch name {
	case "begin":
		return r.Begin(ctx, x.point)
	case "save":
		return r.Saved("snapshot-002", false)
	case "stage":
		return r.Stage(ctx)
	case "swap":
		return r.Swap(ctx)
	case "verify":
		return r.Verify(ctx)
	}
	return r.Commit()
}

// close ends the replacement in the way in which a kill does: nothing is undone.
func (x *fixture) kill() {
	x.replacement.journal.Close()
	if x.replacement.staged != nil {
		x.replacement.staged.Close()
	}
	x.replacement.journal = nil
}

func TestReplacement(t *testing.T) {
	x := newFixture(t, false)
	x.run(t, "commit")
	require.EqualValues(t, 4, x.replacement.Files)
	require.EqualValues(t, len(x.new["store/atocore.db"])+len("{}newnew"), x.replacement.Bytes)
	setAside, err := x.replacement.Finish(context.Background(), nil)
	require.NoError(t, err)
	require.Empty(t, setAside)
	setAside, err = x.replacement.Close()
	require.NoError(t, err)
	require.Empty(t, setAside)
	require.Zero(t, x.undone)
	require.Equal(t, x.new, x.store(t))
	info, err := os.Stat(x.replacement.Live.Chroma)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o750), info.Mode().Perm())
	require.True(t, info.ModTime().Equal(time.Unix(1e9, 0)))
}

func TestReplacementInAnEmptyPlace(t *testing.T) {
	x := newFixture(t, true)
	x.run(t, "begin")
	require.FileExists(t, filepath.Join(x.dir, "store", JournalName))
	require.NoFileExists(t, filepath.Join(x.dir, "backups", JournalName), "it concerns nobody else")
	for _, step := range []string{"stage", "swap", "verify", "commit"} {
		require.NoError(t, x.step(t.Context(), step))
	}
	_, err := x.replacement.Finish(context.Background(), nil)
	require.NoError(t, err)
	_, err = x.replacement.Close()
	require.NoError(t, err)
	require.Equal(t, x.new, x.store(t))
}

func TestReplacementSetsTheOldStoreAside(t *testing.T) {
	x := newFixture(t, false)
	x.run(t, "begin")
	require.NoError(t, x.replacement.KeepOld())
	for _, step := range []string{"stage", "swap", "verify", "commit"} {
		require.NoError(t, x.step(t.Context(), step))
	}
	id := x.replacement.journal.id
	setAside, err := x.replacement.Finish(context.Background(), nil)
	require.NoError(t, err)
	_, err = x.replacement.Close()
	require.NoError(t, err)
	require.Equal(t, []string{
		x.replacement.Live.Chroma + ".set-aside-" + id, x.replacement.Live.Registry + ".set-aside-" + id, x.replacement.Live.Database + ".set-aside-" + id,
	}, setAside)
	require.Equal(t, map[string]string{"same": "old", "only-old/x": "old"}, readTree(t, setAside[0]))
	require.Equal(t, map[string]string{"registry.json": "[]"}, readTree(t, setAside[1]))
	require.Equal(t, map[string]string{"atocore.db": x.old["store/atocore.db"], "atocore.db-wal": "", "atocore.db-journal": ""}, readTree(t, setAside[2]))
	for name := range x.new {
		require.Equal(t, x.new[name], x.store(t)[name])
	}
}

// The files beside the old database are moved away before the new one comes: it
// must never meet an old WAL or an old rollback journal.
func TestSwapMovesTheOldSidecars(t *testing.T) {
	x := newFixture(t, false)
	writeTree(t, x.dir, map[string]string{"store/atocore.db-wal": "wal", "store/atocore.db-journal": "journal", "store/atocore.db-shm": "shm"})
	x.run(t, "swap")
	for _, suffix := range []string{"-wal", "-journal", "-shm"} {
		require.NoFileExists(t, x.replacement.Live.Database+suffix)
	}
	_, err := x.replacement.Close()
	require.NoError(t, err)
	for suffix, want := range map[string]string{"-wal": "wal", "-journal": "journal", "-shm": "shm"} {
		require.Equal(t, want, x.store(t)["store/atocore.db"+suffix])
	}
}

// A part that was not there before is not replaced if it is there now.
func TestSwapReplacesNothingThatCameMeanwhile(t *testing.T) {
	for _, name := range []string{"store/atocore.db", "store/registry.json", "store/chroma/same"} {
		x := newFixture(t, true)
		x.run(t, "begin")
		require.NoError(t, x.step(t.Context(), "stage"))
		writeTree(t, x.dir, map[string]string{name: "somebody's"})
		err := x.step(t.Context(), "swap")
		if name == "store/chroma/same" { // whose entries are moved away, as those of an old one
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, fs.ErrExist, name)
		}
		_, err = x.replacement.Close()
		require.NoError(t, err)
		require.Equal(t, map[string]string{name: "somebody's"}, x.store(t))
	}
}

// After each step before Commit, Close brings the old store back.
func TestCloseUndoes(t *testing.T) {
	for _, last := range steps[:5] {
		for _, empty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in an empty place: %t", last, empty), func(t *testing.T) {
				x := newFixture(t, empty)
				x.run(t, last)
				setAside, err := x.replacement.Close()
				require.NoError(t, err)
				require.Empty(t, setAside)
				require.Equal(t, 1, x.undone)
				require.Equal(t, x.old, x.store(t))
				require.Equal(t, !empty, fsat.Exists(x.replacement.Live.Chroma))
			})
		}
	}
	x := newFixture(t, false)
	_, err := x.replacement.Close() // nothing was begun
	require.NoError(t, err)
	require.Equal(t, x.old, x.store(t))
}

// If the process dies after a step, the journal alone is enough to undo or finish
// the restore, and to know whether what is in place is what was staged.
func TestRecoveryFromTheJournal(t *testing.T) {
	for _, last := range steps {
		for _, empty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, in an empty place: %t", last, empty), func(t *testing.T) {
				x := newFixture(t, empty)
				x.run(t, last)
				live := x.replacement.Live
				x.kill()
				j, err := OpenJournal(live.Database)
				require.NoError(t, err)
				defer j.Close()
				require.Equal(t, live, j.Live)
				require.Equal(t, x.replacement.BackupDir, j.BackupDir)
				require.Equal(t, "snapshot", j.Stamp)
				require.True(t, x.replacement.Started.Equal(j.Started))
				if last == "swap" || last == "verify" {
					require.Equal(t, StateSwapped, j.State())
					same, err := j.Matches(t.Context())
					require.NoError(t, err)
					require.True(t, same)
				}
				want := x.old
				if last == "commit" {
					want = x.new
					_, err = j.Finish(context.Background(), false, nil, x.replacement.Snapshot)
				} else {
					_, err = j.RollBack(t.Context())
				}
				require.NoError(t, err)
				require.Equal(t, want, x.store(t))
			})
		}
	}
}

// What is in place is what was staged only if every byte of it is, and nothing else
// is there.
func TestMatchesFindsDifferences(t *testing.T) {
	for name, change := range map[string]map[string]string{
		"the database":               {"store/atocore.db": "other"},
		"a WAL":                      {"store/atocore.db-wal": "wal"},
		"a rollback journal":         {"store/atocore.db-journal": "journal"},
		"the registry":               {"store/registry.json": "[]"},
		"a file of Chroma's":         {"store/chroma/same": "nwe"},
		"a file too many":            {"store/chroma/zzz": ""},
		"the database is missing":    {"store/atocore.db": "-"},
		"the registry is missing":    {"store/registry.json": "-"},
		"a file of Chroma's missing": {"store/chroma/only-new/x": "-"},
		"the last one missing":       {"store/chroma/same": "-"},
		"a link":                     {"store/chroma/same": "->"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newFixture(t, false)
			x.run(t, "swap")
			x.kill()
			for file, text := range change {
				path := filepath.Join(x.dir, filepath.FromSlash(file))
				switch text {
				case "-":
					require.NoError(t, os.Remove(path))
				case "->":
					require.NoError(t, os.Rename(path, path+".target"))
					require.NoError(t, os.Symlink(path+".target", path))
				default:
					writeTree(t, x.dir, map[string]string{file: text})
				}
			}
			j, err := OpenJournal(x.replacement.Live.Database)
			require.NoError(t, err)
			defer j.Close()
			same, err := j.Matches(t.Context())
			require.NoError(t, err)
			require.False(t, same)
			there, err := j.PartsAreThere()
			require.NoError(t, err)
			require.Equal(t, name != "the database is missing" && name != "the registry is missing", there)
		})
	}
	t.Run("only indexes", func(t *testing.T) { // which SQLite makes anew
		x := newFixture(t, false)
		x.run(t, "swap")
		x.kill()
		writeTree(t, x.dir, map[string]string{"store/atocore.db-shm": "shm", "store/atocore.db-wal": "", "store/atocore.db-journal": ""})
		j, err := OpenJournal(x.replacement.Live.Database)
		require.NoError(t, err)
		defer j.Close()
		same, err := j.Matches(t.Context())
		require.NoError(t, err)
		require.True(t, same)
	})
}

func TestPartsAreThere(t *testing.T) {
	x := newFixture(t, false)
	x.run(t, "swap")
	x.kill()
	j, err := OpenJournal(x.replacement.Live.Database)
	require.NoError(t, err)
	defer j.Close()
	for _, name := range []string{"same", "only-new"} {
		there, err := j.PartsAreThere()
		require.NoError(t, err)
		require.True(t, there)
		require.NoError(t, os.RemoveAll(filepath.Join(x.replacement.Live.Chroma, name)))
	}
	there, err := j.PartsAreThere()
	require.NoError(t, err)
	require.False(t, there, "the staging directory is not a part of the store")
}

// A volume is missing: nothing is touched, not even the parts that are there.
func TestMissingStagingDirectories(t *testing.T) {
	for _, last := range []string{"swap", "commit"} {
		for _, part := range []string{format.ChromaDir, format.ConfigDir, format.DBDir} {
			t.Run(last+" "+part, func(t *testing.T) {
				x := newFixture(t, false)
				x.run(t, last)
				name := x.replacement.journal.stagingName(part)
				x.kill()
				dir := filepath.Join(x.dir, "store")
				if part == format.ChromaDir {
					dir = filepath.Join(dir, "chroma")
				}
				require.NoError(t, os.Rename(filepath.Join(dir, name), filepath.Join(x.dir, "away")))
				before := x.store(t)
				j, err := OpenJournal(x.replacement.Live.Database)
				require.NoError(t, err)
				defer j.Close()
				if last == "swap" {
					_, err = j.Matches(t.Context())
					require.ErrorIs(t, err, ErrStagingMissing)
					_, err = j.RollBack(t.Context())
				} else {
					_, err = j.Finish(context.Background(), false, nil, nil)
				}
				require.ErrorIs(t, err, ErrStagingMissing)
				after := x.store(t)
				delete(before, "store/"+JournalName) // which says what was begun
				delete(after, "store/"+JournalName)
				require.Equal(t, before, after)
				require.NoError(t, os.Rename(filepath.Join(x.dir, "away"), filepath.Join(dir, name)))
				want := x.old
				if last == "swap" {
					_, err = j.RollBack(t.Context())
				} else {
					want = x.new
					_, err = j.Finish(context.Background(), false, nil, nil)
				}
				require.NoError(t, err)
				require.Equal(t, want, x.store(t))
			})
		}
	}
}

func TestFailureOfCommitIsUndone(t *testing.T) {
	x := newFixture(t, false)
	x.run(t, "verify")
	j := x.replacement.journal
	file := j.file
	broken, err := j.dir.Open(JournalName) // for reading only
	require.NoError(t, err)
	j.file = broken
	require.Error(t, x.replacement.Commit())
	require.Equal(t, StateSwapped, j.State())
	j.file = file
	require.NoError(t, broken.Close())
	_, err = x.replacement.Close()
	require.NoError(t, err)
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
			require.NoError(t, os.RemoveAll(filepath.Join(live.Chroma, "only-new")))
		},
		"the last Chroma file is missing": func(t *testing.T, live Places) {
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
			_, err := x.replacement.Close()
			require.NoError(t, err)
			for file, text := range x.old {
				require.Equal(t, text, x.store(t)[file])
			}
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
	_, err := x.replacement.Close()
	require.NoError(t, err)
	require.Equal(t, x.old, x.store(t))
}

// The names of staging directories, and the end of what is set aside, in halfSwaps.
const (
	fileStaging = ".atocore-restore-0123456789abcdef-db/"
	treeStaging = "chroma/.atocore-restore-0123456789abcdef-chroma/"
	aside       = ".set-aside-0123456789abcdef/"
)

// halfSwaps are stores as an interrupted swap leaves them, what somebody did to
// them since, and what they are to be when the swap is undone.
var halfSwaps = []struct {
	name         string
	lines        string
	before, want map[string]string
	linked       bool // the old file is db as well
	without      bool // there was no old part
}{
	{name: "file, nothing moved", lines: "begin db",
		before: map[string]string{"db": "old", "db-wal": "wal", fileStaging + "new/db": "new", fileStaging + "old/": ""},
		want:   map[string]string{"db": "old", "db-wal": "wal"}},
	{name: "file, WAL moved", lines: "begin db",
		before: map[string]string{"db": "old", fileStaging + "new/db": "new", fileStaging + "old/db-wal": "wal"},
		want:   map[string]string{"db": "old", "db-wal": "wal"}},
	{name: "file, WAL moved, and an empty one created by locking", lines: "begin db",
		before: map[string]string{"db": "old", "db-wal": "", fileStaging + "new/db": "new", fileStaging + "old/db-wal": "wal"},
		want:   map[string]string{"db": "old", "db-wal": "wal"}},
	{name: "file, WAL moved, and one written by somebody", lines: "begin db",
		before: map[string]string{"db": "old", "db-wal": "other", fileStaging + "new/db": "new", fileStaging + "old/db-wal": "wal"},
		want:   map[string]string{"db": "old", "db-wal": "other", "db" + aside + "db-wal": "wal"}},
	{name: "file, old one linked", lines: "begin db", linked: true,
		before: map[string]string{"db": "old", fileStaging + "new/db": "new", fileStaging + "old/db-wal": "wal"},
		want:   map[string]string{"db": "old", "db-wal": "wal"}},
	{name: "file, old one linked, and announced", lines: "begin db,out db", linked: true,
		before: map[string]string{"db": "old", fileStaging + "new/db": "new", fileStaging + "old/db-wal": "wal"},
		want:   map[string]string{"db": "old", "db-wal": "wal"}},
	{name: "file, in place", lines: "begin db,out db",
		before: map[string]string{"db": "new", fileStaging + "new/": "", fileStaging + "old/db": "old", fileStaging + "old/db-wal": "wal"},
		want:   map[string]string{"db": "old", "db-wal": "wal"}},
	{name: "file, in place, and an index created by somebody", lines: "begin db,out db,end db",
		before: map[string]string{"db": "new", "db-shm": "other", fileStaging + "new/": "", fileStaging + "old/db": "old", fileStaging + "old/db-shm": "shm"},
		want:   map[string]string{"db": "old", "db-shm": "shm"}},
	{name: "file, in place, and a WAL written by somebody", lines: "begin db,out db,end db",
		before: map[string]string{"db": "new", "db-wal": "other", fileStaging + "new/": "", fileStaging + "old/db": "old", fileStaging + "old/db-wal": "wal"},
		want:   map[string]string{"db": "old", "db-wal": "wal", "db" + aside + "db": "new", "db" + aside + "db-wal": "other"}},
	{name: "file, in place and written to", lines: "begin db,out db,end db",
		before: map[string]string{"db": "other", fileStaging + "new/": "", fileStaging + "old/db": "old", fileStaging + "old/db-wal": "wal"},
		want:   map[string]string{"db": "old", "db-wal": "wal", "db" + aside + "db": "other"}},
	{name: "file, in place and removed by somebody", lines: "begin db,out db,end db",
		before: map[string]string{"db-wal": "other", fileStaging + "new/": "", fileStaging + "old/db": "old", fileStaging + "old/db-wal": ""},
		want:   map[string]string{"db": "old", "db-wal": "", "db" + aside + "db-wal": "other"}},
	{name: "file, back already", lines: "begin db,out db,end db,undo",
		before: map[string]string{"db": "old", fileStaging + "new/": "", fileStaging + "old/db-wal": "wal"},
		want:   map[string]string{"db": "old", "db-wal": "wal"}},
	{name: "file, back already and written to", lines: "begin db,out db,end db,undo,aside db",
		before: map[string]string{"db": "later", fileStaging + "new/": "", fileStaging + "old/": "", "db" + aside + "db": "other"},
		want:   map[string]string{"db": "later", "db" + aside + "db": "other"}},
	{name: "file, set aside and written to again", lines: "begin db,out db,end db,undo,aside db",
		before: map[string]string{"db": "later", fileStaging + "new/": "", fileStaging + "old/db": "old", "db" + aside + "db": "other"},
		want:   map[string]string{"db": "old", "db" + aside + "db": "other", "db" + aside + "db.1": "later"}},
	{name: "no file before, nothing moved", lines: "begin db", without: true,
		before: map[string]string{fileStaging + "new/db": "new", fileStaging + "old/": ""},
		want:   map[string]string{}},
	{name: "no file before, in place", lines: "begin db,end db", without: true,
		before: map[string]string{"db": "new", fileStaging + "new/": "", fileStaging + "old/": ""},
		want:   map[string]string{}},
	{name: "no file before, in place and written to", lines: "begin db,end db", without: true,
		before: map[string]string{"db": "other", "db-wal": "wal", fileStaging + "new/": "", fileStaging + "old/": ""},
		want:   map[string]string{"db" + aside + "db": "other", "db" + aside + "db-wal": "wal"}},
	{name: "no file before, and one created while an undo was interrupted", lines: "begin db,undo", without: true,
		before: map[string]string{"db": "other", fileStaging + "new/db": "new", fileStaging + "old/": ""},
		want:   map[string]string{"db": "other"}},
	{name: "no file before, and one created after an undo", lines: "begin db,undo,undone db", without: true,
		before: map[string]string{"db": "other", fileStaging + "x": ""},
		want:   map[string]string{"db": "other"}},
	{name: "tree, nothing moved", lines: "begin chroma",
		before: map[string]string{"chroma/a": "old", "chroma/b": "old", treeStaging + "new/a": "new", treeStaging + "old/": ""},
		want:   map[string]string{"chroma/a": "old", "chroma/b": "old"}},
	{name: "tree, half moved away", lines: "begin chroma",
		before: map[string]string{"chroma/b": "old", treeStaging + "new/a": "new", treeStaging + "old/a": "old"},
		want:   map[string]string{"chroma/a": "old", "chroma/b": "old"}},
	{name: "tree, half moved away, and one created by somebody", lines: "begin chroma",
		before: map[string]string{"chroma/a": "other", "chroma/b": "old", treeStaging + "new/a": "new", treeStaging + "old/a": "old"},
		want:   map[string]string{"chroma/a": "old", "chroma/b": "old", "chroma" + aside + "a": "other"}},
	{name: "tree, all moved away", lines: "begin chroma,out chroma",
		before: map[string]string{treeStaging + "new/a": "new", treeStaging + "old/a": "old", treeStaging + "old/b": "old"},
		want:   map[string]string{"chroma/a": "old", "chroma/b": "old"}},
	{name: "tree, half in place", lines: "begin chroma,out chroma",
		before: map[string]string{"chroma/a": "new", treeStaging + "new/c": "new", treeStaging + "old/a": "old", treeStaging + "old/b": "old"},
		want:   map[string]string{"chroma/a": "old", "chroma/b": "old"}},
	{name: "tree, half in place and written to", lines: "begin chroma,out chroma",
		before: map[string]string{"chroma/a": "new", "chroma/b": "other", treeStaging + "new/c": "new", treeStaging + "old/a": "old", treeStaging + "old/b": "old"},
		want:   map[string]string{"chroma/a": "old", "chroma/b": "old", "chroma" + aside + "a": "new", "chroma" + aside + "b": "other"}},
	{name: "tree, half back", lines: "begin chroma,out chroma,end chroma,undo,cleared chroma",
		before: map[string]string{"chroma/a": "old", treeStaging + "new/a": "new", treeStaging + "new/c": "new", treeStaging + "old/b": "old"},
		want:   map[string]string{"chroma/a": "old", "chroma/b": "old"}},
	{name: "tree, half back, and one created by somebody", lines: "begin chroma,out chroma,end chroma,undo,cleared chroma",
		before: map[string]string{"chroma/a": "old", "chroma/b": "other", treeStaging + "new/": "", treeStaging + "old/b": "old"},
		want:   map[string]string{"chroma/a": "old", "chroma/b": "old", "chroma" + aside + "b": "other"}},
	{name: "tree, set aside in part", lines: "begin chroma,out chroma,end chroma,undo,aside chroma",
		before: map[string]string{"chroma/b": "other", "chroma" + aside + "a": "new", treeStaging + "new/": "", treeStaging + "old/b": "old"},
		want:   map[string]string{"chroma/b": "old", "chroma" + aside + "a": "new", "chroma" + aside + "b": "other"}},
	{name: "no tree before, in place", lines: "begin chroma,out chroma,end chroma", without: true,
		before: map[string]string{"chroma/a": "new", treeStaging + "new/": "", treeStaging + "old/": ""},
		want:   map[string]string{}},
	{name: "no tree before, and a file created by somebody while staging", lines: "", without: true,
		before: map[string]string{"chroma/made": "other", treeStaging + "new/": "", treeStaging + "old/": ""},
		want:   map[string]string{"chroma/made": "other"}},
}

// Whatever was moved when a swap was interrupted, undo moves it back. What is in
// place and is neither old nor staged is set aside.
func TestUndoOfHalfASwap(t *testing.T) {
	for _, tt := range halfSwaps {
		t.Run(tt.name, func(t *testing.T) {
			dir := fsat.RealPath(t.TempDir())
			writeTree(t, dir, tt.before)
			j := &Journal{id: id, Stamp: "s", BackupDir: dir}
			j.had.database, j.had.chroma = !tt.without, !tt.without
			j.Live.Database = filepath.Join(dir, "db")
			staged := map[string]string{fileStaging + format.ManifestName: format.Line(sum("new"), "db")}
			if strings.Contains(tt.name, "tree") {
				staged = map[string]string{treeStaging + format.ManifestName: format.Line(sum("new"), "a") + format.Line(sum("new"), "c")}
				staged[fileStaging+"x"] = "" // the swap of the database has not begun
				j.Live.Chroma = filepath.Join(dir, "chroma")
			}
			writeTree(t, dir, staged)
			if tt.linked {
				writeTree(t, dir, map[string]string{fileStaging + "old/": ""})
				require.NoError(t, os.Link(filepath.Join(dir, "db"), filepath.Join(dir, fileStaging, "old", "db")))
			}
			require.NoError(t, j.create(t.Context()))
			lines := append([]string{"swapping"}, strings.Split(tt.lines, ",")...)
			if tt.lines == "" {
				lines = nil
			}
			for _, line := range lines {
				require.NoError(t, j.write(line), line)
			}
			j.Close()

			read, err := OpenJournal(j.Live.Database)
			require.NoError(t, err)
			defer read.Close()
			if tt.lines != "" && !read.reached("undone", read.partNames()[0]) {
				if !read.undo {
					require.NoError(t, read.write("undo"))
				}
				require.NoError(t, read.parts[0].undo(t.Context(), read))
				delete(read.steps[read.partNames()[0]], "undone")
				require.NoError(t, read.parts[0].undo(t.Context(), read), "it can be repeated")
				if tt.linked {
					require.NoFileExists(t, filepath.Join(dir, fileStaging, "old", "db"), "another name of what is live")
				}
			}
			setAside, err := read.RollBack(t.Context())
			require.NoError(t, err)
			got := readTree(t, dir)
			require.Equal(t, tt.want, got)
			expected := 0
			for name := range tt.want {
				if strings.Contains(name, aside) {
					expected = 1
				}
			}
			require.Len(t, setAside, expected)
		})
	}
}

// A file that takes the place of the one that was compared, in the moment before
// that is replaced, is not replaced.
func TestUndoOfAFileThatIsReplacedMeanwhile(t *testing.T) {
	for _, empty := range []bool{false, true} {
		x := newFixture(t, empty)
		x.run(t, "swap")
		live := x.replacement.Live.Database
		x.kill()
		j, err := OpenJournal(live)
		require.NoError(t, err)
		defer j.Close()
		require.NoError(t, j.write("undo"))
		p := j.parts[2].(*filePart)
		d, err := p.open()
		require.NoError(t, err)
		defer d.close()
		require.NoError(t, p.clear(t.Context(), j, d))
		require.NoError(t, os.Remove(live))
		require.NoError(t, os.WriteFile(live, []byte("somebody's"), 0o600))
		require.ErrorContains(t, p.putBack(j, d, true), "was replaced while it was compared")
		require.Equal(t, "somebody's", x.store(t)["store/atocore.db"])

		_, err = j.RollBack(t.Context())
		require.NoError(t, err)
		for name, text := range x.old {
			require.Equal(t, text, x.store(t)[name])
		}
		require.Equal(t, "somebody's", x.store(t)["store/atocore.db.set-aside-"+j.id+"/atocore.db"])
	}
}

func sum(text string) [sha256.Size]byte { return sha256.Sum256([]byte(text)) }

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
