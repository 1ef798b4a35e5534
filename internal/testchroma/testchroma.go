// Package testchroma holds a small Chroma persistence directory that a real
// server wrote, for tests and examples.
package testchroma

import (
	"embed"
	"io/fs"
	"os"
)

//go:embed all:chroma-small
var data embed.FS

// WriteTo makes dir, which must not exist, a copy of the directory.
func WriteTo(dir string) error {
	tree, err := fs.Sub(data, "chroma-small")
	if err != nil {
		return err
	}
	return os.CopyFS(dir, tree)
}
