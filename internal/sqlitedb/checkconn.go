package sqlitedb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"

	"modernc.org/sqlite"
	"modernc.org/sqlite/vfs"
)

// checkCache is the size of SQLite's page cache for an integrity check in KiB.
// It has to hold the indexes, whose pages are read in the order of the table's
// rows; a quick check reads each page once or twice. The memory used is up to
// twice that, because a page of 4 KiB and what SQLite keeps beside it are
// allocated in a piece of 8 KiB.
const checkCache = 14_000

// limitLength is SQLITE_LIMIT_LENGTH (sqlite.org/c3ref/c_limit_attached.html).
const limitLength = 0

// checkLength returns the most bytes that a value may have while a file of size
// bytes is checked. A stored value is not longer than the file, but a schema can
// compute longer ones. A stored one may be longer than longestChecked: SQLite has
// it in memory twice when it looks it up in an index, and then the check of a large
// value would end a process in a small container. Its table is not checked to its
// end, and that is noted.
func checkLength(size int64) int { return int(min(4*min(size, longestChecked)+1<<20, longestChecked)) }

// longestChecked is the length of the longest value that a check reads.
const longestChecked = 32 << 20

// A checkConn is a connection that checks a file and cannot write to it.
type checkConn struct {
	*conn
	driver *checkDriver
	length int // SQLITE_LIMIT_LENGTH

	// The only way of modernc.org/sqlite to set a limit takes a connection of
	// database/sql.
	pool   *sql.DB
	pooled *sql.Conn
	system *vfs.FS
}

// open opens a connection with additions.
//
// Without cell_size_check: both checks look at every cell's place as they walk
// the trees (checkTreePage in btree.c), before they look up rows, so it finds
// nothing more and costs a quarter of the time. Without trusted_schema(0), by
// which SQLite refuses a schema that calls a function which was added: what a
// schema makes a check call is deterministic, and no view is read (noViews).
func (c *checker) open(ctx context.Context, add additions) (_ *checkConn, err error) {
	size, err := c.size()
	if err != nil {
		return nil, err
	}
	cc := &checkConn{length: checkLength(size)}
	defer func() {
		if err != nil {
			cc.close()
		}
	}()
	if cc.driver, err = takeDriver(add); err != nil {
		return nil, err
	}
	cc.driver.use = &driverUse{ctx: ctx, host: add.host}
	var name string
	if name, cc.system, err = vfs.New(newReadAhead(ctx, c.file, c.size)); err != nil {
		return nil, err
	}
	cc.pool = sql.OpenDB(checkConnector{cc.driver, URI(readAheadName, "ro", "immutable=1", "vfs="+name, "_pragma=temp_store(2)")})
	if cc.pooled, err = cc.pool.Conn(ctx); err != nil {
		return nil, err
	}
	if _, err = sqlite.Limit(cc.pooled, limitLength, cc.length); err != nil {
		return nil, err
	}
	err = cc.pooled.Raw(func(raw any) error {
		cc.conn = &conn{raw.(driver.Conn)}
		return raw.(sqlite.AuthorizerRegisterer).RegisterAuthorizer(noViews)
	})
	return cc, err
}

func (cc *checkConn) close() {
	if cc.pooled != nil {
		cc.pooled.Close()
	}
	if cc.pool != nil {
		cc.pool.Close()
	}
	if cc.system != nil {
		cc.system.Close()
	}
	if cc.driver != nil {
		cc.driver.giveBack()
	}
}

// A checkConnector opens connections of a driver value that is not registered.
type checkConnector struct {
	driver *checkDriver
	uri    string
}

// Connect implements driver.Connector.
func (c checkConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.uri) }

// Driver implements driver.Connector.
func (c checkConnector) Driver() driver.Driver { return &c.driver.Driver }

// noViews keeps views from being read. No check needs one, but a virtual table
// reads tables by their names, and a view that has such a name could compute for
// ever, or what fills the memory.
func noViews(_ sqlite.AuthorizerActionCode, _, _, _, view string) sqlite.AuthorizerReturnCode {
	if view != "" {
		return sqlite.AuthorizerDeny
	}
	return sqlite.AuthorizerOK
}

// prepare prepares the connection for a check. It makes SQLite read the schema,
// which may be a large one, and so has to end when ctx does.
func (cc *checkConn) prepare(ctx context.Context, kind Kind) error {
	if kind == IntegrityCheck {
		return cc.exec(ctx, fmt.Sprintf("PRAGMA cache_size(-%d)", checkCache))
	}
	return cc.exec(ctx, firstRead)
}

// faultsAtOnce is how many faults SQLite reports at most, unless it gets a number
// (sqlite.org/pragma.html).
const faultsAtOnce = 100

// run runs a check, of one table or, if table is empty, of the whole database,
// and calls keep for each fault, until it returns false or there were
// faultsAtOnce.
//
// The driver heeds ctx only until a statement returns its first row. So the
// check runs within a statement that returns one row in the end, and the faults
// come by a function. The schema temp is named because a database may have a
// table with the name of the table-valued function.
func (cc *checkConn) run(ctx context.Context, kind Kind, table string, keep func(text string) bool) error {
	argument := "NULL"
	if table != "" {
		argument = quoteText(table)
	}
	use := cc.driver.use
	use.enough, use.keep = false, keep
	err := cc.exec(ctx, fmt.Sprintf("SELECT count(%s(%[2]s)) FROM temp.pragma_%[2]s(%s, 'main')", faultFunction, kind, argument))
	return use.result(ctx, err)
}

// runLong is run for a whole database with up to most faults. After the first
// fault, ctx is heeded only where SQLite reads a page. So it must not be used if
// the schema computes something: a table may be in SQLite's cache, and a row may
// take long. For each row that is missing from an index which computes a column,
// SQLite reads all of the index (sqlite3VdbeFindIndexKey in vdbeaux.c).
func (cc *checkConn) runLong(ctx context.Context, kind Kind, most int, keep func(text string) bool) error {
	use := cc.driver.use
	use.enough = false
	err := cc.query(ctx, fmt.Sprintf("PRAGMA main.%s(%d)", kind, most), func(row []driver.Value) error {
		if text, _ := row[0].(string); text != "ok" && !keep(text) {
			use.enough = true
			return errEnough
		}
		return ctx.Err()
	})
	return use.result(ctx, err)
}

// result returns the error of a check that ended with err.
func (u *driverUse) result(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case u.enough:
		return nil
	case u.failed != nil:
		return u.failed
	}
	return err
}

// names returns the first column of a statement's rows, which is a name.
func (c *conn) names(ctx context.Context, statement string) (names []string, err error) {
	err = c.query(ctx, statement, func(row []driver.Value) error {
		name, _ := row[0].(string)
		names = append(names, name)
		return nil
	})
	return names, err
}
