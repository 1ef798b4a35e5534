package backup

import "context"

// ValidateBackup is to be written.
func ValidateBackup(ctx context.Context, opts Options, stamp string) (*Report, error) {
	panic("todo")
}
