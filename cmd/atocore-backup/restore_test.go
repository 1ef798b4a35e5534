package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
)

type restored struct {
	Stamp        string
	SafetyStamp  string   `json:"safety_stamp"`
	SetAside     []string `json:"set_aside"`
	DBPath       string   `json:"db_path"`
	RegistryPath string   `json:"registry_path"`
	ChromaPath   string   `json:"chroma_path"`
	Files, Bytes int64
	Recovered    string
}

// restore runs the command on the store.
func (s store) restore(t *testing.T, args ...string) outcome {
	t.Helper()
	return atocore(t, append(append([]string{"restore"}, args...), s.flags()...)...)
}

// snapshot takes a snapshot with Chroma and returns its stamp.
func (s store) snapshot(t *testing.T) string {
	t.Helper()
	o := atocore(t, append([]string{"create", "--include-chroma"}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	return decode[struct{ Stamp string }](t, o).Stamp
}

// change modifies each part and closes the database.
func (s store) change(t *testing.T) {
	t.Helper()
	_, err := s.live.Exec("INSERT INTO notes VALUES ('second')")
	require.NoError(t, err)
	require.NoError(t, s.live.Close())
	require.NoError(t, os.WriteFile(s.registry, []byte(`{"projects": ["new"]}`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(s.chroma, "segment", "data.bin"), []byte("newer vectors"), 0o600))
}

// requireNotes checks the rows of the database.
func requireNotes(t *testing.T, path string, want ...string) {
	t.Helper()
	db := backuptest.OpenDB(t, path, "mode=rw")
	defer db.Close()
	rows, err := db.Query("SELECT text FROM notes ORDER BY rowid")
	require.NoError(t, err)
	var got []string
	for rows.Next() {
		var text string
		require.NoError(t, rows.Scan(&text))
		got = append(got, text)
	}
	require.NoError(t, rows.Err())
	require.Equal(t, want, got)
}

// requireFile checks the content of a file.
func requireFile(t *testing.T, path, want string) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, string(data))
}

// stamps lists the snapshots.
func (s store) stamps(t *testing.T) (stamps []string) {
	t.Helper()
	o := atocore(t, "list", "--backup-dir", s.backups)
	for _, e := range decode[[]entry](t, o) {
		stamps = append(stamps, e.Stamp)
	}
	return stamps
}

// rewrite changes a field of a snapshot's metadata, which makes it invalid.
func (s store) rewrite(t *testing.T, stamp, field string, value any) {
	t.Helper()
	s.snapshots(t).Snapshot(stamp).Set(map[string]any{field: value})
}

func TestRestoreBringsTheStoreBack(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)

	o := s.restore(t, "--yes", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	r := decode[restored](t, o)
	require.Equal(t, restored{
		Stamp: stamp, SafetyStamp: r.SafetyStamp, SetAside: []string{},
		DBPath: s.db, RegistryPath: s.registry, ChromaPath: s.chroma, Files: 3, Bytes: r.Bytes,
	}, r)
	requireNotes(t, s.db, "first")
	requireFile(t, s.registry, `{"projects": []}`)
	requireFile(t, filepath.Join(s.chroma, "segment", "data.bin"), "vectors")
	require.Contains(t, o.stderr, fmt.Sprintf("Snapshot %s is restored: 3 files, ", stamp))
	require.Contains(t, o.stderr, fmt.Sprintf("The previous store is saved as snapshot %s.\n", r.SafetyStamp))

	// Nothing was lost, but the safety snapshot does not count as the latest.
	require.ElementsMatch(t, []string{stamp, r.SafetyStamp}, s.stamps(t))
	o = s.restore(t, "latest", "--into", filepath.Join(t.TempDir(), "new"))
	require.Equal(t, stamp, decode[restored](t, o).Stamp)
	o = s.restore(t, "--yes", r.SafetyStamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	requireNotes(t, s.db, "first", "second")
	requireFile(t, filepath.Join(s.chroma, "segment", "data.bin"), "newer vectors")
}

// Without a terminal to ask on, --yes is required, but only if something would be
// replaced.
func TestRestoreRequiresConfirmation(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)
	parts := map[string]string{"the database": s.db, "the registry": s.registry, "the Chroma directory": s.chroma}
	all := []string{"--yes"}
	for what, path := range parts {
		all = append(all, what+" "+path)
	}
	s.restore(t, stamp).requireFailed(t, all...)
	requireNotes(t, s.db, "first", "second")

	for what, path := range parts {
		t.Run(what, func(t *testing.T) {
			one := s
			dir := t.TempDir()
			one.db, one.registry, one.chroma = filepath.Join(dir, "atocore.db"), filepath.Join(dir, "registry.json"), filepath.Join(dir, "chroma")
			there := map[string]*string{"the database": &one.db, "the registry": &one.registry, "the Chroma directory": &one.chroma}[what]
			*there = path
			o := one.restore(t, stamp)
			o.requireFailed(t, "--yes", what+" "+path)
			for other := range parts {
				if other != what {
					require.NotContains(t, o.stderr, other+" ")
				}
			}
		})
	}
	t.Run("a WAL without its database", func(t *testing.T) {
		one := s
		one.db = filepath.Join(t.TempDir(), "atocore.db")
		require.NoError(t, os.WriteFile(one.db+"-wal", []byte("x"), 0o600))
		one.restore(t, stamp).requireFailed(t, "--yes", one.db)
	})
	t.Run("nothing there", func(t *testing.T) {
		for _, path := range parts {
			require.NoError(t, os.RemoveAll(path))
		}
		require.NoError(t, os.Mkdir(s.chroma, 0o700), "an empty directory counts as nothing")
		o := s.restore(t, stamp)
		require.Equal(t, exitDone, o.code, o.stderr)
		require.Empty(t, decode[restored](t, o).SafetyStamp)
		requireNotes(t, s.db, "first")
	})
}

func TestRestoreInto(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	for name, test := range map[string]struct {
		flags        []string
		db, registry string
	}{
		"names of the snapshot": {[]string{"--backup-dir", s.backups}, "atocore.db", "registry.json"},
		"names of the flags": {
			[]string{"--backup-dir", s.backups, "--db", "/elsewhere/core.sqlite", "--registry", "projects.json", "--chroma", "/elsewhere/vectors"},
			"core.sqlite", "projects.json",
		},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, append([]string{"restore", stamp, "--into", "new/place"}, test.flags...)...)
			into := filepath.Join(cmd.Dir, "new", "place")
			o := do(t, cmd)
			require.Equal(t, exitDone, o.code, o.stderr)
			r := decode[restored](t, o)
			require.Equal(t, filepath.Join(into, test.db), r.DBPath)
			require.Equal(t, filepath.Join(into, test.registry), r.RegistryPath)
			require.Equal(t, filepath.Join(into, "chroma"), r.ChromaPath)
			requireNotes(t, r.DBPath, "first")
			requireFile(t, filepath.Join(into, "chroma", "segment", "data.bin"), "vectors")
			require.Equal(t, []string{stamp}, s.stamps(t), "there was nothing to take a safety snapshot of")

			again := command(t, cmd.Args[1:]...)
			again.Dir = cmd.Dir
			do(t, again).requireFailed(t, "--yes", "new/place")
		})
	}
	requireNotes(t, s.db, "first")
}

// A database that is in use is left unchanged, and so is the store if the snapshot
// is damaged.
func TestRestoreRefuses(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.restore(t, "--yes", stamp).requireFailed(t, "in use", s.db)
	require.Equal(t, []string{stamp}, s.stamps(t))
	s.change(t)

	for name, test := range map[string]struct {
		args  []string
		words []string
	}{
		"no path for the registry": {[]string{"--db", s.db, "--chroma", s.chroma}, []string{"--registry", "ATOCORE_PROJECT_REGISTRY_PATH"}},
		"no path for Chroma":       {[]string{"--db", s.db, "--registry", s.registry}, []string{"--chroma", "ATOCORE_CHROMA_PATH"}},
		"neither":                  {[]string{"--db", s.db}, []string{"--registry", "--chroma"}},
		"no path for the database": {nil, []string{"--db", "ATOCORE_DB_PATH"}},
		"empty into":               {[]string{"--into", ""}, []string{"--into is empty"}},
		"empty guard":              {[]string{"--db", s.db, "--guard-file="}, []string{"--guard-file is empty"}},
	} {
		t.Run(name, func(t *testing.T) {
			atocore(t, append([]string{"restore", stamp, "--yes", "--backup-dir", s.backups}, test.args...)...).requireFailed(t, test.words...)
		})
	}

	requireRefused := func(status int, words, stamp, problem string) {
		t.Helper()
		for _, args := range [][]string{
			append([]string{"restore", "--yes"}, s.flags()...),
			{"restore", "--into", filepath.Join(t.TempDir(), "new"), "--backup-dir", s.backups},
			{"drill", "--backup-dir", s.backups},
		} {
			o := atocore(t, append(args, "--", stamp)...)
			require.Equal(t, status, o.code, o.stderr)
			r := decode[report](t, o)
			require.False(t, r.Valid)
			require.Contains(t, strings.Join(r.Errors, "\n"), problem)
			require.Contains(t, o.stderr, fmt.Sprintf(words, stamp))
		}
		requireNotes(t, s.db, "first", "second")
	}
	requireMissing := func(stamp, problem string) {
		t.Helper()
		requireRefused(exitMissing, "There is no snapshot %q:\n", stamp, problem)
	}
	requireInvalid := func(stamp, problem string) {
		t.Helper()
		requireRefused(exitInvalid, "Snapshot %q is not valid:\n", stamp, problem)
	}
	requireMissing("absent", "snapshot_directory_missing")
	requireMissing("../"+stamp, "stamp_invalid")
	s.rewrite(t, stamp, "vector_store_note", "forged")
	requireInvalid(stamp, "file_changed: backup-metadata.json")
	s.rewrite(t, stamp, "db_snapshot_path", filepath.Join(s.backups, ".."))
	requireInvalid(stamp, "path_outside_snapshot")
	s.rewrite(t, stamp, "db_snapshot_path", "")
	requireInvalid(stamp, "db_snapshot_missing")
	s.rewrite(t, stamp, "created_at", 7)
	requireInvalid(stamp, "metadata_wrong_shape")
	require.Equal(t, []string{stamp}, s.stamps(t))
}

func TestRestoreReportsPartsLeftUnchanged(t *testing.T) {
	s := newStore(t)
	bare := s
	bare.registry = filepath.Join(t.TempDir(), "absent.json")
	stamp, _ := bare.create(t)
	s.change(t)
	o := s.restore(t, "--yes", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	r := decode[restored](t, o)
	require.Empty(t, r.RegistryPath)
	require.Empty(t, r.ChromaPath)
	require.Contains(t, o.stderr, "The snapshot has no registry; "+s.registry+" was left unchanged.\n")
	require.Contains(t, o.stderr, "The snapshot has no Chroma directory; "+s.chroma+" was left unchanged.\n")
	requireFile(t, s.registry, `{"projects": ["new"]}`)

	require.NoError(t, os.Remove(s.db))
	o = s.restore(t, stamp)
	require.Equal(t, exitDone, o.code, "parts that are left unchanged need no --yes: %s", o.stderr)
	requireNotes(t, s.db, "first")
	requireFile(t, s.registry, `{"projects": ["new"]}`)
}

// Some parts only, into the store and into another directory.
func TestRestoreOfSomeParts(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	_, err := s.live.Exec("INSERT INTO notes VALUES ('second')")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.registry, []byte(`{"projects": ["new"]}`), 0o600))
	for only, words := range map[string]string{"": "--only", "database,": `""`, "databases": `"databases"`, "registry chroma": "chroma"} {
		s.restore(t, "--yes", "--only="+only, stamp).requireFailed(t, words)
	}
	// The database is in use, and stays so.
	o := atocore(t, "restore", "--yes", "--only", "chroma,registry", stamp, "--db", s.db, "--registry", s.registry, "--chroma", s.chroma, "--backup-dir", s.backups)
	require.Equal(t, exitDone, o.code, o.stderr)
	requireFile(t, s.registry, `{"projects": []}`)
	r := decode[struct {
		Mixed bool
		Parts []struct{ Part, Action string }
		restored
	}](t, o)
	require.True(t, r.Mixed)
	require.Equal(t, []struct{ Part, Action string }{{"database", "leave_out"}, {"registry", "replace"}, {"chroma", "equal"}}, r.Parts)
	for _, words := range []string{
		"Nothing was done to the database " + s.db + ": --only leaves it out.", "Nothing was done to the Chroma directory " + s.chroma + ": it is equal already.",
		"mixture of two points in time", "saved as snapshot",
	} {
		require.Contains(t, o.stderr, words)
	}
	var n int
	require.NoError(t, s.live.QueryRow("SELECT count(*) FROM notes").Scan(&n))
	require.Equal(t, 2, n)

	// Paths of parts that are left out need not be given.
	into := filepath.Join(t.TempDir(), "new")
	o = atocore(t, "restore", "--only", "registry", "--into", into, stamp, "--backup-dir", s.backups)
	require.Equal(t, exitDone, o.code, o.stderr)
	entries, err := os.ReadDir(into)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	requireFile(t, filepath.Join(into, "registry.json"), `{"projects": []}`)
}

func TestRestoreOverABrokenStore(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)
	require.NoError(t, os.WriteFile(s.db, []byte(strings.Repeat("no database", 1000)), 0o600))
	o := s.restore(t, "--yes", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	r := decode[restored](t, o)
	require.Empty(t, r.SafetyStamp)
	require.Len(t, r.SetAside, 3)
	for _, dir := range r.SetAside {
		require.DirExists(t, dir)
		require.Contains(t, o.stderr, "moved to "+dir+".\n")
	}
	requireNotes(t, s.db, "first")
}

// The latest snapshot is the one with the latest recorded creation time. Safety
// snapshots and snapshots without readable metadata are skipped.
func TestLatest(t *testing.T) {
	s := newStore(t)
	into := func(t *testing.T) outcome {
		return atocore(t, "drill", "latest", "--backup-dir", s.backups)
	}
	into(t).requireStatus(t, exitMissing, "no snapshot", "latest")

	old, _ := s.create(t)
	bare := "20990101T000000Z"
	move := func(from, to string) {
		require.NoError(t, os.Rename(filepath.Join(s.backups, "snapshots", from), filepath.Join(s.backups, "snapshots", to)))
	}
	move(old, "zz renamed")
	newer, _ := s.create(t)
	o := into(t)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, newer, decode[report](t, o).Stamp, "not the last by name")
	require.Contains(t, o.stderr, "The latest snapshot is "+newer+", made ")

	require.NoError(t, os.Mkdir(filepath.Join(s.backups, "snapshots", bare), 0o700))
	o = into(t)
	require.Equal(t, newer, decode[report](t, o).Stamp)
	require.Contains(t, o.stderr, "passed over: "+bare+" (no metadata)")

	s.rewrite(t, newer, "safety_of", old)
	o = into(t)
	require.Equal(t, "zz renamed", decode[report](t, o).Stamp)
	require.Contains(t, o.stderr, newer+" (safety snapshot of a restore)")

	s.rewrite(t, "zz renamed", "safety_of", old)
	o = into(t)
	o.requireStatus(t, exitMissing, "no snapshot", "latest", newer+" (safety snapshot of a restore)", bare+" (no metadata)")

	move(newer, "latest")
	into(t).requireFailed(t, "a snapshot called latest", "rename")
	o = s.restore(t, "--yes", "latest")
	o.requireFailed(t, "a snapshot called latest", "rename")
}

// Among equal creation times, the last stamp is the latest.
func TestLatestOfEqualTimes(t *testing.T) {
	s := newStore(t)
	for _, stamp := range []string{"20260101T000000Z-1000", "20260101T000000Z-999", "20260101T000000Z"} {
		made, dir := s.create(t)
		s.rewrite(t, made, "created_at", "2026-01-01T00:00:00+00:00")
		require.NoError(t, os.Rename(dir, filepath.Join(s.backups, "snapshots", stamp)))
	}
	o := atocore(t, "restore", "latest", "--into", t.TempDir(), "--backup-dir", s.backups)
	require.Equal(t, exitInvalid, o.code, "their metadata was changed")
	require.Equal(t, "20260101T000000Z-1000", decode[report](t, o).Stamp)
}

// While a restore is unfinished, list and validate still print their results and
// report it; all other commands fail.
func TestEveryCommandReportsAnUnfinishedRestore(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	s.change(t)
	journal := filepath.Join(s.backups, ".atocore-restore.journal")
	require.NoError(t, os.WriteFile(journal, []byte("no journal\n"), 0o600))
	const unfinished = "a restore is unfinished"

	o := atocore(t, "list", "--backup-dir", s.backups)
	require.Equal(t, exitFailed, o.code)
	require.Equal(t, []entry{{Stamp: stamp, HasMetadata: true}}, decode[[]entry](t, o))
	require.Contains(t, o.stderr, unfinished)

	o = atocore(t, "validate", "--backup-dir", s.backups, stamp)
	require.Equal(t, exitFailed, o.code)
	require.True(t, decode[report](t, o).Valid)
	require.Contains(t, o.stderr, unfinished)
	o = atocore(t, "validate", "--backup-dir", s.backups, "absent")
	require.Equal(t, exitFailed, o.code)
	require.False(t, decode[report](t, o).Valid)
	require.Contains(t, o.stderr, unfinished)

	for _, args := range [][]string{{"create"}, {"prune", "--keep-last=1"}, {"drill", stamp}, {"restore", "--yes", stamp}} {
		atocore(t, append(args, s.flags()...)...).requireFailed(t, unfinished, journal)
	}
	requireNotes(t, s.db, "first", "second")

	// A restore that was interrupted before it began is recovered.
	require.NoError(t, os.Remove(journal))
	journal = s.journal()
	require.NoError(t, os.WriteFile(journal, nil, 0o600))
	for _, path := range []string{s.db, s.registry, s.chroma} {
		require.NoError(t, os.RemoveAll(path))
	}
	s.restore(t, stamp).requireFailed(t, "--yes", "interrupted")
	o = s.restore(t, "--yes", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.NoFileExists(t, journal)
	requireNotes(t, s.db, "first")
}
