package offsite

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// stateDirName is the directory in BackupDir with a directory for each repository,
// which has that one's ID.
const stateDirName = ".atocore-offsite"

// The names in the directory of a repository. It also has a directory for each
// store that is pushed from this backup directory.
const (
	cacheName    = "cache"    // restic's
	locationName = "location" // the hash of the repository's location
	scratchName  = "pull-"    // and 16 hexadecimal digits: a pull's
)

// The names in the directory of a store.
const (
	lockName    = "lock"
	treeName    = "tree" // what restic backs up
	draftsName  = "tmp"  // files that are being written
	pendingName = "pending.json"
)

// The names in the tree.
const (
	filesName = "files"
	largeName = "large"
)

// A state is the local side of a repository, or of a store in it.
type state struct {
	dir  string // absolute
	root *os.Root
	lock *os.File // nil if it is not locked
}

// openState opens a directory of the state, which is made if there is none. names
// are the ID of the repository, and that of the store.
func openState(backupDir string, names ...string) (*state, error) {
	dir := filepath.Join(append([]string{backupDir, stateDirName}, names...)...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state of the repository: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the state of the repository: %w", err)
	}
	return &state{dir: dir, root: root}, nil
}

// stateName returns the name of the store's directory. Stores that share a backup
// directory and a repository would otherwise replace each other's bases.
func (s store) stateName() string {
	hash := sha256.Sum256([]byte(s.host + "\x00" + s.path))
	return hex.EncodeToString(hash[:8])
}

// Close releases the state.
func (s *state) Close() error {
	err := s.root.Close()
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// acquire locks the state for a push. It waits up to patience for another one.
func (s *state) acquire(ctx context.Context, patience time.Duration) error {
	f, err := s.root.OpenFile(lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock of the state: %w", err)
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	pause := time.NewTicker(100 * time.Millisecond)
	defer pause.Stop()
	for {
		got, err := tryLock(f)
		if got {
			s.lock = f
			return nil
		}
		if err == nil {
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-deadline.C:
				err = fmt.Errorf("%w: another push is going on in %s, and was for %s", ErrBusy, s.dir, patience)
			case <-pause.C:
				continue
			}
		}
		return errors.Join(err, f.Close())
	}
}

// treeDir is the absolute path of the tree. It must stay the same: restic finds
// what it stored before by it.
func (s *state) treeDir() string { return filepath.Join(s.dir, treeName) }

// prepare makes the directories of a push, and removes what an earlier one left.
// It needs the lock.
func (s *state) prepare() error {
	if err := s.root.RemoveAll(draftsName); err != nil {
		return err
	}
	for _, dir := range []string{draftsName, path.Join(treeName, filesName), path.Join(treeName, largeName)} {
		if err := s.mkdirs(dir); err != nil {
			return err
		}
	}
	return nil
}

// mkdirs makes a directory and those above it. Whatever else is in their way is
// removed: nothing but this package writes there.
func (s *state) mkdirs(dir string) error {
	if info, err := s.root.Lstat(dir); err == nil && info.IsDir() {
		return nil
	}
	at := ""
	for _, name := range strings.Split(dir, "/") {
		at = path.Join(at, name)
		info, err := s.root.Lstat(at)
		switch {
		case err == nil && info.IsDir():
			continue
		case err == nil:
			err = s.root.Remove(at)
		case errors.Is(err, fs.ErrNotExist):
			err = nil
		}
		if err == nil {
			err = s.root.Mkdir(at, 0o700)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// draft returns a new name for a file that is to be written.
func draft() string { return path.Join(draftsName, randomName()) }

func randomName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// write creates a file durably, in place of what is there, by one rename.
func (s *state) write(name string, fill func(io.Writer) error) (err error) {
	d := draft()
	defer func() {
		if err != nil {
			_ = s.root.Remove(d)
		}
	}()
	f, err := s.root.OpenFile(d, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err = fill(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.replace(d, name)
}

// replace renames a draft to its name in the state.
func (s *state) replace(draft, name string) error {
	if info, err := s.root.Lstat(name); err == nil && info.IsDir() {
		if err := s.root.RemoveAll(name); err != nil {
			return err
		}
	}
	if err := s.root.Rename(draft, name); err != nil {
		return err
	}
	// If both are links to one file, rename(2) does nothing and leaves both.
	if err := s.root.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// saveIndex writes the index.
func (s *state) saveIndex(x index) error {
	return s.write(indexName, func(w io.Writer) error { return json.NewEncoder(w).Encode(x) })
}

// clean removes everything in the directory dir of the state that keep does not
// select, and all that is neither a directory nor a regular file; dir stays. keep
// gets the path of each entry in the state. With deep, directories that are kept
// are cleaned, too.
func (s *state) clean(ctx context.Context, dir string, keep func(path string, isDir bool) bool, deep bool) error {
	entries, err := s.entries(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := path.Join(dir, e.Name())
		switch {
		case !keep(p, e.IsDir()) || !e.IsDir() && !e.Type().IsRegular():
			err = s.root.RemoveAll(p)
		case e.IsDir() && deep:
			err = s.clean(ctx, p, keep, deep)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entries returns what is in a directory of the state, or nothing if there is none.
func (s *state) entries(dir string) ([]fs.DirEntry, error) {
	f, err := s.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}
