package backup

import (
	"bytes"
	"fmt"
	"strings"
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

// Problem is one reason not to trust a snapshot.
type Problem struct {
	Code Code
	// Path is the file, relative to the snapshot's directory with slashes;
	// empty where the problem is not one file's.
	Path string
	// Detail says more, in words that may change; it may be empty.
	Detail string
}

// String gives the form of the JSON report: the code and, after ": ", the path
// and the detail.
func (p Problem) String() string {
	parts := []string{string(p.Code)}
	for _, s := range []string{p.Path, p.Detail} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// Report is what validating a snapshot found.
type Report struct {
	Stamp  string
	Path   string // the snapshot's directory
	Exists bool   // whether there is such a directory
	DBOK   bool   // whether the database copy passed every check
	// RegistryOK and ChromaOK tell the same of the other two; nil if the
	// snapshot records none.
	RegistryOK, ChromaOK *bool
	// Problems lists everything that is wrong, at most maxProblems of them.
	Problems []Problem
	// Metadata is what the snapshot records; nil if it could not be read.
	Metadata *Metadata
	// Valid: every check ran and passed.
	Valid bool

	raw string // the metadata's JSON
}

// MarshalJSON gives the Python module's form, in which problems are strings
// under "errors".
func (r Report) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"stamp":%s,"path":%s,"exists":%t,"db_ok":%t,"registry_ok":%s,"chroma_ok":%s,"errors":[`,
		quoteASCII(r.Stamp), quoteASCII(r.Path), r.Exists, r.DBOK, nullable(r.RegistryOK), nullable(r.ChromaOK))
	for i, p := range r.Problems {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(quoteASCII(p.String()))
	}
	raw, err := rawMetadata(r.Metadata, r.raw)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, `],"metadata":%s,"valid":%t}`, raw, r.Valid)
	return b.Bytes(), nil
}

func nullable(b *bool) string {
	if b == nil {
		return "null"
	}
	return fmt.Sprint(*b)
}
