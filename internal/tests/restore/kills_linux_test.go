package backup_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var killStride = flag.Int("kill-stride", 40, "kill a restore at every so many-th of its steps (1: at each)")

func init() {
	roles["restore"] = func(p *backuptest.Parent, args []string) error {
		opts := storeAt(args[0])
		_, err := backup.RestoreRuntimeBackup(context.Background(), opts, args[1])
		return err
	}
}

func storeAt(dir string) backup.Options {
	return backup.Options{
		DatabasePath:  filepath.Join(dir, "live", "atocore.db"),
		RegistryPath:  filepath.Join(dir, "live", "registry.json"),
		ChromaPath:    filepath.Join(dir, "live", "chroma"),
		BackupDir:     filepath.Join(dir, "backups"),
		IncludeChroma: true,
	}
}

// writeGeneration makes every part of a small store tell the generation.
func writeGeneration(t *testing.T, opts backup.Options, gen string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Join(opts.ChromaPath, "segment-"+gen), 0o755))
	db := backuptest.OpenDB(t, opts.DatabasePath, "_pragma=journal_mode(wal)", "_pragma=synchronous(off)")
	_, err := db.Exec(`CREATE TABLE IF NOT EXISTS gen (value TEXT); DELETE FROM gen; INSERT INTO gen VALUES ('` + gen + `')`)
	require.NoError(t, err)
	backuptest.KeepWAL(t, db, opts.DatabasePath)
	for path, text := range map[string]string{
		opts.RegistryPath:                                        `{"gen":"` + gen + `"}`,
		filepath.Join(opts.ChromaPath, "same"):                   gen,
		filepath.Join(opts.ChromaPath, "only-"+gen):              gen,
		filepath.Join(opts.ChromaPath, "segment-"+gen, "header"): gen,
	} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
}

// generationOf tells the generation of a store, which must be one and the
// same in all of it.
func generationOf(t *testing.T, opts backup.Options) string {
	t.Helper()
	db := backuptest.OpenDB(t, backuptest.CopyWithWAL(t, opts.DatabasePath))
	defer db.Close()
	var gen string
	require.NoError(t, db.QueryRow("SELECT value FROM gen").Scan(&gen))
	registry, err := os.ReadFile(opts.RegistryPath)
	require.NoError(t, err)
	require.Equal(t, `{"gen":"`+gen+`"}`, string(registry))
	var names []string
	entries, err := os.ReadDir(opts.ChromaPath)
	require.NoError(t, err)
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	require.Equal(t, []string{"only-" + gen, "same", "segment-" + gen}, names)
	for _, name := range []string{"same", "only-" + gen, "segment-" + gen + "/header"} {
		data, err := os.ReadFile(filepath.Join(opts.ChromaPath, name))
		require.NoError(t, err)
		require.Equal(t, gen, string(data), name)
	}
	return gen
}

// A restore is killed before each of the calls that change anything, one after
// the other. Whatever is left, the next call makes the store wholly old or
// wholly new, and until then every call says that a restore is unfinished.
func TestRestoreKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("there is no strace, which kills at a chosen system call")
	}
	calls := []string{"renameat2", "unlinkat", "fsync", "write", "pwrite64"}
	if *killStride == 1 {
		calls = append(calls, "renameat", "linkat", "mkdirat", "openat", "ftruncate",
			"fchmod", "utimensat", "copy_file_range", "flock", "fcntl", "close")
	}
	template := t.TempDir()
	opts := storeAt(template)
	require.NoError(t, os.MkdirAll(filepath.Dir(opts.DatabasePath), 0o755))
	writeGeneration(t, opts, "new")
	m, err := backup.CreateRuntimeBackup(context.Background(), opts)
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Dir(opts.DatabasePath)))
	writeGeneration(t, opts, "old")

	kills, unfinished := 0, 0
	outcomes := map[string]int{}
	// Calls are counted by thread, so a run may end before its n-th.
	stride := (*killStride + 3) / 4
	for call, n := 0, 1; call < len(calls); n += stride {
		dir := t.TempDir()
		require.NoError(t, os.RemoveAll(dir))
		require.NoError(t, exec.Command("cp", "-a", template, dir).Run())
		opts := storeAt(dir)
		cmd := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace="+calls[call],
			"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", calls[call], n), os.Args[0], dir, m.Stamp)
		cmd.Env = append(os.Environ(), backuptest.RoleEnv+"=restore", "GOMAXPROCS=1")
		stdin, hold, err := os.Pipe() // a role ends when its input does
		require.NoError(t, err)
		cmd.Stdin = stdin
		text, err := cmd.CombinedOutput()
		require.NoError(t, errors.Join(stdin.Close(), hold.Close()))
		if err == nil {
			require.Equal(t, "new", generationOf(t, opts))
			require.NoError(t, os.RemoveAll(dir))
			call, n = call+1, 1-stride
			continue
		}
		if strings.Contains(string(text), "ptrace") || strings.Contains(string(text), "PTRACE") {
			t.Skipf("strace may not trace here: %s", text)
		}
		require.Empty(t, string(text), "killed, and nothing else")
		kills++

		list, lerr := backup.ListRuntimeBackups(context.Background(), opts)
		require.NotEmpty(t, list)
		_, verr := backup.ValidateBackup(context.Background(), opts, m.Stamp)
		if lerr != nil {
			unfinished++
			require.ErrorIs(t, lerr, backup.ErrRestoreUnfinished)
			require.ErrorIs(t, verr, backup.ErrRestoreUnfinished)
			_, err := backup.CreateRuntimeBackup(context.Background(), opts)
			require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
			_, err = backup.PruneRuntimeBackups(context.Background(), opts, backup.Retention{KeepLast: 1})
			require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
		} else {
			require.NoError(t, verr)
		}
		// Of a snapshot that is not there, so that only what was cut off is
		// dealt with.
		_, err = backup.RestoreRuntimeBackup(context.Background(), opts, "none")
		require.ErrorIs(t, err, backup.ErrInvalidBackup, "killed at %s number %d", calls[call], n)
		outcomes[generationOf(t, opts)]++
		(&backuptest.Store{T: t, Dir: dir, Options: opts}).RequireNoRemains()

		// And then a whole restore works.
		_, err = backup.RestoreRuntimeBackup(context.Background(), opts, m.Stamp)
		require.NoError(t, err)
		require.Equal(t, "new", generationOf(t, opts))
		(&backuptest.Store{T: t, Dir: dir, Options: opts}).RequireClean()
		(&backuptest.Store{T: t, Dir: dir, Options: opts}).RequireNoRemains()
		require.NoError(t, os.RemoveAll(dir))
	}
	if *killStride == 1 {
		require.NotZero(t, unfinished)
	}
	t.Logf("%d kills, %d of them left an unfinished restore; afterwards the store was %v", kills, unfinished, outcomes)
}
