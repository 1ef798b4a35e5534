package interop

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/pyjson"
)

// A python is a process that plays the Python module.
type python struct {
	t      *testing.T
	stdin  io.Writer
	stdout *bufio.Reader
	stderr *bytes.Buffer
}

// startPython starts the stand-in, which ends when the test does.
func startPython(t *testing.T) *python {
	t.Helper()
	program, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 to compare with:", err)
	}
	cmd := exec.Command(program, "-B", filepath.Join("testdata", "atocore_backup.py"))
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	p := &python{t: t, stdin: stdin, stdout: bufio.NewReader(stdout), stderr: new(bytes.Buffer)}
	cmd.Stderr = p.stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		require.NoError(t, cmd.Wait(), p.stderr)
	})
	return p
}

// call calls a function of the module and returns its result in JSON. Arguments
// are strings and booleans.
func (p *python) call(args ...any) string {
	p.t.Helper()
	texts := make([]string, len(args))
	for i, arg := range args {
		texts[i] = fmt.Sprint(arg)
		if s, ok := arg.(string); ok {
			texts[i] = quote(s)
		}
	}
	_, err := fmt.Fprintf(p.stdin, "[%s]\n", strings.Join(texts, ", "))
	require.NoError(p.t, err)
	line, err := p.stdout.ReadString('\n')
	require.NoError(p.t, err, p.stderr)
	return line
}

// quote returns the JSON string that Python decodes to the file name s. A byte
// that is not UTF-8 becomes a lone surrogate there
// (https://peps.python.org/pep-0383/).
func quote(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		units := utf16.AppendRune(nil, r)
		if r == utf8.RuneError && n == 1 {
			units = []uint16{0xdc00 + uint16(s[0])}
		}
		for _, unit := range units {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
		s = s[n:]
	}
	return `"` + b.String() + `"`
}

// jsonOf returns v in JSON, as the command prints it.
func jsonOf(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	require.NoError(t, err)
	return string(data)
}

// requireAgreement checks that a document of ours has all that Python's has, and
// nothing else but names that are ours alone. Constants that only Python's JSON
// has are null in ours.
func requireAgreement(t *testing.T, theirs, ours string, only ...string) {
	t.Helper()
	var document any
	require.NoError(t, json.Unmarshal([]byte(ours), &document))
	remove := func(object any) {
		for _, name := range only {
			require.Contains(t, object, name)
			delete(object.(map[string]any), name)
		}
	}
	switch v := document.(type) {
	case []any:
		for _, object := range v {
			remove(object)
		}
	default:
		remove(v)
	}
	require.JSONEq(t, pyjson.Relax(theirs), jsonOf(t, document))
}

// The names that are ours alone, in a list and in a report.
var (
	inLists   = []string{"verified", "verified_at", "protected", "note"}
	inReports = []string{"intact", "findings", "notes", "details", "cost"}
)

// pythonStores prepare the kinds of stores that both sides must agree on.
var pythonStores = map[string]func(t *testing.T, s *backuptest.Store){
	"whole":     func(t *testing.T, s *backuptest.Store) {},
	"no Chroma": func(t *testing.T, s *backuptest.Store) { s.IncludeChroma = false },
	"lost parts": func(t *testing.T, s *backuptest.Store) {
		require.NoError(t, os.Remove(s.RegistryPath))
		s.ChromaPath += "-not"
	},
	"rollback journal": func(t *testing.T, s *backuptest.Store) {
		backuptest.InDatabase(t, s.DatabasePath, func(db *sql.DB) {
			_, err := db.Exec("PRAGMA journal_mode = delete")
			require.NoError(t, err)
		})
	},
	"awkward names": func(t *testing.T, s *backuptest.Store) {
		if runtime.GOOS != "linux" {
			t.Skip("such names are not possible on every file system")
		}
		for _, path := range []*string{&s.DatabasePath, &s.RegistryPath, &s.ChromaPath} {
			to := filepath.Join(filepath.Dir(*path), "é😀 \xff?%20#'\n"+filepath.Base(*path))
			require.NoError(t, os.Rename(*path, to))
			*path = to
		}
		s.BackupDir += "\xfe \u2028"
	},
}

// Python lists the library's snapshots, finds them valid and does not change
// them.
func TestPythonReadsOurSnapshots(t *testing.T) {
	python := startPython(t)
	for name, prepare := range pythonStores {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			prepare(t, s)
			stamps := []string{s.Create().Stamp, s.Create().Stamp}
			require.NoError(t, os.Mkdir(s.SnapshotPath("zzz"), 0o700))
			require.NoError(t, os.Mkdir(s.SnapshotPath("zzz-cut"), 0o700))
			require.NoError(t, os.WriteFile(s.SnapshotPath("zzz-cut", backuptest.MetadataFile), []byte("{"), 0o600))
			before := s.Snapshot("").State()

			list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
			require.NoError(t, err)
			require.Len(t, list, 4)
			requireAgreement(t, python.call("list", s.BackupDir), jsonOf(t, list), inLists...)
			for _, stamp := range stamps {
				report, err := backup.ValidateBackup(t.Context(), s.Options, stamp)
				require.NoError(t, err)
				out := python.call("validate", s.BackupDir, stamp)
				requireAgreement(t, out, jsonOf(t, report), inReports...)
				require.Contains(t, out, `"valid": true`)
			}
			require.Equal(t, before, s.Snapshot("").State(), "Python changed a snapshot")
			for _, stamp := range []string{"zzz", "zzz-cut"} {
				require.NoError(t, os.RemoveAll(s.SnapshotPath(stamp)))
			}
		})
	}
}

// The library lists Python's snapshots and finds them valid, also after they were
// moved.
func TestWeReadPythonsSnapshots(t *testing.T) {
	python := startPython(t)
	for name, prepare := range pythonStores {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSmallStore(t)
			prepare(t, s)
			stamps := map[string]string{
				"20260102T030405Z": "2026-01-02T03:04:05.678901+00:00",
				"20260102T030406Z": "2026-01-02T03:04:06+00:00",
				"20260102T030407Z": "2026-01-02T03:04:07",
				"20260102T083408Z": "2026-01-02T08:34:08.000001+05:30", // its stamp is in the zone's own time
			}
			for _, time := range stamps {
				python.call("create", s.BackupDir, s.DatabasePath, s.RegistryPath, s.ChromaPath, time, s.IncludeChroma)
			}
			ours := s.Create().Stamp // both kinds in one directory
			list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
			require.NoError(t, err)
			require.Len(t, list, len(stamps)+1)
			requireAgreement(t, python.call("list", s.BackupDir), jsonOf(t, list), inLists...)
			for _, snapshot := range list {
				require.NotNil(t, snapshot.Metadata, snapshot.MetadataError)
				require.Equal(t, snapshot.Stamp == ours, snapshot.Metadata.FormatVersion == 1)
			}
			for stamp := range stamps {
				snapshot := s.Snapshot(stamp)
				snapshot.Options = s.Options
				report := snapshot.RequireProblems()
				requireAgreement(t, python.call("validate", s.BackupDir, stamp), jsonOf(t, report), inReports...)
				require.False(t, report.Intact, "nothing proves it")
			}

			moved := s.BackupDir + "-moved"
			require.NoError(t, os.Rename(s.BackupDir, moved))
			s.BackupDir = moved
			for stamp := range stamps {
				s.Snapshot(stamp).RequireProblems()
			}
		})
	}
}

// Python's json writes and reads NaN and Infinity, which are not JSON. A registry
// with them is one for both sides, in both directions; what neither reads is a
// finding for both. So are they in metadata that somebody added to.
func TestPythonAgreesOnConstants(t *testing.T) {
	python := startPython(t)
	for name, tt := range map[string]struct {
		registry string
		valid    bool
	}{
		"constants":       {`{"score": NaN, "limits": [-Infinity, Infinity], "NaN": "NaN, \"Infinity"}`, true},
		"only one":        {` NaN `, true},
		"negative":        {`[-NaN]`, false},
		"as a name":       {`{NaN: 1}`, false},
		"lower case":      {`[nan, inf]`, false},
		"within a number": {`[1NaN]`, false},
		"twice":           {`[NaN NaN]`, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSmallStore(t)
			backuptest.Write(t, s.RegistryPath, tt.registry)
			ours := s.Create().Stamp
			python.call("create", s.BackupDir, s.DatabasePath, s.RegistryPath, s.ChromaPath, "2026-01-02T03:04:05+00:00", true)
			theirs := "20260102T030405Z"
			for _, stamp := range []string{ours, theirs} {
				snapshot := s.Snapshot(stamp)
				report, err := backup.ValidateBackup(t.Context(), s.Options, stamp)
				require.Equal(t, tt.valid, err == nil, "%v", err)
				require.Equal(t, stamp == ours, report.Intact)
				require.Equal(t, tt.registry, string(snapshot.Read(backuptest.RegistryFile)))
				var judged struct {
					Valid  bool
					Errors []string
				}
				require.NoError(t, json.Unmarshal([]byte(python.call("validate", s.BackupDir, stamp)), &judged))
				require.Equal(t, tt.valid, judged.Valid)
				if !tt.valid {
					require.Equal(t, []string{"registry_invalid_json: " + backuptest.RegistryFile}, backuptest.Brief(report.Problems))
					require.Len(t, judged.Errors, 1)
					require.Contains(t, judged.Errors[0], "registry_invalid_json")
				}
			}
			s.DespiteFindings = true
			s.Restore(ours)
			s.Restore(theirs)
			data, err := os.ReadFile(s.RegistryPath)
			require.NoError(t, err)
			require.Equal(t, tt.registry, string(data))
		})
	}

	s := backuptest.NewSmallStore(t)
	python.call("create", s.BackupDir, s.DatabasePath, s.RegistryPath, s.ChromaPath, "2026-01-02T03:04:05+00:00", true)
	snapshot := s.Snapshot("20260102T030405Z")
	text := strings.Replace(string(snapshot.Read(backuptest.MetadataFile)), "{", `{"score": NaN, "limits": [Infinity, -Infinity],`, 1)
	snapshot.Write(backuptest.MetadataFile, []byte(text))
	report := snapshot.RequireProblems()
	require.True(t, report.Valid)
	answer := python.call("validate", s.BackupDir, snapshot.Stamp)
	require.Contains(t, answer, `"score": NaN`)
	requireAgreement(t, answer, jsonOf(t, report), inReports...)
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	requireAgreement(t, python.call("list", s.BackupDir), jsonOf(t, list), inLists...)
	// A report of Python's can be read, without its constants.
	var theirs backup.Report
	require.NoError(t, json.Unmarshal([]byte(pyjson.Relax(answer)), &theirs))
	require.True(t, theirs.Valid)
	require.Equal(t, report.Metadata, theirs.Metadata)
}

// Both report the same damage, as far as Python looks for it.
func TestPythonAgreesOnDamage(t *testing.T) {
	python := startPython(t)
	made := backuptest.NewSmallStore(t)
	meta := made.Create()
	s := made.Snapshot(meta.Stamp)
	for _, test := range []struct {
		code   backup.Code
		damage func()
	}{
		{backup.CodeRegistryInvalidJSON, func() { s.Write(backuptest.RegistryFile, []byte("{")) }},
		{backup.CodeRegistryMissing, func() { s.Remove(backuptest.RegistryFile) }},
		{backup.CodeChromaMissing, func() { s.Remove("chroma") }},
		{backup.CodeDBIntegrity, func() { s.LoseIndexEntries(1) }},
		{backup.CodeDBOpen, func() { s.Write(backuptest.DBFile, bytes.Repeat([]byte("x"), 8192)) }},
		{backup.CodeDBMissing, func() { s.Remove(backuptest.DBFile) }},
		{backup.CodeMetadataInvalidJSON, func() { s.Write(backuptest.MetadataFile, []byte("[")) }},
		{backup.CodeMetadataMissing, func() { s.Remove(backuptest.MetadataFile) }},
		{backup.CodeSnapshotMissing, func() { s.Remove("") }},
	} {
		test.damage() // in addition to the damage before
		var theirs struct{ Errors []string }
		require.NoError(t, json.Unmarshal([]byte(python.call("validate", s.BackupDir, s.Stamp)), &theirs))
		codes := make(map[string]bool)
		for _, problem := range backuptest.Brief(s.Validate().Problems) {
			code, _, _ := bytes.Cut([]byte(problem), []byte(":"))
			codes[string(code)] = true
		}
		found := false
		for _, text := range theirs.Errors {
			code, _, _ := bytes.Cut([]byte(text), []byte(":"))
			require.True(t, codes[string(code)], "only Python finds %s", text)
			found = found || string(code) == string(test.code)
		}
		require.True(t, found, "Python does not find %s but %v", test.code, theirs.Errors)
	}
}

func TestRestoreASnapshotOfThePythonModule(t *testing.T) {
	t.Parallel()
	python := startPython(t)
	s := backuptest.NewBareStore(t)
	db := backuptest.OpenDB(t, s.DatabasePath)
	require.NoError(t, backuptest.Transfer(context.Background(), db, 1, 2, 3))
	python.call("create", s.BackupDir, s.DatabasePath, s.RegistryPath, s.ChromaPath, "2026-01-02T03:04:05+00:00", true)
	chroma := backuptest.ReadTree(t, s.ChromaPath)
	require.NoError(t, backuptest.Transfer(context.Background(), db, 1, 2, 3))
	require.NoError(t, db.Close())
	require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "later"), nil, 0o600))
	s.Restore("20260102T030405Z")
	require.Equal(t, 1, backuptest.CountRows(t, s.DatabasePath))
	require.Equal(t, chroma, backuptest.ReadTree(t, s.ChromaPath))
}
