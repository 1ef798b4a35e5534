package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
)

// A pinned copy is made of the files themselves, by the kernel's own file copy,
// while a read transaction pins the moment that is copied. It costs about a
// fifth of the online backup API, which works page by page.
//
// Why the copy is right, by SQLite's locks:
//
// Rollback journal. The read transaction holds a SHARED lock. A writer changes
// the database file only under an EXCLUSIVE lock, which it cannot get while a
// SHARED one is held; until then its changes stay in its own memory and in the
// journal (sqlite.org/lockingv3.html, section 3). So the file does not change,
// and a hot journal was played back before the first read of the transaction
// returned.
//
// WAL. Writers append to the WAL and do not touch the database file. Only a
// checkpoint writes to it, and it backfills no frame beyond the read mark that
// the read transaction holds (sqlite.org/wal.html, "Checkpointing";
// walCheckpoint in wal.c takes the least of all read marks). So each page of
// the copied file is as it was before a backfill, or as it was after one, or
// torn between the two. But every frame that can have been backfilled is in
// the WAL as well, and the WAL cannot be restarted while a read mark in it is
// held. The WAL is copied after the file. When it is replayed from its first
// frame, it overwrites every such page, and its end brings the copy to the last
// commit that it holds completely. That is one moment: the one of the read
// transaction or a later one. A commit that is torn at the end fails its
// checksum and is left out, as after a crash. A commit of a writer that died
// after it had written the commit's last frame, and before it announced it in
// the -shm, is part of the copy, as it would be after a restart, although the
// live database never shows it.
//
// One case is different. When all frames had been backfilled before, the read
// transaction reads the database file alone (it holds WAL_READ_LOCK(0)), and a
// writer may restart the WAL, or truncate it. No frame can be backfilled while
// that lock is held, so the database file does not change. Any single
// generation of the WAL goes with it: the old one repeats what the file has,
// and the new one adds to it. But a WAL that is restarted while it is copied is
// half old and half new in the copy, and the frames of the old half would be
// replayed over newer pages. Each restart changes the salts in the WAL's header
// (sqlite.org/fileformat2.html, "WAL File Format"), and the header is written
// before the first frame. So the copy is good only if the header was the same
// before and after it; otherwise the WAL is copied again. A second restart
// would need the new frames to be backfilled, which the lock prevents, so this
// ends.
//
// The copied file has no -shm. The live database's own is never touched.

// errNoPinnedCopy means that the files cannot be copied directly, and the
// online backup API has to be used instead.
var errNoPinnedCopy = errors.New("no pinned copy here")

// copyPinned copies the files of src to dir: the database to WorkName, and its
// WAL beside it. If it returns errNoPinnedCopy, it has written nothing. If the
// copy is hashed meanwhile, made has the hash, even after an error.
func (c *Capture) copyPinned(ctx context.Context, src *Source, dir *fsat.Dir, made *Copy) error {
	switch src.mode {
	case "wal", "delete", "truncate", "persist", "memory", "off":
	default:
		return errNoPinnedCopy
	}
	live, err := keepDescriptor(src.path, src.id)
	if err != nil {
		return err
	}
	info, err := live.Stat()
	if err != nil {
		return err
	}
	h, err := readHeader(live)
	if err != nil {
		return errNoPinnedCopy // it cannot be read, or a VFS stores it in another form
	}
	hash := c.mayHash(src) && !h.hasChecksums() // Seal changes more than the form then
	dst, err := dir.Create(WorkName, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if hash {
		if made.hash, err = filehash.Follow(ctx, dir, WorkName, markRollbackForm); err != nil {
			return err
		}
	}
	copied, err := c.copyFile(ctx, dst, live, info, 0, made.hash)
	if err != nil {
		return err
	}
	if src.mode == "wal" {
		if err := c.copyWAL(ctx, src, dir, copied); err != nil {
			return err
		}
		return src.checkInPlace()
	}
	if want := src.pages * src.pageSize; copied < want {
		return fmt.Errorf("%w: the database file has %d bytes and should have %d", errdefs.ErrSourceInvalid, copied, want)
	}
	return nil
}

// mayHash reports whether the copy of src should be hashed while it is made.
// That is so if the caller allows it and the copy will probably not change
// afterwards: the frames of a WAL will be folded into it. Where files have no
// inode numbers, nothing could show later that the copy is still the one that
// was hashed.
func (c *Capture) mayHash(src *Source) bool {
	if !c.Hash || runtime.GOMAXPROCS(0) < 2 || src.id.Ino == 0 {
		return false
	}
	wal, err := fsat.Stat(src.path + "-wal")
	return src.mode != "wal" || errors.Is(err, fs.ErrNotExist) || err == nil && wal.Size == 0
}

// copyFile copies src to dst, closes dst, and returns how many bytes there
// were. hash, which may be nil, follows the copy. before is how many bytes of
// the database were copied before src.
func (c *Capture) copyFile(ctx context.Context, dst, src *fsat.File, info fsat.Info, before int64, hash *filehash.Follower) (int64, error) {
	var copier fsat.Copier
	var done int64
	n, err := copier.Copy(ctx, dst, src, info, func(n int64) {
		hash.Advance(n)
		done += n
		c.progress(before+done, before+info.Size)
	})
	if err != nil {
		return n, err
	}
	hash.Done()
	return n, dst.Close()
}

// copyWAL copies one generation of the live WAL. A missing or empty one counts
// as no WAL.
func (c *Capture) copyWAL(ctx context.Context, src *Source, dir *fsat.Dir, copied int64) error {
	const name = WorkName + "-wal"
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		// SQLite takes no locks on the WAL, so opening and closing it drops
		// none.
		wal, err := fsat.OpenFile(src.path + "-wal")
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		n, whole, err := c.copyWALOnce(ctx, wal, dir, name, copied)
		if err != nil || whole {
			return err
		}
		copied += n
		if err := dir.Remove(name, false); err != nil {
			return err
		}
	}
}

// copyWALOnce copies wal to dir/name, closes it, and reports whether the whole
// copy is of one generation.
func (c *Capture) copyWALOnce(ctx context.Context, wal *fsat.File, dir *fsat.Dir, name string, copied int64) (n int64, whole bool, err error) {
	defer wal.Close()
	before, err := readWALHeader(wal)
	if err != nil {
		return 0, false, err
	}
	info, err := wal.Stat()
	if err != nil {
		return 0, false, err
	}
	dst, err := dir.Create(name, 0o600)
	if err != nil {
		return 0, false, err
	}
	defer dst.Close()
	if n, err = c.copyFile(ctx, dst, wal, info, copied, nil); err != nil {
		return n, false, err
	}
	after, err := readWALHeader(wal)
	return n, before == after, err
}

// readWALHeader returns the header of wal, or zeros if it has none yet.
func readWALHeader(wal *fsat.File) (h [walHeaderSize]byte, err error) {
	n, err := wal.ReadAt(h[:], 0)
	if err == io.EOF && n < walHeaderSize {
		return [walHeaderSize]byte{}, nil
	}
	return h, err
}
