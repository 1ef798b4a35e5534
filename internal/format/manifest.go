package backup

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

const (
	manifestName = "SHA256SUMS"

	// maxManifestLine bounds what is read of one line. Names are at most 255
	// bytes (doubled if each is escaped), so this allows 100 levels of the
	// longest ones, and thousands of ordinary ones.
	maxManifestLine = 64 << 10
)

// manifestLine gives the line of GNU coreutils' sha256sum for a file: digest,
// two spaces, name. If the name has a backslash, newline or carriage return,
// these are escaped and the line begins with a backslash (coreutils manual,
// "md5sum invocation").
func manifestLine(sum [sha256.Size]byte, name string) string {
	line := hex.EncodeToString(sum[:]) + "  "
	if !strings.ContainsAny(name, "\\\n\r") {
		return line + name + "\n"
	}
	return `\` + line + manifestEscaper.Replace(name) + "\n"
}

var manifestEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`)

type manifestEntry struct {
	sum  [sha256.Size]byte
	path string
}

// A manifestReader reads untrusted bytes line by line. It accepts only what
// manifestLine writes, in strictly ascending order of the paths: so a
// manifest has one form, and no file is named twice.
type manifestReader struct {
	r    *bufio.Reader
	line int
	last string
}

func newManifestReader(r io.Reader) *manifestReader {
	return &manifestReader{r: bufio.NewReaderSize(r, maxManifestLine)}
}

var errManifest = errors.New("malformed manifest")

// next returns the next entry, io.EOF after the last one, an error that
// matches errManifest for a line that is not as it should be, or the reader's
// own error.
func (m *manifestReader) next() (e manifestEntry, err error) {
	m.line++
	line, err := m.r.ReadSlice('\n')
	switch {
	case err == io.EOF && len(line) == 0:
		if m.line == 1 {
			return e, fmt.Errorf("%w: it is empty", errManifest)
		}
		return e, io.EOF
	case err == io.EOF:
		return e, m.malformed("no newline at the end")
	case errors.Is(err, bufio.ErrBufferFull):
		return e, m.malformed("too long")
	case err != nil:
		return e, err
	}
	line = line[:len(line)-1]
	line, escaped := bytes.CutPrefix(line, []byte(`\`))
	const digest = 2 * sha256.Size
	if len(line) < digest+3 || string(line[digest:digest+2]) != "  " {
		return e, m.malformed("not a digest, two spaces and a name")
	}
	if _, err := hex.Decode(e.sum[:], line[:digest]); err != nil || !bytes.Equal(bytes.ToLower(line[:digest]), line[:digest]) {
		return e, m.malformed("not a lower-case SHA-256")
	}
	name := string(line[digest+2:])
	if escaped {
		var ok bool
		if name, ok = unescapeManifest(name); !ok {
			return e, m.malformed("wrong escape")
		}
	}
	switch {
	case escaped != strings.ContainsAny(name, "\\\n\r"):
		return e, m.malformed("escaped without need, or not escaped")
	case strings.ContainsRune(name, 0), path.Clean(name) != name, path.IsAbs(name),
		name == ".", name == "..", strings.HasPrefix(name, "../"):
		return e, m.malformed("not a path inside the snapshot")
	case name == manifestName:
		return e, m.malformed("it names itself")
	case m.line > 1 && name <= m.last:
		return e, m.malformed("not in ascending order")
	}
	e.path, m.last = name, name
	return e, nil
}

func (m *manifestReader) malformed(why string) error {
	return fmt.Errorf("%w: line %d: %s", errManifest, m.line, why)
}

func unescapeManifest(s string) (string, bool) {
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
