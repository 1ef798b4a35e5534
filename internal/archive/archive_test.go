package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/archive"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
)

const stamp = "20261124T120000Z"

var modTime = time.Date(2026, 11, 24, 12, 0, 0, 123456789, time.UTC)

// snapshotOf creates the directory of a snapshot with these files, and the
// metadata and the manifest that belong to them. A name that ends with a slash
// is a directory.
func snapshotOf(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), stamp)
	require.NoError(t, os.Mkdir(dir, 0o700))
	var manifest strings.Builder
	all := map[string]string{format.MetadataName: "metadata", "config/": ""}
	for name, content := range files {
		all[name] = content
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if strings.HasSuffix(name, "/") {
			require.NoError(t, os.MkdirAll(path, 0o700))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(all[name]), 0o600))
		manifest.WriteString(format.Line(sha256.Sum256([]byte(all[name])), name))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, format.ManifestName), []byte(manifest.String()), 0o600))
	return dir
}

// setTimes gives everything in a directory a time of its own.
func setTimes(t *testing.T, dir string) {
	t.Helper()
	var paths []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	for i, path := range slices.Backward(paths) { // directories after what is in them
		at := modTime.Add(time.Duration(i) * time.Hour)
		require.NoError(t, os.Chtimes(path, at, at))
	}
}

func openDir(t *testing.T, path string) *fsat.Dir {
	t.Helper()
	dir, err := fsat.OpenDir(path)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

func write(t *testing.T, dir string, o archive.WriteOptions) ([]byte, error) {
	t.Helper()
	o.Top = stamp
	var b bytes.Buffer
	err := archive.Write(t.Context(), &b, openDir(t, dir), o)
	return b.Bytes(), err
}

func mustWrite(t *testing.T, dir string) []byte {
	t.Helper()
	data, err := write(t, dir, archive.WriteOptions{})
	require.NoError(t, err)
	return data
}

// read reads an archive into a new directory.
func read(t *testing.T, r io.Reader) (dir string, err error) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "into")
	require.NoError(t, os.Mkdir(dir, 0o700))
	return dir, archive.Read(t.Context(), r, openDir(t, dir), archive.ReadOptions{
		Metadata: func([]byte) (string, error) { return stamp, nil },
	})
}

// usual are the files of a snapshot of the usual form.
var usual = map[string]string{
	"db/atocore.db": strings.Repeat("database", 100_000), "config/registry.json": "{}", "chroma/chroma.sqlite3": strings.Repeat("c", 512),
	"chroma/1/data": "data", "chroma/1/none": "", "chroma/empty/": "", "chroma/1.a": "b",
}

func TestRoundTrip(t *testing.T) {
	awkward := map[string]string{"db/atocore.db": "x"}
	for _, name := range backuptest.AwkwardNames(t) {
		awkward["chroma/"+name] = name
	}
	long := strings.Repeat("n", 200)
	for name, files := range map[string]map[string]string{
		"usual":         usual,
		"only database": {"db/atocore.db": "x"},
		"awkward names": awkward,
		"long paths":    {"chroma/" + long + "/" + long + "/" + long + "/file": "deep", "chroma/" + long: "x", "db/x": ""},
		"buffer sizes": {
			"chroma/a": strings.Repeat("a", 256<<10-1), "chroma/b": strings.Repeat("b", 256<<10), "chroma/c": strings.Repeat("c", 256<<10+1),
			"chroma/d": strings.Repeat("d", 512<<10),
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "long paths" {
				delete(files, "chroma/"+long) // a directory has the name
			}
			dir := snapshotOf(t, files)
			setTimes(t, dir)
			data := mustWrite(t, dir)
			require.Equal(t, data, mustWrite(t, dir))
			into, err := read(t, bytes.NewReader(data))
			require.NoError(t, err)
			require.Equal(t, backuptest.ReadTree(t, dir), backuptest.ReadTree(t, into))
			require.Equal(t, data, mustWrite(t, into))
			into, err = read(t, iotest.OneByteReader(bytes.NewReader(append(data, make([]byte, 10240)...))))
			require.NoError(t, err, "by single bytes, and padded to a record")
			require.Equal(t, backuptest.ReadTree(t, dir), backuptest.ReadTree(t, into))
		})
	}
}

// Modes and times are kept, but for those that the format fixes and the bits
// that give rights.
func TestModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes")
	}
	dir := snapshotOf(t, usual)
	change := func(mode fs.FileMode, names ...string) {
		for _, name := range names {
			require.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
		}
	}
	change(0o640, "config/registry.json", "chroma/1/data")
	change(0o666|fs.ModeSetuid|fs.ModeSetgid, "db/atocore.db", "chroma/1/none")
	change(0o777|fs.ModeSetuid, "db", "config", ".")
	change(0o750|fs.ModeSticky|fs.ModeSetgid|fs.ModeSetuid, "chroma/empty")
	change(0o555, "chroma/1")
	long := time.Date(1901, 1, 2, 3, 4, 5, 999999999, time.UTC)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "chroma/1/data"), long, long))
	into, err := read(t, bytes.NewReader(mustWrite(t, dir)))
	require.NoError(t, err)
	want, got := backuptest.ReadTree(t, dir), backuptest.ReadTree(t, into)
	for name, mode := range map[string]fs.FileMode{
		".": fs.ModeDir | 0o700, "db": fs.ModeDir | 0o700, "config": fs.ModeDir | 0o700, "db/atocore.db": 0o600, "chroma/1/none": 0o666,
		"chroma/empty": fs.ModeDir | fs.ModeSticky | fs.ModeSetgid | 0o750,
	} {
		file := want[name]
		file.Mode = mode
		want[name] = file
	}
	require.Equal(t, want, got)
}

// GNU tar lists an archive and extracts it as the snapshot was.
func TestTarReads(t *testing.T) {
	if out, err := exec.Command("tar", "--version").Output(); err != nil || !bytes.Contains(out, []byte("GNU")) {
		t.Skip("needs GNU tar")
	}
	files := map[string]string{"db/atocore.db": strings.Repeat("x", 300<<10), "chroma/empty/": ""}
	for _, name := range backuptest.AwkwardNames(t) {
		files["chroma/"+name] = name
	}
	dir := snapshotOf(t, files)
	setTimes(t, dir)
	into := t.TempDir()
	cmd := exec.Command("tar", "-xpf", "-", "-C", into)
	cmd.Stdin = bytes.NewReader(mustWrite(t, dir))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, out)
	require.Equal(t, backuptest.ReadTree(t, dir), backuptest.ReadTree(t, filepath.Join(into, stamp)))

	cmd = exec.Command("tar", "-tf", "-")
	cmd.Stdin = bytes.NewReader(mustWrite(t, snapshotOf(t, map[string]string{"db/x": ""})))
	out, err = cmd.CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, stamp+"/\n"+stamp+"/backup-metadata.json\n"+stamp+"/SHA256SUMS\n"+stamp+"/config/\n"+stamp+"/db/\n"+stamp+"/db/x\n", string(out))
}

// Nothing but what the manifest says is ever a complete archive. What can be
// seen without reading the files is refused before the first byte.
func TestWriteRefuses(t *testing.T) {
	at := func(name string) func(string) string {
		return func(dir string) string { return filepath.Join(dir, name) }
	}
	flip := func(name string, offset int64) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			f, err := os.OpenFile(at(name)(dir), os.O_RDWR, 0)
			require.NoError(t, err)
			defer f.Close()
			var b [1]byte
			_, err = f.ReadAt(b[:], offset)
			require.NoError(t, err)
			b[0] ^= 1
			_, err = f.WriteAt(b[:], offset)
			require.NoError(t, err)
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   archive.MismatchError
		begun  bool // something was written
	}{
		{"metadata changed", flip(format.MetadataName, 0), archive.MismatchError{Kind: format.Changed, Path: format.MetadataName}, true},
		{"small file changed", flip("chroma/1/data", 2), archive.MismatchError{Kind: format.Changed, Path: "chroma/1/data"}, true},
		{"large file changed at the beginning", flip("db/atocore.db", 0), archive.MismatchError{Kind: format.Changed, Path: "db/atocore.db"}, true},
		{"large file changed at the end", flip("db/atocore.db", 799_999), archive.MismatchError{Kind: format.Changed, Path: "db/atocore.db"}, true},
		{"shorter", func(t *testing.T, dir string) { require.NoError(t, os.Truncate(at("db/atocore.db")(dir), 512)) },
			archive.MismatchError{Kind: format.Changed, Path: "db/atocore.db"}, true},
		{"emptied", func(t *testing.T, dir string) { require.NoError(t, os.Truncate(at("db/atocore.db")(dir), 0)) },
			archive.MismatchError{Kind: format.Changed, Path: "db/atocore.db"}, true},
		{"file missing", func(t *testing.T, dir string) { require.NoError(t, os.Remove(at("config/registry.json")(dir))) },
			archive.MismatchError{Kind: format.Missing, Path: "config/registry.json"}, false},
		{"last file missing", func(t *testing.T, dir string) { require.NoError(t, os.Remove(at("db/atocore.db")(dir))) },
			archive.MismatchError{Kind: format.Missing, Path: "db/atocore.db"}, false},
		{"metadata missing", func(t *testing.T, dir string) { require.NoError(t, os.Remove(at(format.MetadataName)(dir))) },
			archive.MismatchError{Kind: format.Missing, Path: format.MetadataName}, false},
		{"unknown file", func(t *testing.T, dir string) { require.NoError(t, os.WriteFile(at("zzz")(dir), nil, 0o600)) },
			archive.MismatchError{Kind: format.Unknown, Path: "zzz"}, false},
		{"unknown directory", func(t *testing.T, dir string) { require.NoError(t, os.Mkdir(at("zzz")(dir), 0o700)) },
			archive.MismatchError{Kind: format.Unknown, Path: "zzz/"}, false},
		{"link", func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(at("chroma/1/data")(dir), at("../data")(dir)))
			require.NoError(t, os.Symlink("../../../data", at("chroma/1/data")(dir)))
		}, archive.MismatchError{Irregular: true, Path: "chroma/1/data"}, false},
		{"manifest malformed", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(at(format.ManifestName)(dir), []byte("x\n"), 0o600))
		}, archive.MismatchError{Kind: format.Malformed, Detail: "malformed manifest: line 1: not a digest, two spaces and a name"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := snapshotOf(t, usual)
			tt.damage(t, dir)
			data, err := write(t, dir, archive.WriteOptions{})
			var got *archive.MismatchError
			require.ErrorAs(t, err, &got)
			require.Equal(t, tt.want, *got)
			require.NotEmpty(t, got.Error())
			require.Equal(t, tt.begun, len(data) > 0)
			if tt.begun {
				requireIncomplete(t, data)
			}
		})
	}
}

// requireIncomplete checks that neither Read nor tar takes data for an archive.
func requireIncomplete(t *testing.T, data []byte) {
	t.Helper()
	_, err := read(t, bytes.NewReader(data))
	require.ErrorIs(t, err, errdefs.ErrInvalidArchive)
	if _, err := exec.LookPath("tar"); err == nil {
		cmd := exec.Command("tar", "-tf", "-")
		cmd.Stdin = bytes.NewReader(data)
		require.Error(t, cmd.Run(), "tar does not notice it")
	}
}

func TestWriteSkipsForbiddenFiles(t *testing.T) {
	dir := snapshotOf(t, usual)
	info, err := fsat.Stat(filepath.Join(dir, "chroma", "1.a"))
	require.NoError(t, err)
	_, err = write(t, dir, archive.WriteOptions{Forbidden: info.SameFile})
	var got *archive.MismatchError
	if runtime.GOOS != "windows" {
		require.ErrorAs(t, err, &got)
		require.Equal(t, archive.MismatchError{Irregular: true, Path: "chroma/1.a"}, *got)
	}
}

func TestWriteIsInterrupted(t *testing.T) {
	dir := snapshotOf(t, usual)
	ctx, cancel := context.WithCancel(t.Context())
	var b bytes.Buffer
	err := archive.Write(ctx, &b, openDir(t, dir), archive.WriteOptions{Top: stamp, Progress: func(path string, files, totalFiles, bytes, totalBytes int64) {
		require.EqualValues(t, 8, totalFiles)
		require.Greater(t, totalBytes, int64(800_000))
		if path == "db/atocore.db" {
			cancel()
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
	requireIncomplete(t, b.Bytes())

	broken := errors.New("broken pipe")
	for limit := range 20 {
		w := &limitedWriter{left: limit * 300, err: broken}
		require.ErrorIs(t, archive.Write(t.Context(), w, openDir(t, dir), archive.WriteOptions{Top: stamp}), broken)
		require.Zero(t, w.after, "written after the error")
	}
}

// A limitedWriter fails after a number of bytes.
type limitedWriter struct {
	left, after int
	err         error
	failed      bool
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.failed {
		w.after++
	}
	if len(p) > w.left {
		w.failed = true
		return 0, w.err
	}
	w.left -= len(p)
	return len(p), nil
}

// Too deep a tree is refused by both.
func TestDepth(t *testing.T) {
	deep := func(levels int) string { return "chroma/" + strings.Repeat("d/", levels-1) + "file" }
	dir := snapshotOf(t, map[string]string{"db/x": "", deep(255): "x"})
	_, err := read(t, bytes.NewReader(mustWrite(t, dir)))
	require.NoError(t, err)
	_, err = write(t, snapshotOf(t, map[string]string{"db/x": "", deep(256): "x"}), archive.WriteOptions{})
	require.ErrorIs(t, err, errdefs.ErrUnsupportedFile)
}

func TestReadReturnsErrors(t *testing.T) {
	data := mustWrite(t, snapshotOf(t, usual))
	broken := errors.New("broken connection")
	for _, n := range []int{0, 3, 600, 5000, len(data) - 1024, len(data) - 1, len(data)} {
		_, err := read(t, io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(broken)))
		require.ErrorIs(t, err, broken)
		require.NotErrorIs(t, err, errdefs.ErrInvalidArchive)
	}
	_, err := read(t, io.MultiReader(bytes.NewReader(data[:600]), noProgress{}))
	require.ErrorIs(t, err, io.ErrNoProgress)

	ctx, cancel := context.WithCancel(t.Context())
	into := t.TempDir()
	err = archive.Read(ctx, bytes.NewReader(data), openDir(t, into), archive.ReadOptions{
		Metadata: func([]byte) (string, error) { return stamp, nil },
		Progress: func(path string, files, totalFiles, bytes int64) {
			if path == "db/atocore.db" {
				require.EqualValues(t, 8, totalFiles)
				cancel()
			}
		},
	})
	require.ErrorIs(t, err, context.Canceled)
	refused := errors.New("refused")
	for _, o := range []archive.ReadOptions{
		{Metadata: func(data []byte) (string, error) { require.Equal(t, "metadata", string(data)); return "", refused }},
		{Metadata: func([]byte) (string, error) { return stamp, nil }, Manifest: func() error { return refused }},
	} {
		into := t.TempDir()
		require.ErrorIs(t, archive.Read(t.Context(), bytes.NewReader(data), openDir(t, into), o), refused)
		require.NoFileExists(t, filepath.Join(into, "db", "atocore.db"))
	}
}

type noProgress struct{}

func (noProgress) Read([]byte) (int, error) { return 0, nil }

// However an archive is cut off, it is refused.
func TestReadRefusesTruncated(t *testing.T) {
	data := mustWrite(t, snapshotOf(t, map[string]string{"db/x": strings.Repeat("\x00", 1024), "chroma/zeros": strings.Repeat("\x00", 2048)}))
	for n := 0; n < len(data); n += 256 {
		_, err := read(t, bytes.NewReader(data[:n]))
		require.ErrorIs(t, err, errdefs.ErrInvalidArchive, "cut at %d of %d", n, len(data))
	}
	_, err := read(t, bytes.NewReader(data[:len(data)-1]))
	require.ErrorIs(t, err, errdefs.ErrInvalidArchive)
}

// No changed byte changes the content of a file that was accepted.
func TestReadOfChangedArchives(t *testing.T) {
	data := mustWrite(t, snapshotOf(t, map[string]string{"db/x": "database", "chroma/a/b": "b"}))
	accepted := 0
	for i := 0; i < len(data); i += 61 {
		changed := bytes.Clone(data)
		changed[i] ^= 1 << (i % 8)
		into, err := read(t, bytes.NewReader(changed))
		if err != nil {
			continue
		}
		accepted++
		requireVerified(t, into)
	}
	require.Less(t, accepted, len(data)/61/2, "most of it is covered by a sum")
}

// requireVerified checks that a directory has what its manifest says.
func requireVerified(t *testing.T, dir string) {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join(dir, format.ManifestName))
	require.NoError(t, err)
	sums := map[string][sha256.Size]byte{}
	for lines := format.NewReader(bytes.NewReader(manifest)); ; {
		entry, err := lines.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		sums[entry.Path] = entry.Sum
	}
	for name, file := range backuptest.ReadTree(t, dir) {
		switch {
		case file.Mode.IsDir(), name == format.ManifestName:
			require.Zero(t, file.Mode&fs.ModeSetuid)
		default:
			require.True(t, file.Mode.IsRegular(), name)
			require.Zero(t, file.Mode&(fs.ModeSetuid|fs.ModeSetgid))
			require.Equal(t, sums[name], file.Sum, name)
			delete(sums, name)
		}
	}
	require.Empty(t, sums)
}

// An entry is a part of an archive that a test makes.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: stamp + "/" + name, Size: int64(len(body)), Mode: 0o600, ModTime: modTime, Format: tar.FormatPAX}, body}
}

func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: stamp + "/" + name, Mode: 0o700, ModTime: modTime, Format: tar.FormatPAX}, ""}
}

// special is an entry that is neither a file nor a directory.
func special(kind byte, name, target string) entry {
	return entry{tar.Header{Typeflag: kind, Name: stamp + "/" + name, Linkname: target, Mode: 0o600}, ""}
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		require.NoError(t, w.WriteHeader(&e.Header), e.Name)
		_, err := w.Write([]byte(e.body))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// good returns the entries of an archive, which names the files of rest, too, in
// its manifest.
func good(rest ...entry) []entry {
	lines := []string{format.Line(sha256.Sum256([]byte("metadata")), format.MetadataName)}
	for _, e := range rest {
		if e.Typeflag == tar.TypeReg {
			lines = append(lines, format.Line(sha256.Sum256([]byte(e.body)), strings.TrimPrefix(e.Name, stamp+"/")))
		}
	}
	return append([]entry{dir(""), file(format.MetadataName, "metadata"), file(format.ManifestName, strings.Join(lines, ""))}, rest...)
}

// renamed returns an entry with the header's whole name, which begins with the
// stamp otherwise.
func renamed(e entry, name string) entry {
	e.Name = name
	return e
}

// hostile are archives that must be refused.
func hostile(t testing.TB) map[string][]byte {
	db := file("db/x", "database")
	usual := good(dir("db/"), db)
	with := func(i int, change func(e *entry)) []entry {
		entries := slices.Clone(usual)
		change(&entries[i])
		return entries
	}
	extra := func(e ...entry) []entry { return append(slices.Clone(usual), e...) }
	otherStamp := slices.Clone(usual)
	for i := range otherStamp {
		otherStamp[i].Name = strings.Replace(otherStamp[i].Name, stamp, "20261124T120001Z", 1)
	}
	archives := map[string][]byte{
		"empty":                       nil,
		"nothing but a trailer":       make([]byte, 1024),
		"text":                        []byte(strings.Repeat("this is no archive\n", 100)),
		"gzip":                        []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"),
		"zstd":                        []byte("\x28\xb5\x2f\xfd0123456789"),
		"garbage after it":            append(pack(t, usual...), "garbage"...),
		"another archive after it":    append(pack(t, usual...), pack(t, usual...)...),
		"endless zeros after it":      append(pack(t, usual...), make([]byte, 2<<20)...),
		"no trailer":                  pack(t, usual...)[:len(pack(t, usual...))-1024],
		"half a trailer":              pack(t, usual...)[:len(pack(t, usual...))-512],
		"no directory":                pack(t, usual[1:]...),
		"only a directory":            pack(t, dir("")),
		"no metadata":                 pack(t, dir(""), usual[2]),
		"no manifest":                 pack(t, dir(""), usual[1], dir("db/"), db),
		"manifest before metadata":    pack(t, dir(""), usual[2], usual[1], dir("db/"), db),
		"empty manifest":              pack(t, dir(""), usual[1], file(format.ManifestName, "")),
		"malformed manifest":          pack(t, dir(""), usual[1], file(format.ManifestName, "x\n")),
		"manifest without metadata":   pack(t, dir(""), usual[1], file(format.ManifestName, format.Line(sha256.Sum256([]byte("database")), "db/x")), dir("db/"), db),
		"manifest of other metadata":  pack(t, dir(""), usual[1], file(format.ManifestName, format.Line([32]byte{}, format.MetadataName))),
		"large metadata":              pack(t, dir(""), file(format.MetadataName, strings.Repeat("m", format.MaxMetadataSize+1)), usual[2]),
		"other stamp than in it":      pack(t, otherStamp...),
		"directory of two levels":     pack(t, renamed(dir(""), "a/"+stamp+"/")),
		"directory is the parent":     pack(t, renamed(dir(""), "../")),
		"directory is the root":       pack(t, renamed(dir(""), "/")),
		"directory is itself":         pack(t, renamed(dir(""), "./")),
		"file lacks":                  pack(t, usual[:4]...),
		"directory not in it":         pack(t, append(usual[:3:3], db)...),
		"file changed":                pack(t, with(4, func(e *entry) { e.body = "databasf" })...),
		"file twice":                  pack(t, extra(db)...),
		"directory twice":             pack(t, append(usual[:4:4], dir("db/"), db)...),
		"top directory twice":         pack(t, extra(dir(""))...),
		"metadata twice":              pack(t, append(usual[:3:3], append([]entry{usual[1]}, usual[3:]...)...)...),
		"manifest twice":              pack(t, append(usual[:3:3], append([]entry{usual[2]}, usual[3:]...)...)...),
		"unknown file":                pack(t, extra(file("zzz", ""))...),
		"unknown file before":         pack(t, append(usual[:3:3], append([]entry{file("aaa", "")}, usual[3:]...)...)...),
		"unknown directory":           pack(t, extra(dir("zzz/"))...),
		"empty directory of database": pack(t, good(dir("db/"))...),
		"wrong order":                 pack(t, append(good(dir("chroma/"), file("chroma/a", ""), file("chroma/b", ""))[:4:4], file("chroma/b", ""), file("chroma/a", ""))...),
		"directories in wrong order":  pack(t, good(dir("chroma/"), dir("chroma/b/"), dir("chroma/a/"))...),
		"outside":                     pack(t, extra(renamed(db, "zzz"))...),
		"outside by name":             pack(t, extra(renamed(db, stamp+"-002/db/x"))...),
		"parent":                      pack(t, extra(file("../x", ""))...),
		"parent inside":               pack(t, extra(file("db/../../x", ""))...),
		"absolute":                    pack(t, extra(renamed(db, "/etc/passwd"))...),
		"absolute inside":             pack(t, extra(file("/etc/passwd", ""))...),
		"not clean":                   pack(t, extra(file("zz//x", ""))...),
		"dot":                         pack(t, extra(dir("./"))...),
		"symbolic link":               pack(t, extra(special(tar.TypeSymlink, "zzz", "/etc"))...),
		"symbolic link for a file":    pack(t, append(usual[:4:4], special(tar.TypeSymlink, "db/x", "/etc/passwd"))...),
		"symbolic link for db":        pack(t, append(usual[:3:3], special(tar.TypeSymlink, "db", "/tmp"), db)...),
		"hard link":                   pack(t, append(usual[:4:4], special(tar.TypeLink, "db/x", stamp+"/SHA256SUMS"))...),
		"FIFO":                        pack(t, append(usual[:4:4], special(tar.TypeFifo, "db/x", ""))...),
		"character device":            pack(t, append(usual[:4:4], special(tar.TypeChar, "db/x", ""))...),
		"block device":                pack(t, append(usual[:4:4], special(tar.TypeBlock, "db/x", ""))...),
		"global header": pack(t, append([]entry{{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"path": stamp + "/db/x"},
			Format: tar.FormatPAX}, ""}}, usual...)...),
		"attribute":     pack(t, with(4, func(e *entry) { e.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "x"} })...),
		"future":        pack(t, with(4, func(e *entry) { e.ModTime = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) })...),
		"name too long": pack(t, good(dir("chroma/"), file("chroma/"+strings.Repeat("n", 256), ""))...),
		"path too long": pack(t, good(append([]entry{dir("chroma/")}, dir("chroma/"+strings.Repeat("n", format.MaxLine)+"/"))...)...),
		"sum differs":   with512(pack(t, usual...), 0),
		"sparse":        []byte(nil),
		"huge":          nil,
	}
	// The header of the database, in which other things are claimed.
	plain := slices.Clone(usual)
	for i := range plain {
		plain[i].ModTime, plain[i].Format = time.Unix(1, 0), tar.FormatUSTAR
	}
	ustar := pack(t, plain...)
	require.True(t, strings.HasPrefix(string(ustar[len(ustar)-4*512:]), stamp+"/db/x"))
	archives["sparse"] = rehead(ustar, len(ustar)-4*512, func(h []byte) { h[156] = 'S' })
	archives["huge"] = rehead(ustar, len(ustar)-4*512, func(h []byte) { copy(h[124:136], "\x80\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00") })
	archives["unknown type"] = rehead(ustar, len(ustar)-4*512, func(h []byte) { h[156] = 'Z' })
	deep := good(dir("chroma/"))
	for i := range 256 {
		deep = append(deep, dir("chroma/"+strings.Repeat("d/", i+1)))
	}
	archives["too deep"] = pack(t, deep...)
	return archives
}

// with512 returns data with a bit of its first block's checksum changed.
func with512(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at+150] ^= 1
	return data
}

// rehead changes the header at an offset of an archive and gives it the sum that
// it has then.
func rehead(data []byte, at int, change func(header []byte)) []byte {
	data = bytes.Clone(data)
	h := data[at : at+512]
	change(h)
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

func TestReadAcceptsWhatTestsMake(t *testing.T) {
	entries := good(dir("chroma/"), dir("chroma/empty/"), dir("config/"), dir("db/"), file("db/x", "database"))
	for _, form := range []tar.Format{tar.FormatPAX, tar.FormatGNU, tar.FormatUSTAR} {
		for i := range entries {
			entries[i].Format, entries[i].ModTime = form, modTime.Truncate(time.Second)
			entries[i].Uid, entries[i].Uname, entries[i].Mode = 1234, "somebody", 0o7777
		}
		into, err := read(t, bytes.NewReader(pack(t, entries...)))
		require.NoError(t, err)
		requireVerified(t, into)
	}
}

// A hostile archive is refused, and nothing outside of the directory changes.
func TestReadRefuses(t *testing.T) {
	for name, data := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			into, err := read(t, bytes.NewReader(data))
			if name == "huge" {
				require.ErrorIs(t, err, errdefs.ErrNoSpace)
			} else {
				require.ErrorIs(t, err, errdefs.ErrInvalidArchive)
			}
			entries, err := os.ReadDir(filepath.Dir(into))
			require.NoError(t, err)
			require.Len(t, entries, 1)
		})
	}
}

// Names that the file system takes for one are refused where it does so.
func TestNamesThatCollide(t *testing.T) {
	data := pack(t, good(dir("chroma/"), file("chroma/A", "A"), file("chroma/a", "a"))...)
	into, err := read(t, bytes.NewReader(data))
	if _, statErr := os.Stat(filepath.Join(into, "CHROMA")); statErr == nil {
		require.ErrorIs(t, err, errdefs.ErrInvalidArchive)
		return
	}
	require.NoError(t, err)
	requireVerified(t, into)
}

func TestReadSaysThatItIsCompressed(t *testing.T) {
	for name, magic := range map[string]string{"gzip": "\x1f\x8b\x08", "zstd": "\x28\xb5\x2f\xfd", "xz": "\xfd7zXZ\x00", "bzip2": "BZh9", "zip": "PK\x03\x04"} {
		_, err := read(t, strings.NewReader(magic))
		require.ErrorIs(t, err, errdefs.ErrInvalidArchive)
		require.ErrorContains(t, err, "compressed with "+name)
	}
}

// Whatever is read, nothing outside the directory changes, and what is accepted
// is what its manifest says, and is written to an archive that is accepted.
func FuzzRead(f *testing.F) {
	for _, data := range hostile(f) {
		if len(data) < 64<<10 {
			f.Add(data)
		}
	}
	f.Add(pack(f, good(dir("chroma/"), dir("chroma/empty/"), dir("config/"), dir("db/"), file("db/x", "database"))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		into, err := read(t, bytes.NewReader(data))
		entries, dirErr := os.ReadDir(filepath.Dir(into))
		require.NoError(t, dirErr)
		require.Len(t, entries, 1)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		requireVerified(t, into)
		again, err := read(t, bytes.NewReader(mustWrite(t, into)))
		require.NoError(t, err)
		require.Equal(t, backuptest.ReadTree(t, into), backuptest.ReadTree(t, again))
	})
}
