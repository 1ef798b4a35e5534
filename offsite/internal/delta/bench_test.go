package delta_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/offsite/internal/delta"
)

// benchSize is the size of the files that are measured, which are in the page
// cache.
const benchSize = 256 << 20

// changedPages returns a copy of old in which a share of the pages is new.
func changedPages(old []byte, share float64, seed uint64) []byte {
	next := bytes.Clone(old)
	r := rand.New(rand.NewPCG(seed, 0))
	pages := len(old) / block
	fresh := random(seed, block)
	for range int(float64(pages) * share) {
		page := next[r.IntN(pages)*block:][:block]
		copy(page, fresh)
		page[r.IntN(block)]++
	}
	return next
}

func openFile(tb testing.TB, data []byte) *os.File {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "file")
	require.NoError(tb, os.WriteFile(path, data, 0o600))
	f, err := os.Open(path)
	require.NoError(tb, err)
	tb.Cleanup(func() { f.Close() })
	return f
}

// versionOf returns the version of n deltas in a row, each in a file, and its
// content.
func versionOf(tb testing.TB, n int, share float64) (*delta.Version, []byte) {
	tb.Helper()
	content := random(1, benchSize)
	v := delta.Base(openFile(tb, content), benchSize)
	for i := range n {
		content = changedPages(content, share, uint64(i)+10)
		var d bytes.Buffer
		_, err := delta.Write(context.Background(), &d, v, bytes.NewReader(content), benchSize)
		require.NoError(tb, err)
		v, err = v.Apply(openFile(tb, d.Bytes()), int64(d.Len()), benchSize)
		require.NoError(tb, err)
	}
	return v, content
}

func BenchmarkWrite(b *testing.B) {
	for _, share := range []float64{0, 0.01, 1} {
		for _, deltas := range []int{0, 16} {
			b.Run(fmt.Sprintf("changed=%v/deltas=%d", share, deltas), func(b *testing.B) {
				v, content := versionOf(b, deltas, 0.01)
				next := openFile(b, changedPages(content, share, 5))
				b.SetBytes(benchSize)
				for b.Loop() {
					_, err := next.Seek(0, io.SeekStart)
					require.NoError(b, err)
					_, err = delta.Write(context.Background(), io.Discard, v, next, benchSize)
					require.NoError(b, err)
				}
			})
		}
	}
}

func BenchmarkWriteTo(b *testing.B) {
	for _, deltas := range []int{0, 1, 32} {
		b.Run(fmt.Sprint("deltas=", deltas), func(b *testing.B) {
			v, _ := versionOf(b, deltas, 0.01)
			b.SetBytes(benchSize)
			for b.Loop() {
				_, err := v.WriteTo(io.Discard)
				require.NoError(b, err)
			}
		})
	}
}
