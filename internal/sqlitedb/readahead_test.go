package backup_test

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// sectors is a file of which a part cannot be read.
type sectors struct {
	data           []byte
	badFrom, badTo int64
	reads          int
}

var errBadSector = errors.New("bad sector")

func (s *sectors) ReadAt(p []byte, off int64) (int, error) {
	s.reads++
	n := 0
	if off < int64(len(s.data)) {
		n = copy(p, s.data[off:])
	}
	if off < s.badTo && off+int64(n) > s.badFrom {
		return int(max(s.badFrom-off, 0)), errBadSector
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// However a file is read, its bytes come out, and where it ends or cannot be
// read that comes out, and nowhere else.
func TestReadAheadGivesTheFilesBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 1<<20+1234)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	for _, bad := range []int64{-1, 0, 65536, 100_000, 1 << 19, int64(len(data)) - 1} {
		for page := int64(512); page <= 65536; page *= 2 {
			file := &sectors{data: data}
			if bad >= 0 {
				file.badFrom, file.badTo = bad, bad+1
			}
			ahead := backup.NewReadAhead(file)
			buf, want := make([]byte, page), make([]byte, page)
			at := []int64{0, 0, 0}
			for range 5000 {
				i := random.IntN(len(at))
				switch random.IntN(20) {
				case 0:
					at[i] = random.Int64N(int64(len(data))/page+3) * page
				case 1:
					at[i] = max(at[i]-page, 0)
				default:
					at[i] += int64(i-1) * page // down, again, up
				}
				off := max(at[i], 0)
				n := 1 + random.Int64N(page)
				if random.IntN(4) > 0 {
					n = page
				} else {
					off += random.Int64N(page)
				}
				_, err := ahead.Seek(off, io.SeekStart)
				require.NoError(t, err)
				got, err := io.ReadFull(ahead, buf[:n])
				wanted, wantErr := file.ReadAt(want[:n], off)
				if wantErr == io.EOF && wanted > 0 {
					wantErr = io.ErrUnexpectedEOF
				}
				require.Equal(t, wantErr, err, "%d bytes at %d", n, off)
				require.Equal(t, wanted, got, "%d bytes at %d", n, off)
				require.True(t, bytes.Equal(want[:wanted], buf[:got]), "%d bytes at %d", n, off)
			}
		}
	}
}

// Runs upwards and downwards, among them single pages here and there, are read
// block by block.
func TestReadAheadSparesReads(t *testing.T) {
	const page, pages = 4096, 2048
	for _, step := range []int64{1, -1} {
		file := &sectors{data: make([]byte, pages*page)}
		ahead := backup.NewReadAhead(file)
		random := rand.New(rand.NewPCG(3, 4))
		buf := make([]byte, page)
		read := func(n int64) {
			_, err := ahead.Seek(n*page, io.SeekStart)
			require.NoError(t, err)
			_, err = io.ReadFull(ahead, buf)
			require.NoError(t, err)
		}
		for i := range int64(pages) {
			if step > 0 {
				read(i)
			} else {
				read(pages - 1 - i)
			}
			if i%16 == 0 {
				read(random.Int64N(pages))
			}
		}
		require.Less(t, file.reads, pages/16+pages/16+100)
	}
}

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

// withoutIndex takes an index out of the schema for a statement.
func withoutIndex(t *testing.T, file, index, statement string) {
	t.Helper()
	var kept [4]any
	inDatabase(t, file, func(db *sql.DB) {
		require.NoError(t, db.QueryRow("SELECT name, tbl_name, rootpage, sql FROM sqlite_schema WHERE name = ?", index).
			Scan(&kept[0], &kept[1], &kept[2], &kept[3]))
		_, err := db.Exec("PRAGMA writable_schema = on; DELETE FROM sqlite_schema WHERE name = ?", index)
		require.NoError(t, err)
	})
	inDatabase(t, file, func(db *sql.DB) {
		_, err := db.Exec(statement)
		require.NoError(t, err)
		_, err = db.Exec("PRAGMA writable_schema = on")
		require.NoError(t, err)
		_, err = db.Exec("INSERT INTO sqlite_schema VALUES ('index', ?, ?, ?, ?)", kept[:]...)
		require.NoError(t, err)
	})
}

// A validation says of a database what a whole integrity_check says of it that
// reads the file on its own, word for word, whatever the damage.
func TestValidateSaysWhatSQLiteSays(t *testing.T) {
	base := newSpecimen(t)
	made := filepath.Join(t.TempDir(), "made.db")
	inDatabase(t, made, func(db *sql.DB) {
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
			inDatabase(t, file, func(db *sql.DB) {
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
			inDatabase(t, file, func(db *sql.DB) {
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
			inDatabase(t, file, func(db *sql.DB) {
				_, err := db.Exec("DELETE FROM words_data WHERE id > 10")
				require.NoError(t, err)
			})
		}, "words"},
		"end cut off": {func(t *testing.T, file string) {
			require.NoError(t, os.Truncate(file, fileSize(t, file)/2/4096*4096))
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
			s := base.copy(t)
			s.write(dbFile, sound)
			damage.do(t, s.path(dbFile))
			s.set(map[string]any{"db_size_bytes": len(s.read(dbFile))})
			s.reseal()

			db := openDB(t, s.path(dbFile), "mode=ro", "immutable=1", "_pragma=trusted_schema(0)", "_pragma=temp_store(2)")
			defer db.Close()
			var want []string
			rows, err := db.Query("PRAGMA integrity_check(1001)")
			if err == nil {
				for rows.Next() {
					var text string
					require.NoError(t, rows.Scan(&text))
					if text != "ok" {
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
				require.NotEmpty(t, want)
				require.Contains(t, strings.Join(want, "\n"), damage.says)
			}

			var found []string
			for _, p := range s.validate().Problems {
				if p.Code == backup.CodeDBForm { // a header may be hit
					continue
				}
				require.Contains(t, []backup.Code{backup.CodeDBIntegrity, backup.CodeDBOpen}, p.Code)
				require.Equal(t, dbFile, p.Path)
				found = append(found, p.Detail)
			}
			require.Equal(t, len(want), len(found))
			for i, text := range want {
				require.Equal(t, strings.ReplaceAll(text, "\n", " "), found[i])
			}
		})
	}
}
