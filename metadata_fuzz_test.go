package backup_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// What is accepted as metadata is written again as the same metadata, and in
// ASCII.
func FuzzMetadata(f *testing.F) {
	text := metadataText(f, exampleMetadata())
	python := exampleMetadata()
	python.FormatVersion, python.Stamp = 0, ""
	for _, seed := range []string{
		text, metadataText(f, python), "", "{}", "null", "[]", strings.ToUpper(text),
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
		m := exampleMetadata()
		if err := m.UnmarshalJSON(data); err != nil {
			require.Equal(t, exampleMetadata(), m, "an error changed something")
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.True(t, utf8.Valid(data))
		require.True(t, json.Valid(data))
		require.False(t, m.DBSizeBytes < 0 || m.ChromaSnapshotBytes < 0 || m.ChromaSnapshotFiles < 0)
		encoded := metadataText(t, m)
		require.False(t, strings.ContainsFunc(encoded, func(c rune) bool { return c >= 0x7f }), "not ASCII")
		again, err := parseMetadata(encoded)
		require.NoError(t, err, encoded)
		m.CreatedAt = m.CreatedAt.Truncate(time.Microsecond) // the precision of the format
		require.Equal(t, m, again)
		require.Equal(t, encoded, metadataText(t, again))
	})
}
