package faults

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestOrderOfPrune checks the order of the system calls of one prune: a
// snapshot's rename out of snapshots/ is durable on both sides before the first
// of its files is removed. Otherwise a power cut could bring the name back, with
// some of the files.
func TestOrderOfPrune(t *testing.T) {
	s := newStore(t, memoryDir(t), "wal")
	for range 3 {
		do(t, s.createCmd()).requireDone(t)
	}
	stamps := s.Stamps()
	require.Len(t, stamps, 3)
	events := record(t, command(t, append([]string{"prune", "--keep-last", "1"}, s.flags()...)...))
	require.Equal(t, stamps[2:], s.RequireValid())

	snapshots := filepath.Join(s.BackupDir, "snapshots")
	removed := map[string]*event{} // the renames, by the new path
	synced := map[string][]*event{}
	unlinked := map[string]int{}
	for _, e := range events {
		_, path := e.fd()
		switch {
		case e.ret < 0:
		case strings.HasPrefix(e.name, "rename"):
			paths := e.places()
			require.Equal(t, snapshots, filepath.Dir(paths[0]))
			removed[paths[1]] = e
		case e.name == "fsync":
			synced[path] = append(synced[path], e)
		case e.name == "unlinkat":
			for staging, rename := range removed {
				if path := e.places()[0]; path != staging && !strings.HasPrefix(path, staging+"/") {
					continue
				}
				unlinked[staging]++
				for _, dir := range []string{snapshots, s.BackupDir} {
					durable := false
					for _, sync := range synced[dir] {
						durable = durable || sync.begin > rename.end && sync.end < e.begin
					}
					require.True(t, durable, "%s is removed before the rename is durable in %s", e.places()[0], dir)
				}
			}
		}
	}
	require.Len(t, removed, 2, "the record was not understood")
	for staging := range removed {
		require.Greater(t, unlinked[staging], 5, "the record was not understood")
	}
}

// TestOrderAfterKilledPrune checks the same order for a create that removes what a
// prune has left which was killed right after the rename.
func TestOrderAfterKilledPrune(t *testing.T) {
	s := newStore(t, memoryDir(t), "wal")
	stamp := do(t, s.createCmd()).requireDone(t).stamp(t)
	left := filepath.Join(s.BackupDir, ".atocore-staging-0123456789abcdef")
	require.NoError(t, os.Rename(s.SnapshotPath(stamp), left))
	met := make([]int, len(restoreRules))
	w := newWatch(t, s, met, "backups/hidden", "backups/snapshots/"+stamp)
	w.follow(record(t, s.createCmd()))
	require.NoDirExists(t, left)
	checked := 0
	for i, r := range restoreRules {
		if r.on == "remove backups/hidden/SHA256SUMS" {
			checked = met[i]
		}
	}
	require.NotZero(t, checked, "the record was not understood")
}
