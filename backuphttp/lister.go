package backuphttp

import (
	"context"

	"github.com/atocore/backup"
)

// A listing is the result of a list, in both forms. It is shared, so it must not
// be changed.
type listing struct {
	snapshots []backup.Snapshot
	json      []byte
}

// A lister lists for several requests at once.
type lister struct {
	read func(ctx context.Context) (*listing, error)
}

// list returns the list of snapshots as it is after the call began. The listing
// comes with backup.ErrRestoreUnfinished, too.
func (h *Handler) list(ctx context.Context) (*listing, error) { return h.lists.read(ctx) }

// readList reads the list.
func (h *Handler) readList(ctx context.Context) (*listing, error) {
	list, err := backup.ListRuntimeBackups(ctx, h.opts)
	if list == nil {
		return nil, err
	}
	return &listing{list, encode(list)}, err
}
