package filehash

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/atocore/backup/internal/fsat"
)

// A Follower hashes a file while it is still being copied. It runs on its own
// goroutine, so that one processor copies and another one hashes, which takes a
// large file two thirds of the time.
//
// The result is valid only if nothing changes in the file after it was copied,
// except for the change that the patch function anticipates. A caller that
// changes more must Stop the Follower and forget it.
//
// The copying goroutine calls Advance for each piece, and Done at the end of a
// complete copy. Then Seal records what the finished file looks like, IsOf
// recognizes it later, and Wait returns its hash. For every Follower, Done or
// Stop must be called, or its goroutine and its descriptor leak.
//
// A nil *Follower is valid: it does nothing and has no hash.
type Follower struct {
	file     *fsat.File // the copy, by its own descriptor
	patch    func(head []byte) error
	cancel   context.CancelFunc
	copied   atomic.Int64
	more     chan struct{} // holds a value after copied grew; closed by Done
	hashed   atomic.Int64
	step     chan struct{} // holds a value after hashed grew
	finished chan struct{}
	sum      Sum   // set before finished is closed, as err is
	err      error // if not nil, sum is not valid
	sealed   fsat.Info
}

var errNotCopied = errors.New("not copied to the end")

// Follow begins to hash the file name in dir, which is being copied. patch,
// which may be nil, is called with the first piece, at most Chunk bytes long,
// before that is hashed. It changes the piece to the bytes that the file will
// have in the end; if it returns an error, there is no hash. It isn't called
// for an empty file.
//
// The error is that of opening the file. A later failure leaves the Follower
// without a hash, which Wait reports.
func Follow(ctx context.Context, dir *fsat.Dir, name string, patch func(head []byte) error) (*Follower, error) {
	file, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	f := &Follower{
		file:     file,
		patch:    patch,
		more:     make(chan struct{}, 1),
		step:     make(chan struct{}, 1),
		finished: make(chan struct{}),
	}
	ctx, f.cancel = context.WithCancel(ctx)
	go func() {
		defer close(f.finished)
		defer file.Close()
		f.err = f.run(ctx)
	}()
	return f, nil
}

func (f *Follower) run(ctx context.Context) error {
	s := newState()
	defer s.free()
	for off, open := int64(0), true; open; {
		select {
		case _, open = <-f.more:
		case <-ctx.Done():
			return ctx.Err()
		}
		for end := f.copied.Load(); off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			buf := s.buf[:min(end-off, int64(len(s.buf)))]
			if _, err := f.file.ReadAt(buf, off); err != nil {
				return err
			}
			if off == 0 && f.patch != nil {
				if err := f.patch(buf); err != nil {
					return err
				}
			}
			s.hash.Write(buf)
			off += int64(len(buf))
			f.hashed.Store(off)
			notify(f.step)
		}
	}
	info, err := f.file.Stat()
	if err == nil && info.Size != f.hashed.Load() {
		err = errNotCopied
	}
	s.hash.Sum(f.sum[:0])
	return err
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Advance announces that n more bytes were copied and can be read.
func (f *Follower) Advance(n int64) {
	if f != nil {
		f.copied.Add(n)
		notify(f.more)
	}
}

// Done announces that the copy is complete. It must be called at most once, and
// no Advance may follow.
func (f *Follower) Done() {
	if f != nil {
		close(f.more)
	}
}

// Stop ends the hashing and waits until the file is closed. It may be called
// at any time and more than once.
func (f *Follower) Stop() {
	if f != nil {
		f.cancel()
		<-f.finished
	}
}

// Seal records that the file will not change any more and how it looks now.
func (f *Follower) Seal(info fsat.Info) {
	if f != nil {
		f.sealed = info
	}
}

// IsOf reports whether info describes the file that was sealed, unchanged
// since. It is false where files have no inode numbers.
func (f *Follower) IsOf(info fsat.Info) bool {
	return f != nil && f.sealed.SameFile(info) && f.sealed.Unchanged(info)
}

// Hashed returns how many bytes are hashed by now.
func (f *Follower) Hashed() int64 {
	if f == nil {
		return 0
	}
	return f.hashed.Load()
}

// Wait waits for the hash and returns it, or ok == false if there is none
// because hashing failed or was stopped; the caller then has to read the file.
// Meanwhile progress is called, on this goroutine, with the number of bytes
// hashed so far, and with 0 if there is no hash after all. The only error is
// ctx's.
func (f *Follower) Wait(ctx context.Context, progress func(hashed int64)) (sum Sum, ok bool, err error) {
	if f == nil {
		return sum, false, nil
	}
	for {
		select {
		case <-ctx.Done():
			return sum, false, ctx.Err()
		case <-f.step:
			progress(f.hashed.Load())
		case <-f.finished:
			if f.err != nil {
				progress(0)
				return sum, false, nil
			}
			progress(f.hashed.Load())
			return f.sum, true, nil
		}
	}
}
