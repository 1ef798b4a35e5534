package drill

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

// restore restores the snapshot to the places in opts and checks what was
// restored. It judges as the validation does that is part of a restore: content to
// which that had no objection passes.
func restore(ctx context.Context, opts backup.Options, stamp string) (*Result, error) {
	restored, err := backup.RestoreRuntimeBackup(ctx, opts, stamp)
	if err != nil {
		return nil, err
	}
	ok := true
	result := &Result{Stamp: restored.Stamp, DBOK: ok, Files: restored.Files, Bytes: restored.Bytes}
	check := sqlitedb.CheckOptions{Kind: sqlitedb.IntegrityCheck, Limit: 1, Connect: opts.Connect}
	checked, err := checkDatabase(ctx, restored.DatabasePath, check)
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
		check.Kind = sqlitedb.QuickCheck
		file := filepath.Join(restored.ChromaPath, "chroma.sqlite3")
		if err := result.checkChroma(ctx, file, check, opts.DespiteFindings); err != nil {
			return nil, fmt.Errorf("the restored Chroma database: %w", err)
		}
	}
	return result, nil
}

// checkChroma checks the restored Chroma database, if there is one.
func (r *Result) checkChroma(ctx context.Context, file string, check sqlitedb.CheckOptions, despiteFindings bool) error {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unjudged := hasJournal(file)
	checked, err := checkDatabase(ctx, file, check)
	switch {
	case err != nil || despiteFindings:
	case unjudged: // a validation does not open it then
		for _, f := range checked.Findings {
			checked.Notes = append(checked.Notes, f.Text)
		}
	default:
		err = objection(checked)
	}
	r.note(file, checked.Notes)
	return err
}

// note adds notes about a file.
func (r *Result) note(file string, notes []string) {
	for _, text := range notes {
		r.Notes = append(r.Notes, filepath.Base(file)+": "+text)
	}
}

// objection returns the first finding as an error.
func objection(checked sqlitedb.Checked) error {
	if len(checked.Findings) == 0 {
		return nil
	}
	return errors.New(checked.Findings[0].Text)
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
func checkDatabase(ctx context.Context, path string, check sqlitedb.CheckOptions) (sqlitedb.Checked, error) {
	if err := openForWriting(ctx, path); err != nil {
		return sqlitedb.Checked{}, err
	}
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if err != nil {
		return sqlitedb.Checked{}, err
	}
	defer dir.Close()
	return sqlitedb.Check(ctx, dir, filepath.Base(path), check)
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
