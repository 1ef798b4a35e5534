package filehash_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
)

// newFile returns an empty file called "f" and its directory.
func newFile(t *testing.T) (*fsat.Dir, *fsat.File) {
	t.Helper()
	dir, err := fsat.OpenDir(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	f, err := dir.Create("f", 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return dir, f
}

func write(t *testing.T, f *fsat.File, content []byte, off int) {
	t.Helper()
	_, err := f.WriteAt(content, int64(off))
	require.NoError(t, err)
}

func ignore(int64) {}

func TestFileAndReadAt(t *testing.T) {
	for _, size := range []int{0, 1, filehash.Chunk, 2*filehash.Chunk + 1} {
		content := bytes.Repeat([]byte("x"), size)
		want := sha256.Sum256(content)
		dir, f := newFile(t)
		write(t, f, content, 0)

		sum, err := filehash.ReadAt(t.Context(), f, int64(size))
		require.NoError(t, err)
		require.Equal(t, want, sum)

		reader, err := dir.Open("f")
		require.NoError(t, err)
		defer reader.Close()
		counted := 0
		o := filehash.Options{Size: 1, Writeback: true, Progress: func(n int64) { counted += int(n) }}
		sum, err = filehash.File(t.Context(), reader, o)
		require.NoError(t, err)
		require.Equal(t, want, sum)
		require.Equal(t, size, counted)

		_, err = filehash.ReadAt(t.Context(), f, int64(size)+1)
		require.ErrorIs(t, err, io.EOF)
	}
}

// The hash of a file that is copied in pieces is that of the whole file as
// patched.
func TestFollower(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), filehash.Chunk/4)
	patched := bytes.Clone(content)
	patched[3] = 'P'
	dir, file := newFile(t)
	patches := 0
	f, err := filehash.Follow(t.Context(), dir, "f", func(head []byte) error {
		patches++
		head[3] = 'P'
		return nil
	})
	require.NoError(t, err)
	for off, piece := 0, 5; off < len(content); off += piece {
		piece = min(2*piece, len(content)-off)
		write(t, file, content[off:off+piece], off)
		f.Advance(int64(piece))
	}
	f.Done()

	var last int64
	for range 2 { // a second Wait returns the same
		sum, ok, err := f.Wait(t.Context(), func(hashed int64) { last = hashed })
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, sha256.Sum256(patched), sum)
		require.EqualValues(t, len(content), last)
	}
	require.EqualValues(t, len(content), f.Hashed())
	require.Equal(t, 1, patches)

	info, err := file.Stat()
	require.NoError(t, err)
	if info.Ino == 0 {
		t.Skip("files cannot be told apart here")
	}
	require.False(t, f.IsOf(info), "it is not sealed yet")
	require.False(t, f.IsOf(fsat.Info{}), "without inode numbers it is never known")
	f.Seal(info)
	require.True(t, f.IsOf(info))
	for name, change := range map[string]func(*fsat.Info){
		"another file": func(i *fsat.Info) { i.Ino++ },
		"size":         func(i *fsat.Info) { i.Size++ },
		"mtime":        func(i *fsat.Info) { i.Mtime.Nsec++ },
		"ctime":        func(i *fsat.Info) { i.Ctime.Sec++ },
	} {
		changed := info
		change(&changed)
		require.False(t, f.IsOf(changed), name)
	}
	write(t, file, []byte("longer"), len(content))
	info, err = file.Stat()
	require.NoError(t, err)
	require.False(t, f.IsOf(info), "it was changed after it was sealed")
}

func TestFollowerOfEmptyFile(t *testing.T) {
	dir, _ := newFile(t)
	f, err := filehash.Follow(t.Context(), dir, "f", func([]byte) error { return errors.New("called") })
	require.NoError(t, err)
	f.Done()
	sum, ok, err := f.Wait(t.Context(), ignore)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, sha256.Sum256(nil), sum)
}

// A Follower that cannot have hashed the finished file has no hash.
func TestFollowerWithoutHash(t *testing.T) {
	content := []byte("0123456789")
	for name, tt := range map[string]struct {
		patch func([]byte) error
		end   func(f *filehash.Follower, cancel func())
	}{
		"copy is shorter than the file": {end: func(f *filehash.Follower, _ func()) { f.Advance(9); f.Done() }},
		"copy is longer than the file":  {end: func(f *filehash.Follower, _ func()) { f.Advance(11); f.Done() }},
		"nothing was copied":            {end: func(f *filehash.Follower, _ func()) { f.Done() }},
		"patch fails": {
			patch: func([]byte) error { return errors.New("too short") },
			end:   func(f *filehash.Follower, _ func()) { f.Advance(10); f.Done() },
		},
		"stopped at once":         {end: func(f *filehash.Follower, _ func()) { f.Stop() }},
		"stopped before it ended": {end: func(f *filehash.Follower, _ func()) { f.Advance(10); f.Stop(); f.Stop() }},
		"context ended":           {end: func(f *filehash.Follower, cancel func()) { f.Advance(5); cancel() }},
	} {
		t.Run(name, func(t *testing.T) {
			dir, file := newFile(t)
			write(t, file, content, 0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f, err := filehash.Follow(ctx, dir, "f", tt.patch)
			require.NoError(t, err)
			tt.end(f, cancel)
			last := int64(-1)
			_, ok, err := f.Wait(t.Context(), func(hashed int64) { last = hashed })
			require.NoError(t, err)
			require.False(t, ok)
			require.Zero(t, last)
			f.Stop()
		})
	}
}

func TestFollowerWaitCanceled(t *testing.T) {
	dir, _ := newFile(t)
	f, err := filehash.Follow(t.Context(), dir, "f", nil)
	require.NoError(t, err)
	defer f.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, ok, err := f.Wait(ctx, ignore)
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, ok)
}

func TestFollowMissingFile(t *testing.T) {
	dir, _ := newFile(t)
	require.NoError(t, os.Remove(filepath.Join(dir.Path(), "f")))
	_, err := filehash.Follow(t.Context(), dir, "f", nil)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestNilFollower(t *testing.T) {
	var f *filehash.Follower
	f.Advance(1)
	f.Done()
	f.Seal(fsat.Info{Ino: 1})
	require.False(t, f.IsOf(fsat.Info{Ino: 1}))
	require.Zero(t, f.Hashed())
	_, ok, err := f.Wait(t.Context(), ignore)
	require.NoError(t, err)
	require.False(t, ok)
	f.Stop()
}
