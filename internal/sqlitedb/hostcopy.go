package sqlitedb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// A host whose driver this package cannot use writes the copy by itself. What it
// has written is taken for a copy only if it can be one: the function may have
// done nothing, have copied another database than it meant, have encrypted the
// copy, or not be done with it.

// ifEncrypted is the advice for a copy that is not a database.
const ifEncrypted = "; if it is encrypted, it could not be validated: let the driver write the copy without a key and without an encrypting VFS"

// copyByHost has Write copy the database to dir/WorkName.
func (c *Capture) copyByHost(ctx context.Context, dir *fsat.Dir, made *Copy) error {
	if err := c.Write(ctx, filepath.Join(dir.Path(), WorkName)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // Write may have stopped for that
	}
	if err := acceptCopy(dir); err != nil {
		return fmt.Errorf("%w: the copy of Capture: %w", errdefs.ErrSourceInvalid, err)
	}
	made.byHost = true
	// If the pages carry checksums, those that the driver took from a WAL, or
	// wrote through a VFS that knows of none, are wrong. It is not known which.
	made.written.all = true
	return nil
}

// acceptCopy checks what the host has written to dir, and removes what is not
// needed of it. A WAL stays for Seal. Nothing is opened before it is known to be a
// file of its own: the live database, under another name, would lose its locks.
func acceptCopy(dir *fsat.Dir) error {
	entries, err := dir.ReadDir()
	if err != nil {
		return err
	}
	found := make(map[string]fsat.Info)
	for _, entry := range entries {
		if fsat.IsHiddenName(entry.Name) {
			continue // it was removed, and goes when it is closed
		}
		suffix, ok := strings.CutPrefix(entry.Name, WorkName)
		if !ok || !slices.Contains(Suffixes, suffix) {
			return fmt.Errorf("there is also %s; the copy must be one file", entry.Name)
		}
		info, err := dir.Lstat(entry.Name)
		switch {
		case err != nil:
			return err
		case !info.Mode.IsRegular():
			return fmt.Errorf("%s is not a regular file", entry.Name)
		case info.Links > 1:
			return fmt.Errorf("%s is a hard link, and must be a file of its own", entry.Name)
		case openedHere(filepath.Join(dir.Path(), entry.Name), info.ID()):
			return fmt.Errorf("%s is still open in this process; close the copy before Capture returns", entry.Name)
		}
		found[suffix] = info
	}
	copied, ok := found[""]
	switch {
	case !ok:
		return errors.New("nothing was written")
	case copied.Size == 0:
		return errors.New("it is empty")
	}
	if err := acceptFile(dir); err != nil {
		return err
	}
	for suffix, info := range found {
		if suffix != "" && info.Size > 0 {
			err = acceptSidecar(dir, suffix)
		}
		if err == nil && suffix != "" && (info.Size == 0 || suffix != "-wal") {
			err = dir.Remove(WorkName+suffix, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// acceptFile checks the header of the copy, and gives the file its mode.
func acceptFile(dir *fsat.Dir) error {
	f, err := dir.OpenRW(WorkName)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := readHeader(f); err != nil {
		if pathErr := new(fs.PathError); errors.As(err, &pathErr) {
			return err
		}
		return errors.New("it does not begin as an SQLite database does" + ifEncrypted)
	}
	return f.Chmod(0o600)
}

// acceptSidecar checks a file beside the copy that is not empty.
func acceptSidecar(dir *fsat.Dir, suffix string) error {
	f, err := dir.Open(WorkName + suffix)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, walHeaderSize)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return err
	}
	switch _, _, isWAL := parseWALHeader(head); {
	case suffix == "-journal" && n > 0 && head[0] != 0:
		// One that begins with a zero is left by journal_mode=persist after a
		// commit (zeroJournalHdr in pager.c).
		return errors.New("there is a journal beside it, so its last transaction was not committed")
	case suffix == "-wal" && !isWAL:
		return errors.New("the -wal beside it is not a WAL")
	}
	return nil // a -shm has nothing that is not in the WAL
}

// checkContent reads the schema of a copy that the host has written. A copy whose
// header alone is plain, as encrypting drivers can write it, cannot be read. One
// without any table is that of another database than the one that was meant: a
// pool may have opened a new one in memory.
func checkContent(ctx context.Context, dir *fsat.Dir) error {
	path, err := pathFor(dir, WorkName)
	if err != nil {
		return err
	}
	db, err := openConn(path, "ro", "immutable=1")
	if err != nil {
		return err
	}
	defer db.Close()
	tables, err := db.text(ctx, "SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return unreadableCopy(err)
	}
	if tables == "0" {
		return fmt.Errorf("%w: the copy of Capture has no table", errdefs.ErrSourceInvalid)
	}
	return nil
}

// unreadableCopy wraps SQLITE_NOTADB and SQLITE_CORRUPT, of a copy that the host
// has written, in ErrSourceInvalid.
func unreadableCopy(err error) error {
	if code := Code(err); code != codeNotADB && code != codeCorrupt {
		return err
	}
	return fmt.Errorf("%w: the copy of Capture cannot be read: %w%s", errdefs.ErrSourceInvalid, err, ifEncrypted)
}
