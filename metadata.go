package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/pyjson"
	"github.com/atocore/backup/internal/restorer"
	"github.com/atocore/backup/internal/sqlitedb"
)

const (
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
	BackupRoot             string    // the snapshot's directory when it was created
	DBSnapshotPath         string    // the database copy
	DBSizeBytes            int64     // its size
	RegistrySnapshotPath   string    // the registry copy; empty if there was no registry
	ChromaSnapshotPath     string    // the Chroma copy; empty if there is none
	ChromaSnapshotBytes    int64     // sum of its files' sizes
	ChromaSnapshotFiles    int64     // number of its files
	ChromaSnapshotIncluded bool      // whether there is a Chroma copy
	VectorStoreNote        string    // the same in words
	FormatVersion          int       // 1; 0 for a snapshot of the Python module
	Stamp                  string    // the name it was published under; empty for the Python module's
	SafetyOf               string    // the snapshot whose restore took this one first; empty for all others
	SourceDBPath           string    // the live database, with links resolved; empty for older snapshots and the Python module's
	SourceHost             string    // the host of the store (see Options.Host); empty like SourceDBPath
}

func (m *Metadata) fields() [15]pyjson.Field {
	return [...]pyjson.Field{
		{Name: "created_at", At: &m.CreatedAt},
		{Name: "backup_root", At: &m.BackupRoot},
		{Name: "db_snapshot_path", At: &m.DBSnapshotPath},
		{Name: "db_size_bytes", At: &m.DBSizeBytes},
		{Name: "registry_snapshot_path", At: &m.RegistrySnapshotPath},
		{Name: "chroma_snapshot_path", At: &m.ChromaSnapshotPath},
		{Name: "chroma_snapshot_bytes", At: &m.ChromaSnapshotBytes},
		{Name: "chroma_snapshot_files", At: &m.ChromaSnapshotFiles},
		{Name: "chroma_snapshot_included", At: &m.ChromaSnapshotIncluded},
		{Name: "vector_store_note", At: &m.VectorStoreNote},
		{Name: "format_version", At: &m.FormatVersion, Ours: true},
		{Name: "stamp", At: &m.Stamp, Ours: true},
		{Name: "safety_of", At: &m.SafetyOf, Ours: true, Optional: true},
		{Name: "source_db_path", At: &m.SourceDBPath, Ours: true, Optional: true},
		{Name: "source_host", At: &m.SourceHost, Ours: true, Optional: true},
	}
}

// MarshalJSON returns the content of backup-metadata.json, ASCII only. Bytes of
// a path that are not UTF-8 are written as Python's surrogateescape does
// (PEP 383), so that both sides name the same file. With FormatVersion 0 the
// result is the Python module's form, which has neither a version nor a stamp.
func (m Metadata) MarshalJSON() ([]byte, error) {
	fields := m.fields()
	return []byte(pyjson.EncodeObject(fields[:], func(f *pyjson.Field, value string) (skip bool) {
		return f.Ours && m.FormatVersion == 0 || f.Optional && value == `""`
	})), nil
}

// UnmarshalJSON reads the content of backup-metadata.json. Unknown fields are
// allowed. A field that is missing, occurs twice or has the wrong type is an
// error, and leaves m as it was.
func (m *Metadata) UnmarshalJSON(data []byte) error {
	parsed, err := parseMetadata(string(data))
	if err != nil {
		return err
	}
	*m = *parsed
	return nil
}

// encodeMetadata returns the content of the metadata file.
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

// parseMetadata returns an error that matches one of these or
// pyjson.ErrNotJSON.
var (
	errMetadataShape = errors.New("wrong shape")
	errFormatVersion = errors.New("unsupported format version")
)

// parseMetadata reads untrusted text. The result refers to text, so it keeps
// that in memory.
func parseMetadata(text string) (*Metadata, error) {
	if !utf8.ValidString(text) { // encoding/json would accept it
		return nil, fmt.Errorf("%w: not UTF-8", pyjson.ErrNotJSON)
	}
	m := new(Metadata)
	fields := m.fields()
	switch err := pyjson.ReadFields(fields[:], text); {
	case errors.Is(err, pyjson.ErrNotJSON):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errMetadataShape, err)
	}
	// A later version may have other fields, so it is reported before they are
	// missed.
	version := pyjson.Find(fields[:], "format_version")
	if n, err := strconv.ParseInt(version.Raw, 10, 64); err == nil && n > format.Version {
		return nil, fmt.Errorf("%w: %d", errFormatVersion, n)
	}
	var faults []error
	for i := range fields {
		f := &fields[i]
		if f.Raw == "" {
			if !f.Ours {
				faults = append(faults, fmt.Errorf("%s is missing", f.Name))
			}
			continue
		}
		if err := f.Decode(); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", f.Name, err))
		}
	}
	if stamp := pyjson.Find(fields[:], "stamp"); (stamp.Raw != "") != (m.FormatVersion > 0) {
		faults = append(faults, errors.New("stamp and format_version go together"))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("%w: %w", errMetadataShape, joinInLine(faults))
	}
	return m, nil
}

// foreignJSON returns the text of a metadata file in the form in which lists
// and reports pass it on: in ASCII, like everything that this package writes,
// and with whatever fields it has. m and fault are the results of parseMetadata
// for it. The result is empty if the text is not JSON, or nested too deep, or
// null, or nothing but the encoding of m.
func foreignJSON(text string, m *Metadata, fault error) string {
	if errors.Is(fault, pyjson.ErrNotJSON) || errors.Is(fault, pyjson.ErrTooDeep) {
		return ""
	}
	var compact, raw bytes.Buffer
	if err := json.Compact(&compact, []byte(pyjson.ToASCII(pyjson.Relax(text)))); err != nil {
		return ""
	}
	if compact.String() == "null" {
		return ""
	}
	var own []byte
	if m != nil {
		own, _ = m.MarshalJSON()
	}
	if bytes.Equal(own, compact.Bytes()) {
		return ""
	}
	// As encoding/json escapes it within another value, so that what is read
	// back is the same.
	json.HTMLEscape(&raw, compact.Bytes())
	compact.Reset()
	json.HTMLEscape(&compact, own)
	if bytes.Equal(compact.Bytes(), raw.Bytes()) {
		return ""
	}
	return raw.String()
}

// foreignMetadata reads metadata as lists and reports have them.
func foreignMetadata(data []byte) (*Metadata, string) {
	if len(data) == 0 || string(data) == "null" {
		return nil, ""
	}
	m, fault := parseMetadata(string(data))
	return m, foreignJSON(string(data), m, fault)
}

// rawMetadata returns the JSON of a snapshot's metadata: raw, which came from
// foreignJSON, or else that of m, or "null" if there is neither.
func rawMetadata(m *Metadata, raw string) (string, error) {
	switch {
	case raw != "":
		return raw, nil
	case m != nil:
		data, err := m.MarshalJSON()
		return string(data), err
	}
	return "null", nil
}

// readMetadataFile returns the content of the metadata file of the snapshot
// dir, of which it reads at most format.MaxMetadataSize bytes. It does not open
// a file of the live database. Errors are those of fsat.Dir.ReadSmall.
func readMetadataFile(dir *fsat.Dir, live sqlitedb.Files) (string, error) {
	var usual [4 << 10]byte // on the stack, so a long list allocates only the strings
	data, err := dir.ReadSmall(format.MetadataName, format.MaxMetadataSize, live.Contains, usual[:])
	return string(data), err
}

// placesIn returns the places of a snapshot's parts, relative to it. They are
// empty for parts that it lacks.
func placesIn(m *Metadata) (places restorer.Places, err error) {
	for _, part := range []struct {
		recorded string
		into     *string
	}{
		{m.DBSnapshotPath, &places.Database},
		{m.RegistrySnapshotPath, &places.Registry},
		{m.ChromaSnapshotPath, &places.Chroma},
	} {
		if part.recorded == "" {
			continue
		}
		var ok bool
		if *part.into, ok = format.Relative(m.BackupRoot, part.recorded); !ok {
			problem := Problem{Code: CodePathOutside, Detail: oneLine(fmt.Sprintf("%q", part.recorded))}
			return places, &InvalidBackupError{&Report{Stamp: m.Stamp, Path: m.BackupRoot, Exists: true, Metadata: m, Problems: []Problem{problem}}}
		}
	}
	return places, nil
}

// Parts is a set of parts of a store. In JSON it is its String.
type Parts uint8

// The parts of a store.
const (
	PartDatabase Parts = 1 << iota
	PartRegistry
	PartChroma

	allParts = PartDatabase | PartRegistry | PartChroma
)

// String returns the names of the parts, separated by commas: "database",
// "registry" and "chroma".
func (p Parts) String() string {
	var names []string
	for i, name := range []string{"database", "registry", "chroma"} {
		if p&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// parts returns the parts that the snapshot has.
func (m *Metadata) parts() Parts {
	parts := PartDatabase
	if m.RegistrySnapshotPath != "" {
		parts |= PartRegistry
	}
	if m.ChromaSnapshotPath != "" {
		parts |= PartChroma
	}
	return parts
}

// partsOf returns the parts that a restore is about.
func partsOf(journal *restorer.Journal) (parts Parts) {
	if !journal.LeavesDatabase() {
		parts |= PartDatabase
	}
	if journal.Live.Chroma != "" {
		parts |= PartChroma
	}
	if journal.Live.Registry != "" {
		parts |= PartRegistry
	}
	return parts
}

// partDirs are the directories of the parts in a snapshot, by which package
// restorer names the parts.
var partDirs = map[Parts]string{PartDatabase: format.DBDir, PartRegistry: format.ConfigDir, PartChroma: format.ChromaDir}

// partCalled returns the part with this directory in a snapshot, or 0.
func partCalled(dir string) Parts {
	for part, name := range partDirs {
		if name == dir {
			return part
		}
	}
	return 0
}

// describeParts names the parts with what happens to them, for the log.
func describeParts(parts []RestorePart) string {
	var texts []string
	for _, p := range parts {
		text := fmt.Sprintf("%s=%s", p.Part, p.Action)
		if len(p.Owners) > 0 {
			text += " (" + strings.Join(p.Owners, " ") + ")"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

// metadata returns the metadata without the stamp and the paths, which publish
// fills in.
func (c *capture) metadata(created time.Time) *Metadata {
	m := &Metadata{
		CreatedAt:       created,
		DBSizeBytes:     c.dbBytes,
		VectorStoreNote: noteWithoutChroma,
		FormatVersion:   format.Version,
	}
	if c.chroma != nil {
		m.ChromaSnapshotIncluded = true
		m.ChromaSnapshotBytes, m.ChromaSnapshotFiles = c.chroma.Bytes, c.chroma.Files
		m.VectorStoreNote = noteWithChroma
	}
	return m
}
