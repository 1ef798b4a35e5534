package restore

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// optionsIn returns the options for the small store in dir.
func optionsIn(dir string) backup.Options {
	return backup.Options{
		FromOtherStore: true, // snapshots are restored at other paths than they were taken
		DatabasePath:   filepath.Join(dir, "live", "atocore.db"),
		RegistryPath:   filepath.Join(dir, "config", "registry.json"),
		ChromaPath:     filepath.Join(dir, "live", "chroma"),
		BackupDir:      filepath.Join(dir, "backups"),
		IncludeChroma:  true,
	}
}

// writeGeneration writes a small store in which every part names the generation.
func writeGeneration(t *testing.T, opts backup.Options, gen string) {
	t.Helper()
	for _, dir := range []string{filepath.Join(opts.ChromaPath, "segment-"+gen), filepath.Dir(opts.DatabasePath), filepath.Dir(opts.RegistryPath)} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
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
	writeGeneration(t, s.Options, "new")
	stamp = s.Create().Stamp
	removeParts(t, s.Options)
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

// removeParts removes all parts of the store.
func removeParts(t *testing.T, opts backup.Options) {
	t.Helper()
	for _, path := range []string{opts.DatabasePath, opts.DatabasePath + "-wal", opts.RegistryPath, opts.ChromaPath} {
		require.NoError(t, os.RemoveAll(path))
	}
}

const journalName = ".atocore-restore.journal"

// journalOf returns the path of the journal of a restore.
func journalOf(s *backuptest.Store) string {
	return filepath.Join(filepath.Dir(s.DatabasePath), journalName)
}

// pointerOf returns the path of the pointer to that journal.
func pointerOf(s *backuptest.Store) string { return filepath.Join(s.BackupDir, journalName) }

// linesOf returns the lines of a journal after the first one, without their
// checksums.
func linesOf(t *testing.T, s *backuptest.Store) (lines []string) {
	t.Helper()
	data, err := os.ReadFile(journalOf(s))
	require.NoError(t, err)
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "{") {
			lines = append(lines, line[:strings.LastIndexByte(line, ' ')])
		}
	}
	return lines
}

// stagingOf returns the staging directory of a part: chroma, config or db.
func stagingOf(t *testing.T, s *backuptest.Store, part string) string {
	t.Helper()
	dir := map[string]string{"chroma": s.ChromaPath, "config": filepath.Dir(s.RegistryPath), "db": filepath.Dir(s.DatabasePath)}[part]
	found, err := filepath.Glob(filepath.Join(dir, ".atocore-restore-*-"+part))
	require.NoError(t, err)
	require.Len(t, found, 1)
	return found[0]
}

// recovery makes a call that can do nothing but finish or undo what a restore
// left, because its snapshot does not exist. It returns what the call returned.
func recovery(s *backuptest.Store) (*backup.RestoreResult, error) {
	s.T.Helper()
	r, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, "none")
	require.Error(s.T, err)
	return r, err
}

// recovered undoes or finishes what a restore left, and returns the generation
// that the store has then.
func recovered(s *backuptest.Store) string {
	s.T.Helper()
	_, err := recovery(s)
	require.ErrorIs(s.T, err, backup.ErrInvalidBackup)
	require.NotErrorIs(s.T, err, backup.ErrRestoreUnfinished)
	s.RequireNoRemains()
	return generationOf(s.T, s.Options)
}
