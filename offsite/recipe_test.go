package offsite

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/format"
)

func sampleRecipe() *recipe {
	at := time.Date(2026, 11, 24, 12, 0, 0, 123456789, time.UTC)
	a, b := sum{1}, sum{2}
	return &recipe{
		stamp: "20261124T120000Z", manifest: sum{3},
		dirs: []folder{{"", 0o700, at}, {"chroma", 0o755 | fs.ModeSetgid | fs.ModeSticky, at}, {"chroma/\xff", 0o500, at}},
		files: []file{
			{path: "SHA256SUMS", sum: sum{3}, size: 5, mode: 0o600, mtime: at},
			{path: "chroma/large", sum: b, size: 7, mode: 0o444, mtime: at, parts: []part{{a, 9, 9}, {b, 7, 3}}},
			{path: "chroma/\xff/\n\"\\<", sum: sum{4}, mode: 0, mtime: time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)},
		},
	}
}

func encoded(t testing.TB, r *recipe) []byte {
	var out bytes.Buffer
	require.NoError(t, r.write(&out))
	return out.Bytes()
}

func TestRecipe(t *testing.T) {
	want := sampleRecipe()
	got, err := parseRecipe(encoded(t, want))
	require.NoError(t, err)
	require.Equal(t, want, got)
	later := strings.Replace(string(encoded(t, want)), `"version":1`, `"more":[{"x":[]}],"version":1`, 1)
	_, err = parseRecipe([]byte(later))
	require.NoError(t, err, "with a field of a later writer")
}

// What no pull takes is not written: the copy would be worth nothing.
func TestRecipeTooLarge(t *testing.T) {
	r := sampleRecipe()
	r.files = make([]file, maxEntries)
	require.NoError(t, r.write(io.Discard))
	for i := range r.files {
		r.files[i].path = strings.Repeat("a", 90)
	}
	require.NoError(t, r.write(io.Discard), "so many files with names of usual length")
	r.files = append(r.files, file{})
	require.ErrorIs(t, r.write(io.Discard), backup.ErrUnsupportedFile)
	r.files = r.files[:maxRecipe/maxPath]
	for i := range r.files {
		r.files[i].path = strings.Repeat("a", maxPath)
	}
	require.ErrorIs(t, r.write(io.Discard), backup.ErrUnsupportedFile)
}

func TestBadRecipes(t *testing.T) {
	for name, spoil := range map[string]func(r *recipe){
		"no directories":        func(r *recipe) { r.dirs = nil },
		"no root":               func(r *recipe) { r.dirs = r.dirs[1:]; r.files = r.files[:1] },
		"directory twice":       func(r *recipe) { r.dirs[2].path = "chroma" },
		"no parent":             func(r *recipe) { r.dirs[1].path = "a" },
		"directory outside":     func(r *recipe) { r.dirs[2].path = "../x" },
		"file twice":            func(r *recipe) { r.files[1] = r.files[0] },
		"file order":            func(r *recipe) { r.files[0], r.files[2] = r.files[2], r.files[0] },
		"file outside":          func(r *recipe) { r.files[0].path = "../x" },
		"absolute":              func(r *recipe) { r.files[0].path = "/x" },
		"not clean":             func(r *recipe) { r.files[2].path = "chroma//x" },
		"empty path":            func(r *recipe) { r.files[0].path = "" },
		"NUL":                   func(r *recipe) { r.files[0].path = "a\x00" },
		"file is a directory":   func(r *recipe) { r.files = []file{r.files[0], {path: "chroma", mtime: r.files[0].mtime}} },
		"file in a file":        func(r *recipe) { r.files[2].path = "chroma/large/y" },
		"size below zero":       func(r *recipe) { r.files[0].size = -1 },
		"size beyond bounds":    func(r *recipe) { r.files[0].size = maxSize + 1 },
		"part below zero":       func(r *recipe) { r.files[1].parts[1].bytes = -1 },
		"base of another size":  func(r *recipe) { r.files[1].parts[0].bytes++ },
		"parts of another file": func(r *recipe) { r.files[1].parts[1].sum = sum{9} },
		"parts of another size": func(r *recipe) { r.files[1].parts[1].size++ },
		"large manifest":        func(r *recipe) { r.files[0].parts = []part{{r.files[0].sum, 5, 5}} },
		"too many deltas": func(r *recipe) {
			for range maxDeltas {
				r.files[1].parts = append(r.files[1].parts, r.files[1].parts[1])
			}
		},
	} {
		r := sampleRecipe()
		spoil(r)
		_, err := parseRecipe(encoded(t, r))
		require.ErrorIs(t, err, ErrDamaged, name)
	}
	good := string(encoded(t, sampleRecipe()))
	for _, c := range [][2]string{
		{`"version":1`, `"version":2`}, {`"version":1`, `"version":1,"version":1`}, {`"version":1,`, ``}, {"]}\n", "]"}, {"]}\n", "]}{}"},
		{`"mode":"0700"`, `"mode":"4755"`}, {`"mode":"0700"`, `"mode":"x"`}, {`24T12:`, `24T25:`}, {`"mtime":"2026`, `"mtime":"0000`},
		{`"path":"chroma"`, `"path":"chroma","path_base64":"/w=="`}, {`"path_base64":`, `"x":`}, {`"path":"chroma"`, `"path_base64":"Y2hyb21h"`},
		{"base-01", "base-FF"}, {"0001-", "0002-"}, {"0001-", "1-"}, {`"sha256":"03`, `"sha256":"AA`}, {`"sha256":"03`, `"sha256":"3`},
	} {
		require.Contains(t, good, c[0])
		_, err := parseRecipe([]byte(strings.Replace(good, c[0], c[1], 1)))
		require.ErrorIs(t, err, ErrDamaged, "%s", c[1])
	}
	for i := range len(good) - 1 {
		_, err := parseRecipe([]byte(good[:i]))
		require.ErrorIs(t, err, ErrDamaged, "%d bytes", i)
	}
}

// Whatever is accepted is consistent, and is written as it was read.
func FuzzRecipe(f *testing.F) {
	f.Add(encoded(f, sampleRecipe()))
	f.Add([]byte(`{"version":1,"directories":[{"path":"","mode":"0","mtime":"2026-01-01T00:00:00Z"}],"manifest_sha256":"` + sum{}.String() + `"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecipe(data)
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged)
			return
		}
		for _, file := range r.files {
			require.True(t, isPath(file.path))
			require.True(t, fs.ValidPath(strings.ToValidUTF8(file.path, "x")))
		}
		files, dirs := r.layout()
		for name := range files {
			require.False(t, dirs[name])
		}
		again, err := parseRecipe(encoded(t, r))
		if r.stamp == strings.ToValidUTF8(r.stamp, "\ufffd") {
			require.NoError(t, err)
			require.Equal(t, r, again)
		}
	})
}

// The same as package backup's own reader.
func TestManifest(t *testing.T) {
	digest := sum{7}.String()
	lines, whole, err := readManifest(strings.NewReader(digest + "  a\n\\" + digest + "  b\\\\\\n\\r\n" + digest + "  c d/ e\n"))
	require.NoError(t, err)
	require.Equal(t, []line{{"a", sum{7}}, {"b\\\n\r", sum{7}}, {"c d/ e", sum{7}}}, lines)
	require.NotZero(t, whole)
	for _, bad := range []string{
		"", "\n", digest + "  a", digest + " a\n", digest + "  \n", digest + "  /a\n", digest + "  a/../b\n", digest + "  ..\n",
		digest + "  b\n" + digest + "  a\n", digest + "  a\n" + digest + "  a\n", strings.ToUpper("ff"+digest[2:]) + "  a\n", digest[1:] + "  a\n",
		"\\" + digest + "  a\n", digest + "  a\\b\n", "\\" + digest + "  a\\x\n", "\\" + digest + "  a\\\n", digest + "  a\r\n", digest + "  SHA256SUMS\n",
		digest + "  " + strings.Repeat("a", maxPath) + "\n", digest + "  a\x00\n", digest + "  " + strings.Repeat("a/", maxDepth) + "a\n",
	} {
		_, _, err := readManifest(strings.NewReader(bad))
		require.ErrorIs(t, err, errManifest, "%q", bad[:min(len(bad), 100)])
	}
}

// Both readers of SHA256SUMS accept the same.
func FuzzManifest(f *testing.F) {
	digest := sum{7}.String()
	f.Add([]byte(digest + "  a\n\\" + digest + "  b\\\\\\n\\r\n" + digest + "  c d/ e\n"))
	f.Add([]byte(digest + "  ../a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lines, whole, err := readManifest(bytes.NewReader(data))
		var want []line
		theirs := format.NewReader(bytes.NewReader(data))
		for {
			entry, theirErr := theirs.Next()
			if errors.Is(theirErr, io.EOF) {
				break
			}
			if theirErr != nil {
				require.ErrorIs(t, err, errManifest)
				return
			}
			want = append(want, line{entry.Path, entry.Sum})
			if strings.Count(entry.Path, "/") >= maxDepth {
				return
			}
		}
		require.NoError(t, err)
		require.Equal(t, want, lines)
		require.Equal(t, sum(sha256.Sum256(data)), whole)
	})
}

func TestParts(t *testing.T) {
	s := sum{5}
	for i := range 40 {
		n, got, ok := isPart(partName(i, s))
		require.True(t, ok)
		require.Equal(t, i, n)
		require.Equal(t, s, got)
	}
	for _, name := range []string{"", "base-", "base", s.String(), "0000-" + s.String() + ".delta", "1-" + s.String() + ".delta", "0001-" + s.String(), "000x-" + s.String() + ".delta"} {
		_, _, ok := isPart(name)
		require.False(t, ok, name)
	}
}
