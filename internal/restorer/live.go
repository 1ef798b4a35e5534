package restorer

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

// IsLive reports whether a live store still has everything that a snapshot of
// it holds. contents are the hashes of the snapshot's files, from the places of
// its parts in it, and database is the live database, locked. It reads the whole
// live store.
func IsLive(ctx context.Context, contents []format.Entry, from, live Places, database *sqlitedb.Source) (bool, error) {
	var chroma map[string]filehash.Sum
	var err error
	if from.Chroma != "" {
		if chroma, err = sumsOfTree(ctx, live.Chroma); err != nil {
			return false, err
		}
	}
	for _, entry := range contents {
		var sum filehash.Sum
		below, inChroma := strings.CutPrefix(entry.Path, from.Chroma+"/")
		switch {
		case entry.Path == from.Database:
			sum, err = database.Sum(ctx)
		case from.Registry != "" && entry.Path == from.Registry:
			sum, err = sumOfFile(ctx, live.Registry)
		case from.Chroma != "" && inChroma:
			sum = chroma[below]
		default: // the metadata of the snapshot
			continue
		}
		if err != nil || sum != entry.Sum {
			return false, err
		}
	}
	return true, nil
}

// CheckAttributes returns an *fs.PathError if the database at path, a file beside
// it or their directory is immutable or append-only.
func CheckAttributes(ctx context.Context, path string) error {
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if fsat.IsMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, suffix := range sqlitedb.Suffixes {
		if err := dir.CheckAttributes(ctx, filepath.Base(path)+suffix); err != nil {
			return err
		}
	}
	return nil
}

func sumOfFile(ctx context.Context, path string) (sum filehash.Sum, err error) {
	f, err := fsat.OpenFile(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	return filehash.File(ctx, f, filehash.Options{})
}

// sumsOfTree returns the hashes of the files below the directory at path, which
// may be empty: then there are none.
func sumsOfTree(ctx context.Context, path string) (map[string]filehash.Sum, error) {
	sums := make(map[string]filehash.Sum)
	if path == "" || !fsat.Exists(path) {
		return sums, nil
	}
	dir, err := fsat.OpenDir(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	err = filetree.Scan(ctx, dir, filetree.ScanOptions{Hash: true, Skip: IsNoPartOfChroma}, func(f *filetree.File) error {
		if !f.IsDir() && !f.Irregular {
			sums[f.Path] = f.Sum
		}
		return nil
	})
	return sums, err
}
