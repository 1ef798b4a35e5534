package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

type drillCommand struct {
	storeFlags

	Stamp   string  `arg:"" default:"latest" help:"The name of the snapshot, as printed by create and list. The default is the latest one."`
	Scratch *string `placeholder:"DIR" help:"Create the scratch directory in DIR instead of the directory for temporary files."`

	DespiteFindings bool `help:"Restore a snapshot although SQLite, or the JSON check of the registry, objects to its content, if nothing shows damage."`
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
	// Findings are those despite which the snapshot was restored. Notes say what
	// could not be checked.
	Findings []string `json:"findings,omitempty"`
	Notes    []string `json:"notes,omitempty"`
}

func (c *drillCommand) Run(s *session) error {
	if err := joinFor("drill", c.needBackupDir(), notEmpty(c.Scratch, "--scratch")); err != nil {
		return err
	}
	opts := c.options()
	opts.RecordVerdicts = true
	s.watch(&opts)
	snapshot, _, err := s.find(opts, c.Stamp)
	if err != nil {
		return joinFor("drill", err)
	}
	if !isRestorable(snapshot) {
		return s.reportInvalid("drill", opts, snapshot.Stamp)
	}
	result, err := c.rehearse(s.ctx, opts, snapshot)
	var invalid *backup.InvalidBackupError
	if errors.As(err, &invalid) && onlyFindings(invalid.Report) && (c.DespiteFindings || s.wantsDespiteFindings(err)) {
		opts.DespiteFindings = true
		if result, err = c.rehearse(s.ctx, opts, snapshot); err == nil {
			result.judgeAs(invalid.Report)
		}
	}
	if isInvalid(err) {
		return s.reportRefused("drill", err)
	}
	if err != nil {
		return joinFor("drill", err)
	}
	if err := s.writeResult(document(result)); err != nil {
		return fmt.Errorf("drill: %w", err)
	}
	s.tell("Snapshot %s can be restored: %s, %s were restored and checked.", result.Stamp, count(result.Files, "file"), size(result.Bytes))
	for _, finding := range result.Findings {
		s.tell("It was restored despite a finding: %s", finding)
	}
	for _, note := range result.Notes {
		s.tell("Not checked, or only noted: %s", note)
	}
	return nil
}

// judgeAs takes over what a validation found in the snapshot.
func (r *drillResult) judgeAs(report *backup.Report) {
	r.DBOK, r.RegistryOK, r.ChromaOK = report.DBOK, report.RegistryOK, report.ChromaOK
	for _, p := range report.Problems {
		r.Findings = append(r.Findings, oneLine(p.String()))
	}
}

// rehearse restores the snapshot into a scratch directory, opens the restored
// files as a service would, and removes the directory again. It judges as the
// validation does that is part of a restore: content to which that had no
// objection passes.
func (c *drillCommand) rehearse(ctx context.Context, opts backup.Options, snapshot backup.Snapshot) (_ *drillResult, err error) {
	parent := ""
	if c.Scratch != nil {
		parent = *c.Scratch
	}
	dir, err := newScratch(ctx, parent)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.remove()) }()

	in := new(storeFlags).optionsIn(dir.path(), snapshot)
	opts.DatabasePath, opts.RegistryPath, opts.ChromaPath = in.DatabasePath, in.RegistryPath, in.ChromaPath
	restored, err := backup.RestoreRuntimeBackup(ctx, opts, snapshot.Stamp)
	if err != nil {
		return nil, err
	}
	ok := true
	result := &drillResult{Stamp: restored.Stamp, DBOK: ok, Files: restored.Files, Bytes: restored.Bytes}
	checked, err := checkDatabase(ctx, restored.DatabasePath, sqlitedb.IntegrityCheck)
	if err == nil && !opts.DespiteFindings {
		err = objection(checked)
	}
	if err != nil {
		return nil, fmt.Errorf("the restored database: %w", err)
	}
	result.note(restored.DatabasePath, checked.Notes)
	if restored.RegistryPath != "" {
		result.RegistryOK = &ok
		if _, err := os.ReadFile(restored.RegistryPath); err != nil {
			return nil, err
		}
	}
	if restored.ChromaPath != "" {
		result.ChromaOK = &ok
		file := filepath.Join(restored.ChromaPath, "chroma.sqlite3")
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return result, nil
		}
		unjudged := hasJournal(file)
		checked, err := checkDatabase(ctx, file, sqlitedb.QuickCheck)
		switch {
		case err != nil || opts.DespiteFindings:
		case unjudged: // a validation does not open it then
			for _, f := range checked.Findings {
				checked.Notes = append(checked.Notes, f.Text)
			}
		default:
			err = objection(checked)
		}
		if err != nil {
			return nil, fmt.Errorf("the restored Chroma database: %w", err)
		}
		result.note(file, checked.Notes)
	}
	return result, nil
}

// note adds notes about a file.
func (r *drillResult) note(file string, notes []string) {
	for _, text := range notes {
		r.Notes = append(r.Notes, filepath.Base(file)+": "+oneLine(text))
	}
}

// objection returns the first finding as an error.
func objection(checked sqlitedb.Checked) error {
	if len(checked.Findings) == 0 {
		return nil
	}
	return errors.New(oneLine(checked.Findings[0].Text))
}

// hasJournal reports whether a database needs a WAL or a journal to be whole.
func hasJournal(path string) bool {
	for _, suffix := range []string{"-wal", "-journal"} {
		if info, err := os.Stat(path + suffix); err == nil && info.Size() > 0 {
			return true
		}
	}
	return false
}

// checkDatabase opens a database for writing, as a service does, and closes it
// again. Then it checks the file as a validation does.
func checkDatabase(ctx context.Context, path string, kind sqlitedb.Kind) (sqlitedb.Checked, error) {
	if err := openForWriting(ctx, path); err != nil {
		return sqlitedb.Checked{}, err
	}
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if err != nil {
		return sqlitedb.Checked{}, err
	}
	defer dir.Close()
	return sqlitedb.Check(ctx, dir, filepath.Base(path), sqlitedb.CheckOptions{Kind: kind, Limit: 1})
}

// openForWriting opens a database, which recovers what a crashed writer left,
// and begins to write to it.
func openForWriting(ctx context.Context, path string) (err error) {
	db, err := sql.Open("sqlite", sqlitedb.URI(path, "rw"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, statement := range []string{"BEGIN IMMEDIATE", "SELECT count(*) FROM sqlite_schema", "ROLLBACK"} {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}
