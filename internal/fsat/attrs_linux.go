package fsat

import (
	"bytes"
	"errors"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The attributes that hold a POSIX ACL (acl(5)).
const (
	AccessACL  = "system.posix_acl_access"
	DefaultACL = "system.posix_acl_default"
)

// isKeptAttribute reports whether a file that takes the place of another one
// gets this extended attribute of it (xattr(7)): what users and administrators
// set, the ACLs, and the label of SELinux or Smack. security.capability is left
// out, because it would give another program the rights that were given to the
// old one; security.ima and security.evm sign the old content; and trusted.*
// describes the file itself, to overlayfs for example.
func isKeptAttribute(name string) bool {
	return strings.HasPrefix(name, "user.") || name == AccessACL || name == DefaultACL ||
		name == "security.selinux" || name == "security.SMACK64"
}

// attributePath returns a path of the entry name that leads through the open
// directory, so that no link is followed: no call takes a directory's descriptor
// and the name of an attribute before Linux 6.13 (getxattrat(2)). The file itself
// must not be opened, since it may be a live database.
func (d *Dir) attributePath(name string) string {
	return "/proc/self/fd/" + strconv.Itoa(d.fd) + "/" + name
}

// Attributes returns the extended attributes of the entry name that a file which
// replaces it should have, ACLs among them. The name "." is that of the directory
// itself. It follows no link and opens nothing. Where the file system has no
// attributes it returns none.
func (d *Dir) Attributes(name string) (map[string]string, error) {
	if err := checkName("listxattr", d.path, name); err != nil && name != "." {
		return nil, err
	}
	path := d.attributePath(name)
	list, err := readAttribute(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if err == unix.EOPNOTSUPP || err == nil && len(list) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, pathErr("listxattr", join(d.path, name), err)
	}
	attrs := make(map[string]string)
	for _, text := range bytes.Split(list, []byte{0}) {
		attr := string(text)
		if !isKeptAttribute(attr) {
			continue
		}
		value, err := readAttribute(func(buf []byte) (int, error) { return unix.Lgetxattr(path, attr, buf) })
		if err == unix.ENODATA || err == unix.EOPNOTSUPP {
			continue
		}
		if err != nil {
			return nil, pathErr("getxattr "+attr, join(d.path, name), err)
		}
		attrs[attr] = string(value)
	}
	return attrs, nil
}

// readAttribute calls read with a buffer that is large enough.
func readAttribute(read func([]byte) (int, error)) ([]byte, error) {
	const largest = 64 << 10 // XATTR_LIST_MAX and XATTR_SIZE_MAX in linux/limits.h
	buf := make([]byte, 256)
	n := 0
	for {
		err := retry(func() (err error) { n, err = read(buf); return err })
		switch {
		case err == unix.ERANGE && len(buf) < largest:
			buf = make([]byte, largest)
		case err != nil:
			return nil, err
		default:
			return buf[:n], nil
		}
	}
}

// SetAttribute sets an extended attribute of the entry name. It follows no link
// and opens nothing.
func (d *Dir) SetAttribute(name, attr, value string) error {
	if err := checkName("setxattr", d.path, name); err != nil {
		return err
	}
	path := d.attributePath(name)
	err := retry(func() error { return unix.Lsetxattr(path, attr, []byte(value), 0) })
	return pathErr("setxattr "+attr, join(d.path, name), err)
}

// RemoveAttribute removes an extended attribute of the entry name, if it has it.
func (d *Dir) RemoveAttribute(name, attr string) error {
	if err := checkName("removexattr", d.path, name); err != nil {
		return err
	}
	path := d.attributePath(name)
	err := retry(func() error { return unix.Lremovexattr(path, attr) })
	if err == unix.ENODATA || err == unix.EOPNOTSUPP {
		return nil
	}
	return pathErr("removexattr "+attr, join(d.path, name), err)
}

// ChmodEntry sets the mode of the entry name, a file or a directory. It follows
// no link.
func (d *Dir) ChmodEntry(name string, mode fs.FileMode) error {
	if err := checkName("chmod", d.path, name); err != nil {
		return err
	}
	info, err := d.Lstat(name)
	if err != nil {
		return err
	}
	if info.Mode&fs.ModeSymlink != 0 {
		return pathErr("chmod", join(d.path, name), unix.ELOOP)
	}
	err = retry(func() error { return unix.Fchmodat(d.fd, name, sysMode(mode), 0) })
	return pathErr("chmod", join(d.path, name), err)
}

// CheckWrite returns an error if it can be told that this process may not write
// to the file at path or, if it is a directory, create and remove anything in it:
// syscall.EROFS for a read-only mount, syscall.EPERM for a file that is immutable
// or append-only (chattr(1)), fs.ErrPermission for the mode. It opens nothing.
func CheckWrite(path string) error {
	var st unix.Statfs_t
	err := retry(func() error { return unix.Statfs(path, &st) })
	switch {
	case err == unix.ENOENT:
		return pathErr("statfs", path, err)
	case err == nil && st.Flags&unix.ST_RDONLY != 0:
		return pathErr("write", path, unix.EROFS)
	}
	if st, err := statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE); err == nil && attributeOf(st) != nil {
		return pathErr("write", path, attributeOf(st))
	}
	err = retry(func() error { return unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS) })
	switch err {
	case unix.EACCES, unix.EROFS, unix.ENOENT, unix.ENOTDIR:
		return pathErr("write", path, err)
	}
	return nil // anything else may be about the call and not about the file
}

// CheckMove returns an error if it can be told that the entry name can't be
// renamed or removed, whatever the directory's mode is: syscall.EBUSY for a mount
// point, syscall.EPERM for a file that is immutable or append-only. It follows no
// link and opens nothing.
func (d *Dir) CheckMove(name string) error {
	if err := checkName("rename", d.path, name); err != nil {
		return err
	}
	st, err := statx(d.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil && !errors.Is(err, errNoStatx):
		return pathErr("statx", join(d.path, name), err)
	case err != nil || st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0:
		if mounted, err := d.IsMountPoint(name); err != nil || !mounted {
			return err
		}
		return pathErr("rename", join(d.path, name), unix.EBUSY)
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return pathErr("rename", join(d.path, name), unix.EBUSY)
	case attributeOf(st) != nil:
		return pathErr("rename", join(d.path, name), attributeOf(st))
	}
	return nil
}

// attributeOf returns what keeps a file with these attributes from being changed,
// or nil (may_delete in fs/namei.c).
func attributeOf(st *unix.Statx_t) error {
	switch {
	case st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0:
		return errImmutable
	case st.Attributes&unix.STATX_ATTR_APPEND != 0:
		return errAppendOnly
	}
	return nil
}
