package offsite

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// A scratch is the directory of one pull. Its lock says that somebody uses it.
type scratch struct {
	state *state
	name  string // in the state
	root  *os.Root
	lock  *os.File
}

// scratchLock is the file in a scratch directory that is locked.
const scratchLock = "lock"

// newScratch makes a scratch directory, and removes those that dead processes left.
func (s *state) newScratch(log *slog.Logger) (x *scratch, err error) {
	if err := s.reapScratch(log); err != nil {
		return nil, err
	}
	// Another pull may take one that has no lock yet for a dead process's.
	for range 10 {
		x = &scratch{state: s, name: scratchName + randomName()}
		var locked bool
		if locked, err = x.make(); err == nil && locked {
			return x, nil
		}
		if err = errors.Join(err, x.remove()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return nil, errors.Join(errors.New("another pull removes it again and again"), err)
}

func (x *scratch) make() (locked bool, err error) {
	root := x.state.root
	if err := root.Mkdir(x.name, 0o700); err != nil {
		return false, err
	}
	if x.lock, err = root.OpenFile(path.Join(x.name, scratchLock), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		return false, err
	}
	if locked, err = tryLock(x.lock); !locked || err != nil {
		return false, err
	}
	if err = root.Mkdir(path.Join(x.name, treeName), 0o700); err != nil {
		return false, err
	}
	x.root, err = root.OpenRoot(path.Join(x.name, treeName))
	return true, err
}

// dir is the absolute path of the directory for restic.
func (x *scratch) dir() string { return filepath.Join(x.state.dir, x.name, treeName) }

// remove removes the directory and all in it.
func (x *scratch) remove() error {
	var errs []error
	if x.root != nil {
		errs = append(errs, x.root.Close())
	}
	errs = append(errs, removeTree(x.state.root, x.name))
	if x.lock != nil {
		errs = append(errs, x.lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove %s: %w", filepath.Join(x.state.dir, x.name), err)
	}
	return nil
}

// removeTree removes a directory with all in it, also where a mode is in the way:
// restic restores modes.
func removeTree(root *os.Root, name string) error {
	err := root.RemoveAll(name)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if err := makeRemovable(root, name); err != nil {
		return err
	}
	return root.RemoveAll(name)
}

func makeRemovable(root *os.Root, dir string) error {
	if err := root.Chmod(dir, 0o700); err != nil {
		return err
	}
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := makeRemovable(root, path.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// reapScratch removes the scratch directories whose locks nobody holds. Where
// files cannot be locked, none are removed.
func (s *state) reapScratch(log *slog.Logger) error {
	entries, err := s.entries(".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), scratchName) {
			continue
		}
		lock, err := s.root.OpenFile(path.Join(e.Name(), scratchLock), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			log.Warn("offsite_scratch_left", "path", filepath.Join(s.dir, e.Name()), "reason", err.Error())
			continue
		}
		free, err := tryLock(lock)
		if err == nil && free && canLock {
			err = removeTree(s.root, e.Name())
			log.Info("offsite_scratch_removed", "path", filepath.Join(s.dir, e.Name()))
		}
		if err = errors.Join(err, lock.Close()); err != nil {
			log.Warn("offsite_scratch_left", "path", filepath.Join(s.dir, e.Name()), "reason", err.Error())
		}
	}
	return nil
}

// judge checks that what restic has restored is what the recipe says: those
// directories and regular files, of those sizes, and nothing else. So nothing that
// is opened later is a link or a device.
func (x *scratch) judge(r *recipe) error {
	files, dirs := r.layout()
	if err := x.judgeDir(".", files, dirs); err != nil {
		return err
	}
	for name := range files {
		return fmt.Errorf("%w: it lacks %.200q", ErrDamaged, name)
	}
	return nil
}

func (x *scratch) judgeDir(dir string, files map[string]int64, dirs map[string]bool) error {
	f, err := x.root.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		if err := x.root.Chmod(dir, 0o700); err != nil {
			return err
		}
		f, err = x.root.Open(dir)
	}
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		info, err := x.root.Lstat(p)
		if err != nil {
			return err
		}
		size, known := files[p]
		switch {
		case info.IsDir() && dirs[p]:
			if err := x.root.Chmod(p, 0o700); err != nil { // so that files in it can be removed
				return err
			}
			if err := x.judgeDir(p, files, dirs); err != nil {
				return err
			}
		case !known || !info.Mode().IsRegular():
			return fmt.Errorf("%w: %.200q is not in its recipe, or is no regular file", ErrDamaged, p)
		case size >= 0 && info.Size() != size:
			return fmt.Errorf("%w: %.200q has %d bytes instead of %d", ErrDamaged, p, info.Size(), size)
		}
		delete(files, p)
	}
	return nil
}
