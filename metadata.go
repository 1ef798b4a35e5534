package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
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
	parsed, err := parseMetadata(string(data))
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

// These and errNotJSON tell apart the ways in which text can fail to be
// metadata.
var (
	errMetadataShape = errors.New("wrong shape")
	errFormatVersion = errors.New("unsupported format version")
)

// parseMetadata reads untrusted text, of which the result keeps pieces. Field
// names are matched exactly, where encoding/json would ignore case: Python and
// Go must see the same fields.
func parseMetadata(text string) (*Metadata, error) {
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("%w: not UTF-8", errNotJSON)
	}
	m := new(Metadata)
	fields := m.fields()
	switch err := readFields(fields[:], text); {
	case errors.Is(err, errNotJSON):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errMetadataShape, err)
	}
	version := findField(fields[:], "format_version")
	if n, err := strconv.Atoi(version.raw); err == nil && n > formatVersion {
		return nil, fmt.Errorf("%w: %d", errFormatVersion, n)
	}
	var faults []error
	for _, f := range fields {
		if f.raw == "" {
			if !f.ours {
				faults = append(faults, fmt.Errorf("%s is missing", f.name))
			}
			continue
		}
		if err := f.decode(); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", f.name, err))
		}
	}
	if stamp := findField(fields[:], "stamp"); (stamp.raw != "") != (m.FormatVersion > 0) {
		faults = append(faults, errors.New("stamp and format_version go together"))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("%w: %w", errMetadataShape, joinInLine(faults))
	}
	return m, nil
}

// foreignJSON gives text that somebody else wrote as it is passed on: in ASCII,
// like all that this package writes, so that is not copied. fault is what
// parseMetadata said of it; what is no JSON or nested too deep is left out.
func foreignJSON(text string, fault error) string {
	if errors.Is(fault, errNotJSON) || errors.Is(fault, errTooDeep) {
		return ""
	}
	if isASCII(text) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case r < 0x7f:
			b.WriteByte(byte(r))
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// isASCII tells whether text needs no escape to be ASCII that can be shown.
func isASCII(text string) bool {
	for i := range len(text) {
		if text[i] >= 0x7f {
			return false
		}
	}
	return true
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
	name string
	// at is a *string, *bool or *time.Time, a *int64 for a count, a *signed
	// for any number, or a *int for a format version.
	at       any
	ours     bool   // not among the Python module's ten
	optional bool   // one of ours that is left out where it is empty
	raw      string // its JSON, if it was read; empty if it was not there
}

type signed int64

func (m *Metadata) fields() [13]metadataField {
	return [...]metadataField{
		{name: "created_at", at: &m.CreatedAt},
		{name: "backup_root", at: &m.BackupRoot},
		{name: "db_snapshot_path", at: &m.DBSnapshotPath},
		{name: "db_size_bytes", at: &m.DBSizeBytes},
		{name: "registry_snapshot_path", at: &m.RegistrySnapshotPath},
		{name: "chroma_snapshot_path", at: &m.ChromaSnapshotPath},
		{name: "chroma_snapshot_bytes", at: &m.ChromaSnapshotBytes},
		{name: "chroma_snapshot_files", at: &m.ChromaSnapshotFiles},
		{name: "chroma_snapshot_included", at: &m.ChromaSnapshotIncluded},
		{name: "vector_store_note", at: &m.VectorStoreNote},
		{name: "format_version", at: &m.FormatVersion, ours: true},
		{name: "stamp", at: &m.Stamp, ours: true},
		{name: "safety_of", at: &m.SafetyOf, ours: true, optional: true},
	}
}

// readFields gives the fields their raw values. No name may be twice in text,
// known or not.
func readFields(fields []metadataField, text string) error {
	var unknown map[string]bool
	return eachMember(text, func(name, value string) (first bool) {
		if f := findField(fields, name); f != nil {
			first, f.raw = f.raw == "", value
			return first
		}
		if unknown == nil {
			unknown = make(map[string]bool)
		}
		first, unknown[name] = !unknown[name], true
		return first
	})
}

func findField(fields []metadataField, name string) *metadataField {
	for i := range fields {
		if fields[i].name == name {
			return &fields[i]
		}
	}
	return nil
}

func (f *metadataField) encode() string {
	switch at := f.at.(type) {
	case *string:
		return quoteASCII(*at)
	case *bool:
		return strconv.FormatBool(*at)
	case *int64:
		return strconv.FormatInt(*at, 10)
	case *signed:
		return strconv.FormatInt(int64(*at), 10)
	case *int:
		return strconv.Itoa(*at)
	case *time.Time:
		return encodeTime(*at)
	}
	panic(fmt.Sprintf("%s is of no kind", f.name))
}

// decode reads raw.
func (f *metadataField) decode() (err error) {
	switch at := f.at.(type) {
	case *string:
		*at, err = unquoteJSON(f.raw)
	case *bool:
		*at, err = decodeBool(f.raw)
	case *int64:
		*at, err = decodeCount(f.raw)
	case *signed:
		*at, err = decodeSigned(f.raw)
	case *int:
		*at, err = decodeVersion(f.raw)
	case *time.Time:
		*at, err = decodeTime(f.raw)
	default:
		panic(fmt.Sprintf("%s is of no kind", f.name))
	}
	return err
}

func decodeBool(raw string) (bool, error) {
	if raw != "true" && raw != "false" {
		return false, errors.New("neither true nor false")
	}
	return raw == "true", nil
}

func decodeCount(raw string) (int64, error) {
	if raw == "null" {
		return 0, errors.New("null is not a number")
	}
	n, err := strconv.ParseInt(raw, 10, 64)
	if err != nil {
		return 0, errors.New("not a whole number")
	}
	if n < 0 {
		return 0, fmt.Errorf("%d is negative", n)
	}
	return n, nil
}

func decodeSigned(raw string) (signed, error) {
	n, err := strconv.ParseInt(raw, 10, 64)
	if err != nil {
		return 0, errors.New("not a whole number")
	}
	return signed(n), nil
}

func decodeVersion(raw string) (int, error) {
	n, err := strconv.Atoi(raw)
	if err != nil {
		return 0, errors.New("not a whole number")
	}
	if n < 1 {
		return 0, fmt.Errorf("there is no version %d", n)
	}
	return n, nil
}

// encodeTime writes what Python's datetime.isoformat writes for UTC.
func encodeTime(t time.Time) string {
	t = t.UTC()
	if t.Nanosecond() < 1000 {
		return `"` + t.Format("2006-01-02T15:04:05") + `+00:00"`
	}
	return `"` + t.Format("2006-01-02T15:04:05.000000") + `+00:00"`
}

// decodeTime reads what isoformat writes for any zone and for none, which it
// takes as UTC.
func decodeTime(raw string) (time.Time, error) {
	s, err := unquoteJSON(raw)
	if err != nil {
		return time.Time{}, err
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil && checkTime(t) == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not an ISO 8601 time", s)
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
func unquoteJSON(raw string) (string, error) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", errors.New("not a string")
	}
	in := raw[1 : len(raw)-1]
	if !strings.Contains(in, `\`) {
		return in, nil
	}
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
