package registry_test

import (
	"os"
	"path/filepath"
	"sync/atomic"
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
	_, ok, fault, err := registry.Copy(t.Context(), path, dst, new(fsat.Unkept))
	require.NoError(t, err)
	require.False(t, ok)
	require.Empty(t, fault)

	require.NoError(t, os.WriteFile(path, []byte(`{"a": 1}`), 0o640))
	mtime := time.Unix(1e9, 5000)
	require.NoError(t, os.Chtimes(path, mtime, mtime))
	size, ok, fault, err := registry.Copy(t.Context(), path, dst, new(fsat.Unkept))
	require.NoError(t, err)
	require.True(t, ok)
	require.Empty(t, fault)
	require.EqualValues(t, 8, size)
	original, err := fsat.Stat(path)
	require.NoError(t, err)
	info, err := dst.Lstat("r.json")
	require.NoError(t, err)
	require.Equal(t, []any{original.Mode, original.Mtime}, []any{info.Mode, info.Mtime})
	content, err := os.ReadFile(filepath.Join(dst.Path(), "r.json"))
	require.NoError(t, err)
	require.Equal(t, `{"a": 1}`, string(content))
}

// A file that is not JSON may be half written, so it is read again until it is.
// In the end it is copied as it is.
func TestCopyOfHalfWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "r.json")
		require.NoError(t, os.WriteFile(path, []byte(`{"a": `), 0o640))
		var waited atomic.Bool
		time.AfterFunc(300*time.Millisecond, func() { waited.Store(true) })
		dst := openDir(t)
		size, ok, fault, err := registry.Copy(t.Context(), path, dst, new(fsat.Unkept))
		require.NoError(t, err)
		require.True(t, ok)
		require.EqualValues(t, 6, size)
		require.Contains(t, fault, "unexpected end")
		require.True(t, waited.Load(), "it was given up at once")
		content, err := os.ReadFile(filepath.Join(dst.Path(), "r.json"))
		require.NoError(t, err)
		require.Equal(t, `{"a": `, string(content))

		time.AfterFunc(50*time.Millisecond, func() {
			if err := os.WriteFile(path, []byte(`{"a": 2}`), 0o640); err != nil {
				t.Error(err)
			}
		})
		size, ok, fault, err = registry.Copy(t.Context(), path, openDir(t), new(fsat.Unkept))
		require.NoError(t, err)
		require.True(t, ok)
		require.EqualValues(t, 8, size)
		require.Empty(t, fault)
	})
}

// Half of a file that somebody is writing slowly is not taken for a broken one.
func TestCopyOfAFileThatIsWrittenSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "r.json")
		require.NoError(t, os.WriteFile(path, []byte(`["`), 0o640))
		for _, at := range []time.Duration{100, 250} {
			time.AfterFunc(at*time.Millisecond, func() {
				f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
				if err == nil {
					_, err = f.WriteString("part")
				}
				if err != nil || f.Close() != nil {
					t.Error(err)
				}
			})
		}
		dst := openDir(t)
		_, ok, fault, err := registry.Copy(t.Context(), path, dst, new(fsat.Unkept))
		require.ErrorIs(t, err, errdefs.ErrSourceChanged)
		require.False(t, ok)
		require.Empty(t, fault)
		require.NoFileExists(t, filepath.Join(dst.Path(), "r.json"))
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
		_, ok, fault, err := registry.Copy(t.Context(), path, openDir(t), new(fsat.Unkept))
		require.ErrorIs(t, err, errdefs.ErrSourceChanged)
		require.False(t, ok)
		require.Empty(t, fault)
		<-done
	})
}

func TestCopyOfTooLarge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, registry.MaxSize+1))
	_, ok, fault, err := registry.Copy(t.Context(), path, openDir(t), new(fsat.Unkept))
	require.ErrorIs(t, err, errdefs.ErrSourceInvalid)
	require.False(t, ok)
	require.Empty(t, fault)
}

func TestFault(t *testing.T) {
	for _, text := range []string{`{"a": "é"}`, `NaN`, `{"a": [NaN, Infinity, -Infinity, "NaN"]}`} {
		require.Empty(t, registry.Fault([]byte(text)), text)
	}
	require.Contains(t, registry.Fault([]byte(`{"a": `)), "unexpected end")
	require.Equal(t, "not UTF-8", registry.Fault([]byte("{\"a\": \"\xff\"}")))
	for _, text := range []string{``, `nan`, `{NaN: 1}`, `[-NaN]`, `inf`, `{"a": NaN}}`} {
		require.NotEmpty(t, registry.Fault([]byte(text)), text)
	}
}

// A file that is missing because it is being replaced is not taken for none.
func TestCopyOfAFileThatIsBeingReplaced(t *testing.T) {
	for after, there := range map[time.Duration]bool{2 * time.Millisecond: true, 12 * time.Millisecond: true, time.Second: false} {
		synctest.Test(t, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "r.json")
			timer := time.AfterFunc(after, func() { _ = os.WriteFile(path, []byte("{}"), 0o600) })
			defer timer.Stop()
			_, ok, _, err := registry.Copy(t.Context(), path, openDir(t), new(fsat.Unkept))
			require.NoError(t, err)
			require.Equal(t, there, ok, after)
		})
	}
}
