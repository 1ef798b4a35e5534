package backup_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

const (
	metadataFile = "backup-metadata.json"
	manifestFile = "SHA256SUMS"
	dbFile       = "db/atocore.db"
	registryFile = "config/project-registry.json"
	chromaFile   = "chroma/chroma.sqlite3"
)

// A specimen is a snapshot to be damaged, in a backup directory of its own.
type specimen struct {
	t *testing.T
	backup.Options
	stamp string
}

// newSmallStore makes a store whose Chroma database is a small one: SQLite takes
// a while for the real one's check under the race detector.
func newSmallStore(t *testing.T) *store {
	t.Helper()
	s := newBareStore(t)
	require.NoError(t, os.Remove(filepath.Join(s.ChromaPath, "chroma.sqlite3")))
	makeDatabase(t, filepath.Join(s.ChromaPath, "chroma.sqlite3"))
	return s
}

// newSpecimen takes a sound snapshot of a small store.
func newSpecimen(t *testing.T) *specimen {
	t.Helper()
	s := newSmallStore(t)
	return &specimen{t: t, stamp: s.create().Stamp, Options: backup.Options{BackupDir: s.BackupDir}}
}

// copy gives a specimen that can be damaged without harm to s. It is also a
// backup directory that was copied away from where it was made.
func (s *specimen) copy(t *testing.T) *specimen {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copied")
	require.NoError(t, os.CopyFS(dir, os.DirFS(s.BackupDir)))
	c := *s
	c.t, c.BackupDir = t, dir
	return &c
}

// path gives the place of a file in the snapshot.
func (s *specimen) path(name string) string {
	return filepath.Join(s.BackupDir, "snapshots", s.stamp, filepath.FromSlash(name))
}

func (s *specimen) read(name string) []byte {
	s.t.Helper()
	data, err := os.ReadFile(s.path(name))
	require.NoError(s.t, err)
	return data
}

func (s *specimen) write(name string, data []byte) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(s.path(name), data, 0o600))
}

// add makes a file and the directories it needs.
func (s *specimen) add(name string, data []byte) {
	s.t.Helper()
	require.NoError(s.t, os.MkdirAll(filepath.Dir(s.path(name)), 0o755))
	s.write(name, data)
}

func (s *specimen) remove(name string) {
	s.t.Helper()
	require.NoError(s.t, os.RemoveAll(s.path(name)))
}

// flip changes one bit of a file.
func (s *specimen) flip(name string, offset int) {
	s.t.Helper()
	data := s.read(name)
	data[offset] ^= 0x10
	s.write(name, data)
}

// aside moves a file out of the backup directory and gives its new place.
func (s *specimen) aside(name string) string {
	s.t.Helper()
	to := filepath.Join(s.t.TempDir(), "aside")
	require.NoError(s.t, os.Rename(s.path(name), to))
	return to
}

// link replaces a file by a symbolic link to target.
func (s *specimen) link(name, target string) {
	s.t.Helper()
	s.remove(name)
	if err := os.Symlink(target, s.path(name)); err != nil {
		s.t.Skipf("no symbolic links here: %v", err)
	}
}

// files lists all files of the snapshot, sorted, without the manifest.
func (s *specimen) files() []string {
	s.t.Helper()
	var names []string
	root := os.DirFS(s.path(""))
	require.NoError(s.t, fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && name != manifestFile {
			names = append(names, name)
		}
		return err
	}))
	slices.Sort(names)
	return names
}

// sumLine is a line of the manifest, for names that need no escape.
func sumLine(data []byte, name string) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]) + "  " + name + "\n"
}

// reseal writes the manifest anew, so that only other checks can find what was
// done to the files.
func (s *specimen) reseal() {
	s.t.Helper()
	var b strings.Builder
	for _, name := range s.files() {
		b.WriteString(sumLine(s.read(name), name))
	}
	s.write(manifestFile, []byte(b.String()))
}

// fields gives the metadata's fields, as they stand in the file.
func (s *specimen) fields() map[string]json.RawMessage {
	s.t.Helper()
	var fields map[string]json.RawMessage
	require.NoError(s.t, json.Unmarshal(s.read(metadataFile), &fields))
	return fields
}

func (s *specimen) setFields(fields map[string]json.RawMessage) {
	s.t.Helper()
	data, err := json.MarshalIndent(fields, "", "  ")
	require.NoError(s.t, err)
	s.write(metadataFile, data)
}

// set changes fields of the metadata; nil removes one.
func (s *specimen) set(changes map[string]any) {
	s.t.Helper()
	fields := s.fields()
	for name, value := range changes {
		if value == nil {
			delete(fields, name)
			continue
		}
		raw, err := json.Marshal(value)
		require.NoError(s.t, err)
		fields[name] = raw
	}
	s.setFields(fields)
}

// root is the snapshot's directory as its metadata record it.
func (s *specimen) root() string {
	s.t.Helper()
	var root string
	require.NoError(s.t, json.Unmarshal(s.fields()["backup_root"], &root))
	return root
}

// makePython turns the snapshot into one of the Python module's form.
func (s *specimen) makePython() {
	s.t.Helper()
	s.remove(manifestFile)
	s.set(map[string]any{"format_version": nil, "stamp": nil})
}

// tree describes everything below the backup directory in all that validating
// must leave alone.
func (s *specimen) tree() map[string]string {
	s.t.Helper()
	tree := make(map[string]string)
	require.NoError(s.t, filepath.WalkDir(s.BackupDir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		tree[name] = fmt.Sprint(info.Mode(), info.Size(), info.ModTime(), changeTime(info))
		return nil
	}))
	return tree
}

// validate validates the snapshot, and checks what is true of every call that
// comes to a verdict.
func (s *specimen) validate() *backup.Report {
	s.t.Helper()
	before := s.tree()
	report, err := backup.ValidateBackup(context.Background(), s.Options, s.stamp)
	require.Equal(s.t, before, s.tree(), "validating changed the snapshot")
	if err != nil {
		require.ErrorIs(s.t, err, backup.ErrInvalidBackup, "there is no verdict")
	}
	requireReport(s.t, report, err)
	return report
}

// requireReport checks that a report agrees with itself, with its error and
// with its JSON form.
func requireReport(t *testing.T, r *backup.Report, err error) {
	t.Helper()
	require.NotNil(t, r)
	require.Equal(t, err == nil, r.Valid)
	require.Equal(t, r.Valid, len(r.Problems) == 0)
	if r.Valid {
		require.True(t, r.Exists)
		require.True(t, r.DBOK)
		require.NotNil(t, r.Metadata)
		require.False(t, r.RegistryOK != nil && !*r.RegistryOK)
		require.False(t, r.ChromaOK != nil && !*r.ChromaOK)
	}
	require.LessOrEqual(t, len(r.Problems), 1001)

	data, err := json.MarshalIndent(r, "", "  ")
	require.NoError(t, err)
	require.NotContains(t, string(data), "\x7f")
	require.Equal(t, -1, bytes.IndexFunc(data, func(c rune) bool { return c > '~' }), "the JSON is not ASCII")
	var got map[string]any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber() // foreign metadata may have numbers that no float64 holds
	require.NoError(t, dec.Decode(&got))
	require.ElementsMatch(t, []string{"stamp", "path", "exists", "db_ok", "registry_ok", "chroma_ok", "errors", "metadata", "valid"},
		slices.Collect(maps.Keys(got)))
	require.Equal(t, r.Exists, got["exists"])
	require.Equal(t, r.DBOK, got["db_ok"])
	require.Equal(t, r.Valid, got["valid"])
	for name, flag := range map[string]*bool{"registry_ok": r.RegistryOK, "chroma_ok": r.ChromaOK} {
		if flag == nil {
			require.Nil(t, got[name])
		} else {
			require.Equal(t, *flag, got[name])
		}
	}
	texts := got["errors"].([]any)
	require.Len(t, texts, len(r.Problems))
	for i, p := range r.Problems {
		require.True(t, strings.HasPrefix(texts[i].(string), string(p.Code)), "%q is not of code %s", texts[i], p.Code)
		require.NotContains(t, p.Detail, "\n")
	}
}

// brief gives problems as "code" or "code: path", sorted, each once.
func brief(problems []backup.Problem) []string {
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = string(p.Code)
		if p.Path != "" {
			texts[i] += ": " + p.Path
		}
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}

// requireProblems validates and checks that exactly these problems are found,
// given as brief gives them.
func (s *specimen) requireProblems(want ...string) *backup.Report {
	s.t.Helper()
	report := s.validate()
	if want == nil {
		want = []string{}
	}
	slices.Sort(want)
	require.Equal(s.t, want, brief(report.Problems), "%v", report.Problems)
	return report
}

// allCodes reads the names of all codes from the source.
func allCodes(t *testing.T) map[string]backup.Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "problem.go", nil, 0)
	require.NoError(t, err)
	codes := make(map[string]backup.Code)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Code" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			codes[spec.Names[0].Name] = backup.Code(text)
		}
		return true
	})
	require.NotEmpty(t, codes)
	return codes
}

// Every code comes from a real snapshot that was damaged, alone or together
// with what the same damage must cause; and no code is without a case.
func TestValidateReportsEachCode(t *testing.T) {
	cases := map[backup.Code]struct {
		damage func(s *specimen)
		want   []string // nil: the code alone
	}{
		backup.CodeStampInvalid:    {damage: func(s *specimen) { s.stamp = "../" + s.stamp }},
		backup.CodeSnapshotMissing: {damage: func(s *specimen) { s.stamp = "20000101T000000Z" }},
		backup.CodeMetadataMissing: {
			damage: func(s *specimen) { s.remove(metadataFile); s.reseal() },
		},
		backup.CodeMetadataInvalidJSON: {
			damage: func(s *specimen) { s.write(metadataFile, []byte("{")); s.reseal() },
		},
		backup.CodeMetadataNotFile: {
			damage: func(s *specimen) { s.link(metadataFile, s.aside(metadataFile)) },
			want:   []string{"metadata_not_a_file", "file_not_regular: " + metadataFile},
		},
		backup.CodeMetadataTooLarge: {
			damage: func(s *specimen) {
				s.write(metadataFile, append(s.read(metadataFile), bytes.Repeat([]byte(" "), 1<<20)...))
				s.reseal()
			},
		},
		backup.CodeMetadataShape: {
			damage: func(s *specimen) { s.set(map[string]any{"db_size_bytes": "many"}); s.reseal() },
		},
		backup.CodeFormatVersion: {
			damage: func(s *specimen) { s.set(map[string]any{"format_version": 2}); s.reseal() },
		},
		backup.CodePathOutside: {
			damage: func(s *specimen) { s.set(map[string]any{"db_snapshot_path": "/etc/passwd"}); s.reseal() },
		},
		backup.CodeManifestMissing: {damage: func(s *specimen) { s.remove(manifestFile) }},
		backup.CodeManifestNotFile: {
			damage: func(s *specimen) { s.link(manifestFile, s.aside(manifestFile)) },
		},
		backup.CodeManifestMalformed: {
			damage: func(s *specimen) { s.write(manifestFile, []byte("all is well\n")) },
		},
		backup.CodeFileMissing: {
			damage: func(s *specimen) {
				s.add("chroma/extra", nil)
				s.set(map[string]any{"chroma_snapshot_files": 10})
				s.reseal()
				s.remove("chroma/extra")
				s.set(map[string]any{"chroma_snapshot_files": 9})
			},
			want: []string{"file_missing: chroma/extra", "file_changed: " + metadataFile},
		},
		backup.CodeFileChanged: {
			damage: func(s *specimen) { s.write(registryFile, []byte("{}")) },
			want:   []string{"file_changed: " + registryFile},
		},
		backup.CodeFileUnknown: {
			damage: func(s *specimen) { s.add("notes.txt", []byte("hello")) },
			want:   []string{"file_unknown: notes.txt"},
		},
		backup.CodeFileNotRegular: {
			damage: func(s *specimen) { s.link(registryFile, s.aside(registryFile)) },
			want:   []string{"file_not_regular: " + registryFile},
		},
		backup.CodeDBMissing: {
			damage: func(s *specimen) { s.remove(dbFile) },
			want:   []string{"db_snapshot_missing", "file_missing: " + dbFile, "file_unknown: db/"},
		},
		backup.CodeDBIntegrity: {
			damage: func(s *specimen) { loseIndexEntries(s, 1); s.reseal() },
			want:   []string{"db_integrity_check_failed: " + dbFile},
		},
		backup.CodeDBOpen: {
			damage: func(s *specimen) {
				s.write(dbFile, bytes.Repeat([]byte("x"), len(s.read(dbFile))))
				s.reseal()
			},
			want: []string{"db_open_failed: " + dbFile},
		},
		backup.CodeDBSize: {
			damage: func(s *specimen) { s.set(map[string]any{"db_size_bytes": 1}); s.reseal() },
			want:   []string{"db_size_mismatch: " + dbFile},
		},
		backup.CodeDBSidecar: {
			damage: func(s *specimen) { s.add(dbFile+"-wal", []byte("x")); s.reseal() },
			want:   []string{"db_sidecar_present: " + dbFile + "-wal"},
		},
		backup.CodeDBForm: {
			damage: func(s *specimen) { setJournalForm(s, 2); s.reseal() },
			want:   []string{"db_not_in_rollback_form: " + dbFile},
		},
		backup.CodeRegistryMissing: {
			damage: func(s *specimen) { s.remove(registryFile); s.reseal() },
		},
		backup.CodeRegistryInvalidJSON: {
			damage: func(s *specimen) { s.write(registryFile, []byte("{")); s.reseal() },
			want:   []string{"registry_invalid_json: " + registryFile},
		},
		backup.CodeChromaMissing: {
			damage: func(s *specimen) { s.remove("chroma"); s.reseal() },
		},
		backup.CodeChromaFiles: {
			damage: func(s *specimen) { s.add("chroma/extra", nil); s.reseal() },
			want:   []string{"chroma_files_mismatch: chroma"},
		},
		backup.CodeChromaBytes: {
			damage: func(s *specimen) {
				name := s.files()[2] // one of a segment's files
				s.write(name, append(s.read(name), 0))
				s.reseal()
			},
			want: []string{"chroma_bytes_mismatch: chroma"},
		},
		backup.CodeChromaDBCheck: {
			damage: func(s *specimen) { ruinPages(s, chromaFile); s.reseal() },
			want:   []string{"chroma_db_check_failed: " + chromaFile},
		},
		backup.CodeTooManyProblems: {
			damage: func(s *specimen) {
				require.NoError(s.t, os.Mkdir(s.path("more"), 0o755))
				for i := range 1001 {
					s.write(fmt.Sprintf("more/%04d", i), nil)
				}
			},
		},
	}
	for name, code := range allCodes(t) {
		require.Contains(t, cases, code, "nothing produces %s", name)
	}
	doc, err := os.ReadFile(filepath.Join("docs", "format.md"))
	require.NoError(t, err)

	base := newSpecimen(t)
	base.requireProblems()
	for code, test := range cases {
		t.Run(string(code), func(t *testing.T) {
			require.Contains(t, string(doc), "\n| `"+string(code)+"` |", "the format's table lacks it")
			s := base.copy(t)
			test.damage(s)
			switch {
			case code == backup.CodeTooManyProblems:
				report := s.validate()
				require.Len(t, report.Problems, 1001)
				require.Equal(t, backup.Problem{Code: code}, report.Problems[1000])
				require.Equal(t, "file_unknown: more/0999", report.Problems[999].String())
			case test.want == nil:
				s.requireProblems(string(code))
			default:
				s.requireProblems(test.want...)
			}
		})
	}
}

// loseIndexEntries puts n rows into the database copy that its index knows
// nothing of.
func loseIndexEntries(s *specimen, n int) {
	s.t.Helper()
	loseIndexEntriesIn(s.t, s.path(dbFile), n)
	s.set(map[string]any{"db_size_bytes": len(s.read(dbFile))})
}

func loseIndexEntriesIn(t *testing.T, file string, n int) {
	t.Helper()
	const index = "transfer_amount"
	var rootpage int
	var statement string
	inDatabase(t, file, func(db *sql.DB) {
		require.NoError(t, db.QueryRow("SELECT rootpage, sql FROM sqlite_schema WHERE name = ?", index).Scan(&rootpage, &statement))
		_, err := db.Exec("PRAGMA writable_schema = on; DELETE FROM sqlite_schema WHERE name = '" + index + "'")
		require.NoError(t, err)
	})
	inDatabase(t, file, func(db *sql.DB) {
		_, err := db.Exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO transfer (amount, note) SELECT i, 'x' FROM n`, n)
		require.NoError(t, err)
		_, err = db.Exec("PRAGMA writable_schema = on")
		require.NoError(t, err)
		_, err = db.Exec("INSERT INTO sqlite_schema VALUES ('index', ?, 'transfer', ?, ?)", index, rootpage, statement)
		require.NoError(t, err)
	})
}

// inDatabase opens a database, which must have no WAL, and closes it again.
func inDatabase(t *testing.T, file string, do func(db *sql.DB)) {
	t.Helper()
	db := openDB(t, file)
	do(db)
	require.NoError(t, db.Close())
}

// setJournalForm sets the header's two bytes that tell whether a database is
// in rollback-journal (1) or WAL mode (2).
func setJournalForm(s *specimen, form byte) {
	s.t.Helper()
	data := s.read(dbFile)
	data[18], data[19] = form, form
	s.write(dbFile, data)
}

// ruinPages overwrites everything but the header page of a database.
func ruinPages(s *specimen, name string) {
	s.t.Helper()
	data := s.read(name)
	for i := 4096; i < len(data); i++ {
		data[i] = 0xee
	}
	s.write(name, data)
}

// A kind of damage that can be done to any file. ok is false if it would
// change nothing.
type damage struct {
	name string
	do   func(s *specimen, file string) (ok bool)
}

// contentDamages leave a regular file of the same name.
var contentDamages = []damage{
	{"first byte", func(s *specimen, file string) bool { return flipAt(s, file, 0, 1) }},
	{"header", func(s *specimen, file string) bool { return flipAt(s, file, 1, 50) }},
	{"body", func(s *specimen, file string) bool { return flipAt(s, file, 1, 2) }},
	{"last byte", func(s *specimen, file string) bool { return flipAt(s, file, 1, 1) }},
	{"emptied", func(s *specimen, file string) bool {
		some := len(s.read(file)) > 0
		s.write(file, nil)
		return some
	}},
	{"truncated by a byte", func(s *specimen, file string) bool {
		data := s.read(file)
		if len(data) == 0 {
			return false
		}
		s.write(file, data[:len(data)-1])
		return true
	}},
	{"truncated to half", func(s *specimen, file string) bool {
		data := s.read(file)
		s.write(file, data[:len(data)/2])
		return len(data) > 0
	}},
	{"extended by a NUL", func(s *specimen, file string) bool {
		s.write(file, append(s.read(file), 0))
		return true
	}},
	{"extended by a space", func(s *specimen, file string) bool {
		s.write(file, append(s.read(file), ' '))
		return true
	}},
	{"extended by itself", func(s *specimen, file string) bool {
		data := s.read(file)
		s.write(file, slices.Concat(data, data))
		return len(data) > 0
	}},
	{"all zero", func(s *specimen, file string) bool {
		data := s.read(file)
		s.write(file, make([]byte, len(data)))
		return len(data) > 0
	}},
}

// flipAt flips a bit in the part num/den of a file.
func flipAt(s *specimen, file string, num, den int) bool {
	size := len(s.read(file))
	if size == 0 {
		return false
	}
	s.flip(file, min(size*num/den, size-1))
	return true
}

// kindDamages put something else than a regular file in its place, if
// anything. What it holds is always the same bytes.
var kindDamages = []damage{
	{"removed", func(s *specimen, file string) bool { s.remove(file); return true }},
	{"link to an identical copy outside", func(s *specimen, file string) bool {
		s.link(file, s.aside(file))
		return true
	}},
	{"link to an identical copy inside", func(s *specimen, file string) bool {
		require.NoError(s.t, os.Rename(s.path(file), s.path("chroma/identical")))
		s.link(file, s.path("chroma/identical"))
		return true
	}},
	{"link to itself", func(s *specimen, file string) bool { s.link(file, path.Base(file)); return true }},
	{"link to nothing", func(s *specimen, file string) bool { s.link(file, "nothing"); return true }},
	{"link to a directory", func(s *specimen, file string) bool { s.link(file, s.t.TempDir()); return true }},
	{"empty directory", func(s *specimen, file string) bool {
		s.remove(file)
		require.NoError(s.t, os.Mkdir(s.path(file), 0o755))
		return true
	}},
	{"directory with the file", func(s *specimen, file string) bool {
		data := s.read(file)
		s.remove(file)
		s.add(file+"/"+path.Base(file), data)
		return true
	}},
}

// partOf gives the report's flag for a file.
func partOf(r *backup.Report, file string) *bool {
	switch dir, _, _ := strings.Cut(file, "/"); dir {
	case "db":
		return &r.DBOK
	case "config":
		return r.RegistryOK
	case "chroma":
		return r.ChromaOK
	}
	return nil
}

// Every file of a snapshot, damaged in every way: each damage is found, as what
// it is, and is blamed on nothing else.
func TestValidateFindsAnyDamageToAnyFile(t *testing.T) {
	base := newSpecimen(t)
	base.requireProblems()
	files := append(base.files(), manifestFile)
	require.Len(t, files, 13)
	tried := 0
	check := func(t *testing.T, file string, d damage, want func(s *specimen) []string) {
		s := *base
		s.t = t
		good := s.read(file)
		defer func() {
			s.remove("chroma/identical")
			s.remove(file)
			s.write(file, good)
		}()
		if !d.do(&s, file) {
			return
		}
		tried++
		report := s.validate()
		require.False(t, report.Valid)
		found := brief(report.Problems)
		require.Subset(t, found, want(&s))
		if ok := partOf(report, file); ok != nil {
			require.False(t, *ok, "the part passes")
		}
		for _, p := range report.Problems {
			// What the manifest says of other files is lost with it.
			if file == manifestFile {
				break
			}
			require.True(t, p.Path == "" || p.Path == path.Dir(file)+"/" || strings.HasPrefix(p.Path, file) ||
				p.Path == "chroma/identical" || p.Path == "chroma" ||
				file == metadataFile && p.Code == backup.CodeDBSize, "%s is blamed for %s of %s", p, d.name, file)
		}
	}
	for _, file := range files {
		t.Run(path.Base(path.Dir(file))+"/"+path.Base(file), func(t *testing.T) {
			for _, d := range contentDamages {
				t.Run(d.name, func(t *testing.T) {
					check(t, file, d, func(*specimen) []string {
						if file == manifestFile {
							return nil // see TestValidateFindsEveryFlippedByte
						}
						return []string{"file_changed: " + file}
					})
				})
			}
			for _, d := range append(kindDamages, systemDamages...) {
				t.Run(d.name, func(t *testing.T) {
					check(t, file, d, func(s *specimen) []string {
						info, err := os.Lstat(s.path(file))
						gone := errors.Is(err, fs.ErrNotExist)
						isDir := err == nil && info.IsDir()
						var want []string
						switch {
						case file == metadataFile && gone:
							want = append(want, "metadata_missing")
						case file == metadataFile:
							want = append(want, "metadata_not_a_file")
						case file == manifestFile && gone:
							return []string{"manifest_missing"}
						case file == manifestFile:
							return []string{"manifest_not_a_file"}
						case file == dbFile && gone:
							want = append(want, "db_snapshot_missing")
						case file == dbFile:
							want = append(want, "db_open_failed: "+file)
						case file == registryFile && gone:
							want = append(want, "registry_snapshot_missing")
						}
						if gone || isDir {
							return append(want, "file_missing: "+file)
						}
						return append(want, "file_not_regular: "+file)
					})
				})
			}
		})
	}
	base.requireProblems()
	t.Logf("%d damages tried, all found", tried)
	require.Greater(t, tried, 13*15)
}

// The two files that describe the others, with each of their bytes changed in
// turn.
func TestValidateFindsEveryFlippedByte(t *testing.T) {
	store := newBareStore(t)
	store.IncludeChroma = false
	base := &specimen{t: t, stamp: store.create().Stamp, Options: backup.Options{BackupDir: store.BackupDir}}
	base.requireProblems()
	step := 1
	if testing.Short() {
		step = 17
	}
	for _, file := range []string{metadataFile, manifestFile} {
		good := base.read(file)
		for offset := 0; offset < len(good); offset += step {
			base.flip(file, offset)
			report, err := backup.ValidateBackup(t.Context(), base.Options, base.stamp)
			require.ErrorIs(t, err, backup.ErrInvalidBackup, "%s at %d", file, offset)
			found := brief(report.Problems)
			if file == metadataFile {
				require.Contains(t, found, "file_changed: "+file)
			} else {
				for _, p := range report.Problems {
					require.Contains(t, []backup.Code{backup.CodeManifestMalformed, backup.CodeFileChanged,
						backup.CodeFileMissing, backup.CodeFileUnknown}, p.Code, "%s at %d", file, offset)
				}
			}
			base.write(file, good)
		}
	}
	base.requireProblems()
}

// Any two files of a snapshot, exchanged.
func TestValidateFindsSwappedFiles(t *testing.T) {
	base := newSpecimen(t)
	files := append(base.files(), manifestFile)
	tried := 0
	for i, a := range files {
		for _, b := range files[i+1:] {
			before, after := base.read(a), base.read(b)
			base.write(a, after)
			base.write(b, before)
			tried++
			switch {
			case bytes.Equal(before, after):
				base.requireProblems()
			case b == manifestFile:
				require.Contains(t, brief(base.validate().Problems), "manifest_malformed", "%s and %s", a, b)
			default:
				require.Subset(t, brief(base.validate().Problems), []string{"file_changed: " + a, "file_changed: " + b})
			}
			base.write(a, before)
			base.write(b, after)
		}
	}
	base.requireProblems()
	require.Equal(t, 13*12/2, tried)
}

// What was put into a snapshot, anywhere.
func TestValidateFindsWhatWasAdded(t *testing.T) {
	base := newSpecimen(t)
	segment := path.Dir(base.files()[1])
	for _, dir := range []string{".", "db", "config", "chroma", segment} {
		for name, test := range map[string]struct {
			add  func(s *specimen, name string)
			want func(name string) []string
		}{
			"file":       {func(s *specimen, name string) { s.add(name, []byte("x")) }, nil},
			"empty file": {func(s *specimen, name string) { s.add(name, nil) }, nil},
			"hidden file": {
				func(s *specimen, name string) { s.add(path.Join(path.Dir(name), ".hidden"), nil) },
				func(name string) []string { return []string{"file_unknown: " + path.Join(path.Dir(name), ".hidden")} },
			},
			"file in a directory": {
				func(s *specimen, name string) { s.add(name+"/deep/x", nil) },
				func(name string) []string { return []string{"file_unknown: " + name + "/deep/x"} },
			},
			"second manifest": {
				func(s *specimen, name string) { s.add(name+"/SHA256SUMS", s.read(manifestFile)) },
				func(name string) []string { return []string{"file_unknown: " + name + "/SHA256SUMS"} },
			},
			"empty directory": {
				func(s *specimen, name string) { require.NoError(s.t, os.Mkdir(s.path(name), 0o755)) },
				func(name string) []string {
					if strings.HasPrefix(name, "chroma/") {
						return []string{} // documented: the manifest does not cover them
					}
					return []string{"file_unknown: " + name + "/"}
				},
			},
			"link to a file of the snapshot": {
				func(s *specimen, name string) { s.link(name, s.path(dbFile)) },
				func(name string) []string { return []string{"file_unknown: " + name, "file_not_regular: " + name} },
			},
			"link to the snapshot": {
				func(s *specimen, name string) { s.link(name, s.path("")) },
				func(name string) []string { return []string{"file_unknown: " + name, "file_not_regular: " + name} },
			},
			"link to the root": {
				func(s *specimen, name string) { s.link(name, "/") },
				func(name string) []string { return []string{"file_unknown: " + name, "file_not_regular: " + name} },
			},
		} {
			t.Run(path.Base(dir)+"/"+name, func(t *testing.T) {
				s := base.copy(t)
				file := path.Join(dir, "extra")
				test.add(s, file)
				want := []string{"file_unknown: " + file}
				if test.want != nil {
					want = test.want(file)
				}
				if strings.HasPrefix(file, "chroma/") && len(want) > 0 {
					want = append(want, "chroma_files_mismatch: chroma")
				}
				found := brief(s.validate().Problems)
				// The bytes of a link or a file count too.
				found = slices.DeleteFunc(found, func(p string) bool { return p == "chroma_bytes_mismatch: chroma" })
				require.ElementsMatch(t, want, found)
			})
		}
	}
}
