package sqlitedb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/atocore/backup/internal/errdefs"
)

// A function is one that SQL can call.
type function struct {
	name string
	nArg int // negative if their number varies; below -1 in SQLite's own functions only
}

// String returns the form that EXPLAIN prints.
func (f function) String() string { return fmt.Sprintf("%s(%d)", f.name, f.nArg) }

func (f function) equal(g function) bool {
	return strings.EqualFold(f.name, g.name) && f.nArg == g.nArg
}

// A catalog is what is registered on a connection.
type catalog struct {
	functions           []function // scalar and deterministic
	collations, modules []string
}

// catalog lists what is registered: all that a schema can use, or only the
// functions that are not built into SQLite's core.
func (c *conn) catalog(ctx context.Context, builtin bool) (found catalog, err error) {
	const deterministic = 0x800 // SQLITE_DETERMINISTIC
	statement := fmt.Sprintf("SELECT name, narg FROM pragma_function_list WHERE type = 's' AND flags & %d", deterministic)
	if !builtin {
		statement += " AND NOT builtin"
	}
	err = c.query(ctx, statement, func(row []driver.Value) error {
		name, _ := row[0].(string)
		nArg, _ := row[1].(int64)
		found.functions = append(found.functions, function{name, int(nArg)})
		return nil
	})
	if err == nil {
		found.collations, err = c.names(ctx, "SELECT name FROM pragma_collation_list")
	}
	if err == nil {
		// The others are made when they are used first.
		found.modules, err = c.names(ctx, `SELECT name FROM pragma_module_list WHERE name NOT LIKE 'pragma\_%' ESCAPE '\'`)
	}
	return found, err
}

// ownCatalog returns what a connection has without additions, and ownExtensions
// what of that is not built into SQLite's core.
var (
	ownCatalog    = sync.OnceValues(func() (catalog, error) { return catalogOf(new(Driver), true) })
	ownExtensions = sync.OnceValues(func() (catalog, error) { return catalogOf(new(Driver), false) })
)

func catalogOf(d *Driver, builtin bool) (catalog, error) {
	b, err := openBridge(d, "")
	if err != nil {
		return catalog{}, err
	}
	defer b.close()
	return b.conn.catalog(context.Background(), builtin)
}

// A host is what the program registered for the databases that it uses.
type host struct {
	connect   func(*Driver) error
	connected catalog // what connect registers

	// functions and collations are registered with modernc.org/sqlite for all
	// connections. They are called through bridge.
	functions  []function
	collations []string
	bridge     *bridge
}

// hasAny reports whether there is anything.
func (h *host) hasAny() bool { return h.connect != nil || h.bridge != nil }

func (h *host) close() { h.bridge.close() }

func (h *host) has(f function) bool {
	return slices.ContainsFunc(h.functions, f.equal) || slices.ContainsFunc(h.connected.functions, f.equal)
}

// knows reports whether a function that EXPLAIN prints is the host's.
func (h *host) knows(printed string) bool {
	is := func(f function) bool { return strings.EqualFold(f.String(), printed) }
	return slices.ContainsFunc(h.functions, is) || slices.ContainsFunc(h.connected.functions, is)
}

// loadHost finds out what the program registered. A connection hook that the
// program registered for all connections runs on an empty database in memory,
// and if it does not let that be opened, nothing is registered for all.
func loadHost(ctx context.Context, connect func(*Driver) error) (*host, error) {
	h := &host{connect: connect}
	if connect != nil {
		d := new(Driver)
		if err := connect(d); err != nil {
			return nil, err
		}
		b, err := openBridge(d, "")
		if err != nil {
			return nil, err
		}
		defer b.close()
		if h.connected, err = b.additions(ctx); err != nil {
			return nil, err
		}
	}
	registered := registeredDriver()
	if registered == nil {
		return h, nil
	}
	b, err := openBridge(registered, "")
	if err != nil {
		return h, nil
	}
	added, err := b.additions(ctx)
	if err != nil || len(added.functions) == 0 && len(added.collations) == 0 {
		b.close()
		return h, ctx.Err()
	}
	h.functions, h.collations, h.bridge = added.functions, added.collations, b
	return h, nil
}

// additions returns what a bridge has that a driver value has not by itself.
func (b *bridge) additions(ctx context.Context) (catalog, error) {
	own, err := ownCatalog()
	if err != nil {
		return catalog{}, err
	}
	extensions, err := ownExtensions()
	if err != nil {
		return catalog{}, err
	}
	added, err := b.conn.catalog(ctx, false)
	added.functions = slices.DeleteFunc(added.functions, func(f function) bool { return slices.ContainsFunc(extensions.functions, f.equal) })
	added.collations = slices.DeleteFunc(added.collations, func(name string) bool { return slices.Contains(own.collations, name) })
	return added, err
}

// registeredDriver returns the driver value on which modernc.org/sqlite
// registers what is meant for all connections.
func registeredDriver() *Driver {
	db, err := sql.Open("sqlite", "")
	if err != nil {
		return nil
	}
	defer db.Close()
	d, _ := db.Driver().(*Driver)
	return d
}

// A bridge is a connection to an empty database in memory. Functions and
// collations that the connection of a check lacks are called through it.
type bridge struct {
	conn     *conn
	prepared map[string]driver.Stmt
	broken   error
}

// openBridge opens a bridge with what is registered on d. encoding is the
// encoding of its texts; if it is empty, UTF-8.
func openBridge(d *Driver, encoding string) (_ *bridge, err error) {
	defer errdefs.Recover(&err) // from a connection hook
	c, err := d.Open(":memory:")
	if err != nil {
		return nil, err
	}
	b := &bridge{conn: &conn{c}, prepared: make(map[string]driver.Stmt)}
	if encoding != "" {
		if err := b.conn.exec(context.Background(), "PRAGMA encoding = "+quoteText(encoding)); err != nil {
			b.close()
			return nil, err
		}
	}
	return b, nil
}

func (b *bridge) close() {
	if b == nil {
		return
	}
	for _, s := range b.prepared {
		s.Close()
	}
	b.conn.Close()
}

// call calls a function.
func (b *bridge) call(f function, args []driver.Value) (driver.Value, error) {
	marks := strings.TrimSuffix(strings.Repeat("?,", len(args)), ",")
	return b.query(fmt.Sprintf("SELECT %s(%s)", quoteName(f.name), marks), args)
}

// query returns the value of a statement. A panic in it becomes an error, and
// then the bridge is of no more use.
func (b *bridge) query(statement string, args []driver.Value) (value driver.Value, err error) {
	if b.broken != nil {
		return nil, b.broken
	}
	done := false
	defer func() {
		if !done {
			b.broken = err
		}
	}()
	defer errdefs.Recover(&err)
	s := b.prepared[statement]
	if s == nil {
		if s, err = b.conn.driver.Prepare(statement); err != nil {
			done = true
			return nil, err
		}
		b.prepared[statement] = s
	}
	named := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(context.Background(), named)
	if err != nil {
		done = true
		return nil, err
	}
	row := make([]driver.Value, 1)
	err = rows.Next(row)
	if cerr := rows.Close(); err == nil {
		err = cerr
	}
	done = true
	return row[0], err
}
