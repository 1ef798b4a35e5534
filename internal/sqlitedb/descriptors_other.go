//go:build !linux

package backup

import "github.com/atocore/backup/internal/fsat"

// liveHandle is for systems on which the pinned copy has been tried; on the
// others the online backup does.
func liveHandle(string, fileID) (*fsat.File, error) { return nil, errNoPinnedCopy }
