package offsite

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"
)

// The names that every snapshot has (docs/format.md).
const (
	metadataName = "backup-metadata.json"
	manifestName = "SHA256SUMS"
)

// Bounds on what a snapshot, or a copy of one, may have. They bound memory, and
// are far above what a store has.
const (
	maxEntries  = 1 << 19   // files, and as many directories
	maxPath     = 64 << 10  // bytes of a line of SHA256SUMS
	maxDepth    = 256       // levels of directories, as in an archive of package backup
	maxManifest = 256 << 20 // bytes of SHA256SUMS
	maxMetadata = 1 << 20   // bytes of backup-metadata.json
)

// A sum is a SHA-256.
type sum [sha256.Size]byte

func (s sum) String() string { return hex.EncodeToString(s[:]) }

// parseSum reads 64 lower-case hexadecimal digits.
func parseSum(text string) (s sum, ok bool) {
	if len(text) != 2*sha256.Size || strings.ToLower(text) != text {
		return s, false
	}
	_, err := hex.Decode(s[:], []byte(text))
	return s, err == nil
}

// A line is one of SHA256SUMS.
type line struct {
	path string
	sum  sum
}

// errManifest is matched by the errors of readManifest that are about the content.
var errManifest = errors.New("malformed manifest")

// readManifest returns the lines of SHA256SUMS, in its order, which is the
// ascending byte order of the paths, and its hash. It is untrusted.
func readManifest(r io.Reader) (lines []line, whole sum, err error) {
	hash := sha256.New()
	in := bufio.NewReaderSize(io.TeeReader(io.LimitReader(r, maxManifest+1), hash), maxPath)
	for read := 0; ; {
		data, err := in.ReadSlice('\n')
		read += len(data)
		switch {
		case errors.Is(err, io.EOF) && len(data) == 0 && len(lines) > 0:
			return lines, sum(hash.Sum(nil)), nil
		case errors.Is(err, io.EOF):
			return nil, whole, fmt.Errorf("%w: it ends within line %d", errManifest, len(lines)+1)
		case errors.Is(err, bufio.ErrBufferFull):
			return nil, whole, fmt.Errorf("%w: line %d is too long", errManifest, len(lines)+1)
		case err != nil:
			return nil, whole, err
		case read > maxManifest, len(lines) == maxEntries:
			return nil, whole, fmt.Errorf("%w: it has more than %d bytes or %d lines", errManifest, maxManifest, maxEntries)
		}
		l, ok := parseLine(data[:len(data)-1])
		if !ok || len(lines) > 0 && l.path <= lines[len(lines)-1].path {
			return nil, whole, fmt.Errorf("%w: line %d is not as docs/format.md says", errManifest, len(lines)+1)
		}
		lines = append(lines, l)
	}
}

// parseLine reads a line without its newline.
func parseLine(data []byte) (l line, ok bool) {
	data, escaped := bytes.CutPrefix(data, []byte(`\`))
	const digest = 2 * sha256.Size
	if len(data) < digest+3 || string(data[digest:digest+2]) != "  " {
		return l, false
	}
	if l.sum, ok = parseSum(string(data[:digest])); !ok {
		return l, false
	}
	l.path = string(data[digest+2:])
	if escaped {
		if l.path, ok = unescape(l.path); !ok {
			return l, false
		}
	}
	return l, escaped == strings.ContainsAny(l.path, "\\\n\r") && isPath(l.path) && l.path != manifestName
}

// unescape reads a name as sha256sum writes it (coreutils manual, "md5sum
// invocation").
func unescape(text string) (name string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == '\\' {
			if i++; i == len(text) {
				return "", false
			}
			at := strings.IndexByte(`\nr`, text[i])
			if at < 0 {
				return "", false
			}
			c = "\\\n\r"[at]
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

// isPath reports whether p is a path of a file or directory inside a snapshot:
// clean, relative, with slashes, and a path here, too (Windows has others).
func isPath(p string) bool {
	return p != "" && p != "." && p != ".." && len(p) <= maxPath && path.Clean(p) == p && !path.IsAbs(p) &&
		!strings.HasPrefix(p, "../") && !strings.ContainsRune(p, 0) && strings.Count(p, "/") < maxDepth &&
		filepath.IsLocal(filepath.FromSlash(p)) && (filepath.Separator == '/' || !strings.Contains(p, `\`))
}

// mayBeEmpty reports whether a snapshot may have the empty directory p; the
// manifest names no directories (docs/format.md, file_unknown).
func mayBeEmpty(p string) bool { return p == "config" || strings.HasPrefix(p, "chroma/") }
