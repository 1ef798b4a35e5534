package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/atocore/backup"

	_ "modernc.org/sqlite"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// ensure creates the data called name with size n, unless it exists, and returns
// its path. A child process creates it, which keeps this process small (see
// peakMemory). It also reads the data into the page cache, from where it will be
// read when it is measured.
func (b *bench) ensure(ctx context.Context, name string, n int64) (path string, err error) {
	path = filepath.Join(b.dir, "data", fmt.Sprintf("%s-%d", name, n))
	if name == "database" || name == "small-rows" {
		path += ".db"
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		b.say("creating %s", filepath.Base(path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		part := path + ".part"
		if err := os.RemoveAll(part); err != nil {
			return "", err
		}
		argv := []string{b.self, "child", "fill", "-data", name, "-to", part, "-n", fmt.Sprint(n)}
		if _, err := runProcess(ctx, argv); err != nil {
			return "", err
		}
		if err := os.Rename(part, path); err != nil {
			return "", err
		}
		syncDisks()
	} else if err != nil {
		return "", err
	}
	return path, warm(path)
}

// warm reads every file at or below path once.
func warm(path string) error {
	buf := make([]byte, mib)
	return filepath.WalkDir(path, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
		return err
	})
}

// fill creates the data called name at path.
func fill(ctx context.Context, name, path string, n int64) error {
	switch name {
	case "database":
		return fillDatabase(ctx, path, n, largeRows+smallRows)
	case "small-rows":
		return fillDatabase(ctx, path, n, smallRows)
	case "small-files":
		return fillFiles(path, n, 4*kib)
	case "large-files":
		return fillFiles(path, 8, n/8)
	case "chroma":
		return fillChroma(ctx, path, n)
	case "snapshots":
		return fillSnapshots(path, n)
	case "registry":
		return os.WriteFile(path, fmt.Appendf(nil, `{"version": 1, "projects": [%s]}`,
			strings.TrimSuffix(strings.Repeat(`{"id": "a-project", "aliases": ["one", "two"]}, `, int(n)), ", ")), 0o600)
	}
	return fmt.Errorf("no data %q", name)
}

// filler returns a source of bytes that no file system can compress. They are the
// same in every run.
func filler(seed int64) *rand.ChaCha8 {
	var key [32]byte
	copy(key[:], fmt.Sprint(seed))
	return rand.NewChaCha8(key)
}

func fillFile(path string, size int64, from *rand.ChaCha8) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.CopyN(f, from, size)
	return err
}

// fillFiles creates count files of the same size, 1,000 in each directory.
func fillFiles(path string, count, size int64) error {
	from := filler(count)
	for i := range count {
		dir := filepath.Join(path, fmt.Sprintf("%03d", i/1000))
		if i%1000 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := fillFile(filepath.Join(dir, fmt.Sprintf("%05d", i)), size, from); err != nil {
			return err
		}
	}
	return nil
}

// fillChroma creates a directory like the local store of a Chroma server, with n
// bytes in total: its database, and one directory for each collection, whose
// segment files contain the vectors.
func fillChroma(ctx context.Context, path string, n int64) error {
	const collections = 40
	from := filler(n)
	sizes := rand.New(from)
	database := n * 3 / 10
	segments := float64(n-database) / collections // on average
	for range collections {
		dir := filepath.Join(path, fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", sizes.Uint32(), sizes.Uint32N(1<<16),
			sizes.Uint32N(1<<12), sizes.Uint32N(1<<12), sizes.Uint64N(1<<48)))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		data := int64(segments * (0.4 + 1.2*sizes.Float64()))
		for _, f := range []struct {
			name string
			size int64
		}{
			{"data_level0.bin", data},
			{"header.bin", 100},
			{"length.bin", data / 400},
			{"link_lists.bin", data / 100},
			{"index_metadata.pickle", data / 25},
		} {
			if err := fillFile(filepath.Join(dir, f.name), f.size, from); err != nil {
				return err
			}
		}
	}
	db := filepath.Join(path, "chroma.sqlite3")
	if err := fillDatabase(ctx, db, database, largeRows+smallRows); err != nil {
		return err
	}
	return execute(ctx, db, "PRAGMA journal_mode=delete")
}

const schema = `
	CREATE TABLE document (id INTEGER PRIMARY KEY, project TEXT NOT NULL, body TEXT NOT NULL, created_at TEXT NOT NULL);
	CREATE INDEX document_project ON document (project, created_at);
	CREATE TABLE chunk (id TEXT PRIMARY KEY, document_id INTEGER NOT NULL REFERENCES document, position INTEGER NOT NULL, text TEXT NOT NULL);
	CREATE UNIQUE INDEX chunk_position ON chunk (document_id, position);
	CREATE TABLE embedding (id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
	CREATE TABLE event (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL);
	CREATE INDEX event_at ON event (at);
	CREATE INDEX event_kind ON event (kind, at);`

// largeRows adds about 8 MB: documents of up to 20 KB, chunks of up to 2.4 KB with
// random keys, and vectors.
const largeRows = `
	INSERT INTO document (project, body, created_at)
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 250)
		SELECT 'project-' || abs(random() % 50), hex(randomblob(50 + abs(random() % 10000))),
			datetime(1700000000 + abs(random() % 100000000), 'unixepoch') FROM n;
	INSERT INTO chunk
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1600)
		SELECT lower(hex(randomblob(16))), (SELECT count(*) FROM document) - i / 8, i, hex(randomblob(200 + abs(random() % 1000))) FROM n
		WHERE true ON CONFLICT DO NOTHING;
	INSERT INTO embedding (vector)
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 800)
		SELECT randomblob(3072) FROM n;`

// smallRows adds about 0.5 MB: events of about 60 bytes in two indexes whose order
// is random. An integrity check looks up each row in both.
const smallRows = `
	INSERT INTO event (at, kind, detail)
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)
		SELECT 1700000000 + abs(random() % 100000000), 'kind-' || abs(random() % 20), hex(randomblob(10 + abs(random() % 40))) FROM n;`

// fillDatabase creates a WAL database of about n bytes.
func fillDatabase(ctx context.Context, path string, n int64, rows string) error {
	db, err := openDatabase(path, "_pragma=journal_mode(off)", "_pragma=synchronous(off)", "_pragma=cache_size(-100000)")
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return err
	}
	for size := int64(0); size < n; {
		if _, err := db.ExecContext(ctx, "BEGIN;"+rows+"COMMIT"); err != nil {
			return err
		}
		err := db.QueryRowContext(ctx, "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()").Scan(&size)
		if err != nil {
			return err
		}
	}
	if err := db.Close(); err != nil {
		return err
	}
	return execute(ctx, path, "PRAGMA journal_mode=wal")
}

// openDatabase opens a database with a single connection, as a host of the
// library would.
func openDatabase(path string, params ...string) (*sql.DB, error) {
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: strings.Join(params, "&")}
	db, err := sql.Open("sqlite", u.String())
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

func execute(ctx context.Context, path, statement string) error {
	db, err := openDatabase(path)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, statement); err != nil {
		return err
	}
	return db.Close()
}

// fillSnapshots creates a backup directory with n snapshots for listing. They
// contain nothing but metadata as the library writes it.
func fillSnapshots(path string, n int64) error {
	first := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range n {
		at := first.Add(time.Duration(i) * 17 * time.Minute)
		stamp := at.Format("20060102T150405Z")
		root := filepath.Join("/srv/atocore/backups/snapshots", stamp)
		data, err := json.MarshalIndent(backup.Metadata{
			CreatedAt:              at,
			BackupRoot:             root,
			DBSnapshotPath:         filepath.Join(root, "db", "atocore.db"),
			DBSizeBytes:            100*mib + i,
			RegistrySnapshotPath:   filepath.Join(root, "config", "project-registry.json"),
			ChromaSnapshotPath:     filepath.Join(root, "chroma"),
			ChromaSnapshotBytes:    700*mib + i,
			ChromaSnapshotFiles:    201,
			ChromaSnapshotIncluded: true,
			VectorStoreNote:        "The Chroma directory was copied while ingestion was held off.",
			FormatVersion:          1,
			Stamp:                  stamp,
		}, "", "  ")
		if err != nil {
			return err
		}
		dir := filepath.Join(path, "snapshots", stamp)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "backup-metadata.json"), append(data, '\n'), 0o600); err != nil {
			return err
		}
	}
	return nil
}
