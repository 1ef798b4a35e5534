package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/sqlitedb"
)

type drillCommand struct {
	storeFlags

	Stamp   string  `arg:"" default:"latest" help:"The name of the snapshot, as printed by create and list. The default is the latest one."`
	Scratch *string `placeholder:"DIR" help:"Create the scratch directory in DIR instead of the directory for temporary files."`
}

// A drillResult is the result of a drill. Its fields are named like those of a
// validation report.
type drillResult struct {
	Stamp      string `json:"stamp"`
	DBOK       bool   `json:"db_ok"`
	RegistryOK *bool  `json:"registry_ok"` // null if the snapshot has none
	ChromaOK   *bool  `json:"chroma_ok"`
	Files      int64  `json:"files"`
	Bytes      int64  `json:"bytes"`
}

func (c *drillCommand) Run(s *session) error {
	if err := joinFor("drill", c.needBackupDir(), notEmpty(c.Scratch, "--scratch")); err != nil {
		return err
	}
	opts := c.options()
	s.watch(&opts)
	snapshot, _, err := s.find(opts, c.Stamp)
	if err != nil {
		return joinFor("drill", err)
	}
	if !isRestorable(snapshot) {
		return s.reportInvalid("drill", opts, snapshot.Stamp)
	}
	result, err := c.rehearse(s.ctx, opts, snapshot)
	if isInvalid(err) {
		return s.reportInvalid("drill", opts, snapshot.Stamp)
	}
	if err != nil {
		return joinFor("drill", err)
	}
	if err := s.writeResult(document(result)); err != nil {
		return fmt.Errorf("drill: %w", err)
	}
	s.say("Snapshot %s can be restored: %s, %s were restored and checked.", result.Stamp, count(result.Files, "file"), size(result.Bytes))
	return nil
}

// rehearse restores the snapshot into a scratch directory, opens the restored
// files as a service would, and removes the directory again.
func (c *drillCommand) rehearse(ctx context.Context, opts backup.Options, snapshot backup.Snapshot) (_ *drillResult, err error) {
	parent := ""
	if c.Scratch != nil {
		parent = *c.Scratch
	}
	dir, err := os.MkdirTemp(parent, "atocore-drill-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, removeScratch(dir)) }()

	in := new(storeFlags).optionsIn(dir, snapshot)
	opts.DatabasePath, opts.RegistryPath, opts.ChromaPath = in.DatabasePath, in.RegistryPath, in.ChromaPath
	restored, err := backup.RestoreRuntimeBackup(ctx, opts, snapshot.Stamp)
	if err != nil {
		return nil, err
	}
	ok := true
	result := &drillResult{Stamp: restored.Stamp, DBOK: ok, Files: restored.Files, Bytes: restored.Bytes}
	if err := checkDatabase(ctx, restored.DatabasePath); err != nil {
		return nil, fmt.Errorf("the restored database: %w", err)
	}
	if restored.RegistryPath != "" {
		result.RegistryOK = &ok
		data, err := os.ReadFile(restored.RegistryPath)
		if err != nil {
			return nil, err
		}
		if !json.Valid(data) {
			return nil, errors.New("the restored registry is not JSON")
		}
	}
	if restored.ChromaPath != "" {
		result.ChromaOK = &ok
		file := filepath.Join(restored.ChromaPath, "chroma.sqlite3")
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return result, nil
		}
		if err := checkDatabase(ctx, file); err != nil {
			return nil, fmt.Errorf("the restored Chroma database: %w", err)
		}
	}
	return result, nil
}

// removeScratch removes the scratch directory. Restored directories in it may be
// read-only.
func removeScratch(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if entry != nil && entry.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return err
	})
	return os.RemoveAll(dir)
}

// checkDatabase opens a database for reading and writing and runs SQLite's quick
// check on it.
func checkDatabase(ctx context.Context, path string) (err error) {
	db, err := sql.Open("sqlite", sqlitedb.URI(path, "rw"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var text string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&text); err != nil {
		return err
	}
	if text != "ok" {
		return errors.New(text)
	}
	return nil
}
