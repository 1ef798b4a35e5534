package sqlitedb

import (
	"context"
	"database/sql/driver"
	"fmt"
	"regexp"
	"strings"
)

// SQLite compares the columns of sqlite_schema with the text that it parses
// (sqlite3CheckObjectName in build.c), so they can be believed. A virtual table
// has no root page.
const (
	ordinaryTables = "SELECT name FROM main.sqlite_schema WHERE type = 'table' COLLATE NOCASE AND rootpage > 0"
	virtualTables  = "SELECT name FROM main.sqlite_schema WHERE type = 'table' COLLATE NOCASE AND rootpage = 0"
)

// An object is an index or a generated column that is not stored: what a check
// computes by expressions of the schema.
type object struct {
	table, name string
	column      bool // not an index
	primary     bool // an index that is the table itself, or its primary key
	expression  bool // an index that computes one of its columns
}

// explain returns a statement that needs the same as a check of the object, and
// that is not run: for an index it computes all of its columns and compares by
// its collations.
func (o object) explain() string {
	if o.column {
		return fmt.Sprintf("EXPLAIN SELECT %s FROM main.%s NOT INDEXED", quoteName(o.name), quoteName(o.table))
	}
	return "EXPLAIN REINDEX main." + quoteName(o.name)
}

// objects returns the indexes of a table, or only those that compute something,
// and the generated columns that are not stored.
func (c *conn) objects(ctx context.Context, table string, onlyComputed bool) (found []object, err error) {
	const hiddenVirtual = 2 // in table_xinfo: a column that is computed when it is read
	t := quoteText(table)
	columns, err := c.names(ctx, fmt.Sprintf("SELECT name FROM temp.pragma_table_xinfo(%s, 'main') WHERE hidden = %d", t, hiddenVirtual))
	if err != nil {
		return nil, err
	}
	for _, name := range columns {
		found = append(found, object{table: table, name: name, column: true})
	}
	computed := "cid = -2"
	if len(columns) > 0 {
		computed += fmt.Sprintf(" OR cid IN (SELECT cid FROM temp.pragma_table_xinfo(%s, 'main') WHERE hidden = %d)", t, hiddenVirtual)
	}
	statement := fmt.Sprintf("SELECT name, origin = 'pk', partial, EXISTS (SELECT 1 FROM temp.pragma_index_xinfo(i.name, 'main') WHERE %s)"+
		" FROM temp.pragma_index_list(%s, 'main') AS i", computed, t)
	err = c.query(ctx, statement, func(row []driver.Value) error {
		name, _ := row[0].(string)
		o := object{table: table, name: name, primary: row[1] == int64(1), expression: row[3] == int64(1)}
		if !onlyComputed || o.expression || row[2] == int64(1) || len(columns) > 0 {
			found = append(found, o)
		}
		return nil
	})
	return found, err
}

// A program is what EXPLAIN prints of a statement (sqlite.org/opcode.html).
type program struct {
	steps  int
	values int // how many values it computes that may be long
	calls  []call
	texts  map[int]int  // registers that hold a constant text, and its length
	others map[int]bool // registers that something else is written to
}

// A call is one of a function, by the form that function.String returns.
type call struct {
	function  string
	arguments int // the register of the first one
}

// mostSteps is how long a program may be that computes for a check. SQLite looks
// for an interrupt only where it jumps back. An index with one expression and 60
// columns takes some 100 steps.
const mostSteps = 500

// jumps are the operations that write to no register of their second or third
// number.
var jumps = func() map[string]bool {
	m := make(map[string]bool)
	for name := range strings.FieldsSeq(`Init Goto Once Jump If IfNot IsNull NotNull Eq Ne Lt Le Gt Ge ElseEq
		Found NotFound Rewind Next SorterSort SorterNext SorterInsert IdxInsert SeekEnd OpenRead OpenWrite
		OpenEphemeral SorterOpen Close Clear Halt Transaction ResultRow CollSeq Cast Affinity RealAffinity Noop`) {
		m[name] = true
	}
	return m
}()

func (c *conn) program(ctx context.Context, explain string) (*program, error) {
	p := &program{texts: make(map[int]int), others: make(map[int]bool)}
	err := c.query(ctx, explain, func(row []driver.Value) error {
		operation, _ := row[1].(string)
		p2, _ := row[3].(int64)
		p3, _ := row[4].(int64)
		p4, _ := row[5].(string)
		p.steps++
		switch operation {
		case "Function", "PureFunc":
			p.calls = append(p.calls, call{p4, int(p2)})
			p.others[int(p3)] = true
			p.values++
		case "String8":
			p.texts[int(p2)] = max(p.texts[int(p2)], len(p4))
		case "Concat":
			p.values++
			fallthrough
		default:
			if !jumps[operation] {
				p.others[int(p2)], p.others[int(p3)] = true, true
			}
		}
		return nil
	})
	return p, err
}

// isModest reports whether what a program computes for a row is bounded in time
// and memory, apart from the functions that it calls. length is the length of
// the longest value.
func (p *program) isModest(length int) bool {
	const memory = 64 << 20
	return p.steps <= mostSteps && p.values <= max(16, memory/length)
}

// nativeFunctions are the functions of SQLite that take time and memory in
// proportion to their arguments, or to SQLITE_LIMIT_LENGTH. The number is 0, or
// it is that of the argument, from 1 on, which must be a short constant text for
// that, because the time is in proportion to the product of two arguments.
var nativeFunctions = func() map[string]int {
	m := make(map[string]int)
	for name := range strings.FieldsSeq(`->(2) ->>(2) abs(1) acos(1) acosh(1) asin(1) asinh(1) atan(1) atan2(2) atanh(1)
		ceil(1) ceiling(1) char(-1) coalesce(-4) cos(1) cosh(1) date(-1) datetime(-1) degrees(1) exp(1) floor(1)
		format(-1) hex(1) if(-4) ifnull(2) iif(-4) json(1) json_array_length(1) json_array_length(2)
		json_extract(-1) json_quote(1) json_type(1) json_type(2) json_valid(1) json_valid(2) jsonb(1)
		jsonb_extract(-1) julianday(-1) length(1) likelihood(2) likely(1) ln(1) log(1) log(2) log10(1) log2(1) lower(1)
		ltrim(1) max(-3) min(-3) mod(2) nullif(2) octet_length(1) pi(0) pow(2) power(2) printf(-1) quote(1) radians(1)
		round(1) round(2) rtrim(1) sign(1) sin(1) sinh(1) soundex(1) sqrt(1) strftime(-1) substr(2) substr(3)
		substring(2) substring(3) tan(1) tanh(1) time(-1) timediff(2) trim(1) trunc(1) typeof(1) unhex(1) unicode(1)
		unixepoch(-1) unlikely(1) upper(1) zeroblob(1)`) {
		m[name] = 0
	}
	for name, argument := range map[string]int{"instr(2)": 2, "replace(3)": 2, "like(2)": 1, "like(3)": 1, "glob(2)": 1, "trim(2)": 2, "ltrim(2)": 2, "rtrim(2)": 2} {
		m[name] = argument
	}
	return m
}()

// isNative reports whether a program calls only nativeFunctions.
func (p *program) isNative() bool {
	const short = 64
	for _, c := range p.calls {
		argument, ok := nativeFunctions[c.function]
		if !ok {
			return false
		}
		if argument > 0 {
			register := c.arguments + argument - 1
			if length, ok := p.texts[register]; !ok || length > short || p.others[register] {
				return false
			}
		}
	}
	return true
}

// noteComputations notes whether the schema computes columns of indexes or values
// that may be long, and whether it does so in ways of which a check cannot simply compute the values,
// because that might take too much time or memory. SQLite does not stop a
// function for an interrupt.
func (cc *checkConn) noteComputations(ctx context.Context, kind Kind, o *outcome) error {
	tables, err := cc.mayCompute(ctx)
	if err != nil {
		return err
	}
	for _, table := range tables {
		objects, err := cc.objects(ctx, table, true)
		if err != nil {
			return err
		}
		for _, object := range objects {
			if kind == QuickCheck && !object.column {
				continue
			}
			p, err := cc.program(ctx, object.explain())
			if err != nil {
				return err
			}
			o.computes = o.computes || object.expression || p.values > 0
			o.unclear = o.unclear || !p.isModest(cc.length) || !p.isNative()
		}
	}
	return nil
}

// What the text of a schema shows without being parsed. SQLite writes the
// beginning of an index's text itself (sqlite3CreateIndex in build.c).
var (
	// plainIndex is an index of columns.
	plainIndex = func() *regexp.Regexp {
		const name = `(?:[A-Za-z_][A-Za-z0-9_]*|"[^"]*")`
		const column = name + `(?:\s+COLLATE\s+` + name + `)?(?:\s+ASC|\s+DESC)?`
		return regexp.MustCompile(`^(?i)CREATE(?: UNIQUE)? INDEX ` + name + `\s+ON\s+` + name + `\s*\(\s*` + column + `(?:\s*,\s*` + column + `)*\s*\)\s*$`)
	}()
	// as is part of every generated column.
	as = regexp.MustCompile(`(?i)\bas\b`)
)

// mayCompute returns the tables that may have something to compute. Others are
// recognized by the text of the schema alone, which is quick.
func (c *conn) mayCompute(ctx context.Context) (tables []string, err error) {
	const statement = "SELECT type, tbl_name, sql FROM main.sqlite_schema WHERE rootpage > 0 AND sql IS NOT NULL"
	seen := make(map[string]bool)
	err = c.query(ctx, statement, func(row []driver.Value) error {
		kind, _ := row[0].(string)
		table, _ := row[1].(string)
		text, _ := row[2].(string)
		simple := strings.EqualFold(kind, "table") && !as.MatchString(text) || strings.EqualFold(kind, "index") && plainIndex.MatchString(text)
		if key := strings.ToLower(table); !simple && !seen[key] {
			seen[key] = true
			tables = append(tables, table)
		}
		return nil
	})
	return tables, err
}

// noteMissingModules notes the virtual tables that SQLite passes over, because
// it has no such module.
func (c *checker) noteMissingModules(ctx context.Context, cc *checkConn, o *outcome) error {
	tables, err := cc.names(ctx, virtualTables)
	if err != nil {
		return err
	}
	o.virtual = len(tables) > 0
	for _, table := range tables {
		err := cc.exec(ctx, "EXPLAIN SELECT 1 FROM main."+quoteName(table))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case cannotCheck(err) && strings.Contains(err.Error(), "no such module: "):
			o.notes.add("virtual table %s was not checked: %w", table, err)
		}
	}
	return nil
}
