package filetree

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
)

const (
	// scanWorkers is how many files are hashed and synced at once. They are more
	// than there are processors, because most of them wait for the disk.
	scanWorkers = 8

	// scanWindow is how many files may be in progress before the first of them
	// is passed to the caller; it limits memory and open directories.
	scanWindow = 128
)

// A File is an entry of a scanned tree: a file of any kind, or a directory
// without entries.
type File struct {
	// Path is relative to the root and has slashes; a directory's ends in one.
	Path string
	// Info is not set for a directory.
	Info fsat.Info
	// Sum is set if ScanOptions.Hash is, unless the file is irregular.
	Sum filehash.Sum
	// Irregular is true for a file that was not opened, because it is not a
	// regular file, is forbidden, or is a mount point.
	Irregular bool
}

// IsDir reports whether f is an empty directory.
func (f *File) IsDir() bool { return strings.HasSuffix(f.Path, "/") }

// ScanOptions say what a Scan does with each file. The zero value only lists.
type ScanOptions struct {
	// Hash asks for the hash of every regular file.
	Hash bool
	// Sync makes every file and directory durable on the way.
	Sync bool
	// Writeback starts writing files to disk while they are hashed.
	Writeback bool
	// Copied, which may be nil, is the result of the Copy that made the part of
	// the tree whose paths begin with CopiedAt, such as "chroma/". The hashes it
	// has are used for files that have not been touched since.
	Copied   *Copied
	CopiedAt string
	// Follower, which may be nil, has the hash of one file, or will have it.
	Follower *filehash.Follower
	// Skip reports whether to skip a path. If nil, no path is skipped.
	Skip func(path string) bool
	// Forbidden reports whether a regular file must not be opened, because it is
	// a hard link to the live database. If nil, no file is forbidden. It is
	// called on several goroutines.
	Forbidden func(fsat.Info) bool
	// Progress, if not nil, is called on the caller's goroutine with the path of
	// the file that is passed on next or was passed on last, the number of files
	// passed on, and the number of bytes hashed.
	Progress func(path string, files, bytes int64)
}

// A scan is the state of one Scan.
type scan struct {
	ScanOptions
	root    *fsat.Dir
	ordered chan *scanJob // every job, in the order of the paths
	jobs    chan *scanJob // those with a file
	ping    chan struct{} // holds a value after bytes grew
	bytes   atomic.Int64
	nextDir int // how many directories of Copied were visited
}

// A scanDir is a directory that is open until the last of its files is done.
type scanDir struct {
	*fsat.Dir
	users atomic.Int32
}

func (d *scanDir) release() {
	if d.users.Add(-1) == 0 {
		d.Close()
	}
}

type scanJob struct {
	File
	dir  *scanDir // nil for an empty directory
	name string
	kept *keptSum // the hash that Copied has of the file, or nil
	done chan struct{}
}

// Scan calls each for every file below root and every empty directory, on the
// caller's goroutine and in the byte order of the paths. The files are read by
// several goroutines, all of which have ended when Scan returns. It follows no
// link, enters no mount point and opens nothing but directories and regular
// files. The first error, of each too, ends the scan and is returned.
func Scan(ctx context.Context, root *fsat.Dir, o ScanOptions, each func(*File) error) error {
	s := &scan{
		ScanOptions: o,
		root:        root,
		ordered:     make(chan *scanJob, scanWindow),
		jobs:        make(chan *scanJob, scanWindow),
		ping:        make(chan struct{}, 1),
	}
	return s.run(ctx, each)
}

func (s *scan) run(ctx context.Context, each func(*File) error) error {
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	// The goroutines end before this function does, also when each or Progress
	// panics.
	finish := sync.OnceValue(func() error {
		cancel()
		err := group.Wait()
		for job := range s.jobs { // those that no worker took
			job.dir.release()
		}
		return err
	})
	defer finish()

	group.Go(func() error {
		defer close(s.ordered)
		defer close(s.jobs)
		return s.walk(ctx)
	})
	for range scanWorkers {
		group.Go(func() error {
			for job := range s.jobs {
				err := s.read(ctx, job)
				job.dir.release()
				if err != nil {
					return err
				}
				close(job.done)
			}
			return nil
		})
	}

	var files int64
	for job := range s.ordered {
		for waiting := true; waiting; {
			select {
			case <-job.done:
				waiting = false
			case <-s.ping:
				s.progress(job.Path, files)
			case <-ctx.Done():
				if err := finish(); err != nil {
					return err
				}
				return caller.Err()
			}
		}
		if err := each(&job.File); err != nil {
			return err
		}
		if job.dir != nil {
			files++
		}
		s.progress(job.Path, files)
	}
	return group.Wait()
}

func (s *scan) progress(path string, files int64) {
	if s.Progress != nil {
		s.Progress(path, files, s.bytes.Load())
	}
}

// count adds to the bytes that are hashed.
func (s *scan) count(n int64) {
	s.bytes.Add(n)
	select {
	case s.ping <- struct{}{}:
	default:
	}
}

// walk sends a job for every file and every empty directory.
func (s *scan) walk(ctx context.Context) error {
	root, err := s.root.Reopen()
	if err != nil {
		return err
	}
	dir := &scanDir{Dir: root}
	dir.users.Add(1)
	defer dir.release()
	return s.visit(ctx, dir, "")
}

// visit visits directories in the order of Copy's walk (see Copied).
func (s *scan) visit(ctx context.Context, dir *scanDir, prefix string) error {
	entries, err := dir.ReadDir()
	if err != nil {
		return err
	}
	if len(entries) == 0 && prefix != "" {
		job := &scanJob{File: File{Path: prefix}, done: make(chan struct{})}
		close(job.done)
		select {
		case s.ordered <- job:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var sums []keptSum
	if strings.HasPrefix(prefix, s.CopiedAt) {
		sums = s.Copied.sumsOf(s.nextDir, len(entries))
		s.nextDir++
	}
	for i, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := prefix + entry.Name
		if s.Skip != nil && s.Skip(path) {
			continue
		}
		if entry.Type.IsDir() {
			entered, err := s.visitSub(ctx, dir, entry.Name, path+"/")
			if err != nil {
				return err
			}
			if entered {
				continue
			}
		}
		job := &scanJob{File: File{Path: path}, dir: dir, name: entry.Name, done: make(chan struct{})}
		job.Irregular = !entry.Type.IsRegular()
		if sums != nil {
			job.kept = &sums[i]
		}
		if err := s.send(ctx, job); err != nil {
			return err
		}
	}
	if s.Sync {
		return dir.Sync()
	}
	return nil
}

// visitSub visits the subdirectory name unless something is mounted there, and
// reports whether it did.
func (s *scan) visitSub(ctx context.Context, dir *scanDir, name, prefix string) (entered bool, err error) {
	opened, err := dir.OpenDir(name)
	if err != nil {
		return false, err
	}
	sub := &scanDir{Dir: opened}
	sub.users.Add(1)
	defer sub.release()
	same, err := fsat.SameMount(dir.Dir, sub.Dir)
	if err != nil || !same {
		return false, err
	}
	return true, s.visit(ctx, sub, prefix)
}

// send sends the job of a file, first to ordered and then to the workers.
func (s *scan) send(ctx context.Context, job *scanJob) error {
	select {
	case s.ordered <- job:
	case <-ctx.Done():
		return ctx.Err()
	}
	job.dir.users.Add(1)
	select {
	case s.jobs <- job:
		return nil
	case <-ctx.Done():
		job.dir.release()
		return ctx.Err()
	}
}

// read hashes and syncs one file, as far as the options ask for it.
func (s *scan) read(ctx context.Context, job *scanJob) (err error) {
	if job.Info, err = job.dir.Lstat(job.name); err != nil {
		return err
	}
	if job.Irregular || !job.Info.Mode.IsRegular() || s.Forbidden != nil && s.Forbidden(job.Info) {
		job.Irregular = true
		return nil
	}
	known := false
	if s.Hash {
		if job.Sum, known = s.Copied.sumOf(job.kept, job.name, job.Info); known {
			s.count(job.Info.Size)
		}
	}
	if (known || !s.Hash) && !s.Sync {
		return nil
	}
	f, err := job.dir.Open(job.name)
	if err != nil {
		return err
	}
	defer f.Close()
	opened, err := f.Stat()
	if err != nil {
		return err
	}
	if !opened.Mode.IsRegular() || opened.Dev != job.Info.Dev || opened.Ino != job.Info.Ino {
		return fmt.Errorf("%s was replaced while it was read", f.Path())
	}
	if s.Hash && !known && s.Follower.IsOf(opened) {
		if job.Sum, known, err = s.awaitSum(ctx, f, opened.Size); err != nil {
			return err
		}
	}
	if s.Hash && !known {
		job.Sum, err = filehash.File(ctx, f, filehash.Options{Size: job.Info.Size, Writeback: s.Writeback, Progress: s.count})
		if err != nil {
			return err
		}
	}
	if s.Sync {
		return syncFile(ctx, f, job.Info.Size)
	}
	return nil
}

// awaitSum waits for the Follower's hash of f. Meanwhile it writes f out as fast
// as the hashing advances, not faster: others who write to the same disk, such
// as a writer of the live database that waited for the copy, should find the
// disk's queue short.
func (s *scan) awaitSum(ctx context.Context, f *fsat.File, size int64) (sum filehash.Sum, ok bool, err error) {
	const step = 8 << 20
	begun := s.Follower.Hashed()
	counted, started := int64(0), int64(0)
	return s.Follower.Wait(ctx, func(hashed int64) {
		s.count(hashed - counted)
		counted = hashed
		if !s.Writeback {
			return
		}
		share := float64(hashed-begun+step) / float64(size-begun+step)
		for ; started < int64(share*float64(size)) && ctx.Err() == nil; started += step {
			f.StartWriteback(started, step)
		}
	})
}

// syncFile makes f durable. An fsync of a large file cannot be cancelled, so its
// pages are waited for in steps first.
func syncFile(ctx context.Context, f *fsat.File, size int64) error {
	const step = 8 << 20
	for off := int64(0); off < size; off += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		if size > step {
			if err := f.WaitWriteback(off, step); err != nil {
				return err
			}
		}
	}
	return f.Sync()
}
