// Package filehash computes the SHA-256 of a file: by reading it, or with a
// [Follower] while another goroutine is still writing it. Every function ends
// soon after its context does. The package must not know what a file contains
// or what its hash is used for.
package filehash

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"sync"

	"github.com/atocore/backup/internal/fsat"
)

// Chunk is the most that is read between two checks of the context.
const Chunk = 1 << 20

// A Sum is the SHA-256 of a file's content.
type Sum = [sha256.Size]byte

// A state has the hash and the buffer for one file. States are reused, because
// their buffers are large compared to most files.
type state struct {
	hash hash.Hash
	buf  []byte
}

var states = sync.Pool{New: func() any {
	return &state{hash: sha256.New(), buf: make([]byte, Chunk)}
}}

func newState() *state {
	s := states.Get().(*state)
	s.hash.Reset()
	return s
}

func (s *state) free() { states.Put(s) }

// Options select what File does besides hashing.
type Options struct {
	// Size is the size that the file is expected to have. It only limits the
	// writeback.
	Size int64
	// Writeback starts writing the file's dirty pages to disk on the way.
	Writeback bool
	// Progress, if not nil, is called with the number of bytes that were just
	// hashed.
	Progress func(n int64)
}

// File returns the hash of f from its current offset to its end, which may
// differ from o.Size. Its errors are those of reading f and of ctx.
func File(ctx context.Context, f *fsat.File, o Options) (sum Sum, err error) {
	s := newState()
	defer s.free()
	const writebackStep = 8 << 20
	for off, started := int64(0), int64(0); ; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		// Writing runs a step ahead of hashing, so that neither waits.
		if o.Writeback && off >= started && started < o.Size {
			f.StartWriteback(started, writebackStep)
			started += writebackStep
		}
		n, err := f.Read(s.buf)
		s.hash.Write(s.buf[:n])
		off += int64(n)
		if n > 0 && o.Progress != nil {
			o.Progress(int64(n))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return sum, err
		}
	}
	s.hash.Sum(sum[:0])
	return sum, nil
}

// ReadAt returns the hash of the first size bytes of f and leaves its offset
// alone, so f may be a descriptor that has just been written through. It
// returns io.EOF if f is shorter than size.
func ReadAt(ctx context.Context, f *fsat.File, size int64) (sum Sum, err error) {
	return ReadPatchedAt(ctx, f, size, nil)
}

// ReadPatchedAt is ReadAt of what the file becomes by patch, which is called as
// by Follow. If patch is nil, it is ReadAt.
func ReadPatchedAt(ctx context.Context, f *fsat.File, size int64, patch func(head []byte) error) (sum Sum, err error) {
	s := newState()
	defer s.free()
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		n, err := f.ReadAt(s.buf[:min(Chunk, size-off)], off)
		if err != nil {
			return sum, err
		}
		if off == 0 && patch != nil {
			if err := patch(s.buf[:n]); err != nil {
				return sum, err
			}
		}
		s.hash.Write(s.buf[:n])
		off += int64(n)
	}
	s.hash.Sum(sum[:0])
	return sum, nil
}
