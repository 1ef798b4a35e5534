// Package filetree copies, compares, hashes, syncs, sizes and chowns a
// directory tree. Copy and Scan use several goroutines, all of which have ended
// when the call returns, and report progress on the caller's goroutine.
//
// Everything is opened relative to its directory, no link is followed, and
// nothing but directories and regular files is opened. Copy and Scan enter no
// other file system. The package must not know what a tree is for, where it is
// recorded or what its files hold.
package filetree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// Workers returns how many files Copy copies at once.
func Workers() int { return min(8, max(2, runtime.GOMAXPROCS(0))) }

// CopyOptions are optional details of Copy.
type CopyOptions struct {
	// KeepSums asks for the hashes of small files, which cost next to nothing
	// while their bytes are in memory. Scan uses them (see ScanOptions.Copied).
	KeepSums bool
	// Forbidden reports whether a file must not be opened, because it is a hard
	// link to the live database: closing any descriptor of that drops this
	// process's locks on it (sqlite.org/howtocorrupt.html, section 2.2). Only
	// Dev and Ino are set in its argument. Copy fails if it meets such a file.
	// If nil, no file is forbidden. It is called on several goroutines.
	Forbidden func(fsat.Info) bool
	// Outside, if it is set, is a directory that contains dst and must not be in
	// the tree, or the tree would be copied into itself: a bind mount can make it
	// look as if it were elsewhere. Copy fails if it meets that.
	Outside fsat.Info
	// Kept, if not nil, returns an open descriptor of the file at a path below
	// src, by which it is read, and which stays open; or nil. It is called on
	// several goroutines.
	Kept func(path string) *fsat.File
	// Skip reports whether an entry of src itself, by its name, is left out. If
	// nil, everything is copied.
	Skip func(name string) bool
	// Unkept, if not nil, notes whether the file system of dst keeps modes and
	// times. It is no error if not.
	Unkept *fsat.Unkept
	// Progress, if not nil, is called on the caller's goroutine with the path of
	// a source file, and how many files and bytes are copied so far. When all is
	// copied and not yet compared it is called with the path of the source.
	Progress func(path string, files, bytes int64)
}

// A treeCopy is the state of one Copy.
type treeCopy struct {
	CopyOptions
	copied *Copied
	copier fsat.Copier
	kept   int // entries with room for a sum
	files  atomic.Int64
	bytes  atomic.Int64
}

// maxKeptSums limits the memory for sums to 10 MB. Files beyond it are hashed
// later, as large files are.
const maxKeptSums = 256 << 10

// A copyDir is a directory and its copy, both open until all in it is copied.
type copyDir struct {
	src, dst *fsat.Dir
	info     fsat.Info
	parent   *copyDir
	unkept   *fsat.Unkept
	users    atomic.Int32
}

// Copy copies the tree below src, which nobody should be writing to, into dst,
// an empty directory, with modes and modification times, and detects if
// somebody did write to it. It reads the whole source tree once and the
// metadata of its files twice. Modes are copied without the bits that give a
// program the rights of its owner (see copiedMode).
//
// The identity, size and times of every file and directory are taken when its
// copy begins and, after the last copy has ended, compared with those at that
// time. If nothing differs, all files were unchanged at one common moment,
// between the last first look and the first second look, and each copy was made
// around that moment. This is a safety net and does not replace a guard that
// keeps writers away: writes through a memory map, a write that is under way
// when the copy begins, and changes within one tick of a coarse clock can slip
// through.
//
// Errors: ErrInvalidOptions if the tree contains o.Outside; ErrSourceChanged;
// ErrUnsupportedFile for a forbidden file, a mount
// point, or anything but directories and regular files; otherwise those of the
// file system and of ctx. After an error, the content of dst is useless.
func Copy(ctx context.Context, src, dst *fsat.Dir, o CopyOptions) (*Copied, error) {
	t := &treeCopy{CopyOptions: o, copied: &Copied{seed: maphash.MakeSeed()}}
	if t.Unkept == nil {
		t.Unkept = new(fsat.Unkept)
	}
	if err := t.copyAll(ctx, src, dst); err != nil {
		return nil, changedIfGone(err)
	}
	t.progress(src.Path())
	if err := t.compare(ctx, src, dst); err != nil {
		return nil, changedIfGone(err)
	}
	t.copied.Files, t.copied.Bytes = t.files.Load(), t.bytes.Load()
	return t.copied, nil
}

// changedIfGone makes an error ErrSourceChanged if it means that a name
// vanished or turned from a directory into a file.
func changedIfGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", errdefs.ErrSourceChanged, err)
	}
	return err
}

func (t *treeCopy) progress(path string) {
	if t.Progress != nil {
		t.Progress(path, t.files.Load(), t.bytes.Load())
	}
}

func (t *treeCopy) copyAll(ctx context.Context, src, dst *fsat.Dir) error {
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	queue := newCopyQueue()
	stopped := make(chan struct{})
	context.AfterFunc(ctx, func() { queue.stop(); close(stopped) })
	ping := make(chan string, 1)
	done := make(chan struct{}) // closed when all workers have ended
	// The goroutines end before this function does, also when Progress panics.
	finish := sync.OnceValue(func() error {
		cancel()
		err := group.Wait()
		<-stopped
		<-done
		for _, b := range queue.batches { // those not copied to the end
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
	workers := Workers()
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
			t.progress(path)
		case <-done:
			return group.Wait()
		}
	}
}

// walk creates every directory in dst and puts the files into the queue.
func (t *treeCopy) walk(ctx context.Context, src, dst *fsat.Dir, queue *copyQueue) error {
	// src and dst belong to the caller. A copyDir closes its directories, so it
	// gets its own descriptors.
	root := &copyDir{unkept: t.Unkept}
	var err error
	if root.src, err = src.Reopen(); err != nil {
		return err
	}
	root.users.Add(1)
	if root.dst, err = dst.Reopen(); err != nil {
		root.abandon()
		return err
	}
	if err := t.visit(ctx, root, queue); err != nil {
		root.abandon()
		return err
	}
	return root.release()
}

func (t *treeCopy) visit(ctx context.Context, dir *copyDir, queue *copyQueue) (err error) {
	if dir.info, err = dir.src.Stat(); err != nil {
		return err
	}
	if t.Outside.Ino != 0 && dir.info.SameFile(t.Outside) {
		return fmt.Errorf("%w: %s contains the copy: it is the directory that the backups are in", errdefs.ErrInvalidOptions, dir.src.Path())
	}
	if dir.parent != nil {
		same, err := fsat.SameMount(dir.parent.src, dir.src)
		if err != nil {
			return err
		}
		if !same {
			return fmt.Errorf("%w: %s is a mount point", errdefs.ErrUnsupportedFile, dir.src.Path())
		}
	}
	entries, err := t.readDir(dir.src, dir.parent == nil)
	if err != nil {
		return err
	}
	record := t.newRecord(dir.info, len(entries))
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
		sub, err := dir.create(entry.Name)
		if err != nil {
			return err
		}
		if err := t.visit(ctx, sub, queue); err != nil {
			sub.abandon()
			return err
		}
		if err := sub.release(); err != nil {
			return err
		}
	}
	return nil
}

// readDir returns the entries of a directory of src that are copied. isTop is set
// for src itself.
func (t *treeCopy) readDir(dir *fsat.Dir, isTop bool) ([]fsat.Entry, error) {
	entries, err := dir.ReadDir()
	if err == nil && isTop && t.Skip != nil {
		entries = slices.DeleteFunc(entries, func(entry fsat.Entry) bool { return t.Skip(entry.Name) })
	}
	return entries, err
}

// newRecord adds the record of the next directory in the order of the walk.
func (t *treeCopy) newRecord(info fsat.Info, entries int) *dirRecord {
	record := &dirRecord{
		self:    t.copied.fingerprint("", info),
		entries: make([]uint64, entries),
	}
	if t.KeepSums && t.kept+entries <= maxKeptSums {
		record.sums = make([]keptSum, entries)
		t.kept += entries
	}
	t.copied.dirs = append(t.copied.dirs, record)
	return record
}

// copiedMode returns the mode that the copy of a file or directory gets. The
// copy belongs to the user of this process, who is not the one that set the
// bits: with its setuid bit, a file of another user would become a program that
// runs with the rights of this one. Copying by cp(1) without the owner drops
// these bits, too. The setgid bit of a directory grants nothing; new files in it
// get its group.
func copiedMode(mode fs.FileMode) fs.FileMode {
	if mode.IsDir() {
		return mode &^ fs.ModeSetuid
	}
	return mode &^ (fs.ModeSetuid | fs.ModeSetgid)
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
	return fmt.Errorf("%w: %s/%s is %s", errdefs.ErrUnsupportedFile, dir.Path(), name, what)
}

// create opens the directory name and creates and opens its copy.
func (d *copyDir) create(name string) (_ *copyDir, err error) {
	sub := &copyDir{parent: d, unkept: d.unkept}
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

// release ends the use of d by one user. The last one sets the copy's mode and
// times, which creating its entries had changed.
func (d *copyDir) release() error {
	if d.users.Add(-1) > 0 {
		return nil
	}
	err := d.unkept.Modes(d.dst.Chmod(copiedMode(d.info.Mode)))
	if timesErr := d.unkept.Times(d.dst.Chtimes(".", d.info.Mtime)); err == nil {
		err = timesErr
	}
	d.close()
	if d.parent != nil {
		if parentErr := d.parent.release(); err == nil {
			err = parentErr
		}
	}
	return err
}

// abandon is release after a failure: it only closes.
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
	// Neither the inode number of a directory's entry nor the device of its
	// directory identifies a file everywhere: a FUSE server may not know the number,
	// and on an overlay of two file systems a file has the device of its layer
	// (Documentation/filesystems/overlayfs.rst, "Inode properties").
	file, mounted, err := dir.src.Identify(entry.Name)
	switch {
	case err != nil:
		return err
	case t.Forbidden != nil && t.Forbidden(fsat.Info{Dev: file.Dev, Ino: file.Ino}):
		return fmt.Errorf("%w: %s/%s is a hard link to the live database", errdefs.ErrUnsupportedFile, dir.src.Path(), entry.Name)
	case mounted:
		return fmt.Errorf("%w: %s/%s is a mount point", errdefs.ErrUnsupportedFile, dir.src.Path(), entry.Name)
	}
	src, closeSrc, err := t.open(dir.src, entry.Name)
	if err != nil {
		if errors.Is(err, syscall.ELOOP) {
			return unsupported(dir.src, entry.Name, fs.ModeSymlink)
		}
		return err
	}
	defer func() { _ = closeSrc() }()
	info, err := src.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode.IsRegular():
		return unsupported(dir.src, entry.Name, info.Mode)
	}
	batch.record.entries[i] = t.copied.fingerprint(entry.Name, info)
	dst, err := dir.dst.Create(entry.Name, info.Mode.Perm())
	if err != nil {
		return err
	}
	defer dst.Close()
	content, err := t.copyContent(ctx, dst, src, info, buf, ping)
	if err != nil {
		return err
	}
	if err := t.Unkept.Times(dir.dst.Chtimes(entry.Name, info.Mtime)); err != nil {
		return err
	}
	mode := copiedMode(info.Mode)
	made, err := dst.Stat()
	if err == nil && made.Mode != mode { // the umask, or more than permission bits
		if err = t.Unkept.Modes(dst.Chmod(mode)); err == nil {
			made, err = dst.Stat()
		}
	}
	if err != nil {
		return err
	}
	if content != nil && batch.record.sums != nil && made.Ino != 0 {
		batch.record.sums[i] = keptSum{t.copied.fingerprint(entry.Name, made), sha256.Sum256(content)}
	}
	t.files.Add(1)
	return dst.Close()
}

// open opens a file of the tree, unless it is open already.
func (t *treeCopy) open(dir *fsat.Dir, name string) (src *fsat.File, release func() error, err error) {
	if t.Kept != nil {
		if src := t.Kept(dir.Path() + "/" + name); src != nil {
			return src, func() error { return nil }, nil
		}
	}
	if src, err = dir.Open(name); err != nil {
		return nil, nil, err
	}
	return src, src.Close, nil
}

// copyContent copies the content of src to dst. It returns the content if it
// was in memory, in buf.
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
		err = fmt.Errorf("%w: %s became shorter", errdefs.ErrSourceChanged, src.Path())
	}
	return content, err
}
