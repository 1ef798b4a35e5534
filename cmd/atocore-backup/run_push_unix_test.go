//go:build unix

package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A push that fails is said, and made up once the repository is there.
func TestRunPushes(t *testing.T) {
	p := newRepository(t)
	away := filepath.Join(t.TempDir(), "away")
	require.NoError(t, os.Rename(p.repo, away))
	args := []string{"--every", "24h", "--push", "--repo", p.repo, "--password-file", p.password}
	v := startRun(t, p.store, args...)
	stamp := v.hear(`^Snapshot (\S+): database`)[1]
	v.hear(`^The push of "` + stamp + `" failed: .*It is tried again after 1m\.$`)
	require.Equal(t, exitDone, v.stop(syscall.SIGTERM).code)

	require.NoError(t, os.Rename(away, p.repo))
	v = startRun(t, p.store, args...)
	v.hear(`^Snapshot ` + stamp + ` is copied to the repository: `)
	require.Equal(t, exitDone, v.stop(syscall.SIGTERM).code)
	require.Len(t, p.stamps(t), 1)

	// It is not pushed again.
	v = startRun(t, p.store, append(args, "--listen", "0", "--keep-last", "2")...)
	v.hear(`^Pruned: `)
	require.NotContains(t, v.stop(syscall.SIGTERM).stderr, "copied")
}
