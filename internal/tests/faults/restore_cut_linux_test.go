package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

func init() {
	// Restores the snapshot $FAULTS_STAMP of the store in $FAULTS_DIR, and says
	// when a phase begins.
	roles["restore"] = func() error {
		opts := storeOn(os.Getenv("FAULTS_DIR"))
		last := backup.Phase("")
		opts.OnProgress = func(p backup.Progress) {
			if p.Phase != last {
				last = p.Phase
				fmt.Println(p.Phase)
			}
		}
		_, err := backup.RestoreRuntimeBackup(context.Background(), opts, os.Getenv("FAULTS_STAMP"))
		return err
	}
	roles["create"] = func() error {
		m, err := backup.CreateRuntimeBackup(context.Background(), storeOn(os.Getenv("FAULTS_DIR")))
		if err == nil {
			fmt.Println(m.Stamp)
		}
		return err
	}
}

func storeOn(dir string) backup.Options {
	return backup.Options{
		DatabasePath:  filepath.Join(dir, "data", "atocore.db"),
		RegistryPath:  filepath.Join(dir, "config", "registry.json"),
		ChromaPath:    filepath.Join(dir, "data", "chroma"),
		BackupDir:     filepath.Join(dir, "backups"),
		IncludeChroma: true,
	}
}

// onStore prepares a process of its own: one that held a descriptor of a
// database would keep the disk from being unmounted.
func onStore(role, dir, stamp string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "FAULTS_DIR="+dir, "FAULTS_STAMP="+stamp)
	return cmd
}

const markedFiles = 40

// mark makes every part of a store tell id. What is new in the database is in
// its WAL only.
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
	db := openDB(t, opts.DatabasePath, "_pragma=journal_mode(wal)", "_pragma=synchronous(off)")
	_, err := db.Exec(`CREATE TABLE IF NOT EXISTS mark (id TEXT); PRAGMA wal_checkpoint(TRUNCATE);
		DELETE FROM mark; INSERT INTO mark VALUES ('` + id + `')`)
	require.NoError(t, err)
	kept := map[string][]byte{}
	for _, suffix := range []string{"", "-wal"} {
		kept[suffix], err = os.ReadFile(opts.DatabasePath + suffix)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
	for suffix, data := range kept {
		require.NoError(t, os.WriteFile(opts.DatabasePath+suffix, data, 0o600))
	}
}

// markOf tells the id of a store or a snapshot, which must be the same in all
// of it.
func markOf(t *testing.T, database, registry, chroma string) string {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(database + suffix)
		if suffix == "-wal" && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(copied+suffix, data, 0o600))
	}
	db := openDB(t, copied)
	var id, sound string
	require.NoError(t, db.QueryRow("SELECT id FROM mark").Scan(&id))
	require.NoError(t, db.QueryRow("PRAGMA integrity_check").Scan(&sound))
	require.Equal(t, "ok", sound)
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
// snapshot has the old one.
func TestPowerCutInRestore(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { cutRestore(t, kind) })
	}
}

func cutRestore(t *testing.T, kind string) {
	d := newDisk(t, memoryDir(t), kind, 256<<20)
	random := random(t)
	dir := filepath.Join(d.mountedAt, "store")
	opts := storeOn(dir)
	stamps := map[string]string{}
	for _, id := range []string{"A", "B"} {
		mark(t, opts, id)
		out := do(t, onStore("create", dir, "")).requireDone(t)
		stamps[id] = strings.TrimSpace(out.stdout)
	}
	mark(t, opts, "timed")
	began := now()
	do(t, onStore("restore", dir, stamps["A"])).requireDone(t)
	took := now() - began
	d.sync()

	outcomes, unfinished, finished := map[string]int{}, 0, 0
	for i := range *cuts {
		old, target := fmt.Sprintf("live-%d", i), []string{"A", "B"}[i%2]
		mark(t, opts, old)
		d.sync()

		// Every second time the moment is within the swap and what follows it.
		cmd := onStore("restore", dir, stamps[target])
		said, err := cmd.StdoutPipe()
		require.NoError(t, err)
		stderr := new(strings.Builder)
		cmd.Stderr = stderr
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(said)
		within := took
		if i%4 < 2 {
			within = took / 8
			for lines.Scan() && lines.Text() != string(backup.PhaseSwap) {
			}
		}
		cut := make(chan error, 1)
		time.AfterFunc(time.Duration(random.Int64N(int64(within))), func() { cut <- d.cut() })
		for lines.Scan() {
		}
		whole := cmd.Wait() == nil
		require.NotContains(t, stderr.String(), "panic", stderr)
		require.NoError(t, <-cut)
		d.unmount()
		d.mount()

		list, err := backup.ListRuntimeBackups(context.Background(), opts)
		if err != nil {
			unfinished++
			require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
		}
		safety := map[string]bool{}
		for _, snapshot := range list {
			_, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: opts.BackupDir}, snapshot.Stamp)
			if !errors.Is(err, backup.ErrRestoreUnfinished) {
				require.NoError(t, err)
			}
			if m := snapshot.Metadata; m.SafetyOf != "" {
				safety[markOf(t, m.DBSnapshotPath, m.RegistrySnapshotPath, m.ChromaSnapshotPath)] = true
			}
		}
		require.Contains(t, do(t, onStore("restore", dir, "none")).stderr, "invalid backup")
		id := markOf(t, opts.DatabasePath, opts.RegistryPath, opts.ChromaPath)
		if id != old {
			require.Equal(t, target, id)
			require.True(t, safety[old], "nothing has the store that was replaced")
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
