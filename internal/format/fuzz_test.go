package format_test

import (
	"crypto/sha256"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/format"
)

// A manifest that is read to its end is written again byte for byte, in
// ascending order, and names nothing outside the snapshot.
func FuzzManifest(f *testing.F) {
	var good strings.Builder
	for _, name := range []string{" a", "a\nb\r\\", "backup-metadata.json", "chroma/x", "db/atocore.db", "é\xff"} {
		good.WriteString(format.Line(sha256.Sum256([]byte(name)), name))
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
		err := eachEntry(data, func(e format.Entry) {
			require.True(t, first || last < e.Path, "%q comes after %q", e.Path, last)
			first, last = false, e.Path
			require.True(t, filepath.IsLocal(e.Path) || runtime.GOOS == "windows", "%q leads out", e.Path)
			require.Equal(t, path.Clean(e.Path), e.Path)
			require.NotContains(t, e.Path, "\x00")
			require.NotEqual(t, format.ManifestName, e.Path)
			written.WriteString(format.Line(e.Sum, e.Path))
		})
		require.True(t, strings.HasPrefix(string(data), written.String()), "what was read is not what was there")
		if err == nil {
			require.False(t, first, "an empty manifest was accepted")
			require.Equal(t, string(data), written.String())
		} else {
			require.ErrorIs(t, err, format.ErrMalformed)
			require.NotContains(t, err.Error(), "\n")
		}
	})
}

// No stamp leads out of the directory of snapshots, and stamps are in a total
// order, so that sorting gives the same result for any order before.
func FuzzStamp(f *testing.F) {
	dir := f.TempDir()
	for _, seed := range []string{
		"20261124T115419Z", "20261124T115419Z-002", "real", "file", "REAL", "", ".", "..", "../x", "real/", "real/.", "./real", "/etc", "a\x00b",
		"\xff", "\n", `..\x`, "C:", "real:stream", "CON", strings.Repeat("a", 255), strings.Repeat("a", 256), "20261124T115419Z-99999999999999999999",
		"20261124T115419.5Z", "…",
	} {
		f.Add(seed, "20261124T115419Z-010", "x")
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if format.IsStamp(a) {
			require.True(t, filepath.IsLocal(a) || runtime.GOOS == "windows")
			require.Equal(t, a, filepath.Base(a))
			require.Equal(t, dir, filepath.Dir(filepath.Join(dir, a)))
		}
		require.Equal(t, a == b, format.CompareStamps(a, b) == 0)
		require.Equal(t, sign(format.CompareStamps(a, b)), -sign(format.CompareStamps(b, a)))
		names := []string{a, b, c}
		slices.SortFunc(names, format.CompareStamps)
		require.LessOrEqual(t, format.CompareStamps(names[0], names[2]), 0)
	})
}

// A recorded path leads below the snapshot or nowhere.
func FuzzRelative(f *testing.F) {
	for _, seed := range [][2]string{
		{"/root", "/root/db/x"}, {"/root", "/root-evil/db/x"}, {"/root", "/root/../x"}, {"/", "/etc"}, {"", "/x"}, {".", "db/x"},
		{"..", "../x"}, {"/root/", "/root//./db"}, {"/a/../b", "/b/x"}, {"a\x00", "a\x00/b"}, {"C:\\a", "C:\\a\\b"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, root, recorded string) {
		rel, ok := format.Relative(root, recorded)
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
