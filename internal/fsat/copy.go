package fsat

import (
	"context"
	"errors"
	"io"
	"sync"
)

const bufferSize = 256 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// copyReadWrite copies [off, end) with reads and writes and returns the
// offset it got to: less than end if src ended before.
func copyReadWrite(ctx context.Context, dst, src *File, off, end int64, done func(int64)) (int64, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for off < end {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		n, err := src.ReadAt((*buf)[:min(end-off, bufferSize)], off)
		if n > 0 {
			if _, err := dst.WriteAt((*buf)[:n], off); err != nil {
				return off, err
			}
			off += int64(n)
			if done != nil {
				done(int64(n))
			}
		}
		if errors.Is(err, io.EOF) {
			return off, nil
		}
		if err != nil {
			return off, err
		}
	}
	return off, nil
}
