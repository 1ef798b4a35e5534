package backup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"time"

	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/fsat"
)

// workDBName is what the copy is called until it is sealed. It is short
// because SQLite appends "-journal" and "-wal" to it, which a file name of 255
// bytes would leave no room for.
const workDBName = "capture.db"

// A pinnedSource is a connection that holds a read transaction on the live
// database, so that what it sees is one moment in time whatever others write.
type pinnedSource struct {
	*sqliteConn
	path     string // with links resolved, as SQLite names the WAL
	id       fileID
	mode     string // journal mode: "wal", "delete", ...
	pageSize int64
	pages    int64
}

// A fileID tells files apart.
type fileID struct{ dev, ino uint64 }

// pinSource opens the live database and begins to read. Writers of a WAL
// database go on, and its WAL grows until the pin is released; writers of a
// rollback-journal database wait for that (sqlite.org/lockingv3.html,
// sqlite.org/wal.html). A database that is busy is waited for until ctx is
// done.
//
// The mode is rw because a read-only connection cannot recover the WAL that a
// crashed writer left (sqlite.org/wal.html, "Read-Only Databases"). Nothing is
// written otherwise: query_only holds. When this is the last connection to a
// WAL database, closing it checkpoints the WAL, as SQLite always does.
func pinSource(ctx context.Context, path string) (_ *pinnedSource, err error) {
	path = realPath(path)
	before, err := fsat.Stat(path)
	if err != nil {
		return nil, err
	}
	conn, err := openSQLite(path, "rw", "_pragma=query_only(1)", "_pragma=busy_timeout(0)")
	if err != nil {
		return nil, err
	}
	src := &pinnedSource{sqliteConn: conn, path: path, id: fileID{before.Dev, before.Ino}}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if err := src.begin(ctx); err != nil {
		return nil, err
	}
	if err := src.pin(ctx); err != nil {
		return nil, err
	}
	// SQLite takes a journal that it cannot look at for none, and reads what a
	// dead writer left half written.
	if _, err := fsat.Stat(path + "-journal"); err != nil && !absent(err) {
		return nil, err
	}
	if err := src.inPlace(); err != nil {
		return nil, err
	}
	return src, nil
}

// inPlace makes sure that the path, by which SQLite and this package find the
// WAL, still leads to the file that was there at first.
func (src *pinnedSource) inPlace() error {
	now, err := fsat.Stat(src.path)
	if err != nil {
		return err
	}
	if src.id.ino != 0 && src.id != (fileID{now.Dev, now.Ino}) {
		return fmt.Errorf("%w: another file took the database's place", ErrSourceChanged)
	}
	return nil
}

// begin begins a transaction, which holds nothing before it reads. Whether ctx
// is done makes no difference, so that a failure means that there is none.
func (src *pinnedSource) begin(ctx context.Context) error {
	return src.exec(context.WithoutCancel(ctx), "BEGIN")
}

// pin reads once within the transaction, and looks at what it reads.
func (src *pinnedSource) pin(ctx context.Context) (err error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err = src.exec(ctx, "SELECT 1 FROM sqlite_schema LIMIT 1")
		if code := sqliteCode(err); code != sqliteBusy && code != sqliteLocked {
			break
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
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
		return fmt.Errorf("%w: the database is empty", ErrSourceInvalid)
	}
	return nil
}

// captureDatabase copies the live database to dir/workDBName, in st, as it is
// at one moment.
func (s *settings) captureDatabase(ctx context.Context, st *staging, dir *fsat.Dir) error {
	if s.DB != nil {
		return s.captureHandle(ctx, dir)
	}
	var src *pinnedSource
	if s.restoring != nil {
		src = s.restoring.db
	} else {
		var err error
		if src, err = pinSource(ctx, s.DatabasePath); err != nil {
			return sourceError(err)
		}
		defer src.Close()
	}
	if !s.OnlineBackup {
		if err := s.copyPinned(ctx, st, src, dir); !errors.Is(err, errNoPinnedCopy) {
			return err
		}
	}
	return s.onlineBackup(ctx, src, dir)
}

// sourceError tells a file that is no database from other failures.
func sourceError(err error) error {
	if code := sqliteCode(err); code == sqliteNotADB || code == sqliteCorrupt {
		return fmt.Errorf("%w: %w", ErrSourceInvalid, err)
	}
	return err
}

// backuper is a connection of modernc.org/sqlite.
type backuper interface {
	NewBackup(uri string) (*sqlite.Backup, error)
}

// onlineBackup copies the pinned source page by page through SQLite's online
// backup API (sqlite.org/backup.html).
func (s *settings) onlineBackup(ctx context.Context, src *pinnedSource, dir *fsat.Dir) (err error) {
	// Made here so that its mode is ours: SQLite would make it 0644.
	if err := createEmpty(dir, workDBName); err != nil {
		return err
	}
	path, err := pathFor(dir, workDBName)
	if err != nil {
		return err
	}
	// Nobody but us sees the copy before it is synced, so it needs neither a
	// journal nor syncs nor locks of its own.
	b, err := src.Conn.(backuper).NewBackup(sqliteURI(path, "rw",
		"_pragma=locking_mode(exclusive)", "_pragma=journal_mode(off)", "_pragma=synchronous(off)"))
	if err != nil {
		return err
	}
	// Finish returns nil for a backup that is incomplete as well, so only
	// Step's word that there is no more counts.
	complete := false
	defer func() {
		if ferr := b.Finish(); err == nil {
			err = ferr
		}
		if err == nil && !complete {
			err = errors.New("online backup ended early")
		}
	}()
	const stepBytes = 4 << 20
	pagesPerStep := int32(max(1, stepBytes/src.pageSize))
	for wait := time.Millisecond; !complete; {
		if err := ctx.Err(); err != nil {
			return err
		}
		more, err := b.Step(pagesPerStep)
		if code := sqliteCode(err); code == sqliteBusy || code == sqliteLocked {
			if err := sleep(ctx, wait); err != nil {
				return err
			}
			wait = min(2*wait, 50*time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		complete = !more
		total := int64(b.PageCount()) * src.pageSize
		s.report(Progress{Phase: PhaseDatabase, Path: s.DatabasePath,
			Bytes: total - int64(b.Remaining())*src.pageSize, TotalBytes: total})
	}
	return nil
}

func createEmpty(dir *fsat.Dir, name string) error {
	f, err := dir.Create(name, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// The parts of a database file's header that this package looks at
// (sqlite.org/fileformat2.html, "The Database Header").
const (
	headerSize       = 100
	headerMagic      = "SQLite format 3\x00"
	headerWriteForm  = 18 // 1: rollback journal, 2: WAL
	headerReadForm   = 19
	headerPageSize   = 16
	headerChangeMark = 24
	headerPageCount  = 28
	headerValidFor   = 92
)

type dbHeader [headerSize]byte

func readHeader(f *fsat.File) (h dbHeader, err error) {
	_, err = f.ReadAt(h[:], 0)
	if errors.Is(err, io.EOF) {
		return h, errors.New("shorter than a database header")
	}
	if err == nil && string(h[:len(headerMagic)]) != headerMagic {
		return h, errors.New("no SQLite database header")
	}
	return h, err
}

func (h *dbHeader) pageSize() int64 {
	if size := int64(binary.BigEndian.Uint16(h[headerPageSize:])); size != 1 {
		return size
	}
	return 65536
}

// size is how long the header says the file is, or 0 if it does not say.
func (h *dbHeader) size() int64 {
	if string(h[headerChangeMark:headerChangeMark+4]) != string(h[headerValidFor:headerValidFor+4]) {
		return 0
	}
	return int64(binary.BigEndian.Uint32(h[headerPageCount:])) * h.pageSize()
}

func (h *dbHeader) rollbackForm() bool { return h[headerWriteForm] == 1 && h[headerReadForm] == 1 }

// sealDatabase gives the captured copy the form it is kept in: nothing of it
// in a WAL, and marked as a rollback-journal database, so that reading it
// never makes a -wal or -shm beside it and it opens on a read-only disk. Then
// it gets its name. It returns the copy's size.
func (s *settings) sealDatabase(ctx context.Context, st *staging) (int64, error) {
	dir, err := st.OpenDir(dbDirName)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	folded, err := foldWAL(ctx, dir)
	if err != nil {
		return 0, err
	}
	if folded { // its hash is of what it was
		st.dbHash.stop()
		st.dbHash = nil
	}
	f, err := dir.OpenRW(workDBName)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	header, err := readHeader(f)
	if err != nil {
		return 0, err
	}
	// The two bytes are all that tells a WAL database without a WAL from a
	// rollback-journal one; the online backup copies them as they are.
	if !header.rollbackForm() {
		if _, err := f.WriteAt([]byte{1, 1}, headerWriteForm); err != nil {
			return 0, err
		}
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if want := header.size(); info.Size < want || info.Size == 0 {
		return 0, fmt.Errorf("the copy has %d bytes and its header says %d", info.Size, want)
	}
	if err := dir.Rename(workDBName, dir, filepath.Base(s.DatabasePath)); err != nil {
		return 0, err
	}
	if st.dbHash != nil {
		if st.dbHash.sealed, err = f.Stat(); err != nil {
			return 0, err
		}
	}
	return info.Size, nil
}

// foldWAL writes what a copied WAL holds into the copied database and removes
// it. Without a copied WAL it leaves the database as it is, and says so.
func foldWAL(ctx context.Context, dir *fsat.Dir) (folded bool, err error) {
	info, err := dir.Lstat(workDBName + "-wal")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Size == 0 {
		return false, dir.Remove(workDBName+"-wal", false)
	}
	path, err := pathFor(dir, workDBName)
	if err != nil {
		return false, err
	}
	// With exclusive locking from the start the WAL's index is kept in memory
	// and no -shm is made (sqlite.org/wal.html, "Use of WAL Without
	// Shared-Memory").
	conn, err := openSQLite(path, "rw",
		"_pragma=locking_mode(exclusive)", "_pragma=synchronous(off)")
	if err != nil {
		return true, err
	}
	defer func() {
		if cerr := conn.Close(); err == nil {
			err = cerr
		}
	}()
	mode, err := conn.text(ctx, "PRAGMA journal_mode=delete")
	if err != nil {
		return true, err
	}
	if mode != "delete" {
		return true, fmt.Errorf("folding the copied WAL left journal mode %s", mode)
	}
	return true, nil
}
