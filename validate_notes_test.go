package backup_test

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"modernc.org/sqlite"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() {
	roles["validate-registered"] = roleValidateRegistered
}

// connectHost registers what the databases of these tests need: a collation that
// orders texts from the end of the alphabet, and a function.
func connectHost(d *sqlite.Driver) error {
	return errors.Join(
		d.RegisterCollationUtf8("HOST", backwards),
		d.RegisterFunction("hostf", &sqlite.FunctionImpl{NArgs: 1, Deterministic: true, Scalar: lengthOf}),
	)
}

func backwards(a, b string) int { return cmp.Compare(b, a) }

func lengthOf(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
	return int64(len(fmt.Sprint(args[0]))), nil
}

// A hostConnector opens connections with what connectHost registers.
type hostConnector struct{ path string }

func (c hostConnector) Connect(context.Context) (driver.Conn, error) {
	d := new(sqlite.Driver)
	if err := connectHost(d); err != nil {
		return nil, err
	}
	return d.Open(backuptest.DSN(c.path))
}

func (hostConnector) Driver() driver.Driver { return new(sqlite.Driver) }

// asHost runs statements on a database as the program that uses it.
func asHost(t *testing.T, path string, statements string) {
	t.Helper()
	db := sql.OpenDB(hostConnector{path})
	defer db.Close()
	_, err := db.Exec(statements)
	require.NoError(t, err)
}

// Rows for a table with the columns a and b.
const manyRows = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)
	INSERT INTO t(a, b) SELECT printf('text %05d', i), i % 77 FROM n;`

const (
	noCollation = "SQL logic error: no such collation sequence: HOST (257)"
	noFunction  = "SQL logic error: unknown function: hostf() (1)"
)

// needy are schemas that work for the program that made them and that SQLite
// cannot check in full by itself, with what a validation notes about them.
var needy = map[string]struct {
	schema string
	notes  []string
}{
	"index with a collation": {
		"CREATE TABLE t(a TEXT, b); CREATE INDEX i ON t(a COLLATE HOST); CREATE INDEX j ON t(b);" + manyRows,
		[]string{`index "i" was not compared with table "t": ` + noCollation},
	},
	"column with a collation": {
		"CREATE TABLE t(a TEXT COLLATE HOST UNIQUE, b);" + manyRows,
		[]string{`index "sqlite_autoindex_t_1" was not compared with table "t": ` + noCollation},
	},
	"primary key with a collation": {
		"CREATE TABLE t(a TEXT COLLATE HOST PRIMARY KEY, b) WITHOUT ROWID; CREATE INDEX j ON t(b);" + manyRows,
		[]string{
			`index "j" was not compared with table "t": ` + noCollation,
			`index "sqlite_autoindex_t_1" was not compared with table "t": ` + noCollation,
		},
	},
	"index with a function": {
		"CREATE TABLE t(a TEXT, b); CREATE UNIQUE INDEX i ON t(hostf(a), a); CREATE INDEX j ON t(b);" + manyRows,
		[]string{`index "i" was not compared with table "t": ` + noFunction},
	},
	"partial index": {
		"CREATE TABLE t(a TEXT, b); CREATE INDEX i ON t(b) WHERE hostf(a) > 3;" + manyRows,
		[]string{`index "i" was not compared with table "t": ` + noFunction},
	},
	"generated column": {
		"CREATE TABLE t(a TEXT, b, c INTEGER NOT NULL AS (hostf(a))); CREATE INDEX i ON t(c, a, b DESC); CREATE INDEX j ON t(b);" + manyRows,
		[]string{
			`generated column "c" of table "t" was not checked: ` + noFunction,
			`index "i" was not compared with table "t": ` + noFunction,
		},
	},
	"index that cannot be hidden": {
		"CREATE TABLE t(a TEXT, b, c INTEGER NOT NULL AS (hostf(a))); CREATE INDEX i ON t(c); CREATE INDEX j ON t(b);" + manyRows,
		[]string{
			`generated column "c" of table "t" was not checked: ` + noFunction,
			`index "i" was not compared with table "t": ` + noFunction,
			`no index was compared with table "t"`,
		},
	},
	"several": {
		`CREATE TABLE t(a TEXT, b); CREATE INDEX i ON t(hostf(a), a COLLATE HOST); CREATE INDEX "k""" ON t(a COLLATE HOST);
			CREATE INDEX j ON t(b);` + manyRows,
		[]string{`index "i" was not compared with table "t": ` + noFunction, `index "k\"" was not compared with table "t": ` + noCollation},
	},
	"tokenizer": {
		`CREATE VIRTUAL TABLE f USING fts5(a, tokenize = 'porter'); INSERT INTO f VALUES ('hello'); PRAGMA writable_schema = on;
			UPDATE sqlite_schema SET sql = replace(sql, 'porter', 'jieba') WHERE name = 'f'`,
		[]string{`virtual table "f" was not checked: SQL logic error: no such tokenizer: jieba (1)`},
	},
	"virtual table that complains": {
		// SQLite before 3.44 leaves one so for a text with a NUL.
		`CREATE VIRTUAL TABLE f USING fts5(a, tokenize = 'trigram'); INSERT INTO f VALUES ('page one of a PDF');
			UPDATE f_content SET c0 = 'page one of a book';
			CREATE TABLE t(a, b); CREATE INDEX i ON t(a);` + manyRows,
		[]string{`virtual table "f" says of itself: malformed inverted index for FTS5 table main.f`},
	},
	"virtual table without its module": {
		`CREATE TABLE v_data(a); INSERT INTO v_data VALUES (1); PRAGMA writable_schema = on;
			INSERT INTO sqlite_schema VALUES ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING vec0(a float[3])')`,
		[]string{`virtual table "v" was not checked: SQL logic error: no such module: vec0 (1)`},
	},
	"constraints": {
		`CREATE TABLE c(a CHECK (hostf(a) > 5), b CHECK (b > 5)); PRAGMA ignore_check_constraints = on; INSERT INTO c VALUES (1, 1)`,
		nil,
	},
}

func details(notes []backup.Note) (texts []string) {
	for _, n := range notes {
		texts = append(texts, n.Detail)
	}
	return texts
}

// What cannot be checked is noted, with SQLite's message, and the snapshot is
// valid and can be restored.
func TestWhatCannotBeCheckedIsNoted(t *testing.T) {
	for name, test := range needy {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSmallStore(t)
			s.IncludeChroma = true
			asHost(t, s.DatabasePath, test.schema)
			report := s.CreateSnapshot().Validate()
			require.True(t, report.Valid, report.Problems)
			require.True(t, report.Intact)
			require.ElementsMatch(t, test.notes, details(report.Notes))
			for _, n := range report.Notes {
				require.Equal(t, backuptest.DBFile, n.Path)
			}
			s.Restore(report.Stamp)

			s.Connect = connectHost
			connected, err := backup.ValidateBackup(t.Context(), s.Options, report.Stamp)
			require.NoError(t, err)
			for _, n := range connected.Notes {
				require.Contains(t, n.Detail, "virtual table")
			}
		})
	}
}

// The same for the database in the Chroma directory, which gets the quick check:
// it compares no index, so nothing is to be noted about one.
func TestWhatCannotBeCheckedOfChromaIsNoted(t *testing.T) {
	for name, test := range needy {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSmallStore(t)
			s.IncludeChroma = true
			asHost(t, s.InChroma("chroma.sqlite3"), test.schema)
			report := s.CreateSnapshot().Validate()
			require.True(t, report.Valid, report.Problems)
			var want []string
			for _, note := range test.notes {
				if !strings.HasPrefix(note, "index ") && !strings.HasPrefix(note, "no index ") {
					want = append(want, note)
				}
			}
			require.ElementsMatch(t, want, details(report.Notes))
			for _, n := range report.Notes {
				require.Equal(t, "chroma/chroma.sqlite3", n.Path)
			}
			s.Restore(report.Stamp)
		})
	}
}

// Everything beside what cannot be checked is checked, however many faults
// SQLite sees in that, because the order of an index is not known here.
func TestTheRestIsChecked(t *testing.T) {
	type damage struct {
		do       func(t *testing.T, path string)
		findings []string
	}
	without := func(index, statement string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			backuptest.WithoutIndex(t, path, index, func(*sql.DB) { asHost(t, path, statement) })
		}
	}
	damages := map[string]damage{
		"another index": {
			without("j", "INSERT INTO t(a, b) VALUES ('zz', 5)"),
			[]string{"wrong # of entries in index j", "row 3001 missing from index j"},
		},
		"the number of its entries": {
			without("i", "DELETE FROM t WHERE rowid = 3000"),
			[]string{"wrong # of entries in index i"},
		},
		"another table": {
			without("o_x", "INSERT INTO o VALUES (1)"),
			[]string{"wrong # of entries in index o_x", "row 1 missing from index o_x"},
		},
		"a column": {
			func(t *testing.T, path string) {
				backuptest.InDatabase(t, path, func(db *sql.DB) {
					_, err := db.Exec(`UPDATE t SET d = NULL WHERE rowid = 2999; PRAGMA writable_schema = on;
						UPDATE sqlite_schema SET sql = replace(sql, 'd DEFAULT', 'd NOT NULL DEFAULT') WHERE name = 't'`)
					require.NoError(t, err)
				})
			},
			[]string{"NULL value in t.d"},
		},
		"the structure of the file": {
			func(t *testing.T, path string) {
				data, err := os.ReadFile(path)
				require.NoError(t, err)
				binary.BigEndian.PutUint32(data[36:], binary.BigEndian.Uint32(data[36:])+1)
				require.NoError(t, os.WriteFile(path, data, 0o600))
			},
			[]string{"*** in database main *** Freelist: size is "},
		},
	}
	for _, need := range []struct{ index, note string }{
		{"CREATE INDEX i ON t(a COLLATE HOST)", noCollation}, {"CREATE INDEX i ON t(hostf(a), a)", noFunction},
	} {
		for name, damage := range damages {
			t.Run(name+", "+need.index, func(t *testing.T) {
				s := backuptest.NewSnapshot(t)
				path := s.Path(backuptest.DBFile)
				// The default of d is stored with no row.
				asHost(t, path, `CREATE TABLE t(a TEXT, b, d DEFAULT 7, e); CREATE INDEX j ON t(b); CREATE TABLE o(x); CREATE INDEX o_x ON o(x);
					CREATE TABLE gone AS SELECT 1; DROP TABLE gone;`+need.index+";"+manyRows)
				damage.do(t, path)
				s.SetDBSize()
				s.Reseal()
				report := s.Validate()
				require.Len(t, report.Problems, len(damage.findings), report.Problems)
				for i, text := range damage.findings {
					require.True(t, report.Problems[i].Finding)
					require.Contains(t, report.Problems[i].Detail, text)
				}
				require.Equal(t, []string{`index "i" was not compared with table "t": ` + need.note}, details(report.Notes))
			})
		}
	}
}

// By Connect all is checked, and faults in what needs it are found.
func TestConnect(t *testing.T) {
	snapshot := func(t *testing.T, schema string) *backuptest.Snapshot {
		s := backuptest.NewSnapshot(t)
		asHost(t, s.Path(backuptest.DBFile), schema)
		s.SetDBSize()
		s.Reseal()
		s.Options.Connect = connectHost
		return s
	}
	t.Run("faults", func(t *testing.T) {
		for _, index := range []string{"CREATE INDEX i ON t(a COLLATE HOST)", "CREATE INDEX i ON t(hostf(a), a)"} {
			s := snapshot(t, "CREATE TABLE t(a TEXT, b);"+index+";"+manyRows)
			require.Empty(t, s.RequireProblems().Notes)
			backuptest.WithoutIndex(t, s.Path(backuptest.DBFile), "i", func(db *sql.DB) {
				_, err := db.Exec("UPDATE t SET a = 'changed' WHERE rowid = 2000")
				require.NoError(t, err)
			})
			s.Reseal()
			report := s.Validate()
			require.Empty(t, report.Notes)
			require.Len(t, report.Problems, 1)
			require.Equal(t, "row 2000 missing from index i", report.Problems[0].Detail)
		}
	})
	needs := needy["several"].schema
	t.Run("own versions of SQLite's", func(t *testing.T) {
		// An index whose functions and collations SQLite has, too, but others.
		s := backuptest.NewSnapshot(t)
		connect := func(d *sqlite.Driver) error {
			return errors.Join(
				d.RegisterCollationUtf8("NOCASE", backwards),
				d.RegisterFunction("Lower", &sqlite.FunctionImpl{NArgs: 1, Deterministic: true, Scalar: lengthOf}),
				d.RegisterFunction("instr", &sqlite.FunctionImpl{NArgs: 2, Deterministic: true, Scalar: lengthOf}),
			)
		}
		d := new(sqlite.Driver)
		require.NoError(t, connect(d))
		c, err := d.Open(backuptest.DSN(s.Path(backuptest.DBFile)))
		require.NoError(t, err)
		_, err = c.(driver.ExecerContext).ExecContext(t.Context(), `CREATE TABLE t(a TEXT, b); CREATE INDEX i ON t(a COLLATE NOCASE);
			CREATE INDEX j ON t(lower(a)); CREATE INDEX k ON t(instr(a, b));`+manyRows, nil)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		s.SetDBSize()
		s.Reseal()
		s.RequireProblems("db_integrity_check_failed: " + backuptest.DBFile)
		s.Options.Connect = connect
		require.Empty(t, s.RequireProblems().Notes)
	})
	t.Run("a function that is not deterministic", func(t *testing.T) {
		s := snapshot(t, needs)
		s.Options.Connect = func(d *sqlite.Driver) error {
			return errors.Join(d.RegisterCollationUtf8("HOST", backwards), d.RegisterScalarFunction("hostf", 1, lengthOf))
		}
		report := s.RequireProblems()
		require.Len(t, report.Notes, 3)
		require.Contains(t, report.Notes[2].Detail, "non-deterministic functions prohibited in index expressions")
	})
	t.Run("an error", func(t *testing.T) {
		s := snapshot(t, needs)
		none := errors.New("none today")
		s.Options.Connect = func(*sqlite.Driver) error { return none }
		report, err := backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
		require.ErrorIs(t, err, none)
		require.Nil(t, report)
	})
	t.Run("an error of a function", func(t *testing.T) {
		s := snapshot(t, needs)
		s.Options.Connect = func(d *sqlite.Driver) error {
			return errors.Join(d.RegisterCollationUtf8("HOST", backwards), d.RegisterFunction("hostf", &sqlite.FunctionImpl{
				NArgs: 1, Deterministic: true,
				Scalar: func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
					return nil, errors.New("no license")
				},
			}))
		}
		require.Equal(t, []string{`table "t" was not checked to its end: SQL logic error: no license (1)`}, details(s.RequireProblems().Notes))
	})
	panics := map[string]func(*sqlite.Driver) error{
		"a panic": func(*sqlite.Driver) error { panic("connect") },
		"a panic of a function": func(d *sqlite.Driver) error {
			return errors.Join(d.RegisterCollationUtf8("HOST", backwards), d.RegisterFunction("hostf", &sqlite.FunctionImpl{
				NArgs: 1, Deterministic: true,
				Scalar: func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) { panic("function") },
			}))
		},
		"a panic of a collation": func(d *sqlite.Driver) error {
			return d.RegisterCollationUtf8("HOST", func(string, string) int { panic("collation") })
		},
	}
	for name, connect := range panics {
		t.Run(name, func(t *testing.T) {
			s := snapshot(t, needs)
			s.Options.Connect = connect
			report, err := backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
			require.ErrorIs(t, err, backup.ErrPanic)
			require.Nil(t, report)
			s.Options.Connect = connectHost
			s.RequireProblems()
		})
	}
}

// roleValidateRegistered registers with modernc.org/sqlite what a program
// registers for all of its connections, validates a snapshot, and says what is
// found and noted.
func roleValidateRegistered(p *backuptest.Parent, args []string) error {
	backupDir, stamp, what := args[0], args[1], args[2]
	scalar := lengthOf
	if what == "function panics" {
		scalar = func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) { panic("function") }
	}
	sqlite.MustRegisterCollationUtf8("HOST", backwards)
	sqlite.MustRegisterFunction("hostf", &sqlite.FunctionImpl{NArgs: 1, Deterministic: what != "not deterministic", Scalar: scalar})
	sqlite.RegisterConnectionHook(func(conn sqlite.ExecQuerierContext, _ string) error {
		switch what {
		case "hook fails":
			return errors.New("hook")
		case "hook panics":
			panic("hook")
		}
		_, err := conn.ExecContext(context.Background(), "CREATE TABLE hooked(a)", nil)
		return err
	})
	report, err := backup.ValidateBackup(context.Background(), backup.Options{BackupDir: backupDir}, stamp)
	if err != nil {
		if errors.Is(err, backup.ErrPanic) {
			err = backup.ErrPanic
		}
		p.Say(err.Error())
		return nil
	}
	p.Say(fmt.Sprint(len(report.Problems), " problems, ", len(report.Notes), " notes"))
	return nil
}

// What a program registered for all connections counts, without Connect. Its
// connection hooks run on no snapshot; a program in which they do not let an
// empty database be opened has registered nothing.
func TestWhatIsRegisteredForAllConnectionsCounts(t *testing.T) {
	for what, want := range map[string]string{
		"all":               "0 problems, 0 notes",
		"not deterministic": "0 problems, 1 notes",
		"hook fails":        "0 problems, 2 notes",
		"hook panics":       "0 problems, 2 notes",
		"function panics":   backup.ErrPanic.Error(),
	} {
		t.Run(what, func(t *testing.T) {
			s := backuptest.NewSnapshot(t)
			asHost(t, s.Path(backuptest.DBFile), needy["several"].schema)
			s.SetDBSize()
			s.Reseal()
			before := s.State()
			require.Equal(t, want, backuptest.Start(t, "validate-registered", s.BackupDir, s.Stamp, what).Hear())
			require.Equal(t, before, s.State())
		})
	}
}
