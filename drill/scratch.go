package drill

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/atocore/backup/internal/fsat"
)

// scratchPrefix begins the names of a drill's scratch directories; 16 hexadecimal
// digits follow.
const scratchPrefix = "atocore-drill-"

// A scratch is the directory of a drill. It is locked by flock(2) as long as its
// process is alive, however that ends, so that the next drill knows whether it may
// remove it.
type scratch struct {
	parent, dir *fsat.Dir
	name        string
}

func (s *scratch) path() string { return filepath.Join(s.parent.Path(), s.name) }

// newScratch creates a scratch directory in parent, or in the directory for
// temporary files if that is empty. Before, it removes those of drills that were
// killed.
func newScratch(ctx context.Context, parent string) (_ *scratch, err error) {
	if parent == "" {
		parent = os.TempDir()
	}
	if parent, err = filepath.Abs(parent); err != nil {
		return nil, err
	}
	s := new(scratch)
	if s.parent, err = fsat.OpenDir(parent); err != nil {
		return nil, err
	}
	if err := s.reap(ctx); err != nil {
		s.close()
		return nil, err
	}
	for range 100 {
		// crypto/rand would end the process where a sandbox refuses getrandom(2).
		s.name = fmt.Sprintf("%s%016x", scratchPrefix, rand.Uint64())
		if err = s.parent.Mkdir(s.name, 0o700); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			break
		}
		// Another drill that sees the directory before it is locked removes it.
		if s.dir, err = s.parent.OpenDir(s.name); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			break
		}
		if lockErr := s.dir.TryLock(); !errors.Is(lockErr, fsat.ErrLocked) { // without locks nobody removes it
			if _, err = s.parent.Lstat(s.name); err == nil {
				return s, nil
			}
		}
		s.dir.Close()
	}
	s.close()
	return nil, fmt.Errorf("create a scratch directory in %s: %w", parent, err)
}

// reap removes the scratch directories that nobody holds: those of drills that
// were killed. What is of another user, or cannot be locked or removed, stays.
func (s *scratch) reap(ctx context.Context) error {
	entries, err := s.parent.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		id, ok := strings.CutPrefix(entry.Name, scratchPrefix)
		if !ok || len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "" || !entry.Type.IsDir() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		s.reapOne(ctx, entry.Name)
	}
	return nil
}

func (s *scratch) reapOne(ctx context.Context, name string) {
	dir, err := s.parent.OpenDir(name)
	if err != nil {
		return
	}
	defer dir.Close()
	if info, err := dir.Stat(); err != nil || info.UID != os.Geteuid() {
		return
	}
	if dir.TryLock() == nil {
		_ = s.parent.RemoveTree(ctx, name)
	}
}

// remove removes the directory and everything in it, which may be read-only.
func (s *scratch) remove() error {
	defer s.close()
	err := s.parent.RemoveTree(context.Background(), s.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s *scratch) close() {
	s.dir.Close()
	s.parent.Close()
}
