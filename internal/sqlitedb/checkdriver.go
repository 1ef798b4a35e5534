package sqlitedb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"modernc.org/sqlite"
	"modernc.org/sqlite/vtab"

	"github.com/atocore/backup/internal/errdefs"
)

// Driver is a driver value of modernc.org/sqlite, by which functions and
// collations are registered.
type Driver = sqlite.Driver

// additions are what a connection has beyond SQLite's own functions, collations
// and modules. Without any it has all of SQLite's own, and no others.
type additions struct {
	// apart is set for a connection that checks what SQLite cannot check at once:
	// without virtual tables, and with guarded functions.
	apart bool
	host  *host
	// functions and collations are missing. They get a stand-in, so that a check
	// can be prepared; nothing that uses them is checked by it.
	functions, collations []string
}

// key identifies the additions, if they do not depend on the host's function
// that registers some.
func (a additions) key() (key string, ok bool) {
	if !a.apart {
		return "", true
	}
	if a.host.connect != nil {
		return "", false
	}
	parts := []string{"apart"}
	for _, f := range a.host.functions {
		parts = append(parts, fmt.Sprint("host function ", f.nArg, f.name))
	}
	for kind, names := range map[string][]string{"host collation ": a.host.collations, "function ": a.functions, "collation ": a.collations} {
		for _, name := range names {
			parts = append(parts, kind+name)
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, "\x00"), true
}

// A checkDriver is a driver value with what a kind of check needs. It is used
// for one connection at a time. It is not the registered one, so connection
// hooks of the host do not run on a snapshot.
type checkDriver struct {
	Driver
	key      string
	reusable bool
	use      *driverUse
}

// A driverUse is what the functions of a checkDriver work with during a check.
type driverUse struct {
	ctx    context.Context
	keep   func(text string) bool // see checkConn.run
	enough bool                   // keep returned false

	host     *host
	encoding string  // of the database; empty for UTF-8
	plain    *bridge // for functions that are guarded
	refused  bool    // by a guard
	failed   error   // a panic, or the error of a collation, which cannot return it
}

// spareDrivers are kept because modernc.org/sqlite never frees what is
// registered on a driver value, of which each has its own.
var spareDrivers struct {
	sync.Mutex
	list []*checkDriver
}

const mostSpareDrivers = 64

func takeDriver(add additions) (*checkDriver, error) {
	key, reusable := add.key()
	spareDrivers.Lock()
	i := slices.IndexFunc(spareDrivers.list, func(d *checkDriver) bool { return reusable && d.key == key })
	if i >= 0 {
		d := spareDrivers.list[i]
		spareDrivers.list = slices.Delete(spareDrivers.list, i, i+1)
		spareDrivers.Unlock()
		return d, nil
	}
	spareDrivers.Unlock()
	d := &checkDriver{key: key, reusable: reusable}
	return d, d.register(add)
}

func (d *checkDriver) giveBack() {
	if d.use != nil {
		d.use.plain.close()
		d.use = nil
	}
	if !d.reusable {
		return
	}
	spareDrivers.Lock()
	defer spareDrivers.Unlock()
	if len(spareDrivers.list) == mostSpareDrivers {
		spareDrivers.list = slices.Delete(spareDrivers.list, 0, 1)
	}
	spareDrivers.list = append(spareDrivers.list, d)
}

// A scalar is a function that is called from SQL.
type scalar = func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error)

// faultFunction hands a fault to the driverUse.
const faultFunction = "atocore_backup_fault"

func (d *checkDriver) register(add additions) error {
	err := d.RegisterFunction(faultFunction, &sqlite.FunctionImpl{NArgs: 1, VolatileArgs: true, Scalar: d.fault})
	if err != nil || !add.apart {
		return err
	}
	own, err := ownCatalog()
	if err != nil {
		return err
	}
	host := add.host
	if host.connect != nil {
		if err := host.connect(&d.Driver); err != nil {
			return err
		}
	}
	for _, f := range own.functions {
		switch argument, ok := nativeFunctions[f.String()]; {
		case ok && argument == 0, host.has(f):
		case slices.Contains(guardedFunctions, f.name):
			d.addFunction(f, d.guarded(f))
		default:
			d.addFunction(f, standIn)
		}
	}
	for _, f := range host.functions {
		if !slices.ContainsFunc(host.connected.functions, f.equal) {
			d.addFunction(f, d.bridged(f))
		}
	}
	for _, name := range host.collations {
		if !slices.Contains(host.connected.collations, name) {
			d.addCollation(name, d.bridgedCollation(name))
		}
	}
	for _, name := range add.functions {
		d.addFunction(function{name, -1}, standIn)
	}
	for _, name := range add.collations {
		d.addCollation(name, strings.Compare)
	}
	for _, name := range own.modules {
		if err := d.RegisterModule(name, noModule{}); err != nil {
			return err
		}
	}
	return nil
}

// addFunction registers a function. The driver takes a name once, in whatever
// case, and SQLite knows no difference between cases.
func (d *checkDriver) addFunction(f function, call scalar) {
	for _, name := range []string{f.name, strings.ToUpper(f.name), strings.ToUpper(f.name[:1]) + f.name[1:]} {
		impl := &sqlite.FunctionImpl{NArgs: int32(max(f.nArg, -1)), Deterministic: true, VolatileArgs: true, Scalar: call}
		if d.RegisterFunction(name, impl) == nil {
			return
		}
	}
}

func (d *checkDriver) addCollation(name string, compare func(a, b string) int) {
	_ = d.RegisterCollationUtf8(name, compare) // unless the host registered it
}

func (d *checkDriver) fault(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
	if text, _ := args[0].(string); text != "ok" && !d.use.keep(text) {
		d.use.enough = true
		return nil, errEnough
	}
	return int64(1), nil
}

// standIn stands for a function that is not called. Its value fits most columns,
// also if they are NOT NULL, so that few faults have to be dropped.
func standIn(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) { return int64(0), nil }

// guardedFunctions are functions of SQLite that take time or memory out of
// proportion to their arguments, but return the same when they are called
// through a bridge. All that are neither native nor guarded are not computed:
// those of JSON return something else, because a bridge loses what marks a text
// as JSON (sqlite.org/c3ref/value_subtype.html).
var guardedFunctions = []string{"concat", "concat_ws", "glob", "instr", "like", "ltrim", "replace", "rtrim", "trim", "unhex"}

// guardedWork is how much work a call of a guarded function may be: so many
// bytes of one argument, for each byte of the others. It takes some tenths of a
// second.
const guardedWork = 1 << 27

var (
	errTooMuchWork = errors.New("too much work for a check")
	errNotComputed = errors.New("not computed in a check")
)

// guarded returns a function that calls one of SQLite's if that is quick, since
// it cannot be interrupted.
func (d *checkDriver) guarded(f function) scalar {
	return func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		use := d.use
		if err := use.ctx.Err(); err != nil {
			return nil, err
		}
		longest, others := int64(0), int64(1)
		for _, arg := range args {
			size := int64(32) // of a number
			switch arg := arg.(type) {
			case string:
				size = int64(len(arg))
			case []byte:
				size = int64(len(arg))
			}
			longest, others = max(longest, size), others+min(longest, size)
		}
		if longest > guardedWork/others {
			use.refused = true
			return nil, fmt.Errorf("%s: %w", f.name, errTooMuchWork)
		}
		if use.plain == nil {
			var err error
			if use.plain, err = openBridge(new(Driver), use.encoding); err != nil {
				return nil, err
			}
		}
		return use.plain.call(f, args)
	}
}

func (d *checkDriver) bridged(f function) scalar {
	return func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		if err := d.use.ctx.Err(); err != nil {
			return nil, err
		}
		value, err := d.use.host.bridge.call(f, args)
		if errors.Is(err, errdefs.ErrPanic) {
			d.use.failed = err
		}
		return value, err
	}
}

func (d *checkDriver) bridgedCollation(name string) func(a, b string) int {
	statement := fmt.Sprintf("SELECT (?1 > ?2 COLLATE %[1]s) - (?1 < ?2 COLLATE %[1]s)", quoteName(name))
	return func(a, b string) int {
		if d.use.failed != nil {
			return 0
		}
		order, err := d.use.host.bridge.query(statement, []driver.Value{a, b})
		if err != nil {
			d.use.failed = fmt.Errorf("collation %s: %w", name, err)
		}
		n, _ := order.(int64)
		return int(n)
	}
}

// noModule is a module without a check of its own, whose tables are empty.
type noModule struct{}

// Create implements vtab.Module. Nothing is created in a check.
func (noModule) Create(vtab.Context, []string) (vtab.Table, error) { return nil, errors.ErrUnsupported }

// Connect implements vtab.Module.
func (noModule) Connect(ctx vtab.Context, _ []string) (vtab.Table, error) {
	return noTable{}, ctx.Declare("CREATE TABLE no(thing)")
}

type noTable struct{}

func (noTable) BestIndex(*vtab.IndexInfo) error { return nil }
func (noTable) Open() (vtab.Cursor, error)      { return nil, errors.ErrUnsupported }
func (noTable) Disconnect() error               { return nil }
func (noTable) Destroy() error                  { return nil }
