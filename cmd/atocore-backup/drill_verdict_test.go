package main

import (
	"database/sql/driver"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"modernc.org/sqlite"

	"github.com/atocore/backup/drill"
	"github.com/atocore/backup/internal/backuptest"
)

// makeNeedy runs statements on a database as a program that has a collation HOST
// and a function hostf.
func makeNeedy(t *testing.T, path, statements string) {
	t.Helper()
	d := new(sqlite.Driver)
	require.NoError(t, d.RegisterCollationUtf8("HOST", func(a, b string) int { return strings.Compare(b, a) }))
	require.NoError(t, d.RegisterFunction("hostf", &sqlite.FunctionImpl{NArgs: 1, Deterministic: true,
		Scalar: func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) { return args[0], nil }}))
	conn, err := d.Open(backuptest.DSN(path))
	require.NoError(t, err)
	_, err = conn.(driver.ExecerContext).ExecContext(t.Context(), statements, nil)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// A drill opens what it restored as a service does, and comes to the verdict of a
// validation and a restore all the same.
func TestDrillHasTheVerdictOfAValidation(t *testing.T) {
	const unlessQuick = "not by the quick check: "
	for name, test := range map[string]struct {
		schema string
		note   string // what is noted, if anything
	}{
		"check constraint": {"CREATE TABLE c(a CHECK (a > 5)); PRAGMA ignore_check_constraints = on; INSERT INTO c VALUES (1)", ""},
		"collation": {"CREATE TABLE c(a TEXT); CREATE INDEX i ON c(a COLLATE HOST); INSERT INTO c VALUES ('a'), ('b')",
			unlessQuick + `index "i" was not compared with table "c": SQL logic error: no such collation sequence: HOST (257)`},
		"function": {"CREATE TABLE c(a TEXT, b NOT NULL AS (hostf(a))); INSERT INTO c VALUES ('a'), ('b')",
			`generated column "b" of table "c" was not checked: SQL logic error: unknown function: hostf() (1)`},
		"tokenizer": {`CREATE VIRTUAL TABLE f USING fts5(a, tokenize = 'porter'); INSERT INTO f VALUES ('hello'); PRAGMA writable_schema = on;
			UPDATE sqlite_schema SET sql = replace(sql, 'porter', 'jieba') WHERE name = 'f'`,
			`virtual table "f" was not checked: SQL logic error: no such tokenizer: jieba (1)`},
		"virtual table that complains": {`CREATE VIRTUAL TABLE f USING fts5(a, tokenize = 'trigram'); INSERT INTO f VALUES ('page one of a PDF');
			UPDATE f_content SET c0 = 'page one of a book'`,
			`virtual table "f" says of itself: malformed inverted index for FTS5 table main.f`},
	} {
		for _, where := range []string{"database", "chroma"} {
			t.Run(name+" in the "+where, func(t *testing.T) {
				s := newStore(t)
				path, quick := s.db, false
				if where == "chroma" {
					path, quick = filepath.Join(s.chroma, "chroma.sqlite3"), true
				}
				makeNeedy(t, path, test.schema)
				stamp := s.snapshot(t)
				note, hidden := strings.CutPrefix(test.note, unlessQuick)
				if hidden && quick {
					note = ""
				}
				for _, command := range []string{"validate", "drill", "restore"} {
					if command == "restore" {
						require.NoError(t, s.live.Close())
					}
					args := append([]string{command, stamp}, s.flags()...)
					if command == "restore" {
						args = append(args, "--yes")
					}
					o := atocore(t, args...)
					require.Equal(t, exitDone, o.code, "%s: %s%s", command, o.stdout, o.stderr)
					notes := decode[struct{ Notes []string }](t, o).Notes
					switch {
					case command == "restore":
					case note == "":
						require.Empty(t, notes)
					default:
						require.Len(t, notes, 1)
						require.True(t, strings.HasSuffix(notes[0], filepath.Base(path)+": "+note), notes[0])
						require.Contains(t, o.stderr, strings.ReplaceAll(note, "\\", "\\\\"))
					}
				}
			})
		}
	}
}

// A drill of a snapshot with findings has the verdict of a validation, too, and
// goes on if it is told to.
func TestDrillSaysDespiteWhat(t *testing.T) {
	s := newStore(t)
	makeNeedy(t, s.db, "CREATE TABLE c(a, b); INSERT INTO c VALUES (1, NULL); PRAGMA writable_schema = on; "+
		"UPDATE sqlite_schema SET sql = replace(sql, 'b)', 'b NOT NULL)') WHERE name = 'c'")
	stamp := s.snapshot(t)
	want := []string{"db_integrity_check_failed: db/atocore.db: NULL value in c.b"}

	o := atocore(t, "drill", stamp, "--backup-dir", s.backups)
	require.Equal(t, exitInvalid, o.code)
	require.Equal(t, want, decode[report](t, o).Errors)
	require.Contains(t, o.stderr, "Give --despite-findings")

	o = atocore(t, "drill", stamp, "--backup-dir", s.backups, "--despite-findings")
	require.Equal(t, exitDone, o.code, o.stderr)
	got := decode[drill.Result](t, o)
	require.False(t, got.DBOK)
	require.True(t, *got.RegistryOK)
	require.Equal(t, want, got.Findings)
	require.Empty(t, got.Notes)
	require.Contains(t, o.stderr, "It was restored despite a finding: "+want[0])

	data := filepath.Join(s.backups, "snapshots", stamp, "chroma", "segment", "data.bin")
	require.NoError(t, os.WriteFile(data, []byte("VECTORS"), 0o600))
	o = atocore(t, "drill", stamp, "--backup-dir", s.backups, "--despite-findings")
	require.Equal(t, exitInvalid, o.code)
	require.NotContains(t, o.stderr, "Give --despite-findings")
}

// A Chroma database with a journal beside it is opened, which recovers it, but a
// validation does not open it and so has no objection.
func TestDrillOfAChromaDatabaseWithAJournal(t *testing.T) {
	s := newStore(t)
	path := filepath.Join(s.chroma, "chroma.sqlite3")
	db := backuptest.OpenDB(t, path)
	_, err := db.Exec(`PRAGMA journal_mode = wal; CREATE TABLE c(a, b); INSERT INTO c VALUES (1, NULL); PRAGMA writable_schema = on;
		UPDATE sqlite_schema SET sql = replace(sql, 'b)', 'b NOT NULL)') WHERE name = 'c'`)
	require.NoError(t, err)
	backuptest.KeepWAL(t, db, path)
	stamp := s.snapshot(t)
	o := atocore(t, "validate", stamp, "--backup-dir", s.backups)
	require.Equal(t, exitDone, o.code, o.stderr)
	o = atocore(t, "drill", stamp, "--backup-dir", s.backups)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, []string{"chroma.sqlite3: NULL value in c.b"}, decode[drill.Result](t, o).Notes)
}
