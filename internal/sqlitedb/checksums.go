package sqlitedb

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/bits"

	"github.com/atocore/backup/internal/fsat"
)

// A database whose pages have 8 reserved bytes carries a checksum in these bytes
// of each page: that is how SQLite's VFS cksumvfs knows one, and other programs
// that have that VFS, some of which use it unasked
// (sqlite.org/cksumvfs.html; cksmCompute in cksumvfs.c). They cannot read a page
// with a wrong checksum. The SQLite of this package knows nothing of them: it
// writes a page with whatever is in these bytes, and what it finds in a WAL need
// not have any. So pages that it has written are given their checksums here.
//
// A page that this package copies as it is keeps what it has. If that is wrong,
// the page is damaged, and must not look sound in the copy.

// checksumSize is the number of reserved bytes that means checksums.
const checksumSize = 8

// hasChecksums reports whether the pages of the database carry checksums.
func (c *conn) hasChecksums(ctx context.Context) (bool, error) {
	reserved, err := c.text(ctx, "SELECT hex(substr(data, 21, 1)) FROM sqlite_dbpage WHERE pgno = 1")
	return reserved == "08", err
}

// pageChecksum returns the checksum that a page has to end with.
func pageChecksum(page []byte) (sum [checksumSize]byte) {
	var a, b uint32
	for p := page[:len(page)-checksumSize]; len(p) >= 8; p = p[8:] {
		a += binary.LittleEndian.Uint32(p) + b
		b += binary.LittleEndian.Uint32(p[4:]) + a
	}
	binary.LittleEndian.PutUint32(sum[:], a)
	binary.LittleEndian.PutUint32(sum[4:], b)
	return sum
}

func hasRightChecksum(page []byte) bool {
	sum := pageChecksum(page)
	return bytes.HasSuffix(page, sum[:])
}

// A pageSet is a set of page numbers, one bit for each up to the greatest.
type pageSet struct {
	all  bool
	bits []uint64
}

func (s *pageSet) add(page uint32) {
	word := int(page / 64)
	if word >= len(s.bits) {
		s.bits = append(s.bits, make([]uint64, word+1-len(s.bits))...)
	}
	s.bits[word] |= 1 << (page % 64)
}

// each calls do with the pages of the set up to last, in their order.
func (s *pageSet) each(last uint32, do func(page uint32) error) error {
	if s.all {
		for page := uint32(1); page <= last; page++ {
			if err := do(page); err != nil {
				return err
			}
		}
		return nil
	}
	for i, word := range s.bits {
		for ; word != 0; word &= word - 1 {
			page := uint32(i*64 + bits.TrailingZeros64(word))
			if page > last {
				return nil
			}
			if err := do(page); err != nil {
				return err
			}
		}
	}
	return nil
}

// sign gives the pages of a set, of a database in a file, their checksums. It
// does not change a page that has the right one.
func sign(ctx context.Context, f *fsat.File, pageSize, size int64, pages *pageSet) error {
	page := make([]byte, pageSize)
	return pages.each(uint32(size/pageSize), func(n uint32) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := int64(n-1) * pageSize
		if _, err := f.ReadAt(page, off); err != nil {
			return err
		}
		if hasRightChecksum(page) {
			return nil
		}
		sum := pageChecksum(page)
		_, err := f.WriteAt(sum[:], off+pageSize-checksumSize)
		return err
	})
}

// The parts of a WAL (sqlite.org/fileformat2.html, "WAL File Format").
const (
	walHeaderSize   = 32
	walFrameHeader  = 24
	walMagic        = 0x377f0682 // with the last bit set, checksums are of big-endian words
	walPageSize     = 8
	walSalts        = 16
	walChecksum     = 24
	frameCommitSize = 4 // the size of the database after a commit; 0 in other frames
	frameSalts      = 8
	frameChecksum   = 16
)

// addWAL adds the pages that a reader of the WAL can see: those of its frames up
// to the last commit that it holds completely.
func (s *pageSet) addWAL(ctx context.Context, wal io.ReaderAt) error {
	var header [walHeaderSize]byte
	if _, err := wal.ReadAt(header[:], 0); err == io.EOF {
		return nil
	} else if err != nil {
		return err
	}
	sum, pageSize, ok := parseWALHeader(header[:])
	if !ok {
		return nil
	}
	var written []uint32 // since the last commit
	frame := make([]byte, walFrameHeader+pageSize)
	for off := int64(walHeaderSize); ; off += int64(len(frame)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := wal.ReadAt(frame, off); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if !bytes.Equal(frame[frameSalts:frameSalts+8], header[walSalts:walSalts+8]) {
			return nil
		}
		sum.add(frame[:frameSalts])
		sum.add(frame[walFrameHeader:])
		if !sum.is(frame[frameChecksum:]) {
			return nil
		}
		written = append(written, binary.BigEndian.Uint32(frame))
		if binary.BigEndian.Uint32(frame[frameCommitSize:]) != 0 {
			for _, page := range written {
				s.add(page)
			}
			written = written[:0]
		}
	}
}

// parseWALHeader returns the checksum of a WAL's header and the size of its pages.
// ok is false if it is not the header of a WAL; then SQLite ignores the file.
func parseWALHeader(header []byte) (sum walSum, pageSize int64, ok bool) {
	magic, pageSize := binary.BigEndian.Uint32(header), int64(binary.BigEndian.Uint32(header[walPageSize:]))
	sum.order = binary.LittleEndian
	if magic&1 != 0 {
		sum.order = binary.BigEndian
	}
	sum.add(header[:walChecksum])
	return sum, pageSize, magic&^1 == walMagic && pageSize <= 65536 && sum.is(header[walChecksum:])
}

// A walSum is the checksum of a WAL up to some place in it.
type walSum struct {
	order binary.ByteOrder
	a, b  uint32
}

func (s *walSum) add(data []byte) {
	for ; len(data) >= 8; data = data[8:] {
		s.a += s.order.Uint32(data) + s.b
		s.b += s.order.Uint32(data[4:]) + s.a
	}
}

// is reports whether sum begins with the checksum.
func (s *walSum) is(sum []byte) bool {
	return binary.BigEndian.Uint32(sum) == s.a && binary.BigEndian.Uint32(sum[4:]) == s.b
}
