// Package delta writes, reads and combines deltas in the format of librsync, so
// that a large file that changed in a few places is stored as a base and what
// changed, and so that rdiff(1) applies them without this package.
//
// A delta is written against a former version of a file: [Write] compares the two
// at equal offsets and needs no signatures, because the former version is at
// hand. A [Version] is a file as its base and a row of deltas describe it. It
// holds the places where its pieces are, and none of the data.
//
// Everything that is read is untrusted. The package opens nothing, runs no
// goroutines, and never holds more than its buffers (less than 2 MiB) and 16
// bytes for each piece of a version, of which there are at most [MaxRuns].
package delta

import (
	"errors"
	"fmt"
)

// MaxRuns is the largest number of pieces of which a version may consist, and of
// commands in a delta. A version of that many takes 64 MiB, and a delta of that
// many about a second.
const MaxRuns = 1 << 22

// MaxDeltas is the largest number of deltas in a row.
const MaxDeltas = 64

// maxSize bounds the size of a file or delta, so that an offset fits into a run.
const maxSize = 1 << 48

// Errors of this package; match them with errors.Is. All others come from the
// files that are read and written.
var (
	// ErrInvalid: a delta is damaged, or was not made for this version, or a file
	// is shorter than it is said to be.
	ErrInvalid = errors.New("the delta is invalid")
	// ErrTooManyRuns: a version would have more than MaxRuns pieces, or a delta has
	// more than MaxRuns commands. It matches ErrInvalid as well. The remedy for a delta of one's own is a new base.
	ErrTooManyRuns = fmt.Errorf("%w: more than %d pieces", ErrInvalid, MaxRuns)
)

// The format (librsync, src/prototab.h and doc/format.md): the magic number,
// then commands, each with up to two parameters in big-endian order, then END.
// The parameters of each kind are 1, 2, 4 or 8 bytes wide, and a command's
// number says how wide.
const (
	magic = 0x72730236 // RS_DELTA_MAGIC

	opEnd       = 0x00
	opLiteral1  = 0x01 // to 0x40: that many literal bytes
	opLiteral64 = 0x40
	opLiteralN1 = 0x41 // to 0x44: N1, N2, N4, N8
	opLiteralN8 = 0x44
	opCopyN1N1  = 0x45 // to 0x54: the width of the offset changes every four
	opCopyN8N8  = 0x54
)

// headSize is the length of the longest command without its data.
const headSize = 1 + 8 + 8

// Buffers. A chunk is what is compared, hashed and written at once. A literal is
// cut into pieces of the size of a chunk, so that data of any length pass through.
const (
	chunkSize  = 256 << 10
	windowSize = 16 << 10 // of a source, for short pieces
	blockSize  = 4 << 10  // divides chunkSize
)
