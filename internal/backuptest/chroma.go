package backuptest

import (
	"embed"
	"io/fs"
	"os"
)

//go:embed all:chroma-small
var chroma embed.FS

// WriteChroma creates dir, which must not exist, as a copy of a small Chroma
// persistence directory that a real server wrote.
func WriteChroma(dir string) error {
	tree, err := fs.Sub(chroma, "chroma-small")
	if err != nil {
		return err
	}
	return os.CopyFS(dir, tree)
}
