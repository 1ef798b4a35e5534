//go:build !linux

package sqlitedb

import "github.com/atocore/backup/internal/fsat"

// keepDescriptor returns errNoPinnedCopy: the pinned copy has been tried on
// Linux only. Elsewhere the online backup API is used.
func keepDescriptor(string, fsat.ID) (*fsat.File, error) { return nil, errNoPinnedCopy }

// KeepOpen returns a function that returns nil: no descriptor is kept here.
func KeepOpen(string) func(string) *fsat.File {
	return func(string) *fsat.File { return nil }
}
