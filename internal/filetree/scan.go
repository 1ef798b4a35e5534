package backup

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup/internal/fsat"
)

const (
	// hashChunk bounds the work between two looks at the context.
	hashChunk = 1 << 20

	// scanWorkers is how many files are hashed and synced at once. More than
	// there are processors, for most of them wait for the disk.
	scanWorkers = 8

	// scanWindow is how many files may be under way before the first of them
	// is handed on; it bounds memory and open directories.
	scanWindow = 128
)

// A scannedFile is one entry of a snapshot tree that is not a directory, or a
// directory without entries.
type scannedFile struct {
	path string // relative to the tree's root, with slashes; a directory's ends in one
	info fsat.Info
	sum  [sha256.Size]byte
	// irregular: it is not a regular file of the tree's own and was not
	// opened; sum is not set.
	irregular bool
}

// A scan reads every file below root. It follows no link, crosses no mount
// point and opens nothing but directories and regular files.
type scan struct {
	root *fsat.Dir
	// hash asks for the SHA-256 of every file.
	hash bool
	// sync makes every file and directory durable as it goes.
	sync bool
	// writeback starts writing files out while they are hashed.
	writeback bool
	// copied knows hashes of what is below chroma/; it may be nil.
	copied *treeCopy
	// database is the hash of the database copy; it may be nil.
	database *hashBehind
	// skip names paths that are passed over.
	skip func(path string) bool
	// alien tells of files that must not be opened though they are regular.
	alien func(fsat.Info) bool
	// progress is told on the caller's goroutine how far the scan is.
	progress func(path string, files, bytes int64)
}

// A scanDir is a directory that is open until the last of its files is done.
type scanDir struct {
	*fsat.Dir
	users atomic.Int32
}

// isDir tells an empty directory from a file.
func (f *scannedFile) isDir() bool { return strings.HasSuffix(f.path, "/") }

func (d *scanDir) release() {
	if d.users.Add(-1) == 0 {
		d.Close()
	}
}

type scanJob struct {
	scannedFile
	dir  *scanDir
	name string
	kept *keptSum // what copied knows of it
	done chan struct{}
}

// run calls each for every file, on the caller's goroutine, in the byte order
// of the paths. Files are read by several goroutines, all of which have ended
// when it returns. The first error ends the scan.
func (s *scan) run(ctx context.Context, each func(*scannedFile) error) error {
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	ordered := make(chan *scanJob, scanWindow)
	jobs := make(chan *scanJob, scanWindow)
	ping := make(chan struct{}, 1)
	var bytes atomic.Int64
	count := func(n int64) {
		bytes.Add(n)
		select {
		case ping <- struct{}{}:
		default:
		}
	}
	// The goroutines end before this function does, also when each or
	// progress panics.
	finish := sync.OnceValue(func() error {
		cancel()
		err := group.Wait()
		for job := range jobs { // what no worker took
			job.dir.release()
		}
		return err
	})
	defer finish()

	group.Go(func() error {
		defer close(ordered)
		defer close(jobs)
		return s.walk(ctx, ordered, jobs)
	})
	for range scanWorkers {
		group.Go(func() error {
			for job := range jobs {
				err := s.read(ctx, job, count)
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
	for job := range ordered {
		for waiting := true; waiting; {
			select {
			case <-job.done:
				waiting = false
			case <-ping:
				s.tell(job.path, files, bytes.Load())
			case <-ctx.Done():
				if err := finish(); err != nil {
					return err
				}
				return caller.Err()
			}
		}
		if err := each(&job.scannedFile); err != nil {
			return err
		}
		if job.dir != nil {
			files++
		}
		s.tell(job.path, files, bytes.Load())
	}
	return group.Wait()
}

func (s *scan) tell(path string, files, bytes int64) {
	if s.progress != nil {
		s.progress(path, files, bytes)
	}
}

// walk sends every file to ordered and the ones to be read to jobs.
func (s *scan) walk(ctx context.Context, ordered, jobs chan<- *scanJob) error {
	top, err := s.root.Stat()
	if err != nil {
		return err
	}
	var visit func(dir *scanDir, prefix string) error
	visit = func(dir *scanDir, prefix string) error {
		entries, err := dir.ReadDir()
		if err != nil {
			return err
		}
		if len(entries) == 0 && prefix != "" {
			job := &scanJob{scannedFile: scannedFile{path: prefix}, done: make(chan struct{})}
			close(job.done)
			select {
			case ordered <- job:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var sums []keptSum
		if strings.HasPrefix(prefix, chromaDirName+"/") {
			sums = s.copied.nextSums(len(entries))
		}
		for i, entry := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			path := prefix + entry.Name
			if s.skip != nil && s.skip(path) {
				continue
			}
			if entry.Type.IsDir() {
				sub, err := openOnSameFS(dir.Dir, entry.Name, top.Dev)
				if err != nil {
					return err
				}
				if sub != nil {
					node := &scanDir{Dir: sub}
					node.users.Add(1)
					err = visit(node, path+"/")
					node.release()
					if err != nil {
						return err
					}
					continue
				}
			}
			job := &scanJob{scannedFile: scannedFile{path: path}, dir: dir, name: entry.Name, done: make(chan struct{})}
			job.irregular = !entry.Type.IsRegular()
			if sums != nil {
				job.kept = &sums[i]
			}
			select {
			case ordered <- job:
			case <-ctx.Done():
				return ctx.Err()
			}
			dir.users.Add(1)
			select {
			case jobs <- job:
			case <-ctx.Done():
				dir.release()
				return ctx.Err()
			}
		}
		if s.sync {
			return dir.Sync()
		}
		return nil
	}
	root, err := s.root.Reopen()
	if err != nil {
		return err
	}
	node := &scanDir{Dir: root}
	node.users.Add(1)
	defer node.release()
	return visit(node, "")
}

// openOnSameFS opens the directory name, or returns nil if something is
// mounted there.
func openOnSameFS(dir *fsat.Dir, name string, dev uint64) (*fsat.Dir, error) {
	sub, err := dir.OpenDir(name)
	if err != nil {
		return nil, err
	}
	info, err := sub.Stat()
	if err != nil {
		sub.Close()
		return nil, err
	}
	if info.Dev != dev {
		sub.Close()
		return nil, nil
	}
	return sub, nil
}

// read fills in what is asked for about one file.
func (s *scan) read(ctx context.Context, job *scanJob, count func(int64)) (err error) {
	if job.info, err = job.dir.Lstat(job.name); err != nil {
		return err
	}
	if job.irregular || !job.info.Mode.IsRegular() || s.alien != nil && s.alien(job.info) {
		job.irregular = true
		return nil
	}
	known := false
	if s.hash {
		if job.sum, known = s.copied.sumOf(job.kept, job.name, job.info); known {
			count(job.info.Size)
		}
	}
	if (known || !s.hash) && !s.sync {
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
	if !opened.Mode.IsRegular() || opened.Dev != job.info.Dev || opened.Ino != job.info.Ino {
		return fmt.Errorf("%s was replaced while it was read", f.Path())
	}
	if s.hash && !known && s.database.isOf(opened) {
		if job.sum, known, err = s.awaitHash(ctx, f, opened.Size, count); err != nil {
			return err
		}
	}
	if s.hash && !known {
		if job.sum, err = hashFile(ctx, f, job.info.Size, s.writeback, count); err != nil {
			return err
		}
	}
	if s.sync {
		return syncFile(ctx, f, job.info.Size)
	}
	return nil
}

type hashState struct {
	h   hash.Hash
	buf []byte
}

var hashStates = sync.Pool{New: func() any {
	return &hashState{h: sha256.New(), buf: make([]byte, hashChunk)}
}}

// hashFile reads f to its end, which may differ from size.
func hashFile(ctx context.Context, f *fsat.File, size int64, writeback bool, count func(int64)) (sum [sha256.Size]byte, err error) {
	state := hashStates.Get().(*hashState)
	defer hashStates.Put(state)
	state.h.Reset()
	const writebackStep = 8 << 20
	for off, started := int64(0), int64(0); ; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		// Writing runs a step ahead of hashing, so that neither waits.
		if writeback && off >= started && started < size {
			f.StartWriteback(started, writebackStep)
			started += writebackStep
		}
		n, err := f.Read(state.buf)
		state.h.Write(state.buf[:n])
		off += int64(n)
		if n > 0 && count != nil {
			count(int64(n))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return sum, err
		}
	}
	state.h.Sum(sum[:0])
	return sum, nil
}

// awaitHash waits for the hash of the database copy f. Meanwhile it writes f
// out as fast as the hash goes on, not faster: a writer of the live database
// that waited for the copy is to find the disk's queue short.
func (s *scan) awaitHash(ctx context.Context, f *fsat.File, size int64, count func(int64)) (sum [sha256.Size]byte, ok bool, err error) {
	const step = 8 << 20
	begun := s.database.hashed.Load()
	told, started := int64(0), int64(0)
	return s.database.wait(ctx, func(hashed int64) {
		count(hashed - told)
		told = hashed
		if !s.writeback {
			return
		}
		share := float64(hashed-begun+step) / float64(size-begun+step)
		for ; started < int64(share*float64(size)) && ctx.Err() == nil; started += step {
			f.StartWriteback(started, step)
		}
	})
}

// syncFile makes f durable. One fsync of a large file cannot be cancelled, so
// its pages are waited for piecemeal first.
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
