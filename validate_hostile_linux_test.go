package backup_test

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() {
	roles["validate-for"] = roleValidateFor
}

// roleValidateFor validates a snapshot with a context that ends after some time,
// and says what came of it.
func roleValidateFor(p *backuptest.Parent, args []string) error {
	limit, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	report, err := backup.ValidateBackup(ctx, backup.Options{BackupDir: args[0]}, args[1])
	// Not the maximum that the parent is told, which begins with its own.
	status, rerr := os.ReadFile("/proc/self/status")
	if rerr != nil {
		return rerr
	}
	p.Say(regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindStringSubmatch(string(status))[1])
	if errors.Is(err, context.DeadlineExceeded) {
		p.Say("ended")
		return nil
	}
	if report == nil {
		return err
	}
	size := 0
	for _, problem := range report.Problems {
		size += len(problem.Detail)
	}
	p.Say(fmt.Sprintf("valid %v, %d problems of %d KiB, %d notes", report.Valid, len(report.Problems), size>>10, len(report.Notes)))
	for _, note := range report.Notes {
		p.Say(note.Detail)
	}
	return nil
}

// Whatever a schema computes, a validation takes neither much memory nor much
// time, and what it does not compute is noted.
func TestHostileSchemas(t *testing.T) {
	const (
		tooBig  = ": string or blob too big (18)"
		tooMuch = ": too much work for a check"
		partial = `table "t" was not checked to its end`
	)
	// Each is made without its index, which would have to be computed.
	rows := func(n int, value string) string {
		return fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT %d) INSERT INTO t SELECT %s FROM n;", n, value)
	}
	wide := func(expression string, n int) string {
		return strings.TrimSuffix(strings.Repeat(expression+",", n), ",")
	}
	for name, test := range map[string]struct {
		index, rows string
		column      string // a generated one
		notes       []string
	}{
		"a value too long": {
			index: "length(hex(zeroblob(x * 40000000)))", rows: rows(3, "i"),
			notes: []string{partial + tooBig},
		},
		"a generated column too long": {
			column: "hex(zeroblob(x * 400000000))", rows: rows(3, "i"),
			notes: []string{partial + tooBig},
		},
		"many long values": {
			index: "max(" + wide("hex(zeroblob(x * 500000))", 500) + ")", rows: rows(3, "1"),
			notes: []string{`index "i" was not compared with table "t"` + tooMuch, `no index was compared with table "t"`},
		},
		"many columns": {
			index: wide("hex(zeroblob(x * 500000))", 500), rows: rows(3, "1"),
			notes: []string{`index "i" was not compared with table "t"` + tooMuch, `no index was compared with table "t"`},
		},
		"many generated values": {
			column: "max(" + wide("hex(zeroblob(x * 500000))", 500) + ")", rows: rows(3, "1"),
			notes: []string{`generated column "g" of table "t" was not checked` + tooMuch, `table "t" was not checked`,
				"the structure of the file was checked in parts only" + tooMuch},
		},
		"text in text": {
			index: "instr(x, substr(x, 1, 1500000) || 'b')", rows: rows(1, "replace(hex(zeroblob(1500000)), '0', 'a')"),
			notes: []string{partial + ": SQL logic error: instr" + tooMuch + " (1)"},
		},
		"replace": {
			index: "length(replace(x, substr(x, 1, 1500000) || 'b', ''))", rows: rows(1, "replace(hex(zeroblob(1500000)), '0', 'a')"),
			notes: []string{partial + ": SQL logic error: replace" + tooMuch + " (1)"},
		},
		"trim": {
			index: "length(trim(x, upper(x) || 'a'))", rows: rows(1, "replace(hex(zeroblob(1500000)), '0', 'a')"),
			notes: []string{partial + ": SQL logic error: trim" + tooMuch + " (1)"},
		},
		"like": {
			index: "x LIKE '%' || substr(x, 1, 40000) || 'b'", rows: rows(1, "replace(hex(zeroblob(1500000)), '0', 'a')"),
			notes: []string{partial + ": SQL logic error: like" + tooMuch + " (1)"},
		},
		"json_patch": {
			index: "length(json_patch(x, x))", rows: rows(1, "'{' || replace(hex(zeroblob(100000)), '00', '\"aaaa\":1,') || '\"b\":2}'"),
			notes: []string{`index "i" was not compared with table "t": json_patch(2): not computed in a check`},
		},
		"json_pretty": {
			index: "length(json_pretty(x))", rows: rows(1, "replace(hex(zeroblob(900)), '00', '[') || '1' || replace(hex(zeroblob(100000)), '00', ',1') || replace(hex(zeroblob(900)), '00', ']')"),
			notes: []string{`index "i" was not compared with table "t": json_pretty(1): not computed in a check`},
		},
		"concat": {
			index: "length(concat(" + wide("x", 200) + "))", rows: rows(1, "replace(hex(zeroblob(1500000)), '0', 'a')"),
			notes: []string{partial + ": SQL logic error: concat" + tooMuch + " (1)"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSnapshot(t)
			s.InDatabase(func(db *sql.DB) {
				_, err := db.Exec("CREATE TABLE t(x); CREATE INDEX i ON t(x);" + strings.Replace(test.rows, "INTO t", "INTO t(x)", 1))
				require.NoError(t, err)
				_, err = db.Exec("PRAGMA writable_schema = on; UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON t(' || ? || ')' WHERE name = 'i'",
					cmp.Or(test.index, "x"))
				require.NoError(t, err)
				if test.column != "" {
					_, err = db.Exec("UPDATE sqlite_schema SET sql = 'CREATE TABLE t(x, g TEXT NOT NULL AS (' || ? || '))' WHERE name = 't'", test.column)
					require.NoError(t, err)
				}
			})
			got, memory := validateFor(t, s, "20s")
			require.Equal(t, fmt.Sprintf("valid true, 0 problems of 0 KiB, %d notes", len(test.notes)), got[0])
			require.ElementsMatch(t, test.notes, got[1:])
			require.Less(t, memory, 200)
		})
	}
}

// A name may be nearly as long as the database, and stand in each of its faults.
func TestLongNamesInFaults(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	s.InDatabase(func(db *sql.DB) {
		_, err := db.Exec("CREATE TABLE t(x); CREATE INDEX i ON t(x)")
		require.NoError(t, err)
	})
	backuptest.WithoutIndex(t, s.Path(backuptest.DBFile), "i", func(db *sql.DB) {
		_, err := db.Exec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000) INSERT INTO t SELECT i FROM n")
		require.NoError(t, err)
	})
	s.InDatabase(func(db *sql.DB) {
		_, err := db.Exec("PRAGMA writable_schema = on; UPDATE sqlite_schema SET name = ?1, sql = 'CREATE INDEX ' || ?1 || ' ON t(x)' WHERE name = 'i'",
			strings.Repeat("i", 900_000))
		require.NoError(t, err)
	})
	got, memory := validateFor(t, s, "60s")
	require.Regexp(t, "^valid false, 1001 problems of (9|10)[0-9][0-9] KiB, 0 notes", got[0])
	require.Less(t, memory, 200)
}

// How much memory a validation takes depends on the longest indexed value, up to
// 32 MiB; a longer one is not compared, which is noted. It depends on the number of
// tables and the length of their names, too.
func TestMemoryOfLargeDatabases(t *testing.T) {
	for name, tt := range map[string]struct {
		statements string
		notes      []string
		memory     int // MiB
	}{
		"an indexed value of 30 MB":  {"CREATE TABLE t(x UNIQUE); INSERT INTO t VALUES (zeroblob(30000000))", nil, 125},
		"an indexed value of 100 MB": {"CREATE TABLE t(x UNIQUE); INSERT INTO t VALUES (zeroblob(100000000))", []string{`table "t" was not checked to its end: string or blob too big (18)`}, 125},
		"another value of 100 MB":    {"CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(100000000))", nil, 125},
		"2,000 tables":               {tables(2000, 10), nil, 100},
		"names of 20 MB":             {tables(200, 100_000), nil, 125},
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSnapshot(t)
			s.InDatabase(func(db *sql.DB) {
				_, err := db.Exec("BEGIN;" + tt.statements + "; COMMIT")
				require.NoError(t, err)
			})
			got, memory := validateFor(t, s, "60s")
			require.Equal(t, append([]string{fmt.Sprintf("valid true, 0 problems of 0 KiB, %d notes", len(tt.notes))}, tt.notes...), got)
			if !backuptest.Race { // its memory counts as well (go.dev/doc/articles/race_detector)
				require.Less(t, memory, tt.memory)
			}
			t.Logf("%d MiB", memory)
		})
	}
}

// tables returns statements that create n tables, with names of that length.
func tables(n, length int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "CREATE TABLE \"%s%d\"(a);", strings.Repeat("n", length), i)
	}
	return b.String()
}

// A virtual table reads other tables by their names. If one of these is a view,
// it is not read.
func TestViewsAreNotRead(t *testing.T) {
	for name, rows := range map[string]string{
		"endless":   "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS k, 4 AS v FROM n",
		"too large": "SELECT 'version' AS k, max(" + strings.TrimSuffix(strings.Repeat("hex(zeroblob(500000)),", 500), ",") + ") AS v",
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSnapshot(t)
			s.InDatabase(func(db *sql.DB) {
				_, err := db.Exec(`CREATE VIRTUAL TABLE f USING fts5(a); PRAGMA writable_schema = on; DELETE FROM sqlite_schema WHERE name = 'f_config';
					INSERT INTO sqlite_schema VALUES ('view', 'f_config', 'f_config', 0, 'CREATE VIEW f_config AS ' || ?)`, rows)
				require.NoError(t, err)
			})
			got, memory := validateFor(t, s, "20s")
			require.Equal(t, "valid true, 0 problems of 0 KiB, 1 notes", got[0])
			require.Regexp(t, `^virtual table "f" was not checked: .*: vtable constructor failed: f`, got[1])
			require.Less(t, memory, 200)
		})
	}
}

// A check ends soon after its context, whatever SQLite is doing: before and
// after its first fault.
func TestChecksEndWithTheirContext(t *testing.T) {
	// Each row takes a millisecond, and all of them are in SQLite's cache.
	const slow = "0 * length(hex(zeroblob(500000 + x)) || hex(zeroblob(500000 - x)))"
	for name, first := range map[string]string{"nothing found": "0", "something found": "NULL"} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSnapshot(t)
			s.InDatabase(func(db *sql.DB) {
				_, err := db.Exec("CREATE TABLE t(x, y); CREATE INDEX i ON t(0); INSERT INTO t VALUES (0, " + first + ");" +
					"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 60000) INSERT INTO t SELECT i, 0 FROM n")
				require.NoError(t, err)
				_, err = db.Exec(`PRAGMA writable_schema = on; UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON t(' || ? || ')' WHERE name = 'i';
					UPDATE sqlite_schema SET sql = 'CREATE TABLE t(x, y NOT NULL)' WHERE name = 't'`, slow)
				require.NoError(t, err)
			})
			got, _ := validateFor(t, s, "2s")
			require.Equal(t, []string{"ended"}, got)
		})
	}
}

// validateFor validates a snapshot in a process of its own, with a context that
// ends after limit. It returns what the process said, and the most memory that it
// used, in MB.
func validateFor(t *testing.T, s *backuptest.Snapshot, limit string) (said []string, memory int) {
	t.Helper()
	cmd := backuptest.Command(t, "validate-for", s.BackupDir, s.Stamp, limit)
	cmd.Stderr = os.Stderr
	var out bytes.Buffer
	cmd.Stdout = &out
	require.NoError(t, cmd.Start())
	defer time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() }).Stop() // it does not end by itself
	require.NoError(t, cmd.Wait())
	said = strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	_, err := fmt.Sscan(said[0], &memory)
	require.NoError(t, err)
	return said[1:], memory >> 10
}
