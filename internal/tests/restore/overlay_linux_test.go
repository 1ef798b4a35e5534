package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
)

// newOverlayTemplate creates a store as newStore does, and returns a function that
// shows it in a new overlay, from whose lower layer it comes: rename(2) moves none
// of its directories.
func newOverlayTemplate(t *testing.T) (stamp string, fresh func(t *testing.T) *backuptest.Store) {
	t.Helper()
	template, stamp := newStore(t)
	require.NoError(t, os.Mkdir(template.InChroma("segment-old/sub"), 0o755))
	for _, name := range []string{"segment-old/sub/a", "segment-old/sub/b", "segment-old/z"} {
		backuptest.Write(t, template.InChroma(name), name)
	}
	return stamp, func(t *testing.T) *backuptest.Store {
		t.Helper()
		dir := t.TempDir()
		backuptest.MountOverlay(t, template.Dir, dir)
		return &backuptest.Store{T: t, Dir: dir, Options: optionsIn(dir)}
	}
}

// contentOf returns what is in the Chroma directory, but for the directories' times.
func contentOf(t *testing.T, s *backuptest.Store) map[string]backuptest.File {
	t.Helper()
	tree := backuptest.ReadTree(t, s.ChromaPath)
	for name, file := range tree {
		if file.Mode.IsDir() {
			file.ModTime = 0
			tree[name] = file
		}
	}
	return tree
}

// splitAndNotOut reports whether a restore was cut off while it moved a directory
// file by file.
func splitAndNotOut(t *testing.T, s *backuptest.Store) bool {
	t.Helper()
	if info, err := os.Stat(journalOf(s)); err != nil || info.Size() == 0 {
		return false
	}
	lines := linesOf(t, s)
	return len(lines) > 0 && lines[len(lines)-1] == "split chroma"
}

// A restore is killed at each step of moving a directory that rename(2) does not
// move. All of the old store comes back.
func TestKilledWhileADirectoryIsMovedApart(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newOverlayTemplate(t)
	before := contentOf(t, fresh(t))
	for call, stride := range map[string]int{"renameat2": 1, "mkdirat": 1, "pwrite64": 1, "unlinkat": 5, "fsync": 5} {
		t.Run(call, func(t *testing.T) {
			midst, after := 0, 0
			for n := 1; ; n += stride {
				s := fresh(t)
				_, hit, err := tracer.run(t, call, fmt.Sprintf("signal=SIGKILL:when=%d", n), s.Dir, stamp)
				if !hit {
					require.NoError(t, err)
					break
				}
				isMidst := splitAndNotOut(t, s)
				state := recovered(s)
				if isMidst {
					midst++
					require.Equal(t, "old", state, "killed at %s %d", call, n)
				} else if midst > 0 {
					after++
				}
				if state == "old" {
					require.Equal(t, before, contentOf(t, s), "killed at %s %d", call, n)
				}
				require.NoError(t, callByName(s.Options, "prune", "")) // of what is half removed
				s.RequireClean()
			}
			require.True(t, midst > 0 || stride > 1)
			t.Logf("%d kills in the midst, %d later", midst, after)
		})
	}
}

// The undo of such a move is killed at each of its steps, too.
func TestUndoKilledWhileADirectoryIsMovedApart(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newOverlayTemplate(t)
	before := contentOf(t, fresh(t))
	half := func(t *testing.T, kill int) *backuptest.Store {
		s := fresh(t)
		_, hit, _ := tracer.run(t, "renameat2", fmt.Sprintf("signal=SIGKILL:when=%d", kill), s.Dir, stamp)
		require.True(t, hit)
		return s
	}
	kill := 1
	for !slices.Contains(entriesOf(half(t, kill)), "segment-old/sub") {
		kill++
	}
	for call, stride := range map[string]int{"renameat2": 1, "mkdirat": 1, "pwrite64": 1, "unlinkat": 5} {
		t.Run(call, func(t *testing.T) {
			kills := 0
			for n := 1; ; n += stride {
				s := half(t, kill)
				_, hit, _ := tracer.run(t, call, fmt.Sprintf("signal=SIGKILL:when=%d", n), s.Dir, "none")
				if !hit {
					break
				}
				kills++
				require.Equal(t, "old", recovered(s), "killed at %s %d", call, n)
				require.Equal(t, before, contentOf(t, s), "killed at %s %d", call, n)
			}
			require.NotZero(t, kills)
			t.Logf("%d kills", kills)
		})
	}
}

// entriesOf returns what a restore has moved to old/ in the Chroma directory, if
// it was cut off while it moved a directory file by file.
func entriesOf(s *backuptest.Store) (names []string) {
	s.T.Helper()
	if !splitAndNotOut(s.T, s) {
		return nil
	}
	old := filepath.Join(stagingOf(s.T, s, "chroma"), "old")
	for name := range backuptest.ReadTree(s.T, old) {
		names = append(names, name)
	}
	return names
}
