package delta

import (
	"fmt"
	"io"
	"sort"
)

// A Version is the content of a file as its base and some deltas describe it. It
// isn't modified once it is there, and several goroutines may use it if the
// files below it allow that.
type Version struct {
	size    int64
	sources []source // the base, then the deltas
	runs    runList  // ascending, without gaps
}

// A source is a file that holds pieces of a version.
type source struct {
	file io.ReaderAt
	size int64
}

// Base returns the version that is a file itself. It reads nothing. A size below
// zero counts as zero.
func Base(f io.ReaderAt, size int64) *Version {
	v := &Version{size: max(size, 0), sources: []source{{f, max(size, 0)}}}
	if size > 0 {
		v.runs.append(makeRun(0, 0, 0))
	}
	return v
}

// Size returns the number of bytes of the content.
func (v *Version) Size() int64 { return v.size }

// Runs returns the number of pieces that the content consists of, at most MaxRuns.
func (v *Version) Runs() int { return v.runs.n }

// end returns where run i ends.
func (v *Version) end(i int) int64 {
	if i+1 < v.runs.n {
		return v.runs.at(i + 1).at
	}
	return v.size
}

// Apply returns the version that delta d, of deltaSize bytes, makes of v, and
// which has wantSize bytes. It reads the commands of d and none of its literal
// data, and later calls on the version read those, so d has to stay open. v
// remains as it was.
//
// An error that matches ErrInvalid says what is wrong with d, and where;
// ErrTooManyRuns is one of them. Other errors are those of reading d. The cost
// grows with the number of commands and of pieces.
func (v *Version) Apply(d io.ReaderAt, deltaSize, wantSize int64) (*Version, error) {
	if wantSize < 0 || max(v.size, deltaSize, wantSize) > maxSize || len(v.sources) > MaxDeltas {
		return nil, fmt.Errorf("%w: the sizes %d, %d and %d or the number of deltas, %d, are out of bounds",
			ErrInvalid, v.size, deltaSize, wantSize, len(v.sources))
	}
	c := &composer{old: v, next: &Version{
		sources: append(v.sources[:len(v.sources):len(v.sources)], source{d, deltaSize}),
	}}
	p := parser{file: d, size: deltaSize}
	if err := p.start(); err != nil {
		return nil, err
	}
	for commands := 0; ; commands++ {
		began := p.at
		cmd, err := p.command()
		if err != nil {
			return nil, err
		}
		if cmd.kind == kindEnd {
			break
		}
		if commands == MaxRuns { // copies that follow each other are one piece
			return nil, ErrTooManyRuns
		}
		if err := c.add(cmd, wantSize); err != nil {
			return nil, fmt.Errorf("%w (command at byte %d)", err, began)
		}
	}
	if c.next.size != wantSize {
		return nil, fmt.Errorf("%w: the result has %d bytes instead of %d", ErrInvalid, c.next.size, wantSize)
	}
	return c.next, nil
}

// A composer builds a version out of a former one and a delta.
type composer struct {
	old, next *Version
	hint      int // the run of old where the last copy ended
}

// add appends what cmd makes.
func (c *composer) add(cmd command, wantSize int64) error {
	if cmd.length > wantSize-c.next.size {
		return fmt.Errorf("%w: the result has more than %d bytes", ErrInvalid, wantSize)
	}
	if cmd.kind == kindLiteral {
		return c.append(len(c.next.sources)-1, cmd.offset, cmd.length)
	}
	old := c.old
	if cmd.offset > old.size || cmd.length > old.size-cmd.offset {
		return fmt.Errorf("%w: it copies %d bytes at %d of a version that has %d", ErrInvalid, cmd.length, cmd.offset, old.size)
	}
	if r := c.hint; r >= old.runs.n || cmd.offset < old.runs.at(r).at || cmd.offset >= old.end(r) {
		c.hint = sort.Search(old.runs.n, func(i int) bool { return old.end(i) > cmd.offset })
	}
	for at, end := cmd.offset, cmd.offset+cmd.length; ; c.hint++ {
		from := old.runs.at(c.hint)
		stop := min(end, old.end(c.hint))
		if err := c.append(from.source(), from.offset()+at-from.at, stop-at); err != nil {
			return err
		}
		if at = stop; at == end {
			return nil
		}
	}
}

// append appends one piece, or makes the last one longer if it goes on there.
func (c *composer) append(source int, offset, length int64) error {
	v := c.next
	at := v.size
	v.size += length
	if n := v.runs.n; n > 0 {
		last := v.runs.at(n - 1)
		if last.source() == source && last.offset()+at-last.at == offset {
			return nil
		}
		if n == MaxRuns {
			return ErrTooManyRuns
		}
	}
	v.runs.append(makeRun(at, source, offset))
	return nil
}

// WriteTo writes the whole content to w and returns the number of bytes written.
// If a file below it turns out to be shorter than it was, the error matches
// ErrInvalid.
func (v *Version) WriteTo(w io.Writer) (int64, error) {
	r := v.reader()
	buf := make([]byte, min(chunkSize, max(v.size, 1)))
	var total int64
	for total < v.size {
		n, err := r.read(buf)
		if err != nil {
			return total, err
		}
		written, err := w.Write(buf[:n])
		total += int64(written)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}
