package damage

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// allCodes reads the names of all codes from the source of the root package.
func allCodes(t *testing.T) map[string]backup.Code {
	t.Helper()
	source := "../../../report.go"
	if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
		source = "../../../problem.go"
	}
	file, err := parser.ParseFile(token.NewFileSet(), source, nil, 0)
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

// Each code is reported for a real snapshot that was damaged, alone or together
// with the codes that the same damage must cause. No code may lack a case.
func TestValidateReportsEachCode(t *testing.T) {
	cases := map[backup.Code]struct {
		damage func(s *backuptest.Snapshot)
		want   []string // if nil, the code alone
	}{
		backup.CodeStampInvalid:    {damage: func(s *backuptest.Snapshot) { s.Stamp = "../" + s.Stamp }},
		backup.CodeSnapshotMissing: {damage: func(s *backuptest.Snapshot) { s.Stamp = "20000101T000000Z" }},
		backup.CodeMetadataMissing: {
			damage: func(s *backuptest.Snapshot) { s.Remove(backuptest.MetadataFile); s.Reseal() },
		},
		backup.CodeMetadataInvalidJSON: {
			damage: func(s *backuptest.Snapshot) { s.Write(backuptest.MetadataFile, []byte("{")); s.Reseal() },
		},
		backup.CodeMetadataNotFile: {
			damage: func(s *backuptest.Snapshot) { s.Link(backuptest.MetadataFile, s.MoveOut(backuptest.MetadataFile)) },
			want:   []string{"metadata_not_a_file", "file_not_regular: " + backuptest.MetadataFile},
		},
		backup.CodeMetadataTooLarge: {
			damage: func(s *backuptest.Snapshot) {
				s.Write(backuptest.MetadataFile, append(s.Read(backuptest.MetadataFile), bytes.Repeat([]byte(" "), 1<<20)...))
				s.Reseal()
			},
		},
		backup.CodeMetadataShape: {
			damage: func(s *backuptest.Snapshot) { s.Set(map[string]any{"db_size_bytes": "many"}); s.Reseal() },
		},
		backup.CodeFormatVersion: {
			damage: func(s *backuptest.Snapshot) { s.Set(map[string]any{"format_version": 2}); s.Reseal() },
		},
		backup.CodePathOutside: {
			damage: func(s *backuptest.Snapshot) { s.Set(map[string]any{"db_snapshot_path": "/etc/passwd"}); s.Reseal() },
		},
		backup.CodeManifestMissing: {damage: func(s *backuptest.Snapshot) { s.Remove(backuptest.ManifestFile) }},
		backup.CodeManifestNotFile: {
			damage: func(s *backuptest.Snapshot) { s.Link(backuptest.ManifestFile, s.MoveOut(backuptest.ManifestFile)) },
		},
		backup.CodeManifestMalformed: {
			damage: func(s *backuptest.Snapshot) { s.Write(backuptest.ManifestFile, []byte("all is well\n")) },
		},
		backup.CodeFileMissing: {
			damage: func(s *backuptest.Snapshot) {
				s.Add("chroma/extra", nil)
				s.Set(map[string]any{"chroma_snapshot_files": 10})
				s.Reseal()
				s.Remove("chroma/extra")
				s.Set(map[string]any{"chroma_snapshot_files": 9})
			},
			want: []string{"file_missing: chroma/extra", "file_changed: " + backuptest.MetadataFile},
		},
		backup.CodeFileChanged: {
			damage: func(s *backuptest.Snapshot) { s.Write(backuptest.RegistryFile, []byte("{}")) },
			want:   []string{"file_changed: " + backuptest.RegistryFile},
		},
		backup.CodeFileUnknown: {
			damage: func(s *backuptest.Snapshot) { s.Add("notes.txt", []byte("hello")) },
			want:   []string{"file_unknown: notes.txt"},
		},
		backup.CodeFileNotRegular: {
			damage: func(s *backuptest.Snapshot) { s.Link(backuptest.RegistryFile, s.MoveOut(backuptest.RegistryFile)) },
			want:   []string{"file_not_regular: " + backuptest.RegistryFile},
		},
		backup.CodeDBMissing: {
			damage: func(s *backuptest.Snapshot) { s.Remove(backuptest.DBFile) },
			want:   []string{"db_snapshot_missing", "file_missing: " + backuptest.DBFile, "file_unknown: db/"},
		},
		backup.CodeDBIntegrity: {
			damage: func(s *backuptest.Snapshot) { s.LoseIndexEntries(1); s.Reseal() },
			want:   []string{"db_integrity_check_failed: " + backuptest.DBFile},
		},
		backup.CodeDBOpen: {
			damage: func(s *backuptest.Snapshot) {
				s.Write(backuptest.DBFile, bytes.Repeat([]byte("x"), len(s.Read(backuptest.DBFile))))
				s.Reseal()
			},
			want: []string{"db_open_failed: " + backuptest.DBFile},
		},
		backup.CodeDBSize: {
			damage: func(s *backuptest.Snapshot) { s.Set(map[string]any{"db_size_bytes": 1}); s.Reseal() },
			want:   []string{"db_size_mismatch: " + backuptest.DBFile},
		},
		backup.CodeDBSidecar: {
			damage: func(s *backuptest.Snapshot) { s.Add(backuptest.DBFile+"-wal", []byte("x")); s.Reseal() },
			want:   []string{"db_sidecar_present: " + backuptest.DBFile + "-wal"},
		},
		backup.CodeDBForm: {
			damage: func(s *backuptest.Snapshot) { s.SetJournalForm(2); s.Reseal() },
			want:   []string{"db_not_in_rollback_form: " + backuptest.DBFile},
		},
		backup.CodeRegistryMissing: {
			damage: func(s *backuptest.Snapshot) { s.Remove(backuptest.RegistryFile); s.Reseal() },
		},
		backup.CodeRegistryInvalidJSON: {
			damage: func(s *backuptest.Snapshot) { s.Write(backuptest.RegistryFile, []byte("{")); s.Reseal() },
			want:   []string{"registry_invalid_json: " + backuptest.RegistryFile},
		},
		backup.CodeChromaMissing: {
			damage: func(s *backuptest.Snapshot) { s.Remove("chroma"); s.Reseal() },
		},
		backup.CodeChromaFiles: {
			damage: func(s *backuptest.Snapshot) { s.Add("chroma/extra", nil); s.Reseal() },
			want:   []string{"chroma_files_mismatch: chroma"},
		},
		backup.CodeChromaBytes: {
			damage: func(s *backuptest.Snapshot) {
				name := s.Files()[2] // one of a segment's files
				s.Write(name, append(s.Read(name), 0))
				s.Reseal()
			},
			want: []string{"chroma_bytes_mismatch: chroma"},
		},
		backup.CodeChromaDBCheck: {
			damage: func(s *backuptest.Snapshot) { s.RuinPages(backuptest.ChromaFile); s.Reseal() },
			want:   []string{"chroma_db_check_failed: " + backuptest.ChromaFile},
		},
		backup.CodeTooManyProblems: {
			damage: func(s *backuptest.Snapshot) {
				require.NoError(s.T, os.Mkdir(s.Path("more"), 0o755))
				for i := range 1001 {
					s.Write(fmt.Sprintf("more/%04d", i), nil)
				}
			},
		},
	}
	for name, code := range allCodes(t) {
		require.Contains(t, cases, code, "no case produces %s", name)
	}
	doc, err := os.ReadFile("../../../docs/format.md")
	require.NoError(t, err)

	base := backuptest.NewSnapshot(t)
	require.True(t, base.RequireProblems().Intact)
	for code, test := range cases {
		t.Run(string(code), func(t *testing.T) {
			require.Contains(t, string(doc), "\n| `"+string(code)+"` |", "it is missing from the table of the format")
			s := base.Copy(t)
			test.damage(s)
			var report *backup.Report
			switch {
			case code == backup.CodeTooManyProblems:
				report = s.Validate()
				require.Len(t, report.Problems, 1001)
				require.Equal(t, backup.Problem{Code: code}, report.Problems[1000])
				require.Equal(t, "file_unknown: more/0999", report.Problems[999].String())
			case test.want == nil:
				report = s.RequireProblems(string(code))
			default:
				report = s.RequireProblems(test.want...)
			}
			// These are objections to the content, which the new manifest says is
			// what was backed up; all other codes are damage.
			content := []backup.Code{backup.CodeDBIntegrity, backup.CodeDBOpen, backup.CodeRegistryInvalidJSON, backup.CodeChromaDBCheck}
			isFinding := slices.Contains(content, code)
			require.Equal(t, isFinding, report.Intact)
			for _, p := range report.Problems {
				require.Equal(t, isFinding, p.Finding, p)
			}
		})
	}
}

// contentDamages change the content of a file and leave it a regular one.
var contentDamages = []backuptest.Damage{
	{Name: "first byte", Do: func(s *backuptest.Snapshot, file string) bool { return flipAt(s, file, 0, 1) }},
	{Name: "header", Do: func(s *backuptest.Snapshot, file string) bool { return flipAt(s, file, 1, 50) }},
	{Name: "body", Do: func(s *backuptest.Snapshot, file string) bool { return flipAt(s, file, 1, 2) }},
	{Name: "last byte", Do: func(s *backuptest.Snapshot, file string) bool { return flipAt(s, file, 1, 1) }},
	{Name: "emptied", Do: func(s *backuptest.Snapshot, file string) bool {
		some := len(s.Read(file)) > 0
		s.Write(file, nil)
		return some
	}},
	{Name: "truncated by a byte", Do: func(s *backuptest.Snapshot, file string) bool {
		data := s.Read(file)
		if len(data) == 0 {
			return false
		}
		s.Write(file, data[:len(data)-1])
		return true
	}},
	{Name: "truncated to half", Do: func(s *backuptest.Snapshot, file string) bool {
		data := s.Read(file)
		s.Write(file, data[:len(data)/2])
		return len(data) > 0
	}},
	{Name: "extended by a NUL", Do: func(s *backuptest.Snapshot, file string) bool {
		s.Write(file, append(s.Read(file), 0))
		return true
	}},
	{Name: "extended by a space", Do: func(s *backuptest.Snapshot, file string) bool {
		s.Write(file, append(s.Read(file), ' '))
		return true
	}},
	{Name: "extended by itself", Do: func(s *backuptest.Snapshot, file string) bool {
		data := s.Read(file)
		s.Write(file, slices.Concat(data, data))
		return len(data) > 0
	}},
	{Name: "all zero", Do: func(s *backuptest.Snapshot, file string) bool {
		data := s.Read(file)
		s.Write(file, make([]byte, len(data)))
		return len(data) > 0
	}},
}

// flipAt flips a bit of a file, num/den of the way into it. It reports false for
// an empty file.
func flipAt(s *backuptest.Snapshot, file string, num, den int) bool {
	size := len(s.Read(file))
	if size == 0 {
		return false
	}
	s.Flip(file, min(size*num/den, size-1))
	return true
}

// kindDamages remove a file or replace it by one of another kind. If there is
// still a content to read, it is the same bytes.
var kindDamages = []backuptest.Damage{
	{Name: "removed", Do: func(s *backuptest.Snapshot, file string) bool { s.Remove(file); return true }},
	{Name: "link to an identical copy outside", Do: func(s *backuptest.Snapshot, file string) bool {
		s.Link(file, s.MoveOut(file))
		return true
	}},
	{Name: "link to an identical copy inside", Do: func(s *backuptest.Snapshot, file string) bool {
		require.NoError(s.T, os.Rename(s.Path(file), s.Path("chroma/identical")))
		s.Link(file, s.Path("chroma/identical"))
		return true
	}},
	{Name: "link to itself", Do: func(s *backuptest.Snapshot, file string) bool { s.Link(file, path.Base(file)); return true }},
	{Name: "link to nothing", Do: func(s *backuptest.Snapshot, file string) bool { s.Link(file, "nothing"); return true }},
	{Name: "link to a directory", Do: func(s *backuptest.Snapshot, file string) bool { s.Link(file, s.T.TempDir()); return true }},
	{Name: "empty directory", Do: func(s *backuptest.Snapshot, file string) bool {
		s.Remove(file)
		require.NoError(s.T, os.Mkdir(s.Path(file), 0o755))
		return true
	}},
	{Name: "directory with the file", Do: func(s *backuptest.Snapshot, file string) bool {
		data := s.Read(file)
		s.Remove(file)
		s.Add(file+"/"+path.Base(file), data)
		return true
	}},
}

// partOf returns the flag in the report for the part that a file belongs to.
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

// Every file of a snapshot is damaged in every way. Each damage is reported as
// what it is, and no other file is blamed.
func TestValidateFindsAnyDamageToAnyFile(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	base.RequireProblems()
	files := append(base.Files(), backuptest.ManifestFile)
	require.Len(t, files, 13)
	tried := 0
	check := func(t *testing.T, file string, d backuptest.Damage, want func(s *backuptest.Snapshot) []string) {
		s := base.With(t)
		good := s.Read(file)
		defer func() {
			s.Remove("chroma/identical")
			s.Remove(file)
			s.Write(file, good)
		}()
		if !d.Do(s, file) {
			return
		}
		tried++
		report := s.Validate()
		require.False(t, report.Valid)
		require.False(t, report.Intact)
		found := backuptest.Brief(report.Problems)
		require.Subset(t, found, want(s))
		if ok := partOf(report, file); ok != nil {
			require.False(t, *ok, "the part is said to be sound")
		}
		for _, p := range report.Problems {
			// Without a manifest, nothing is known of the other files either.
			if file == backuptest.ManifestFile {
				break
			}
			require.True(t, p.Path == "" || p.Path == path.Dir(file)+"/" || strings.HasPrefix(p.Path, file) ||
				p.Path == "chroma/identical" || p.Path == "chroma" ||
				file == backuptest.MetadataFile && p.Code == backup.CodeDBSize, "%s is blamed for %s of %s", p, d.Name, file)
		}
	}
	for _, file := range files {
		t.Run(path.Base(path.Dir(file))+"/"+path.Base(file), func(t *testing.T) {
			for _, d := range contentDamages {
				t.Run(d.Name, func(t *testing.T) {
					check(t, file, d, func(*backuptest.Snapshot) []string {
						if file == backuptest.ManifestFile {
							return nil // see TestValidateFindsEveryFlippedByte
						}
						return []string{"file_changed: " + file}
					})
				})
			}
			for _, d := range append(kindDamages, backuptest.SpecialFiles...) {
				t.Run(d.Name, func(t *testing.T) {
					check(t, file, d, func(s *backuptest.Snapshot) []string { return problemsOfKind(s, file) })
				})
			}
		})
	}
	base.RequireProblems()
	t.Logf("%d damages tried, all found", tried)
	require.Greater(t, tried, 13*15)
}

// problemsOfKind returns the problems that must be found if a file is missing or
// is not a regular file any more.
func problemsOfKind(s *backuptest.Snapshot, file string) (want []string) {
	info, err := os.Lstat(s.Path(file))
	gone := errors.Is(err, fs.ErrNotExist)
	isDir := err == nil && info.IsDir()
	switch {
	case file == backuptest.MetadataFile && gone:
		want = append(want, "metadata_missing")
	case file == backuptest.MetadataFile:
		want = append(want, "metadata_not_a_file")
	case file == backuptest.ManifestFile && gone:
		return []string{"manifest_missing"}
	case file == backuptest.ManifestFile:
		return []string{"manifest_not_a_file"}
	case file == backuptest.DBFile && gone:
		want = append(want, "db_snapshot_missing")
	case file == backuptest.DBFile:
		want = append(want, "db_open_failed: "+file)
	case file == backuptest.RegistryFile && gone:
		want = append(want, "registry_snapshot_missing")
	}
	if gone || isDir {
		return append(want, "file_missing: "+file)
	}
	return append(want, "file_not_regular: "+file)
}

// Each byte of the two files that describe the others is changed in turn.
func TestValidateFindsEveryFlippedByte(t *testing.T) {
	store := backuptest.NewBareStore(t)
	store.IncludeChroma = false
	base := store.CreateSnapshot()
	base.RequireProblems()
	step := 1
	if testing.Short() {
		step = 17
	}
	for _, file := range []string{backuptest.MetadataFile, backuptest.ManifestFile} {
		good := base.Read(file)
		for offset := 0; offset < len(good); offset += step {
			base.Flip(file, offset)
			report, err := backup.ValidateBackup(t.Context(), base.Options, base.Stamp)
			require.ErrorIs(t, err, backup.ErrInvalidBackup, "%s at %d", file, offset)
			require.False(t, report.Intact, "%s at %d", file, offset)
			found := backuptest.Brief(report.Problems)
			if file == backuptest.MetadataFile {
				require.Contains(t, found, "file_changed: "+file)
			} else {
				for _, p := range report.Problems {
					require.Contains(t, []backup.Code{backup.CodeManifestMalformed, backup.CodeFileChanged,
						backup.CodeFileMissing, backup.CodeFileUnknown}, p.Code, "%s at %d", file, offset)
				}
			}
			base.Write(file, good)
		}
	}
	base.RequireProblems()
}

// Any two files of a snapshot are swapped.
func TestValidateFindsSwappedFiles(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	files := append(base.Files(), backuptest.ManifestFile)
	tried := 0
	for i, a := range files {
		for _, b := range files[i+1:] {
			before, after := base.Read(a), base.Read(b)
			base.Write(a, after)
			base.Write(b, before)
			tried++
			report := base.Validate()
			require.Equal(t, bytes.Equal(before, after), report.Intact, "%s and %s", a, b)
			switch found := backuptest.Brief(report.Problems); {
			case bytes.Equal(before, after):
				require.Empty(t, found)
			case b == backuptest.ManifestFile:
				require.Contains(t, found, "manifest_malformed", "%s and %s", a, b)
			default:
				require.Subset(t, found, []string{"file_changed: " + a, "file_changed: " + b})
			}
			base.Write(a, before)
			base.Write(b, after)
		}
	}
	base.RequireProblems()
	require.Equal(t, 13*12/2, tried)
}

// Files, directories and links are added everywhere in a snapshot.
func TestValidateFindsAddedFiles(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	segment := path.Dir(base.Files()[1])
	for _, dir := range []string{".", "db", "config", "chroma", segment} {
		for name, test := range map[string]struct {
			add  func(s *backuptest.Snapshot, name string)
			want func(name string) []string
		}{
			"file":       {func(s *backuptest.Snapshot, name string) { s.Add(name, []byte("x")) }, nil},
			"empty file": {func(s *backuptest.Snapshot, name string) { s.Add(name, nil) }, nil},
			"hidden file": {
				func(s *backuptest.Snapshot, name string) { s.Add(path.Join(path.Dir(name), ".hidden"), nil) },
				func(name string) []string { return []string{"file_unknown: " + path.Join(path.Dir(name), ".hidden")} },
			},
			"file in a directory": {
				func(s *backuptest.Snapshot, name string) { s.Add(name+"/deep/x", nil) },
				func(name string) []string { return []string{"file_unknown: " + name + "/deep/x"} },
			},
			"second manifest": {
				func(s *backuptest.Snapshot, name string) { s.Add(name+"/SHA256SUMS", s.Read(backuptest.ManifestFile)) },
				func(name string) []string { return []string{"file_unknown: " + name + "/SHA256SUMS"} },
			},
			"empty directory": {
				func(s *backuptest.Snapshot, name string) { require.NoError(s.T, os.Mkdir(s.Path(name), 0o755)) },
				func(name string) []string {
					if strings.HasPrefix(name, "chroma/") {
						return []string{} // as documented, the manifest does not cover them
					}
					return []string{"file_unknown: " + name + "/"}
				},
			},
			"link to a file of the snapshot": {
				func(s *backuptest.Snapshot, name string) { s.Link(name, s.Path(backuptest.DBFile)) },
				func(name string) []string { return []string{"file_unknown: " + name, "file_not_regular: " + name} },
			},
			"link to the snapshot": {
				func(s *backuptest.Snapshot, name string) { s.Link(name, s.Path("")) },
				func(name string) []string { return []string{"file_unknown: " + name, "file_not_regular: " + name} },
			},
			"link to the root": {
				func(s *backuptest.Snapshot, name string) { s.Link(name, "/") },
				func(name string) []string { return []string{"file_unknown: " + name, "file_not_regular: " + name} },
			},
		} {
			t.Run(path.Base(dir)+"/"+name, func(t *testing.T) {
				s := base.Copy(t)
				file := path.Join(dir, "extra")
				test.add(s, file)
				want := []string{"file_unknown: " + file}
				if test.want != nil {
					want = test.want(file)
				}
				if strings.HasPrefix(file, "chroma/") && len(want) > 0 {
					want = append(want, "chroma_files_mismatch: chroma")
				}
				report := s.Validate()
				require.Equal(t, len(want) == 0, report.Intact)
				found := backuptest.Brief(report.Problems)
				// The added bytes are counted as well.
				found = slices.DeleteFunc(found, func(p string) bool { return p == "chroma_bytes_mismatch: chroma" })
				require.ElementsMatch(t, want, found)
			})
		}
	}
}
