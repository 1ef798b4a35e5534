package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
)

// The pauses between two attempts at a database that is busy.
const (
	firstPause = time.Millisecond
	mostPause  = 50 * time.Millisecond
)

// brief is how long a database that is busy is waited for where nobody should
// be kept waiting.
const brief = 100 * time.Millisecond

// ErrBusy means that somebody keeps a live database from being read, and that
// trying again later may succeed.
var ErrBusy = errors.New("the database is busy")

// A Source is a connection to a live database. Between Begin and End it holds a
// read transaction, so that it sees one moment in time, whatever others write.
type Source struct {
	*conn
	path     string // with links resolved, as SQLite names the WAL
	id       fsat.ID
	still    *fsat.Info // set if nobody can change the file: as it was
	noWAL    bool       // there was no WAL before the connection made one
	keepWAL  bool       // Close must not checkpoint; see Lock
	mode     string     // journal mode: "wal", "delete", ...
	pageSize int64
	pages    int64
	summed   bool // Sum keeps a descriptor of the file
}

// Open opens the live database at path and reads nothing yet. A file that is
// not a database is errdefs.ErrSourceInvalid, here or in Begin.
//
// The mode is ro, so that the descriptor that SQLite opens is O_RDONLY. Nothing
// can be written to the database through it, by no fault of this package or of
// SQLite's, and no EXCLUSIVE lock can be taken through it (fcntl(2), EBADF):
// that is what SQLite wants before it checkpoints a WAL when it closes the last
// connection (sqlite3WalClose in wal.c). A WAL that a crashed writer left can be
// recovered all the same, which writes to the -shm alone: SQLite opens that for
// writing unless readonly_shm is set (unixOpenSharedMemory in os_unix.c). A
// rollback journal cannot be played back; see rollBack.
//
// Where the file system is read-only for everybody, and there is neither WAL nor
// journal, SQLite is told that the file is immutable. Otherwise it could not open
// a database in WAL mode there, for want of a -shm (sqlite.org/wal.html,
// "Read-Only Databases").
func Open(path string) (*Source, error) {
	path = fsat.RealPath(path)
	info, err := fsat.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode.IsRegular():
		return nil, &fs.PathError{Op: "open", Path: path, Err: fsat.ErrNotRegular}
	case info.Size == 0:
		// SQLite would remove a WAL or a journal that is beside it
		// (pagerOpenWalIfPresent and hasHotJournal in pager.c).
		return nil, fmt.Errorf("%w: the database is empty", errdefs.ErrSourceInvalid)
	}
	_, err = fsat.Stat(path + "-wal")
	src := &Source{path: path, id: info.ID(), noWAL: errors.Is(err, fs.ErrNotExist)}
	params := []string{"_pragma=query_only(1)", "_pragma=busy_timeout(0)"}
	if src.noWAL && !fsat.Exists(path+"-journal") && fsat.IsUnwritable(path) {
		src.still = &info
		params = append(params, "immutable=1")
	}
	if src.conn, err = openConn(path, "ro", params...); err != nil {
		return nil, sourceError(path, err)
	}
	countSource(info.ID(), 1)
	return src, nil
}

// checkStill returns ErrSourceChanged if a database on a read-only file system,
// of which SQLite assumes that nobody changes it, was changed nevertheless: the
// file system has become writable meanwhile.
func (src *Source) checkStill() error {
	if src.still == nil {
		return nil
	}
	if now, err := fsat.Stat(src.path); err != nil || !now.Unchanged(*src.still) || fsat.Exists(src.path+"-wal") || fsat.Exists(src.path+"-journal") {
		return errdefs.ErrSourceChanged
	}
	return nil
}

// Begin begins a read transaction. Until it ends, writers of a WAL database go
// on, and its WAL grows; writers of a rollback-journal database wait
// (sqlite.org/lockingv3.html, sqlite.org/wal.html).
//
// Begin does not wait for others, except for some 200 ms before it refuses what
// may look different then. Its errors, after which there is no transaction:
// ErrBusy; errdefs.ErrSourceInvalid for a file that is not a database, and for
// one that its users have open by another name (see CheckName);
// errdefs.ErrSourceChanged for one that was replaced;
// errdefs.ErrDatabaseInUse if there is a journal that must not be played back;
// fsat.ErrNotRegular for something else beside the database.
func (src *Source) Begin(ctx context.Context) (err error) {
	if err := checkSidecars(src.path); err != nil {
		return err
	}
	if err := src.checkInPlace(); err != nil {
		return err
	}
	if err := checkName(ctx, src.path); err != nil {
		return err
	}
	if err := src.begin(ctx); err != nil {
		return sourceError(src.path, err)
	}
	defer func() {
		if err != nil {
			src.End()
		}
	}()
	err = src.read(ctx)
	if isHotJournal(err) {
		if err = src.rollBack(ctx); err == nil {
			err = src.read(ctx)
		}
	}
	if isBusy(err) {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	} else if err != nil {
		return sourceError(src.path, err)
	}
	// SQLite takes a journal that it cannot stat for a missing one, and would
	// read what a crashed writer left half written.
	if _, err := fsat.Stat(src.path + "-journal"); err != nil && !fsat.IsMissing(err) {
		return err
	}
	if src.mode != "wal" {
		if err := checkLockDirectory(src.path); err != nil {
			return err
		}
	} else if err := src.checkNameAgain(ctx); err != nil {
		return err
	}
	return src.checkInPlace()
}

// checkNameAgain is checkName once the database is known to be a WAL database,
// which is not always known before, since users of it may have come just now.
func (src *Source) checkNameAgain(ctx context.Context) error {
	seen, err := checkLocks(ctx, src.path)
	if err != nil || seen || !src.noWAL {
		return err
	}
	return checkOnlyName(src.path)
}

// End ends the read transaction.
func (src *Source) End() { _ = src.exec(context.Background(), "ROLLBACK") }

// checkInPlace returns ErrSourceChanged unless the path, by which SQLite and
// this package find the WAL, still leads to the file that was there at first.
func (src *Source) checkInPlace() error {
	now, err := fsat.Stat(src.path)
	if err != nil {
		return err
	}
	if src.id.Ino != 0 && src.id != now.ID() {
		return fmt.Errorf("%w: another file took the database's place", errdefs.ErrSourceChanged)
	}
	return nil
}

// begin begins a transaction, which holds no lock before it reads. It ignores
// whether ctx is done, so that there is no transaction if it fails.
func (src *Source) begin(ctx context.Context) error {
	return src.exec(context.WithoutCancel(ctx), "BEGIN")
}

// firstRead begins the read transaction and takes its lock.
const firstRead = "SELECT 1 FROM sqlite_schema LIMIT 1"

// read reads once within the transaction and then learns what kind of database
// it is.
func (src *Source) read(ctx context.Context) error {
	err := src.exec(ctx, firstRead)
	if err != nil {
		return err
	}
	if src.mode, err = src.text(ctx, "PRAGMA journal_mode"); err != nil {
		return err
	}
	for _, q := range []struct {
		statement string
		into      *int64
	}{{"PRAGMA page_size", &src.pageSize}, {"PRAGMA page_count", &src.pages}} {
		text, err := src.text(ctx, q.statement)
		if err != nil {
			return err
		}
		if *q.into, err = strconv.ParseInt(text, 10, 64); err != nil {
			return err
		}
	}
	if src.pages == 0 {
		return fmt.Errorf("%w: the database is empty", errdefs.ErrSourceInvalid)
	}
	return nil
}

// rollBack has SQLite play back the journal that a crashed writer left, and
// reads then. That changes the live database, as its next user would.
//
// SQLite takes a journal for a crashed writer's if nobody holds a RESERVED lock
// (sqlite.org/lockingv3.html, section 5). A writer that locks in another way, or
// whose locks were dropped, looks just so, and its transaction must not be
// rolled back under it. So nothing is played back while somebody has the
// journal open, or while there is the lock file of the VFS unix-dotfile.
func (src *Source) rollBack(ctx context.Context) error {
	journal := src.path + "-journal"
	for {
		before, err := fsat.Stat(journal)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := checkJournal(ctx, src.path); err != nil {
			return err
		}
		if err := src.exec(ctx, firstRead); !isHotJournal(err) {
			return err
		}
		if now, err := fsat.Stat(journal); err == nil && now.SameFile(before) || before.Ino == 0 {
			break
		}
	}
	// With query_only nothing else is written.
	rw, err := openConn(src.path, "rw", "_pragma=query_only(1)", "_pragma=busy_timeout(0)")
	if err != nil {
		return err
	}
	defer rw.Close()
	if err := rw.exec(ctx, firstRead); err != nil {
		return err
	}
	// While this transaction holds its lock, rw cannot get the one that it wants
	// for a checkpoint when it is closed, should there be a WAL as well.
	return src.exec(ctx, firstRead)
}

// Close ends the transaction and closes the connection, which drops the locks
// that Lock took. It does not checkpoint the WAL, whoever made it. An empty WAL
// that the connection itself made is removed with its -shm, unless somebody else
// uses them.
func (src *Source) Close() error {
	defer CloseUnlinked()
	if src.summed {
		defer forget(src.id)
	}
	countSource(src.id, -1)
	switch {
	case src.keepWAL:
		return errors.Join(src.interrupt(), src.conn.Close())
	case src.madeWAL():
		return src.closeAndRemoveWAL()
	}
	return src.conn.Close()
}

func (src *Source) madeWAL() bool {
	if !src.noWAL {
		return false
	}
	wal, err := fsat.Stat(src.path + "-wal")
	return err == nil && wal.Size == 0 && src.checkInPlace() == nil
}

// closeAndRemoveWAL has SQLite remove the WAL: the last connection to a
// database does that, when it is closed and can write. That connection is
// interrupted before, so that it does not checkpoint what somebody may have
// written to the WAL just now and not finished. If this fails, the WAL stays,
// which harms nothing.
func (src *Source) closeAndRemoveWAL() error {
	last, err := openConn(src.path, "rw", "_pragma=query_only(1)", "_pragma=busy_timeout(0)")
	if err != nil {
		return src.conn.Close()
	}
	if last.exec(context.Background(), firstRead) != nil || last.interrupt() != nil {
		last.Close() // before the lock is dropped that keeps it from a checkpoint
		return src.conn.Close()
	}
	return errors.Join(src.conn.Close(), last.Close())
}

// Sum returns the SHA-256 that a sealed copy of the database has. The Source
// must be one of Lock, so that nobody writes. If there is something in the WAL,
// which Lock leaves if the pages carry checksums, or where the file cannot be
// read without dropping this process's locks on it, Sum returns an error.
func (src *Source) Sum(ctx context.Context) (filehash.Sum, error) {
	if wal, err := fsat.Stat(src.path + "-wal"); err == nil && wal.Size > 0 {
		return filehash.Sum{}, fmt.Errorf("the WAL of %s is not empty", src.path)
	}
	live, err := keepDescriptor(src.path, src.id)
	if err != nil {
		return filehash.Sum{}, err
	}
	src.summed = true
	info, err := live.Stat()
	if err != nil {
		return filehash.Sum{}, err
	}
	return filehash.ReadPatchedAt(ctx, live, info.Size, markRollbackForm)
}
