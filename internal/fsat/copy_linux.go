package fsat

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// copyStep bounds the work between two looks at the context: about 10 ms of
// copying from the page cache.
const copyStep = 8 << 20

// A Copier copies file contents with the best call the two file systems
// offer and remembers which calls do not work between them. It may be used by
// several goroutines.
type Copier struct {
	noClone, noRange, noAlloc, noSeek atomic.Bool
}

// Copy fills dst, which is new and empty, with the first size bytes of src.
// It clones (FICLONE) where the file system can, else lets the kernel copy
// (copy_file_range), else reads and writes. Holes stay holes. It returns how
// many bytes it could copy; fewer than size means that src became shorter.
// done, which may be nil, is told of each piece.
func (c *Copier) Copy(ctx context.Context, dst, src *File, info Info, done func(int64)) (int64, error) {
	size := info.Size
	if err := ctx.Err(); err != nil || size == 0 {
		return 0, err
	}
	if !c.noClone.Load() {
		err := retry(func() error { return unix.IoctlFileClone(dst.fd, src.fd) })
		if err == nil {
			return c.cloned(dst, size, done)
		}
		// Not every file can be cloned (size, alignment, swap files); only an
		// answer about the file systems, or of a sandbox, is worth remembering.
		switch err {
		case unix.EOPNOTSUPP, unix.EXDEV, unix.ENOTTY, unix.ENOSYS, unix.EPERM, unix.EACCES:
			c.noClone.Store(true)
		}
	}
	if info.Allocated+4096 < size {
		return c.copySparse(ctx, dst, src, size, done)
	}
	// One extent instead of many, and a full disk is known at once. Small
	// files gain nothing from it.
	if size >= 64<<10 && !c.noAlloc.Load() {
		err := retry(func() error { return unix.Fallocate(dst.fd, unix.FALLOC_FL_KEEP_SIZE, 0, size) })
		switch err {
		case nil:
		case unix.EOPNOTSUPP, unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EINVAL:
			c.noAlloc.Store(true)
		case unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EFBIG:
			return 0, pathErr("fallocate", dst.path, err)
		}
	}
	return c.copyRange(ctx, dst, src, 0, size, done)
}

// mayClone reports whether cloning is still worth trying.
func (c *Copier) mayClone() bool { return !c.noClone.Load() }

// cloned reports the size that a clone gave dst, which is the source's size
// at that moment, not when it was looked at.
func (c *Copier) cloned(dst *File, size int64, done func(int64)) (int64, error) {
	got, err := dst.Stat()
	if err != nil {
		return 0, err
	}
	if got.Size > size { // the source grew meanwhile; the caller wants size bytes
		if err := dst.Truncate(size); err != nil {
			return 0, err
		}
		got.Size = size
	}
	if done != nil {
		done(got.Size)
	}
	return got.Size, nil
}

// copySparse copies the data segments only (lseek(2) SEEK_DATA, SEEK_HOLE), or
// what isn't zero if it isn't known where they are.
func (c *Copier) copySparse(ctx context.Context, dst, src *File, size int64, done func(int64)) (int64, error) {
	if !c.maySeek(src) {
		return copyNonzero(ctx, dst, src, size, done)
	}
	var off int64
	for off < size {
		data, err := unix.Seek(src.fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO { // no data behind off
			data = size
		} else if err != nil {
			return c.copyRange(ctx, dst, src, off, size, done)
		}
		data = min(data, size)
		if done != nil && data > off {
			done(data - off)
		}
		if data == size {
			break
		}
		hole, err := unix.Seek(src.fd, data, unix.SEEK_HOLE)
		if err != nil {
			return c.copyRange(ctx, dst, src, data, size, done)
		}
		hole = min(hole, size)
		if hole <= data { // shrunk under us
			return data, nil
		}
		if got, err := c.copyRange(ctx, dst, src, data, hole, done); err != nil || got != hole {
			return got, err
		}
		off = hole
	}
	return endSparse(dst, src, size)
}

// endSparse gives dst, in which the last hole is missing, its size.
func endSparse(dst, src *File, size int64) (int64, error) {
	// A file that shrank reads as one long hole up to its new end.
	now, err := src.Stat()
	if err != nil {
		return 0, err
	}
	if now.Size < size {
		return now.Size, nil
	}
	return size, dst.Truncate(size)
}

// zfsMagic is what statfs(2) returns for ZFS (ZFS_SUPER_MAGIC in OpenZFS).
const zfsMagic = 0x2fc12fc1

// maySeek reports whether SEEK_DATA and SEEK_HOLE can be trusted in src. Before
// versions 2.1.14 and 2.2.2, OpenZFS could return that there is a hole where
// something was just written (github.com/openzfs/zfs/issues/15526). And a file
// that was just written looks sparse there: its blocks are counted later.
func (c *Copier) maySeek(src *File) bool {
	if c.noSeek.Load() {
		return false
	}
	var st unix.Statfs_t
	err := retry(func() error { return unix.Fstatfs(src.fd, &st) })
	if err != nil || uint32(st.Type) == zfsMagic {
		c.noSeek.Store(true)
	}
	return !c.noSeek.Load()
}

// copyNonzero copies the first size bytes and leaves holes where whole blocks are
// zero.
func copyNonzero(ctx context.Context, dst, src *File, size int64, done func(int64)) (int64, error) {
	const block = 4 << 10
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		n, err := src.ReadAt((*buf)[:min(size-off, bufferSize)], off)
		for at := 0; at < n; at += block {
			part := (*buf)[at:min(at+block, n)]
			if isZero(part) {
				continue
			}
			if _, err := dst.WriteAt(part, off+int64(at)); err != nil {
				return off, err
			}
		}
		off += int64(n)
		if done != nil && n > 0 {
			done(int64(n))
		}
		if errors.Is(err, io.EOF) {
			return off, nil
		}
		if err != nil {
			return off, err
		}
	}
	return endSparse(dst, src, size)
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// copyRange copies [off, end) and returns the offset it got to.
func (c *Copier) copyRange(ctx context.Context, dst, src *File, off, end int64, done func(int64)) (int64, error) {
	for off < end && !c.noRange.Load() {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		rOff, wOff := off, off
		var n int
		err := retry(func() (err error) {
			n, err = unix.CopyFileRange(src.fd, &rOff, dst.fd, &wOff, int(min(end-off, copyStep)), 0)
			return err
		})
		switch err {
		case nil:
		case unix.EXDEV, unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL, unix.EPERM, unix.EACCES, unix.EBADF:
			c.noRange.Store(true)
			continue
		default:
			return off, pathErr("copy_file_range", dst.path, err)
		}
		if n == 0 {
			// The end, or a file system whose answer means nothing
			// (copy_file_range(2), BUGS): reading shows which.
			break
		}
		off += int64(n)
		if done != nil {
			done(int64(n))
		}
	}
	return copyReadWrite(ctx, dst, src, off, end, done)
}
