package fsat

import (
	"context"
	"errors"
	"io"
	"sync"
)

const bufferSize = 256 << 10

// SmallFile is the size up to which CopySmall copies a file through memory. Up
// to it the system calls cost more than the bytes.
const SmallFile = 16 << 10

// CopySmall is Copy for a file of at most SmallFile bytes. Unless the file can
// be cloned or has holes, CopySmall reads it into buf and writes it from there;
// then content is what it wrote, a part of buf. Otherwise content is nil.
func (c *Copier) CopySmall(ctx context.Context, dst, src *File, info Info, buf []byte) (content []byte, n int64, err error) {
	if c.mayClone() || info.Allocated+4096 < info.Size {
		n, err = c.Copy(ctx, dst, src, info, nil)
		return nil, n, err
	}
	got, err := src.ReadAt(buf[:info.Size], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	if _, err := dst.WriteAt(buf[:got], 0); err != nil {
		return nil, 0, err
	}
	return buf[:got], int64(got), nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// copyReadWrite copies [off, end) with reads and writes and returns the
// offset it reached, which is less than end if src is shorter.
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
