package sqlitedb

import (
	"context"
	"io"
	"io/fs"
	"time"
)

const (
	// readAheadBlock is how much is read at once where pages are read one after
	// the other. It is not smaller than SQLite's largest page, and a multiple of
	// every page size.
	readAheadBlock = 64 << 10

	// readAheadRuns is the number of places in a file from which SQLite reads on
	// in turns: a table and the overflow pages of its rows, beside single pages
	// of its indexes.
	readAheadRuns = 4

	// readAheadName is the only file that SQLite finds.
	readAheadName = "/database"
)

// A readAhead is a file system for SQLite with one file in it, which is read as
// SQLite reads it for a check: page by page, whole tables at a time, downwards
// when it walks a tree (checkTreePage in btree.c) and upwards when it looks at
// the rows. Pages near the one last read are read block by block, which spares
// most of the system calls. A readAhead may be used only for a file that nothing
// writes to, and by one connection.
//
// Errors and the end of the file appear exactly where the file itself would
// report them: a block that ends too early or in an error keeps the bytes that
// could be read, and the rest is read from the file when SQLite requests it.
type readAhead struct {
	ctx   context.Context
	file  io.ReaderAt
	size  func() (int64, error)
	off   int64
	runs  [readAheadRuns]readAheadRun
	clock int64
}

type readAheadRun struct {
	last  int64  // the offset last read
	used  int64  // the clock at that read; 0 if there was none
	start int64  // of block, in the file
	block []byte // what could be read from there
}

// newReadAhead returns the file system for one connection. The database in it
// must be opened as immutable, so that SQLite neither makes nor looks for locks
// and sidecar files (sqlite.org/uri.html). SQLite gets the open file, and no path
// by which it could find another one. When ctx ends, reading fails.
func newReadAhead(ctx context.Context, file io.ReaderAt, size func() (int64, error)) *readAhead {
	return &readAhead{ctx: ctx, file: file, size: size}
}

// Open implements fs.FS.
func (r *readAhead) Open(name string) (fs.File, error) {
	if name != readAheadName {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return r, nil
}

// Close does nothing: the file is the caller's.
func (r *readAhead) Close() error { return nil }

// Stat returns the file's size, which is all that SQLite needs.
func (r *readAhead) Stat() (fs.FileInfo, error) {
	size, err := r.size()
	return readAheadInfo(size), err
}

type readAheadInfo int64

func (i readAheadInfo) Name() string       { return readAheadName }
func (i readAheadInfo) Size() int64        { return int64(i) }
func (i readAheadInfo) Mode() fs.FileMode  { return 0o400 }
func (i readAheadInfo) ModTime() time.Time { return time.Time{} }
func (i readAheadInfo) IsDir() bool        { return false }
func (i readAheadInfo) Sys() any           { return nil }

// Seek implements io.Seeker as far as SQLite needs it.
func (r *readAhead) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekStart || off < 0 {
		return 0, fs.ErrInvalid
	}
	r.off = off
	return off, nil
}

// Read fills p, unless the file ends or fails before that.
func (r *readAhead) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.readAt(p, r.off)
	r.off += int64(n)
	return n, err
}

// readAt reads at off as io.ReaderAt does, through the blocks.
func (r *readAhead) readAt(p []byte, off int64) (int, error) {
	r.clock++
	var near *readAheadRun
	oldest := &r.runs[0]
	for i := range r.runs {
		run := &r.runs[i]
		if run.holds(p, off) {
			run.last, run.used = off, r.clock
			return copy(p, run.block[off-run.start:]), nil
		}
		if run.used > 0 && max(off, run.last)-min(off, run.last) <= int64(len(p)) {
			near = run
		}
		if run.used < oldest.used {
			oldest = run
		}
	}
	if near == nil {
		oldest.last, oldest.used = off, r.clock
		return r.file.ReadAt(p, off)
	}
	if near.block == nil {
		near.block = make([]byte, 0, readAheadBlock)
	}
	near.last, near.used = off, r.clock
	near.start = off - off%readAheadBlock
	n, _ := r.file.ReadAt(near.block[:readAheadBlock], near.start)
	near.block = near.block[:n]
	if near.holds(p, off) {
		return copy(p, near.block[off-near.start:]), nil
	}
	return r.file.ReadAt(p, off)
}

// holds reports whether the block has all of p at off.
func (run *readAheadRun) holds(p []byte, off int64) bool {
	return off >= run.start && off+int64(len(p)) <= run.start+int64(len(run.block))
}
