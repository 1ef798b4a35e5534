package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"slices"
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
	// sums asks for the hashes of small files, which cost next to nothing
	// while their bytes are at hand.
	sums bool

	top     fsat.Info
	copier  fsat.Copier
	seed    maphash.Seed
	records []*dirRecord // in the order of the walk
	kept    int          // entries with room for a sum
	files   atomic.Int64
	bytes   atomic.Int64
}

// maxKeptSums bounds the memory for sums to 10 MB. What goes beyond is hashed
// later, like large files.
const maxKeptSums = 256 << 10

// A dirRecord is what a directory looked like when its copy began: a
// fingerprint of itself and of each entry, in order. Eight bytes an entry keep
// a million files in 8 MB.
type dirRecord struct {
	self    uint64
	entries []uint64
	sums    []keptSum // of the copies, entry by entry; empty if not kept
}

// A keptSum is the hash of what was written to a copy, and the fingerprint of
// that file when all was done to it. It counts only as long as the file still
// looks so; the zero value counts for no file.
type keptSum struct {
	print uint64
	sum   [sha256.Size]byte
}

// A copyDir is a directory and its copy, open until all in it is copied.
type copyDir struct {
	src, dst *fsat.Dir
	info     fsat.Info
	parent   *copyDir
	users    atomic.Int32
}

// A copyBatch is the files of one directory, or a thousand of them.
type copyBatch struct {
	dir     *copyDir
	record  *dirRecord
	entries []fsat.Entry // of the directory
	files   []int        // which of them

	// Guarded by the queue.
	begun, ended, workers int
}

// A copyQueue hands files to workers. Making files in one directory is done by
// one at a time in the kernel, so each worker stays with a batch as long as
// there are others for the others.
type copyQueue struct {
	mu      sync.Mutex
	changed sync.Cond
	batches []*copyBatch // with files that are not copied
	closed  bool         // no more will come
	stopped bool         // nobody wants more
}

// maxBatches bounds the directories that are open at once.
const maxBatches = 16

func newCopyQueue() *copyQueue {
	q := new(copyQueue)
	q.changed.L = &q.mu
	return q
}

// put adds a batch when there is room, and tells whether anybody wants it.
func (q *copyQueue) put(b *copyBatch) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.batches) >= maxBatches && !q.stopped {
		q.changed.Wait()
	}
	if q.stopped {
		return false
	}
	q.batches = append(q.batches, b)
	q.changed.Broadcast()
	return true
}

// take gives the next file for a worker whose last one was of the batch last,
// or ok == false when there is none and will be none.
func (q *copyQueue) take(last *copyBatch) (b *copyBatch, file int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.stopped {
		if b = last; b == nil || b.begun == len(b.files) {
			b = q.leastShared()
		}
		if b != nil {
			if b != last {
				b.workers++
				if last != nil {
					last.workers--
				}
			}
			b.begun++
			return b, b.files[b.begun-1], true
		}
		if q.closed {
			break
		}
		q.changed.Wait()
	}
	return nil, 0, false
}

func (q *copyQueue) leastShared() (least *copyBatch) {
	for _, b := range q.batches {
		if b.begun < len(b.files) && (least == nil || b.workers < least.workers) {
			least = b
		}
	}
	return least
}

// done says that a file of the batch is copied, and tells whether it was the
// last one.
func (q *copyQueue) done(b *copyBatch) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	b.ended++
	if b.ended < len(b.files) {
		return false
	}
	q.batches = slices.DeleteFunc(q.batches, func(other *copyBatch) bool { return other == b })
	q.changed.Broadcast()
	return true
}

func (q *copyQueue) close() { q.end(&q.closed) }
func (q *copyQueue) stop()  { q.end(&q.stopped) }

func (q *copyQueue) end(how *bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	*how = true
	q.changed.Broadcast()
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
	if err := t.compare(ctx, src, dst, workers); err != nil {
		return 0, 0, t.changedIfGone(err)
	}
	return t.files.Load(), t.bytes.Load(), nil
}

// nextSums gives what is known of the copies in the next directory, in the
// order of the walk, if it still has n entries.
func (t *treeCopy) nextSums(n int) []keptSum {
	if t == nil || len(t.records) == 0 {
		return nil
	}
	record := t.records[0]
	t.records = t.records[1:]
	if len(record.sums) != n {
		return nil
	}
	return record.sums
}

// sumOf gives the hash of a copy that looks as it did when it was made.
func (t *treeCopy) sumOf(kept *keptSum, name string, info fsat.Info) (sum [sha256.Size]byte, ok bool) {
	if kept == nil || kept.print != t.fingerprint(name, info) {
		return sum, false
	}
	return kept.sum, true
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
	queue := newCopyQueue()
	stopped := make(chan struct{})
	context.AfterFunc(ctx, func() { queue.stop(); close(stopped) })
	ping := make(chan string, 1)
	done := make(chan struct{}) // all workers have ended
	finish := sync.OnceValue(func() error {
		cancel()
		err := group.Wait()
		<-stopped
		<-done
		for _, b := range queue.batches { // what was not copied to the end
			b.dir.abandon()
		}
		return err
	})
	defer finish()

	group.Go(func() error {
		defer queue.close()
		return t.walk(ctx, src, dst, queue)
	})
	var working sync.WaitGroup
	working.Add(workers)
	for range workers {
		group.Go(func() error {
			defer working.Done()
			buf := make([]byte, fsat.SmallFile)
			batch, file, ok := queue.take(nil)
			for ; ok; batch, file, ok = queue.take(batch) {
				if err := t.copyFile(ctx, batch, file, buf, ping); err != nil {
					return err
				}
				if queue.done(batch) {
					if err := batch.dir.release(); err != nil {
						return err
					}
				}
			}
			return ctx.Err()
		})
	}
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

// walk makes every directory and puts its files into the queue.
func (t *treeCopy) walk(ctx context.Context, src, dst *fsat.Dir, queue *copyQueue) error {
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
		if t.sums && t.kept+len(entries) <= maxKeptSums {
			record.sums = make([]keptSum, len(entries))
			t.kept += len(entries)
		}
		t.records = append(t.records, record)
		var files []int
		for i, entry := range entries {
			switch {
			case entry.Type.IsRegular():
				files = append(files, i)
			case !entry.Type.IsDir():
				return unsupported(dir.src, entry.Name, entry.Type)
			}
		}
		for batch := range slices.Chunk(files, 1000) {
			dir.users.Add(1)
			if !queue.put(&copyBatch{dir: dir, record: record, entries: entries, files: batch}) {
				dir.abandon()
				return ctx.Err()
			}
		}
		for _, entry := range entries {
			if !entry.Type.IsDir() {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			sub, err := dir.open(entry.Name)
			if err != nil {
				return err
			}
			if err := visit(sub); err != nil {
				sub.abandon()
				return err
			}
			if err := sub.release(); err != nil {
				return err
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

func (t *treeCopy) copyFile(ctx context.Context, batch *copyBatch, i int, buf []byte, ping chan<- string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir, entry := batch.dir, batch.entries[i]
	if t.alien(fsat.Info{Dev: t.top.Dev, Ino: entry.Ino}) {
		return fmt.Errorf("%w: %s/%s is a hard link to the live database", ErrUnsupportedFile, dir.src.Path(), entry.Name)
	}
	src, err := dir.src.Open(entry.Name)
	if err != nil {
		if errors.Is(err, syscall.ELOOP) {
			return unsupported(dir.src, entry.Name, fs.ModeSymlink)
		}
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode.IsRegular():
		return unsupported(dir.src, entry.Name, info.Mode)
	case info.Dev != t.top.Dev:
		return fmt.Errorf("%w: %s is a mount point", ErrUnsupportedFile, src.Path())
	}
	batch.record.entries[i] = t.fingerprint(entry.Name, info)
	dst, err := dir.dst.Create(entry.Name, info.Mode.Perm())
	if err != nil {
		return err
	}
	defer dst.Close()
	content, err := t.copyContent(ctx, dst, src, info, buf, ping)
	if err != nil {
		return err
	}
	if err := dir.dst.Chtimes(entry.Name, info.MtimeNano); err != nil {
		return err
	}
	made, err := dst.Stat()
	if err == nil && made.Mode != info.Mode { // the umask, or more than permission bits
		if err = dst.Chmod(info.Mode); err == nil {
			made, err = dst.Stat()
		}
	}
	if err != nil {
		return err
	}
	if content != nil && batch.record.sums != nil && made.Ino != 0 {
		batch.record.sums[i] = keptSum{t.fingerprint(entry.Name, made), sha256.Sum256(content)}
	}
	t.files.Add(1)
	return dst.Close()
}

// copyContent fills dst with what src holds, and returns that if it had it in
// memory.
func (t *treeCopy) copyContent(ctx context.Context, dst, src *fsat.File, info fsat.Info, buf []byte, ping chan<- string) (content []byte, err error) {
	count := func(n int64) {
		t.bytes.Add(n)
		select {
		case ping <- src.Path():
		default:
		}
	}
	var n int64
	if info.Size <= fsat.SmallFile {
		content, n, err = t.copier.CopySmall(ctx, dst, src, info, buf)
		count(n)
	} else {
		n, err = t.copier.Copy(ctx, dst, src, info, count)
	}
	if err == nil && n < info.Size {
		err = fmt.Errorf("%w: %s became shorter", ErrSourceChanged, src.Path())
	}
	return content, err
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
// records, several directories at once.
func (t *treeCopy) compare(ctx context.Context, src, dst *fsat.Dir, workers int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
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
		for _, entry := range entries {
			if !entry.Type.IsDir() {
				continue
			}
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
		}
		again := func(src, dst *fsat.Dir) error { return t.compareDir(ctx, src, dst, entries, record) }
		if len(entries) < 100 { // not worth a goroutine
			return again(src, dst)
		}
		ownSrc, err := src.Reopen()
		if err != nil {
			return err
		}
		ownDst, err := dst.Reopen()
		if err != nil {
			ownSrc.Close()
			return err
		}
		group.Go(func() error {
			defer ownSrc.Close()
			defer ownDst.Close()
			return again(ownSrc, ownDst)
		})
		return nil
	}
	err := visit(src, dst)
	if gerr := group.Wait(); gerr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = gerr
	}
	return err
}

// compareDir compares a directory and its files with their record.
func (t *treeCopy) compareDir(ctx context.Context, src, dst *fsat.Dir, entries []fsat.Entry, record *dirRecord) error {
	for i, entry := range entries {
		if entry.Type.IsDir() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
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
