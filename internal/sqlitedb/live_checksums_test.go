package sqlitedb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"modernc.org/sqlite"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// newChecksummed creates a database whose pages have right checksums, as
// cksumvfs makes them, in a journal mode. Nobody has it open.
func newChecksummed(t *testing.T, mode string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.db")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	execute(t, path, "PRAGMA page_size=4096", "PRAGMA user_version=1")
	page, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Len(t, page, 4096)
	page[headerReserved] = 8
	binary.BigEndian.PutUint16(page[105:], 4096-8) // where the cells of the empty page begin
	require.NoError(t, os.WriteFile(path, page, 0o600))
	execute(t, path, "PRAGMA journal_mode="+mode, "CREATE TABLE t (x)", insert, insert)
	resign(t, path)
	require.Empty(t, wrongPages(t, path))
	return path
}

// resign gives every page its checksum.
func resign(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	for off := 0; off < len(data); off += 4096 {
		sum := checksumOf(data[off : off+4096])
		copy(data[off+4088:], sum[:])
	}
	require.NoError(t, os.WriteFile(path, data, 0o600))
}

// checksumOf is cksmCompute of cksumvfs.c.
func checksumOf(page []byte) (sum [8]byte) {
	var s1, s2 uint32
	for i := 0; i < len(page)-8; i += 8 {
		s1 += binary.LittleEndian.Uint32(page[i:]) + s2
		s2 += binary.LittleEndian.Uint32(page[i+4:]) + s1
	}
	binary.LittleEndian.PutUint32(sum[:4], s1)
	binary.LittleEndian.PutUint32(sum[4:], s2)
	return sum
}

// wrongPages returns the numbers of the pages with a wrong checksum.
func wrongPages(t *testing.T, path string) (wrong []int) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Zero(t, len(data)%4096)
	for off := 0; off < len(data); off += 4096 {
		if sum := checksumOf(data[off : off+4096]); !bytes.Equal(sum[:], data[off+4088:off+4096]) {
			wrong = append(wrong, off/4096+1)
		}
	}
	return wrong
}

// A hiddenConn is a connection of another driver: nothing shows that it is one of
// modernc.org/sqlite.
type hiddenConn struct{ driver.Conn }

func (c hiddenConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
}

func (c hiddenConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
}

type hiddenConnector string

func (c hiddenConnector) Connect(context.Context) (driver.Conn, error) {
	conn, err := new(sqlite.Driver).Open(string(c))
	return hiddenConn{conn}, err
}

func (hiddenConnector) Driver() driver.Driver { return nil }

// captures are all ways to copy the database at path, by name.
func captures(t *testing.T, path string) map[string]*Capture {
	t.Helper()
	own, err := sql.Open("sqlite", URI(path, "rw"))
	require.NoError(t, err)
	other := sql.OpenDB(hiddenConnector(URI(path, "rw")))
	t.Cleanup(func() { own.Close(); other.Close() })
	all := map[string]*Capture{
		"online": {Path: path, Online: true},
		"handle": {Path: path, Handle: own},
		"vacuum": {Path: path, Handle: other},
	}
	if runtime.GOOS == "linux" {
		all["pinned"] = &Capture{Path: path}
		all["hashed"] = &Capture{Path: path, Hash: true}
	}
	return all
}

// checksummedStates are the states in which a database with page checksums may
// be found.
var checksummedStates = map[string]struct {
	mode       string
	statements []string // of a writer that is killed then
	rows       int
}{
	"rollback journal":  {"delete", nil, 2},
	"WAL, idle":         {"wal", nil, 2},
	"WAL, full":         {"wal", []string{insert, insert}, 4},
	"WAL, checkpointed": {"wal", []string{insert, "PRAGMA wal_checkpoint(PASSIVE)", insert}, 4},
	"WAL, same size":    {"wal", []string{"UPDATE t SET x = randomblob(20000) WHERE rowid = 2"}, 2},
	"WAL, uncommitted":  {"wal", []string{insert, "PRAGMA cache_size=5", "BEGIN IMMEDIATE", insert, insert}, 3},
}

func inChecksummedState(t *testing.T, name string) string {
	t.Helper()
	state := checksummedStates[name]
	path := newChecksummed(t, state.mode)
	if state.statements != nil {
		h := startHolder(t, path, "PRAGMA wal_autocheckpoint=0")
		for _, statement := range state.statements {
			h.do(statement)
		}
		require.NoError(t, h.cmd.Process.Kill())
		h.end()
		resign(t, path) // as the checkpoint of cksumvfs leaves it
	}
	return path
}

// The pages of a copy carry right checksums, whether they were copied or written
// by SQLite, which does not know of them.
func TestChecksumsOfCopies(t *testing.T) {
	for name, state := range checksummedStates {
		for way := range captures(t, "none") {
			t.Run(name+", "+way, func(t *testing.T) {
				path := inChecksummedState(t, name)
				before := readFiles(t, path)
				made := copyOf(t, captures(t, path)[way])
				requireFiles(t, map[string][]byte{"": before[""]}, path, "-wal")
				require.Empty(t, wrongPages(t, made))
				require.Equal(t, state.rows, number(t, made, "SELECT count(*) FROM t"))
				head, err := os.ReadFile(made)
				require.NoError(t, err)
				require.EqualValues(t, 8, head[headerReserved])
				require.EqualValues(t, 1, head[headerReadForm])
			})
		}
	}
}

// The hash of a copy is not begun before its pages have their checksums.
func TestNoHashBeforeChecksums(t *testing.T) {
	for name := range checksummedStates {
		path := inChecksummedState(t, name)
		dir, err := fsat.OpenDir(t.TempDir())
		require.NoError(t, err)
		defer dir.Close()
		c := &Capture{Path: path, Hash: true}
		made, err := c.CopyTo(t.Context(), dir)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.Nil(t, made.Hash())
	}
}

// A page that was damaged before it was copied still shows that in the copy.
func TestChecksumOfADamagedPageStaysWrong(t *testing.T) {
	for name := range checksummedStates {
		for _, page := range []int{1, 4} {
			for way := range captures(t, "none") {
				if way == "vacuum" || page == 1 && (way == "online" || way == "handle" || checksummedStates[name].rows > 2) {
					continue // it is written anew
				}
				t.Run(fmt.Sprintf("%s, %s, page %d", name, way, page), func(t *testing.T) {
					path := inChecksummedState(t, name)
					data, err := os.ReadFile(path)
					require.NoError(t, err)
					at := page*4096 - 9
					if page == 1 {
						at = 80 // a byte that is reserved for expansion
					}
					data[at] ^= 1
					require.NoError(t, os.WriteFile(path, data, 0o600))
					require.Equal(t, []int{page}, wrongPages(t, path))
					require.Equal(t, []int{page}, wrongPages(t, copyOf(t, captures(t, path)[way])))
				})
			}
		}
	}
}

// Locking such a database does not checkpoint it, whether it can be locked or not,
// and the copy that is made of it then is right.
func TestChecksumsOfALockedDatabase(t *testing.T) {
	for name, state := range checksummedStates {
		t.Run(name, func(t *testing.T) {
			path := inChecksummedState(t, name)
			before := readFiles(t, path)
			src, err := Lock(t.Context(), path)
			require.NoError(t, err)
			made := copyOf(t, &Capture{Path: path, Source: src})
			require.Empty(t, wrongPages(t, made))
			require.Equal(t, state.rows, number(t, made, "SELECT count(*) FROM t"))
			if sum, err := src.Sum(t.Context()); before["-wal"] == nil {
				require.NoError(t, err)
				copied, err := os.ReadFile(made)
				require.NoError(t, err)
				require.EqualValues(t, sha256.Sum256(copied), sum)
			} else {
				require.Error(t, err)
			}
			require.NoError(t, src.Close())
			if before["-wal"] == nil { // Lock leaves an empty one
				require.Empty(t, readFiles(t, path)["-wal"])
				execute(t, path, "SELECT * FROM t")
			}
			requireFiles(t, before, path)

			h := startHolder(t, path, "BEGIN", "SELECT * FROM t")
			_, err = Lock(t.Context(), path)
			require.ErrorIs(t, err, errdefs.ErrDatabaseInUse)
			require.NoError(t, h.cmd.Process.Kill())
			h.end()
			requireFiles(t, before, path, "-wal")
			require.Equal(t, string(before["-wal"]), string(readFiles(t, path)["-wal"]))
		})
	}
}

// A database that has no pages in memory, or another one than is meant, is not
// copied, whatever driver it is open with.
func TestEmptyHandleIsRefused(t *testing.T) {
	for name, db := range map[string]*sql.DB{
		"own":   func() *sql.DB { db, _ := sql.Open("sqlite", ":memory:"); return db }(),
		"other": sql.OpenDB(hiddenConnector(":memory:")),
	} {
		t.Run(name, func(t *testing.T) {
			defer db.Close()
			dir, err := fsat.OpenDir(t.TempDir())
			require.NoError(t, err)
			defer dir.Close()
			c := &Capture{Path: filepath.Join(t.TempDir(), "a.db"), Handle: db}
			require.ErrorIs(t, c.Ready(t.Context(), nil), errdefs.ErrSourceInvalid)
			_, err = c.CopyTo(t.Context(), dir)
			require.ErrorIs(t, err, errdefs.ErrSourceInvalid)

			busy, err := db.Conn(t.Context())
			require.NoError(t, err)
			defer busy.Close()
			_, err = busy.ExecContext(t.Context(), "CREATE TABLE t (x)")
			require.NoError(t, err)
			require.ErrorIs(t, c.Ready(t.Context(), nil), errdefs.ErrSourceInvalid, "the pool has opened another database")
		})
	}
}

// The pages of a WAL are those up to the last whole commit.
func TestPagesOfAWAL(t *testing.T) {
	path := newClosed(t, "wal")
	h := startHolder(t, path, "PRAGMA wal_autocheckpoint=0", insert)
	for range 2 {
		wal, err := os.ReadFile(path + "-wal")
		require.NoError(t, err)
		size := func(n int) (last int) {
			var s pageSet
			require.NoError(t, s.addWAL(t.Context(), bytes.NewReader(wal[:n])))
			require.NoError(t, s.each(1<<32-1, func(page uint32) error { last = int(page); return nil }))
			return last
		}
		pages := number(t, copyOf(t, &Capture{Path: path}), "PRAGMA page_count")
		require.Equal(t, pages, size(len(wal)))
		require.Less(t, size(len(wal)-1), pages, "the last commit is not whole")
		for _, n := range []int{0, 31, 32, 100} {
			require.Zero(t, size(n))
		}
		wal[40] ^= 1
		require.Zero(t, size(len(wal)), "its first frame is of another generation")
		h.do(insert)
	}
}
