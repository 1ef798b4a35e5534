package pyjson_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/pyjson"
)

// record has a field of every type.
type record struct {
	text    string
	flag    bool
	count   int64
	signed  pyjson.Signed
	version int
	at      time.Time
	note    string
}

func (r *record) fields() []pyjson.Field {
	return []pyjson.Field{
		{Name: "text", At: &r.text},
		{Name: "flag", At: &r.flag},
		{Name: "count", At: &r.count},
		{Name: "signed", At: &r.signed},
		{Name: "version", At: &r.version, Ours: true},
		{Name: "at", At: &r.at},
		{Name: "note", At: &r.note, Optional: true},
	}
}

func TestFields(t *testing.T) {
	want := record{"a\xff", true, math.MaxInt64, math.MinInt64, 1, time.Date(2026, 11, 24, 11, 54, 19, 5000, time.UTC), "é"}
	text := pyjson.EncodeObject(want.fields(), nil)
	require.Equal(t, `{"text":"a\udcff","flag":true,"count":9223372036854775807,"signed":-9223372036854775808,"version":1,`+
		`"at":"2026-11-24T11:54:19.000005+00:00","note":"\u00e9"}`, text)
	var got record
	fields := got.fields()
	require.NoError(t, pyjson.ReadFields(fields, text))
	for i := range fields {
		require.NoError(t, fields[i].Decode(), fields[i].Name)
	}
	require.Equal(t, want, got)
	require.Equal(t, `"\u00e9"`, pyjson.Find(fields, "note").Raw)
	require.Nil(t, pyjson.Find(fields, "Note"), "names are matched exactly")
}

func TestEncodeObjectSkips(t *testing.T) {
	var r record
	skipText := func(f *pyjson.Field, value string) bool { return value == `""` || f.Ours }
	require.Equal(t, `{"flag":false,"count":0,"signed":0,"at":"0001-01-01T00:00:00+00:00"}`, pyjson.EncodeObject(r.fields(), skipText))
	require.Equal(t, "{}", pyjson.EncodeObject(r.fields(), func(*pyjson.Field, string) bool { return true }))
	require.Equal(t, "{}", pyjson.EncodeObject(nil, nil))
}

func TestReadFieldsRefusesDuplicates(t *testing.T) {
	for _, text := range []string{
		`{"text":"a","text":"a"}`, `{"text":"a","\u0074ext":"b"}`, `{"unknown":1,"text":"a","unknown":2}`, `{"":1,"":1}`,
	} {
		require.ErrorContains(t, pyjson.ReadFields(new(record).fields(), text), "occurs twice", text)
	}
	fields := new(record).fields()
	require.NoError(t, pyjson.ReadFields(fields, `{"TEXT": 1, "Text": 2, "text" : [ 1 ] , "other": {"text": 3, "text": 4}}`))
	require.Equal(t, "[ 1 ]", fields[0].Raw)
	require.Empty(t, fields[1].Raw)
}

func TestDecodeRefusesOtherTypes(t *testing.T) {
	for name, raws := range map[string][]string{
		"text":    {"null", "1", "true", "[]", `{"a":"b"}`, `"\ud800"`},
		"flag":    {"null", "1", `"true"`, "[]"},
		"count":   {"null", "-1", "1.0", "1e1", `"1"`, "true", "9223372036854775808"},
		"signed":  {"null", "1.5", `"1"`, "-9223372036854775809"},
		"version": {"null", "0", "-1", "1.0", `"1"`, "99999999999999999999"},
		"at":      {"null", "0", `"now"`, `"2026-11-24"`, `"0000-06-01T00:00:00Z"`, `"9999-12-31T23:59:59-00:01"`},
	} {
		for _, raw := range raws {
			f := pyjson.Find(new(record).fields(), name)
			f.Raw = raw
			require.Error(t, f.Decode(), "%s: %s", name, raw)
		}
	}
	require.Panics(t, func() { (&pyjson.Field{Name: "x", At: new(float64)}).Encode() })
	require.Panics(t, func() { _ = (&pyjson.Field{Name: "x", At: 1, Raw: "1"}).Decode() })
}

// Large or deep text costs time in proportion to its size, and no more memory
// than a few times that.
func TestMembersOfHugeText(t *testing.T) {
	const size = 1 << 20
	for name, text := range map[string]string{
		"open objects":  strings.Repeat(`{"a":`, size/5),
		"open arrays":   strings.Repeat("[", size),
		"closed arrays": strings.Repeat("[", size/2) + strings.Repeat("]", size/2),
	} {
		_, err := membersOf(text)
		require.ErrorIs(t, err, pyjson.ErrNotJSON, name)
	}
	_, err := membersOf(strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000))
	require.ErrorIs(t, err, pyjson.ErrTooDeep)
	members, err := membersOf(`{"a":[` + strings.Repeat("{},", size/3) + `1],"b":"` + strings.Repeat("[", size) + `"}`)
	require.NoError(t, err)
	require.Len(t, members, 2)
	require.Len(t, members[1].value, size+2)
}

// Strings may be held in JSON of structs.
func TestString(t *testing.T) {
	type holder struct {
		S  pyjson.String   `json:"s"`
		Ss []pyjson.String `json:"ss"`
	}
	want := holder{"a\xff", []pyjson.String{"é", ""}}
	data, err := json.Marshal(want)
	require.NoError(t, err)
	require.Equal(t, `{"s":"a\udcff","ss":["\u00e9",""]}`, string(data))
	var got holder
	require.NoError(t, json.Unmarshal(data, &got))
	require.Equal(t, want, got)
	require.Error(t, json.Unmarshal([]byte(`{"s":"\ud800"}`), &got))
	require.Error(t, json.Unmarshal([]byte(`{"s":1}`), &got))
	require.Equal(t, want, got, "an error leaves the value as it was")
}

func TestCheckTime(t *testing.T) {
	for _, at := range []time.Time{{}, time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
		time.Date(10000, 1, 1, 0, 0, 0, 0, time.FixedZone("east", 14*3600))} {
		require.NoError(t, pyjson.CheckTime(at), at)
	}
	for _, at := range []time.Time{time.Time{}.Add(-1), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("west", -12*3600)), time.Unix(1<<60, 0)} {
		require.ErrorContains(t, pyjson.CheckTime(at), "year", at)
	}
}

func BenchmarkReadFields(b *testing.B) {
	text := strings.Replace(metadata, "/srv/", "/srv/"+strings.Repeat("x", 600), 1)
	for b.Loop() {
		fields := new(record).fields()
		if err := pyjson.ReadFields(fields, text); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(text)))
}
