package sqlitedb

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"

	"github.com/atocore/backup/internal/fsat"
)

// The parts of a database file's header that this package looks at
// (sqlite.org/fileformat2.html, "The Database Header").
const (
	headerSize       = 100
	headerMagic      = "SQLite format 3\x00"
	headerWriteForm  = 18 // file format write version: 1 for a rollback journal, 2 for a WAL
	headerReadForm   = 19 // file format read version, likewise
	headerPageSize   = 16
	headerReserved   = 20 // bytes at the end of each page that SQLite does not use
	headerChangeMark = 24 // file change counter
	headerPageCount  = 28
	headerValidFor   = 92 // the change counter for which the page count is valid; the writer's version follows

	headerSchemaCookie = 40
)

type header [headerSize]byte

// readHeader reads the header of f. Only failures to read the file are
// *fs.PathErrors: a file without a header of SQLite's is another error.
func readHeader(f *fsat.File) (h header, err error) {
	_, err = f.ReadAt(h[:], 0)
	if errors.Is(err, io.EOF) {
		return h, errors.New("shorter than a database header")
	}
	if err == nil && string(h[:len(headerMagic)]) != headerMagic {
		return h, errors.New("no SQLite database header")
	}
	return h, err
}

func (h *header) pageSize() int64 {
	if size := int64(binary.BigEndian.Uint16(h[headerPageSize:])); size != 1 {
		return size
	}
	return 65536
}

// size returns the size of the file according to the header, or 0 if the
// header has no valid page count.
func (h *header) size() int64 {
	if string(h[headerChangeMark:headerChangeMark+4]) != string(h[headerValidFor:headerValidFor+4]) {
		return 0
	}
	return int64(binary.BigEndian.Uint32(h[headerPageCount:])) * h.pageSize()
}

// hasChecksums reports whether the pages carry checksums; see pageChecksum.
func (h *header) hasChecksums() bool { return h[headerReserved] == checksumSize }

// isRollbackForm reports whether the header marks a rollback-journal database.
func (h *header) isRollbackForm() bool { return h[headerWriteForm] == 1 && h[headerReadForm] == 1 }

// markRollbackForm changes the beginning of a database file as Seal does. The two
// bytes of the form are the only difference between a WAL database without a WAL
// and a rollback-journal one. If the first page carries a checksum and is in head as a
// whole, its checksum is changed as well; one that is wrong stays, because a page
// that is damaged must not look sound afterwards.
func markRollbackForm(head []byte) error {
	if len(head) < headerSize {
		return errors.New("shorter than a database header")
	}
	h := header(head[:headerSize])
	if h.isRollbackForm() {
		return nil
	}
	var first []byte
	if h.hasChecksums() && int64(len(head)) >= h.pageSize() {
		if first = head[:h.pageSize()]; !hasRightChecksum(first) {
			first = nil
		}
	}
	head[headerWriteForm], head[headerReadForm] = 1, 1
	if first != nil {
		sum := pageChecksum(first)
		copy(first[len(first)-checksumSize:], sum[:])
	}
	return nil
}

// IsRollbackForm reports whether the database dir/name is marked as a
// rollback-journal database, so that SQLite reads it without creating a WAL. It
// also returns true for a file that has no header at all, which Check reports.
// The error is an *fs.PathError.
func IsRollbackForm(dir *fsat.Dir, name string) (bool, error) {
	f, err := dir.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h, err := readHeader(f)
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return false, err
	}
	return err != nil || h.isRollbackForm(), nil
}
