//go:build !linux

package s3server

import "errors"

func haveAttributes(string) error { return errors.ErrUnsupported }

// Objects fails with errors.ErrUnsupported.
func (*Server) Objects(string) (map[string]string, error) { return nil, errors.ErrUnsupported }
