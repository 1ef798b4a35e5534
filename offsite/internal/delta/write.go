package delta

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Written is what a Write or WriteDelta did.
type Written struct {
	// Literal bytes of the content are in the delta, Copied ones are not.
	Literal, Copied int64
	// Size is the length of the delta in bytes.
	Size int64
	// Runs is the number of its commands, without the one that ends it.
	Runs int
	// SHA256 is the hash of the content. WriteDelta, which doesn't read all of it,
	// leaves it zero.
	SHA256 [sha256.Size]byte
}

// Write writes the delta that makes of old the content of new, which has newSize
// bytes, to w. It reads both once from beginning to end and compares them at
// equal offsets: content that moved is written again. The result may be used
// only if the error is nil.
//
// Besides the errors of ctx, new and w there are those of WriteTo for old,
// io.ErrUnexpectedEOF if new is shorter than newSize, and an error if it is
// longer. Whether the version that the delta makes has too many pieces is found
// by Apply.
func Write(ctx context.Context, w io.Writer, old *Version, new io.Reader, newSize int64) (Written, error) {
	e := newEncoder(w)
	hash := sha256.New()
	former := old.reader()
	unit := unitOf(max(newSize, old.size))
	newBuf, oldBuf := make([]byte, chunkSize), make([]byte, chunkSize)
	for at := int64(0); at < newSize; at += chunkSize {
		if err := ctx.Err(); err != nil {
			return Written{}, err
		}
		chunk := newBuf[:min(chunkSize, newSize-at)]
		if _, err := io.ReadFull(new, chunk); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return Written{}, err
		}
		hash.Write(chunk)
		n, err := former.read(oldBuf[:len(chunk)])
		if err != nil {
			return Written{}, fmt.Errorf("reading the former version: %w", err)
		}
		if err := e.compare(oldBuf[:n], chunk, at, unit); err != nil {
			return Written{}, err
		}
	}
	if n, err := io.ReadFull(new, newBuf[:1]); n > 0 {
		return Written{}, fmt.Errorf("the file has more than %d bytes", newSize)
	} else if !errors.Is(err, io.EOF) {
		return Written{}, err
	}
	if err := e.end(); err != nil {
		return Written{}, err
	}
	hash.Sum(e.written.SHA256[:0])
	return e.written, nil
}

// unitOf returns the size of the pieces that are compared in a block that
// changed: 512 bytes or a larger power of two, up to a whole block, such that no
// version of a file of up to 16 GiB can have more than MaxRuns pieces. Often only
// a few bytes of a block changed, such as a page's header, or the links of a
// vector.
func unitOf(size int64) int {
	unit := 512
	for unit < blockSize && size/int64(unit) > MaxRuns {
		unit *= 2
	}
	return unit
}

// WriteDelta writes one delta to w that makes of the base what all deltas of v
// together make of it. It reads the literal data of the deltas, but not the base.
// The errors are those of WriteTo.
func (v *Version) WriteDelta(w io.Writer) (Written, error) {
	e := newEncoder(w)
	r := v.reader()
	buf := make([]byte, chunkSize)
	for i := range v.runs.n {
		run := v.runs.at(i)
		length := v.end(i) - run.at
		if run.source() == 0 {
			if err := e.copy(run.offset(), length); err != nil {
				return Written{}, err
			}
			continue
		}
		for done := int64(0); done < length; {
			data := buf[:min(chunkSize, length-done)]
			if err := r.fill(data, run.source(), run.offset()+done); err != nil {
				return Written{}, err
			}
			if err := e.literal(data); err != nil {
				return Written{}, err
			}
			done += int64(len(data))
		}
	}
	if err := e.end(); err != nil {
		return Written{}, err
	}
	return e.written, nil
}

// An encoder writes commands. It joins what can be one command, so it keeps the
// last one back: a copy or a literal, never both.
type encoder struct {
	w       *bufio.Writer
	from    int64 // of the copy
	length  int64
	data    []byte // of the literal, up to a chunk
	head    [headSize]byte
	written Written
}

func newEncoder(w io.Writer) *encoder {
	e := &encoder{w: bufio.NewWriterSize(w, chunkSize), data: make([]byte, 0, chunkSize)}
	_ = e.write(binary.BigEndian.AppendUint32(nil, magic)) // it is in the buffer
	return e
}

// compare appends the new content of a chunk at offset at, of which the former
// version may have less.
func (e *encoder) compare(old, new []byte, at int64, unit int) error {
	size := blockSize
	for i := 0; i < len(new); {
		n := min(size, len(new)-i)
		if bound := len(old) - i; bound > 0 {
			n = min(n, bound)
		} else {
			return e.literal(new[i:])
		}
		var err error
		switch {
		case bytes.Equal(old[i:i+n], new[i:i+n]):
			err = e.copy(at+int64(i), int64(n))
		case size > unit && n > unit:
			size = unit
			continue
		default:
			err = e.literal(new[i : i+n])
		}
		if err != nil {
			return err
		}
		if i += n; i%blockSize == 0 {
			size = blockSize
		}
	}
	return nil
}

// copy appends a piece of the former version.
func (e *encoder) copy(offset, length int64) error {
	if e.length > 0 && e.from+e.length == offset {
		e.length += length
		return nil
	}
	if err := e.flush(); err != nil {
		return err
	}
	e.from, e.length = offset, length
	return nil
}

// literal appends data.
func (e *encoder) literal(data []byte) error {
	for len(data) > 0 {
		if e.length > 0 || len(e.data) == cap(e.data) {
			if err := e.flush(); err != nil {
				return err
			}
		}
		n := min(len(data), cap(e.data)-len(e.data))
		e.data = append(e.data, data[:n]...)
		data = data[n:]
	}
	return nil
}

// flush writes the command that was kept back.
func (e *encoder) flush() error {
	head := e.head[:0]
	switch {
	case e.length > 0:
		offsetWidth, lengthWidth := widthOf(uint64(e.from)), widthOf(uint64(e.length))
		head = append(head, opCopyN1N1+4*offsetWidth+lengthWidth)
		head = appendNumber(head, uint64(e.from), offsetWidth)
		if err := e.write(appendNumber(head, uint64(e.length), lengthWidth)); err != nil {
			return err
		}
		e.written.Copied += e.length
		e.length = 0
	case len(e.data) > 0:
		width := widthOf(uint64(len(e.data)))
		if err := e.write(appendNumber(append(head, opLiteralN1+width), uint64(len(e.data)), width)); err != nil {
			return err
		}
		if err := e.write(e.data); err != nil {
			return err
		}
		e.written.Literal += int64(len(e.data))
		e.data = e.data[:0]
	default:
		return nil
	}
	e.written.Runs++
	return nil
}

// end writes what is left.
func (e *encoder) end() error {
	if err := e.flush(); err != nil {
		return err
	}
	if err := e.write([]byte{opEnd}); err != nil {
		return err
	}
	return e.w.Flush()
}

func (e *encoder) write(p []byte) error {
	n, err := e.w.Write(p)
	e.written.Size += int64(n)
	return err
}

// widthOf returns the binary logarithm of the least number of bytes that hold x.
func widthOf(x uint64) byte {
	switch {
	case x < 1<<8:
		return 0
	case x < 1<<16:
		return 1
	case x < 1<<32:
		return 2
	}
	return 3
}

func appendNumber(b []byte, x uint64, width byte) []byte {
	for shift := 8<<width - 8; shift >= 0; shift -= 8 {
		b = append(b, byte(x>>shift))
	}
	return b
}
