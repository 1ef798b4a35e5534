package format

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// MaxLine is the largest length of a line of a manifest, its newline included.
// Names have at most 255 bytes, or 510 if each is escaped, so this allows 100
// levels of the longest ones, and thousands of ordinary ones.
const MaxLine = 64 << 10

// Line returns the line that sha256sum of GNU coreutils writes for a file:
// digest, two spaces, name. If the name has a backslash, newline or carriage
// return, these are escaped and the line begins with a backslash (coreutils
// manual, "md5sum invocation").
func Line(sum [sha256.Size]byte, name string) string {
	line := hex.EncodeToString(sum[:]) + "  "
	if !strings.ContainsAny(name, "\\\n\r") {
		return line + name + "\n"
	}
	return `\` + line + manifestEscaper.Replace(name) + "\n"
}

var manifestEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`)

// An Entry is one line of a manifest: a file below the snapshot, with slashes,
// and its SHA-256.
type Entry struct {
	Sum  [sha256.Size]byte
	Path string
}

// A Reader reads an untrusted manifest line by line. It accepts only lines in
// the form of [Line], in strictly ascending order of the paths, so that a
// manifest has only one form and names no file twice.
type Reader struct {
	r    *bufio.Reader
	line int
	last string
}

// NewReader returns a Reader of the manifest in r. It has a buffer of [MaxLine]
// bytes, which is all the memory that it needs.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, MaxLine)}
}

// ErrMalformed is matched by the errors of [Reader.Next] for a line that is not
// in the form of a manifest. Their text begins with that of ErrMalformed and
// is one line.
var ErrMalformed = errors.New("malformed manifest")

// Next returns the next entry. Errors: io.EOF after the last entry, an error
// that matches [ErrMalformed], or the underlying reader's own error. A manifest
// without any line is malformed.
func (m *Reader) Next() (Entry, error) {
	m.line++
	line, err := m.r.ReadSlice('\n')
	switch {
	case err == io.EOF && len(line) == 0:
		if m.line == 1 {
			return Entry{}, fmt.Errorf("%w: it is empty", ErrMalformed)
		}
		return Entry{}, io.EOF
	case err == io.EOF:
		return Entry{}, m.malformed("no newline at the end")
	case errors.Is(err, bufio.ErrBufferFull):
		return Entry{}, m.malformed("too long")
	case err != nil:
		return Entry{}, err
	}
	return m.parse(line[:len(line)-1])
}

// parse returns the entry of a line without its newline.
func (m *Reader) parse(line []byte) (e Entry, err error) {
	line, escaped := bytes.CutPrefix(line, []byte(`\`))
	const digest = 2 * sha256.Size
	if len(line) < digest+3 || string(line[digest:digest+2]) != "  " {
		return Entry{}, m.malformed("not a digest, two spaces and a name")
	}
	if _, err := hex.Decode(e.Sum[:], line[:digest]); err != nil || !bytes.Equal(bytes.ToLower(line[:digest]), line[:digest]) {
		return Entry{}, m.malformed("not a lower-case SHA-256")
	}
	name := string(line[digest+2:])
	if escaped {
		var ok bool
		if name, ok = unescapeName(name); !ok {
			return Entry{}, m.malformed("wrong escape")
		}
	}
	switch {
	case escaped != strings.ContainsAny(name, "\\\n\r"):
		return Entry{}, m.malformed("escaped without need, or not escaped")
	case strings.ContainsRune(name, 0), path.Clean(name) != name, path.IsAbs(name),
		name == ".", name == "..", strings.HasPrefix(name, "../"):
		return Entry{}, m.malformed("not a path inside the snapshot")
	case name == ManifestName:
		return Entry{}, m.malformed("it names itself")
	case m.line > 1 && name <= m.last:
		return Entry{}, m.malformed("not in ascending order")
	}
	e.Path, m.last = name, name
	return e, nil
}

func (m *Reader) malformed(why string) error {
	return fmt.Errorf("%w: line %d: %s", ErrMalformed, m.line, why)
}

func unescapeName(s string) (name string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\r' {
			return "", false
		}
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", false
		}
		switch s[i] {
		case '\\':
			b.WriteByte('\\')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		default:
			return "", false
		}
	}
	return b.String(), true
}

// writeSize is how much a Writer collects before it writes.
const writeSize = 64 << 10

// A Writer writes the lines of a manifest in large pieces.
type Writer struct {
	w   io.WriterAt
	off int64
	buf []byte
}

// NewWriter returns a Writer that writes to w from off on. Before off there is
// room for lines that are known only later.
func NewWriter(w io.WriterAt, off int64) *Writer { return &Writer{w: w, off: off} }

// Add appends a line, which must be one of [Line] and come after those before
// it. If a write fails, it returns the error, and it is unknown which lines were
// written.
func (w *Writer) Add(line string) error {
	w.buf = append(w.buf, line...)
	if len(w.buf) < writeSize {
		return nil
	}
	return w.Flush()
}

// Flush writes the lines that were added and not written yet. It does not sync
// the file.
func (w *Writer) Flush() error {
	n, err := w.w.WriteAt(w.buf, w.off)
	w.off += int64(n)
	w.buf = w.buf[:0]
	return err
}
