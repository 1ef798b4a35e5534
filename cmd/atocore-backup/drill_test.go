package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/drill"
)

// requireEmpty checks that nothing was left in the directory.
func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

// A drill restores everything while the store is in use, and leaves nothing behind.
func TestDrill(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	scratch := t.TempDir()
	for _, args := range [][]string{{"drill"}, {"drill", "latest"}, {"drill", stamp}, {"drill", stamp, "--scratch", scratch}} {
		cmd := command(t, append(args, s.flags()...)...)
		temp := t.TempDir()
		if len(args) == 2 {
			require.NoError(t, os.Remove(temp)) // this drill uses the default directory for temporary files
		}
		if len(args) == 4 {
			temp = filepath.Join(scratch, "absent")
		}
		if len(args) != 2 {
			cmd.Env = append(cmd.Env, "TMPDIR="+temp, "TMP="+temp, "TEMP="+temp)
		}
		o := do(t, cmd)
		require.Equal(t, exitDone, o.code, o.stderr)
		require.Contains(t, o.stderr, "Snapshot "+stamp+" can be restored: 3 files, ")
		got := decode[map[string]json.RawMessage](t, o)
		require.Greater(t, string(got["bytes"]), "0")
		delete(got, "bytes")
		require.Equal(t, map[string]json.RawMessage{
			"stamp": json.RawMessage(`"` + stamp + `"`), "files": json.RawMessage("3"),
			"db_ok": json.RawMessage("true"), "registry_ok": json.RawMessage("true"), "chroma_ok": json.RawMessage("true"),
		}, got)
		if len(args) == 1 || len(args) == 3 {
			requireEmpty(t, temp)
		}
		requireEmpty(t, scratch)
	}
	require.Equal(t, []string{stamp}, s.stamps(t))
	requireNotes(t, s.db, "first")
}

func TestDrillOfADatabaseOnly(t *testing.T) {
	s := newStore(t)
	s.registry = filepath.Join(t.TempDir(), "absent.json")
	stamp, _ := s.create(t)
	o := atocore(t, "drill", "--backup-dir", s.backups)
	require.Equal(t, exitDone, o.code, o.stderr)
	got := decode[drill.Result](t, o)
	require.Equal(t, drill.Result{Stamp: stamp, DBOK: true, Files: 1, Bytes: got.Bytes}, got)
}

// A drill that fails exits with a failure status and leaves nothing behind.
func TestDrillFails(t *testing.T) {
	s := newStore(t)
	stamp := s.snapshot(t)
	scratch := t.TempDir()
	drill := func(args ...string) outcome {
		t.Helper()
		o := atocore(t, append([]string{"drill", "--backup-dir", s.backups, stamp}, args...)...)
		requireEmpty(t, scratch)
		return o
	}
	drill("--scratch", "").requireFailed(t, "--scratch is empty")
	drill("--scratch", filepath.Join(scratch, "absent")).requireFailed(t, "absent", "no such file")
	drill("--scratch", s.backups+"/snapshots/"+stamp).requireFailed(t, "lies inside")
	atocore(t, "drill", stamp).requireFailed(t, "--backup-dir")

	require.NoError(t, os.WriteFile(filepath.Join(s.backups, "snapshots", stamp, "chroma", "segment", "data.bin"), []byte("VECTORS"), 0o600))
	o := drill("--scratch", scratch)
	require.Equal(t, exitInvalid, o.code)
	require.Equal(t, []string{"file_changed: chroma/segment/data.bin"}, decode[report](t, o).Errors)
}
