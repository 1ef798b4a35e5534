package pyjson_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/pyjson"
)

// Python's json.loads accepts the first ones and refuses the second ones.
func TestRelax(t *testing.T) {
	for text, want := range map[string]string{
		`NaN`:                       `null`,
		` Infinity `:                ` null `,
		`[NaN, -Infinity,Infinity]`: `[null, null,null]`,
		`{"a": NaN, "NaN": "NaN"}`:  `{"a": null, "NaN": "NaN"}`,
		`{"\"NaN": [NaN]}`:          `{"\"NaN": [null]}`,
		`[1, 2]`:                    `[1, 2]`,
	} {
		require.Equal(t, want, pyjson.Relax(text))
		require.True(t, json.Valid([]byte(pyjson.Relax(text))), text)
	}
	for _, text := range []string{`1NaN`, `[NaNaN]`, `--Infinity`, `- Infinity`, `+Infinity`, `nan`, `{NaN: 1}`, `[1 NaN]`, `"NaN`, `Infinityx`, `""NaN`, `-NaN`, `[]NaN`, `NaN NaN`} {
		require.False(t, json.Valid([]byte(pyjson.Relax(text))), text)
	}
}

// Whatever is JSON stays as it is, and nothing becomes JSON but by constants.
func FuzzRelax(f *testing.F) {
	for _, seed := range []string{`{"a": NaN}`, `"NaN"`, `[-Infinity]`, `"\`, `{"NaN": 1}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if json.Valid([]byte(text)) {
			require.Equal(t, text, pyjson.Relax(text))
		}
		relaxed := pyjson.Relax(text)
		require.Equal(t, relaxed, pyjson.Relax(relaxed))
	})
}
