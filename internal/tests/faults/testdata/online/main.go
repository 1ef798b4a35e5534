// Command online is create by SQLite's online backup API, which the command
// itself does not offer: online DATABASE REGISTRY CHROMA BACKUPDIR.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/atocore/backup"
)

func main() {
	meta, err := backup.CreateRuntimeBackup(context.Background(), backup.Options{
		DatabasePath:  os.Args[1],
		RegistryPath:  os.Args[2],
		ChromaPath:    os.Args[3],
		BackupDir:     os.Args[4],
		IncludeChroma: true,
		OnlineBackup:  true,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "atocore-backup:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(2)
	}
	if err := json.NewEncoder(os.Stdout).Encode(meta); err != nil {
		fmt.Fprintf(os.Stderr, "atocore-backup: create: snapshot %s is complete: print the result: %v\n", meta.Stamp, err)
		os.Exit(2)
	}
}
