package offsite

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/offsite"
)

var (
	entries = flag.Int("entries", 50_000, "how many files a hostile recipe has")
	zeros   = flag.Int64("zeros", 64<<20, "how many bytes a hostile file has")
)

// A forgery is a copy that somebody with the password has made, in a directory as
// restic stores it.
type forgery struct {
	t      *testing.T
	dir    string
	recipe map[string]any
	tags   map[string]string
}

const databaseFile = "db/atocore.db"

// files returns the entries of the recipe for files.
func (f *forgery) files() []any { return f.recipe["files"].([]any) }

// file returns the entry of the recipe for a file.
func (f *forgery) file(path string) map[string]any {
	for _, entry := range f.files() {
		if e := entry.(map[string]any); e["path"] == path {
			return e
		}
	}
	require.FailNow(f.t, "no such file: "+path)
	return nil
}

// part returns an entry of the recipe for a part of the database, and its path.
func (f *forgery) part(n int) (entry map[string]any, path string) {
	entry = f.file(databaseFile)["large"].([]any)[n].(map[string]any)
	return entry, f.in("large", databaseFile, entry["name"].(string))
}

func (f *forgery) in(elem ...string) string {
	return filepath.Join(append([]string{f.dir}, elem...)...)
}

// must checks that no step of a forgery has failed.
func (f *forgery) must(errs ...error) {
	f.t.Helper()
	for _, err := range errs {
		require.NoError(f.t, err)
	}
}

// setDelta replaces the n-th delta of the database, and what the recipe says about
// its size.
func (f *forgery) setDelta(n int, data []byte) {
	entry, path := f.part(n)
	entry["bytes"] = len(data)
	f.must(os.WriteFile(path, data, 0o600))
}

// setFile replaces a small file, in the recipe and in SHA256SUMS, too, and the
// hash of that in the tags: only what is in the file is wrong.
func (f *forgery) setFile(path string, data []byte) {
	f.must(os.WriteFile(f.in("files", path), data, 0o600))
	entry := f.file(path)
	old := entry["sha256"].(string)
	entry["sha256"], entry["size"] = hash(data), len(data)
	if path != backuptest.ManifestFile {
		manifest, err := os.ReadFile(f.in("files", backuptest.ManifestFile))
		f.must(err)
		require.Contains(f.t, string(manifest), old)
		f.setFile(backuptest.ManifestFile, bytes.Replace(manifest, []byte(old), []byte(hash(data)), 1))
		return
	}
	f.recipe["manifest_sha256"], f.tags["sums"] = hash(data), hash(data)
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// A deltaText is a delta in librsync's format, as its commands are written one by
// one (librsync, doc/formats.md).
type deltaText struct{ bytes.Buffer }

func newDelta() *deltaText {
	d := new(deltaText)
	d.Write([]byte{0x72, 0x73, 0x02, 0x36})
	return d
}

func (d *deltaText) copy(offset, length uint64) *deltaText {
	d.WriteByte(0x54)
	_ = binary.Write(d, binary.BigEndian, []uint64{offset, length}) // to memory
	return d
}

func (d *deltaText) literal(length uint32, data string) *deltaText {
	d.WriteByte(0x43)
	_ = binary.Write(d, binary.BigEndian, length)
	d.WriteString(data)
	return d
}

func (d *deltaText) end() []byte { return append(d.Bytes(), 0) }

// forgeries are what is stored instead of a copy.
var forgeries = []struct {
	name  string
	forge func(f *forgery)
	want  error // if nil, ErrDamaged
	large bool  // whether somebody who believes it needs much memory
}{
	{"recipe: another version", func(f *forgery) { f.recipe["version"] = 2 }, nil, false},
	{"recipe: not JSON", func(f *forgery) { f.recipe = nil; backuptest.Write(f.t, f.in("recipe.json"), "{\"version\":1,") }, nil, false},
	{"recipe: missing", func(f *forgery) { f.recipe = nil; f.must(os.Remove(f.in("recipe.json"))) }, nil, false},
	{"recipe: a link", func(f *forgery) {
		f.recipe = nil
		f.must(os.Remove(f.in("recipe.json")), os.Symlink("/etc/passwd", f.in("recipe.json")))
	}, nil, false},
	{"recipe: a directory", func(f *forgery) {
		f.recipe = nil
		f.must(os.Remove(f.in("recipe.json")), os.Mkdir(f.in("recipe.json"), 0o700))
	}, nil, false},
	{"recipe: of another snapshot", func(f *forgery) { f.recipe["stamp"] = "20200101T000000Z" }, nil, false},
	{"recipe: another manifest", func(f *forgery) { f.recipe["manifest_sha256"] = hash(nil) }, nil, false},
	{"recipe: path outside", func(f *forgery) { f.file(backuptest.RegistryFile)["path"] = "../../../../evil" }, nil, false},
	{"recipe: absolute path", func(f *forgery) { f.file(backuptest.RegistryFile)["path"] = "/evil" }, nil, false},
	{"recipe: path through ..", func(f *forgery) { f.file(backuptest.RegistryFile)["path"] = "db/../config/project-registry.json" }, nil, false},
	{"recipe: directory outside", func(f *forgery) {
		d := f.recipe["directories"].([]any)
		d[len(d)-1].(map[string]any)["path"] = "../evil"
	}, nil, false},
	{"recipe: path twice", func(f *forgery) { f.recipe["files"] = append(f.files(), f.files()[len(f.files())-1]) }, nil, false},
	{"recipe: lacks a file", func(f *forgery) { f.recipe["files"] = f.files()[:len(f.files())-1] }, nil, false},
	{"recipe: no files", func(f *forgery) { f.recipe["files"] = []any{} }, nil, false},
	{"recipe: file too short", func(f *forgery) { f.file(backuptest.RegistryFile)["size"] = 3 }, nil, false},
	{"recipe: file too long", func(f *forgery) { f.file(backuptest.RegistryFile)["size"] = 3000 }, nil, false},
	{"recipe: negative size", func(f *forgery) { f.file(backuptest.RegistryFile)["size"] = -1 }, nil, false},
	{"recipe: size beyond all bounds", func(f *forgery) { f.file(backuptest.RegistryFile)["size"] = int64(1 << 62) }, nil, false},
	{"recipe: more than any disk", func(f *forgery) { f.file(backuptest.RegistryFile)["size"] = int64(1 << 47) }, backup.ErrNoSpace, true},
	{"recipe: setuid", func(f *forgery) { f.file(backuptest.RegistryFile)["mode"] = "4755" }, nil, false},
	{"recipe: part outside", func(f *forgery) { entry, _ := f.part(1); entry["name"] = "../../" + entry["name"].(string) }, nil, false},
	{"recipe: no base", func(f *forgery) {
		e := f.file(databaseFile)
		e["large"] = e["large"].([]any)[1:]
	}, nil, false},
	{"tree: link for a file", func(f *forgery) {
		path := f.in("files", backuptest.RegistryFile)
		f.must(os.Remove(path), os.Symlink("/etc/passwd", path))
	}, nil, false},
	{"tree: link for a directory", func(f *forgery) {
		f.must(os.Rename(f.in("files", "config"), f.in("moved")), os.Symlink("../moved", f.in("files", "config")))
	}, nil, false},
	{"tree: link for a base", func(f *forgery) {
		_, path := f.part(0)
		f.must(os.Remove(path), os.Symlink("/dev/zero", path))
	}, nil, false},
	{"tree: FIFO", func(f *forgery) {
		path := f.in("files", backuptest.RegistryFile)
		f.must(os.Remove(path), syscall.Mkfifo(path, 0o600))
	}, nil, false},
	{"tree: file too many", func(f *forgery) { backuptest.Write(f.t, f.in("files", "config", "evil"), "x") }, nil, false},
	{"tree: many bytes too many", func(f *forgery) {
		// Zeros are stored once, so it costs the forger nothing.
		f.must(os.WriteFile(f.in("files", "config", "evil"), nil, 0o600), os.Truncate(f.in("files", "config", "evil"), *zeros))
	}, nil, true},
	{"tree: file missing", func(f *forgery) { f.must(os.Remove(f.in("files", backuptest.RegistryFile))) }, nil, false},
	{"tree: delta missing", func(f *forgery) { _, path := f.part(1); f.must(os.Remove(path)) }, nil, false},
	{"tree: other content", func(f *forgery) { rewrite(f.t, f.in("files", backuptest.RegistryFile), flipMiddle) }, nil, false},
	{"tree: other base", func(f *forgery) { _, path := f.part(0); rewrite(f.t, path, flipMiddle) }, nil, false},
	{"tree: other manifest", func(f *forgery) { rewrite(f.t, f.in("files", backuptest.ManifestFile), flipMiddle) }, nil, false},
	{"delta: empty", func(f *forgery) { f.setDelta(1, nil) }, nil, false},
	{"delta: not one", func(f *forgery) { f.setDelta(1, []byte(strings.Repeat("evil", 1000))) }, nil, false},
	{"delta: no end", func(f *forgery) { f.setDelta(1, newDelta().copy(0, 4096).Bytes()) }, nil, false},
	{"delta: more after the end", func(f *forgery) {
		_, path := f.part(1)
		data, err := os.ReadFile(path)
		f.must(err)
		f.setDelta(1, append(data, 'x'))
	}, nil, false},
	{"delta: beyond the base", func(f *forgery) { f.setDelta(1, newDelta().copy(1<<40, 4096).end()) }, nil, false},
	{"delta: offsets that overflow", func(f *forgery) { f.setDelta(1, newDelta().copy(1<<63, 1<<63).end()) }, nil, true},
	{"delta: literal beyond the delta", func(f *forgery) { f.setDelta(1, newDelta().literal(1<<31, "short").end()) }, nil, true},
	{"delta: too short", func(f *forgery) { f.setDelta(1, newDelta().copy(0, 4096).end()) }, nil, false},
	{"delta: too long", func(f *forgery) {
		d := newDelta()
		for range 10_000 {
			d.copy(0, 1<<20)
		}
		f.setDelta(1, d.end())
	}, nil, true},
	{"delta: tiny pieces without end", func(f *forgery) {
		d := newDelta()
		for i := range uint64(1 << 20) {
			d.copy(i*2%(1<<20), 1)
		}
		f.setDelta(1, d.end())
	}, nil, true},
	{"delta: each twice as long", func(f *forgery) {
		// Each delta makes a file of twice the size out of four pieces, so that 30
		// of them would make one of a billion times the size, and of pieces.
		large := f.file(databaseFile)["large"].([]any)
		base, path := f.part(0)
		size := uint64(1 << 20)
		f.must(os.Truncate(path, int64(size)))
		base["bytes"], base["size"] = size, size
		parts := []any{base}
		for n := 1; n <= 27; n++ {
			d := newDelta().copy(size/2, size/2).copy(0, size/2).copy(size/2, size/2).copy(0, size/2).end()
			size *= 2
			name := fmt.Sprintf("%04d-%s.delta", n, hash(d))
			f.must(os.WriteFile(f.in("large", databaseFile, name), d, 0o600))
			parts = append(parts, map[string]any{"name": name, "bytes": len(d), "size": size})
		}
		last := large[len(large)-1].(map[string]any)
		name := fmt.Sprintf("%04d-%s", len(parts), last["name"].(string)[5:])
		d := newDelta().copy(0, uint64(number(last["size"]))).end()
		f.must(os.WriteFile(f.in("large", databaseFile, name), d, 0o600))
		for _, old := range large[1:] {
			f.must(os.Remove(f.in("large", databaseFile, old.(map[string]any)["name"].(string))))
		}
		last["name"], last["bytes"] = name, len(d)
		f.file(databaseFile)["large"] = append(parts, last)
	}, nil, true},
	{"snapshot: metadata of another store", func(f *forgery) {
		path := f.in("files", backuptest.MetadataFile)
		data, err := os.ReadFile(path)
		f.must(err)
		require.Contains(f.t, string(data), "atocore.db\"")
		f.setFile(backuptest.MetadataFile, bytes.ReplaceAll(data, []byte("atocore.db\""), []byte("evil.db\"")))
	}, nil, false},
	{"snapshot: metadata that are none", func(f *forgery) { f.setFile(backuptest.MetadataFile, []byte("[]")) }, nil, false},
	{"snapshot: path outside in SHA256SUMS", func(f *forgery) {
		f.setFile(backuptest.ManifestFile, []byte(hash(nil)+"  ../../evil\n"))
	}, nil, false},
	{"snapshot: an invalid registry", func(f *forgery) { f.setFile(backuptest.RegistryFile, []byte("not JSON")) }, backup.ErrInvalidBackup, false},
	{"tags: no sums", func(f *forgery) { delete(f.tags, "sums") }, offsite.ErrNoCopy, false},
	{"tags: another stamp", func(f *forgery) { f.tags["stamp"] = "../../../evil" }, offsite.ErrNoCopy, false},
}

func number(v any) int64 {
	n, err := v.(json.Number).Int64()
	if err != nil {
		panic(err)
	}
	return n
}

// A template is what forgeries are made of: a copy in a directory.
type template struct {
	s        *store
	stamp    string
	dir      string
	hostname string
	tags     map[string]string
}

func newTemplate(t *testing.T) *template {
	t.Helper()
	p, s := newDirectory(t), newStore(t, 2)
	p.push(s, s.Create().Stamp)
	m := &template{s: s, stamp: s.next(), dir: filepath.Join(t.TempDir(), "original"), tags: make(map[string]string)}
	p.push(s, m.stamp)
	var snapshots []struct {
		Hostname string
		Tags     []string
	}
	require.NoError(t, json.Unmarshal([]byte(p.restic("snapshots", "--json", "--latest", "1")), &snapshots))
	require.Len(t, snapshots, 1)
	m.hostname = snapshots[0].Hostname
	for _, tag := range snapshots[0].Tags {
		key, value, _ := strings.Cut(tag, "=")
		m.tags[key] = value
	}
	p.restic("restore", "latest", "--target", m.dir)
	return m
}

// forge stores a forgery in a new repository.
func (m *template) forge(t *testing.T, change func(f *forgery)) (*forgery, *place) {
	t.Helper()
	f := &forgery{t: t, dir: filepath.Join(t.TempDir(), "copy"), tags: maps.Clone(m.tags)}
	out, err := exec.CommandContext(t.Context(), "cp", "-a", m.dir, f.dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	text, err := os.ReadFile(f.in("recipe.json"))
	require.NoError(t, err)
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&f.recipe))
	change(f)
	return f, f.store(m.hostname)
}

// TestForgeries stores forgeries with restic. Each pull of one fails, leaves
// nothing, and takes no more memory than that of a copy.
func TestForgeries(t *testing.T) {
	t.Parallel()
	m := newTemplate(t)
	// Forging works: what is stored as it was is pulled.
	_, p := m.forge(t, func(*forgery) {})
	p.requirePulled(m.s, m.stamp)

	for _, c := range forgeries {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, p := m.forge(t, c.forge)
			s := m.s.with(t)
			err := p.pullFails(p.context(), s, m.stamp)
			want := c.want
			if want == nil {
				want = offsite.ErrDamaged
			}
			require.ErrorIs(t, err, want)
			require.Less(t, len(err.Error()), 4000)
			f.requireNoEvil()
			if c.large {
				p.requireModest(s, m.stamp, maxMemory)
			}
		})
	}
}

// store stores the forgery in a new repository.
func (f *forgery) store(host string) *place {
	p := newDirectory(f.t)
	if f.recipe != nil {
		text, err := json.Marshal(f.recipe)
		require.NoError(f.t, err)
		require.NoError(f.t, os.WriteFile(f.in("recipe.json"), text, 0o600))
	}
	var tags []string
	for key, value := range f.tags {
		if value != "" {
			key += "=" + value
		}
		tags = append(tags, key)
	}
	cmd := p.command("backup", "--quiet", "--host", host, "--tag", strings.Join(tags, ","), ".")
	cmd.Dir = f.dir
	out, err := cmd.CombinedOutput()
	require.NoError(f.t, err, "%s", out)
	return p
}

// requireNoEvil checks that no file is where a forgery wanted it.
func (f *forgery) requireNoEvil() {
	f.t.Helper()
	require.NoFileExists(f.t, "/evil")
	require.NoError(f.t, filepath.WalkDir(filepath.Dir(filepath.Dir(f.dir)), func(path string, d fs.DirEntry, err error) error {
		if !strings.HasPrefix(path, f.dir) {
			require.NotEqual(f.t, "evil", d.Name(), path)
		}
		return err
	}))
}

// The most that a process may take, its restic included, in bytes: for a copy with
// few files, and for one with as many as a recipe may have, or more.
const (
	maxMemory        = 350 << 20
	maxMemoryEntries = 650 << 20
)

// requireModest pulls a forgery in another process, whose memory is measured.
func (p *place) requireModest(s *store, stamp string, limit int64) {
	p.t.Helper()
	twin := s.elsewhere()
	child := p.start("pull", twin, stamp)
	memory, err := strconv.ParseInt(child.Hear(), 10, 64)
	require.NoError(p.t, err)
	p.t.Logf("%d MiB", memory>>20)
	require.Less(p.t, memory, limit)
	require.Error(p.t, child.Cmd.Wait())
	twin.RequireNoSnapshot()
}

// TestManyEntries: a recipe with very many files is refused, or read within bounds.
func TestManyEntries(t *testing.T) {
	t.Parallel()
	needPrograms(t, "restic")
	f := &forgery{t: t, dir: t.TempDir(), tags: map[string]string{"atocore": "", "stamp": "20260101T000000Z", "sums": hash(nil), "db": "/db"}}
	var text bytes.Buffer
	fmt.Fprintf(&text, `{"version":1,"stamp":"20260101T000000Z","manifest_sha256":%q,"directories":[{"path":"","mode":"0700","mtime":"2026-01-01T00:00:00Z"}],"files":[`, hash(nil))
	for i := range *entries {
		if i > 0 {
			text.WriteByte(',')
		}
		fmt.Fprintf(&text, `{"path":"%09d","sha256":%q,"size":0,"mode":"0600","mtime":"2026-01-01T00:00:00Z"}`, i, hash(nil))
	}
	text.WriteString("]}")
	require.NoError(t, os.WriteFile(f.in("recipe.json"), text.Bytes(), 0o600))
	p := f.store("host")
	s := &store{Store: &backuptest.Store{T: t, Dir: t.TempDir()}}
	require.ErrorIs(t, p.pullFails(p.context(), s, "20260101T000000Z"), offsite.ErrDamaged)
	p.requireModest(s, "20260101T000000Z", maxMemoryEntries)
}
