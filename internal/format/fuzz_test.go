package backup_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// What is taken for metadata is written again as the same metadata, and both
// forms of JSON that are passed on are valid and ASCII.
func FuzzMetadata(f *testing.F) {
	good, err := backup.EncodeMetadata(exampleMetadata())
	require.NoError(f, err)
	python := exampleMetadata()
	python.FormatVersion, python.Stamp = 0, ""
	pythonForm, err := backup.EncodeMetadata(python)
	require.NoError(f, err)
	text := string(good)
	for _, seed := range []string{
		text, string(pythonForm), "", "{}", "null", "[]", strings.ToUpper(text),
		strings.Replace(text, "{", `{"stamp": "x",`, 1),
		strings.Replace(text, "{", `{"future": [[{"a": 1e400}], "\ud800"],`, 1),
		strings.Replace(text, `"format_version": 1`, `"format_version": 2`, 1),
		strings.Replace(text, "+00:00", "-23:59", 1),
		strings.Replace(text, "+00:00", "", 1),
		strings.Replace(text, "2026", "0001", 1),
		strings.Replace(text, ".973489", ".9734890001", 1),
		strings.Replace(text, `\udcff`, `\ud83d\udcff\ude00`, 1),
		strings.Replace(text, `\u00e9`, "\u00e9\xff", 1),
		strings.Replace(text, "9223372036854775807", "9223372036854775808", 1),
		strings.Replace(text, "true", "null", 1),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := backup.ParseMetadata(data)
		if err != nil {
			require.Nil(t, m)
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.True(t, utf8.Valid(data))
		require.True(t, json.Valid(data))
		require.False(t, m.DBSizeBytes < 0 || m.ChromaSnapshotBytes < 0 || m.ChromaSnapshotFiles < 0)
		encoded, err := backup.EncodeMetadata(m)
		require.NoError(t, err)
		require.False(t, slices.ContainsFunc(encoded, func(c byte) bool { return c >= 0x7f }), "not ASCII")
		again, err := backup.ParseMetadata(encoded)
		require.NoError(t, err, "%s", encoded)
		m.CreatedAt = m.CreatedAt.Truncate(time.Microsecond) // what the format keeps
		require.Equal(t, m, again)
		twice, err := backup.EncodeMetadata(again)
		require.NoError(t, err)
		require.Equal(t, string(encoded), string(twice))
	})
}

// The members of an object are those that encoding/json finds, raw values
// included, and what it refuses is refused with its words.
func FuzzEachMember(f *testing.F) {
	good, err := backup.EncodeMetadata(exampleMetadata())
	require.NoError(f, err)
	nested := func(n int, open, within, shut string) string {
		return strings.Repeat(open, n) + within + strings.Repeat(shut, n)
	}
	seeds := []string{
		string(good), "", " ", "{", "{}", "{} ", " { } x", "[]", "[1,]", "[ ]", "[1 2]", "null", "nul", "nulll", `"x"`, `{"a":1,}`, `{,}`, `{"a"}`,
		`{"a":}`, `{"a" 1}`, `{a:1}`, `{"a":1 "b":2}`, `{"a":1}}`, `{"a":tru}`, "\ufeff{}", "{\x00}", "\x00", "{\v}", "{\u00a0}", "// x\n{}", `{'a':1}`,
		"\t{\r\n\"a\" : [ 1 , { } ] , \"b\" : \"]}\" }\n", `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"\ud800":1,"\udfff":2}`, `{"a":{"b":1,"b":2}}`,
		`{"a":1,"a":2`, `{"":1,"a":1,"":2,"a":2}`,
		nested(16, `{"a":[`, "", "]}"), nested(17, `{"a":[`, "", "]}"), nested(17, `{"a":[`, "", "]}x"), nested(33, "[", "", "]"),
		nested(31, `{"a":`, "[]", "}"), nested(31, `{"a":`, "{}", "}"), nested(32, `{"a":`, "[]", "}"), nested(32, `{"a":`, "{}", "}"),
	}
	for _, value := range []string{
		"0", "-0", "00", "01", "-", "-01", "+1", "1.", ".5", "1.5", "-1.50", "1e", "1e5", "1E+05", "1e-", "0e0", "0x1", "1_0", "NaN", "Infinity", "1e400",
		"true", "True", "falsee", `"`, `"\`, `"\"`, `"\x"`, `"\u12"`, `"\u12g4"`, `"\u123"`, `"\v"`, `"\uABCd"`, `"\/\b\f\n\r\t"`, "\"\x1f\"", "\"\x7f\"", "\"\n\"", "\"\u2028é😀\"",
	} {
		seeds = append(seeds, value, `{"a":`+value+`}`, `[`+value+`]`)
	}
	for _, seed := range seeds {
		f.Add(seed)
	}
	type member struct{ name, value string }
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) {
			return
		}
		var got []member
		seen := make(map[string]bool)
		err := backup.EachMember(text, func(name, value string) bool {
			got = append(got, member{name, value})
			defer func() { seen[name] = true }()
			return !seen[name]
		})
		if fault := json.Unmarshal([]byte(text), new(json.RawMessage)); fault != nil {
			require.EqualError(t, err, "not JSON: "+fault.Error())
			return
		}
		if jsonDepth(t, text) > 32 {
			require.EqualError(t, err, "nested more than 32 deep")
			return
		}
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.UseNumber()
		if first, err2 := decoder.Token(); err2 != nil || first != json.Delim('{') {
			require.EqualError(t, err, "not an object")
			return
		}
		var want []member
		twice := ""
		clear(seen)
		for decoder.More() {
			name, err := decoder.Token()
			require.NoError(t, err)
			var value json.RawMessage
			require.NoError(t, decoder.Decode(&value))
			want = append(want, member{name.(string), string(value)})
			if seen[name.(string)] && twice == "" {
				twice = fmt.Sprintf("%q is there twice", name)
			}
			seen[name.(string)] = true
		}
		require.Equal(t, want, got)
		if twice == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, twice)
		}
	})
}

// jsonDepth tells how deep valid JSON is nested.
func jsonDepth(t *testing.T, text string) (deepest int) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	for depth := 0; ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return deepest
		}
		require.NoError(t, err)
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// Any string of bytes can be written, and is read again as itself, also by
// encoding/json as far as that can.
func FuzzQuoteASCII(f *testing.F) {
	for _, seed := range []string{"", "plain", "\x00\x1f\x7f\"\\/", "é😀\u2028", "\xff", "\xed\xb2\x80", "\xc3\xa9\xc3", "\\udcff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		quoted := backup.QuoteASCII(s)
		require.False(t, strings.ContainsFunc(quoted, func(c rune) bool { return c < ' ' || c > '~' }))
		got, err := backup.UnquoteJSON(quoted)
		require.NoError(t, err)
		require.Equal(t, s, got)
		var decoded string
		require.NoError(t, json.Unmarshal([]byte(quoted), &decoded))
		if utf8.ValidString(s) {
			require.Equal(t, s, decoded)
		}
	})
}

// A manifest that is read to its end is written again byte for byte, in
// ascending order, and names nothing outside.
func FuzzManifest(f *testing.F) {
	var good strings.Builder
	for _, name := range []string{" a", "a\nb\r\\", "backup-metadata.json", "chroma/x", "db/atocore.db", "é\xff"} {
		good.WriteString(backup.ManifestLine(sha256.Sum256([]byte(name)), name))
	}
	text := good.String()
	zeros := strings.Repeat("0", 64)
	for _, seed := range []string{
		text, "", "\n", strings.ToUpper(text), strings.ReplaceAll(text, "\n", "\r\n"), strings.TrimSpace(text), text + text,
		zeros + "  a\n", `\` + zeros + `  a\n` + "\n", zeros + "  ../a\n", zeros + "  /a\n", zeros + "  a/../../b\n", zeros + "  .\n",
		zeros + "  SHA256SUMS\n", zeros + " *a\n", zeros + "  a\x00\n", zeros + "  " + strings.Repeat("a/", 200) + "a\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var written strings.Builder
		last, first := "", true
		err := backup.EachManifestEntry(data, func(sum [sha256.Size]byte, name string) {
			require.True(t, first || last < name, "%q comes after %q", name, last)
			first, last = false, name
			require.True(t, filepath.IsLocal(name) || runtime.GOOS == "windows", "%q leads out", name)
			require.Equal(t, path.Clean(name), name)
			require.NotContains(t, name, "\x00")
			require.NotEqual(t, manifestFile, name)
			written.WriteString(backup.ManifestLine(sum, name))
		})
		require.True(t, strings.HasPrefix(string(data), written.String()), "what was read is not what is there")
		if err == nil {
			require.False(t, first, "an empty manifest was accepted")
			require.Equal(t, string(data), written.String())
		}
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
		}
	})
}

// No stamp leads out of snapshots/, makes a panic or passes for a snapshot
// that is not there.
func FuzzStamp(f *testing.F) {
	dir := f.TempDir()
	require.NoError(f, os.MkdirAll(filepath.Join(dir, "snapshots", "real"), 0o755))
	require.NoError(f, os.WriteFile(filepath.Join(dir, "snapshots", "file"), nil, 0o600))
	for _, seed := range []string{
		"20261124T115419Z", "20261124T115419Z-002", "real", "file", "REAL", "", ".", "..", "../x", "real/", "real/.", "./real", "/etc", "a\x00b",
		"\xff", "\n", `..\x`, "C:", "real:stream", "CON", strings.Repeat("a", 255), strings.Repeat("a", 256), "20261124T115419Z-99999999999999999999",
		"20261124T115419.5Z", "…",
	} {
		f.Add(seed, "20261124T115419Z-010", "x")
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if backup.IsStamp(a) {
			require.True(t, filepath.IsLocal(a) || runtime.GOOS == "windows")
			require.Equal(t, a, filepath.Base(a))
			require.Equal(t, dir, filepath.Dir(filepath.Join(dir, a)))
		}
		report, err := backup.ValidateBackup(t.Context(), backup.Options{BackupDir: dir}, a)
		require.True(t, errors.Is(err, backup.ErrInvalidBackup), "%v", err)
		requireReport(t, report, err)
		rel, relErr := filepath.Rel(filepath.Join(dir, "snapshots"), report.Path)
		require.NoError(t, relErr)
		require.True(t, filepath.IsLocal(rel))
		if a != "real" && runtime.GOOS == "linux" {
			require.False(t, report.Exists)
		}

		// An order, so that sorting gives one result whatever was before.
		require.Equal(t, a == b, backup.CompareStamps(a, b) == 0)
		require.Equal(t, sign(backup.CompareStamps(a, b)), -sign(backup.CompareStamps(b, a)))
		names := []string{a, b, c}
		slices.SortFunc(names, backup.CompareStamps)
		require.LessOrEqual(t, backup.CompareStamps(names[0], names[2]), 0)
	})
}

// A recorded path leads below the snapshot or nowhere.
func FuzzRelativeTo(f *testing.F) {
	for _, seed := range [][2]string{
		{"/root", "/root/db/x"}, {"/root", "/root-evil/db/x"}, {"/root", "/root/../x"}, {"/", "/etc"}, {"", "/x"}, {".", "db/x"},
		{"..", "../x"}, {"/root/", "/root//./db"}, {"/a/../b", "/b/x"}, {"a\x00", "a\x00/b"}, {"C:\\a", "C:\\a\\b"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, root, recorded string) {
		rel, ok := backup.RelativeTo(root, recorded)
		if !ok {
			require.Empty(t, rel)
			return
		}
		require.True(t, filepath.IsLocal(filepath.FromSlash(rel)))
		require.Equal(t, path.Clean(rel), rel)
		require.NotEqual(t, ".", rel)
		require.NotContains(t, rel, "\x00")
		require.Equal(t, filepath.Clean(recorded), filepath.Join(root, filepath.FromSlash(rel)))
	})
}
