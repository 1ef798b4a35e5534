//go:build cgo

// Command host is a host that uses mattn/go-sqlite3 and takes two snapshots.
package main

import (
	"context"
	"database/sql"
	"log"
	"log/slog"
	"os"

	_ "github.com/mattn/go-sqlite3"

	"github.com/atocore/backup"
)

// The arguments are "closed", "open" or "given", for what is done with the handle
// on the database, the path of that, and the backup directory.
func main() {
	opts := backup.Options{
		DatabasePath: os.Args[2], BackupDir: os.Args[3],
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	db, err := sql.Open("sqlite3", opts.DatabasePath)
	if err == nil {
		_, err = db.Exec("SELECT count(*) FROM account")
	}
	switch os.Args[1] {
	case "closed":
		db.Close()
	case "given":
		opts.DB = db
	}
	for range 2 {
		if err == nil {
			_, err = backup.CreateRuntimeBackup(context.Background(), opts)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}
