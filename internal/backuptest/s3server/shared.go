package s3server

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
)

// Shared is a Server for all tests of a package, started for the first that asks
// for it. TestMain closes it. The zero value is ready.
type Shared struct {
	once   sync.Once
	dir    string
	server *Server
	err    error
}

// Get returns the server. If it cannot run here, the test is skipped.
func (s *Shared) Get(tb testing.TB) *Server {
	tb.Helper()
	s.once.Do(func() {
		if s.dir, s.err = os.MkdirTemp("", "s3server-"); s.err == nil {
			s.server, s.err = Start(context.Background(), s.dir)
		}
	})
	if errors.Is(s.err, ErrUnavailable) {
		tb.Skip(s.err)
	}
	if s.err != nil {
		tb.Fatal(s.err)
	}
	return s.server
}

// Close ends the server, if there is one, and removes its files.
func (s *Shared) Close() error {
	s.once.Do(func() {})
	if s.server != nil {
		s.server.Close()
	}
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}
