//go:build !linux

package backup_test

import "testing"

// mountBind is for Linux.
func mountBind(t *testing.T, _, _ string) { t.Skip("only Linux can show a directory in two places") }
