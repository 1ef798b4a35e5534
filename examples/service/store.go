package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	_ "modernc.org/sqlite" // registers the driver "sqlite"
)

var (
	errNotFound = errors.New("not found")
	errOffline  = errors.New("the store is offline")
	errDiffer   = errors.New("the parts of the store disagree")
)

// A store is the service's machine store: a database with notes and with an index
// of the documents, a registry of the projects, and a directory with the documents
// and their vectors, which plays the role of Chroma's.
//
// There are two locks. A function that needs both takes ingestion first, because
// a restore does: it holds the ingestion guard when it takes the store offline.
type store struct {
	database, registry, chroma string

	// ingestion is held by everybody who writes to the Chroma directory or the
	// registry. The ingestion guard is made from it.
	ingestion sync.Mutex

	// online is held for reading by everybody who uses any part of the store, for
	// a moment and never while waiting for a client, and for writing while the
	// store is offline. So requests wait until a restore has swapped the parts.
	online sync.RWMutex
	db     *sql.DB // nil if the store is not open
}

// newStore returns the store in dir. It is not open, and need not exist.
func newStore(dir string) *store {
	return &store{
		database: filepath.Join(dir, "data", "atocore.db"),
		registry: filepath.Join(dir, "config", "project-registry.json"),
		chroma:   filepath.Join(dir, "data", "chroma"),
	}
}

// schema is what every version of the database gets, a restored one, too.
const schema = `
	CREATE TABLE IF NOT EXISTS note (name TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT;
	CREATE TABLE IF NOT EXISTS document (id TEXT PRIMARY KEY, project TEXT NOT NULL) STRICT`

// open opens the store, and creates what it lacks, unless ctx has ended: then it
// touches nothing, because a restore could not bring all parts back.
func (s *store) open(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, dir := range []string{filepath.Dir(s.registry), s.chroma} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if _, err := os.Stat(s.registry); errors.Is(err, fs.ErrNotExist) {
		if err := s.writeRegistry([]string{}); err != nil {
			return err
		}
	}
	path := filepath.ToSlash(s.database)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/dir/file
	}
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: "_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)"}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(8)
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", s.database, err), db.Close())
	}
	s.db = db
	return nil
}

// offline closes the store for a restore, as soon as nobody uses it. The function
// that it returns opens the store again; if that fails, the store stays offline,
// and another restore may bring it back.
func (s *store) offline(ctx context.Context) (resume func(context.Context) error, err error) {
	s.online.Lock()
	resume = func(ctx context.Context) error {
		defer s.online.Unlock()
		return s.open(ctx)
	}
	if err := s.shut(); err != nil {
		return nil, errors.Join(err, resume(context.WithoutCancel(ctx)))
	}
	return resume, nil
}

// close closes the store, as soon as nobody uses it.
func (s *store) close() error {
	s.online.Lock()
	defer s.online.Unlock()
	return s.shut()
}

func (s *store) shut() error {
	db := s.db
	if s.db = nil; db == nil {
		return nil
	}
	return db.Close()
}

// use calls do with the database while the store is online.
func (s *store) use(do func(db *sql.DB) error) error {
	s.online.RLock()
	defer s.online.RUnlock()
	if s.db == nil {
		return errOffline
	}
	err := do(s.db)
	if errors.Is(err, sql.ErrNoRows) {
		return errNotFound
	}
	return err
}

func (s *store) putNote(ctx context.Context, name, text string) error {
	return s.use(func(db *sql.DB) error {
		_, err := db.ExecContext(ctx, "INSERT INTO note VALUES (?1, ?2) ON CONFLICT DO UPDATE SET text = ?2", name, text)
		return err
	})
}

func (s *store) note(ctx context.Context, name string) (text string, err error) {
	err = s.use(func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SELECT text FROM note WHERE name = ?", name).Scan(&text)
	})
	return text, err
}

// ingest adds a document to a project, and returns its name. Once begun, it is not
// cancelled, so that no part of the document is missing.
func (s *store) ingest(ctx context.Context, project, text string) (id string, err error) {
	s.ingestion.Lock()
	defer s.ingestion.Unlock()
	id = rand.Text()
	return id, s.use(func(db *sql.DB) error {
		if err := s.register(project); err != nil {
			return err
		}
		for suffix, content := range map[string]string{".txt": text, ".vector": vector(text)} {
			if err := os.WriteFile(filepath.Join(s.chroma, id+suffix), []byte(content), 0o600); err != nil {
				return err
			}
		}
		_, err := db.ExecContext(context.WithoutCancel(ctx), "INSERT INTO document VALUES (?, ?)", id, project)
		return err
	})
}

// vector plays the role of an embedding.
func vector(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// register adds a project to the registry.
func (s *store) register(project string) error {
	projects, err := s.projects()
	if err != nil || slices.Contains(projects, project) {
		return err
	}
	return s.writeRegistry(append(projects, project))
}

// writeRegistry replaces the registry, of which readers see the old version or the
// new one.
func (s *store) writeRegistry(projects []string) error {
	data, err := json.Marshal(projects)
	if err != nil {
		return err
	}
	next := s.registry + ".next"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	return os.Rename(next, s.registry)
}

// projects reads the registry. The store must be in use.
func (s *store) projects() (projects []string, err error) {
	data, err := os.ReadFile(s.registry)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &projects); err != nil {
		return nil, fmt.Errorf("%s: %w", s.registry, err)
	}
	return projects, nil
}

// A document is what the three parts of the store have of one.
type document struct{ Project, Text string }

// document returns a document, and errDiffer unless the three parts agree on it.
func (s *store) document(ctx context.Context, id string) (doc document, err error) {
	err = s.use(func(db *sql.DB) error {
		if err := db.QueryRowContext(ctx, "SELECT project FROM document WHERE id = ?", id).Scan(&doc.Project); err != nil {
			return err
		}
		text, err := os.ReadFile(filepath.Join(s.chroma, id+".txt"))
		if err != nil {
			return err
		}
		indexed, err := os.ReadFile(filepath.Join(s.chroma, id+".vector"))
		if err != nil {
			return err
		}
		projects, err := s.projects()
		if err != nil {
			return err
		}
		doc.Text = string(text)
		if string(indexed) != vector(doc.Text) || !slices.Contains(projects, doc.Project) {
			return fmt.Errorf("%w: document %s", errDiffer, id)
		}
		return nil
	})
	return doc, err
}
