package backup

import "context"

// CreateRuntimeBackup is to be written.
func CreateRuntimeBackup(ctx context.Context, opts Options) (*Metadata, error) {
	panic("todo")
}
