package filetree

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/atocore/backup/internal/fsat"
)

// An Owner is the user and the group that a file belongs to, by their numbers.
type Owner struct{ UID, GID int }

// What a Dresser could not keep.
const (
	OwnerNotKept      = "owner_not_kept"
	AttributesNotKept = "attributes_not_kept"
)

// A Dresser gives new files the owner and the group, the extended attributes and
// the ACLs of the files whose places they are to take. A file that takes nobody's
// place gets what it would get if it were created there: the owner and the group
// of the directory, and its default ACL.
//
// Owners are changed by the superuser only; others may not (chown(2)), and keep
// the group if they are in it. What can't be kept is no failure; see NotKept. The
// zero value is ready to use. Its methods must not be called concurrently.
type Dresser struct {
	// NotKept, if not nil, is called with the first file whose owner
	// (OwnerNotKept), and the first whose attributes (AttributesNotKept) could not
	// be kept, and with the reason.
	NotKept func(what, path string, reason error)
	// Unkept, if not nil, notes whether the file system keeps modes.
	Unkept *fsat.Unkept

	owners map[Owner]bool
	said   map[string]bool
	// from is the directory that is dressed, and to the one in whose place it is
	// to be, by which files are named.
	from, to string
}

// Owners returns the owners of the files that were dressed, in the order of their
// numbers. There are none where the system has none.
func (d *Dresser) Owners() (owners []Owner) {
	for owner := range d.owners {
		owners = append(owners, owner)
	}
	slices.SortFunc(owners, func(a, b Owner) int { return cmp.Or(cmp.Compare(a.UID, b.UID), cmp.Compare(a.GID, b.GID)) })
	return owners
}

// Saw counts the owner of a file that is not dressed.
func (d *Dresser) Saw(info fsat.Info) {
	if info.UID == -1 {
		return
	}
	if d.owners == nil {
		d.owners = make(map[Owner]bool)
	}
	d.owners[Owner{info.UID, info.GID}] = true
}

func (d *Dresser) notKept(what string, path string, reason error) {
	if d.said[what] {
		return
	}
	if d.said == nil {
		d.said = make(map[string]bool)
	}
	d.said[what] = true
	if below, ok := strings.CutPrefix(path, d.from); ok {
		path = d.to + below
	}
	if d.NotKept != nil {
		d.NotKept(what, path, reason)
	}
}

// inherited is what a directory passes on to a new entry.
type inherited struct {
	owner fsat.Info
	acl   string // the default ACL, or empty
}

func (d *Dresser) inheritedFrom(dir *fsat.Dir) (in inherited, err error) {
	if in.owner, err = dir.Stat(); err != nil {
		return in, err
	}
	attrs, err := dir.Attributes(".")
	if err != nil {
		d.notKept(AttributesNotKept, dir.Path(), err)
	}
	in.acl = attrs[fsat.DefaultACL]
	return in, nil
}

// File dresses the file name in dir, which is to take the place of the entry as
// in live, or to be a new one there, and gives it the mode.
func (d *Dresser) File(dir *fsat.Dir, name string, live *fsat.Dir, as string, mode fs.FileMode) error {
	d.from, d.to = dir.Path(), live.Path()
	in, err := d.inheritedFrom(live)
	if err != nil {
		return err
	}
	info, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	info.Mode = mode
	return d.dress(dir, name, info, live, as, in)
}

// Tree dresses everything below dir, which is to take the place of what is below
// live. Modes stay as they are; dir itself is left alone. It stops at the first
// error.
func (d *Dresser) Tree(ctx context.Context, dir, live *fsat.Dir) error {
	d.from, d.to = dir.Path(), live.Path()
	in, err := d.inheritedFrom(live)
	if err != nil {
		return err
	}
	return d.tree(ctx, dir, live, in)
}

// tree is Tree for a directory that passes on in. live is nil if dir takes no
// directory's place.
func (d *Dresser) tree(ctx context.Context, dir, live *fsat.Dir, in inherited) error {
	entries, err := dir.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := dir.Lstat(entry.Name)
		if err != nil {
			return err
		}
		// A directory comes before what is in it, which may inherit from it.
		if err := d.dress(dir, entry.Name, info, live, entry.Name, in); err != nil {
			return err
		}
		if info.Mode.IsDir() {
			if err := d.subtree(ctx, dir, live, entry.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Dresser) subtree(ctx context.Context, dir, live *fsat.Dir, name string) error {
	sub, err := dir.OpenDir(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	in, err := d.inheritedFrom(sub)
	if err != nil {
		return err
	}
	if live != nil {
		if live, err = live.OpenDir(name); err != nil {
			// There is none, it is something else, or this process may not read it.
			live = nil
		}
		defer live.Close()
	}
	return d.tree(ctx, sub, live, in)
}

// dress dresses one entry, which takes the place of as in live. info describes
// it, with the mode that it shall have.
func (d *Dresser) dress(dir *fsat.Dir, name string, info fsat.Info, live *fsat.Dir, as string, in inherited) error {
	like, attrs := in.owner, map[string]string{}
	replaces := false
	if live != nil {
		old, err := live.Lstat(as)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if replaces = err == nil; replaces {
			like = old
			if attrs, err = live.Attributes(as); err != nil {
				d.notKept(AttributesNotKept, live.Path()+"/"+as, err)
			}
		}
	}
	if !replaces && in.acl != "" {
		attrs[fsat.AccessACL], attrs[fsat.DefaultACL] = in.acl, in.acl
	}
	if !info.Mode.IsDir() {
		delete(attrs, fsat.DefaultACL)
	}
	if err := d.chown(dir, name, info, like, replaces); err != nil {
		return err
	}
	if err := d.setAttributes(dir, name, info.Mode, attrs); err != nil {
		d.notKept(AttributesNotKept, dir.Path()+"/"+name, err)
	}
	// Setting an ACL changes the mode (acl(5)), and changing the owner may.
	if now, err := dir.Lstat(name); err != nil || now.Mode.Perm() == info.Mode.Perm() {
		return err
	}
	return d.Unkept.Modes(dir.ChmodEntry(name, info.Mode))
}

// chown gives the entry the owner and the group of like.
func (d *Dresser) chown(dir *fsat.Dir, name string, info, like fsat.Info, replaces bool) error {
	uid, gid := like.UID, like.GID
	if os.Geteuid() != 0 {
		uid = -1 // the owner stays
		if !replaces {
			gid = -1
		}
	}
	var err error
	if like.UID != -1 && (uid != -1 && uid != info.UID || gid != -1 && gid != info.GID) {
		err = dir.Chown(name, uid, gid)
	}
	if err == nil && replaces && os.Geteuid() != 0 && like.UID != info.UID {
		err = &fs.PathError{Op: "chown", Path: dir.Path() + "/" + name, Err: syscall.EPERM}
	}
	switch {
	case err == nil:
	case isNotPermitted(err):
		d.notKept(OwnerNotKept, dir.Path()+"/"+name, err)
	default:
		return err
	}
	if info, err = dir.Lstat(name); err == nil {
		d.Saw(info)
	}
	return err
}

// isNotPermitted reports whether an owner can't be set: this process may not, a
// user namespace does not have that number (user_namespaces(7)), or the file
// system has no owners.
func isNotPermitted(err error) bool {
	for _, reason := range []error{fs.ErrPermission, syscall.EINVAL, syscall.ENOSYS, syscall.EOPNOTSUPP} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}

// setAttributes gives the entry these attributes, and no ACL but these. It goes
// on after an error, and returns the first one.
func (d *Dresser) setAttributes(dir *fsat.Dir, name string, mode fs.FileMode, attrs map[string]string) error {
	has, err := dir.Attributes(name)
	if err != nil {
		return err
	}
	writable := mode&0o200 != 0
	for attr, value := range attrs {
		if has[attr] == value {
			continue
		}
		if !writable { // setting user.* needs the right to write (xattr(7))
			writable = true
			if err := dir.ChmodEntry(name, mode|0o200); err != nil {
				return err
			}
		}
		if setErr := dir.SetAttribute(name, attr, value); err == nil {
			err = setErr
		}
	}
	for _, attr := range []string{fsat.AccessACL, fsat.DefaultACL} {
		// The staging directory has passed it on.
		if _, wanted := attrs[attr]; has[attr] != "" && !wanted {
			if removeErr := dir.RemoveAttribute(name, attr); err == nil {
				err = removeErr
			}
		}
	}
	return err
}

// MkdirAll is [fsat.MkdirAll] in which each directory that is created belongs to
// the owner of the directory that it goes into, if this process is the
// superuser's.
func MkdirAll(path string) error {
	return fsat.MkdirAllWith(path, func(parent *fsat.Dir, name string) error {
		info, err := parent.Lstat(name)
		if err != nil {
			return err
		}
		owner, err := parent.Stat()
		if err != nil {
			return err
		}
		return new(Dresser).chown(parent, name, info, owner, false)
	})
}

// DescribeNotKept returns in words what the Dresser could not keep of the file at
// path, and why.
func DescribeNotKept(what, path string, reason error) string {
	kind := map[string]string{OwnerNotKept: "the owner", AttributesNotKept: "extended attributes"}[what]
	return fmt.Sprintf("%s of %s: %s", kind, path, fsat.Cause(reason))
}
