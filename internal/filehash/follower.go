package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync/atomic"

	"github.com/atocore/backup/internal/fsat"
)

// A hashBehind is the hash of the database copy, taken on a goroutine of its
// own right behind the copying: one file is copied by one processor and hashed
// by one, so a large database is done in two thirds of the time.
//
// It is of the file as it will be when it is sealed, which is the file as it
// is but for the two bytes of its form. If more is changed, it is of no use.
type hashBehind struct {
	file   *fsat.File // the copy, by a descriptor of its own
	cancel context.CancelFunc
	copied atomic.Int64  // how far the copy is
	more   chan struct{} // the copy went on; closed at its end
	hashed atomic.Int64
	step   chan struct{} // so did the hash
	done   chan struct{}
	sum    [sha256.Size]byte // when done without an error
	err    error
	sealed fsat.Info // the file when nothing more will be done to it
}

var errNotCopied = errors.New("not copied to the end")

// hashBehindCopy begins to hash dir/name, which is being copied.
func hashBehindCopy(ctx context.Context, dir *fsat.Dir, name string) (*hashBehind, error) {
	file, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	h := &hashBehind{
		file: file,
		more: make(chan struct{}, 1),
		step: make(chan struct{}, 1),
		done: make(chan struct{}),
	}
	ctx, h.cancel = context.WithCancel(ctx)
	go func() {
		defer close(h.done)
		defer file.Close()
		h.err = h.run(ctx)
	}()
	return h, nil
}

func (h *hashBehind) run(ctx context.Context) error {
	state := hashStates.Get().(*hashState)
	defer hashStates.Put(state)
	state.h.Reset()
	for off, open := int64(0), true; open; {
		select {
		case _, open = <-h.more:
		case <-ctx.Done():
			return ctx.Err()
		}
		for end := h.copied.Load(); off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			buf := state.buf[:min(end-off, int64(len(state.buf)))]
			if _, err := h.file.ReadAt(buf, off); err != nil {
				return err
			}
			if off == 0 {
				if len(buf) <= headerReadForm {
					return errNotCopied
				}
				buf[headerWriteForm], buf[headerReadForm] = 1, 1
			}
			state.h.Write(buf)
			off += int64(len(buf))
			h.hashed.Store(off)
			ping(h.step)
		}
	}
	info, err := h.file.Stat()
	if err == nil && info.Size != h.hashed.Load() {
		err = errNotCopied
	}
	state.h.Sum(h.sum[:0])
	return err
}

func ping(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// advance says that n bytes more were copied.
func (h *hashBehind) advance(n int64) {
	if h != nil {
		h.copied.Add(n)
		ping(h.more)
	}
}

// copyEnded says that the copy is complete.
func (h *hashBehind) copyEnded() {
	if h != nil {
		close(h.more)
	}
}

// stop gives the hash up, if there is one.
func (h *hashBehind) stop() {
	if h != nil {
		h.cancel()
		<-h.done
	}
}

// isOf tells whether this is the hash of the file that info describes.
func (h *hashBehind) isOf(info fsat.Info) bool {
	return h != nil && h.sealed.SameFile(info) && h.sealed.Unchanged(info)
}

// wait gives the hash, or ok == false if there is none. progress is told how
// far it is, and 0 if there is none after all.
func (h *hashBehind) wait(ctx context.Context, progress func(hashed int64)) (sum [sha256.Size]byte, ok bool, err error) {
	for {
		select {
		case <-ctx.Done():
			return sum, false, ctx.Err()
		case <-h.step:
			progress(h.hashed.Load())
		case <-h.done:
			if h.err != nil {
				progress(0)
				return sum, false, nil
			}
			progress(h.hashed.Load())
			return h.sum, true, nil
		}
	}
}
