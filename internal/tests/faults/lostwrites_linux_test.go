package faults

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var losses = flag.Int("losses", 1, "how often a disk loses writes, for each kind of store and file system")

// TestLostWrites takes snapshots onto a disk that loses what was written. Its file
// system lies in a file that grows on demand, on a file system that is full. So
// writes succeed and are lost later, as on a failing disk or a thin volume without
// space, and only a sync reports it. A snapshot whose create succeeded must be
// there when it is read from the disk and not from memory.
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
						require.NoError(t, os.WriteFile(filepath.Join(s.ChromaPath, "large"), make([]byte, store.size), 0o600))
					}
					d := newDisk(t, under, kind, 256<<20)
					s.BackupDir = filepath.Join(d.mountedAt, "backups")
					need := s.sizeOfOne()
					d.sync()

					empty, err := fill(under, random.Int64N(3*need/2))
					require.NoError(t, err)
					o := do(t, s.createCmd())
					// What the file system writes later does not count.
					require.NoError(t, d.cut())
					d.unmount()
					require.NoError(t, empty())
					if o.code == 0 {
						ends["done"]++
						d.mount()
						require.Contains(t, s.RequireValid(), o.stamp(t))
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
