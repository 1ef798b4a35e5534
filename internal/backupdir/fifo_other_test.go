//go:build !unix

package backupdir_test

import "errors"

func mkfifo(string) error { return errors.ErrUnsupported }
