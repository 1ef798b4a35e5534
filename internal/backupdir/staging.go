package backup

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/atocore/backup/internal/fsat"
)

// stagingPrefix begins the names of staging directories in BackupDir; 16
// hexadecimal digits follow. A snapshot that is being removed gets such a name
// too.
const stagingPrefix = ".atocore-staging-"

func isStagingName(name string) bool {
	digits, ok := strings.CutPrefix(name, stagingPrefix)
	return ok && len(digits) == 16 && strings.Trim(digits, "0123456789abcdef") == ""
}

func newStagingName() string { return stagingPrefix + randomHex() }

func randomHex() string {
	var random [8]byte
	rand.Read(random[:]) // never fails: crypto/rand
	return hex.EncodeToString(random[:])
}

// reapStaging removes the staging directories that dead processes left in
// backupDir. One whose lock is held belongs to a live process, even a stopped
// one, and is left alone; so is one that cannot be locked or removed, which is
// logged: it is no reason to fail a backup.
func reapStaging(ctx context.Context, backupDir string, log *slog.Logger) error {
	root, err := fsat.OpenDir(backupDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	entries, err := root.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.Type.IsDir() || !isStagingName(entry.Name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err := reapOne(ctx, root, entry.Name)
		switch {
		case err == nil:
			log.Info("stale_staging_removed", "path", filepath.Join(backupDir, entry.Name))
		case ctx.Err() != nil:
			return err
		case errors.Is(err, fsat.ErrLocked), errors.Is(err, fs.ErrNotExist):
		default:
			log.Warn("stale_staging_left", "path", filepath.Join(backupDir, entry.Name), "error", err)
		}
	}
	return nil
}

func reapOne(ctx context.Context, root *fsat.Dir, name string) error {
	dir, err := root.OpenDir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.TryLock(); err != nil {
		return err
	}
	return removeTree(ctx, root, name)
}

// removeTree removes the directory name and all below it, following no link
// and entering no mount point.
func removeTree(ctx context.Context, parent *fsat.Dir, name string) error {
	dir, err := parent.OpenDir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	same, err := fsat.SameMount(parent, dir)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("%s is a mount point", dir.Path())
	}
	info, err := dir.Stat()
	if err != nil {
		return err
	}
	if info.Mode.Perm()&0o700 != 0o700 { // a copied directory may be read-only
		if err := dir.Chmod(info.Mode | 0o700); err != nil {
			return err
		}
	}
	entries, err := dir.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if entry.Type.IsDir() {
			err = removeTree(ctx, dir, entry.Name)
		} else {
			err = dir.Remove(entry.Name, false)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return parent.Remove(name, true)
}

// A staging directory is where a snapshot is built, beside snapshots/, so that
// one rename publishes it.
type staging struct {
	*fsat.Dir           // the staging directory, locked while it is open
	backupDir *fsat.Dir // where it is
	snapshots *fsat.Dir // where it is going
	name      string
	published bool

	dbHash *hashBehind // of the database copy; nil if it is hashed later
}

// newStaging makes a staging directory in backupDir, and snapshots/ if it is
// missing.
func newStaging(backupDir string) (_ *staging, err error) {
	st := new(staging)
	defer func() {
		if err != nil {
			st.closeAll()
		}
	}()
	if st.backupDir, err = fsat.OpenDir(backupDir); err != nil {
		return nil, err
	}
	switch err := st.backupDir.Mkdir(snapshotsName, 0o700); {
	case err == nil:
		if err := st.backupDir.Sync(); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrExist):
		return nil, err
	}
	if st.snapshots, err = st.backupDir.OpenDir(snapshotsName); err != nil {
		return nil, err
	}
	same, err := fsat.SameMount(st.backupDir, st.snapshots)
	if err != nil {
		return nil, err
	}
	if !same {
		return nil, fmt.Errorf("%w: %s", ErrCrossDevice, st.snapshots.Path())
	}
	return st, st.make()
}

// make makes and locks the directory. A reaper may see it before it is locked
// and take it for a dead process's; then another one is made.
func (st *staging) make() error {
	for range 100 {
		st.name = newStagingName()
		if err := st.backupDir.Mkdir(st.name, 0o700); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		dir, err := st.backupDir.OpenDir(st.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return errors.Join(err, st.unmake())
		}
		kept, err := st.keep(dir)
		if kept {
			st.Dir = dir
			return nil
		}
		dir.Close()
		if err != nil {
			return errors.Join(err, st.unmake())
		}
	}
	return fmt.Errorf("no staging directory could be kept in %s", st.backupDir.Path())
}

// keep locks the directory that was just made and tells whether it is still
// there: a reaper may have been faster.
func (st *staging) keep(dir *fsat.Dir) (bool, error) {
	// Any other error: on a file system without such locks nobody can take the
	// directory for a dead process's either.
	if errors.Is(dir.TryLock(), fsat.ErrLocked) {
		return false, nil
	}
	mine, err := dir.Stat()
	if err != nil {
		return false, err
	}
	there, err := st.backupDir.Lstat(st.name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && mine.Ino == there.Ino, err
}

// unmake removes the directory that was just made.
func (st *staging) unmake() error {
	err := st.backupDir.Remove(st.name, true)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return step("remove staging", st.path(), err)
}

// path gives the path of a file in staging for calls that need one.
func (st *staging) path(elem ...string) string {
	return filepath.Join(append([]string{st.backupDir.Path(), st.name}, elem...)...)
}

// discard removes the staging directory unless it was published.
func (st *staging) discard() (err error) {
	st.dbHash.stop()
	if !st.published {
		if err = removeTree(context.Background(), st.backupDir, st.name); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	st.closeAll()
	return err
}

func (st *staging) closeAll() {
	st.Dir.Close()
	st.snapshots.Close()
	st.backupDir.Close()
}

// makeDir makes the directory path and its missing parents, and makes each of
// them durable.
func makeDir(path string) error {
	info, err := fsat.Stat(path)
	if err == nil {
		if !info.Mode.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("there is a file of this name")}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if parent := filepath.Dir(path); parent != path {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		if again, statErr := fsat.Stat(path); statErr != nil || !again.Mode.IsDir() {
			return err
		}
	}
	parent, err := fsat.OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer parent.Close()
	return parent.Sync()
}
