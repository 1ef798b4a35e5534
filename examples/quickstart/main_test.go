package main

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// useTempDir sets the directory for temporary files to an empty one, and checks at
// the end that it is empty again.
func useTempDir(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"TMPDIR", "TMP", "TEMP"} {
		t.Setenv(name, dir)
	}
	t.Cleanup(func() {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, entries, "left behind")
	})
}

// output runs the example and returns its output.
func output(t *testing.T, keep string) string {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, run(context.Background(), &out, keep))
	return out.String()
}

// numbers returns the numbers in the only line of text that matches pattern.
func numbers(t *testing.T, text, pattern string) (n []int) {
	t.Helper()
	matches := regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1)
	require.Len(t, matches, 1, "%s in:\n%s", pattern, text)
	for _, group := range matches[0][1:] {
		i, err := strconv.Atoi(strings.ReplaceAll(group, ",", ""))
		require.NoError(t, err)
		n = append(n, i)
	}
	return n
}

func TestSnapshotIsOneMoment(t *testing.T) {
	useTempDir(t)
	out := output(t, "")

	n := numbers(t, out, `Transfers: +([\d,]+) before, ([\d,]+) in the snapshot, ([\d,]+) after`)
	require.IsNonDecreasing(t, n)
	require.Less(t, n[0], n[2], "the writer was blocked")
	require.Equal(t, []int{n[2] - n[0]}, numbers(t, out, `with ([\d,]+) transfers during`))
	require.Equal(t, []int{0}, numbers(t, out, `sum in the snapshot is (-?\d+)`))

	out, _, _ = strings.Cut(out, "is destroyed")
	batches := numbers(t, out, `last batch is (\d+) in the database, (\d+) in Chroma's documents, (\d+) in its vectors`)
	require.Equal(t, batches[0], batches[1], "database and Chroma are from different moments")
	require.Equal(t, batches[1], batches[2], "Chroma's files are from different moments")
}

func TestGuardCoversTheCaptureOnly(t *testing.T) {
	useTempDir(t)
	require.Contains(t, output(t, ""), strings.Join([]string{
		"     before the guard:      init, guard",
		"     ingestion is paused:   database, registry, chroma",
		"     ingestion continues:   seal, hash, sync, publish",
	}, "\n"))
}

func TestDamageIsFound(t *testing.T) {
	useTempDir(t)
	out := output(t, "")
	require.Contains(t, out, ": valid true, database true, registry true, Chroma true, problems 0\n")

	_, out, _ = strings.Cut(out, "ValidateBackup finds damage\n\n")
	out = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`).ReplaceAllString(out, "UUID")
	out, _, _ = strings.Cut(out, "\n\n")
	require.Equal(t, []string{
		"   An undamaged copy in another directory:",
		"     valid",
		"   A copy with one bit flipped in a text in the database, which SQLite's own check can't detect:",
		"     file_changed: db/atocore.db",
		"   A copy with one bit flipped in a vector index of Chroma:",
		"     file_changed: chroma/UUID/data_level0.bin",
		"   A copy without its registry, and with an unknown file:",
		"     file_missing: config/project-registry.json",
		"     file_unknown: config/project-registry.json.old",
		"     registry_snapshot_missing: config/project-registry.json",
	}, strings.Split(out, "\n"))
}

func TestStoreIsRestored(t *testing.T) {
	useTempDir(t)
	out := output(t, "")
	n := numbers(t, out, `Transfers: +([\d,]+) when the service stopped, ([\d,]+) after the script, ([\d,]+) now`)
	taken := numbers(t, out, `before, ([\d,]+) in the snapshot`)
	require.Equal(t, []int{0, taken[0]}, n[1:])
	require.GreaterOrEqual(t, n[0], n[2])

	_, out, _ = strings.Cut(out, "RestoreRuntimeBackup restores it\n")
	batches := numbers(t, out, `last batch is (\d+) in the database, (\d+) in Chroma's documents, (\d+) in its vectors`)
	require.Equal(t, []int{batches[0], batches[0]}, batches[1:])
}

func TestKeep(t *testing.T) {
	useTempDir(t)
	dir := filepath.Join(t.TempDir(), "kept")
	require.Contains(t, output(t, dir), "remain in "+dir)

	opts := backup.Options{BackupDir: filepath.Join(dir, "backups")}
	snapshots, err := backup.ListRuntimeBackups(context.Background(), opts)
	require.NoError(t, err)
	require.Len(t, snapshots, 2)
	require.Equal(t, snapshots[0].Stamp, snapshots[1].Metadata.SafetyOf)
	for _, snapshot := range snapshots {
		_, err = backup.ValidateBackup(context.Background(), opts, snapshot.Stamp)
		require.NoError(t, err)
	}
	require.FileExists(t, filepath.Join(dir, "data", "atocore.db"))

	require.ErrorIs(t, run(context.Background(), io.Discard, dir), fs.ErrExist, "an existing directory is left unchanged")
}

// cancelAt is a writer that calls cancel when text is written to it.
type cancelAt struct {
	text   string
	cancel func()
}

func (c cancelAt) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		c.cancel()
	}
	return len(p), nil
}

func TestInterrupted(t *testing.T) {
	for _, at := range []string{"A service is running", "takes a snapshot", "is intact", "finds damage", "is destroyed"} {
		t.Run(at, func(t *testing.T) {
			useTempDir(t)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			require.ErrorIs(t, run(ctx, cancelAt{at, cancel}, ""), context.Canceled)
		})
	}
	t.Run("before it began", func(t *testing.T) {
		useTempDir(t)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		require.ErrorIs(t, run(ctx, io.Discard, ""), context.Canceled)
	})
}

func TestFailureOfTheServiceIsReported(t *testing.T) {
	useTempDir(t)
	svc, ctx, err := startService(context.Background(), t.TempDir())
	require.NoError(t, err)
	svc.ingestion.Lock()
	require.NoError(t, os.RemoveAll(svc.options.ChromaPath))
	svc.ingestion.Unlock()
	<-ctx.Done()
	err = svc.stop()
	require.ErrorIs(t, err, fs.ErrNotExist, "the directory that ingestion writes to is gone")
	require.NotErrorIs(t, err, context.Canceled)
}
