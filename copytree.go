package backup

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup/internal/fsat"
)

// A treeCopy copies a directory tree that nobody should be writing to, and
// tells if somebody did.
//
// The argument: every file's and directory's identity, size and times are
// taken when its copy begins, and compared with what they are after the last
// copy has ended. If nothing differs, all files were still at one moment, the
// one between the last first look and the first second look, and each copy was
// made around it. It is a net under the ingestion guard and no replacement for
// it: writes through a memory map, a write that is under way when the copy
// begins, and clocks that tick coarsely can slip through.
//
// Everything is opened relative to its directory, no link is followed, and
// only directories and regular files of one file system are opened.
type treeCopy struct {
	// alien tells, by device and inode, of files that must not be opened.
	alien func(fsat.Info) bool
	// progress is told on the caller's goroutine how far the copy is.
	progress func(path string, files, bytes int64)

	top     fsat.Info
	copier  fsat.Copier
	seed    maphash.Seed
	records []*dirRecord // in the order of the walk
	files   atomic.Int64
	bytes   atomic.Int64
}

// A dirRecord is what a directory looked like when its copy began: a
// fingerprint of itself and of each entry, in order. Eight bytes an entry keep
// a million files in 8 MB.
type dirRecord struct {
	self    uint64
	entries []uint64
}

// A copyDir is a directory and its copy, open until all in it is copied.
type copyDir struct {
	src, dst *fsat.Dir
	info     fsat.Info
	parent   *copyDir
	users    atomic.Int32
}

type copyJob struct {
	dir   *copyDir
	entry fsat.Entry
	print *uint64
}

// copyTree copies the tree below src into dst, an empty directory. It returns
// the number of files and the sum of their sizes.
func (t *treeCopy) copyTree(ctx context.Context, src, dst *fsat.Dir, workers int) (files, bytes int64, err error) {
	t.seed = maphash.MakeSeed()
	if t.top, err = src.Stat(); err != nil {
		return 0, 0, err
	}
	if err := t.copyAll(ctx, src, dst, workers); err != nil {
		return 0, 0, t.changedIfGone(err)
	}
	t.tell(src.Path())
	if err := t.compare(ctx, src, dst); err != nil {
		return 0, 0, t.changedIfGone(err)
	}
	return t.files.Load(), t.bytes.Load(), nil
}

// changedIfGone takes a name that vanished, or turned from a directory into a
// file, for what it is: a source that changed.
func (t *treeCopy) changedIfGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", ErrSourceChanged, err)
	}
	return err
}

func (t *treeCopy) copyAll(ctx context.Context, src, dst *fsat.Dir, workers int) error {
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	jobs := make(chan copyJob, 16*workers)
	ping := make(chan string, 1)
	finish := sync.OnceValue(func() error {
		cancel()
		err := group.Wait()
		for job := range jobs { // what no worker took
			job.dir.abandon()
		}
		return err
	})
	defer finish()

	group.Go(func() error {
		defer close(jobs)
		return t.walk(ctx, src, dst, jobs)
	})
	var working sync.WaitGroup
	working.Add(workers)
	for range workers {
		group.Go(func() error {
			defer working.Done()
			for job := range jobs {
				if err := t.copyFile(ctx, job, ping); err != nil {
					job.dir.abandon()
					return err
				}
				if err := job.dir.release(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	done := make(chan struct{})
	go func() { working.Wait(); close(done) }()
	for {
		select {
		case path := <-ping:
			t.tell(path)
		case <-done:
			return group.Wait()
		}
	}
}

func (t *treeCopy) tell(path string) {
	if t.progress != nil {
		t.progress(path, t.files.Load(), t.bytes.Load())
	}
}

// walk makes every directory and sends every file to jobs.
func (t *treeCopy) walk(ctx context.Context, src, dst *fsat.Dir, jobs chan<- copyJob) error {
	var visit func(dir *copyDir) error
	visit = func(dir *copyDir) (err error) {
		if dir.info, err = dir.src.Stat(); err != nil {
			return err
		}
		if dir.parent != nil {
			same, err := fsat.SameMount(dir.parent.src, dir.src)
			if err != nil {
				return err
			}
			if !same {
				return fmt.Errorf("%w: %s is a mount point", ErrUnsupportedFile, dir.src.Path())
			}
		}
		entries, err := dir.src.ReadDir()
		if err != nil {
			return err
		}
		record := &dirRecord{
			self:    t.fingerprint("", dir.info),
			entries: make([]uint64, len(entries)),
		}
		t.records = append(t.records, record)
		for i, entry := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			switch {
			case entry.Type.IsDir():
				sub, err := dir.open(entry.Name)
				if err != nil {
					return err
				}
				err = visit(sub)
				if err != nil {
					sub.abandon()
					return err
				}
				if err := sub.release(); err != nil {
					return err
				}
			case entry.Type.IsRegular():
				dir.users.Add(1)
				select {
				case jobs <- copyJob{dir: dir, entry: entry, print: &record.entries[i]}:
				case <-ctx.Done():
					dir.abandon()
					return ctx.Err()
				}
			default:
				return unsupported(dir.src, entry.Name, entry.Type)
			}
		}
		return nil
	}
	// The roots belong to the caller; these are ours to close.
	root := new(copyDir)
	var err error
	if root.src, err = src.Reopen(); err != nil {
		return err
	}
	root.users.Add(1)
	if root.dst, err = dst.Reopen(); err != nil {
		root.abandon()
		return err
	}
	if err := visit(root); err != nil {
		root.abandon()
		return err
	}
	return root.release()
}

func unsupported(dir *fsat.Dir, name string, kind fs.FileMode) error {
	what := "a special file"
	switch kind.Type() {
	case fs.ModeSymlink:
		what = "a symbolic link"
	case fs.ModeNamedPipe:
		what = "a FIFO"
	case fs.ModeSocket:
		what = "a socket"
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		what = "a device"
	}
	return fmt.Errorf("%w: %s/%s is %s", ErrUnsupportedFile, dir.Path(), name, what)
}

// open makes the directory name in the copy and opens both.
func (d *copyDir) open(name string) (_ *copyDir, err error) {
	sub := &copyDir{parent: d}
	if sub.src, err = d.src.OpenDir(name); err != nil {
		return nil, err
	}
	if err = d.dst.Mkdir(name, 0o700); err == nil {
		sub.dst, err = d.dst.OpenDir(name)
	}
	if err != nil {
		sub.src.Close()
		return nil, err
	}
	d.users.Add(1)
	sub.users.Add(1)
	return sub, nil
}

// release is called when one user of the directory is done. The last one gives
// the copy its mode and times, which making its entries had changed.
func (d *copyDir) release() error {
	if d.users.Add(-1) > 0 {
		return nil
	}
	err := d.dst.Chmod(d.info.Mode)
	if terr := d.dst.Chtimes(".", d.info.MtimeNano); err == nil {
		err = terr
	}
	d.close()
	if d.parent != nil {
		if perr := d.parent.release(); err == nil {
			err = perr
		}
	}
	return err
}

// abandon is release after a failure.
func (d *copyDir) abandon() {
	if d.users.Add(-1) > 0 {
		return
	}
	d.close()
	if d.parent != nil {
		d.parent.abandon()
	}
}

func (d *copyDir) close() {
	d.src.Close()
	d.dst.Close()
}

func (t *treeCopy) copyFile(ctx context.Context, job copyJob, ping chan<- string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := job.entry.Name
	if t.alien(fsat.Info{Dev: t.top.Dev, Ino: job.entry.Ino}) {
		return fmt.Errorf("%w: %s/%s is a hard link to the live database", ErrUnsupportedFile, job.dir.src.Path(), name)
	}
	src, err := job.dir.src.Open(name)
	if err != nil {
		if errors.Is(err, syscall.ELOOP) {
			return unsupported(job.dir.src, name, fs.ModeSymlink)
		}
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode.IsRegular():
		return unsupported(job.dir.src, name, info.Mode)
	case info.Dev != t.top.Dev:
		return fmt.Errorf("%w: %s is a mount point", ErrUnsupportedFile, src.Path())
	}
	*job.print = t.fingerprint(name, info)
	dst, err := job.dir.dst.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	n, err := t.copier.Copy(ctx, dst, src, info, func(n int64) {
		t.bytes.Add(n)
		select {
		case ping <- src.Path():
		default:
		}
	})
	if err != nil {
		return err
	}
	if n < info.Size {
		return fmt.Errorf("%w: %s became shorter", ErrSourceChanged, src.Path())
	}
	if err := dst.Chmod(info.Mode); err != nil {
		return err
	}
	if err := job.dir.dst.Chtimes(name, info.MtimeNano); err != nil {
		return err
	}
	t.files.Add(1)
	return dst.Close()
}

// fingerprint stands for all that compare looks at.
func (t *treeCopy) fingerprint(name string, info fsat.Info) uint64 {
	type key struct {
		name               string
		mode               fs.FileMode
		dev, ino           uint64
		size, mtime, ctime int64
	}
	return maphash.Comparable(t.seed, key{name, info.Mode, info.Dev, info.Ino, info.Size, info.MtimeNano, info.CtimeNano})
}

// compare walks the source again in the same order and compares it with the
// records.
func (t *treeCopy) compare(ctx context.Context, src, dst *fsat.Dir) error {
	next := 0
	var visit func(src, dst *fsat.Dir) error
	visit = func(src, dst *fsat.Dir) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		record := t.records[next]
		next++
		entries, err := src.ReadDir()
		if err != nil {
			return err
		}
		if len(entries) != len(record.entries) {
			return t.changed(src, dst, entries)
		}
		for i, entry := range entries {
			if entry.Type.IsDir() {
				// A directory that is new here is not in the copy, so the
				// records stay in step.
				subDst, err := dst.OpenDir(entry.Name)
				if err != nil {
					return t.changed(src, dst, entries)
				}
				subSrc, err := src.OpenDir(entry.Name)
				if err == nil {
					err = visit(subSrc, subDst)
					subSrc.Close()
				}
				subDst.Close()
				if err != nil {
					return err
				}
				continue
			}
			info, err := src.Lstat(entry.Name)
			if err != nil {
				return err
			}
			if t.fingerprint(entry.Name, info) != record.entries[i] {
				return t.changed(src, dst, entries)
			}
		}
		info, err := src.Stat()
		if err != nil {
			return err
		}
		if t.fingerprint("", info) != record.self {
			return fmt.Errorf("%w: %s", ErrSourceChanged, src.Path())
		}
		return nil
	}
	return visit(src, dst)
}

// changed names the entry by which a directory differs from its copy.
func (t *treeCopy) changed(src, dst *fsat.Dir, entries []fsat.Entry) error {
	copied, err := dst.ReadDir()
	if err != nil {
		return err
	}
	for i := 0; i < len(entries) || i < len(copied); i++ {
		switch {
		case i >= len(copied) || i < len(entries) && entryLess(entries[i], copied[i]):
			return fmt.Errorf("%w: %s/%s appeared", ErrSourceChanged, src.Path(), entries[i].Name)
		case i >= len(entries) || entryLess(copied[i], entries[i]):
			return fmt.Errorf("%w: %s/%s vanished", ErrSourceChanged, src.Path(), copied[i].Name)
		}
		if entries[i].Type.IsDir() {
			continue
		}
		// Size and modification time were copied, so most changes show.
		was, err := dst.Lstat(copied[i].Name)
		if err != nil {
			return err
		}
		is, err := src.Lstat(entries[i].Name)
		if err != nil {
			return err
		}
		if was.Size != is.Size || was.MtimeNano != is.MtimeNano || was.Mode != is.Mode {
			return fmt.Errorf("%w: %s/%s was written to", ErrSourceChanged, src.Path(), entries[i].Name)
		}
	}
	return fmt.Errorf("%w: a file in %s", ErrSourceChanged, src.Path())
}

func entryLess(a, b fsat.Entry) bool {
	return fsat.ComparePaths(a.Name, a.Type.IsDir(), b.Name, b.Type.IsDir()) < 0
}
