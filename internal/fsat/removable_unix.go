//go:build linux || darwin

package fsat

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The reasons why an entry cannot be removed although the permissions of its
// directory allow it. They match fs.ErrPermission, as the error of the system
// does.
var (
	errImmutable  error = refusal("it has the attribute immutable (" + clearImmutable + " takes that away)")
	errAppendOnly error = refusal("it has the attribute append-only (" + clearAppendOnly + " takes that away)")
	errSticky     error = refusal("it belongs to another user, and its directory is sticky")
)

type refusal string

func (r refusal) Error() string { return string(r) }

func (r refusal) Unwrap() error { return syscall.EPERM }

// CheckRemovable returns an error for an entry that RemoveTree could not remove,
// if it sees one in the directory name or below it, before anything is removed:
// one that is immutable or append-only, belongs to another user in a sticky
// directory, lies in a directory in which this process must not write or that is
// read-only, or is a mount point. That none is seen promises nothing: a network
// file system knows more than it shows. The error is an *fs.PathError.
func (d *Dir) CheckRemovable(ctx context.Context, name string) error {
	parent, err := d.Stat()
	if err != nil {
		return err
	}
	info, err := d.Lstat(name)
	if err != nil {
		return err
	}
	c := removalCheck{uid: os.Geteuid(), overrides: overridesOwner()}
	return c.entry(ctx, d, parent, Entry{Name: name, Type: info.Mode.Type()})
}

// CheckAttributes returns an error for the directory itself, for the entry name in
// it, which need not exist, or for anything below that, if it is immutable or
// append-only, so that it cannot be renamed or removed. If name is empty, all
// entries are looked at. The error is an *fs.PathError.
func (d *Dir) CheckAttributes(ctx context.Context, name string) error {
	if hindrance, err := d.hindrance("."); err != nil {
		return err
	} else if isAttribute(hindrance) {
		return pathErr("change", d.path, hindrance)
	}
	if name == "" {
		return d.checkAllAttributes(ctx)
	}
	info, err := d.Lstat(name)
	if err != nil {
		return withoutMissing(err)
	}
	return d.checkAttributes(ctx, Entry{Name: name, Type: info.Mode.Type()})
}

func (d *Dir) checkAllAttributes(ctx context.Context) error {
	entries, err := d.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := d.checkAttributes(ctx, entry); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) checkAttributes(ctx context.Context, entry Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	hindrance, err := d.hindrance(entry.Name)
	if err != nil {
		return withoutMissing(err)
	}
	if isAttribute(hindrance) {
		return pathErr("replace", join(d.path, entry.Name), hindrance)
	}
	if !entry.Type.IsDir() || hindrance != nil { // a mount point has its own rules
		return nil
	}
	dir, err := d.OpenDir(entry.Name)
	if err != nil {
		return withoutMissing(err)
	}
	defer dir.Close()
	return dir.checkAllAttributes(ctx)
}

func isAttribute(hindrance error) bool {
	return hindrance == errImmutable || hindrance == errAppendOnly
}

func withoutMissing(err error) error {
	if IsMissing(err) {
		return nil
	}
	return err
}

// A removalCheck knows what does not change while a tree is looked at.
type removalCheck struct {
	uid       int
	overrides bool // this process may do what an owner may
}

// entry checks one entry of dir, which parent describes, and what is below it.
func (c *removalCheck) entry(ctx context.Context, dir *Dir, parent Info, entry Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	hindrance, err := dir.hindrance(entry.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case hindrance == nil && parent.Mode&fs.ModeSticky != 0 && parent.UID != c.uid && !c.overrides:
		// check_sticky in Linux's fs/namei.c; unlink(2), EPERM.
		info, err := dir.Lstat(entry.Name)
		if err == nil && info.UID != c.uid {
			hindrance = errSticky
		}
	}
	if hindrance != nil {
		return pathErr("remove", join(dir.path, entry.Name), hindrance)
	}
	if !entry.Type.IsDir() {
		return nil
	}
	return c.below(ctx, dir, entry.Name)
}

// below checks what is in the directory name in parent.
func (c *removalCheck) below(ctx context.Context, parent *Dir, name string) error {
	dir, err := parent.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	info, err := dir.Stat()
	if err != nil {
		return err
	}
	entries, err := dir.ReadDir()
	if err != nil || len(entries) == 0 {
		return err
	}
	// RemoveTree makes a directory writable that this process owns.
	err = retry(func() error { return unix.Faccessat(dir.fd, ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS) })
	mayChange := (info.UID == c.uid || c.overrides) && info.Mode.Perm()&0o700 != 0o700
	if err != nil && (err != unix.EACCES || !mayChange) {
		return pathErr("remove from", dir.path, err)
	}
	for _, entry := range entries {
		if err := c.entry(ctx, dir, info, entry); err != nil {
			return err
		}
	}
	return nil
}
