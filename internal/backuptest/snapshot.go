package backuptest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// Files of a snapshot of a Store, as they stand in its manifest.
const (
	MetadataFile = "backup-metadata.json"
	ManifestFile = "SHA256SUMS"
	DBFile       = "db/atocore.db"
	RegistryFile = "config/project-registry.json"
	ChromaFile   = "chroma/chroma.sqlite3"
)

// A Snapshot is a snapshot that a test damages. Names of its files are relative
// to it and have slashes.
type Snapshot struct {
	T *testing.T
	// Options configure every call; only BackupDir is set.
	backup.Options
	Stamp string
}

// NewSnapshot takes a snapshot of a small store, in a backup directory of its
// own.
func NewSnapshot(t *testing.T) *Snapshot {
	t.Helper()
	return NewSmallStore(t).CreateSnapshot()
}

// With returns the same snapshot for a subtest.
func (s *Snapshot) With(t *testing.T) *Snapshot {
	c := *s
	c.T = t
	return &c
}

// Named returns the snapshot of another stamp in the same backup directory,
// whether it exists or not.
func (s *Snapshot) Named(t *testing.T, stamp string) *Snapshot {
	c := s.With(t)
	c.Stamp = stamp
	return c
}

// Copy copies the whole backup directory, so that the test t can damage the
// copy without harm to s.
func (s *Snapshot) Copy(t *testing.T) *Snapshot {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copied")
	require.NoError(t, os.CopyFS(dir, os.DirFS(s.BackupDir)))
	c := s.With(t)
	c.BackupDir = dir
	return c
}

// Path returns the path of a file; that of the name "" is the snapshot's.
func (s *Snapshot) Path(name string) string {
	return filepath.Join(s.BackupDir, "snapshots", s.Stamp, filepath.FromSlash(name))
}

// Read returns the content of a file.
func (s *Snapshot) Read(name string) []byte {
	s.T.Helper()
	data, err := os.ReadFile(s.Path(name))
	require.NoError(s.T, err)
	return data
}

// Write creates a file or replaces its content.
func (s *Snapshot) Write(name string, data []byte) {
	s.T.Helper()
	require.NoError(s.T, os.WriteFile(s.Path(name), data, 0o600))
}

// Add is Write that creates the directories which the file needs.
func (s *Snapshot) Add(name string, data []byte) {
	s.T.Helper()
	require.NoError(s.T, os.MkdirAll(filepath.Dir(s.Path(name)), 0o755))
	s.Write(name, data)
}

// Remove removes a file or a directory with everything in it.
func (s *Snapshot) Remove(name string) {
	s.T.Helper()
	require.NoError(s.T, os.RemoveAll(s.Path(name)))
}

// Flip changes one bit of a file.
func (s *Snapshot) Flip(name string, offset int) {
	s.T.Helper()
	data := s.Read(name)
	data[offset] ^= 0x10
	s.Write(name, data)
}

// MoveOut moves a file out of the backup directory and returns its new path.
func (s *Snapshot) MoveOut(name string) string {
	s.T.Helper()
	to := filepath.Join(s.T.TempDir(), "moved-out")
	require.NoError(s.T, os.Rename(s.Path(name), to))
	return to
}

// Link replaces a file by a symbolic link to target.
func (s *Snapshot) Link(name, target string) {
	s.T.Helper()
	s.Remove(name)
	if err := os.Symlink(target, s.Path(name)); err != nil {
		s.T.Skipf("no symbolic links here: %v", err)
	}
}

// Files returns the names of all regular files but the manifest, sorted.
func (s *Snapshot) Files() []string {
	s.T.Helper()
	var names []string
	root := os.DirFS(s.Path(""))
	require.NoError(s.T, fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && name != ManifestFile {
			names = append(names, name)
		}
		return err
	}))
	slices.Sort(names)
	return names
}

// ManifestLine returns the line of the manifest for a file, in the form of GNU
// sha256sum.
func ManifestLine(data []byte, name string) string {
	sum := sha256.Sum256(data)
	line := hex.EncodeToString(sum[:]) + "  "
	escaped := strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(name)
	if escaped != name {
		line = `\` + line
	}
	return line + escaped + "\n"
}

// Manifest returns the manifest that the files should have.
func (s *Snapshot) Manifest() string {
	s.T.Helper()
	var b strings.Builder
	for _, name := range s.Files() {
		b.WriteString(ManifestLine(s.Read(name), name))
	}
	return b.String()
}

// Reseal writes the manifest anew, so that only other checks can find what was
// done to the files.
func (s *Snapshot) Reseal() {
	s.T.Helper()
	s.Write(ManifestFile, []byte(s.Manifest()))
}

// Fields returns the values in the metadata as they stand in the file.
func (s *Snapshot) Fields() map[string]json.RawMessage {
	s.T.Helper()
	var fields map[string]json.RawMessage
	require.NoError(s.T, json.Unmarshal(s.Read(MetadataFile), &fields))
	return fields
}

// SetFields writes metadata of these fields only.
func (s *Snapshot) SetFields(fields map[string]json.RawMessage) {
	s.T.Helper()
	data, err := json.MarshalIndent(fields, "", "  ")
	require.NoError(s.T, err)
	s.Write(MetadataFile, data)
}

// Set changes fields of the metadata; the value nil removes one.
func (s *Snapshot) Set(changes map[string]any) {
	s.T.Helper()
	fields := s.Fields()
	for name, value := range changes {
		if value == nil {
			delete(fields, name)
			continue
		}
		raw, err := json.Marshal(value)
		require.NoError(s.T, err)
		fields[name] = raw
	}
	s.SetFields(fields)
}

// RecordedRoot returns the path of the snapshot that its metadata record.
func (s *Snapshot) RecordedRoot() string {
	s.T.Helper()
	var root string
	require.NoError(s.T, json.Unmarshal(s.Fields()["backup_root"], &root))
	return root
}

// MakePython turns the snapshot into one in the form of the Python module,
// which has no manifest.
func (s *Snapshot) MakePython() {
	s.T.Helper()
	s.Remove(ManifestFile)
	s.Set(map[string]any{"format_version": nil, "stamp": nil})
}

// InDatabase calls do with the database copy, writes its new size into the
// metadata and reseals the snapshot.
func (s *Snapshot) InDatabase(do func(db *sql.DB)) {
	s.T.Helper()
	InDatabase(s.T, s.Path(DBFile), do)
	s.SetDBSize()
	s.Reseal()
}

// SetDBSize records the size that the database copy has now.
func (s *Snapshot) SetDBSize() {
	s.T.Helper()
	s.Set(map[string]any{"db_size_bytes": len(s.Read(DBFile))})
}

// SetJournalForm sets the two bytes in the header of the database copy which
// say whether it is in the form of a rollback-journal database (1) or of a WAL
// database (2). See https://www.sqlite.org/fileformat.html#file_format_version_numbers.
func (s *Snapshot) SetJournalForm(form byte) {
	s.T.Helper()
	data := s.Read(DBFile)
	data[18], data[19] = form, form
	s.Write(DBFile, data)
}

// RuinPages overwrites everything but the header page of a database.
func (s *Snapshot) RuinPages(name string) {
	s.T.Helper()
	data := s.Read(name)
	for i := 4096; i < len(data); i++ {
		data[i] = 0xee
	}
	s.Write(name, data)
}

// LoseIndexEntries adds n rows to the database copy that are missing from its
// index.
func (s *Snapshot) LoseIndexEntries(n int) {
	s.T.Helper()
	LoseIndexEntries(s.T, s.Path(DBFile), n)
	s.SetDBSize()
}

// LoseIndexEntries adds n rows to a database of MakeDatabase that are missing
// from its index.
func LoseIndexEntries(t *testing.T, path string, n int) {
	t.Helper()
	WithoutIndex(t, path, "transfer_amount", func(db *sql.DB) {
		_, err := db.Exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO transfer (amount, note) SELECT i, 'x' FROM n`, n)
		require.NoError(t, err)
	})
}

// WithoutIndex calls do with a database whose schema lacks an index meanwhile.
func WithoutIndex(t *testing.T, path, index string, do func(db *sql.DB)) {
	t.Helper()
	var row [4]any
	InDatabase(t, path, func(db *sql.DB) {
		require.NoError(t, db.QueryRow("SELECT name, tbl_name, rootpage, sql FROM sqlite_schema WHERE name = ?", index).
			Scan(&row[0], &row[1], &row[2], &row[3]))
		_, err := db.Exec("PRAGMA writable_schema = on; DELETE FROM sqlite_schema WHERE name = ?", index)
		require.NoError(t, err)
	})
	InDatabase(t, path, func(db *sql.DB) {
		do(db)
		_, err := db.Exec("PRAGMA writable_schema = on")
		require.NoError(t, err)
		_, err = db.Exec("INSERT INTO sqlite_schema VALUES ('index', ?, ?, ?, ?)", row[:]...)
		require.NoError(t, err)
	})
}

// State describes everything below the backup directory, by path, in all that
// validating must leave alone.
func (s *Snapshot) State() map[string]string {
	s.T.Helper()
	state := make(map[string]string)
	require.NoError(s.T, filepath.WalkDir(s.BackupDir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		state[name] = fmt.Sprint(info.Mode(), info.Size(), info.ModTime(), changeTime(s.T, name))
		return nil
	}))
	return state
}

// Validate validates the snapshot. Whatever the verdict, the call must change
// nothing and its report must be consistent.
func (s *Snapshot) Validate() *backup.Report {
	s.T.Helper()
	before := s.State()
	report, err := backup.ValidateBackup(context.Background(), s.Options, s.Stamp)
	require.Equal(s.T, before, s.State(), "validating changed the snapshot")
	if err != nil {
		require.ErrorIs(s.T, err, backup.ErrInvalidBackup, "there is no verdict")
	}
	RequireReport(s.T, report, err)
	return report
}

// RequireProblems validates the snapshot and checks that exactly these problems
// are found, in the form of Brief.
func (s *Snapshot) RequireProblems(want ...string) *backup.Report {
	s.T.Helper()
	report := s.Validate()
	if want == nil {
		want = []string{}
	}
	slices.Sort(want)
	require.Equal(s.T, want, Brief(report.Problems), "%v", report.Problems)
	return report
}

// Brief returns the problems as "code" or "code: path", sorted and without
// repetitions.
func Brief(problems []backup.Problem) []string {
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

// RequireReport checks that a report agrees with itself, with the error that
// came with it and with its JSON form.
func RequireReport(t *testing.T, r *backup.Report, err error) {
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
	dec.UseNumber() // foreign metadata may have numbers that do not fit in a float64
	require.NoError(t, dec.Decode(&got))
	require.ElementsMatch(t, []string{"stamp", "path", "exists", "db_ok", "registry_ok", "chroma_ok", "errors", "metadata", "valid",
		"intact", "findings", "notes", "details", "cost"}, slices.Collect(maps.Keys(got)))
	require.Equal(t, r.Exists, got["exists"])
	require.Equal(t, r.DBOK, got["db_ok"])
	require.Equal(t, r.Valid, got["valid"])
	require.Equal(t, r.Intact, got["intact"])
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
	requireThreeWords(t, r, got)
	requireError(t, r, err)

	var back backup.Report
	require.NoError(t, json.Unmarshal(data, &back))
	require.Equal(t, *r, back, "the JSON is not read back as it was")
}

// requireThreeWords checks that damage, findings and notes are told apart: a
// snapshot with damage is not intact and has no findings, one that is intact has
// nothing but findings.
func requireThreeWords(t *testing.T, r *backup.Report, got map[string]any) {
	t.Helper()
	findings := []any{}
	for i, p := range r.Problems {
		if p.Finding {
			findings = append(findings, got["errors"].([]any)[i])
		}
	}
	require.Equal(t, findings, got["findings"])
	require.Contains(t, []int{0, len(r.Problems)}, len(findings), "damage and findings at once: %v", r.Problems)
	if len(findings) < len(r.Problems) {
		require.False(t, r.Intact, "%v", r.Problems)
	}
	if r.Intact {
		require.True(t, r.Exists)
		require.NotNil(t, r.Metadata)
	}
	if r.Exists && len(findings) == len(r.Problems) {
		require.Equal(t, fsExists(filepath.Join(r.Path, ManifestFile)), r.Intact)
	}
	notes := []any{}
	for _, n := range r.Notes {
		notes = append(notes, n.String())
		require.NotContains(t, n.Detail, "\n")
	}
	require.Equal(t, notes, got["notes"])
}

func fsExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// requireError checks that the error of a validation has the report.
func requireError(t *testing.T, r *backup.Report, err error) {
	t.Helper()
	if err == nil {
		return
	}
	var invalid *backup.InvalidBackupError
	require.ErrorAs(t, err, &invalid)
	require.Same(t, r, invalid.Report)
	words := fmt.Sprintf("has %d problems, the first is %s", len(r.Problems), r.Problems[0])
	if len(r.Problems) == 1 {
		words = "has a problem: " + r.Problems[0].String()
	}
	require.Equal(t, fmt.Sprintf("invalid backup: %q %s", r.Stamp, words), invalid.Error())
}

// A Damage is something that can be done to any file of a snapshot. Do reports
// whether it changed anything.
type Damage struct {
	Name string
	Do   func(s *Snapshot, file string) (changed bool)
}
