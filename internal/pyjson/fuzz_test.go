package pyjson_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/pyjson"
)

// metadata is JSON as the Python module writes it.
const metadata = `{
  "created_at": "2026-11-24T11:54:19.973489+00:00",
  "db_snapshot_path": "/srv/backups/snapshots/20261124T115419Z-002/db/ato \"core\"\\\u00e9\ud83d\ude00\udcff\n.db",
  "db_size_bytes": 9223372036854775807,
  "registry_snapshot_path": "",
  "chroma_snapshot_included": true,
  "future": [[{"a": 1e400}], null, -0.5]
}
`

type member struct{ name, value string }

// membersOf returns what Members passes on, and its error.
func membersOf(text string) (members []member, err error) {
	seen := make(map[string]bool)
	err = pyjson.Members(text, func(name, value string) bool {
		members = append(members, member{name, value})
		defer func() { seen[name] = true }()
		return !seen[name]
	})
	return members, err
}

// The members of an object are those that encoding/json finds, raw values
// included, and text that it refuses is refused with the same error; but the
// constants NaN and Infinity count as null.
func FuzzMembers(f *testing.F) {
	nested := func(n int, open, within, shut string) string {
		return strings.Repeat(open, n) + within + strings.Repeat(shut, n)
	}
	seeds := []string{
		metadata, "", " ", "{", "{}", "{} ", " { } x", "[]", "[1,]", "[ ]", "[1 2]", "null", "nul", "nulll", `"x"`, `{"a":1,}`, `{,}`, `{"a"}`,
		`{"a":}`, `{"a" 1}`, `{a:1}`, `{"a":1 "b":2}`, `{"a":1}}`, `{"a":tru}`, "\ufeff{}", "{\x00}", "\x00", "{\v}", "{\u00a0}", "// x\n{}", `{'a':1}`,
		"\t{\r\n\"a\" : [ 1 , { } ] , \"b\" : \"]}\" }\n", `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"\ud800":1,"\udfff":2}`, `{"a":{"b":1,"b":2}}`,
		`{"a":1,"a":2`, `{"":1,"a":1,"":2,"a":2}`, `{"a\"{":"\\","[[\\":"\"]]"}`, `{}{}`, `{} []`, `{"a":1}` + "\n{", `{"a":1}x`,
		nested(16, `{"a":[`, "", "]}"), nested(17, `{"a":[`, "", "]}"), nested(17, `{"a":[`, "", "]}x"), nested(33, "[", "", "]"),
		nested(31, `{"a":`, "[]", "}"), nested(31, `{"a":`, "{}", "}"), nested(32, `{"a":`, "[]", "}"), nested(32, `{"a":`, "{}", "}"),
	}
	for _, value := range []string{
		"0", "-0", "00", "01", "-", "-01", "+1", "1.", ".5", "1.5", "-1.50", "1e", "1e5", "1E+05", "1e-", "0e0", "0x1", "1_0", "NaN", "Infinity", "-Infinity", "-NaN", "NaNa", "[NaN,NaN]", "1e400",
		"true", "True", "falsee", `"`, `"\`, `"\"`, `"\x"`, `"\u12"`, `"\u12g4"`, `"\u123"`, `"\v"`, `"\uABCd"`, `"\/\b\f\n\r\t"`, "\"\x1f\"", "\"\x7f\"", "\"\n\"", "\"\u2028é😀\"",
	} {
		seeds = append(seeds, value, `{"a":`+value+`}`, `[`+value+`]`)
	}
	for _, seed := range seeds {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) {
			return
		}
		got, err := membersOf(text)
		text = pyjson.Relax(text) // Members accepts Python's constants
		if fault := json.Unmarshal([]byte(text), new(json.RawMessage)); fault != nil {
			require.EqualError(t, err, "not JSON: "+fault.Error())
			require.ErrorIs(t, err, pyjson.ErrNotJSON)
			return
		}
		if jsonDepth(t, text) > pyjson.MaxNesting {
			require.EqualError(t, err, "nested more than 32 deep")
			require.ErrorIs(t, err, pyjson.ErrTooDeep)
			return
		}
		var last map[string]json.RawMessage // of a name that occurs twice the last value
		if fault := json.Unmarshal([]byte(text), &last); fault != nil || last == nil {
			require.EqualError(t, err, "not an object")
			return
		}
		want, duplicate := jsonMembers(t, text)
		require.Equal(t, want, got)
		if duplicate == "" {
			require.NoError(t, err)
			require.Len(t, got, len(last))
		} else {
			require.EqualError(t, err, duplicate)
			require.Greater(t, len(got), len(last))
		}
		values := make(map[string]json.RawMessage)
		for _, m := range got {
			values[m.name] = json.RawMessage(m.value)
		}
		require.Equal(t, last, values)
	})
}

// jsonMembers returns the members of a valid JSON object, and what is to be said
// of the first name that occurs twice.
func jsonMembers(t *testing.T, text string) (members []member, duplicate string) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	_, err := decoder.Token()
	require.NoError(t, err)
	seen := make(map[string]bool)
	for decoder.More() {
		token, err := decoder.Token()
		require.NoError(t, err)
		name := token.(string)
		var value json.RawMessage
		require.NoError(t, decoder.Decode(&value))
		members = append(members, member{name, string(value)})
		if seen[name] && duplicate == "" {
			duplicate = fmt.Sprintf("the name %q occurs twice", name)
		}
		seen[name] = true
	}
	return members, duplicate
}

// jsonDepth returns how deep valid JSON is nested.
func jsonDepth(t *testing.T, text string) (deepest int) {
	t.Helper()
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
// encoding/json as far as it can.
func FuzzQuote(f *testing.F) {
	for _, seed := range []string{"", "plain", "\x00\x1f\x7f\"\\/", "é😀\u2028", "\xff", "\xed\xb2\x80", "\xc3\xa9\xc3", "\\udcff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		quoted := pyjson.Quote(s)
		require.False(t, strings.ContainsFunc(quoted, func(c rune) bool { return c < ' ' || c > '~' }))
		got, err := pyjson.Unquote(quoted)
		require.NoError(t, err)
		require.Equal(t, s, got)
		var decoded string
		require.NoError(t, json.Unmarshal([]byte(quoted), &decoded))
		if utf8.ValidString(s) {
			require.Equal(t, s, decoded)
		}

		data, err := json.Marshal(pyjson.String(s))
		require.NoError(t, err)
		var again pyjson.String
		require.NoError(t, json.Unmarshal(data, &again))
		require.Equal(t, s, string(again))
	})
}

// Any string that encoding/json accepts is read as the same one, except that
// lone surrogates are bytes or an error.
func FuzzUnquote(f *testing.F) {
	for _, seed := range []string{
		`""`, `"plain"`, `"\"\\\/\b\f\n\r\t"`, `"\u00e9\u00E9é"`, `"\ud83d\ude00"`, `"\ud83d\udcff\ude00"`, `"\udcff"`, `"\udc7f"`, `"\udd00"`, `"\ud800"`,
		`"\ud83d"`, `"\ud83d\n"`, `"\ud83dx"`, `"\u0000"`, `null`, `1`, `[]`, `{"a":"b"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if !utf8.ValidString(raw) || !json.Valid([]byte(raw)) || strings.TrimSpace(raw) != raw {
			return
		}
		got, err := pyjson.Unquote(raw)
		var want string
		if raw[0] != '"' {
			require.EqualError(t, err, "not a string")
			return
		}
		require.NoError(t, json.Unmarshal([]byte(raw), &want))
		if err != nil {
			require.ErrorContains(t, err, "lone surrogate")
			require.Contains(t, want, "\ufffd")
			return
		}
		if !strings.Contains(want, "\ufffd") {
			require.Equal(t, want, got)
		}
	})
}

// The result is ASCII, and the same to encoding/json.
func FuzzToASCII(f *testing.F) {
	for _, seed := range []string{metadata, `"é😀\u2028"`, "[\n\"\x7f\",\t\"é\"]", "{}", "1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) || !json.Valid([]byte(text)) {
			return
		}
		got := pyjson.ToASCII(text)
		require.False(t, strings.ContainsFunc(got, func(c rune) bool { return c >= 0x7f }))
		require.Equal(t, decode(t, text), decode(t, got))
		require.Equal(t, got, pyjson.ToASCII(got))
	})
}

func decode(t *testing.T, text string) (v any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&v))
	return v
}
