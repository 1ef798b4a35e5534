package delta_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/offsite/internal/delta"
)

const block = 4096

// random returns n bytes that are the same for the same seed.
func random(seed uint64, n int) []byte {
	data := make([]byte, n)
	source := rand.NewChaCha8([32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), seed)))
	_, _ = source.Read(data)
	return data
}

func base(data []byte) *delta.Version {
	return delta.Base(bytes.NewReader(data), int64(len(data)))
}

// write returns the delta that makes next of old.
func write(t *testing.T, old *delta.Version, next []byte) ([]byte, delta.Written) {
	t.Helper()
	var d bytes.Buffer
	w, err := delta.Write(context.Background(), &d, old, bytes.NewReader(next), int64(len(next)))
	require.NoError(t, err)
	require.Equal(t, int64(d.Len()), w.Size)
	require.Equal(t, int64(len(next)), w.Literal+w.Copied)
	require.Equal(t, sha256.Sum256(next), w.SHA256)
	return d.Bytes(), w
}

func apply(t *testing.T, old *delta.Version, d []byte, size int) *delta.Version {
	t.Helper()
	v, err := old.Apply(bytes.NewReader(d), int64(len(d)), int64(size))
	require.NoError(t, err)
	return v
}

func requireContent(t *testing.T, want []byte, v *delta.Version) {
	t.Helper()
	require.Equal(t, int64(len(want)), v.Size())
	var got bytes.Buffer
	n, err := v.WriteTo(&got)
	require.NoError(t, err)
	require.Equal(t, int64(len(want)), n)
	require.True(t, bytes.Equal(want, got.Bytes()), "the content differs")
}

// edits are ways in which a file changes. Each returns a new slice.
var edits = []struct {
	name string
	edit func(r *rand.Rand, old []byte) []byte
}{
	{"nothing", func(_ *rand.Rand, old []byte) []byte { return bytes.Clone(old) }},
	{"pages", func(r *rand.Rand, old []byte) []byte {
		next := bytes.Clone(old)
		for range 1 + len(next)/block/20 {
			if pages := len(next) / block; pages > 0 {
				copy(next[r.IntN(pages)*block:][:block], random(r.Uint64(), block))
			}
		}
		return next
	}},
	{"single bytes", func(r *rand.Rand, old []byte) []byte {
		next := bytes.Clone(old)
		for range 20 {
			if len(next) > 0 {
				next[r.IntN(len(next))]++
			}
		}
		return next
	}},
	{"a long piece", func(r *rand.Rand, old []byte) []byte {
		next := bytes.Clone(old)
		if len(next) > 0 {
			from := r.IntN(len(next))
			copy(next[from:], random(r.Uint64(), r.IntN(len(next))))
		}
		return next
	}},
	{"grown", func(r *rand.Rand, old []byte) []byte {
		return append(bytes.Clone(old), random(r.Uint64(), r.IntN(3*block))...)
	}},
	{"shrunk", func(r *rand.Rand, old []byte) []byte { return bytes.Clone(old[:r.IntN(len(old)+1)]) }},
	{"moved", func(r *rand.Rand, old []byte) []byte { return append(random(r.Uint64(), 1+r.IntN(100)), old...) }},
	{"reversed", func(_ *rand.Rand, old []byte) []byte {
		var next []byte
		for at := len(old) / block * block; at >= 0; at -= block {
			next = append(next, old[at:min(at+block, len(old))]...)
		}
		return next
	}},
	{"emptied", func(*rand.Rand, []byte) []byte { return nil }},
}

// sizes are sizes of files at which something changes in how they are read.
var sizes = []int{0, 1, 511, 512, 513, block - 1, block, block + 1, 3*block + 700, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1<<20 + 12345}

// TestRoundTrip: the delta between any two contents makes the second of the first.
func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, e := range edits {
		t.Run(e.name, func(t *testing.T) {
			for _, size := range sizes {
				old := random(uint64(size), size)
				next := e.edit(r, old)
				d, _ := write(t, base(old), next)
				requireContent(t, next, apply(t, base(old), d, len(next)))
			}
		})
	}
}

// TestRow: 32 deltas in a row, and all of them merged into one, make the file,
// with this package and with rdiff.
func TestRow(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 7))
		first := random(seed, r.IntN(1<<20))
		content, v := first, base(first)
		for range 32 {
			next := edits[r.IntN(len(edits)-1)].edit(r, content) // not emptied
			d, _ := write(t, v, next)
			v = apply(t, v, d, len(next))
			content = next
		}
		requireContent(t, content, v)

		var merged bytes.Buffer
		w, err := v.WriteDelta(&merged)
		require.NoError(t, err)
		require.Equal(t, int64(merged.Len()), w.Size)
		require.Equal(t, int64(len(content)), w.Literal+w.Copied)
		requireContent(t, content, apply(t, base(first), merged.Bytes(), len(content)))
		if _, err := exec.LookPath("rdiff"); err == nil {
			require.True(t, bytes.Equal(content, rdiffPatch(t, first, merged.Bytes())))
		}
	}
}

// TestBranches: several versions may be made of one, which remains as it was.
func TestBranches(t *testing.T) {
	old := random(1, 3*block)
	v, content := base(old), old
	for seed := range uint64(5) {
		var next [3]*delta.Version
		var want [3][]byte
		for i := range next {
			want[i] = append(bytes.Clone(content), random(10*seed+uint64(i), 700)...)
			d, _ := write(t, v, want[i])
			next[i] = apply(t, v, d, len(want[i]))
		}
		requireContent(t, content, v)
		for i := range next {
			requireContent(t, want[i], next[i])
		}
		v, content = next[0], want[0]
	}
}

func needRdiff(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("rdiff"); err != nil {
		t.Skip("rdiff is not installed")
	}
}

func file(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

func rdiff(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("rdiff", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func rdiffPatch(t *testing.T, old, d []byte) []byte {
	t.Helper()
	made := filepath.Join(t.TempDir(), "made")
	rdiff(t, "patch", file(t, "base", old), file(t, "delta", d), made)
	data, err := os.ReadFile(made)
	require.NoError(t, err)
	return data
}

// TestRdiff: rdiff applies the deltas of this package, and this package those of
// rdiff.
func TestRdiff(t *testing.T) {
	needRdiff(t)
	r := rand.New(rand.NewPCG(3, 4))
	for _, e := range edits {
		t.Run(e.name, func(t *testing.T) {
			for _, size := range sizes {
				old := random(uint64(size), size)
				next := e.edit(r, old)
				d, _ := write(t, base(old), next)
				require.True(t, bytes.Equal(next, rdiffPatch(t, old, d)), "rdiff patch, %d bytes", size)

				signature, theirs := filepath.Join(t.TempDir(), "signature"), filepath.Join(t.TempDir(), "delta")
				rdiff(t, "--block-size=512", "signature", file(t, "old", old), signature)
				rdiff(t, "delta", signature, file(t, "new", next), theirs)
				d, err := os.ReadFile(theirs)
				require.NoError(t, err)
				requireContent(t, next, apply(t, base(old), d, len(next)))
			}
		})
	}
}

// TestCost: a delta is about as large as what changed, and neither writing nor
// reading one takes memory for the data.
func TestCost(t *testing.T) {
	const size = 64 << 20
	old := random(1, size)
	for name, test := range map[string]struct {
		change func(page []byte)
		most   float64 // share of the file
	}{
		"whole pages": {func(page []byte) { copy(page, random(3, block)) }, 0.011},
		"a few bytes": {func(page []byte) { copy(page[1000:], "changed") }, 0.0015},
	} {
		t.Run(name, func(t *testing.T) {
			next := bytes.Clone(old)
			for _, page := range rand.New(rand.NewPCG(1, 1)).Perm(size / block)[:size/block/100] {
				test.change(next[page*block:][:block])
			}
			var d bytes.Buffer
			d.Grow(size / 50)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			v := base(old)
			_, err := delta.Write(context.Background(), &d, v, bytes.NewReader(next), size)
			require.NoError(t, err)
			require.LessOrEqual(t, float64(d.Len()), test.most*size)
			changed, err := v.Apply(bytes.NewReader(d.Bytes()), int64(d.Len()), size)
			require.NoError(t, err)
			_, err = changed.WriteTo(io.Discard)
			require.NoError(t, err)
			runtime.ReadMemStats(&after)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(2<<20))
			requireContent(t, next, changed)
		})
	}
}
