package backup_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// exampleMetadata has something in every field.
func exampleMetadata() *backup.Metadata {
	return &backup.Metadata{
		CreatedAt:              time.Date(2026, 11, 24, 11, 54, 19, 973489000, time.UTC),
		BackupRoot:             "/srv/backups/snapshots/20261124T115419Z-002",
		DBSnapshotPath:         "/srv/backups/snapshots/20261124T115419Z-002/db/ato \"core\"\\é😀\xff\n.db",
		DBSizeBytes:            math.MaxInt64,
		RegistrySnapshotPath:   "/srv/backups/snapshots/20261124T115419Z-002/config/<&>\u2028\x7f.json",
		ChromaSnapshotPath:     "/srv/backups/snapshots/20261124T115419Z-002/chroma",
		ChromaSnapshotBytes:    1844674407370955,
		ChromaSnapshotFiles:    11,
		ChromaSnapshotIncluded: true,
		VectorStoreNote:        "α",
		FormatVersion:          1,
		Stamp:                  "20261124T115419Z-002",
	}
}

// metadataText returns the content of a metadata file: the JSON of m, indented.
func metadataText(t testing.TB, m *backup.Metadata) string {
	t.Helper()
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	require.NoError(t, e.Encode(m))
	return b.String()
}

// parseMetadata reads the content of a metadata file.
func parseMetadata(text string) (*backup.Metadata, error) {
	m := new(backup.Metadata)
	if err := m.UnmarshalJSON([]byte(text)); err != nil {
		return nil, err
	}
	return m, nil
}

// The file, byte for byte.
func TestMetadataFile(t *testing.T) {
	const want = `{
  "created_at": "2026-11-24T11:54:19.973489+00:00",
  "backup_root": "/srv/backups/snapshots/20261124T115419Z-002",
  "db_snapshot_path": "/srv/backups/snapshots/20261124T115419Z-002/db/ato \"core\"\\\u00e9\ud83d\ude00\udcff\n.db",
  "db_size_bytes": 9223372036854775807,
  "registry_snapshot_path": "/srv/backups/snapshots/20261124T115419Z-002/config/<&>\u2028\u007f.json",
  "chroma_snapshot_path": "/srv/backups/snapshots/20261124T115419Z-002/chroma",
  "chroma_snapshot_bytes": 1844674407370955,
  "chroma_snapshot_files": 11,
  "chroma_snapshot_included": true,
  "vector_store_note": "\u03b1",
  "format_version": 1,
  "stamp": "20261124T115419Z-002"
}
`
	require.Equal(t, want, metadataText(t, exampleMetadata()))
	parsed, err := parseMetadata(want)
	require.NoError(t, err)
	require.Equal(t, exampleMetadata(), parsed)
}

// A created snapshot's file is the encoding of its metadata, whatever
// characters are in them.
func TestCreatedMetadataFile(t *testing.T) {
	store := backuptest.NewStore(t)
	if runtime.GOOS != "windows" {
		path := filepath.Join(filepath.Dir(store.DatabasePath), "<&> \"é😀\\\x7f\n.db")
		require.NoError(t, os.Rename(store.DatabasePath, path))
		store.DatabasePath = path
	}
	meta := store.Create()
	got, err := os.ReadFile(filepath.Join(meta.BackupRoot, backuptest.MetadataFile))
	require.NoError(t, err)
	meta.Cost = nil
	require.Equal(t, metadataText(t, meta), string(got))
	list, err := backup.ListRuntimeBackups(t.Context(), store.Options)
	require.NoError(t, err)
	require.Equal(t, meta, list[0].Metadata)
}

// Metadata survive encoding/json too, alone and as part of another value, also
// in the Python module's form.
func TestMetadataJSONRoundTrip(t *testing.T) {
	python := exampleMetadata()
	python.FormatVersion, python.Stamp = 0, ""
	type holder struct {
		M  backup.Metadata
		P  *backup.Metadata
		Ms []backup.Metadata
	}
	for name, m := range map[string]*backup.Metadata{"format 1": exampleMetadata(), "Python": python} {
		t.Run(name, func(t *testing.T) {
			want := holder{*m, m, []backup.Metadata{*m}}
			data, err := json.Marshal(want)
			require.NoError(t, err)
			require.Equal(t, strings.Count(string(data), `"format_version":1`), 3*m.FormatVersion)
			var got holder
			require.NoError(t, json.Unmarshal(data, &got))
			require.Equal(t, want, got)
		})
	}
	m := *exampleMetadata()
	require.Error(t, json.Unmarshal([]byte(`{"stamp": 1}`), &m))
	require.Equal(t, *exampleMetadata(), m, "an error leaves what was there")
}

// A path may contain any byte, and is read again as the same path.
func TestMetadataKeepAnyPath(t *testing.T) {
	paths := []string{"", "plain", "\x00\x01\x1f\x7f", "\"\\/\b\f\n\r\t", "é😀\u2028\ufffd\U0010ffff", "\xff", "\xc3", "\xc3\xa9\xc3",
		"\xed\xa0\x80", "\xed\xb2\x80", "\xf4\x90\x80\x80", "\xf0\x9f\x98", "😀\xff", "\\udcff", "\x80\U00010000\xbf"}
	for b := range 256 {
		paths = append(paths, string([]byte{byte(b)}), string([]byte{'a', byte(b), 'b'}), string([]byte{0xe2, byte(b), 0x80}))
	}
	for _, path := range paths {
		m := exampleMetadata()
		m.DBSnapshotPath = path
		text := metadataText(t, m)
		require.False(t, strings.ContainsFunc(text, func(c rune) bool { return c >= 0x7f }), "not ASCII")
		got, err := parseMetadata(text)
		require.NoError(t, err, "%q", path)
		require.Equal(t, path, got.DBSnapshotPath)
	}
}

// The forms of Python's isoformat are accepted, and no others.
func TestMetadataTimes(t *testing.T) {
	utc := func(s string) time.Time {
		at, err := time.Parse(time.RFC3339Nano, s)
		require.NoError(t, err)
		return at.UTC()
	}
	with := func(created string) string {
		return strings.Replace(metadataText(t, exampleMetadata()), "2026-11-24T11:54:19.973489+00:00", created, 1)
	}
	for text, want := range map[string]string{
		"2026-11-24T11:54:19+00:00":        "2026-11-24T11:54:19Z",
		"2026-11-24T11:54:19.000001+00:00": "2026-11-24T11:54:19.000001Z",
		"2026-11-24T11:54:19.5+00:00":      "2026-11-24T11:54:19.5Z",
		"2026-11-24T11:54:19Z":             "2026-11-24T11:54:19Z",
		"2026-11-24T11:54:19":              "2026-11-24T11:54:19Z",
		"2026-11-24T11:54:19.973489":       "2026-11-24T11:54:19.973489Z",
		"2026-11-24T17:24:19.973489+05:30": "2026-11-24T11:54:19.973489Z",
		"2026-11-24T02:24:19-09:30":        "2026-11-24T11:54:19Z",
		"0001-01-01T00:00:00+00:00":        "0001-01-01T00:00:00Z",
		"9999-12-31T23:59:59.999999+00:00": "9999-12-31T23:59:59.999999Z",
	} {
		m, err := parseMetadata(with(text))
		require.NoError(t, err, text)
		require.Equal(t, utc(want), m.CreatedAt, text)
		require.Equal(t, time.UTC, m.CreatedAt.Location())
	}
	for _, text := range []string{
		"", "now", "2026-11-24", "11:54:19", "2026-11-24 11:54:19", "2026-11-24T11:54", "2026-13-24T11:54:19Z", "2026-02-30T11:54:19Z",
		"2026-11-24T24:00:01Z", "2026-11-24T11:54:60Z", "20261124T115419Z", "1764000000", "2026-11-24T11:54:19.Z", "2026-11-24T11:54:19+0000",
		" 2026-11-24T11:54:19Z", "2026-11-24T11:54:19Z ", "-001-11-24T11:54:19Z", "12026-11-24T11:54:19Z",
		// In UTC these are not in the years 1 to 9999.
		"9999-12-31T23:59:59-00:01", "0001-01-01T00:00:00+00:01", "0000-06-01T00:00:00Z",
	} {
		_, err := parseMetadata(with(text))
		require.Error(t, err, text)
		require.Contains(t, err.Error(), "created_at")
	}
	for want, at := range map[string]time.Time{
		"2026-11-24T11:54:19+00:00":        utc("2026-11-24T13:54:19+02:00"),
		"2026-11-24T11:54:19.000001+00:00": utc("2026-11-24T11:54:19.000001999Z"),
		"2026-11-24T11:54:19.100000+00:00": utc("2026-11-24T11:54:19.1Z"),
		"0001-01-01T00:00:00+00:00":        {},
	} {
		require.Contains(t, metadataText(t, &backup.Metadata{CreatedAt: at, FormatVersion: 1}), fmt.Sprintf(`"created_at": %q`, want))
	}
}

// The error names every fault, in one line.
func TestMetadataErrorNamesEveryFault(t *testing.T) {
	_, err := parseMetadata("{\"created_at\": \"a\\nb\", \"db_size_bytes\": -1, \"stamp\": 3}")
	require.Error(t, err)
	for _, field := range []string{"created_at", "db_size_bytes", "stamp", "backup_root", "chroma_snapshot_included"} {
		require.Contains(t, err.Error(), field)
	}
	require.NotContains(t, err.Error(), "\n")
}
