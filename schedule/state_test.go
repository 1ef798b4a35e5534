package schedule

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// Any bytes are a state file or a lost one.
func FuzzStates(f *testing.F) {
	for _, seed := range []string{
		"", "null", "{", `{"version":1}`, `{"version":2,"stores":{}}`, `{"version":1,"stores":{"":null}}`, `{"version":1,"stores":[]}`,
		`{"version":1,"stores":{"a":{"pruned":"x","pushed":"\u0000","verified":"y","verdict":"z","drilled_at":"2026-11-24T12:00:00Z","ahead":["b"]}}}`,
		`{"version":1,"stores":{"a":{"drilled_at":"tomorrow"}}}`, `{"version":1,"stores":{"a":{"drilled_at":"9999-12-31T23:59:59Z"}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		states := parseStates(data)
		require.Equal(t, 1, states.Version)
		require.NotNil(t, states.Stores)
		text, err := json.Marshal(states)
		require.NoError(t, err)
		require.Equal(t, text, must(json.Marshal(parseStates(text))))
	})
}

func must(text []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return text
}
