package sqlitedb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

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

// Primary result codes by which SQLite cannot make a check, or not in full
// (sqlite.org/rescode.html): something is missing, a value is longer than
// checkLength allows, or noViews does not allow a view to be read.
const (
	codeTooBig = 18
	codeAuth   = 23
)

// cannotCheck reports whether err means that SQLite lacks something for the
// check, and not that the database is damaged.
func cannotCheck(err error) bool {
	switch Code(err) {
	case codeError, codeTooBig, codeAuth:
		return true
	}
	return false
}

// isDamage reports whether err means that the file is not a database or is too
// damaged to be read.
func isDamage(err error) bool {
	switch Code(err) {
	case codeCorrupt, codeNotADB, codeFormat:
		return true
	}
	return false
}

// A Finding is one objection of SQLite to a database.
type Finding struct {
	// Unreadable is set if SQLite could not run the check to its end, because
	// the file is not a database or is too damaged.
	Unreadable bool
	// Text is SQLite's own, and may quote untrusted bytes. It is cut at maxText.
	Text string
}

// maxText bounds the text of a finding or a note, which may quote names as long
// as the database.
const maxText = 2 << 10

// cut returns at most maxText bytes of text, as a copy.
func cut(text string) string { return strings.Clone(text[:min(len(text), maxText)]) }

// CheckOptions say what Check does.
type CheckOptions struct {
	Kind Kind
	// Limit is the most faults to return.
	Limit int
	// Connect, if it is not nil, registers what the schema of the database may
	// need. It is called for each connection that is opened after a first look at
	// the database.
	Connect func(*Driver) error
}

// Checked is the result of a check.
type Checked struct {
	// Findings are the objections to the database. There are none if it passes,
	// and at most Limit, followed by one that is Unreadable if SQLite could not
	// finish.
	Findings []Finding
	// Notes say what could not be checked here and why, with SQLite's message,
	// and what virtual tables say of themselves.
	Notes []string
}

// Check runs one of SQLite's checks on the file dir/name, to which nothing may
// be writing.
//
// An error means that the check could not be made: ctx's error, Connect's, or a
// file that cannot be read. One that is not regular is fsat.ErrNotRegular.
// SQLite reports a page that it could not read in the same way as a damaged one
// (sqlite.org/rescode.html, SQLITE_IOERR_CORRUPTFS; integrity_check's "unable
// to get the page"). So findings count only if the file can be read, and if
// SQLite makes them again afterwards: a database that does not pass is read
// three times.
//
// What cannot be checked for want of something that the host has is left out
// and noted (see apart).
func Check(ctx context.Context, dir *fsat.Dir, name string, o CheckOptions) (Checked, error) {
	f, err := dir.Open(name)
	if err != nil {
		return Checked{}, err
	}
	defer f.Close()
	switch info, err := f.Stat(); {
	case err != nil:
		return Checked{}, err
	case !info.Mode.IsRegular():
		return Checked{}, &fs.PathError{Op: "open", Path: f.Path(), Err: fsat.ErrNotRegular}
	}
	c := checker{CheckOptions: o, file: f, size: func() (int64, error) {
		info, err := f.Stat()
		return info.Size, err
	}}
	checked, err := c.check(ctx)
	if err != nil {
		return Checked{}, fmt.Errorf("check %s: %w", f.Path(), err)
	}
	return checked, nil
}

// A checker checks one file.
type checker struct {
	CheckOptions
	file io.ReaderAt
	size func() (int64, error)
}

func (c *checker) check(ctx context.Context) (checked Checked, err error) {
	// To SQLite a context that ends is a file that cannot be read.
	defer func() {
		if err != nil {
			checked, err = Checked{}, interrupted(ctx, err)
		}
	}()
	first, err := c.plain(ctx, false)
	if err != nil || !first.unclear && len(first.findings) == 0 {
		return Checked{Notes: first.notes.texts()}, err
	}
	if err := readThrough(ctx, c.file); err != nil {
		return Checked{}, err
	}
	host, err := loadHost(ctx, c.Connect)
	if err != nil {
		return Checked{}, err
	}
	defer host.close()
	if first.unclear || first.virtual || host.hasAny() {
		return c.apart(ctx, host)
	}
	second, err := c.plain(ctx, true)
	return Checked{second.findings, second.notes.texts()}, err
}

// An outcome is that of a check of the whole database at once.
type outcome struct {
	findings []Finding
	notes    notes
	virtual  bool // it has virtual tables
	computes bool // runLong must not be used
	unclear  bool // it cannot be checked at once
}

// plain runs the check as SQLite makes it by itself, if the database needs
// nothing else. If long is set, it finds up to Limit faults, if it can.
func (c *checker) plain(ctx context.Context, long bool) (o outcome, err error) {
	conn, err := c.open(ctx, additions{})
	if err != nil {
		return o, err
	}
	defer conn.close()
	err = conn.prepare(ctx, c.Kind)
	if err == nil {
		err = c.noteMissingModules(ctx, conn, &o)
	}
	if err == nil {
		err = conn.noteComputations(ctx, c.Kind, &o)
	}
	if err == nil && !o.unclear {
		keep := func(text string) bool {
			o.findings = append(o.findings, Finding{Text: cut(text)})
			return len(o.findings) < c.Limit
		}
		if long && !o.computes {
			err = conn.runLong(ctx, c.Kind, c.Limit, keep)
		} else {
			err = conn.run(ctx, c.Kind, "", keep)
			if len(o.findings) == faultsAtOnce {
				o.notes.add("there may be more than %v faults", faultsAtOnce)
			}
		}
	}
	switch {
	case err == nil:
		return o, nil
	case cannotCheck(err):
		o.unclear = true
		return o, nil
	case isDamage(err):
		o.findings = append(o.findings, Finding{Unreadable: true, Text: cut(err.Error())})
		return o, nil
	}
	return outcome{}, err
}

// readThrough reads the file to its end.
func readThrough(ctx context.Context, f io.ReaderAt) error {
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

// Check runs one of SQLite's checks on the live database that src has open, as
// [Check] does on a copy. It opens and closes no file, so no lock is lost. What
// cannot be checked is left out, and so is what virtual tables say of
// themselves.
func (src *Source) Check(ctx context.Context, kind Kind, limit int) ([]Finding, error) {
	if kind == IntegrityCheck {
		if err := src.exec(ctx, fmt.Sprintf("PRAGMA cache_size(-%d)", checkCache)); err != nil {
			return nil, err
		}
	}
	var findings []Finding
	run := func(pragma string, counts func(text string) bool) error {
		err := src.query(ctx, pragma, func(row []driver.Value) error {
			if text, _ := row[0].(string); text != "ok" && counts(text) && len(findings) < limit {
				findings = append(findings, Finding{Text: cut(text)})
			}
			return nil
		})
		if isDamage(err) {
			findings = append(findings, Finding{Unreadable: true, Text: cut(err.Error())})
			return nil
		}
		return err
	}
	any := func(string) bool { return true }
	// Without a number SQLite stops at 100 rows (sqlite.org/pragma.html).
	err := run(fmt.Sprintf("PRAGMA %s(%d)", kind, limit), any)
	if err == nil && len(findings) == 0 || err != nil && !cannotCheck(err) {
		return nil, err
	}
	tables, err := src.names(ctx, ordinaryTables)
	if err != nil {
		if isDamage(err) || cannotCheck(err) {
			return []Finding{{Unreadable: true, Text: cut(err.Error())}}, nil
		}
		return nil, err
	}
	findings = nil
	err = run(fmt.Sprintf("PRAGMA %s(%d)", QuickCheck, limit), isStructure)
	for i := 0; i < len(tables) && len(findings) < limit && (err == nil || cannotCheck(err)); i++ {
		err = run(fmt.Sprintf("PRAGMA %s(%s)", kind, quoteText(tables[i])), any)
	}
	if err != nil && !cannotCheck(err) {
		return nil, err
	}
	return findings, nil
}

// isStructure reports whether a row of a check is about the pages of the file,
// which do not depend on what the schema says of their content.
func isStructure(text string) bool { return strings.HasPrefix(text, "*** in database ") }

// quoteText returns text as an SQL string, and quoteName as an identifier.
func quoteText(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
func quoteName(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// errEnough ends a check of which no more rows are wanted.
var errEnough = errors.New("enough")
