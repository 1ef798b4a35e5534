package registry_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/registry"
)

func openDir(t *testing.T) *fsat.Dir {
	t.Helper()
	dir, err := fsat.OpenDir(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

func TestCopy(t *testing.T) {
	dst := openDir(t)
	path := filepath.Join(t.TempDir(), "r.json")
	_, ok, err := registry.Copy(t.Context(), path, dst)
	require.NoError(t, err)
	require.False(t, ok)

	require.NoError(t, os.WriteFile(path, []byte(`{"a": 1}`), 0o640))
	mtime := time.Unix(1e9, 5000)
	require.NoError(t, os.Chtimes(path, mtime, mtime))
	size, ok, err := registry.Copy(t.Context(), path, dst)
	require.NoError(t, err)
	require.True(t, ok)
	require.EqualValues(t, 8, size)
	original, err := fsat.Stat(path)
	require.NoError(t, err)
	info, err := dst.Lstat("r.json")
	require.NoError(t, err)
	require.Equal(t, []any{original.Mode, original.MtimeNano}, []any{info.Mode, info.MtimeNano})
	content, err := os.ReadFile(filepath.Join(dst.Path(), "r.json"))
	require.NoError(t, err)
	require.Equal(t, `{"a": 1}`, string(content))
}

// A file that is not JSON may be half written, so it is read again until it is
// or until it is too late.
func TestCopyOfHalfWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "r.json")
		require.NoError(t, os.WriteFile(path, []byte(`{"a": `), 0o640))
		_, ok, err := registry.Copy(t.Context(), path, openDir(t))
		require.ErrorIs(t, err, errdefs.ErrSourceInvalid)
		require.False(t, ok)

		time.AfterFunc(50*time.Millisecond, func() {
			if err := os.WriteFile(path, []byte(`{"a": 2}`), 0o640); err != nil {
				t.Error(err)
			}
		})
		size, ok, err := registry.Copy(t.Context(), path, openDir(t))
		require.NoError(t, err)
		require.True(t, ok)
		require.EqualValues(t, 8, size)
	})
}

// A file that is different at each reading is given up.
func TestCopyOfChanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "r.json")
		done := make(chan struct{})
		go func() {
			defer close(done)
			for content := "{"; len(content) < 50; content += " " {
				if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
					t.Error(err)
				}
				time.Sleep(15 * time.Millisecond) // less than Copy pauses
			}
		}()
		synctest.Wait()
		_, ok, err := registry.Copy(t.Context(), path, openDir(t))
		require.ErrorIs(t, err, errdefs.ErrSourceChanged)
		require.False(t, ok)
		<-done
	})
}

func TestValid(t *testing.T) {
	require.True(t, registry.Valid([]byte(`{"a": "é"}`)))
	require.False(t, registry.Valid([]byte(`{"a": `)))
	require.Contains(t, registry.Fault([]byte(`{"a": `)), "unexpected end")
	require.False(t, registry.Valid([]byte("{\"a\": \"\xff\"}")))
	require.Equal(t, "not UTF-8", registry.Fault([]byte("{\"a\": \"\xff\"}")))
}
