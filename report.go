package backup

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

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

// findingCodes are the objections of a check to content. If the bytes are what
// was backed up, they were in the live store.
var findingCodes = []Code{CodeDBIntegrity, CodeDBOpen, CodeRegistryInvalidJSON, CodeChromaDBCheck}

// Problem is one reason not to trust a snapshot.
type Problem struct {
	Code Code
	// Path is the file, relative to the snapshot's directory with slashes. It
	// is empty if the problem does not concern a single file.
	Path string
	// Detail explains the problem, in words that may change. It may be empty.
	Detail string
	// Finding reports that this is not damage: SQLite, or the JSON check of the
	// registry, objects to the content, and nothing in the report shows that
	// the content changed since it was backed up. If the report says that the
	// snapshot is intact, the objection was in the live store.
	Finding bool
}

// String returns the form that the JSON report uses: the code, followed by
// ": " and the path, and ": " and the detail, where they are set.
func (p Problem) String() string { return joinParts(string(p.Code), p.Path, p.Detail) }

// Note is something that could not be checked here, or that a virtual table
// says of itself. It is no reason not to trust a snapshot.
type Note struct {
	// Path is the file, relative to the snapshot's directory with slashes.
	Path string
	// Detail says what was not checked and why, with SQLite's message, in words
	// that may change.
	Detail string
}

// String returns the path and the detail, separated by ": ".
func (n Note) String() string { return joinParts(n.Path, n.Detail) }

func joinParts(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ": ")
}

// Report is the result of validating a snapshot. It answers three questions:
// whether the snapshot is intact, what the checks found, and what could not be
// checked.
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
	// Notes lists what could not be checked here. A snapshot with notes can be
	// valid.
	Notes []Note
	// Metadata is what the snapshot records about itself. It is nil if it
	// could not be read.
	Metadata *Metadata
	// Intact reports that every byte is what CreateRuntimeBackup wrote, and
	// that metadata, manifest and files agree. It is false for a snapshot
	// without a manifest (the Python module's), because nothing proves it.
	Intact bool
	// Valid reports whether every check ran and passed.
	Valid bool
	// Cost is what the checks cost.
	Cost Cost

	raw string // the metadata's JSON, unless it is that of Metadata
}

// reportJSON is the form of a report in JSON. The Python module has the names
// up to valid, with problems as strings under "errors".
type reportJSON struct {
	Stamp      pyjson.String   `json:"stamp"`
	Path       pyjson.String   `json:"path"`
	Exists     bool            `json:"exists"`
	DBOK       bool            `json:"db_ok"`
	RegistryOK *bool           `json:"registry_ok"`
	ChromaOK   *bool           `json:"chroma_ok"`
	Errors     []pyjson.String `json:"errors"`
	Metadata   json.RawMessage `json:"metadata"`
	Valid      bool            `json:"valid"`
	Intact     bool            `json:"intact"`
	Findings   []pyjson.String `json:"findings"`
	Notes      []pyjson.String `json:"notes"`
	Details    reportDetails   `json:"details"`
	Cost       Cost            `json:"cost"`
}

// reportDetails has the typed form of what reportJSON has as strings.
type reportDetails struct {
	Problems []problemJSON `json:"problems"`
	Notes    []noteJSON    `json:"notes"`
}

type problemJSON struct {
	Code    pyjson.String `json:"code"`
	Path    pyjson.String `json:"path"`
	Detail  pyjson.String `json:"detail"`
	Finding bool          `json:"finding"`
}

type noteJSON struct {
	Path   pyjson.String `json:"path"`
	Detail pyjson.String `json:"detail"`
}

// MarshalJSON returns the Python module's form, in which problems are strings
// under "errors", with more names after its own.
func (r Report) MarshalJSON() ([]byte, error) {
	out := reportJSON{
		pyjson.String(r.Stamp), pyjson.String(r.Path), r.Exists, r.DBOK, r.RegistryOK, r.ChromaOK,
		[]pyjson.String{}, rawMetadata(r.Metadata, r.raw), r.Valid, r.Intact, []pyjson.String{}, []pyjson.String{},
		reportDetails{[]problemJSON{}, []noteJSON{}}, r.Cost,
	}
	for _, p := range r.Problems {
		text := pyjson.String(p.String())
		out.Errors = append(out.Errors, text)
		if p.Finding {
			out.Findings = append(out.Findings, text)
		}
		out.Details.Problems = append(out.Details.Problems,
			problemJSON{pyjson.String(p.Code), pyjson.String(p.Path), pyjson.String(p.Detail), p.Finding})
	}
	for _, n := range r.Notes {
		out.Notes = append(out.Notes, pyjson.String(n.String()))
		out.Details.Notes = append(out.Details.Notes, noteJSON{pyjson.String(n.Path), pyjson.String(n.Detail)})
	}
	return pyjson.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes. In a report of the Python module,
// which has no details, what follows the code of a problem is its Detail.
func (r *Report) UnmarshalJSON(data []byte) error {
	var in reportJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*r = Report{
		Stamp: string(in.Stamp), Path: string(in.Path), Exists: in.Exists, DBOK: in.DBOK, RegistryOK: in.RegistryOK,
		ChromaOK: in.ChromaOK, Valid: in.Valid, Intact: in.Intact, Cost: in.Cost,
	}
	r.Metadata, r.raw = foreignMetadata(in.Metadata)
	for _, p := range in.Details.Problems {
		r.Problems = append(r.Problems, Problem{Code(p.Code), string(p.Path), string(p.Detail), p.Finding})
	}
	if len(r.Problems) == 0 {
		for _, text := range in.Errors {
			code, detail, _ := strings.Cut(string(text), ": ")
			r.Problems = append(r.Problems, Problem{Code: Code(code), Detail: detail})
		}
	}
	for _, n := range in.Details.Notes {
		r.Notes = append(r.Notes, Note{string(n.Path), string(n.Detail)})
	}
	return nil
}

// RestoreResult describes a restore that succeeded.
type RestoreResult struct {
	// Stamp is the snapshot that was restored.
	Stamp string
	// SafetyStamp is the snapshot that was taken of the store before. It is
	// empty if there was no store, if nothing had to be replaced, or if the old
	// parts are in SetAside.
	SafetyStamp string
	// SetAside lists the directories with what was moved out of the way and is
	// in no snapshot: the old parts of a store of which no snapshot could be
	// taken, or which was in use after it had been (see Options.Offline), or what somebody wrote to a store that was half restored. The
	// caller may remove them.
	SetAside []string
	// DatabasePath, RegistryPath and ChromaPath are where the parts are that have
	// the snapshot's content now. They are empty for parts that the snapshot does
	// not have, or that Options.Parts leaves out; those were left alone.
	DatabasePath, RegistryPath, ChromaPath string
	// Files and Bytes count what was put in place.
	Files, Bytes int64
	// Recovered reports what became of an earlier restore that had been
	// interrupted: it was "finished" or "undone" before this one began. It is
	// empty if there was none. RecoveredStamp is the snapshot of that restore.
	Recovered, RecoveredStamp string
	// Parts says what happened to each part.
	Parts []RestorePart
	// Mixed reports that Options.Parts left out a part that the snapshot has: the
	// store is a mixture of two points in time.
	Mixed bool
	// Cost is what the call cost, with the validation and the safety snapshot.
	Cost Cost
}

// setParts records what happened to the parts.
func (r *RestoreResult) setParts(parts []RestorePart) {
	r.Parts = parts
	for _, p := range parts {
		switch {
		case p.Action == ActionLeaveOut:
			r.Mixed = true
		case p.Action == ActionAbsent:
		case p.Part == PartDatabase:
			r.DatabasePath = p.Path
		case p.Part == PartRegistry:
			r.RegistryPath = p.Path
		case p.Part == PartChroma:
			r.ChromaPath = p.Path
		}
	}
}

// restoreJSON is the form of a RestoreResult in JSON.
type restoreJSON struct {
	Stamp          pyjson.String   `json:"stamp"`
	SafetyStamp    pyjson.String   `json:"safety_stamp"`
	SetAside       []pyjson.String `json:"set_aside"`
	DatabasePath   pyjson.String   `json:"db_path"`
	RegistryPath   pyjson.String   `json:"registry_path"`
	ChromaPath     pyjson.String   `json:"chroma_path"`
	Files          int64           `json:"files"`
	Bytes          int64           `json:"bytes"`
	Recovered      pyjson.String   `json:"recovered"`
	RecoveredStamp pyjson.String   `json:"recovered_stamp"`
	Parts          []RestorePart   `json:"parts"`
	Mixed          bool            `json:"mixed"`
	Cost           Cost            `json:"cost"`
}

// MarshalJSON returns the form that the command prints.
func (r RestoreResult) MarshalJSON() ([]byte, error) {
	return pyjson.Marshal(restoreJSON{
		pyjson.String(r.Stamp), pyjson.String(r.SafetyStamp), pyStrings(r.SetAside),
		pyjson.String(r.DatabasePath), pyjson.String(r.RegistryPath), pyjson.String(r.ChromaPath),
		r.Files, r.Bytes, pyjson.String(r.Recovered), pyjson.String(r.RecoveredStamp),
		append([]RestorePart{}, r.Parts...), r.Mixed, r.Cost,
	})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *RestoreResult) UnmarshalJSON(data []byte) error {
	var in restoreJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*r = RestoreResult{
		string(in.Stamp), string(in.SafetyStamp), goStrings(in.SetAside),
		string(in.DatabasePath), string(in.RegistryPath), string(in.ChromaPath),
		in.Files, in.Bytes, string(in.Recovered), string(in.RecoveredStamp),
		append([]RestorePart(nil), in.Parts...), in.Mixed, in.Cost,
	}
	return nil
}

// RestorePart says what a restore does, or did, with one part of the store.
type RestorePart struct {
	// Part is PartDatabase, PartRegistry or PartChroma, and Path where it is.
	Part   Parts
	Path   string
	Action RestoreAction
	// Owners are the users and groups to whom what was put in place belongs, by
	// their numbers, "1000:1000". There are none if nothing was, where the system
	// has none, and in a plan.
	Owners []string
	// NotKept says what could not be kept of the files that were replaced: the
	// owners, or extended attributes and ACLs, with the first file and the reason.
	NotKept []string
}

// RestoreAction is what a restore does with a part.
type RestoreAction string

// The actions of a restore.
const (
	ActionCreate    RestoreAction = "create"    // nothing is in its place
	ActionReplace   RestoreAction = "replace"   // another one takes its place
	ActionOverwrite RestoreAction = "overwrite" // it is a file that is mounted alone: its content is replaced
	ActionEqual     RestoreAction = "equal"     // it has the snapshot's content already, and is not touched
	ActionLeaveOut  RestoreAction = "leave_out" // Options.Parts leaves it out
	ActionAbsent    RestoreAction = "absent"    // the snapshot does not have it, so it is left alone
)

// restorePartJSON is the form of a RestorePart in JSON.
type restorePartJSON struct {
	Part    pyjson.String   `json:"part"`
	Path    pyjson.String   `json:"path"`
	Action  pyjson.String   `json:"action"`
	Owners  []pyjson.String `json:"owners"`
	NotKept []pyjson.String `json:"not_kept"`
}

// MarshalJSON returns the form that the command prints.
func (p RestorePart) MarshalJSON() ([]byte, error) {
	return pyjson.Marshal(restorePartJSON{
		pyjson.String(p.Part.String()), pyjson.String(p.Path), pyjson.String(p.Action), pyStrings(p.Owners), pyStrings(p.NotKept),
	})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (p *RestorePart) UnmarshalJSON(data []byte) error {
	var in restorePartJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*p = RestorePart{Path: string(in.Path), Action: RestoreAction(in.Action), Owners: goStrings(in.Owners), NotKept: goStrings(in.NotKept)}
	for part := PartDatabase; part <= PartChroma; part <<= 1 {
		if slices.Contains(strings.Split(string(in.Part), ","), part.String()) {
			p.Part |= part
		}
	}
	return nil
}

// pyStrings returns texts as JSON strings in ASCII; never nil.
func pyStrings(texts []string) []pyjson.String {
	out := make([]pyjson.String, len(texts))
	for i, text := range texts {
		out[i] = pyjson.String(text)
	}
	return out
}

// goStrings is the inverse of pyStrings, but for an empty list, which is nil.
func goStrings(texts []pyjson.String) (out []string) {
	for _, text := range texts {
		out = append(out, string(text))
	}
	return out
}

// pruneJSON is the form of a PruneResult in JSON.
type pruneJSON struct {
	Kept    []keptJSON      `json:"kept"`
	Removed []pyjson.String `json:"removed"`
	Never   []pyjson.String `json:"never_verified"`
	Skipped []skippedJSON   `json:"skipped"`
	Remains []remnantJSON   `json:"remains"`
	DryRun  bool            `json:"dry_run"`
	Cost    Cost            `json:"cost"`
}

type keptJSON struct {
	Stamp     pyjson.String   `json:"stamp"`
	CreatedAt pyjson.Time     `json:"created_at"`
	Reasons   []pyjson.String `json:"reasons"`
}

type skippedJSON struct {
	Stamp  pyjson.String `json:"stamp"`
	Reason pyjson.String `json:"reason"`
}

type remnantJSON struct {
	Path   pyjson.String `json:"path"`
	Reason pyjson.String `json:"reason"`
}

// MarshalJSON returns the form that the command prints.
func (r PruneResult) MarshalJSON() ([]byte, error) {
	out := pruneJSON{[]keptJSON{}, pyStrings(r.Removed), pyStrings(r.NeverVerified), []skippedJSON{}, []remnantJSON{}, r.DryRun, r.Cost}
	for _, k := range r.Kept {
		out.Kept = append(out.Kept, keptJSON{pyjson.String(k.Stamp), pyjson.Time(k.CreatedAt), pyStrings(k.Reasons)})
	}
	for _, s := range r.Skipped {
		out.Skipped = append(out.Skipped, skippedJSON{pyjson.String(s.Stamp), pyjson.String(s.Reason)})
	}
	for _, x := range r.Remains {
		out.Remains = append(out.Remains, remnantJSON{pyjson.String(x.Path), pyjson.String(x.Reason)})
	}
	return pyjson.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *PruneResult) UnmarshalJSON(data []byte) error {
	var in pruneJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*r = PruneResult{Removed: goStrings(in.Removed), NeverVerified: goStrings(in.Never), DryRun: in.DryRun, Cost: in.Cost}
	for _, k := range in.Kept {
		r.Kept = append(r.Kept, KeptSnapshot{string(k.Stamp), time.Time(k.CreatedAt).UTC(), goStrings(k.Reasons)})
	}
	for _, s := range in.Skipped {
		r.Skipped = append(r.Skipped, SkippedSnapshot{string(s.Stamp), string(s.Reason)})
	}
	for _, x := range in.Remains {
		r.Remains = append(r.Remains, Remnant{string(x.Path), string(x.Reason)})
	}
	return nil
}
