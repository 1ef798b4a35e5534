package faults

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var losses = flag.Int("losses", 1, "how often a disk loses writes, for each kind of store and file system")

// TestLostWrites takes snapshots onto a disk that cannot keep what it has
// taken: the file system lies in a file that grows on demand, and what that one
// lies in is full. So writes succeed and are lost later, as on a failing disk
// or a thin volume that has run out, and only a sync can tell. A snapshot whose
// create returned must be there, read from the disk and not from memory.
func TestLostWrites(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		for _, store := range []struct {
			name        string
			files, size int
		}{
			{"few files", 0, 0},
			{"a large file", 0, 20 << 20},
			{"many files", 1000, 0},
		} {
			t.Run(kind+", "+store.name, func(t *testing.T) {
				random := random(t)
				ends := map[string]int{}
				for range *losses {
					parent := memoryDir(t)
					under := filepath.Join(parent, "under")
					newTmpfs(t, under, "size=128M")
					s := newStore(t, parent, "wal").addFiles(store.files)
					if store.size > 0 {
						require.NoError(t, os.WriteFile(filepath.Join(s.chroma, "large"), make([]byte, store.size), 0o600))
					}
					d := newDisk(t, under, kind, 256<<20)
					s.backups = filepath.Join(d.mountedAt, "backups")
					need := s.sizeOfOne()
					d.sync()

					empty, err := fill(under, random.Int64N(3*need/2))
					require.NoError(t, err)
					o := do(t, s.create())
					// What the file system writes later is not create's.
					require.NoError(t, d.cut())
					d.unmount()
					require.NoError(t, empty())
					if o.code == 0 {
						ends["done"]++
						d.mount()
						require.Contains(t, s.requireValid(), o.stamp(t))
						d.unmount()
						continue
					}
					require.Equal(t, 2, o.code)
					require.Regexp(t, failure, o.stderr)
					ends[lastWords(o.stderr)]++
				}
				t.Logf("%d times: %v", *losses, ends)
			})
		}
	}
}
