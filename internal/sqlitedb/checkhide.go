package sqlitedb

import (
	"bytes"
	"context"
	"database/sql/driver"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// An index that computes a column cannot be checked with a stand-in: all rows
// would be missing from it, and for each SQLite would read all of the index. So
// it is hidden. SQLite sees a schema in which the index has no entries, by a
// condition that is never true, so that it compares none, but goes on to count
// the pages as used. Nothing is written: the file reads differently.

// countHidden finds hidden indexes with another number of entries than their
// tables, for which SQLite needs no function and no collation.
func (a *apartCheck) countHidden(ctx context.Context, cc *checkConn) error {
	const wrong = "wrong # of entries in index "
	if len(a.hopeless) > 0 {
		return nil // the quick check computes columns, too
	}
	err := cc.run(ctx, QuickCheck, "", func(text string) bool {
		if name, ok := strings.CutPrefix(text, wrong); ok && len(a.counts) < a.Limit {
			if slices.ContainsFunc(a.hidden, func(o object) bool { return o.name == name }) {
				a.counts = append(a.counts, Finding{Text: cut(text)})
			}
		}
		return true
	})
	if cannotCheck(err) {
		return nil
	}
	return err
}

// hide opens a connection without the hidden indexes. If there is one that
// cannot be hidden, no index of its table is compared. hide returns nil if none
// can be hidden.
func (a *apartCheck) hide(ctx context.Context, cc *checkConn) (*checkConn, error) {
	pages, err := a.schemaPages(ctx)
	if err != nil {
		return nil, err
	}
	var edits []edit
	hidden := make(map[string]string) // the new texts, by the old ones
	for _, o := range a.hidden {
		text, err := cc.text(ctx, "SELECT ifnull(sql, '') FROM main.sqlite_schema WHERE type = 'index' COLLATE NOCASE AND name = "+quoteText(o.name))
		if err != nil {
			return nil, err
		}
		without, ok := withoutEntries(text)
		found := false
		for _, page := range pages {
			for at := 0; ok; found = true {
				i := bytes.Index(page.data[at:], []byte(text))
				if i < 0 {
					break
				}
				at += i
				edits = append(edits, edit{page.off + int64(at), []byte(without)})
				at += len(text)
			}
		}
		if found {
			hidden[text] = without
		} else {
			a.compareNone(o)
		}
	}
	if len(edits) == 0 {
		return nil, nil
	}
	edited := *a.checker
	edited.file = &editedFile{a.file, edits}
	without, err := a.connectTo(ctx, &edited, cc, hidden)
	if without == nil && err == nil {
		for _, o := range a.hidden {
			a.compareNone(o)
		}
	}
	return without, err
}

// connectTo opens a connection to an edited file. It returns nil if its schema
// is not that of cc but for the texts that are hidden.
func (a *apartCheck) connectTo(ctx context.Context, edited *checker, cc *checkConn, hidden map[string]string) (*checkConn, error) {
	want, err := cc.names(ctx, schemaTexts)
	if err != nil {
		return nil, err
	}
	for i, text := range want {
		if without, ok := hidden[text]; ok {
			want[i] = without
		}
	}
	without, err := edited.open(ctx, a.additions)
	if err != nil {
		return nil, err
	}
	without.driver.use.encoding = cc.driver.use.encoding
	if err = without.prepare(ctx, a.Kind); err == nil {
		var got []string
		if got, err = without.names(ctx, schemaTexts); err == nil && slices.Equal(got, want) {
			return without, nil
		}
	}
	without.close()
	if isDamage(err) || cannotCheck(err) {
		return nil, nil
	}
	return nil, err
}

const schemaTexts = "SELECT ifnull(sql, '') FROM main.sqlite_schema ORDER BY rowid"

// A schemaPage is a page of the table sqlite_schema.
type schemaPage struct {
	off  int64
	data []byte
}

// schemaPages reads the pages of the table sqlite_schema in which a text can be
// as a whole. It returns none if SQLite cannot find them.
func (a *apartCheck) schemaPages(ctx context.Context) (pages []schemaPage, err error) {
	cc, err := a.open(ctx, additions{}) // has the module dbstat
	if err != nil {
		return nil, err
	}
	defer cc.close()
	text, err := cc.text(ctx, "PRAGMA page_size")
	if err != nil {
		return nil, err
	}
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, err
	}
	err = cc.query(ctx, "SELECT pageno FROM temp.dbstat WHERE name = 'sqlite_schema' AND pagetype = 'leaf'", func(row []driver.Value) error {
		number, _ := row[0].(int64)
		page := schemaPage{(number - 1) * size, make([]byte, size)}
		if _, err := a.file.ReadAt(page.data, page.off); err != nil && err != io.EOF {
			return err
		}
		pages = append(pages, page)
		return nil
	})
	if isDamage(err) || cannotCheck(err) {
		return nil, nil
	}
	return pages, err
}

// indexOn is how the text of an index begins. SQLite writes what is before the
// index's name.
var indexOn = regexp.MustCompile(`^CREATE(?: UNIQUE)? (INDEX ` + anyName + `\s+(?i:ON)\s+` + anyName + `)\s*\(`)

const anyName = "(?:[A-Za-z_\\x80-\\x{10ffff}][A-Za-z0-9_$\\x80-\\x{10ffff}]*|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\\[[^\\]]*\\])"

// withoutEntries returns the text of an index that has the same name and table
// and no entries. It is as long as the text of the given one. ok is false if
// that is too short.
func withoutEntries(text string) (without string, ok bool) {
	found := indexOn.FindStringSubmatch(text)
	if found == nil {
		return "", false
	}
	without = "CREATE " + found[1] + "(1)WHERE 0"
	if len(without) > len(text) {
		return "", false
	}
	return without + strings.Repeat(" ", len(text)-len(without)), true
}

// An edit is what is read of a file instead of what is there.
type edit struct {
	off  int64
	data []byte
}

// An editedFile reads as a file with edits.
type editedFile struct {
	io.ReaderAt
	edits []edit
}

// ReadAt implements io.ReaderAt.
func (f *editedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.ReaderAt.ReadAt(p, off)
	for _, e := range f.edits {
		from, to := max(off, e.off), min(off+int64(n), e.off+int64(len(e.data)))
		if from < to {
			copy(p[from-off:to-off], e.data[from-e.off:])
		}
	}
	return n, err
}
