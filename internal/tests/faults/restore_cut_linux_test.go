package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() { roles["restore"], roles["create"] = beRestore, beCreate }

// beRestore restores the snapshot args[1] of the store in args[0], and says each
// phase when it begins.
func beRestore(p *backuptest.Parent, args []string) error {
	opts := backuptest.OptionsIn(args[0])
	last := backup.Phase("")
	opts.OnProgress = func(now backup.Progress) {
		if now.Phase != last {
			last = now.Phase
			p.Say(string(now.Phase))
		}
	}
	_, err := backup.RestoreRuntimeBackup(context.Background(), opts, args[1])
	return err
}

// beCreate takes a snapshot of the store in args[0] and says its stamp.
func beCreate(p *backuptest.Parent, args []string) error {
	m, err := backup.CreateRuntimeBackup(context.Background(), backuptest.OptionsIn(args[0]))
	if err == nil {
		p.Say(m.Stamp)
	}
	return err
}

const markedFiles = 40

// mark writes a store in which every part names id. In the database, id is only in
// the WAL.
func mark(t *testing.T, opts backup.Options, id string) {
	t.Helper()
	for _, dir := range []string{filepath.Dir(opts.DatabasePath), filepath.Dir(opts.RegistryPath)} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
	require.NoError(t, os.RemoveAll(opts.ChromaPath))
	for i := range markedFiles {
		segment := filepath.Join(opts.ChromaPath, fmt.Sprintf("segment-%s-%d", id, i%4))
		require.NoError(t, os.MkdirAll(segment, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(segment, fmt.Sprint(i)), []byte(id), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(opts.ChromaPath, fmt.Sprint(i)), []byte(id), 0o600))
	}
	require.NoError(t, os.WriteFile(opts.RegistryPath, []byte(`"`+id+`"`), 0o600))
	db := backuptest.OpenDB(t, opts.DatabasePath, "_pragma=journal_mode(wal)", "_pragma=synchronous(off)")
	_, err := db.Exec(`CREATE TABLE IF NOT EXISTS mark (id TEXT); PRAGMA wal_checkpoint(TRUNCATE);
		DELETE FROM mark; INSERT INTO mark VALUES ('` + id + `')`)
	require.NoError(t, err)
	backuptest.KeepWAL(t, db, opts.DatabasePath)
}

// markOf returns the id of a store or a snapshot, which must be the same in all its
// parts.
func markOf(t *testing.T, database, registry, chroma string) string {
	t.Helper()
	db := backuptest.OpenDB(t, backuptest.CopyWithWAL(t, database))
	var id string
	require.NoError(t, db.QueryRow("SELECT id FROM mark").Scan(&id))
	backuptest.RequireIntegrity(t, db)
	require.NoError(t, db.Close())
	data, err := os.ReadFile(registry)
	require.NoError(t, err)
	require.Equal(t, `"`+id+`"`, string(data))
	files := 0
	require.NoError(t, filepath.WalkDir(chroma, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != chroma {
				require.True(t, strings.HasPrefix(d.Name(), "segment-"+id+"-"), "%s in the store %s", path, id)
			}
			return nil
		}
		files++
		data, err := os.ReadFile(path)
		require.Equal(t, id, string(data), path)
		return err
	}))
	require.Equal(t, 2*markedFiles, files)
	return id
}

// TestPowerCutInRestore cuts the power at random moments of a restore. The next
// call makes the store wholly old or wholly new; if it is new, the safety
// snapshot holds the old one.
func TestPowerCutInRestore(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { cutRestore(t, kind) })
	}
}

// cutRestore cuts the power of a disk with a file system of this kind as often
// as -cuts says.
func cutRestore(t *testing.T, kind string) {
	d := newDisk(t, memoryDir(t), kind, 256<<20)
	random := random(t)
	dir := filepath.Join(d.mountedAt, "store")
	opts := backuptest.OptionsIn(dir)
	stamps := map[string]string{}
	for _, id := range []string{"A", "B"} {
		mark(t, opts, id)
		out := do(t, backuptest.Command(t, "create", dir)).requireDone(t)
		stamps[id] = strings.TrimSpace(out.stdout)
	}
	mark(t, opts, "timed")
	began := now()
	do(t, backuptest.Command(t, "restore", dir, stamps["A"])).requireDone(t)
	took := now() - began
	d.sync()

	outcomes, unfinished, finished := map[string]int{}, 0, 0
	for i := range *cuts {
		old, target := fmt.Sprintf("live-%d", i), []string{"A", "B"}[i%2]
		mark(t, opts, old)
		d.sync()

		// Half of the time the cut comes during the swap or after it.
		var whole bool
		if i%4 < 2 {
			whole = restoreUntilCut(t, d, dir, stamps[target], backup.PhaseSwap, random.Int64N(int64(took/8)))
		} else {
			whole = restoreUntilCut(t, d, dir, stamps[target], "", random.Int64N(int64(took)))
		}

		list, err := backup.ListRuntimeBackups(context.Background(), opts)
		if err != nil {
			unfinished++
			require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
		}
		safety := safetyMarks(t, opts.BackupDir, list)
		require.Contains(t, do(t, backuptest.Command(t, "restore", dir, "none")).stderr, "invalid backup")
		id := markOf(t, opts.DatabasePath, opts.RegistryPath, opts.ChromaPath)
		if id != old {
			require.Equal(t, target, id)
			require.True(t, safety[old], "no safety snapshot holds the store that was replaced")
		}
		if whole {
			finished++
			require.Equal(t, target, id, "the restore had returned")
		}
		outcomes[strings.TrimRight(id, "-0123456789")]++
		require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			require.NotContains(t, entry.Name(), "atocore-restore", path)
			return err
		}))
		for _, snapshot := range list {
			if snapshot.Metadata.SafetyOf != "" {
				require.NoError(t, os.RemoveAll(snapshot.Path))
			}
		}
	}
	t.Logf("%d cuts, %d after the restore had returned; %d left it unfinished; afterwards the store was %v; a restore took %v",
		*cuts, finished, unfinished, outcomes, took)
}

// restoreUntilCut restores the snapshot stamp and cuts the power of d after some
// nanoseconds, counted from the beginning of phase or, if that is empty, of the
// restore. It reports whether the restore succeeded before that. Afterwards the
// disk is mounted again.
func restoreUntilCut(t *testing.T, d *disk, dir, stamp string, phase backup.Phase, after int64) (whole bool) {
	cmd := backuptest.Command(t, "restore", dir, stamp)
	said, err := cmd.StdoutPipe()
	require.NoError(t, err)
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(said)
	if phase != "" {
		for lines.Scan() && lines.Text() != string(phase) {
		}
	}
	cut := make(chan error, 1)
	time.AfterFunc(time.Duration(after), func() { cut <- d.cut() })
	for lines.Scan() {
	}
	whole = cmd.Wait() == nil
	require.NotContains(t, stderr.String(), "panic", stderr)
	require.NoError(t, <-cut)
	d.unmount()
	d.mount()
	return whole
}

// safetyMarks validates the snapshots and returns the marks of the stores that
// are in safety snapshots.
func safetyMarks(t *testing.T, backupDir string, list []backup.Snapshot) map[string]bool {
	marks := map[string]bool{}
	for _, snapshot := range list {
		_, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: backupDir}, snapshot.Stamp)
		if !errors.Is(err, backup.ErrRestoreUnfinished) {
			require.NoError(t, err)
		}
		if m := snapshot.Metadata; m.SafetyOf != "" {
			marks[markOf(t, m.DBSnapshotPath, m.RegistrySnapshotPath, m.ChromaSnapshotPath)] = true
		}
	}
	return marks
}
