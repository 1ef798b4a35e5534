package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	metadataName = "backup-metadata.json"

	// formatVersion is the version of the on-disk format that this package
	// writes, and the only one besides the Python module's that it reads.
	formatVersion = 1

	// maxMetadataSize bounds what is read of a metadata file. Ours are about
	// 1 KB plus the lengths of five paths.
	maxMetadataSize = 1 << 20

	// maxMetadataNesting bounds what is passed on of foreign metadata: indenting
	// what is nested thousands deep blows it up a thousandfold.
	maxMetadataNesting = 32

	noteWithChroma    = "The Chroma directory was copied while ingestion was held off."
	noteWithoutChroma = "This snapshot has no Chroma copy; ask for one (include_chroma) while ingestion is held off."
)

// Metadata is what a snapshot records about itself in backup-metadata.json.
// Its JSON names and types are those of the Python AtoCore module, which reads
// and writes the same file.
//
// Paths are those at the time of the backup. A snapshot may have been moved
// since; this package reads them relative to BackupRoot.
type Metadata struct {
	CreatedAt              time.Time // in UTC; JSON has microseconds
	BackupRoot             string    // the snapshot's directory when it was made
	DBSnapshotPath         string    // the database copy
	DBSizeBytes            int64     // its size
	RegistrySnapshotPath   string    // the registry copy; empty if there was none
	ChromaSnapshotPath     string    // the Chroma copy; empty if there is none
	ChromaSnapshotBytes    int64     // sum of its files' sizes
	ChromaSnapshotFiles    int64     // how many files it has
	ChromaSnapshotIncluded bool      // whether there is one
	VectorStoreNote        string    // the same in words
	FormatVersion          int       // 1; 0 for a snapshot of the Python module
	Stamp                  string    // the name it was published under; empty for the Python module's
	SafetyOf               string    // the snapshot whose restore took this one first; empty for all others
}

// MarshalJSON gives the form of backup-metadata.json, ASCII only. Bytes of a
// path that are not UTF-8 are written as Python's surrogateescape does
// (PEP 383), so that both sides name the same file. With FormatVersion 0 it is
// the Python module's form, which has neither that nor a stamp.
func (m Metadata) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range m.fields() {
		value := f.encode()
		if f.ours && m.FormatVersion == 0 || f.optional && value == `""` {
			continue
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", f.name, value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// UnmarshalJSON reads the form of backup-metadata.json. Unknown fields are
// allowed; a field that is missing, twice there or of the wrong type is an
// error.
func (m *Metadata) UnmarshalJSON(data []byte) error {
	parsed, err := parseMetadata(data)
	if err != nil {
		return err
	}
	*m = *parsed
	return nil
}

// encodeMetadata gives the bytes of the metadata file.
func encodeMetadata(m *Metadata) ([]byte, error) {
	compact, err := m.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", "  "); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// These tell apart the ways in which bytes can fail to be metadata.
var (
	errMetadataJSON  = errors.New("not JSON")
	errMetadataShape = errors.New("wrong shape")
	errFormatVersion = errors.New("unsupported format version")
)

// parseMetadata reads untrusted bytes. Field names are matched exactly, where
// encoding/json would ignore case: Python and Go must see the same fields.
func parseMetadata(data []byte) (*Metadata, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: not UTF-8", errMetadataJSON)
	}
	if !json.Valid(data) {
		return nil, fmt.Errorf("%w: %w", errMetadataJSON, json.Unmarshal(data, new(json.RawMessage)))
	}
	if nesting(data) > maxMetadataNesting {
		return nil, fmt.Errorf("%w: nested more than %d deep", errMetadataShape, maxMetadataNesting)
	}
	raw, err := splitObject(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMetadataShape, err)
	}
	m := new(Metadata)
	if version, ok := raw["format_version"]; ok {
		if err := json.Unmarshal(version, &m.FormatVersion); err == nil && m.FormatVersion > formatVersion {
			return nil, fmt.Errorf("%w: %d", errFormatVersion, m.FormatVersion)
		}
	}
	var faults []error
	for _, f := range m.fields() {
		value, ok := raw[f.name]
		if !ok {
			if !f.ours {
				faults = append(faults, fmt.Errorf("%s is missing", f.name))
			}
			continue
		}
		if err := f.decode(value); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", f.name, err))
		}
	}
	if _, stamped := raw["stamp"]; stamped != (m.FormatVersion > 0) {
		faults = append(faults, errors.New("stamp and format_version go together"))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("%w: %w", errMetadataShape, joinInLine(faults))
	}
	return m, nil
}

// nesting gives how deep the arrays and objects of valid JSON are nested.
func nesting(data []byte) (deepest int) {
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '[' || c == '{':
			depth++
			deepest = max(deepest, depth)
		case c == ']' || c == '}':
			depth--
		}
	}
	return deepest
}

// foreignJSON gives valid JSON that somebody else wrote as it is passed on: in
// ASCII, like all that this package writes, so that is not copied. What is
// nested too deep is left out.
func foreignJSON(data []byte) json.RawMessage {
	if nesting(data) > maxMetadataNesting {
		return nil
	}
	if !slices.ContainsFunc(data, func(c byte) bool { return c >= 0x7f }) {
		return data
	}
	var b bytes.Buffer
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		switch {
		case r < utf8.RuneSelf && r != 0x7f:
			b.WriteByte(byte(r))
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		data = data[size:]
	}
	return b.Bytes()
}

// joinInLine joins errors with "; ", for a problem stays on one line.
func joinInLine(errs []error) error {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

// A metadataField connects one JSON name with its place in a Metadata.
type metadataField struct {
	name     string
	ours     bool // not among the Python module's ten
	optional bool // one of ours that is left out where it is empty
	encode   func() string
	decode   func(raw []byte) error
}

func (m *Metadata) fields() []metadataField {
	return []metadataField{
		timeField("created_at", &m.CreatedAt),
		stringField("backup_root", &m.BackupRoot, false),
		stringField("db_snapshot_path", &m.DBSnapshotPath, false),
		countField("db_size_bytes", &m.DBSizeBytes),
		stringField("registry_snapshot_path", &m.RegistrySnapshotPath, false),
		stringField("chroma_snapshot_path", &m.ChromaSnapshotPath, false),
		countField("chroma_snapshot_bytes", &m.ChromaSnapshotBytes),
		countField("chroma_snapshot_files", &m.ChromaSnapshotFiles),
		boolField("chroma_snapshot_included", &m.ChromaSnapshotIncluded),
		stringField("vector_store_note", &m.VectorStoreNote, false),
		versionField("format_version", &m.FormatVersion),
		stringField("stamp", &m.Stamp, true),
		optionalField(stringField("safety_of", &m.SafetyOf, true)),
	}
}

func optionalField(f metadataField) metadataField {
	f.optional = true
	return f
}

func stringField(name string, p *string, ours bool) metadataField {
	return metadataField{
		name: name,
		ours: ours,
		encode: func() string {
			return quoteASCII(*p)
		},
		decode: func(raw []byte) (err error) {
			*p, err = unquoteJSON(raw)
			return err
		},
	}
}

func countField(name string, p *int64) metadataField {
	return metadataField{
		name:   name,
		encode: func() string { return fmt.Sprint(*p) },
		decode: func(raw []byte) error {
			if string(raw) == "null" {
				return errors.New("null is not a number")
			}
			if err := json.Unmarshal(raw, p); err != nil {
				return errors.New("not a whole number")
			}
			if *p < 0 {
				return fmt.Errorf("%d is negative", *p)
			}
			return nil
		},
	}
}

func versionField(name string, p *int) metadataField {
	return metadataField{
		name:   name,
		ours:   true,
		encode: func() string { return fmt.Sprint(*p) },
		decode: func(raw []byte) error {
			if string(raw) == "null" || json.Unmarshal(raw, p) != nil {
				return errors.New("not a whole number")
			}
			if *p < 1 {
				return fmt.Errorf("there is no version %d", *p)
			}
			return nil
		},
	}
}

func boolField(name string, p *bool) metadataField {
	return metadataField{
		name:   name,
		encode: func() string { return fmt.Sprint(*p) },
		decode: func(raw []byte) error {
			switch string(raw) {
			case "true":
				*p = true
			case "false":
				*p = false
			default:
				return errors.New("neither true nor false")
			}
			return nil
		},
	}
}

// timeField writes what Python's datetime.isoformat writes for UTC, and reads
// what it writes for any zone and for none, which it takes as UTC.
func timeField(name string, p *time.Time) metadataField {
	return metadataField{
		name: name,
		encode: func() string {
			t := p.UTC()
			if t.Nanosecond() < 1000 {
				return `"` + t.Format("2006-01-02T15:04:05") + `+00:00"`
			}
			return `"` + t.Format("2006-01-02T15:04:05.000000") + `+00:00"`
		},
		decode: func(raw []byte) error {
			s, err := unquoteJSON(raw)
			if err != nil {
				return err
			}
			for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
				if t, err := time.Parse(layout, s); err == nil && checkTime(t) == nil {
					*p = t.UTC()
					return nil
				}
			}
			return fmt.Errorf("%q is not an ISO 8601 time", s)
		},
	}
}

// splitObject gives the raw values of a JSON object by name. data is valid
// JSON; a decoder would take four times as long to come to the same.
func splitObject(data []byte) (map[string]json.RawMessage, error) {
	data = bytes.Trim(data, jsonSpace)
	if data[0] != '{' {
		return nil, errors.New("not an object")
	}
	values := make(map[string]json.RawMessage, 16)
	for data = data[1:]; ; {
		data = bytes.TrimLeft(data, jsonSpace+",")
		if data[0] == '}' {
			return values, nil
		}
		n := jsonLen(data)
		name := string(data[1 : n-1])
		if strings.ContainsRune(name, '\\') {
			if err := json.Unmarshal(data[:n], &name); err != nil {
				return nil, err
			}
		}
		if _, twice := values[name]; twice {
			return nil, fmt.Errorf("%q is there twice", name)
		}
		data = bytes.TrimLeft(data[n:], jsonSpace+":")
		n = jsonLen(data)
		values[name] = data[:n:n]
		data = data[n:]
	}
}

const jsonSpace = " \t\r\n"

// jsonLen gives the length of the value that valid JSON begins with.
func jsonLen(data []byte) int {
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			if inString = !inString; !inString && depth == 0 {
				return i + 1
			}
		case inString:
		case c == '[' || c == '{':
			depth++
		case c == ']' || c == '}':
			if depth--; depth == 0 {
				return i + 1
			}
			if depth < 0 { // the end of what holds it
				return i
			}
		case depth == 0 && (c == ',' || strings.IndexByte(jsonSpace, c) >= 0):
			return i
		}
	}
	return len(data)
}

// relativeTo gives the place of a recorded path below the recorded root, with
// slashes, or ok == false if it does not lie below it. Both are untrusted, and
// neither is looked up anywhere.
func relativeTo(root, path string) (rel string, ok bool) {
	for _, part := range strings.Split(filepath.ToSlash(path), "/") {
		if part == ".." {
			return "", false
		}
	}
	if root == "" || strings.ContainsRune(path, 0) {
		return "", false
	}
	rel, err := filepath.Rel(filepath.Clean(root), filepath.Clean(path))
	if err != nil || rel == "." || !filepath.IsLocal(rel) {
		return "", false
	}
	return filepath.ToSlash(rel), true
}

// quoteASCII gives s as a JSON string in ASCII. A byte that is not UTF-8
// becomes the lone surrogate U+DC00+byte.
func quoteASCII(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\udc%02x`, s[i])
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteByte(byte(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		case r < utf8.RuneSelf:
			b.WriteByte(byte(r))
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += size
	}
	b.WriteByte('"')
	return b.String()
}

// unquoteJSON is the inverse of quoteASCII for any valid JSON string: the lone
// surrogates U+DC80 to U+DCFF become bytes again. Other lone surrogates stand
// for nothing and are refused.
func unquoteJSON(raw []byte) (string, error) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", errors.New("not a string")
	}
	in := string(raw[1 : len(raw)-1])
	var out strings.Builder
	for i := 0; i < len(in); {
		if in[i] != '\\' {
			out.WriteByte(in[i])
			i++
			continue
		}
		if i+1 >= len(in) {
			return "", errors.New("cut off in an escape")
		}
		switch c := in[i+1]; c {
		case 'u':
			r, ok := hex4(in, i)
			if !ok {
				return "", errors.New("malformed \\u escape")
			}
			i += 6
			if utf16.IsSurrogate(r) {
				if low, ok := hex4(in, i); ok && utf16.DecodeRune(r, low) != utf8.RuneError {
					out.WriteRune(utf16.DecodeRune(r, low))
					i += 6
					continue
				}
				if r < 0xdc80 || r > 0xdcff {
					return "", fmt.Errorf("lone surrogate \\u%04x", r)
				}
				out.WriteByte(byte(r - 0xdc00))
				continue
			}
			out.WriteRune(r)
			continue
		case 'n':
			out.WriteByte('\n')
		case 'r':
			out.WriteByte('\r')
		case 't':
			out.WriteByte('\t')
		case 'b':
			out.WriteByte('\b')
		case 'f':
			out.WriteByte('\f')
		case '"', '\\', '/':
			out.WriteByte(c)
		default:
			return "", errors.New("unknown escape")
		}
		i += 2
	}
	return out.String(), nil
}

// hex4 reads the escape \uXXXX at s[i:].
func hex4(s string, i int) (rune, bool) {
	if len(s) < i+6 || s[i] != '\\' || s[i+1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range []byte(s[i+2 : i+6]) {
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}
