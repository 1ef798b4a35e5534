package restore

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
)

// In a sandbox files are moved in two steps, and between them a file has two
// names. A restore is killed before each of these steps, and recovered in the sandbox and outside of it.
func TestRestoreKilledInASandbox(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	tracer.sandboxed = true
	calls := []string{"linkat", "unlinkat"}
	if *killStride == 1 {
		calls = append(calls, "renameat", "pwrite64", "fsync", "mkdirat")
	}
	for _, over := range []string{"a store", "nothing"} {
		t.Run("over "+over, func(t *testing.T) {
			template, stamp := newStore(t)
			if over == "nothing" {
				removeParts(t, template.Options)
			}
			kills, twice := 0, 0
			for _, call := range calls {
				for n := 1; ; n++ {
					s := copyStore(t, template.Dir)
					text, hit, err := tracer.run(t, call, fmt.Sprintf("signal=SIGKILL:when=%d", n), s.Dir, stamp)
					if strings.Contains(text, backuptest.ErrNoSandbox.Error()) {
						t.Skip(text)
					}
					if !hit {
						require.NoError(t, err, text)
						require.Equal(t, "new", generationOf(t, s.Options))
						require.NoError(t, os.RemoveAll(s.Dir))
						break
					}
					require.Empty(t, text, "it failed before it was killed")
					kills++
					if hasTwoNames(t, s) {
						twice++
					}
					name := fmt.Sprintf("killed at %s %d", call, n)
					if n%2 == 0 {
						out, err := backuptest.Command(t, "restore-in-sandbox", s.Dir, "none").CombinedOutput()
						require.Error(t, err)
						require.Contains(t, string(out), `no such snapshot: "none"`, name)
					}
					requireRecovered(t, s, over, name)
					s.Restore(stamp)
					require.Equal(t, "new", generationOf(t, s.Options), name)
					s.RequireClean()
					s.RequireNoRemains()
					require.NoError(t, os.RemoveAll(s.Dir))
				}
			}
			require.NotZero(t, twice)
			t.Logf("%d kills, %d of them left a file with two names", kills, twice)
		})
	}
}

// hasTwoNames reports whether a file of the store has two names.
func hasTwoNames(t *testing.T, s *backuptest.Store) bool {
	t.Helper()
	out, err := exec.Command("find", s.Dir, "-type", "f", "-links", "+1").Output()
	require.NoError(t, err)
	return len(out) > 0
}

// requireRecovered undoes or finishes what a restore over a store, or over
// nothing, has left, if that wasn't done before. Nothing must be set aside,
// because nobody has written anything.
func requireRecovered(t *testing.T, s *backuptest.Store, over, name string) {
	t.Helper()
	r, err := recovery(s)
	require.ErrorContains(t, err, "none", name)
	if r != nil {
		require.Empty(t, r.SetAside, name)
	}
	s.RequireNoRemains()
	if _, err := os.Stat(s.DatabasePath); over == "nothing" && err != nil {
		require.NoFileExists(t, s.RegistryPath, name)
		require.NoDirExists(t, s.ChromaPath, name)
		return
	}
	require.Contains(t, map[string][]string{"a store": {"old", "new"}, "nothing": {"new"}}[over], generationOf(t, s.Options), name)
	for _, pattern := range []string{s.DatabasePath, s.RegistryPath, s.ChromaPath} {
		found, err := exec.Command("find", s.Dir, "-path", pattern+".set-aside-*").Output()
		require.NoError(t, err)
		require.Empty(t, string(found), name)
	}
}
