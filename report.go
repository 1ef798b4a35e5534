package backup

import (
	"encoding/json"
	"strings"

	"github.com/atocore/backup/internal/pyjson"
)

// Code names a kind of problem that makes a snapshot untrustworthy. Codes may
// be added; their texts do not change.
type Code string

// The codes of the Python module.
const (
	CodeSnapshotMissing     Code = "snapshot_directory_missing" // no such snapshot
	CodeMetadataMissing     Code = "metadata_missing"           // no backup-metadata.json
	CodeMetadataInvalidJSON Code = "metadata_invalid_json"      // it is not JSON
	CodeDBMissing           Code = "db_snapshot_missing"        // the recorded database copy is not there
	CodeDBIntegrity         Code = "db_integrity_check_failed"  // a row of PRAGMA integrity_check
	CodeDBOpen              Code = "db_open_failed"             // SQLite cannot open or read the copy
	CodeRegistryMissing     Code = "registry_snapshot_missing"  // the recorded registry copy is not there
	CodeRegistryInvalidJSON Code = "registry_invalid_json"      // it is not JSON
	CodeChromaMissing       Code = "chroma_snapshot_missing"    // the recorded Chroma copy is not there
)

// The codes that this package adds.
const (
	CodeStampInvalid      Code = "stamp_invalid"              // not the name of a real directory in snapshots/
	CodeMetadataNotFile   Code = "metadata_not_a_file"        // backup-metadata.json is a link, directory, ...
	CodeMetadataTooLarge  Code = "metadata_too_large"         // more than 1 MiB
	CodeMetadataShape     Code = "metadata_wrong_shape"       // JSON, but not metadata
	CodeFormatVersion     Code = "format_version_unsupported" // written by a later format
	CodePathOutside       Code = "path_outside_snapshot"      // a recorded path leads out of the snapshot
	CodeManifestMissing   Code = "manifest_missing"           // no SHA256SUMS, although the format has one
	CodeManifestNotFile   Code = "manifest_not_a_file"        // SHA256SUMS is a link, directory, ...
	CodeManifestMalformed Code = "manifest_malformed"         // a line of SHA256SUMS is not as the format says
	CodeFileMissing       Code = "file_missing"               // in the manifest, not in the snapshot
	CodeFileChanged       Code = "file_changed"               // its bytes are not those of the manifest
	CodeFileUnknown       Code = "file_unknown"               // in the snapshot, not in the manifest
	CodeFileNotRegular    Code = "file_not_regular"           // a link, FIFO, device, ..., or a live database's own file
	CodeDBSize            Code = "db_size_mismatch"           // not the recorded size
	CodeDBSidecar         Code = "db_sidecar_present"         // a -wal or -journal lies beside the database copy
	CodeDBForm            Code = "db_not_in_rollback_form"    // the copy would need a -wal to be read
	CodeChromaFiles       Code = "chroma_files_mismatch"      // not the recorded number of files
	CodeChromaBytes       Code = "chroma_bytes_mismatch"      // not the recorded number of bytes
	CodeChromaDBCheck     Code = "chroma_db_check_failed"     // a row of PRAGMA quick_check on chroma.sqlite3
	CodeTooManyProblems   Code = "too_many_problems"          // the list is cut here
)

// maxProblems bounds a report.
const maxProblems = 1000

// Problem is one reason not to trust a snapshot.
type Problem struct {
	Code Code
	// Path is the file, relative to the snapshot's directory with slashes. It
	// is empty if the problem does not concern a single file.
	Path string
	// Detail explains the problem, in words that may change. It may be empty.
	Detail string
}

// String returns the form that the JSON report uses: the code, followed by
// ": " and the path, and ": " and the detail, where they are set.
func (p Problem) String() string {
	parts := []string{string(p.Code)}
	for _, s := range []string{p.Path, p.Detail} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// addProblem appends a problem. Beyond maxProblems it appends one more that
// says so, and nothing after that.
func addProblem(problems []Problem, code Code, path, detail string) []Problem {
	switch {
	case len(problems) < maxProblems:
		return append(problems, Problem{code, path, oneLine(detail)})
	case len(problems) == maxProblems:
		return append(problems, Problem{Code: CodeTooManyProblems})
	}
	return problems
}

// oneLine replaces control characters by spaces, because a detail may quote
// untrusted bytes.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// Report is the result of validating a snapshot.
type Report struct {
	Stamp  string
	Path   string // the snapshot's directory
	Exists bool   // whether there is such a directory
	DBOK   bool   // whether the database copy passed every check
	// RegistryOK and ChromaOK report the same for the other two parts. They
	// are nil if the snapshot records no such part.
	RegistryOK, ChromaOK *bool
	// Problems lists everything that is wrong, at most 1,000 entries and one
	// that says that there are more.
	Problems []Problem
	// Metadata is what the snapshot records about itself. It is nil if it
	// could not be read.
	Metadata *Metadata
	// Valid reports whether every check ran and passed.
	Valid bool

	raw string // the metadata's JSON
}

// MarshalJSON returns the Python module's form, in which problems are strings
// under "errors".
func (r Report) MarshalJSON() ([]byte, error) {
	metadata, err := rawMetadata(r.Metadata, r.raw)
	if err != nil {
		return nil, err
	}
	problems := make([]pyjson.String, len(r.Problems))
	for i, p := range r.Problems {
		problems[i] = pyjson.String(p.String())
	}
	return pyjson.Marshal(struct {
		Stamp      pyjson.String   `json:"stamp"`
		Path       pyjson.String   `json:"path"`
		Exists     bool            `json:"exists"`
		DBOK       bool            `json:"db_ok"`
		RegistryOK *bool           `json:"registry_ok"`
		ChromaOK   *bool           `json:"chroma_ok"`
		Errors     []pyjson.String `json:"errors"`
		Metadata   json.RawMessage `json:"metadata"`
		Valid      bool            `json:"valid"`
	}{
		pyjson.String(r.Stamp), pyjson.String(r.Path), r.Exists, r.DBOK, r.RegistryOK, r.ChromaOK,
		problems, json.RawMessage(metadata), r.Valid,
	})
}

// RestoreResult describes a restore that succeeded.
type RestoreResult struct {
	// Stamp is the snapshot that was restored.
	Stamp string
	// SafetyStamp is the snapshot that was taken of the store before. It is
	// empty if there was no store, or if the old parts are in SetAside.
	SafetyStamp string
	// SetAside lists the directories with what was moved out of the way and is
	// in no snapshot: the old parts of a store of which no snapshot could be
	// taken, or what somebody wrote to a store that was half restored. The
	// caller may remove them.
	SetAside []string
	// DatabasePath, RegistryPath and ChromaPath are where the parts were put.
	// They are empty for parts that the snapshot does not have; those were left
	// alone.
	DatabasePath, RegistryPath, ChromaPath string
	// Files and Bytes count what was restored.
	Files, Bytes int64
	// Recovered reports what became of an earlier restore that had been
	// interrupted: it was "finished" or "undone" before this one began. It is
	// empty if there was none. RecoveredStamp is the snapshot of that restore.
	Recovered, RecoveredStamp string
}

// MarshalJSON returns the form that the command prints.
func (r RestoreResult) MarshalJSON() ([]byte, error) {
	setAside := make([]pyjson.String, len(r.SetAside))
	for i, path := range r.SetAside {
		setAside[i] = pyjson.String(path)
	}
	return pyjson.Marshal(struct {
		Stamp        pyjson.String   `json:"stamp"`
		SafetyStamp  pyjson.String   `json:"safety_stamp"`
		SetAside     []pyjson.String `json:"set_aside"`
		DatabasePath pyjson.String   `json:"db_path"`
		RegistryPath pyjson.String   `json:"registry_path"`
		ChromaPath   pyjson.String   `json:"chroma_path"`
		Files        int64           `json:"files"`
		Bytes        int64           `json:"bytes"`
		Recovered    pyjson.String   `json:"recovered"`
		OfStamp      pyjson.String   `json:"recovered_stamp"`
	}{
		pyjson.String(r.Stamp), pyjson.String(r.SafetyStamp), setAside,
		pyjson.String(r.DatabasePath), pyjson.String(r.RegistryPath), pyjson.String(r.ChromaPath),
		r.Files, r.Bytes, pyjson.String(r.Recovered), pyjson.String(r.RecoveredStamp),
	})
}
