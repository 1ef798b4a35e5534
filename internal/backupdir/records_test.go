package backupdir_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/fsat"
)

const recorded = "20261124T120000Z"

var checkedAt = time.Date(2026, 11, 24, 12, 0, 0, 123456000, time.UTC)

// A recordSet is a backup directory with one snapshot, which has a manifest.
type recordSet struct {
	t        *testing.T
	path     string
	dir      *fsat.Dir
	snapshot *fsat.Dir
}

func newRecordSet(t *testing.T) *recordSet {
	t.Helper()
	s := &recordSet{t: t, path: t.TempDir()}
	require.NoError(t, os.MkdirAll(filepath.Join(s.path, "snapshots", recorded), 0o700))
	s.writeManifest("sums\n")
	s.dir = open(t, s.path)
	s.snapshot = open(t, filepath.Join(s.path, "snapshots", recorded))
	return s
}

func open(t *testing.T, path string) *fsat.Dir {
	t.Helper()
	dir, err := fsat.OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

func (s *recordSet) writeManifest(text string) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(filepath.Join(s.path, "snapshots", recorded, "SHA256SUMS"), []byte(text), 0o600))
}

func (s *recordSet) file() string { return filepath.Join(s.path, "records", recorded+".json") }

func (s *recordSet) read() backupdir.Record {
	s.t.Helper()
	records, err := backupdir.OpenRecords(s.dir)
	require.NoError(s.t, err)
	defer records.Close()
	return s.readIn(records, nil)
}

func (s *recordSet) readIn(records *fsat.Dir, forbidden func(fsat.Info) bool) backupdir.Record {
	s.t.Helper()
	r, err := backupdir.ReadRecord(context.Background(), records, recorded, s.snapshot, forbidden)
	require.NoError(s.t, err)
	return r
}

func requireNoRecords(t *testing.T, dir *fsat.Dir) {
	t.Helper()
	records, err := backupdir.OpenRecords(dir)
	require.NoError(t, err)
	require.Nil(t, records)
}

func (s *recordSet) update(change func(*backupdir.Record)) {
	s.t.Helper()
	require.NoError(s.t, backupdir.UpdateRecord(context.Background(), s.dir, recorded, nil, change))
}

// verify records that the snapshot was found valid.
func (s *recordSet) verify() {
	s.t.Helper()
	sum, err := backupdir.ManifestSum(context.Background(), s.snapshot, nil)
	require.NoError(s.t, err)
	s.update(func(r *backupdir.Record) {
		r.Manifest, r.VerifiedAt, r.Valid, r.Intact, r.Findings = sum, checkedAt, true, true, []string{"a"}
	})
}

// Nothing is known without a record, and updates add up.
func TestRecord(t *testing.T) {
	s := newRecordSet(t)
	requireNoRecords(t, s.dir)
	require.Equal(t, backupdir.Record{}, s.read())
	s.verify()
	s.update(func(r *backupdir.Record) { r.Protected = true })
	s.update(func(r *backupdir.Record) { r.Note = "before the move" })
	sum, err := backupdir.ManifestSum(t.Context(), s.snapshot, nil)
	require.NoError(t, err)
	want := backupdir.Record{
		Version: 1, Stamp: recorded, Manifest: sum, VerifiedAt: checkedAt, Valid: true, Intact: true, Findings: []string{"a"},
		Protected: true, Note: "before the move",
	}
	require.Equal(t, want, s.read())

	data, err := os.ReadFile(s.file())
	require.NoError(t, err)
	require.JSONEq(t, `{"version": 1, "stamp": "20261124T120000Z", "manifest_sha256": "`+sum+`", "verified_at": "2026-11-24T12:00:00.123456Z",
		"valid": true, "intact": true, "findings": ["a"], "protected": true, "note": "before the move"}`, string(data))
	entries, err := os.ReadDir(filepath.Dir(s.file()))
	require.NoError(t, err)
	require.Len(t, entries, 1, "a draft was left")
	if runtime.GOOS != "windows" {
		for path, mode := range map[string]os.FileMode{s.file(): 0o600, filepath.Dir(s.file()): 0o700} {
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.Equal(t, mode, info.Mode().Perm())
		}
	}

	require.NoError(t, backupdir.RemoveRecord(s.dir, recorded))
	require.NoError(t, backupdir.RemoveRecord(s.dir, recorded))
	require.Equal(t, backupdir.Record{Version: 1, Stamp: recorded}, s.read())
}

// A verdict is about one manifest. If the snapshot has another one, or none, the
// verdict does not count; what the user said about the stamp stays.
func TestRecordOfAnotherManifest(t *testing.T) {
	s := newRecordSet(t)
	s.verify()
	s.update(func(r *backupdir.Record) { r.Protected, r.Note = true, "n" })
	require.True(t, s.read().Valid)
	forgotten := backupdir.Record{Version: 1, Stamp: recorded, Protected: true, Note: "n"}
	manifest := filepath.Join(s.path, "snapshots", recorded, "SHA256SUMS")
	for name, change := range map[string]func(){
		"other bytes": func() { s.writeManifest("sumz\n") },
		"longer":      func() { s.writeManifest("sums\n\n") },
		"none":        func() {},
		"a link": func() {
			require.NoError(t, os.WriteFile(manifest+".1", []byte("sums\n"), 0o600))
			require.NoError(t, os.Symlink("SHA256SUMS.1", manifest))
		},
		"a directory": func() { require.NoError(t, os.Mkdir(manifest, 0o700)) },
		"too large":   func() { s.writeManifest(""); require.NoError(t, os.Truncate(manifest, 1<<30)) },
	} {
		require.NoError(t, os.RemoveAll(manifest))
		change()
		require.Equal(t, forgotten, s.read(), name)
		if name == "too large" {
			_, err := backupdir.ManifestSum(t.Context(), s.snapshot, nil)
			require.ErrorIs(t, err, fsat.ErrTooLarge)
		}
	}
	require.NoError(t, os.RemoveAll(manifest))
	s.writeManifest("sums\n")
	require.True(t, s.read().Valid)

	// A file that must not be opened counts as none.
	records := open(t, filepath.Join(s.path, "records"))
	info, err := s.snapshot.Lstat("SHA256SUMS")
	require.NoError(t, err)
	isManifest := func(i fsat.Info) bool { return i.SameFile(info) }
	require.Equal(t, forgotten, s.readIn(records, isManifest))
	info, err = records.Lstat(recorded + ".json")
	require.NoError(t, err)
	require.Equal(t, backupdir.Record{Version: 1, Stamp: recorded}, s.readIn(records, isManifest))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := backupdir.ReadRecord(ctx, records, recorded, s.snapshot, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, forgotten, r)
}

// A record of a snapshot without a manifest counts as long as it has none.
func TestRecordWithoutManifest(t *testing.T) {
	s := newRecordSet(t)
	require.NoError(t, os.Remove(filepath.Join(s.path, "snapshots", recorded, "SHA256SUMS")))
	s.verify()
	require.True(t, s.read().Valid)
	s.writeManifest("sums\n")
	require.True(t, s.read().VerifiedAt.IsZero())
}

// hostileRecords are the ways in which the file of a record can be wrong.
var hostileRecords = map[string]func(t *testing.T, path string){
	"empty":       func(t *testing.T, path string) { write(t, path, "") },
	"cut":         func(t *testing.T, path string) { write(t, path, `{"version": 1, "stamp": "`+recorded) },
	"not JSON":    func(t *testing.T, path string) { write(t, path, "protected") },
	"two values":  func(t *testing.T, path string) { write(t, path, whole+whole) },
	"array":       func(t *testing.T, path string) { write(t, path, "["+whole+"]") },
	"null":        func(t *testing.T, path string) { write(t, path, "null") },
	"version":     func(t *testing.T, path string) { write(t, path, strings.Replace(whole, "1", "2", 1)) },
	"other stamp": func(t *testing.T, path string) { write(t, path, strings.Replace(whole, "2026", "2025", 1)) },
	"types":       func(t *testing.T, path string) { write(t, path, strings.Replace(whole, "true", `"true"`, 1)) },
	"binary":      func(t *testing.T, path string) { write(t, path, "\xff\x00\xfe") },
	"deep": func(t *testing.T, path string) {
		write(t, path, strings.Repeat(`{"note":`, 9_000)+strings.Repeat("}", 9_000))
	},
	"deepest": func(t *testing.T, path string) { write(t, path, strings.Repeat("[", 60_000)) },
	"large":   func(t *testing.T, path string) { write(t, path, whole+strings.Repeat(" ", 64<<10)) },
	"huge": func(t *testing.T, path string) {
		write(t, path, whole)
		require.NoError(t, os.Truncate(path, 1<<40))
	},
	"link": func(t *testing.T, path string) {
		write(t, path+".1", whole)
		require.NoError(t, os.Symlink(path+".1", path))
	},
	"dangling link": func(t *testing.T, path string) { require.NoError(t, os.Symlink("nothing", path)) },
	"directory":     func(t *testing.T, path string) { require.NoError(t, os.MkdirAll(filepath.Join(path, "x"), 0o700)) },
	"FIFO": func(t *testing.T, path string) {
		if err := mkfifo(path); err != nil {
			t.Skip(err)
		}
	},
}

// whole is a record that says something.
const whole = `{"version": 1, "stamp": "` + recorded + `", "protected": true, "note": "n"}`

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

// A record that is not one is as good as none, whatever it is. It is replaced by
// the next update, unless that is a directory.
func TestRecordIsUntrusted(t *testing.T) {
	for name, make := range hostileRecords {
		t.Run(name, func(t *testing.T) {
			s := newRecordSet(t)
			require.NoError(t, os.Mkdir(filepath.Dir(s.file()), 0o700))
			make(t, s.file())
			require.Equal(t, backupdir.Record{Version: 1, Stamp: recorded}, s.read())
			err := backupdir.UpdateRecord(t.Context(), s.dir, recorded, nil, func(r *backupdir.Record) {
				require.Equal(t, backupdir.Record{Version: 1, Stamp: recorded}, *r)
				r.Protected = true
			})
			if name == "directory" {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.True(t, s.read().Protected)
			if data, err := os.ReadFile(s.file() + ".1"); err == nil {
				require.Equal(t, whole, string(data), "the target of the link was written to")
			}
		})
	}
	s := newRecordSet(t)
	require.NoError(t, os.Mkdir(filepath.Dir(s.file()), 0o700))
	write(t, s.file(), whole)
	require.Equal(t, backupdir.Record{Version: 1, Stamp: recorded, Protected: true, Note: "n"}, s.read())
}

// A directory of the records that is something else is as good as none.
func TestRecordsDirectoryIsUntrusted(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, s *recordSet){
		"file": func(t *testing.T, s *recordSet) { write(t, filepath.Join(s.path, "records"), "") },
		"link": func(t *testing.T, s *recordSet) {
			other := t.TempDir()
			write(t, filepath.Join(other, recorded+".json"), whole)
			require.NoError(t, os.Symlink(other, filepath.Join(s.path, "records")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newRecordSet(t)
			make(t, s)
			requireNoRecords(t, s.dir)
			require.Equal(t, backupdir.Record{}, s.read())
			require.Error(t, backupdir.UpdateRecord(t.Context(), s.dir, recorded, nil, func(*backupdir.Record) {}))
			require.NoError(t, backupdir.RemoveRecord(s.dir, recorded))
			requireReaped(t, s)
		})
	}
}

// A verdict whose time is of no year that JSON has would make a list fail.
func TestRecordOfImpossibleTime(t *testing.T) {
	s := newRecordSet(t)
	s.verify()
	data, err := os.ReadFile(s.file())
	require.NoError(t, err)
	for _, at := range []string{"9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+00:01", "0000-12-31T23:59:59Z"} {
		write(t, s.file(), strings.Replace(string(data), checkedAt.Format(time.RFC3339Nano), at, 1))
		r := s.read()
		require.Equal(t, backupdir.Record{Version: 1, Stamp: recorded}, r, at)
	}
	write(t, s.file(), strings.Replace(string(data), checkedAt.Format(time.RFC3339Nano), "2026-11-24T14:00:00+02:00", 1))
	require.Equal(t, checkedAt.Truncate(time.Second), s.read().VerifiedAt)
}

// However much is to be recorded, the record can be read again: otherwise a
// snapshot would lose its protection by a verdict with long words.
func TestRecordIsNeverTooLarge(t *testing.T) {
	s := newRecordSet(t)
	s.update(func(r *backupdir.Record) { r.Protected, r.Note = true, strings.Repeat("\x01", backupdir.MaxNote) })
	s.verify()
	s.update(func(r *backupdir.Record) {
		r.Valid, r.Findings = false, nil
		for range 1001 {
			r.Findings = append(r.Findings, strings.Repeat("<", 70_000))
		}
	})
	r := s.read()
	require.True(t, r.Protected)
	require.Len(t, r.Note, backupdir.MaxNote)
	require.False(t, r.Valid)
	require.Equal(t, checkedAt, r.VerifiedAt)
	require.Len(t, r.Findings, 10)

	err := backupdir.UpdateRecord(t.Context(), s.dir, recorded, nil, func(r *backupdir.Record) { r.Note += "x" })
	require.ErrorContains(t, err, "4096")
	require.Equal(t, r, s.read())
}

// A snapshot may have any name that a file can have.
func TestRecordOfAnAwkwardName(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("such names are not possible on every file system")
	}
	s := newRecordSet(t)
	for _, stamp := range []string{"é\xff\xfe ", "\u2028<>&\"", strings.Repeat("\xff", 250), "latest"} {
		require.NoError(t, backupdir.UpdateRecord(t.Context(), s.dir, stamp, nil, func(r *backupdir.Record) { r.Protected = true }))
		records, err := backupdir.OpenRecords(s.dir)
		require.NoError(t, err)
		r, err := backupdir.ReadRecord(t.Context(), records, stamp, s.snapshot, nil)
		require.NoError(t, err)
		require.True(t, r.Protected, "%q", stamp)
		records.Close()
	}
	require.ErrorIs(t, backupdir.UpdateRecord(t.Context(), s.dir, strings.Repeat("x", 251), nil, func(*backupdir.Record) {}), syscall.ENAMETOOLONG)
}

// Updates of one record at the same time do not undo each other.
func TestRecordUpdatedConcurrently(t *testing.T) {
	s := newRecordSet(t)
	const each = 20
	errs := make(chan error)
	for _, text := range []string{"a", "b"} {
		go func() {
			for range each {
				dir, err := fsat.OpenDir(s.path)
				if err == nil {
					err = backupdir.UpdateRecord(context.Background(), dir, recorded, nil, func(r *backupdir.Record) { r.Note += text })
					dir.Close()
				}
				errs <- err
			}
		}()
	}
	for range 2 * each {
		require.NoError(t, <-errs)
	}
	note := s.read().Note
	require.Equal(t, each, strings.Count(note, "a"), note)
	require.Equal(t, each, strings.Count(note, "b"), note)
}

func requireReaped(t *testing.T, s *recordSet) {
	t.Helper()
	left, err := backupdir.ReapRecords(s.dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// ReapRecords removes what belongs to no snapshot, and nothing else.
func TestReapRecords(t *testing.T) {
	s := newRecordSet(t)
	s.verify()
	at := func(name string) string { return filepath.Join(s.path, "records", name) }
	for _, name := range []string{"20260101T000000Z.json", ".atocore-staging-0123456789abcdef", "README", "x.json.bak", ".atocore-staging-x"} {
		write(t, at(name), "x")
	}
	require.NoError(t, os.Mkdir(at("dir.json"), 0o700))
	require.NoError(t, os.Symlink("README", at("link.json")))
	requireReaped(t, s)
	entries, err := os.ReadDir(filepath.Join(s.path, "records"))
	require.NoError(t, err)
	var left []string
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	require.Equal(t, []string{".atocore-staging-x", recorded + ".json", "README", "dir.json", "link.json", "x.json.bak"}, left)
	require.True(t, s.read().Valid)
}

// Whatever a record has in it, reading it ends in a record that can be written
// and listed.
func FuzzReadRecord(f *testing.F) {
	for _, seed := range []string{whole, "", "{}", `{"version":1,"stamp":"` + recorded + `","verified_at":"9999-12-31T23:59:59-23:59","valid":true}`,
		`{"version":1,"stamp":"` + recorded + `","verified_at":"2026-11-24T12:00:00Z","manifest_sha256":"","findings":["\ud800"]}`,
		`{"VERSION":1,"Stamp":"` + recorded + `","note":null}`, strings.Repeat("[", 20_000)} {
		f.Add([]byte(seed))
	}
	path := f.TempDir()
	for _, name := range []string{"records", "snapshot"} {
		if err := os.Mkdir(filepath.Join(path, name), 0o700); err != nil {
			f.Fatal(err)
		}
	}
	records, err := fsat.OpenDir(filepath.Join(path, "records"))
	if err != nil {
		f.Fatal(err)
	}
	snapshot, err := fsat.OpenDir(filepath.Join(path, "snapshot"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(path, "records", recorded+".json"), text, 0o600))
		r, err := backupdir.ReadRecord(t.Context(), records, recorded, snapshot, nil)
		require.NoError(t, err)
		require.Equal(t, 1, r.Version)
		require.Equal(t, recorded, r.Stamp)
		_, err = json.Marshal(r)
		require.NoError(t, err)
		require.Equal(t, time.UTC, r.VerifiedAt.Location())
		if r.VerifiedAt.IsZero() {
			require.False(t, r.Valid && r.Manifest != "", "a verdict without a time")
		}
	})
}
