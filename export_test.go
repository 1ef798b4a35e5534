package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
)

// What the tests of untrusted input need to reach.
var (
	CompareStamps  = compareStamps
	IsStamp        = isStamp
	NewStamp       = newStamp
	EncodeMetadata = encodeMetadata
	QuoteASCII     = quoteASCII
	UnquoteJSON    = unquoteJSON
	EachMember     = eachMember
	ManifestLine   = manifestLine
	RelativeTo     = relativeTo
)

func ParseMetadata(data []byte) (*Metadata, error) { return parseMetadata(string(data)) }

// EachManifestEntry reads a manifest to its end or its first fault.
func EachManifestEntry(manifest []byte, each func(sum [sha256.Size]byte, name string)) error {
	r := newManifestReader(bytes.NewReader(manifest))
	for {
		switch entry, err := r.next(); err {
		case nil:
			each(entry.sum, entry.path)
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

// NewReadAhead gives a file as SQLite reads it for a check.
func NewReadAhead(file io.ReaderAt) io.ReadSeeker { return &readAhead{file: file} }

// DrainManifest judges a manifest of a snapshot without files.
func DrainManifest(ctx context.Context, manifest []byte) error {
	cursor := manifestCursor{
		r:      newManifestReader(bytes.NewReader(manifest)),
		report: func(Code, string, string) {},
	}
	if err := cursor.advance(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return cursor.drain(ctx)
}
