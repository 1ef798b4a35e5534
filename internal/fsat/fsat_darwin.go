package fsat

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

func renameNoReplace(oldFD int, oldName string, newFD int, newName string) error {
	return unix.RenameatxNp(oldFD, oldName, newFD, newName, unix.RENAME_EXCL)
}

// ReadDir returns the directory's entries in path order (see sortEntries).
// It reads the directory from its beginning at each call.
func (d *Dir) ReadDir() ([]Entry, error) {
	again, err := openDirAt(d.fd, ".", d.path, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(again.fd), d.path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	entries, err := d.entriesByStat(names)
	if err != nil {
		return nil, err
	}
	sortEntries(entries)
	return entries, nil
}

// Sync makes the file's data and metadata durable. fsync(2) does not flush
// the drive's cache on this system; F_FULLFSYNC does (Apple, fsync(2)).
func (f *File) Sync() error {
	return pathErr("fsync", f.path, fullSync(f.fd))
}

func fullSync(fd int) error {
	// Not repeated when interrupted: that could hide a lost write.
	_, err := unix.FcntlInt(uintptr(fd), unix.F_FULLFSYNC, 0)
	if err == unix.ENOTSUP || err == unix.EINVAL {
		err = unix.Fsync(fd)
	}
	return err
}

// StartWriteback is not supported on this platform and does nothing.
func (f *File) StartWriteback(off, n int64) {}

// WaitWriteback is not supported on this platform and does nothing.
func (f *File) WaitWriteback(off, n int64) error { return nil }

// Sync makes the directory's entries durable.
func (d *Dir) Sync() error {
	return pathErr("fsync", d.path, fullSync(d.fd))
}

// isRemote always returns false on this platform.
func (d *Dir) isRemote(bool) bool { return false }

// CanSyncFS reports whether SyncFS works here. It returns false on this platform.
func (d *Dir) CanSyncFS() bool { return false }

// SyncFS is not supported on this platform.
func (d *Dir) SyncFS() error { return pathErr("syncfs", d.path, unix.ENOTSUP) }

// Space returns how many bytes and inodes a caller without privileges may still
// use on the directory's file system, or -1 where it does not say. clones is
// always true, although Copy makes no clones here: APFS frees what it calls
// purgeable when it needs space, so a refusal because of these numbers could be
// wrong.
func (d *Dir) Space() (free int64, inodes int64, clones bool, err error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(d.fd, &st) }); err != nil {
		return 0, 0, false, pathErr("statfs", d.path, err)
	}
	free, inodes = -1, -1 // what the file system does not say
	if st.Bsize > 0 && st.Blocks > 0 {
		free = int64(st.Bavail) * int64(st.Bsize)
	}
	if st.Files > 0 {
		inodes = int64(st.Ffree)
	}
	return free, inodes, true, nil
}

// A Copier copies file contents. It may be used by several goroutines.
type Copier struct{}

// Copy fills dst, which is new and empty, with the first size bytes of src by
// reading and writing. It returns how many bytes it could copy; fewer than
// size means that src became shorter.
func (c *Copier) Copy(ctx context.Context, dst, src *File, info Info, done func(int64)) (int64, error) {
	return copyReadWrite(ctx, dst, src, 0, info.Size, done)
}

func (c *Copier) mayClone() bool { return false }

// SameMount reports whether a and b have the same device number, so that a rename
// can move entries from a to b.
func SameMount(a, b *Dir) (bool, error) { return sameDevice(a, b) }

// IsMountPoint always returns false on this platform: a single file that is a
// mount point isn't noticed. A directory is, by its device number (SameMount).
func (d *Dir) IsMountPoint(name string) (bool, error) { return false, nil }

// The commands that take attributes away, for messages.
const (
	clearImmutable  = "chflags nouchg,noschg"
	clearAppendOnly = "chflags nouappnd,nosappnd"
)

// The flags of chflags(2) that keep an entry from being removed (sys/stat.h).
const (
	flagImmutable  = 0x2 | 0x20000 // UF_IMMUTABLE, SF_IMMUTABLE
	flagAppendOnly = 0x4 | 0x40000 // UF_APPEND, SF_APPEND
)

// hindrance returns what keeps everybody from removing the entry name, or nil.
func (d *Dir) hindrance(name string) (hindrance, err error) {
	var st unix.Stat_t
	err = retry(func() error { return unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	switch {
	case err != nil:
		return nil, pathErr("lstat", join(d.path, name), err)
	case st.Flags&flagImmutable != 0:
		return errImmutable, nil
	case st.Flags&flagAppendOnly != 0:
		return errAppendOnly, nil
	}
	return nil, nil
}

// overridesOwner reports whether this process may do what only the owner of a
// file may.
func overridesOwner() bool { return os.Geteuid() == 0 }

// IsUnwritable always returns false on this platform.
func IsUnwritable(path string) bool { return false }

// Identify returns which file the entry name is, which it does not open, and what
// IsMountPoint returns.
func (d *Dir) Identify(name string) (id ID, mounted bool, err error) {
	info, err := d.Lstat(name)
	return info.ID(), false, err
}
