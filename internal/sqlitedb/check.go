package sqlitedb

import (
	"context"
	"database/sql/driver"
	"fmt"
	"io"
	"io/fs"

	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
)

// A Kind is one of SQLite's two checks (sqlite.org/pragma.html).
type Kind string

// IntegrityCheck also compares indexes with their tables. QuickCheck does not,
// which takes less time and memory.
const (
	IntegrityCheck Kind = "integrity_check"
	QuickCheck     Kind = "quick_check"
)

// checkCache is the size of SQLite's page cache for an integrity check in KiB.
// It has to hold the indexes, whose pages are read in the order of the table's
// rows; a quick check reads each page once or twice. The memory used is up to
// twice that, because a page of 4 KiB and SQLite's own data about it are
// allocated in a piece of 8 KiB.
const checkCache = 14_000

// A Finding is one objection of SQLite to a database.
type Finding struct {
	// Unreadable is set if SQLite could not run the check to its end, because
	// the file is not a database or is too damaged.
	Unreadable bool
	// Text is SQLite's own, and may quote untrusted bytes.
	Text string
}

// Check runs one of SQLite's checks on the file dir/name, to which nothing may
// be writing. It returns no findings if the database passes, and at most limit
// faults, followed by one Unreadable finding if SQLite could not finish.
//
// An error means that the check could not be made: ctx's error, or a file that
// cannot be read. One that is not regular is fsat.ErrNotRegular. SQLite reports
// a page that it could not read in the same way as a damaged one
// (sqlite.org/rescode.html, SQLITE_IOERR_CORRUPTFS; integrity_check's "unable
// to get the page"). So findings count only if the file can be read, and if
// SQLite makes them again afterwards: a database that does not pass is read
// three times.
func Check(ctx context.Context, dir *fsat.Dir, name string, kind Kind, limit int) ([]Finding, error) {
	findings, err := runCheck(ctx, dir, name, kind, limit)
	if err != nil || len(findings) == 0 {
		return nil, err
	}
	if err := readThrough(ctx, dir, name); err != nil {
		return nil, err
	}
	return runCheck(ctx, dir, name, kind, limit)
}

func runCheck(ctx context.Context, dir *fsat.Dir, name string, kind Kind, limit int) (findings []Finding, err error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch info, err := f.Stat(); {
	case err != nil:
		return nil, err
	case !info.Mode.IsRegular():
		return nil, &fs.PathError{Op: "open", Path: f.Path(), Err: fsat.ErrNotRegular}
	}
	// Without cell_size_check: both checks look at every cell's place as they
	// walk the trees (checkTreePage in btree.c), before they look up rows, so
	// it finds nothing more and costs a quarter of the time.
	db, release, err := openReadAhead(f, "_pragma=trusted_schema(0)", "_pragma=temp_store(2)")
	if err == nil {
		defer release()
		findings, err = db.check(ctx, kind, limit)
	}
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", f.Path(), err)
	}
	return findings, nil
}

// Check runs one of SQLite's checks on the live database that src has open, as
// [Check] does on a copy. It opens and closes no file, so no lock is lost.
func (src *Source) Check(ctx context.Context, kind Kind, limit int) ([]Finding, error) {
	return src.conn.check(ctx, kind, limit)
}

// check runs a check on an open connection.
func (db *conn) check(ctx context.Context, kind Kind, limit int) (findings []Finding, err error) {
	if kind == IntegrityCheck {
		// Not while the database is opened: this makes SQLite read the schema,
		// which may be a large one and has to end when ctx does.
		err = db.exec(ctx, fmt.Sprintf("PRAGMA cache_size(-%d)", checkCache))
	}
	if err == nil {
		// Without a number SQLite stops at 100 rows (sqlite.org/pragma.html).
		err = db.query(ctx, fmt.Sprintf("PRAGMA %s(%d)", kind, limit), func(row []driver.Value) error {
			if text := fmt.Sprint(row[0]); text != "ok" && len(findings) < limit {
				findings = append(findings, Finding{Text: text})
			}
			return nil
		})
	}
	if err == nil {
		return findings, nil
	}
	switch Code(err) {
	case 0:
		return nil, err
	case codeError, codeCorrupt, codeNotADB, codeFormat:
		return append(findings, Finding{Unreadable: true, Text: err.Error()}), nil
	}
	return nil, err
}

// readThrough reads the file to its end.
func readThrough(ctx context.Context, dir *fsat.Dir, name string) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, filehash.Chunk)
	for off := int64(0); ; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch _, err := f.ReadAt(buf, off); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
