package backup_test

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

const damagedSchema = `
	PRAGMA journal_mode = delete;
	CREATE TABLE plain (id INTEGER PRIMARY KEY, text TEXT);
	CREATE TABLE other (id INTEGER PRIMARY KEY, text TEXT);
	CREATE TABLE long (id TEXT PRIMARY KEY, body TEXT, at INTEGER);
	CREATE INDEX long_at ON long (at);
	CREATE INDEX long_id ON long (id COLLATE nocase);
	CREATE TABLE "100" (a INTEGER, b TEXT);
	CREATE INDEX "'quoted""" ON "100" (a, b);
	CREATE TABLE keyed (key TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
	CREATE INDEX keyed_value ON keyed (value);
	CREATE TABLE spent (body TEXT);
	CREATE VIRTUAL TABLE words USING fts5(text);
	WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000) INSERT INTO plain SELECT i, 'plain ' || i FROM n;
	INSERT INTO other SELECT id, 'other ' || id FROM plain;
	INSERT INTO long SELECT CASE id % 2 WHEN 0 THEN 'k' ELSE 'K' END || hex(randomblob(8)), hex(randomblob(id % 7000)), id % 77 FROM plain;
	INSERT INTO "100" SELECT id % 50, 'text ' || id FROM plain;
	INSERT INTO keyed SELECT hex(randomblob(8)), id FROM plain;
	INSERT INTO words SELECT text FROM plain;
	INSERT INTO spent SELECT hex(randomblob(3000)) FROM plain;
	DELETE FROM spent WHERE rowid % 3;
	ANALYZE;`

// withoutIndex runs a statement while an index is missing from the schema.
func withoutIndex(t *testing.T, file, index, statement string) {
	t.Helper()
	backuptest.WithoutIndex(t, file, index, func(db *sql.DB) {
		_, err := db.Exec(statement)
		require.NoError(t, err)
	})
}

// ofVirtualTable is what SQLite's check of a full-text table says.
var ofVirtualTable = regexp.MustCompile(`^fts5: .* table "words"$|inverted index for FTS5 table main\.words`)

// Whatever the damage, a validation reports word for word what SQLite's
// integrity_check reports when it reads the whole file by itself. What that
// reports of the virtual table is in the notes.
func TestValidateSaysWhatSQLiteSays(t *testing.T) {
	base := backuptest.NewSnapshot(t)
	made := filepath.Join(t.TempDir(), "made.db")
	backuptest.InDatabase(t, made, func(db *sql.DB) {
		_, err := db.Exec(damagedSchema)
		require.NoError(t, err)
	})
	sound, err := os.ReadFile(made)
	require.NoError(t, err)
	type damage struct {
		do   func(t *testing.T, file string)
		says string // at least this
	}
	schema := func(change string) func(t *testing.T, file string) {
		return func(t *testing.T, file string) {
			backuptest.InDatabase(t, file, func(db *sql.DB) {
				result, err := db.Exec("PRAGMA writable_schema = on; UPDATE sqlite_schema SET " + change)
				require.NoError(t, err)
				n, err := result.RowsAffected()
				require.NoError(t, err)
				require.EqualValues(t, 1, n)
			})
		}
	}
	edit := func(change func(data []byte)) func(t *testing.T, file string) {
		return func(t *testing.T, file string) {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			change(data)
			require.NoError(t, os.WriteFile(file, data, 0o600))
		}
	}
	damages := map[string]damage{
		"none":                        {func(*testing.T, string) {}, ""},
		"first page of the free list": {edit(func(data []byte) { binary.BigEndian.PutUint32(data[32:], 2) }), "Freelist"},
		"size of the free list": {edit(func(data []byte) {
			binary.BigEndian.PutUint32(data[36:], binary.BigEndian.Uint32(data[36:])+1)
		}), "Freelist: size is"},
		"pages of nothing": {edit(func(data []byte) { clear(data[32:40]) }), "never used"},
		"page of two tables": {schema("rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'plain') WHERE name = 'other'"),
			"2nd reference to page"},
		"page of a table and the free list": {edit(func(data []byte) {
			trunk := int(binary.BigEndian.Uint32(data[32:])-1) * 4096
			binary.BigEndian.PutUint32(data[trunk+8:], 3)
		}), "2nd reference to page"},
		"row missing from an index": {func(t *testing.T, file string) {
			withoutIndex(t, file, "long_at", "INSERT INTO long VALUES ('new', 'new', 5)")
		}, "missing from index long_at"},
		"row too many in an index": {func(t *testing.T, file string) {
			withoutIndex(t, file, "long_at", "DELETE FROM long WHERE rowid = 500")
		}, "wrong # of entries in index long_at"},
		"row of a table without rowids missing from an index": {func(t *testing.T, file string) {
			withoutIndex(t, file, "keyed_value", "INSERT INTO keyed VALUES ('new', 5)")
		}, "missing from index keyed_value"},
		"row missing from an index with an odd name": {func(t *testing.T, file string) {
			withoutIndex(t, file, `'quoted"`, `INSERT INTO "100" VALUES (5, 'new')`)
		}, `missing from index 'quoted"`},
		"index in another order": {schema("sql = replace(sql, 'COLLATE nocase', '') WHERE name = 'long_id'"), "long_id"},
		"duplicates in a unique index": {schema("sql = replace(sql, 'CREATE INDEX', 'CREATE UNIQUE INDEX') WHERE name = 'long_at'"),
			"non-unique entry in index long_at"},
		"NULL where there must be none": {func(t *testing.T, file string) {
			backuptest.InDatabase(t, file, func(db *sql.DB) {
				_, err := db.Exec("UPDATE plain SET text = NULL WHERE id = 500")
				require.NoError(t, err)
			})
			schema("sql = replace(sql, 'text TEXT', 'text TEXT NOT NULL') WHERE name = 'plain'")(t, file)
		}, "NULL value in plain.text"},
		"type that the table is strict about": {schema("sql = replace(sql, 'text TEXT)', 'text INTEGER) STRICT') WHERE name = 'plain'"),
			"non-INTEGER value in plain.text"},
		"record longer than its cell": {edit(func(data []byte) {
			i := bytes.Index(data, []byte("plain 500"))
			data[i-1] = 0x7f
		}), ""},
		"rows out of order": {edit(func(data []byte) {
			i := bytes.Index(data, []byte("plain 500"))
			data[i-4] ^= 0x40 // the row's number
		}), "out of order"},
		"word missing from a virtual table": {func(t *testing.T, file string) {
			backuptest.InDatabase(t, file, func(db *sql.DB) {
				_, err := db.Exec("DELETE FROM words_data WHERE id > 10")
				require.NoError(t, err)
			})
		}, "words"},
		"end cut off": {func(t *testing.T, file string) {
			require.NoError(t, os.Truncate(file, backuptest.FileSize(t, file)/2/4096*4096))
		}, "malformed"},
	}
	for i := range 40 {
		damages[fmt.Sprint("any bytes ", i)] = damage{edit(func(data []byte) {
			random := rand.New(rand.NewPCG(5, uint64(i)))
			for range 1 + random.IntN(50) {
				page := random.IntN(len(data)/4096) * 4096
				data[page+random.IntN([]int{8, 100, 4096}[random.IntN(3)])] ^= byte(1 + random.IntN(255))
			}
		}), ""}
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			s := base.Copy(t)
			s.Write(backuptest.DBFile, sound)
			damage.do(t, s.Path(backuptest.DBFile))
			s.Set(map[string]any{"db_size_bytes": len(s.Read(backuptest.DBFile))})
			s.Reseal()

			db := backuptest.OpenDB(t, s.Path(backuptest.DBFile), "mode=ro", "immutable=1", "_pragma=trusted_schema(0)", "_pragma=temp_store(2)")
			defer db.Close()
			var want, notes []string
			rows, err := db.Query("PRAGMA integrity_check(1001)")
			if err == nil {
				for rows.Next() {
					var text string
					require.NoError(t, rows.Scan(&text))
					switch {
					case text == "ok":
					case ofVirtualTable.MatchString(text):
						notes = append(notes, `virtual table "words" says of itself: `+text)
					default:
						want = append(want, text)
					}
				}
				err = rows.Err()
			}
			if err != nil {
				want = append(want, err.Error())
			}
			if name == "none" {
				require.Empty(t, want)
			} else if !strings.HasPrefix(name, "any") {
				require.NotEmpty(t, append(want, notes...))
				require.Contains(t, strings.Join(append(want, notes...), "\n"), damage.says)
			}

			var found []string
			report := s.Validate()
			require.Equal(t, notes, details(report.Notes))
			for _, p := range report.Problems {
				if p.Code == backup.CodeDBForm { // a header may be hit
					continue
				}
				require.Contains(t, []backup.Code{backup.CodeDBIntegrity, backup.CodeDBOpen}, p.Code)
				require.Equal(t, backuptest.DBFile, p.Path)
				found = append(found, p.Detail)
			}
			require.Equal(t, len(want), len(found))
			for i, text := range want {
				if len(text) > 1024 { // a detail has a limit
					text = text[:1024] + "…"
				}
				require.Equal(t, strings.ReplaceAll(text, "\n", " "), found[i])
			}
		})
	}
}
