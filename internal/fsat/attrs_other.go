//go:build !linux

package fsat

import "io/fs"

// The attributes that hold a POSIX ACL, on Linux.
const (
	AccessACL  = "system.posix_acl_access"
	DefaultACL = "system.posix_acl_default"
)

// Attributes returns none: extended attributes are kept on Linux only.
func (d *Dir) Attributes(name string) (map[string]string, error) { return nil, nil }

// SetAttribute does nothing on this platform.
func (d *Dir) SetAttribute(name, attr, value string) error { return nil }

// RemoveAttribute does nothing on this platform.
func (d *Dir) RemoveAttribute(name, attr string) error { return nil }

// ChmodEntry does nothing on this platform: it restores the mode that setting an
// ACL changes.
func (d *Dir) ChmodEntry(name string, mode fs.FileMode) error { return nil }

// CheckWrite finds nothing on this platform.
func CheckWrite(path string) error { return nil }

// CheckMove finds nothing on this platform.
func (d *Dir) CheckMove(name string) error { return nil }
