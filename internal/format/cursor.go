package format

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
)

// A Mismatch is a way in which a manifest and the files of a snapshot differ.
type Mismatch int

const (
	Missing   Mismatch = iota // the manifest names a file that does not exist
	Changed                   // a file does not have the recorded SHA-256
	Unknown                   // the manifest does not name a file or directory
	Malformed                 // a line of the manifest cannot be read; the rest is not compared
)

// A Cursor compares a manifest with the files of a snapshot. Both come in the
// same order, so neither is held in memory.
type Cursor struct {
	r       *Reader
	report  func(kind Mismatch, path, detail string)
	entry   Entry
	started bool // the first entry was read
	done    bool // there is no entry: the manifest ended, or is broken
	broken  bool // a line could not be read, so the rest is unknown
}

// NewCursor returns a Cursor that is before the first line of r. It reads
// nothing yet. report is called for each difference, with the path of the
// file, or of the directory with a final slash; for [Malformed] with an empty
// path and the reason.
func NewCursor(r *Reader, report func(kind Mismatch, path, detail string)) *Cursor {
	return &Cursor{r: r, report: report}
}

// Compare reports how one file differs from the manifest, and the files before
// it that only the manifest names. Files must come in the byte order of their
// paths. An empty directory is compared too; the path of one ends with a slash.
// sum is ignored for a directory, and for a file that is irregular and so was
// not read.
//
// Compare returns ctx's error, or that of reading the manifest. After an error,
// c is useless.
func (c *Cursor) Compare(ctx context.Context, path string, isDir, irregular bool, sum [sha256.Size]byte) error {
	if err := c.start(ctx); err != nil {
		return err
	}
	for !c.done && c.entry.Path < path {
		if err := c.missing(ctx); err != nil {
			return err
		}
	}
	if isDir {
		// The manifest names no directories. Chroma may have empty ones, and
		// config is empty without a registry.
		if !strings.HasPrefix(path, ChromaDir+"/") && path != ConfigDir+"/" {
			c.report(Unknown, path, "")
		}
		return nil
	}
	if c.done || c.entry.Path != path {
		if !c.broken {
			c.report(Unknown, path, "")
		}
		return nil
	}
	if !irregular && sum != c.entry.Sum {
		c.report(Changed, path, "")
	}
	return c.advance(ctx)
}

// Drain reports the files that the manifest names after the last one that was
// compared. It returns ctx's error, or that of reading the manifest.
func (c *Cursor) Drain(ctx context.Context) error {
	if err := c.start(ctx); err != nil {
		return err
	}
	for !c.done {
		if err := c.missing(ctx); err != nil {
			return err
		}
	}
	return nil
}

// start reads the first entry, if that has not been done.
func (c *Cursor) start(ctx context.Context) error {
	if c.started {
		return nil
	}
	c.started = true
	return c.advance(ctx)
}

// missing reports the entry as missing and advances to the next one.
func (c *Cursor) missing(ctx context.Context) error {
	c.report(Missing, c.entry.Path, "")
	return c.advance(ctx)
}

// advance reads the next entry. A manifest may name any number of files that
// do not exist, so ctx is checked for each.
func (c *Cursor) advance(ctx context.Context) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.entry, err = c.r.Next()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrMalformed):
		c.report(Malformed, "", strings.TrimPrefix(err.Error(), ErrMalformed.Error()+": "))
		c.done, c.broken = true, true
		return nil
	case err == io.EOF:
		c.done = true
		return nil
	}
	return err
}
