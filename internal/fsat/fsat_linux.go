package fsat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func renameNoReplace(oldFD int, oldName string, newFD int, newName string) error {
	return unix.Renameat2(oldFD, oldName, newFD, newName, unix.RENAME_NOREPLACE)
}

// ReadDir returns the directory's entries in path order (see sortEntries).
// It reads the directory from its beginning at each call.
func (d *Dir) ReadDir() ([]Entry, error) {
	if err := retry(func() error { _, err := unix.Seek(d.fd, 0, 0); return err }); err != nil {
		return nil, pathErr("readdir", d.path, err)
	}
	var entries []Entry
	buf := make([]byte, 32<<10)
	for {
		var n int
		err := retry(func() (err error) { n, err = unix.Getdents(d.fd, buf); return err })
		if err != nil {
			return nil, pathErr("readdir", d.path, err)
		}
		if n == 0 {
			break
		}
		if entries, err = d.parseDirents(buf[:n], entries); err != nil {
			return nil, err
		}
	}
	sortEntries(entries)
	return entries, nil
}

// parseDirents reads struct linux_dirent64 as getdents64(2) lays it out:
// ino (8), offset (8), record length (2), type (1), NUL-terminated name.
func (d *Dir) parseDirents(buf []byte, entries []Entry) ([]Entry, error) {
	const header = 19
	for len(buf) >= header {
		ino := binary.NativeEndian.Uint64(buf)
		length := int(binary.NativeEndian.Uint16(buf[16:]))
		kind := buf[18]
		if length < header || length > len(buf) {
			return nil, pathErr("readdir", d.path, unix.EIO)
		}
		name, _, _ := bytes.Cut(buf[header:length], []byte{0})
		buf = buf[length:]
		if s := string(name); s != "." && s != ".." {
			entry := Entry{Name: s, Ino: ino}
			switch kind {
			case unix.DT_REG:
			case unix.DT_DIR:
				entry.Type = fs.ModeDir
			case unix.DT_LNK:
				entry.Type = fs.ModeSymlink
			case unix.DT_FIFO:
				entry.Type = fs.ModeNamedPipe
			case unix.DT_SOCK:
				entry.Type = fs.ModeSocket
			case unix.DT_CHR:
				entry.Type = fs.ModeDevice | fs.ModeCharDevice
			case unix.DT_BLK:
				entry.Type = fs.ModeDevice
			default: // DT_UNKNOWN: the file system does not return types
				known, err := d.entriesByStat([]string{s})
				if err != nil {
					return nil, err
				}
				entries = append(entries, known...)
				continue
			}
			entries = append(entries, entry)
		}
	}
	return entries, nil
}

// Sync makes the file's data and metadata durable. It is not repeated when a
// signal interrupts it, and no other sync here is: the call may have taken the
// one report of a lost write that there is, and a second one would succeed.
func (f *File) Sync() error {
	return pathErr("fsync", f.path, unix.Fsync(f.fd))
}

// Descriptor returns the number of the file's descriptor, to identify it.
func (f *File) Descriptor() int { return f.fd }

// DescriptorLimit returns how many descriptors this process may have open
// (RLIMIT_NOFILE in getrlimit(2)).
func DescriptorLimit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // the usual one
	}
	return int(min(limit.Cur, 1<<30))
}

// A Lock is a record lock of fcntl(2) on a part of a file.
type Lock struct {
	Exclusive bool
	// PID is the process that holds the lock. It is 0 for a process of another
	// PID namespace, and -1 for a lock that belongs to an open file description.
	PID int
}

// LockOf returns a lock that somebody else holds on one of the n bytes at off,
// and whether there is one. Locks of this process do not count, except those
// that belong to an open file description (fcntl(2), F_GETLK).
func (f *File) LockOf(off, n int64) (lock Lock, found bool, err error) {
	asked := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: off, Len: n}
	err = retry(func() error { return unix.FcntlFlock(uintptr(f.fd), unix.F_GETLK, &asked) })
	if err != nil {
		return Lock{}, false, pathErr("fcntl", f.path, err)
	}
	return Lock{Exclusive: asked.Type == unix.F_WRLCK, PID: int(asked.Pid)}, asked.Type != unix.F_UNLCK, nil
}

// TryLease takes a write lease on the file, which must be open for reading
// only. While it lasts, nobody else has the file open, in whatever PID
// namespace, and whoever opens it waits; it ends when the file is closed.
// ErrLocked: somebody else has the file open, or this process has through
// another descriptor that it opened. Any other error: the file system has no
// leases, a sandbox refuses them, or the file belongs to another user and this
// process lacks CAP_LEASE (fcntl(2), "Leases").
func (f *File) TryLease() error {
	err := retry(func() error {
		_, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETLEASE, unix.F_WRLCK)
		return err
	})
	if err == unix.EAGAIN {
		return ErrLocked
	}
	return pathErr("fcntl", f.path, err)
}

// IsRemote reports whether the file at path is on a file system whose files are
// another system's or another program's: a network file system or FUSE. It
// returns true if that cannot be determined. It opens nothing.
func IsRemote(path string) bool {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(path, &st) }); err != nil {
		return true
	}
	return isRemote(&st)
}

// isRemote is IsRemote for what is in d. It returns unknown if that cannot be
// determined, as in a sandbox.
func (d *Dir) isRemote(unknown bool) bool {
	var st unix.Statfs_t
	err := retry(func() error { return unix.Fstatfs(d.fd, &st) })
	if err != nil {
		return unknown
	}
	return isRemote(&st)
}

func isRemote(st *unix.Statfs_t) bool {
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC,
		unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_FS_MAGIC, unix.AFS_SUPER_MAGIC, unix.CODA_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC:
		return true
	}
	return false
}

// IsUnwritable reports whether nobody can change the file at path, as long as
// its file system stays as it is: it is local and read-only, wherever it is
// mounted. A mount that alone is read-only shows what is written through another
// one. If that cannot be determined, IsUnwritable returns false.
func IsUnwritable(path string) bool {
	var fsinfo unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(path, &fsinfo) }); err != nil || fsinfo.Flags&unix.ST_RDONLY == 0 || IsRemote(path) {
		return false
	}
	st, err := statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID)
	if err != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		return false
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	// 36 35 98:0 /root /mount ro,noatime master:1 - ext3 /dev/root ro,errors=continue
	// (proc_pid_mountinfo(5)): the options after the dash are the file system's.
	for line := range strings.Lines(string(mounts)) {
		if id, rest, _ := strings.Cut(line, " "); id == strconv.FormatUint(st.Mnt_id, 10) {
			_, rest, _ = strings.Cut(rest, " - ")
			fields := strings.Fields(rest)
			return len(fields) == 3 && slices.Contains(strings.Split(fields[2], ","), "ro")
		}
	}
	return false
}

// StartWriteback asks the kernel to start writing dirty pages [off, off+n)
// and does not wait. It promises nothing: Sync does.
func (f *File) StartWriteback(off, n int64) {
	_ = unix.SyncFileRange(f.fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// WaitWriteback waits until [off, off+n) has been handed to the device. A
// caller that can be cancelled uses it piecemeal so that the Sync after it is
// short. Its error is final: a lost write that it reports, Sync does not
// report again (file_fdatawait_range in Linux's mm/filemap.c). Where a sandbox
// refuses the call, WaitWriteback does nothing: Sync waits for everything.
func (f *File) WaitWriteback(off, n int64) error {
	wait := func(fd int) error {
		return unix.SyncFileRange(fd, off, n,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}
	// EPERM can also be the report of a lost write, as a server or a FUSE program
	// returns it.
	err := wait(f.fd)
	if isRefusal(err, func() error { return wait(-1) }) {
		return nil
	}
	return pathErr("sync_file_range", f.path, err)
}

// Sync makes the directory's entries durable.
//
// XFS answers that a directory is synced when it has shut down, after a failed
// write of its log, and dropped the directory's changes (xfs_dir_fsync in Linux's
// fs/xfs/xfs_file.c asks only whether changes are pending). It lets no file be
// opened any more then, so the answer counts if that can be done afterwards.
func (d *Dir) Sync() error {
	if err := unix.Fsync(d.fd); err != nil {
		return pathErr("fsync", d.path, err)
	}
	again, err := d.Reopen()
	if err != nil {
		return err
	}
	return again.Close()
}

// CanSyncFS reports whether SyncFS works here: a sandbox may refuse it. A FUSE
// server is not told of it, but of an fsync (fuse_sync_fs in Linux's
// fs/fuse/inode.c), so it would make nothing durable there, and network file
// systems are not trusted with it either.
// CanSyncFS is asked before a SyncFS and not answered by one, because an error of
// that counts as a lost write whatever it is.
func (d *Dir) CanSyncFS() bool { return !d.isRemote(true) && unix.Syncfs(-1) == unix.EBADF }

// SyncFS makes everything on the directory's file system durable. It reports
// a lost write only if the directory was opened before that write began
// (Linux keeps one error cursor per open file: Documentation/filesystems/vfs.rst,
// "Handling errors during writeback").
func (d *Dir) SyncFS() error {
	return pathErr("syncfs", d.path, unix.Syncfs(d.fd))
}

// Space returns how many bytes and inodes a caller without privileges may still
// use on the directory's file system, and whether files there can share
// blocks (a copy by cloning needs no space). What the file system does not say is
// -1: it counts no inodes, or it reports sizes of 0, as FUSE servers without
// statfs do. Some FUSE servers report many inodes and none free, and create files
// all the same, so that counts as no answer either.
func (d *Dir) Space() (free int64, inodes int64, clones bool, err error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(d.fd, &st) }); err != nil {
		return 0, 0, false, pathErr("statfs", d.path, err)
	}
	free, inodes = -1, -1
	if st.Bsize > 0 && st.Blocks > 0 {
		free = int64(min(st.Bavail, 1<<62/uint64(st.Bsize))) * int64(st.Bsize)
	}
	if st.Files > 0 && (st.Ffree > 0 || uint32(st.Type) != unix.FUSE_SUPER_MAGIC) {
		inodes = int64(min(st.Ffree, 1<<62))
	}
	switch uint32(st.Type) {
	case unix.BTRFS_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, 0xca451a4e /* bcachefs */, zfsMagic, unix.OVERLAYFS_SUPER_MAGIC:
		clones = true
	}
	return free, inodes, clones, nil
}

// SameMount reports whether a rename can move entries from a to b: they are on
// one file system and reached through one mount, which a bind mount is not
// (rename(2), EXDEV).
func SameMount(a, b *Dir) (bool, error) {
	x, err := statx(a.fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID)
	if errors.Is(err, errNoStatx) {
		return sameMountWithoutStatx(a, b)
	}
	if err != nil {
		return false, pathErr("statx", a.path, err)
	}
	y, err := statx(b.fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID)
	if err != nil {
		return false, pathErr("statx", b.path, err)
	}
	return sameMount(x, y), nil
}

func sameMount(x, y *unix.Statx_t) bool {
	known := x.Mask&y.Mask&unix.STATX_MNT_ID != 0
	return x.Dev_major == y.Dev_major && x.Dev_minor == y.Dev_minor && (!known || x.Mnt_id == y.Mnt_id)
}

// sameMountWithoutStatx is SameMount by /proc; without that, a bind mount of the
// same file system isn't seen.
func sameMountWithoutStatx(a, b *Dir) (bool, error) {
	if same, err := sameDevice(a, b); err != nil || !same {
		return false, err
	}
	x, y := mountOf(a.fd), mountOf(b.fd)
	return x == "" || y == "" || x == y, nil
}

// IsMountPoint reports whether something is mounted on the entry name, which
// may be a file or a directory and is not followed if it is a link. A kernel
// that does not mark mount points (STATX_ATTR_MOUNT_ROOT, Linux 5.8) finds only
// those of another file system. Without statx(2) the numbers of the mounts are
// compared, as /proc has them. The error matches fs.ErrNotExist if there is no
// such entry.
func (d *Dir) IsMountPoint(name string) (bool, error) {
	_, mounted, err := d.Identify(name)
	return mounted, err
}

// Identify returns which file the entry name is, which it does not open, and what
// IsMountPoint returns.
func (d *Dir) Identify(name string) (id ID, mounted bool, err error) {
	if err := checkName("statx", d.path, name); err != nil {
		return ID{}, false, err
	}
	entry, err := statx(d.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_INO|unix.STATX_MNT_ID)
	if errors.Is(err, errNoStatx) {
		return d.identifyWithoutStatx(name)
	}
	if err != nil {
		return ID{}, false, pathErr("statx", join(d.path, name), err)
	}
	id = ID{Dev: unix.Mkdev(entry.Dev_major, entry.Dev_minor), Ino: entry.Ino}
	if entry.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return id, entry.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	own, err := statx(d.fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID)
	if err != nil {
		return ID{}, false, pathErr("statx", d.path, err)
	}
	return id, !sameMount(entry, own), nil
}

// The commands that take attributes away, for messages.
const (
	clearImmutable  = "chattr -i"
	clearAppendOnly = "chattr -a"
)

// hindrance returns what keeps everybody from removing the entry name, or nil.
// Where statx(2) is missing, or the file system has no attributes, it finds
// mount points only.
func (d *Dir) hindrance(name string) (hindrance, err error) {
	st, err := statx(d.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0)
	if err == nil {
		switch {
		case attributeOf(st) != nil:
			return attributeOf(st), nil
		case st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0:
			return mountHindrance(st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0), nil
		}
	} else if !errors.Is(err, errNoStatx) {
		return nil, pathErr("statx", join(d.path, name), err)
	}
	if name == "." { // it is not told from the directory above, and may be mounted
		return nil, nil
	}
	mounted, err := d.IsMountPoint(name)
	return mountHindrance(mounted), err
}

func mountHindrance(mounted bool) error {
	if mounted {
		return errMountPoint
	}
	return nil
}

// overridesOwner reports whether this process may do what only the owner of a
// file may (CAP_FOWNER in capabilities(7)).
func overridesOwner() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_FOWNER) != 0
}

// identifyWithoutStatx is Identify by lstat(2) and /proc. The device decides where
// /proc has no numbers of mounts: on an overlay of two file systems a file has the
// device of its layer.
func (d *Dir) identifyWithoutStatx(name string) (id ID, mounted bool, err error) {
	info, err := d.Lstat(name)
	if err != nil {
		return ID{}, false, err
	}
	own, err := d.Stat()
	if err != nil {
		return ID{}, false, err
	}
	fd, err := openPath(d.fd, name, unix.O_NOFOLLOW)
	if err != nil {
		return ID{}, false, pathErr("open", join(d.path, name), err)
	}
	defer unix.Close(fd)
	if x, y := mountOf(d.fd), mountOf(fd); x != "" && y != "" {
		return info.ID(), x != y, nil
	}
	return info.ID(), info.Dev != own.Dev, nil
}

// mountOf returns the number of the mount through which a descriptor was opened,
// or "" if /proc doesn't have it.
func mountOf(fd int) string { return fdInfo("self", strconv.Itoa(fd), "mnt_id") }

// fdInfo returns a field of what /proc says about a descriptor of a process, or
// "" (proc_pid_fdinfo(5): mnt_id since Linux 3.15, ino since 5.14). No server is
// asked for it.
func fdInfo(pid, fd, field string) string {
	data, err := os.ReadFile("/proc/" + pid + "/fdinfo/" + fd)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// IsOpenAs reports whether the descriptor fd of a process refers to the file id,
// which is at path, as far as this process may see that. It opens nothing.
//
// No server is asked for the file: on a network file system whose server doesn't
// answer, stat(2) can wait for ever (AT_STATX_DONT_SYNC in statx(2)). The
// attributes that might be out of date are not even asked for. Without statx(2),
// stat(2) is asked only about a descriptor that has the inode number of the file
// in /proc, or that has none there.
func IsOpenAs(pid int, fd string, path string, id ID) bool {
	process := strconv.Itoa(pid)
	link := "/proc/" + process + "/fd/" + fd // leads to the open file itself
	st, err := statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0)
	if err == nil {
		return ID{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino} == id
	}
	if !errors.Is(err, errNoStatx) {
		return false
	}
	if ino := fdInfo(process, fd, "ino"); ino != "" {
		if own := inodeInProc(path, id); own != "" && own != ino {
			return false
		}
	}
	info, err := Stat(link)
	return err == nil && info.ID() == id
}

// inodeInProc returns the inode number that /proc has for descriptors of the file
// id at path, or "". On a stacked file system it may differ from that of stat(2).
func inodeInProc(path string, id ID) string {
	fd, err := openPath(unix.AT_FDCWD, path, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	if info, err := fstat(fd, path); err != nil || info.ID() != id {
		return ""
	}
	return fdInfo("self", strconv.Itoa(fd), "ino")
}

// openPath opens a file with O_PATH, by which nothing is opened: closing the
// descriptor drops no lock (filp_flush in Linux's fs/open.c).
func openPath(at int, name string, flags int) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Openat(at, name, unix.O_PATH|unix.O_CLOEXEC|flags, 0)
		return err
	})
	return fd, err
}

// errNoStatx is returned by statx where the call may be missing or refused by a
// sandbox. Its errors about a file are those of older calls too, so these decide.
var errNoStatx = errors.New("no statx")

func statx(fd int, name string, flags, mask int) (*unix.Statx_t, error) {
	st := new(unix.Statx_t)
	err := retry(func() error { return unix.Statx(fd, name, flags, mask, st) })
	if mayBeRefusal(err) {
		return nil, errNoStatx
	}
	return st, err
}
