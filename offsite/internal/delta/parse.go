package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

type kind uint8

const (
	kindEnd kind = iota
	kindLiteral
	kindCopy
)

// A command is what a delta says about the next piece of the result.
type command struct {
	kind   kind
	offset int64 // of the literal data in the delta, or of the copy in the former version
	length int64 // 1 or more
}

// A parser reads the commands of a delta.
type parser struct {
	file io.ReaderAt
	size int64
	at   int64 // of the next command

	window []byte // what was read of the file at windowAt
	from   int64
}

// parserWindow is how much is read at once. Commands are often 4 KiB apart, with
// data between them that isn't needed.
const parserWindow = 512

// ahead returns at least n bytes at p.at, or less if the delta ends there.
func (p *parser) ahead(n int) ([]byte, error) {
	if p.at < p.from || p.at+int64(n) > p.from+int64(len(p.window)) {
		want := min(parserWindow, p.size-p.at)
		if cap(p.window) == 0 {
			p.window = make([]byte, parserWindow)
		}
		p.from, p.window = p.at, p.window[:max(want, 0)]
		if err := readAt(p.file, p.window, p.at); err != nil {
			return nil, err
		}
	}
	return p.window[p.at-p.from:], nil
}

// start reads the magic number.
func (p *parser) start() error {
	head, err := p.ahead(4)
	if err != nil {
		return err
	}
	if len(head) < 4 || binary.BigEndian.Uint32(head) != magic {
		return fmt.Errorf("%w: it does not begin as librsync's do", ErrInvalid)
	}
	p.at = 4
	return nil
}

// command returns the next command and goes on behind it and its data. An END
// has to be the last byte.
func (p *parser) command() (cmd command, err error) {
	head, err := p.ahead(headSize)
	if err != nil {
		return cmd, err
	}
	if len(head) == 0 {
		return cmd, fmt.Errorf("%w: it ends without an end command", ErrInvalid)
	}
	op := head[0]
	var offset, length uint64
	params := 1
	switch {
	case op == opEnd:
		if p.at+1 != p.size {
			return cmd, fmt.Errorf("%w: it goes on for %d bytes after its end command", ErrInvalid, p.size-p.at-1)
		}
		return command{kind: kindEnd}, nil
	case op <= opLiteral64:
		cmd.kind, length = kindLiteral, uint64(op)
	case op <= opLiteralN8:
		cmd.kind = kindLiteral
		length, params = number(head, params, op-opLiteralN1)
	case op <= opCopyN8N8:
		cmd.kind = kindCopy
		offset, params = number(head, params, (op-opCopyN1N1)/4)
		length, params = number(head, params, (op-opCopyN1N1)%4)
	default:
		return cmd, fmt.Errorf("%w: unknown command 0x%02x at byte %d", ErrInvalid, op, p.at)
	}
	switch {
	case params > len(head):
		return cmd, fmt.Errorf("%w: it ends within the command at byte %d", ErrInvalid, p.at)
	case length == 0 || length > maxSize || offset > maxSize:
		// librsync refuses a length of zero, too (src/patch.c).
		return cmd, fmt.Errorf("%w: length %d, offset %d in the command at byte %d", ErrInvalid, length, offset, p.at)
	}
	began := p.at
	p.at += int64(params)
	cmd.offset, cmd.length = int64(offset), int64(length)
	if cmd.kind == kindLiteral {
		if cmd.offset = p.at; cmd.length > p.size-p.at {
			return cmd, fmt.Errorf("%w: it ends within the %d bytes of the command at byte %d", ErrInvalid, cmd.length, began)
		}
		p.at += cmd.length
	}
	return cmd, nil
}

// number returns the parameter at head[at:], which is 1<<width bytes wide, and
// where it ends, which may be beyond head.
func number(head []byte, at int, width byte) (value uint64, end int) {
	end = at + 1<<width
	if end > len(head) {
		return 0, end
	}
	for _, b := range head[at:end] {
		value = value<<8 | uint64(b)
	}
	return value, end
}

// readAt fills buf from offset on. If the file ends before, the error matches
// ErrInvalid.
func readAt(f io.ReaderAt, buf []byte, offset int64) error {
	if len(buf) == 0 {
		return nil
	}
	n, err := f.ReadAt(buf, offset)
	switch {
	case n == len(buf):
		return nil // io.ReaderAt allows io.EOF here
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%w: a file ends at byte %d: %w", ErrInvalid, offset+int64(n), io.ErrUnexpectedEOF)
	}
	return err
}
