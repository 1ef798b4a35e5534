package sqlitedb

import (
	"context"
	"errors"

	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
)

// SameContent reports whether two database files without a WAL have the same
// content: the same bytes, but for those fields of the header that SQLite or this
// package changes in a copy (sqlite.org/fileformat2.html, "The Database Header").
// These are the form of the file; the change counter, for which the page count is
// valid, and the version of SQLite that wrote it, all of which folding a WAL into
// the copy sets; and the schema cookie, which the online backup sets
// (sqlite3_backup_step in backup.c). A change of the schema changes other pages,
// too. It reads both files. VACUUM INTO writes other pages, and so the content of
// such a copy is never the same.
func SameContent(ctx context.Context, a, b *fsat.File) (bool, error) {
	var sums [2]filehash.Sum
	for i, f := range []*fsat.File{a, b} {
		info, err := f.Stat()
		if err != nil {
			return false, err
		}
		if sums[i], err = filehash.ReadPatchedAt(ctx, f, info.Size, blankCounters); err != nil {
			return false, err
		}
	}
	return sums[0] == sums[1], nil
}

func blankCounters(head []byte) error {
	if len(head) < headerSize {
		return errors.New("shorter than a database header")
	}
	for _, field := range []struct{ at, size int }{
		{headerWriteForm, 2}, {headerChangeMark, 4}, {headerSchemaCookie, 4}, {headerValidFor, 8},
	} {
		clear(head[field.at : field.at+field.size])
	}
	return nil
}
