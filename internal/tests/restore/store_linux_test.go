package restore

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// optionsIn returns the options for the small store in dir.
func optionsIn(dir string) backup.Options {
	return backup.Options{
		DatabasePath:  filepath.Join(dir, "live", "atocore.db"),
		RegistryPath:  filepath.Join(dir, "live", "registry.json"),
		ChromaPath:    filepath.Join(dir, "live", "chroma"),
		BackupDir:     filepath.Join(dir, "backups"),
		IncludeChroma: true,
	}
}

// writeGeneration writes a small store in which every part names the generation.
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

// generationOf returns the generation of a store, which must be the same in all
// its parts.
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

// newStore creates a small store in generation "old" with a snapshot of
// generation "new".
func newStore(t *testing.T) (s *backuptest.Store, stamp string) {
	t.Helper()
	dir := t.TempDir()
	s = &backuptest.Store{T: t, Dir: dir, Options: optionsIn(dir)}
	require.NoError(t, os.MkdirAll(filepath.Dir(s.DatabasePath), 0o755))
	writeGeneration(t, s.Options, "new")
	stamp = s.Create().Stamp
	require.NoError(t, os.RemoveAll(filepath.Dir(s.DatabasePath)))
	writeGeneration(t, s.Options, "old")
	t.Cleanup(func() { s.RequireClean(); s.RequireNoRemains() })
	return s, stamp
}

// newTemplate creates a store as newStore does, and returns a function that
// copies it to a directory of its own.
func newTemplate(t *testing.T) (stamp string, fresh func(t *testing.T) *backuptest.Store) {
	t.Helper()
	template, m := newStore(t)
	return m, func(t *testing.T) *backuptest.Store {
		t.Helper()
		return copyStore(t, template.Dir)
	}
}

// copyStore copies the store in dir to a directory of its own.
func copyStore(t *testing.T, dir string) *backuptest.Store {
	t.Helper()
	to := t.TempDir()
	require.NoError(t, os.RemoveAll(to))
	require.NoError(t, exec.Command("cp", "-a", dir, to).Run())
	return &backuptest.Store{T: t, Dir: to, Options: optionsIn(to)}
}

// journalOf returns the path of the journal of a restore.
func journalOf(s *backuptest.Store) string {
	return filepath.Join(s.BackupDir, ".atocore-restore.journal")
}

// recovered undoes or finishes what a restore left, by a call that can do nothing
// else because its snapshot does not exist, and returns the generation that the
// store has then.
func recovered(s *backuptest.Store) string {
	s.T.Helper()
	_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, "none")
	require.ErrorIs(s.T, err, backup.ErrInvalidBackup)
	s.RequireNoRemains()
	return generationOf(s.T, s.Options)
}
