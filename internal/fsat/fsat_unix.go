//go:build linux || darwin

package fsat

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is an open directory.
type Dir struct {
	fd     int
	path   string
	locked bool
}

// File is an open regular file. It is a bare descriptor: no poller, no
// finalizer, one system call a method.
type File struct {
	fd     int
	path   string
	locked bool
}

func pathErr(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// retry repeats a call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// mayBeRefusal reports whether err may be the answer of a sandbox that doesn't
// know the call: a seccomp filter returns what its author chose, which was EPERM
// in Docker's profile and is ENOSYS in newer ones (seccomp(2), SECCOMP_RET_ERRNO;
// github.com/moby/moby/pull/42681), and gVisor returns ENOSYS or EINVAL.
func mayBeRefusal(err error) bool {
	switch err {
	case unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EINVAL, unix.EOPNOTSUPP:
		return true
	}
	return false
}

// isRefusal reports whether err is such an answer and not one about a file. probe
// makes the same call with the descriptor -1: wherever the call works at all, that
// fails with EBADF.
func isRefusal(err error, probe func() error) bool {
	return mayBeRefusal(err) && probe() != unix.EBADF
}

// checkName refuses a name that is not one path element, so that a caller's
// mistake cannot make it lead out of its directory.
func checkName(op, dir, name string) error {
	if name == "" || name == "." || name == ".." {
		return pathErr(op, join(dir, name), unix.EINVAL)
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return pathErr(op, join(dir, name), unix.EINVAL)
		}
	}
	return nil
}

// join keeps the name's bytes as they are, where filepath.Join would clean
// them.
func join(dir, name string) string { return dir + string(filepath.Separator) + name }

// OpenDir opens a directory by its path, following symbolic links: the caller
// trusts the path, but not the entries below it.
func OpenDir(path string) (*Dir, error) {
	return openDirAt(unix.AT_FDCWD, path, path, 0)
}

// OpenDir opens the directory name in d and never follows a link.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	if err := checkName("open", d.path, name); err != nil {
		return nil, err
	}
	return openDirAt(d.fd, name, join(d.path, name), unix.O_NOFOLLOW)
}

// Reopen opens the same directory again.
func (d *Dir) Reopen() (*Dir, error) { return openDirAt(d.fd, ".", d.path, 0) }

func openDirAt(at int, name, full string, flags int) (*Dir, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
		return err
	})
	if err != nil {
		return nil, pathErr("open", full, err)
	}
	return &Dir{fd: fd, path: full}, nil
}

// Path returns the path the directory was opened by; it is for messages only.
func (d *Dir) Path() string { return d.path }

// Close releases the lock, if there is one, and closes the directory. A second
// call does nothing.
func (d *Dir) Close() error {
	if d == nil || d.fd < 0 {
		return nil
	}
	fd, locked := d.fd, d.locked
	d.fd, d.locked = -1, false
	return pathErr("close", d.path, closeLocked(fd, locked))
}

// closeLocked closes fd, and releases its flock(2) before if it is locked. A
// lock belongs to the open file description, and close(2) releases it only with
// the last descriptor of that. A process that this one is starting has
// duplicates of all descriptors until its execve(2) closes them, so the lock
// would last longer than the call that took it. LOCK_UN releases it at once,
// for the duplicates as well (flock(2)).
func closeLocked(fd int, locked bool) error {
	if locked {
		_ = flock(fd, unix.LOCK_UN) // close(2) releases it in the end
	}
	return unix.Close(fd)
}

func flock(fd, how int) error {
	err := retry(func() error { return unix.Flock(fd, how) })
	if err == unix.EWOULDBLOCK {
		return ErrLocked
	}
	return err
}

// Stat describes the open directory itself.
func (d *Dir) Stat() (Info, error) { return fstat(d.fd, d.path) }

// Lstat describes the entry name and follows no link.
func (d *Dir) Lstat(name string) (Info, error) {
	if err := checkName("lstat", d.path, name); err != nil {
		return Info{}, err
	}
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return Info{}, pathErr("lstat", join(d.path, name), err)
	}
	return infoOf(&st), nil
}

// Stat describes the file at path, following links. It opens nothing: a
// descriptor of a live database must not be closed by this process.
func Stat(path string) (Info, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Stat(path, &st) }); err != nil {
		return Info{}, pathErr("stat", path, err)
	}
	return infoOf(&st), nil
}

// Access returns an error, which is that of the system, unless this process may
// read the file at path, or write to it if write is set (faccessat(2)). It opens
// nothing.
func Access(path string, write bool) error {
	mode := uint32(unix.R_OK)
	if write {
		mode = unix.W_OK
	}
	err := retry(func() error { return unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS) })
	return pathErr("open", path, err)
}

func fstat(fd int, path string) (Info, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return Info{}, pathErr("fstat", path, err)
	}
	return infoOf(&st), nil
}

func infoOf(st *unix.Stat_t) Info {
	mode := fs.FileMode(st.Mode & 0o777)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	}
	if st.Mode&unix.S_ISUID != 0 {
		mode |= fs.ModeSetuid
	}
	if st.Mode&unix.S_ISGID != 0 {
		mode |= fs.ModeSetgid
	}
	if st.Mode&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	m, c := timeOf(st.Mtim), timeOf(st.Ctim)
	return Info{
		Mode:      mode,
		Size:      st.Size,
		Allocated: st.Blocks * 512,
		Mtime:     m,
		Ctime:     c,
		Dev:       uint64(st.Dev),
		Ino:       uint64(st.Ino),
		Links:     uint64(st.Nlink),
		UID:       int(st.Uid),
		GID:       int(st.Gid),
	}
}

func timeOf(t unix.Timespec) Time { return Time{int64(t.Sec), int64(t.Nsec)} }

// sysMode is the inverse of infoOf for the bits chmod(2) takes.
func sysMode(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		bits |= unix.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		bits |= unix.S_ISVTX
	}
	return bits
}

// Open opens the entry name for reading. It follows no link and does not
// block on a FIFO; the caller looks at Stat before it trusts the type.
func (d *Dir) Open(name string) (*File, error) {
	return d.openFile(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
}

// Create makes the regular file name, which must not exist, and opens it for
// reading and writing.
func (d *Dir) Create(name string, perm fs.FileMode) (*File, error) {
	return d.openFile(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, sysMode(perm))
}

// OpenRW opens the existing regular file name for reading and writing.
func (d *Dir) OpenRW(name string) (*File, error) {
	return d.openFile(name, unix.O_RDWR|unix.O_NONBLOCK, 0)
}

func (d *Dir) openFile(name string, flags int, perm uint32) (*File, error) {
	if err := checkName("open", d.path, name); err != nil {
		return nil, err
	}
	return openAt(d.fd, name, join(d.path, name), flags|unix.O_NOFOLLOW, perm)
}

// OpenFile opens the file at path for reading, following links, without
// blocking on a FIFO.
func OpenFile(path string) (*File, error) {
	return openAt(unix.AT_FDCWD, path, path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
}

func openAt(at int, name, full string, flags int, perm uint32) (*File, error) {
	fd := -1
	open := func() (err error) {
		fd, err = unix.Openat(at, name, flags|unix.O_CLOEXEC, perm)
		return err
	}
	err := retry(open)
	if err == unix.EWOULDBLOCK && isRegular(at, name, flags) {
		// Somebody has a lease on the file and gives it up now (open(2),
		// EWOULDBLOCK): a file server, or File.TryLease.
		flags &^= unix.O_NONBLOCK
		err = retry(open)
	}
	if err != nil {
		return nil, pathErr("open", full, err)
	}
	return &File{fd: fd, path: full}, nil
}

// isRegular reports whether name is a regular file, following links unless
// flags has O_NOFOLLOW.
func isRegular(at int, name string, flags int) bool {
	follow := 0
	if flags&unix.O_NOFOLLOW != 0 {
		follow = unix.AT_SYMLINK_NOFOLLOW
	}
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(at, name, &st, follow) })
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// Mkdir makes the directory name.
func (d *Dir) Mkdir(name string, perm fs.FileMode) error {
	if err := checkName("mkdir", d.path, name); err != nil {
		return err
	}
	err := retry(func() error { return unix.Mkdirat(d.fd, name, sysMode(perm)) })
	return pathErr("mkdir", join(d.path, name), err)
}

// Remove unlinks the file name, or the empty directory name if dir is set.
func (d *Dir) Remove(name string, dir bool) error {
	if err := checkName("remove", d.path, name); err != nil {
		return err
	}
	flags := 0
	if dir {
		flags = unix.AT_REMOVEDIR
	}
	err := retry(func() error { return unix.Unlinkat(d.fd, name, flags) })
	return pathErr("remove", join(d.path, name), err)
}

// Rename moves oldName to newName in dst and replaces nothing: if newName
// exists the error matches fs.ErrExist. The check and the move are one step
// where the system has such a call (Linux renameat2, Darwin renameatx_np), the
// file system supports it, and no sandbox refuses it. Elsewhere a file gets its
// new name by link(2), which replaces nothing either, and then loses the old
// one; what can't be linked, such as a directory, is looked for and then
// renamed, and so is everything on FUSE and network file systems, which keep the
// old name of a file that is open under another one. In between, somebody else can create an empty directory of the new
// name, and only that is replaced (rename(2)); on those, and on a file system
// without hard links, a file.
//
// If a process ends between the two steps of a move of a file, the file has both
// names. Then a later Rename of one to the other completes the move, in either
// direction.
func (d *Dir) Rename(oldName string, dst *Dir, newName string) error {
	if err := checkName("rename", d.path, oldName); err != nil {
		return err
	}
	if err := checkName("rename", dst.path, newName); err != nil {
		return err
	}
	err := retry(func() error { return renameNoReplace(d.fd, oldName, dst.fd, newName) })
	switch err {
	case unix.EINVAL, unix.ENOSYS, unix.ENOTSUP: // the file system may not support it
		err = d.renameInSteps(oldName, dst, newName)
	case unix.EPERM, unix.EACCES:
		if isRefusal(err, func() error { return renameNoReplace(-1, oldName, -1, newName) }) {
			err = d.renameInSteps(oldName, dst, newName)
		}
	}
	if err == unix.EEXIST && d.isHalfMoved(oldName, dst, newName) {
		return d.Remove(oldName, false)
	}
	return pathErr("rename", join(dst.path, newName), err)
}

// renameInSteps is Rename by older calls. It returns a bare error number.
func (d *Dir) renameInSteps(oldName string, dst *Dir, newName string) error {
	err := error(unix.EOPNOTSUPP)
	if !d.isRemote(false) {
		err = retry(func() error { return unix.Linkat(d.fd, oldName, dst.fd, newName, 0) })
	}
	switch err {
	case nil:
		err = retry(func() error { return unix.Unlinkat(d.fd, oldName, 0) })
		if err != nil { // take the new name back
			_ = retry(func() error { return unix.Unlinkat(dst.fd, newName, 0) })
		}
		return err
	case unix.EEXIST:
		return err
	}
	var st unix.Stat_t
	err = retry(func() error { return unix.Fstatat(dst.fd, newName, &st, unix.AT_SYMLINK_NOFOLLOW) })
	switch err {
	case nil:
		return unix.EEXIST
	case unix.ENOENT:
		return retry(func() error { return unix.Renameat(d.fd, oldName, dst.fd, newName) })
	}
	return err
}

// isHalfMoved reports whether the two names are those of one file, in different
// directories: renameInSteps was cut off. In one directory, names that a file
// system doesn't distinguish could look the same.
func (d *Dir) isHalfMoved(oldName string, dst *Dir, newName string) bool {
	from, err := d.Stat()
	if err != nil {
		return false
	}
	to, err := dst.Stat()
	if err != nil || from.SameFile(to) {
		return false
	}
	a, err := d.Lstat(oldName)
	if err != nil {
		return false
	}
	b, err := dst.Lstat(newName)
	return err == nil && !a.Mode.IsDir() && a.SameFile(b) && a.Unchanged(b) && a.Links > 1 && b.Links > 1
}

// Replace moves oldName over newName in dst, replacing a file there.
func (d *Dir) Replace(oldName string, dst *Dir, newName string) error {
	if err := checkName("rename", d.path, oldName); err != nil {
		return err
	}
	if err := checkName("rename", dst.path, newName); err != nil {
		return err
	}
	err := retry(func() error { return unix.Renameat(d.fd, oldName, dst.fd, newName) })
	return pathErr("rename", join(dst.path, newName), err)
}

// Link makes newName in dst another name of the file oldName.
func (d *Dir) Link(oldName string, dst *Dir, newName string) error {
	if err := checkName("link", d.path, oldName); err != nil {
		return err
	}
	if err := checkName("link", dst.path, newName); err != nil {
		return err
	}
	err := retry(func() error { return unix.Linkat(d.fd, oldName, dst.fd, newName, 0) })
	return pathErr("link", join(dst.path, newName), err)
}

// Chown sets the owner and the group of the entry name. It does not follow a
// link.
func (d *Dir) Chown(name string, uid, gid int) error {
	if err := checkName("chown", d.path, name); err != nil {
		return err
	}
	err := retry(func() error { return unix.Fchownat(d.fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) })
	return pathErr("chown", join(d.path, name), err)
}

// Chmod sets the mode of the open directory.
func (d *Dir) Chmod(mode fs.FileMode) error {
	err := retry(func() error { return unix.Fchmod(d.fd, sysMode(mode)) })
	return pathErr("chmod", d.path, err)
}

// Chtimes sets the access and modification time of the entry name to mtime.
func (d *Dir) Chtimes(name string, mtime Time) error {
	ts, err := unix.TimeToTimespec(time.Unix(mtime.Sec, mtime.Nsec))
	if err != nil { // beyond 2038 on a 32-bit system
		return pathErr("chtimes", join(d.path, name), err)
	}
	err = retry(func() error {
		return unix.UtimesNanoAt(d.fd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
	return pathErr("chtimes", join(d.path, name), err)
}

// TryLock takes an exclusive flock(2) on the directory without waiting. It
// lasts until Unlock, Close or the end of the process, whatever way that comes.
// ErrLocked: somebody else has it. Any other error: this file system has no
// such locks.
func (d *Dir) TryLock() error {
	return d.flock(unix.LOCK_EX | unix.LOCK_NB)
}

// TryRLock takes a shared flock(2) on the directory without waiting, with the
// errors of TryLock.
func (d *Dir) TryRLock() error {
	return d.flock(unix.LOCK_SH | unix.LOCK_NB)
}

// Unlock releases the lock.
func (d *Dir) Unlock() error {
	d.locked = false
	return pathErr("flock", d.path, flock(d.fd, unix.LOCK_UN))
}

func (d *Dir) flock(how int) error {
	err := flock(d.fd, how)
	d.locked = d.locked || err == nil
	return pathErr("flock", d.path, err)
}

// TryLock takes an exclusive flock(2) on the file without waiting. It lasts
// until Close or the end of the process, and has the errors of Dir.TryLock.
func (f *File) TryLock() error { return f.flock(unix.LOCK_EX | unix.LOCK_NB) }

// TryRLock takes a shared flock(2) on the file without waiting, as TryLock
// takes an exclusive one.
func (f *File) TryRLock() error { return f.flock(unix.LOCK_SH | unix.LOCK_NB) }

func (f *File) flock(how int) error {
	err := flock(f.fd, how)
	f.locked = f.locked || err == nil
	return pathErr("flock", f.path, err)
}

// Path returns the path the file was opened by; it is for messages only.
func (f *File) Path() string { return f.path }

// Stat describes the open file.
func (f *File) Stat() (Info, error) { return fstat(f.fd, f.path) }

// Close releases the lock, if there is one, and closes the file. A second call
// does nothing.
func (f *File) Close() error {
	if f == nil || f.fd < 0 {
		return nil
	}
	fd, locked := f.fd, f.locked
	f.fd, f.locked = -1, false
	return pathErr("close", f.path, closeLocked(fd, locked))
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var n int
	err := retry(func() (err error) { n, err = unix.Read(f.fd, p); return err })
	if err != nil {
		return 0, pathErr("read", f.path, err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		var n int
		err := retry(func() (err error) { n, err = unix.Pread(f.fd, p[done:], off+int64(done)); return err })
		if err != nil {
			return done, pathErr("read", f.path, err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// Write implements io.Writer.
func (f *File) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		var n int
		err := retry(func() (err error) { n, err = unix.Write(f.fd, p[done:]); return err })
		if err != nil {
			return done, pathErr("write", f.path, err)
		}
		done += n
	}
	return done, nil
}

// WriteAt implements io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		var n int
		err := retry(func() (err error) { n, err = unix.Pwrite(f.fd, p[done:], off+int64(done)); return err })
		if err != nil {
			return done, pathErr("write", f.path, err)
		}
		done += n
	}
	return done, nil
}

// Truncate sets the file's size.
func (f *File) Truncate(size int64) error {
	err := retry(func() error { return unix.Ftruncate(f.fd, size) })
	return pathErr("truncate", f.path, err)
}

// Chmod sets the file's mode, whatever the process's umask is.
func (f *File) Chmod(mode fs.FileMode) error {
	err := retry(func() error { return unix.Fchmod(f.fd, sysMode(mode)) })
	return pathErr("chmod", f.path, err)
}

// entriesByStat describes names by fstatat(2), for systems and file systems
// whose directories do not store types. A name that no longer exists is left
// out.
func (d *Dir) entriesByStat(names []string) ([]Entry, error) {
	entries := make([]Entry, 0, len(names))
	for _, name := range names {
		info, err := d.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, Entry{Name: name, Type: info.Mode.Type(), Ino: info.Ino})
	}
	return entries, nil
}

func sameDevice(a, b *Dir) (bool, error) {
	x, err := a.Stat()
	if err != nil {
		return false, err
	}
	y, err := b.Stat()
	return x.Dev == y.Dev, err
}
