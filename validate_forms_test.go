package backup_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// Each field of the metadata gets each kind of value. The manifest is written anew,
// so that only the checks of the metadata can find it.
func TestValidateFindsEachAlteredField(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	values := map[string]string{
		"null": "null", "true": "true", "false": "false", "7": "7", "0": "0", "-1": "-1", "1.5": "1.5", "1e3": "1e3", "1e400": "1e400",
		"long": "99999999999999999999", "string": `"x"`, "empty": `""`, "lone surrogate": `"\ud800"`, "NUL": `"\u0000"`,
		"array": "[]", "object": "{}", "array of it": "[%s]", "number in a string": `"7"`, "leading zero": "00",
		"not a number": "NaN", "infinite": "-Infinity", "unquoted": "x", "nothing": "",
	}
	const count = "7"
	// The values that do not lead to metadata_wrong_shape.
	others := map[string]map[string][]string{
		"backup_root": {
			"string": {"path_outside_snapshot"}, "empty": {"path_outside_snapshot"},
			"NUL": {"path_outside_snapshot"}, "number in a string": {"path_outside_snapshot"},
		},
		"db_snapshot_path": {
			"string": {"path_outside_snapshot"}, "empty": {"db_snapshot_missing"},
			"NUL": {"path_outside_snapshot"}, "number in a string": {"path_outside_snapshot"},
		},
		"registry_snapshot_path": {
			// No registry is recorded, and the manifest may have a file that is
			// not one.
			"string": {"path_outside_snapshot"}, "empty": {},
			"NUL": {"path_outside_snapshot"}, "number in a string": {"path_outside_snapshot"},
		},
		"chroma_snapshot_path": {
			"string": {"path_outside_snapshot"},
			"NUL":    {"path_outside_snapshot"}, "number in a string": {"path_outside_snapshot"},
		},
		"db_size_bytes":            {count: {"db_size_mismatch: " + backuptest.DBFile}, "0": {"db_size_mismatch: " + backuptest.DBFile}},
		"chroma_snapshot_bytes":    {count: {"chroma_bytes_mismatch: chroma"}, "0": {"chroma_bytes_mismatch: chroma"}},
		"chroma_snapshot_files":    {count: {"chroma_files_mismatch: chroma"}, "0": {"chroma_files_mismatch: chroma"}},
		"chroma_snapshot_included": {"true": {}},
		// A text for people, and a name that may have changed since.
		"vector_store_note": {"string": {}, "empty": {}, "NUL": {}, "number in a string": {}},
		"source_db_path":    {"string": {}, "empty": {}, "NUL": {}, "number in a string": {}},
		"source_host":       {"string": {}, "empty": {}, "NUL": {}, "number in a string": {}},
		"stamp":             {"string": {}, "empty": {}, "NUL": {}, "number in a string": {}},
		"format_version":    {count: {"format_version_unsupported"}},
	}
	notJSON := []string{"leading zero", "unquoted", "nothing"}
	mayBeMissing := []string{"source_db_path", "source_host"}

	good := base.Read(backuptest.MetadataFile)
	fields := base.Fields()
	require.Len(t, fields, 14)
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		t.Run(field, func(t *testing.T) {
			s := base.With(t)
			set := func(raw string) {
				old := fmt.Sprintf("%q: %s", field, fields[field])
				require.Equal(t, 1, bytes.Count(good, []byte(old)))
				changed := fmt.Sprintf("%q: %s", field, strings.ReplaceAll(raw, "%s", string(fields[field])))
				s.Write(backuptest.MetadataFile, bytes.Replace(good, []byte(old), []byte(changed), 1))
			}
			for name, raw := range values {
				want := []string{"metadata_wrong_shape"}
				if other, ok := others[field][name]; ok {
					want = other
				}
				if slices.Contains(notJSON, name) {
					want = []string{"metadata_invalid_json"}
				}
				if field == "chroma_snapshot_included" && name == "false" {
					want = []string{"metadata_wrong_shape"} // disagrees with chroma_snapshot_path
				}
				set(raw)
				s.Reseal()
				s.RequireProblems(want...)
			}
			// Missing, and duplicate.
			without := maps.Clone(fields)
			delete(without, field)
			s.SetFields(without)
			s.Reseal()
			missing := []string{"metadata_wrong_shape"}
			if slices.Contains(mayBeMissing, field) {
				missing = nil
			}
			s.RequireProblems(missing...)
			s.Write(backuptest.MetadataFile, bytes.Replace(good, []byte("{"), fmt.Appendf(nil, "{%q: %s,", field, fields[field]), 1))
			s.Reseal()
			s.RequireProblems("metadata_wrong_shape")
			// Names are case-sensitive, so this is another field.
			s.Write(backuptest.MetadataFile, bytes.Replace(good, []byte("{"), fmt.Appendf(nil, "{%q: %s,", strings.ToUpper(field), `"x"`), 1))
			s.Reseal()
			s.RequireProblems()
			s.Write(backuptest.MetadataFile, bytes.Replace(good, []byte(field), []byte(strings.ToUpper(field)), 1))
			s.Reseal()
			s.RequireProblems(missing...)
		})
	}
}

// Metadata that are wrong as a whole, or only look like that.
func TestValidateMetadataForms(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	good := base.Read(backuptest.MetadataFile)
	wrap := func(before, after string) []byte { return slices.Concat([]byte(before), good, []byte(after)) }
	with := func(field string) []byte { return bytes.Replace(good, []byte("{"), []byte("{"+field+","), 1) }
	nest := func(levels int) string { return strings.Repeat("[", levels) + strings.Repeat("]", levels) }
	for name, test := range map[string]struct {
		data []byte
		want []string
	}{
		"unknown field":                     {with(`"future": {"a": [1, "\ud800", 1e400]}`), nil},
		"white space":                       {wrap(" \r\n\t", " \r\n\t"), nil},
		"no newline":                        {bytes.TrimSpace(good), nil},
		"not ASCII":                         {with(`"α": "β\u007f` + "\x7f😀" + `"`), nil},
		"31 levels":                         {with(`"deep": ` + nest(31)), nil},
		"brackets in a string":              {with(`"deep": "` + strings.Repeat("[", 50) + `\"[["`), nil},
		"32 levels":                         {with(`"deep": ` + nest(32)), []string{"metadata_wrong_shape"}},
		"9,999 levels":                      {with(`"deep": ` + nest(9_998)), []string{"metadata_wrong_shape"}},
		"10,000 levels":                     {with(`"deep": ` + nest(10_000)), []string{"metadata_invalid_json"}},
		"500,000 levels":                    {with(`"deep": ` + nest(500_000)), []string{"metadata_invalid_json"}},
		"500,000 levels opened":             {[]byte(strings.Repeat(`{"a":`, 200_000)), []string{"metadata_invalid_json"}},
		"just small enough":                 {wrap("", strings.Repeat(" ", 1<<20-len(good))), nil},
		"too large":                         {wrap("", strings.Repeat(" ", 1<<20-len(good)+1)), []string{"metadata_too_large"}},
		"empty":                             {nil, []string{"metadata_invalid_json"}},
		"blank":                             {[]byte(" \n"), []string{"metadata_invalid_json"}},
		"byte order mark":                   {wrap("\ufeff", ""), []string{"metadata_invalid_json"}},
		"not UTF-8":                         {with("\"bad\": \"\xff\""), []string{"metadata_invalid_json"}},
		"surrogate in UTF-8":                {with("\"bad\": \"\xed\xa0\x80\""), []string{"metadata_invalid_json"}},
		"UTF-16":                            {[]byte("{\x00}\x00"), []string{"metadata_invalid_json"}},
		"something after it":                {wrap("", "{}"), []string{"metadata_invalid_json"}},
		"comma at the end":                  {bytes.Replace(good, []byte("\n}"), []byte(",\n}"), 1), []string{"metadata_invalid_json"}},
		"comment":                           {wrap("// metadata\n", ""), []string{"metadata_invalid_json"}},
		"NUL after it":                      {wrap("", "\x00"), []string{"metadata_invalid_json"}},
		"newline in a string":               {with("\"bad\": \"a\nb\""), []string{"metadata_invalid_json"}},
		"null":                              {[]byte("null"), []string{"metadata_wrong_shape"}},
		"true":                              {[]byte("true"), []string{"metadata_wrong_shape"}},
		"number":                            {[]byte("1"), []string{"metadata_wrong_shape"}},
		"string":                            {[]byte(`"backup"`), []string{"metadata_wrong_shape"}},
		"empty object":                      {[]byte("{}"), []string{"metadata_wrong_shape"}},
		"array of it":                       {wrap("[", "]"), []string{"metadata_wrong_shape"}},
		"unknown field twice":               {with(`"a": 1, "a": 2`), []string{"metadata_wrong_shape"}},
		"a known field twice, once escaped": {with(`"\u0073tamp": "x"`), []string{"metadata_wrong_shape"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := base.With(t)
			s.Write(backuptest.MetadataFile, test.data)
			s.Reseal()
			report := s.RequireProblems(test.want...)
			if test.want != nil {
				require.Nil(t, report.Metadata)
				require.False(t, report.DBOK, "it is unknown which file the database is")
			}
			// A list has it too, and can be encoded.
			list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
			require.NoError(t, err)
			require.Len(t, list, 1)
			data, err := json.MarshalIndent(list, "", "  ")
			require.NoError(t, err)
			require.Less(t, len(data), 8<<20)
			require.Equal(t, test.want == nil, list[0].MetadataError == "")
		})
	}
}

// Manifests that do not have the form of the format, or only look like that.
func TestValidateManifestForms(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	good := base.Read(backuptest.ManifestFile)
	lines := strings.SplitAfter(strings.TrimSuffix(string(good), "\n"), "\n")
	lines[len(lines)-1] += "\n"
	require.Len(t, lines, 12)
	zeros := strings.Repeat("0", 64)
	malformed := []string{"manifest_malformed"}
	for name, test := range map[string]struct {
		data string
		want []string
	}{
		"as it was":       {string(good), nil},
		"empty":           {"", malformed},
		"only a newline":  {"\n", malformed},
		"blank line":      {strings.Replace(string(good), "\n", "\n\n", 1), malformed},
		"blank at end":    {string(good) + "\n", malformed},
		"no last newline": {strings.TrimSuffix(string(good), "\n"), malformed},
		"cut in a digest": {string(good[:len(good)-100]), malformed},
		"CRLF":            {strings.ReplaceAll(string(good), "\n", "\r\n"), malformed},
		"byte order mark": {"\ufeff" + string(good), malformed},
		"comment":         {"# comment\n" + string(good), malformed},
		"binary marker":   {strings.ReplaceAll(string(good), "  ", " *"), malformed},
		"BSD form":        {"SHA256 (" + backuptest.MetadataFile + ") = " + lines[0][:64] + "\n", malformed},
		"upper case": {
			strings.ToUpper(lines[0][:64]) + lines[0][64:] + strings.Join(lines[1:], ""), malformed,
		},
		"short digest":        {string(good[1:]), malformed},
		"long digest":         {"0" + string(good), malformed},
		"MD5":                 {string(good[32:]), malformed},
		"not hexadecimal":     {"g" + string(good[1:]), malformed},
		"no name":             {zeros + "  \n", malformed},
		"one space":           {zeros + " x\n", malformed},
		"three spaces":        {zeros + "   x\n" + string(good), []string{"file_missing:  x"}},
		"unsorted":            {lines[1] + lines[0] + strings.Join(lines[2:], ""), []string{"manifest_malformed", "file_unknown: " + backuptest.MetadataFile}},
		"a line twice":        {lines[0] + string(good), malformed},
		"two digests":         {zeros + lines[0][64:] + string(good), []string{"manifest_malformed", "file_changed: " + backuptest.MetadataFile}},
		"itself":              {zeros + "  SHA256SUMS\n" + string(good), malformed},
		"itself in another":   {zeros + "  ./SHA256SUMS\n" + string(good), malformed},
		"absolute":            {zeros + "  /etc/passwd\n" + string(good), malformed},
		"parent":              {zeros + "  ..\n" + string(good), malformed},
		"outside":             {zeros + "  ../x\n" + string(good), malformed},
		"through the outside": {zeros + "  ../" + base.Stamp + "/x\n" + string(good), malformed},
		"around":              {zeros + "  a/../" + backuptest.MetadataFile + "\n" + string(good), malformed},
		"dot":                 {zeros + "  .\n" + string(good), malformed},
		"dot before":          {zeros + "  ./" + backuptest.MetadataFile + "\n" + string(good), malformed},
		"two slashes":         {zeros + "  a//b\n" + string(good), malformed},
		"slash at the end":    {zeros + "  a/\n" + string(good), malformed},
		"NUL":                 {zeros + "  a\x00b\n" + string(good), malformed},
		"needless escape":     {`\` + string(good), malformed},
		"unknown escape":      {`\` + zeros + `  a\tb` + "\n" + string(good), malformed},
		"half an escape":      {`\` + zeros + `  a\` + "\n" + string(good), malformed},
		"half escaped":        {`\` + zeros + `  a\n` + "\r\n" + string(good), malformed},
		"not escaped":         {zeros + `  a\\b` + "\n" + string(good), malformed},
		"too long":            {zeros + "  " + strings.Repeat("a", 64<<10) + "\n" + string(good), malformed},
		"endless":             {strings.Repeat("a", 3<<20), malformed},
		"just short enough": {
			zeros + "  " + strings.Repeat("a", 64<<10-67) + "\n" + string(good),
			[]string{"file_missing: " + strings.Repeat("a", 64<<10-67)},
		},
		"too many lines": {zeros + "  a\n" + string(good) + zeros + "  z\n", []string{"file_missing: a", "file_missing: z"}},
		"not UTF-8":      {zeros + "  a\xff\n" + string(good), []string{"file_missing: a\xff"}},
		"escaped": {
			`\` + zeros + `  a\nb\r\\` + "\n" + string(good), []string{"file_missing: a\nb\r\\"},
		},
		"a directory": {zeros + "  b\n" + string(good) + zeros + "  db2/x\n", []string{"file_missing: b", "file_missing: db2/x"}},
		"a file as directory": {
			strings.Join(lines[:len(lines)-1], "") + zeros + "  " + backuptest.DBFile + "/x\n",
			[]string{"file_unknown: " + backuptest.DBFile, "file_missing: " + backuptest.DBFile + "/x"},
		},
		"a digest changed": {zeros + lines[0][64:] + strings.Join(lines[1:], ""), []string{"file_changed: " + backuptest.MetadataFile}},
		"only the first":   {lines[0], unknown(lines[1:])},
		"without the first": {
			strings.Join(lines[1:], ""), unknown(lines[:1]),
		},
		"without the last": {strings.Join(lines[:len(lines)-1], ""), unknown(lines[len(lines)-1:])},
		"every other": {
			lines[0] + lines[2] + lines[4] + lines[6] + lines[8] + lines[10],
			unknown([]string{lines[1], lines[3], lines[5], lines[7], lines[9], lines[11]}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := base.With(t)
			s.Write(backuptest.ManifestFile, []byte(test.data))
			s.RequireProblems(test.want...)
		})
	}
}

// unknown returns the problems if these lines of the manifest are missing.
func unknown(lines []string) (problems []string) {
	for _, line := range lines {
		problems = append(problems, "file_unknown: "+line[66:len(line)-1])
	}
	return problems
}

// The lines of a manifest before a malformed one are checked nevertheless.
func TestValidateChecksTheLinesBeforeAMalformedOne(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	s.Write(backuptest.MetadataFile, append(s.Read(backuptest.MetadataFile), '\n'))
	s.Write(backuptest.DBFile, append(s.Read(backuptest.DBFile), 0))
	s.Add("aaa", nil)
	s.Add("zzz", nil)
	lines := strings.SplitAfter(string(s.Read(backuptest.ManifestFile)), "\n")
	s.Write(backuptest.ManifestFile, []byte(lines[0]+"?\n"+strings.Join(lines[2:], "")))
	s.RequireProblems("manifest_malformed", "file_unknown: aaa", "file_changed: "+backuptest.MetadataFile, "db_size_mismatch: "+backuptest.DBFile)
}

// A recorded path that leads out of the snapshot is not followed.
func TestValidateNeverFollowsRecordedPathsOut(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	root := base.RecordedRoot()
	// The files that they lead to exist and are sound.
	evil := root + "-evil"
	require.NoError(t, os.CopyFS(evil, os.DirFS(base.Path(""))))
	outside := []string{"path_outside_snapshot"}
	shape := []string{"metadata_wrong_shape"}
	sep := string(filepath.Separator)
	for name, test := range map[string]struct {
		path string
		want []string
	}{
		"parent":              {root + sep + ".." + sep + base.Stamp + "-evil" + sep + "db" + sep + "atocore.db", outside},
		"parent and back":     {root + sep + ".." + sep + base.Stamp + sep + "db" + sep + "atocore.db", outside},
		"sibling's prefix":    {evil + sep + "db" + sep + "atocore.db", outside},
		"elsewhere":           {filepath.Join(t.TempDir(), "db", "atocore.db"), outside},
		"relative":            {"db" + sep + "atocore.db", outside},
		"only the parent":     {"..", outside},
		"the root":            {root, outside},
		"the root's parent":   {filepath.Dir(root), outside},
		"not in db":           {root + sep + "config" + sep + "project-registry.json", shape},
		"directly in it":      {root + sep + "atocore.db", shape},
		"the directory":       {root + sep + "db", shape},
		"too deep":            {root + sep + "db" + sep + "db" + sep + "atocore.db", shape},
		"metadata":            {root + sep + backuptest.MetadataFile, shape},
		"dots in the middle":  {root + sep + "." + sep + "db" + sep + sep + "atocore.db", nil},
		"another name":        {root + sep + "db" + sep + "other.db", []string{"db_snapshot_missing"}},
		"name of three dots":  {root + sep + "db" + sep + "...", []string{"db_snapshot_missing"}},
		"endless name":        {root + sep + "db" + sep + strings.Repeat("n", 5000), []string{"db_snapshot_missing"}},
		"name of 255 bytes":   {root + sep + "db" + sep + strings.Repeat("n", 255), []string{"db_snapshot_missing"}},
		"NUL in the name":     {root + sep + "db" + sep + "a\x00b", outside},
		"newline in the name": {root + sep + "db" + sep + "a\nb", []string{"db_snapshot_missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := base.Copy(t)
			s.Set(map[string]any{"db_snapshot_path": test.path})
			s.Reseal()
			report := s.RequireProblems(test.want...)
			require.Equal(t, test.want == nil, report.DBOK)

			s = base.Copy(t)
			s.MakePython()
			s.Set(map[string]any{"db_snapshot_path": test.path})
			report = s.RequireProblems(test.want...)
			require.Equal(t, test.want == nil, report.DBOK)
		})
	}
	for name, changes := range map[string]map[string]any{
		"registry":      {"registry_snapshot_path": evil + sep + "config" + sep + "project-registry.json"},
		"Chroma":        {"chroma_snapshot_path": evil + sep + "chroma"},
		"Chroma's root": {"chroma_snapshot_path": root},
		"root":          {"backup_root": evil},
		"root of all":   {"db_snapshot_path": "/etc/passwd", "backup_root": "/x"},
	} {
		t.Run(name, func(t *testing.T) {
			s := base.Copy(t)
			s.Set(changes)
			s.Reseal()
			report := s.RequireProblems(outside...)
			if name == "registry" {
				require.False(t, *report.RegistryOK)
			}
			if strings.HasPrefix(name, "Chroma") {
				require.False(t, *report.ChromaOK)
			}
		})
	}
	t.Run("endless registry name", func(t *testing.T) {
		s := base.Copy(t)
		s.Set(map[string]any{"registry_snapshot_path": root + sep + "config" + sep + strings.Repeat("n", 5000)})
		s.Reseal()
		s.RequireProblems("registry_snapshot_missing")
	})
	// Any root is accepted if the parts are below it, since it is not looked up.
	t.Run("root that never existed", func(t *testing.T) {
		s := base.Copy(t)
		s.Set(map[string]any{"backup_root": "/never", "db_snapshot_path": "/never/db/atocore.db",
			"registry_snapshot_path": "/never/config/project-registry.json", "chroma_snapshot_path": "/never/chroma"})
		s.Reseal()
		s.RequireProblems()
	})
}

// If a directory of the snapshot is a link, it is not followed.
func TestValidateFollowsNoLinkedDirectory(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	for dir, want := range map[string][]string{
		"db":     {"db_snapshot_missing", "file_missing: " + backuptest.DBFile, "file_unknown: db", "file_not_regular: db"},
		"config": {"registry_snapshot_missing", "file_missing: " + backuptest.RegistryFile, "file_unknown: config", "file_not_regular: config"},
		"chroma": nil,
	} {
		for _, python := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s python=%t", dir, python), func(t *testing.T) {
				s := base.Copy(t)
				s.Link(dir, s.MoveOut(dir))
				if python {
					s.MakePython()
				}
				found := backuptest.Brief(s.Validate().Problems)
				switch {
				case dir == "chroma":
					require.Subset(t, found, []string{"chroma_snapshot_missing", "file_not_regular: chroma"})
				case python:
					require.ElementsMatch(t, []string{want[0], want[3]}, found)
				default:
					require.ElementsMatch(t, want, found)
				}
			})
		}
	}
}

// Snapshots of the Python module are checked without manifest and format_version.
func TestValidatePythonSnapshots(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	base.MakePython()
	for name, test := range map[string]struct {
		change func(s *backuptest.Snapshot)
		want   []string
	}{
		"as made":                       {func(s *backuptest.Snapshot) {}, nil},
		"in WAL form":                   {func(s *backuptest.Snapshot) { s.SetJournalForm(2) }, nil},
		"file of someone else":          {func(s *backuptest.Snapshot) { s.Add("notes.txt", []byte("x")) }, nil},
		"changed note":                  {func(s *backuptest.Snapshot) { s.Set(map[string]any{"vector_store_note": "?"}) }, nil},
		"Chroma asked for, but missing": {func(s *backuptest.Snapshot) { s.Remove("chroma"); s.Set(withoutChroma) }, nil},
		"no registry": {func(s *backuptest.Snapshot) {
			s.Remove(backuptest.RegistryFile)
			s.Set(map[string]any{"registry_snapshot_path": ""})
		}, nil},
		"with zone":        {func(s *backuptest.Snapshot) { s.Set(map[string]any{"created_at": "2026-11-24T13:00:00.5+05:30"}) }, nil},
		"without zone":     {func(s *backuptest.Snapshot) { s.Set(map[string]any{"created_at": "2026-11-24T13:00:00"}) }, nil},
		"stamp alone":      {func(s *backuptest.Snapshot) { s.Set(map[string]any{"stamp": "x"}) }, []string{"metadata_wrong_shape"}},
		"version alone":    {func(s *backuptest.Snapshot) { s.Set(map[string]any{"format_version": 1}) }, []string{"metadata_wrong_shape"}},
		"version 0":        {func(s *backuptest.Snapshot) { s.Set(map[string]any{"format_version": 0}) }, []string{"metadata_wrong_shape"}},
		"both":             {func(s *backuptest.Snapshot) { s.Set(map[string]any{"format_version": 1, "stamp": "x"}) }, []string{"manifest_missing"}},
		"missing metadata": {func(s *backuptest.Snapshot) { s.Remove(backuptest.MetadataFile) }, []string{"metadata_missing"}},
		"missing database": {func(s *backuptest.Snapshot) { s.Remove("db") }, []string{"db_snapshot_missing"}},
		"size": {
			func(s *backuptest.Snapshot) {
				s.Write(backuptest.DBFile, append(s.Read(backuptest.DBFile), make([]byte, 4096)...))
			},
			[]string{"db_size_mismatch: " + backuptest.DBFile},
		},
		"empty database": {
			func(s *backuptest.Snapshot) { s.Write(backuptest.DBFile, nil) },
			[]string{"db_integrity_check_failed: " + backuptest.DBFile, "db_size_mismatch: " + backuptest.DBFile},
		},
		"corrupt index": {
			func(s *backuptest.Snapshot) { s.LoseIndexEntries(3) },
			[]string{"db_integrity_check_failed: " + backuptest.DBFile},
		},
		"WAL beside it": {
			func(s *backuptest.Snapshot) { s.Add(backuptest.DBFile+"-wal", []byte("x")) }, []string{"db_sidecar_present: " + backuptest.DBFile + "-wal"},
		},
		"journal beside it": {
			func(s *backuptest.Snapshot) { s.Add(backuptest.DBFile+"-journal", []byte("x")) }, []string{"db_sidecar_present: " + backuptest.DBFile + "-journal"},
		},
		"files that Python's check leaves": {
			func(s *backuptest.Snapshot) {
				s.Add(backuptest.DBFile+"-wal", nil)
				s.Add(backuptest.DBFile+"-shm", make([]byte, 32768))
			}, nil,
		},
		"WAL that is a link": {
			func(s *backuptest.Snapshot) { s.Link(backuptest.DBFile+"-wal", "nothing") },
			[]string{"db_sidecar_present: " + backuptest.DBFile + "-wal", "file_not_regular: " + backuptest.DBFile + "-wal"},
		},
		"registry not JSON": {
			func(s *backuptest.Snapshot) { s.Write(backuptest.RegistryFile, []byte("{'a': 1}")) }, []string{"registry_invalid_json: " + backuptest.RegistryFile},
		},
		"registry not UTF-8": {
			func(s *backuptest.Snapshot) { s.Write(backuptest.RegistryFile, []byte("\"\xff\"")) }, []string{"registry_invalid_json: " + backuptest.RegistryFile},
		},
		"registry of 17 MB": {
			func(s *backuptest.Snapshot) {
				s.Write(backuptest.RegistryFile, []byte(strings.Repeat(" ", 17<<20)+"{}"))
			},
			[]string{"registry_invalid_json: " + backuptest.RegistryFile},
		},
		"registry gone": {func(s *backuptest.Snapshot) { s.Remove(backuptest.RegistryFile) }, []string{"registry_snapshot_missing"}},
		"Chroma gone":   {func(s *backuptest.Snapshot) { s.Remove("chroma") }, []string{"chroma_snapshot_missing"}},
		"Chroma a file": {func(s *backuptest.Snapshot) { s.Remove("chroma"); s.Add("chroma", nil) }, []string{"chroma_snapshot_missing"}},
		"Chroma's database": {
			func(s *backuptest.Snapshot) { s.RuinPages(backuptest.ChromaFile) }, []string{"chroma_db_check_failed: " + backuptest.ChromaFile},
		},
		"Chroma's database no database": {
			func(s *backuptest.Snapshot) {
				s.Write(backuptest.ChromaFile, bytes.Repeat([]byte("x"), len(s.Read(backuptest.ChromaFile))))
			},
			[]string{"chroma_db_check_failed: " + backuptest.ChromaFile},
		},
		"Chroma's database under a journal": {
			// It may only be whole together with the journal.
			func(s *backuptest.Snapshot) {
				s.RuinPages(backuptest.ChromaFile)
				s.Add(backuptest.ChromaFile+"-journal", []byte("x"))
			},
			[]string{"chroma_bytes_mismatch: chroma", "chroma_files_mismatch: chroma"},
		},
		"a segment's file": {
			func(s *backuptest.Snapshot) { s.Remove(s.Files()[1]) },
			[]string{"chroma_bytes_mismatch: chroma", "chroma_files_mismatch: chroma"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := base.Copy(t)
			test.change(s)
			s.RequireProblems(test.want...)
		})
	}
}

// withoutChroma are the fields of metadata without a Chroma copy.
var withoutChroma = map[string]any{"chroma_snapshot_path": "", "chroma_snapshot_bytes": 0, "chroma_snapshot_files": 0}

// A manifest counts even if the Python module wrote the snapshot.
func TestValidatePythonSnapshotWithManifest(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	s.MakePython()
	s.Reseal()
	s.RequireProblems()
	s.Flip(backuptest.RegistryFile, 20)
	require.Contains(t, backuptest.Brief(s.Validate().Problems), "file_changed: "+backuptest.RegistryFile)
}
