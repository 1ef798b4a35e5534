package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"

	"github.com/atocore/backup/internal/fsat"
)

// A pinned copy takes the database with the kernel's own file copy while a
// read transaction, the pin, keeps the file still. It costs about a fifth of
// the online backup API, whose work is per page.
//
// Why the copy is right, by SQLite's locks:
//
// Rollback journal. The pin holds a SHARED lock. A writer changes the database
// file only under an EXCLUSIVE lock, which it cannot get while a SHARED one is
// held; until then its changes stay in its own memory and in the journal
// (sqlite.org/lockingv3.html, section 3). So the file is still, and a hot
// journal was played back before the pin's first read returned.
//
// WAL. Writers append to the WAL and leave the database file alone. Only a
// checkpoint writes to it, and it backfills no frame beyond the mark that the
// pin holds (sqlite.org/wal.html, "Checkpointing"; walCheckpoint in wal.c takes
// the least of all read marks). So each page of the copied file is as it was
// before a backfill, or after, or torn between; but every frame that can have
// been backfilled stands in the WAL as well, and the WAL cannot be restarted
// while a mark in it is held. Copied after the file and replayed from its
// first frame, it overwrites every such page, and its tail brings the copy to
// the last commit it holds whole: one moment, the pin's or a later one. A
// commit that is torn at the end fails its checksum and is left out, as after
// a crash.
//
// One case is different: when all frames had been backfilled before, the pin
// reads the database file alone (it holds WAL_READ_LOCK(0)) and a writer may
// restart the WAL, or truncate it. No frame can be backfilled while that lock
// is held, so the database file is still; and any single generation of the WAL
// goes with it: the old one repeats what the file has, the new one adds to it.
// But a WAL copied while it is restarted is half old and half new, and the old
// half's frames would be replayed over newer pages. Each restart changes the
// salts in the WAL's header (sqlite.org/fileformat2.html, "WAL File Format"),
// and the header is written before the first frame. So the copy is good only
// if the header was the same before and after; otherwise it is taken again.
// A second restart would need the new frames to be backfilled, which the lock
// prevents, so this ends.
//
// The copied file has no -shm. That of the live database is never touched.

// errNoPinnedCopy means that the online backup has to do.
var errNoPinnedCopy = errors.New("no pinned copy here")

const walHeaderSize = 32

// copyPinned copies the pinned source to dir/workDBName, and its WAL beside
// it.
func (s *settings) copyPinned(ctx context.Context, st *staging, src *pinnedSource, dir *fsat.Dir) error {
	switch src.mode {
	case "wal", "delete", "truncate", "persist", "memory", "off":
	default:
		return errNoPinnedCopy
	}
	live, err := liveHandle(src.path, src.id)
	if err != nil {
		return err
	}
	info, err := live.Stat()
	if err != nil {
		return err
	}
	if header, err := readHeader(live); err != nil || header.pageSize() != src.pageSize {
		return errNoPinnedCopy // encrypted, or kept in another way by a VFS
	}
	wal := src.mode == "wal"
	behind := st
	if !s.mayHashBehind(src) {
		behind = nil
	}
	copied, err := s.copyFile(ctx, behind, dir, workDBName, live, info, 0)
	if err != nil {
		return err
	}
	if wal {
		if err := s.copyWAL(ctx, src, dir, copied); err != nil {
			return err
		}
		return src.inPlace()
	}
	if copied < src.pages*src.pageSize {
		return fmt.Errorf("%w: the database file has %d bytes and should have %d", ErrSourceInvalid, copied, src.pages*src.pageSize)
	}
	return nil
}

// mayHashBehind tells whether the copy is likely to stay as it is, and nothing
// waits for it: under the guard the processors are for copying, and what a WAL
// holds will be folded into the copy. Where files have no inode numbers, nobody
// could tell that the copy is still the one that was hashed.
func (s *settings) mayHashBehind(src *pinnedSource) bool {
	if s.IncludeChroma || runtime.GOMAXPROCS(0) < 2 || src.id.ino == 0 {
		return false
	}
	wal, err := fsat.Stat(src.path + "-wal")
	return src.mode != "wal" || errors.Is(err, fs.ErrNotExist) || err == nil && wal.Size == 0
}

// copyFile copies src to dir/name and returns how many bytes there were. If
// behind is set, it gets the hash of what is copied. before is how many bytes
// the phase has copied already.
func (s *settings) copyFile(ctx context.Context, behind *staging, dir *fsat.Dir, name string, src *fsat.File, info fsat.Info, before int64) (int64, error) {
	dst, err := dir.Create(name, 0o600)
	if err != nil {
		return 0, err
	}
	defer dst.Close()
	var hash *hashBehind
	if behind != nil {
		if hash, err = hashBehindCopy(ctx, dir, name); err != nil {
			return 0, err
		}
		behind.dbHash = hash
	}
	var copier fsat.Copier
	var done int64
	n, err := copier.Copy(ctx, dst, src, info, func(n int64) {
		hash.advance(n)
		done += n
		s.report(Progress{Phase: PhaseDatabase, Path: s.DatabasePath, Bytes: before + done, TotalBytes: before + info.Size})
	})
	if err != nil {
		return n, err
	}
	hash.copyEnded()
	return n, dst.Close()
}

// copyWAL copies one generation of the live WAL. An absent or empty one is no
// WAL at all.
func (s *settings) copyWAL(ctx context.Context, src *pinnedSource, dir *fsat.Dir, copied int64) error {
	const name = workDBName + "-wal"
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		// The WAL carries no locks, so opening and closing it harms nobody.
		wal, err := fsat.OpenFile(src.path + "-wal")
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		n, whole, err := s.copyWALOnce(ctx, wal, dir, name, copied)
		if err != nil || whole {
			return err
		}
		copied += n
		if err := dir.Remove(name, false); err != nil {
			return err
		}
	}
}

// copyWALOnce copies wal, closes it, and tells whether the copy is of one
// generation.
func (s *settings) copyWALOnce(ctx context.Context, wal *fsat.File, dir *fsat.Dir, name string, copied int64) (n int64, whole bool, err error) {
	defer wal.Close()
	before, err := readWALHeader(wal)
	if err != nil {
		return 0, false, err
	}
	info, err := wal.Stat()
	if err != nil {
		return 0, false, err
	}
	if n, err = s.copyFile(ctx, nil, dir, name, wal, info, copied); err != nil {
		return n, false, err
	}
	after, err := readWALHeader(wal)
	return n, before == after, err
}

// readWALHeader gives the header, or zeros if there is none yet.
func readWALHeader(wal *fsat.File) (h [walHeaderSize]byte, err error) {
	n, err := wal.ReadAt(h[:], 0)
	if err == io.EOF && n < walHeaderSize {
		return [walHeaderSize]byte{}, nil
	}
	return h, err
}
