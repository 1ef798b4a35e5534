package sqlitedb

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// sectors is a file with a part that cannot be read.
type sectors struct {
	data           []byte
	badFrom, badTo int64
	reads          int
}

var errBadSector = errors.New("bad sector")

func (s *sectors) ReadAt(p []byte, off int64) (int, error) {
	s.reads++
	n := 0
	if off < int64(len(s.data)) {
		n = copy(p, s.data[off:])
	}
	if off < s.badTo && off+int64(n) > s.badFrom {
		return int(max(s.badFrom-off, 0)), errBadSector
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// However a file is read, the bytes are its own, and its end and its errors
// appear where they are in the file and nowhere else.
func TestReadAheadReturnsTheFilesBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 1<<20+1234)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	for _, bad := range []int64{-1, 0, 65536, 100_000, 1 << 19, int64(len(data)) - 1} {
		for page := int64(512); page <= 65536; page *= 2 {
			file := &sectors{data: data}
			if bad >= 0 {
				file.badFrom, file.badTo = bad, bad+1
			}
			ahead := &readAhead{ctx: t.Context(), file: file}
			buf, want := make([]byte, page), make([]byte, page)
			at := []int64{0, 0, 0}
			for range 5000 {
				i := random.IntN(len(at))
				switch random.IntN(20) {
				case 0:
					at[i] = random.Int64N(int64(len(data))/page+3) * page
				case 1:
					at[i] = max(at[i]-page, 0)
				default:
					at[i] += int64(i-1) * page // down, again, up
				}
				off := max(at[i], 0)
				n := 1 + random.Int64N(page)
				if random.IntN(4) > 0 {
					n = page
				} else {
					off += random.Int64N(page)
				}
				_, err := ahead.Seek(off, io.SeekStart)
				require.NoError(t, err)
				got, err := io.ReadFull(ahead, buf[:n])
				wanted, wantErr := file.ReadAt(want[:n], off)
				if wantErr == io.EOF && wanted > 0 {
					wantErr = io.ErrUnexpectedEOF
				}
				require.Equal(t, wantErr, err, "%d bytes at %d", n, off)
				require.Equal(t, wanted, got, "%d bytes at %d", n, off)
				require.True(t, bytes.Equal(want[:wanted], buf[:got]), "%d bytes at %d", n, off)
			}
		}
	}
}

// Runs of pages upwards and downwards are read block by block, even if single
// pages elsewhere are read in between.
func TestReadAheadSparesReads(t *testing.T) {
	const page, pages = 4096, 2048
	for _, step := range []int64{1, -1} {
		file := &sectors{data: make([]byte, pages*page)}
		ahead := &readAhead{ctx: t.Context(), file: file}
		random := rand.New(rand.NewPCG(3, 4))
		buf := make([]byte, page)
		read := func(n int64) {
			_, err := ahead.Seek(n*page, io.SeekStart)
			require.NoError(t, err)
			_, err = io.ReadFull(ahead, buf)
			require.NoError(t, err)
		}
		for i := range int64(pages) {
			if step > 0 {
				read(i)
			} else {
				read(pages - 1 - i)
			}
			if i%16 == 0 {
				read(random.Int64N(pages))
			}
		}
		require.Less(t, file.reads, pages/16+pages/16+100)
	}
}
