package sqlitedb

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// The result codes that SQLite has for a file which it may not open or write,
// and for a lock that the system refuses (sqlite.org/rescode.html).
const (
	codeReadOnly  = 8
	codeCantOpen  = 14
	codeIOErrLock = codeIOErr | 15<<8
)

// sourceError explains an error of SQLite about the live database at path, where
// a file and its permissions show what it means, and wraps SQLITE_NOTADB and
// SQLITE_CORRUPT in ErrSourceInvalid.
func sourceError(path string, err error) error {
	switch code := Code(err); {
	case code == codeNotADB:
		return fmt.Errorf("%w: %w: it is encrypted, or something else than an SQLite database; an encrypted one can be backed up only by a program that can read it, through the library, whose Capture option writes a plain copy",
			errdefs.ErrSourceInvalid, err)
	case code == codeCorrupt:
		return fmt.Errorf("%w: %w", errdefs.ErrSourceInvalid, err)
	case code == codeCantOpen || code == codeReadOnly:
		return explainAccess(path, err)
	case isLockRefused(err):
		if denied := fsat.Access(path, true); denied != nil {
			return fmt.Errorf("%s, so it cannot be locked: %w: %w", owners(path), denied, err)
		}
	}
	return err
}

// isLockRefused reports whether the system refused a lock, as it does for an
// exclusive one on a file that is open for reading only (fcntl(2), EBADF).
func isLockRefused(err error) bool {
	var e interface{ Code() int }
	return errors.As(err, &e) && e.Code() == codeIOErrLock
}

// explainAccess explains an error by which SQLite could not open a file.
func explainAccess(path string, err error) error {
	if denied := fsat.Access(path, false); errors.Is(denied, fs.ErrPermission) {
		return fmt.Errorf("%w: %s: %w", denied, owners(path), err)
	}
	dir := filepath.Dir(path)
	denied := fsat.Access(dir, true)
	if shm := path + "-shm"; denied == nil && fsat.Exists(shm) {
		denied = fsat.Access(shm, true)
	}
	if denied == nil {
		return err
	}
	return fmt.Errorf("%w; a database in WAL mode can be read only by a process that may create and write its -shm and -wal in %s: "+
		"run this as a user who may, or mount the directory writable here: %w", err, dir, denied)
}

// owners says to whom the file at path belongs, and who asks.
func owners(path string) string {
	info, err := fsat.Stat(path)
	if err != nil || info.UID < 0 {
		return "this process may not open it so"
	}
	return fmt.Sprintf("it belongs to user %d and group %d, with mode %04o, and this process runs as user %d", info.UID, info.GID, info.Mode.Perm(), os.Geteuid())
}
