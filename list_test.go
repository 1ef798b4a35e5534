package backup_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func TestListNothing(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "empty", "snapshots"), 0o755))
	for _, backupDir := range []string{
		filepath.Join(dir, "no such"), filepath.Join(dir, "no", "such"), dir, filepath.Join(dir, "empty"),
	} {
		list, err := backup.ListRuntimeBackups(t.Context(), backup.Options{BackupDir: backupDir})
		require.NoError(t, err)
		require.NotNil(t, list)
		require.Empty(t, list)
		data, err := json.Marshal(list)
		require.NoError(t, err)
		require.Equal(t, "[]", string(data))
	}
	require.NoDirExists(t, filepath.Join(dir, "no such"), "list created something")

	_, err := backup.ListRuntimeBackups(t.Context(), backup.Options{})
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	_, err = backup.ListRuntimeBackups(t.Context(), backup.Options{BackupDir: "a\x00b"})
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
}

// The JSON of a list has the fields of the Python module.
func TestListJSON(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	s.Set(map[string]any{"future": []any{"α\x7f", 1}})
	bare := filepath.Join(s.BackupDir, "snapshots", "bare \xff")
	if runtime.GOOS != "linux" {
		bare = filepath.Join(s.BackupDir, "snapshots", "bare")
	}
	require.NoError(t, os.Mkdir(bare, 0o755))
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, backup.Snapshot{Stamp: filepath.Base(bare), Path: bare}, list[1])
	require.Equal(t, s.Stamp, list[0].Metadata.Stamp)

	data, err := json.Marshal(list)
	require.NoError(t, err)
	require.Contains(t, string(data), `\u03b1\u007f`, "not ASCII")
	var got []map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(data, &got))
	always := []string{"stamp", "path", "has_metadata", "verified", "verified_at", "protected", "note"}
	require.ElementsMatch(t, append([]string{"metadata"}, always...), slices.Collect(maps.Keys(got[0])))
	require.JSONEq(t, string(s.Read(backuptest.MetadataFile)), string(got[0]["metadata"]), "unknown fields are kept")
	require.ElementsMatch(t, always, slices.Collect(maps.Keys(got[1])))
	require.Equal(t, "false", string(got[1]["has_metadata"]))
	if runtime.GOOS == "linux" {
		require.Equal(t, `"bare \udcff"`, string(got[1]["stamp"]))
	}
}

// Snapshots with damaged metadata are listed with the error, beside the others.
func TestListDamagedMetadata(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	snapshots := filepath.Join(base.BackupDir, "snapshots")
	type want struct {
		fault string
		raw   bool // the list contains the metadata nevertheless
	}
	wants := map[string]want{base.Stamp: {"", true}}
	add := func(stamp, fault string, raw bool, damage func(s *backuptest.Snapshot)) {
		s := base.Named(t, stamp)
		require.NoError(t, os.CopyFS(s.Path(""), os.DirFS(base.Path(""))))
		damage(s)
		wants[stamp] = want{fault, raw}
	}
	add("cut", "invalid_json", false, func(s *backuptest.Snapshot) { s.Write(backuptest.MetadataFile, s.Read(backuptest.MetadataFile)[:100]) })
	add("empty", "invalid_json", false, func(s *backuptest.Snapshot) { s.Write(backuptest.MetadataFile, nil) })
	add("binary", "invalid_json", false, func(s *backuptest.Snapshot) { s.Write(backuptest.MetadataFile, []byte("\xff\xfe\x00")) })
	add("array", "wrong_shape", true, func(s *backuptest.Snapshot) { s.Write(backuptest.MetadataFile, []byte("[1]")) })
	add("null", "wrong_shape", true, func(s *backuptest.Snapshot) { s.Write(backuptest.MetadataFile, []byte("null")) })
	add("typed", "wrong_shape", true, func(s *backuptest.Snapshot) { s.Set(map[string]any{"db_size_bytes": "1"}) })
	add("short", "wrong_shape", true, func(s *backuptest.Snapshot) { s.Set(map[string]any{"created_at": nil}) })
	add("later", "unsupported_format", true, func(s *backuptest.Snapshot) { s.Set(map[string]any{"format_version": 99}) })
	add("deep", "wrong_shape", false, func(s *backuptest.Snapshot) {
		s.Write(backuptest.MetadataFile, []byte(strings.Repeat("[", 9_999)+strings.Repeat("]", 9_999)))
	})
	add("deepest", "invalid_json", false, func(s *backuptest.Snapshot) {
		s.Write(backuptest.MetadataFile, []byte(strings.Repeat("[", 500_000)+strings.Repeat("]", 500_000)))
	})
	add("large", "too_large", false, func(s *backuptest.Snapshot) { s.Write(backuptest.MetadataFile, make([]byte, 1<<20+1)) })
	add("linked", "not_a_file", false, func(s *backuptest.Snapshot) { s.Link(backuptest.MetadataFile, s.MoveOut(backuptest.MetadataFile)) })
	add("dangling", "not_a_file", false, func(s *backuptest.Snapshot) { s.Link(backuptest.MetadataFile, "nothing") })
	add("directory", "not_a_file", false, func(s *backuptest.Snapshot) {
		s.Remove(backuptest.MetadataFile)
		require.NoError(t, os.Mkdir(s.Path(backuptest.MetadataFile), 0o755))
	})
	for _, d := range backuptest.SpecialFiles {
		add(d.Name, "not_a_file", false, func(s *backuptest.Snapshot) { d.Do(s, backuptest.MetadataFile) })
	}
	add("python", "", true, func(s *backuptest.Snapshot) { s.MakePython() })
	add("other damage", "", true, func(s *backuptest.Snapshot) { s.Remove("db"); s.Remove(backuptest.ManifestFile) })

	// These are not snapshots.
	require.NoError(t, os.WriteFile(filepath.Join(snapshots, "20260101T000000Z"), nil, 0o600))
	require.NoError(t, os.Symlink(base.Path(""), filepath.Join(snapshots, "20260101T000001Z")))
	require.NoError(t, os.Symlink("nothing", filepath.Join(snapshots, "20260101T000002Z")))

	list, err := backup.ListRuntimeBackups(t.Context(), base.Options)
	require.NoError(t, err)
	got := make(map[string]want)
	for _, s := range list {
		require.True(t, s.HasMetadata)
		require.Equal(t, s.MetadataError == "", s.Metadata != nil)
		require.Equal(t, filepath.Join(snapshots, s.Stamp), s.Path)
		data, err := json.MarshalIndent(s, "", "  ")
		require.NoError(t, err)
		var entry struct {
			Metadata *json.RawMessage
			Error    *string `json:"metadata_error"`
		}
		require.NoError(t, json.Unmarshal(data, &entry))
		require.Equal(t, s.MetadataError != "", entry.Error != nil)
		got[s.Stamp] = want{s.MetadataError, entry.Metadata != nil}
	}
	wants["null"] = want{"wrong_shape", false} // the list has null, but it is that of the file
	require.Equal(t, wants, got)
	require.True(t, slices.IsSortedFunc(list, func(a, b backup.Snapshot) int { return cmp.Compare(a.Stamp, b.Stamp) }))
}

func TestListOrder(t *testing.T) {
	dir := t.TempDir()
	want := []string{
		"20251231T235959Z", "20260101T000000Z", "20260101T000000Z-002", "20260101T000000Z-010", "20260101T000000Z-999",
		"20260101T000000Z-1000", "20260101T000000Z-1001", "20260101T000001Z", "before the upgrade",
	}
	for _, stamp := range want {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "snapshots", stamp), 0o755))
	}
	list, err := backup.ListRuntimeBackups(t.Context(), backup.Options{BackupDir: dir})
	require.NoError(t, err)
	var got []string
	for _, s := range list {
		require.False(t, s.HasMetadata)
		got = append(got, s.Stamp)
	}
	require.Equal(t, want, got)
}

// The memory of a list depends only on the size of its result.
func TestListTenThousand(t *testing.T) {
	if testing.Short() {
		t.Skip("it creates 10,000 snapshots")
	}
	snapshots := 10_000
	if backuptest.Race {
		snapshots = 1000
	}
	base := backuptest.NewSnapshot(t)
	metadata := base.Read(backuptest.MetadataFile)
	dir := t.TempDir()
	for i := range snapshots {
		snapshot := filepath.Join(dir, "snapshots", fmt.Sprintf("20260101T%06dZ", i))
		require.NoError(t, os.MkdirAll(snapshot, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(snapshot, backuptest.MetadataFile), metadata, 0o600))
	}
	opts := backup.Options{BackupDir: dir}

	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	list, err := backup.ListRuntimeBackups(t.Context(), opts)
	require.NoError(t, err)
	runtime.GC()
	runtime.ReadMemStats(&after)
	require.Len(t, list, snapshots)
	kept := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / int64(snapshots)
	made := int64(after.TotalAlloc-before.TotalAlloc) / int64(snapshots)
	t.Logf("%d bytes kept and %d allocated for each snapshot, whose metadata have %d", kept, made, len(metadata))
	require.LessOrEqual(t, kept, int64(4<<10))
	require.LessOrEqual(t, made, int64(64<<10))
	runtime.KeepAlive(list)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	list, err = backup.ListRuntimeBackups(ctx, opts)
	require.ErrorIs(t, err, context.Canceled)
	require.Nil(t, list)
}

func TestListHeedsItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := backup.ListRuntimeBackups(ctx, backuptest.NewSnapshot(t).Options)
	require.ErrorIs(t, err, context.Canceled)
	_, err = backup.ListRuntimeBackups(ctx, backup.Options{BackupDir: t.TempDir()})
	require.ErrorIs(t, err, context.Canceled)
}

// BackupDir may be relative, as in every other call.
func TestListRelativeDirectory(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	t.Chdir(filepath.Dir(s.BackupDir))
	list, err := backup.ListRuntimeBackups(t.Context(), backup.Options{BackupDir: filepath.Base(s.BackupDir)})
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.True(t, filepath.IsAbs(list[0].Path))
}
