//go:build !linux

package sqlitedb

import "github.com/atocore/backup/internal/fsat"

// keepDescriptor returns errNoPinnedCopy and opens nothing: the copy of the files
// has been tried on Linux only. Elsewhere SQLite's online backup is used, whose
// connection keeps the locks of other connections of modernc.org/sqlite.
func keepDescriptor(string, fsat.ID) (*fsat.File, error) { return nil, errNoPinnedCopy }

// KeepOpen returns a function that returns nil: no descriptor is kept here.
func KeepOpen(string) func(string) *fsat.File {
	return func(string) *fsat.File { return nil }
}

// CloseUnlinked does nothing: no descriptor is kept here.
func CloseUnlinked() {}

// CloseKept does nothing either.
func CloseKept(fsat.Info) {}
