package main

import (
	"errors"
	"fmt"

	"github.com/atocore/backup"
)

// storeFlags locate the machine store and its snapshots. Every subcommand takes
// all of them, so that one set of environment variables works for all.
type storeFlags struct {
	DB        string `name:"db" placeholder:"FILE" env:"ATOCORE_DB_PATH" help:"The SQLite database."`
	Registry  string `placeholder:"FILE" env:"ATOCORE_PROJECT_REGISTRY_PATH" help:"The project registry."`
	Chroma    string `placeholder:"DIR" env:"ATOCORE_CHROMA_PATH" help:"The Chroma directory."`
	BackupDir string `placeholder:"DIR" env:"ATOCORE_BACKUP_DIR" help:"The backup directory; the snapshots are in DIR/snapshots."`
	Host      string `placeholder:"NAME" env:"ATOCORE_HOST" help:"The name of the store's machine in its snapshots; by default the system's. Set it where that changes, as in containers."`
}

func (f *storeFlags) options() backup.Options {
	return backup.Options{
		DatabasePath: f.DB,
		RegistryPath: f.Registry,
		ChromaPath:   f.Chroma,
		BackupDir:    f.BackupDir,
		Host:         f.Host,
	}
}

func (f *storeFlags) needBackupDir() error {
	return need(f.BackupDir, "backup directory", "--backup-dir", "ATOCORE_BACKUP_DIR")
}

func (f *storeFlags) needDB() error {
	return need(f.DB, "database", "--db", "ATOCORE_DB_PATH")
}

func (f *storeFlags) needRegistry() error {
	return need(f.Registry, "project registry", "--registry", "ATOCORE_PROJECT_REGISTRY_PATH")
}

func (f *storeFlags) needChroma() error {
	return need(f.Chroma, "Chroma directory", "--chroma", "ATOCORE_CHROMA_PATH")
}

// need returns an error if value is empty. It names the flag and the variable;
// the library's own error would name a field of Options.
func need(value, what, flag, variable string) error {
	if value != "" {
		return nil
	}
	return fmt.Errorf("no %s: give %s or set %s", what, flag, variable)
}

// notEmpty returns an error if a flag is given with an empty value: a script in
// which a variable is unset must not run as if the flag were absent.
func notEmpty(value *string, flag string) error {
	if value != nil && *value == "" {
		return fmt.Errorf("%s is empty", flag)
	}
	return nil
}

// joinFor joins the errors and prefixes them with the name of the subcommand. It
// returns nil if all of them are nil.
func joinFor(command string, faults ...error) error {
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}
