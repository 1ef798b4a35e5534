package sqlitedb

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/filehash"
)

// made returns the bytes of a database that statements make. They run as those
// of a program that has a collation HOST and functions hostf and other.
func made(t *testing.T, statements ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "made.db")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	d := new(Driver)
	require.NoError(t, d.RegisterCollationUtf8("HOST", func(a, b string) int { return strings.Compare(b, a) }))
	for _, name := range []string{"hostf", "other", "x"} {
		require.NoError(t, d.RegisterDeterministicScalarFunction(name, 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
			return args[0], nil
		}))
	}
	raw, err := d.Open(URI(path, "rw"))
	require.NoError(t, err)
	c := &conn{raw}
	for _, statement := range statements {
		require.NoError(t, c.exec(t.Context(), statement), statement)
	}
	require.NoError(t, c.Close())
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return data
}

// checkerOf returns a checker of a file with these bytes.
func checkerOf(data []byte, kind Kind) *checker {
	return &checker{CheckOptions{Kind: kind, Limit: 1001}, bytes.NewReader(data), func() (int64, error) { return int64(len(data)), nil }}
}

// broken are databases to which SQLite objects, for each of the ways in which
// they are checked.
func broken(t *testing.T) map[string][]byte {
	const rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) INSERT INTO t SELECT i, i FROM n"
	databases := make(map[string][]byte)
	for name, more := range map[string]string{
		"at once":              "SELECT 1",
		"apart":                "CREATE INDEX k ON t(b COLLATE HOST)",
		"with a virtual table": "CREATE VIRTUAL TABLE f USING fts5(a)",
	} {
		data := made(t, "CREATE TABLE t(a, b)", "CREATE INDEX i ON t(a)", more, rows)
		// A cell that is not where the page says.
		page := data[10*4096:]
		page[8+1] ^= 0x0f
		databases[name] = data
	}
	return databases
}

// A file that can be read and is sound the second time is one of which nothing
// is found: SQLite makes a finding of whatever goes wrong while it reads.
func TestFindingsAreMadeTwice(t *testing.T) {
	for name, data := range broken(t) {
		t.Run(name, func(t *testing.T) {
			c := checkerOf(data, IntegrityCheck)
			found, err := c.check(t.Context())
			require.NoError(t, err)
			require.NotEmpty(t, found.Findings)

			sound := bytes.Clone(data)
			sound[10*4096+9] ^= 0x0f
			c = checkerOf(sound, IntegrityCheck)
			c.file = &healing{before: data, after: sound}
			found, err = c.check(t.Context())
			require.NoError(t, err)
			require.Empty(t, found.Findings)
		})
	}
}

// healing is a file that reads as another one until it is read through.
type healing struct{ before, after []byte }

func (h *healing) ReadAt(p []byte, off int64) (int, error) {
	if len(p) == filehash.Chunk {
		h.before = h.after
	}
	return bytes.NewReader(h.before).ReadAt(p, off)
}

// A file with a place that cannot be read is not checked at all: there is no
// telling what is there.
func TestWhatCannotBeReadIsNoFinding(t *testing.T) {
	for name, data := range broken(t) {
		for _, at := range []int64{10 * 4096, int64(len(data)) - 4096} {
			t.Run(fmt.Sprint(name, " at ", at), func(t *testing.T) {
				c := checkerOf(data, IntegrityCheck)
				c.file = &sectors{data: data, badFrom: at, badTo: at + 1}
				found, err := c.check(t.Context())
				require.Error(t, err)
				require.Empty(t, found)
			})
		}
	}
}

// A database may have tables with the names of what a check asks for.
func TestTablesNamedLikePragmas(t *testing.T) {
	for _, more := range []string{"SELECT 1", "CREATE INDEX j ON t(b COLLATE HOST)", "CREATE INDEX j ON t(instr(a, b))"} {
		data := made(t, "CREATE TABLE t(a, b)", "CREATE INDEX i ON t(a)", more, "INSERT INTO t VALUES (1, NULL), (2, NULL)", "PRAGMA writable_schema = on",
			"UPDATE sqlite_schema SET sql = replace(sql, 'b)', 'b NOT NULL)') WHERE name = 't'",
			"CREATE VIRTUAL TABLE pragma_integrity_check USING fts5(integrity_check)", "INSERT INTO pragma_integrity_check VALUES ('ok null NULL')",
			"CREATE VIRTUAL TABLE pragma_index_list USING fts5(name, origin, partial)", "CREATE VIRTUAL TABLE pragma_index_xinfo USING fts5(cid)",
			"CREATE TABLE pragma_table_xinfo(name, hidden)", "CREATE VIEW pragma_quick_check AS SELECT 'ok' AS quick_check")
		found, err := checkerOf(data, IntegrityCheck).check(t.Context())
		require.NoError(t, err)
		require.Equal(t, []Finding{{Text: "NULL value in t.b"}, {Text: "NULL value in t.b"}}, found.Findings)
		found, err = checkerOf(data, QuickCheck).check(t.Context())
		require.NoError(t, err)
		require.Len(t, found.Findings, 2)
	}
}

// After its first fault, a check that was begun to find more ends with ctx when
// it reads on.
func TestLongRunEndsWithContext(t *testing.T) {
	const rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000) INSERT INTO t SELECT 1, zeroblob(3000) FROM n"
	data := made(t, "CREATE TABLE t(a, b)", rows, "UPDATE t SET a = NULL WHERE rowid = 10", "PRAGMA writable_schema = on",
		"UPDATE sqlite_schema SET sql = replace(sql, 'a,', 'a NOT NULL,') WHERE name = 't'")
	ctx, cancel := context.WithCancel(t.Context())
	f := &cancelling{data: data, cancel: cancel}
	c := checkerOf(data, IntegrityCheck)
	c.file = f
	cc, err := c.open(ctx, additions{})
	require.NoError(t, err)
	defer cc.close()
	err = cc.runLong(ctx, IntegrityCheck, 10, func(string) bool { f.armed = true; return true })
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, f.after, 10)
}

// A check that is cancelled at any read says so: SQLite calls that a failed read.
func TestCheckCancelledAtEveryRead(t *testing.T) {
	for name, data := range map[string][]byte{
		"whole":    made(t, "CREATE TABLE t(a, b)", "CREATE INDEX i ON t(b)", "INSERT INTO t VALUES (1, hex(zeroblob(50000))), (2, 2)"),
		"apart":    made(t, "CREATE TABLE t(a, b)", "CREATE INDEX i ON t(hostf(a))", "INSERT INTO t VALUES (1, hex(zeroblob(50000))), (2, 2)"),
		"findings": append(made(t, "CREATE TABLE t(a)", "INSERT INTO t VALUES (hex(zeroblob(50000)))"), make([]byte, 8192)...),
	} {
		for at := 1; ; at++ {
			ctx, cancel := context.WithCancel(t.Context())
			f := &cancelling{data: data, cancel: cancel, left: at}
			c := checkerOf(data, IntegrityCheck)
			c.file = f
			_, err := c.check(ctx)
			cancel()
			if f.left > 0 {
				break // it takes fewer reads
			}
			require.ErrorIs(t, err, context.Canceled, "%s, read %d", name, at)
		}
	}
}

// cancelling is a file that ends a context when it is read after it was armed,
// or for the time that left says, and counts what is read while it is armed.
type cancelling struct {
	data   []byte
	cancel func()
	armed  bool
	after  int
	left   int
}

func (c *cancelling) ReadAt(p []byte, off int64) (int, error) {
	if c.armed {
		c.cancel()
		c.after++
	}
	if c.left--; c.left == 0 {
		c.cancel()
		return 0, errors.New("not read")
	}
	return bytes.NewReader(c.data).ReadAt(p, off)
}

// An index that computes a column is left out without a look at its entries for
// each row: that would take hours. The others are checked, if it can be hidden.
func TestIndexesAreHidden(t *testing.T) {
	const (
		rows   = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 50000) INSERT INTO t(a, b) SELECT i, nullif(i, 50000) FROM n"
		noted  = `index "i" was not compared with table "t": SQL logic error: unknown function: hostf() (1)`
		unable = `no index was compared with table "t"`
	)
	for name, test := range map[string]struct {
		encoding, index string
		hidden          bool
	}{
		"plain":          {"UTF-8", `CREATE INDEX i ON t(hostf(a))`, true},
		"quoted":         {"UTF-8", `CREATE UNIQUE INDEX "i" ON [t] ( hostf(a) , b)`, true},
		"twice":          {"UTF-8", `CREATE INDEX "i" ON t(hostf(a)) /* CREATE INDEX i ON t(hostf(a)) */`, true},
		"long":           {"UTF-8", `CREATE INDEX i ON t(hostf(a), 1 ` + strings.Repeat("+ 1 ", 100) + strings.Repeat(" ", 9000) + `)`, false},
		"short":          {"UTF-8", `CREATE INDEX i ON t(x(a))`, false},
		"encoding":       {"UTF-16le", `CREATE INDEX i ON t(hostf(a))`, false},
		"text of others": {"UTF-8", `CREATE INDEX i ON t(hostf(a)); CREATE TABLE u(a /* CREATE INDEX i ON t(hostf(a)) */)`, false},
	} {
		t.Run(name, func(t *testing.T) {
			data := made(t, "PRAGMA encoding = '"+test.encoding+"'", "CREATE TABLE t(a, b)", "CREATE INDEX j ON t(a) WHERE a <> 7", test.index, rows,
				"PRAGMA writable_schema = on", "UPDATE sqlite_schema SET sql = replace(sql, 'b)', 'b NOT NULL)') WHERE name = 't'",
				"UPDATE sqlite_schema SET sql = replace(sql, ' WHERE a <> 7', '') WHERE name = 'j'")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			found, err := checkerOf(data, IntegrityCheck).check(ctx)
			require.NoError(t, err)
			want := []Finding{{Text: "wrong # of entries in index j"}, {Text: "row 7 missing from index j"}, {Text: "NULL value in t.b"}}
			notes := []string{strings.Replace(noted, "hostf", regexp.MustCompile(`hostf|x`).FindString(test.index[len("CREATE INDEX"):]), 1)}
			if !test.hidden {
				want = slices.Delete(want, 1, 2)
				notes = append(notes, unable)
			}
			require.Equal(t, want, found.Findings)
			require.Equal(t, notes, found.Notes)
		})
	}
}

// The number of entries of an index needs neither a function nor a collation.
func TestEntriesOfHiddenIndexesAreCounted(t *testing.T) {
	for _, index := range []string{"hostf(a)", "x(a)"} { // one that can be hidden, and one that cannot
		data := made(t, "CREATE TABLE t(a, b)", "CREATE INDEX i ON t("+index+") WHERE a > 1", "INSERT INTO t VALUES (1, 1), (2, 2)",
			"PRAGMA writable_schema = on", "UPDATE sqlite_schema SET sql = replace(sql, ' WHERE a > 1', '') WHERE name = 'i'")
		found, err := checkerOf(data, IntegrityCheck).check(t.Context())
		require.NoError(t, err)
		require.Equal(t, []Finding{{Text: "wrong # of entries in index i"}}, found.Findings)
	}
}

// SQLite looks for each row that is missing from such an index among all of its
// entries, and is not interrupted meanwhile.
func TestFaultsOfExpressionsAreFew(t *testing.T) {
	for _, more := range []string{"SELECT 1", "CREATE VIRTUAL TABLE f USING fts5(a)"} {
		data := made(t, "CREATE TABLE t(a, b)", "CREATE INDEX i ON t(a + 1)", more,
			"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500) INSERT INTO t SELECT i, i FROM n",
			"PRAGMA writable_schema = on", "UPDATE sqlite_schema SET sql = replace(sql, '+', '*') WHERE name = 'i'",
			"UPDATE sqlite_schema SET sql = replace(sql, '* 1', '* 3') WHERE name = 'i'")
		found, err := checkerOf(data, IntegrityCheck).check(t.Context())
		require.NoError(t, err)
		require.Len(t, found.Findings, faultsAtOnce)
		require.Equal(t, []string{"there may be more than 100 faults"}, found.Notes)
	}
}

// What a check calls instead of SQLite's functions returns what these return, in
// every encoding: an index of their values passes.
func TestGuardedFunctionsAreSQLites(t *testing.T) {
	values := []string{"NULL", "0", "-17", "9223372036854775807", "1.5", "1e300", "''", "'a'", "'ab'", "'aab'", "'a' || char(0) || 'b'", "'%a_'",
		"'äöü'", "'ö'", "char(0x1f600, 97)", "x''", "x'61'", "x'00'", "x'6162ff'", "'[a-c]*'", `'{"a":[1,2],"b":null}'`, `'{"a":null}'`}
	functions := []string{"instr(a, b)", "replace(a, b, 'x')", "replace(a, b, a)", "trim(a, b)", "ltrim(a, b)", "rtrim(a, b)", "a LIKE b",
		"a LIKE b ESCAPE '_'", "a GLOB b", "concat(a, b)", "concat_ws(a, b)", "concat_ws(',', a, b)", "unhex(a, b)"}
	for _, encoding := range []string{"UTF-8", "UTF-16le", "UTF-16be"} {
		t.Run(encoding, func(t *testing.T) {
			list := strings.Join(values, "), (")
			statements := []string{"PRAGMA encoding = '" + encoding + "'", "CREATE TABLE v(x)", "INSERT INTO v VALUES (" + list + ")",
				"CREATE TABLE t(a, b)", "INSERT INTO t SELECT p.x, q.x FROM v AS p, v AS q"}
			for i, f := range functions {
				statements = append(statements, fmt.Sprintf("CREATE INDEX i%d ON t(%s)", i, f))
			}
			c := checkerOf(made(t, statements...), IntegrityCheck)
			o, err := c.plain(t.Context(), false)
			require.NoError(t, err)
			require.True(t, o.unclear)
			found, err := c.check(t.Context())
			require.NoError(t, err)
			require.Empty(t, found.Findings)
			require.Empty(t, found.Notes)
		})
	}
}

// Schemas that compute nothing, or in a way that takes no longer than reading,
// are checked at once, and only those.
func TestWhatIsCheckedAtOnce(t *testing.T) {
	for expression, atOnce := range map[string]bool{
		"a":                        true,
		"a COLLATE nocase DESC, b": true,
		"a IS NULL":                true,
		"a AND b":                  true,
		"lower(trim(a)) || b":      true,
		"json_extract(a, '$.b')":   true,
		"a->>'b', a->'c'":          true,
		"instr(a, 'x')":            true,
		"replace(a, 'x', b)":       true,
		"a) WHERE a LIKE 'x%' -- ": true,
		"a) WHERE b GLOB '[a-z]*'": true,
		"a) WHERE b":               true,
		"trim(a, '.,')":            true,
		"a + 1":                    true,
		"instr(a, b)":              false,
		"instr('x', a)":            false,
		"replace(a, b, 'x')":       false,
		"a) WHERE a LIKE b -- ":    false,
		"a LIKE '" + strings.Repeat("%a", 40) + "'":           false,
		"CASE WHEN b THEN instr(a, b) ELSE instr(a, 'x') END": false,
		"trim(a, b)":       false,
		"json_patch(a, b)": false,
		"hex(zeroblob(a))" + strings.Repeat(", hex(zeroblob(a))", 59): false,
		"a + " + strings.Repeat("1 + ", 600) + "b":                    false,
	} {
		if !strings.Contains(expression, ") WHERE") {
			expression += ")"
		}
		data := made(t, "CREATE TABLE t(a, b)", "CREATE INDEX i ON t("+expression)
		o, err := checkerOf(data, IntegrityCheck).plain(t.Context(), false)
		require.NoError(t, err)
		require.Equal(t, atOnce, !o.unclear, expression)
	}
	for column, atOnce := range map[string]bool{"c AS (lower(a))": true, "c AS (instr(a, b)) STORED": true, "c AS (instr(a, b))": false} {
		data := made(t, "CREATE TABLE t(a, b, "+column+")", "CREATE INDEX i ON t(c)")
		for _, kind := range []Kind{IntegrityCheck, QuickCheck} {
			o, err := checkerOf(data, kind).plain(t.Context(), false)
			require.NoError(t, err)
			require.Equal(t, atOnce, !o.unclear, column)
		}
	}
}

// The lists of functions and operations have no name that SQLite does not know.
func TestFunctionsAreKnown(t *testing.T) {
	own, err := ownCatalog()
	require.NoError(t, err)
	var names []string
	for _, f := range own.functions {
		names = append(names, f.String())
	}
	for name := range nativeFunctions {
		require.Contains(t, names, name)
	}
	for _, name := range guardedFunctions {
		require.True(t, slices.ContainsFunc(own.functions, func(f function) bool { return f.name == name }), name)
	}
}

// Driver values are used again, since what is registered on one is never freed.
func TestDriversAreReused(t *testing.T) {
	needy := made(t, "CREATE TABLE t(a, b)", "CREATE INDEX i ON t(hostf(a), b COLLATE HOST)", "CREATE INDEX j ON t(other(b))")
	check := func() {
		found, err := checkerOf(needy, IntegrityCheck).check(t.Context())
		require.NoError(t, err)
		require.Len(t, found.Notes, 2)
	}
	check()
	before := len(spareDrivers.list)
	for range 3 {
		check()
	}
	require.Len(t, spareDrivers.list, before)
	for i := range mostSpareDrivers + 10 {
		d, err := takeDriver(additions{apart: true, host: new(host), functions: []string{fmt.Sprint("f", i)}})
		require.NoError(t, err)
		d.giveBack()
	}
	require.Len(t, spareDrivers.list, mostSpareDrivers)
}

// A live database is judged in the same way.
func TestSourceCheck(t *testing.T) {
	const rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500) INSERT INTO t SELECT i, i FROM n"
	for name, test := range map[string]struct {
		statements []string
		ruin       bool
		want       []string
	}{
		"sound":         {[]string{"CREATE TABLE t(a, b)", "CREATE INDEX i ON t(a)", rows}, false, nil},
		"collation":     {[]string{"CREATE TABLE t(a, b)", "CREATE INDEX i ON t(a COLLATE HOST)", rows}, false, nil},
		"virtual table": {[]string{"CREATE VIRTUAL TABLE f USING fts5(a)", "INSERT INTO f VALUES ('a')", "UPDATE f_content SET c0 = 'b'"}, false, nil},
		"fault": {[]string{"CREATE TABLE t(a, b)", "CREATE INDEX i ON t(a)", rows, "PRAGMA writable_schema = on",
			"UPDATE sqlite_schema SET sql = replace(sql, 'b)', 'b NOT NULL)') WHERE name = 't'", "UPDATE t SET b = NULL WHERE a = 7"}, false,
			[]string{"NULL value in t.b"}},
		"fault beside a collation": {[]string{`CREATE TABLE "1"(a, b)`, `CREATE INDEX i ON "1"(b)`, `INSERT INTO "1" VALUES (1, NULL)`, "CREATE TABLE t(a, b)",
			"CREATE INDEX j ON t(a COLLATE HOST)", rows, "PRAGMA writable_schema = on",
			`UPDATE sqlite_schema SET sql = replace(sql, 'b)', 'b NOT NULL)') WHERE name = '1'`}, false, []string{"NULL value in 1.b"}},
		"page": {[]string{"CREATE TABLE t(a, b)", "CREATE INDEX i ON t(a)", rows, "CREATE VIRTUAL TABLE f USING fts5(a)"}, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			data := made(t, test.statements...)
			if test.ruin {
				data[4*4096] = 99
			}
			path := filepath.Join(t.TempDir(), "live.db")
			require.NoError(t, os.WriteFile(path, data, 0o600))
			src, err := Open(path)
			require.NoError(t, err)
			defer src.Close()
			require.NoError(t, src.Begin(t.Context()))
			found, err := src.Check(t.Context(), IntegrityCheck, 10)
			require.NoError(t, err)
			if test.ruin {
				require.NotEmpty(t, found)
				return
			}
			var texts []string
			for _, f := range found {
				texts = append(texts, f.Text)
			}
			require.Equal(t, test.want, texts)
		})
	}
}
