// Package resticrepo has an empty restic repository for tests. restic spends half a
// second of CPU time on the password in each of its runs, and 3 seconds when it
// makes a repository; this one was made by restic 0.14, and then its key was
// replaced by one for the same password that costs nothing (scrypt with N = 2). It
// protects nothing.
package resticrepo

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Password opens the repository.
const Password = "secret"

//go:embed repository
var repository embed.FS

// Files returns the content of the files of the repository by their names, which
// have slashes.
func Files() map[string][]byte {
	files := make(map[string][]byte)
	root, err := fs.Sub(repository, "repository")
	if err == nil {
		err = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files[name], err = fs.ReadFile(root, name)
			return err
		})
	}
	if err != nil {
		panic(err) // they are part of the program
	}
	return files
}

// Make makes the repository in the directory dir, which it creates.
func Make(dir string) error {
	dirs := []string{"data", "index", "keys", "locks", "snapshots"}
	for i := range 256 {
		dirs = append(dirs, fmt.Sprintf("data/%02x", i))
	}
	for _, name := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, filepath.FromSlash(name)), 0o700); err != nil {
			return err
		}
	}
	for name, content := range Files() {
		if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(name)), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
