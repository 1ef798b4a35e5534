package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/progress"
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

	// Cost is what the create cost that returned this. It is known only after the
	// file was written, so the file does not have it, and it is nil in lists,
	// reports and what an import returns.
	Cost *Cost
}

// Cost is what a call cost, by Options.Clock.
type Cost struct {
	// Duration is the time from the call to its return. In the log of a create, it
	// ends when the snapshot is published, before Options.Verify.
	Duration time.Duration `json:"duration_ns"`
	// Guarded is the time for which Options.Locker was held.
	Guarded time.Duration `json:"guarded_ns"`
	// Files and Bytes count what was copied into a snapshot, compared by a
	// validation, put in place by a restore, or removed by a prune.
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
	// ManifestSHA256 is the hash of SHA256SUMS in hexadecimal, after a create. Kept
	// in another place, it proves later that the snapshot is still the same. It is
	// empty if SHA256SUMS has more than 256 MiB.
	ManifestSHA256 string `json:"manifest_sha256,omitempty"`
}

// value returns the cost for the log.
func (c Cost) value() slog.Value {
	return slog.GroupValue(slog.Duration("duration", c.Duration), slog.Duration("guarded", c.Guarded),
		slog.Int64("files", c.Files), slog.Int64("bytes", c.Bytes), slog.String("manifest_sha256", c.ManifestSHA256))
}

// add adds what a snapshot records about its size, which is not to be trusted.
func (c *Cost) add(m *Metadata) {
	c.Files++
	if m.RegistrySnapshotPath != "" {
		c.Files++
	}
	for _, part := range []struct {
		into *int64
		n    int64
	}{{&c.Files, m.ChromaSnapshotFiles}, {&c.Bytes, m.DBSizeBytes}, {&c.Bytes, m.ChromaSnapshotBytes}} {
		*part.into += min(max(part.n, 0), math.MaxInt64-*part.into)
	}
}

// since returns the time that has passed, or 0 if the clock went back.
func (s *settings) since(began time.Time) time.Duration { return max(0, s.Clock.Now().Sub(began)) }

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
// Cost, if there is one, comes after that content, as "cost".
func (m Metadata) MarshalJSON() ([]byte, error) {
	content := m.content()
	if m.Cost == nil {
		return content, nil
	}
	cost, err := pyjson.Marshal(m.Cost)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(content[:len(content)-1], `,"cost":%s}`, cost), nil
}

// content returns the content of backup-metadata.json.
func (m *Metadata) content() []byte {
	fields := m.fields()
	return []byte(pyjson.EncodeObject(fields[:], func(f *pyjson.Field, value string) (skip bool) {
		return f.Ours && m.FormatVersion == 0 || f.Optional && value == `""`
	}))
}

// UnmarshalJSON reads the content of backup-metadata.json, or what MarshalJSON
// returned. Unknown fields are allowed. A field that is missing, occurs twice or
// has the wrong type is an error, and leaves m as it was.
func (m *Metadata) UnmarshalJSON(data []byte) error {
	parsed, err := parseMetadata(string(data))
	if err != nil {
		return err
	}
	cost := []pyjson.Field{{Name: "cost"}}
	if err := pyjson.ReadFields(cost, string(data)); err != nil {
		return err
	}
	if cost[0].Raw != "" {
		if err := json.Unmarshal([]byte(cost[0].Raw), &parsed.Cost); err != nil {
			return fmt.Errorf("cost: %w", err)
		}
	}
	*m = *parsed
	return nil
}

// encodeMetadata returns the content of the metadata file.
func encodeMetadata(m *Metadata) ([]byte, error) {
	var b bytes.Buffer
	if err := json.Indent(&b, m.content(), "", "  "); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// writeMetadata writes backup-metadata.json, replacing the file of an earlier
// stamp if there is one, and makes it durable.
func writeMetadata(dir *fsat.Dir, meta *Metadata) (sum [sha256.Size]byte, err error) {
	data, err := encodeMetadata(meta)
	if err != nil {
		return sum, err
	}
	if err := dir.Remove(format.MetadataName, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return sum, err
	}
	f, err := dir.Create(format.MetadataName, 0o600)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return sum, err
	}
	if err := f.Sync(); err != nil {
		return sum, err
	}
	return sha256.Sum256(data), f.Close()
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
		own = m.content()
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
// foreignJSON, or else the content of m, or "null" if there is neither.
func rawMetadata(m *Metadata, raw string) json.RawMessage {
	switch {
	case raw != "":
		return json.RawMessage(raw)
	case m != nil:
		return m.content()
	}
	return json.RawMessage("null")
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

// planSteps plans what the restore of a snapshot will do, with the safety
// snapshot of the live store.
func (r *restore) planSteps(ctx context.Context, m *Metadata) {
	if r.meter == nil {
		return
	}
	steps := validateSteps(m.DBSizeBytes, m.ChromaSnapshotBytes)
	if !r.empty {
		live := *r.settings
		live.IncludeChroma = m.ChromaSnapshotPath != "" && r.ChromaPath != ""
		database, chroma, _, _ := live.storeSize(ctx) // the only error is ctx's
		steps = append(steps, createSteps(database, chroma, true)...)
	}
	size, weight := m.DBSizeBytes+m.ChromaSnapshotBytes, float64(m.DBSizeBytes)+float64(m.ChromaSnapshotBytes)
	r.meter.Plan(append(steps,
		progress.Step{Phase: string(PhaseStage), Size: size, Weight: 2 * weight},
		progress.Step{Phase: string(PhaseVerify), Size: size, Weight: weight}))
}
