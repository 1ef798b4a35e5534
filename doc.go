// Package backup takes snapshots of an AtoCore machine store while the service
// that owns it keeps running. It also lists, validates, restores and prunes
// them.
//
// A machine store is a SQLite database, a project-registry JSON file and a
// Chroma vector-store directory. A snapshot is one plain directory,
// BackupDir/snapshots/<stamp>, that holds a copy of each, a metadata file and
// the SHA-256 of every file; docs/format.md describes it byte by byte.
//
// # Caveats
//
// Consistency between the database and the Chroma directory comes from the
// ingestion guard, which the host supplies as a [Locker]. A writer that ignores
// the guard is detected if it changes a file's size or times during the copy
// ([ErrSourceChanged]). This is a tripwire and not a lock.
//
// SQLite's locks belong to the process, not to a connection: if any part of a
// process closes a descriptor of a database file, that drops the locks of all
// other parts (sqlite.org/howtocorrupt.html, section 2.2). This package never
// does so, but it opens the database with modernc.org/sqlite. A host that has
// the database open through another SQLite library in the same process must
// pass its handle in Options.DB, or write the copy itself in Options.Capture;
// docs/hosts.md has code for several drivers.
//
// Keep store and backups on local disks of Linux. The package also builds on
// macOS and Windows and does what those systems allow, but it is not tested
// there, and on Windows a restore over an existing store does not work.
//
// # Creating
//
// [CreateRuntimeBackup] captures the store into a staging directory beside
// snapshots/, hashes and syncs it, and publishes it with one rename. At every
// instant a snapshot is therefore either complete or invisible: after an error,
// a cancelled context, a full disk, a panic in a callback or a kill, there is
// no snapshot. Nothing is overwritten. When CreateRuntimeBackup returns without
// an error, the snapshot survives a power cut.
//
// The database copy is the state at one moment. A read transaction preserves
// that moment: writers of a WAL database continue meanwhile and its WAL grows;
// writers of a rollback-journal database wait. The guard is held while the
// store is being copied, and released before anything is hashed or synced. A
// database that is busy is waited for without the guard.
//
// The live store is only read: no WAL is checkpointed. A database that its users
// have open by another name, beside which their WAL is, is refused where that can
// be told; so is a journal in use.
//
// # Validating
//
// [ValidateBackup] compares every byte with the manifest, runs SQLite's checks
// on the databases and compares the files with the metadata. It fails closed:
// only a nil error means that every check that can be made here ran and passed.
// With Options.Verify, a create does the same to the snapshot that it made.
//
// The report answers three questions. A snapshot is intact if every byte is what
// was backed up; anything else is damage, which is never restored. A finding is
// what SQLite, or the JSON check of the registry, objects to although nothing
// shows damage: it was in the live store, and Options.DespiteFindings restores
// it. A note is what could not be checked here, for example an index with a
// collation of the host, and is no reason against the snapshot; see
// Options.Connect.
//
// The last verdict, protection from prunes and a note of the host's are kept in
// BackupDir/records, beside the snapshots, because a snapshot never changes. They
// are never required.
//
// The hashes are taken of the copy, or of the bytes that were just written to
// it. They prove that the copy has not changed since. They cannot prove that
// the disk returned the right bytes when the source was read, and they are not
// signatures: anyone who can change a snapshot can change its hashes.
//
// # Restoring
//
// [RestoreRuntimeBackup] puts a snapshot back while nobody has the store open. A
// service that sets [Options.Offline] has it open until right before the swap.
// It validates the snapshot first, takes a snapshot of the present store, and
// exchanges all parts that differ or none: a journal beside the database lets the next call
// finish or undo a restore that was interrupted, and until then every function
// returns [ErrRestoreUnfinished]. Neither deletes what somebody has written to
// the store meanwhile; what is in the way is moved to directories that the
// result names. A restore that fails leaves nothing behind. If the paths are
// empty, a restore makes a copy of the store there, which serves as a drill.
// docs/restore.md is the guide for the person who has to restore a store.
//
// [LatestRuntimeBackup] returns the snapshot that a restore should take.
//
// [PruneRuntimeBackups] removes old snapshots by the retention rules of restic.
// It never removes the newest one, the newest one that was found valid, or one
// that [ProtectRuntimeBackup] protects.
//
// Several stores may share a backup directory. A snapshot records the path of its
// database and its host, and these calls look at the snapshots of one store only;
// a restore refuses those of another store unless Options.FromOtherStore is set.
//
// # Moving and removing
//
// [ExportRuntimeBackup] writes a snapshot to a tar archive and
// [ImportRuntimeBackup] reads one, each comparing every byte with the hashes, so
// that a snapshot can be kept elsewhere. [HoldRuntimeBackup] keeps one from being
// removed while a host reads its files. [ValidateDir] checks the directory of a
// snapshot wherever it is. [RemoveRuntimeBackup] removes one snapshot, and
// refuses if it may be needed.
//
// # Errors
//
// These are the errors that a caller can act on, in an order in which to test
// for them with errors.Is, because some errors match several, and the HTTP
// status that suits each. Any other error is of the system, or of a function of
// the host, and names the step and the path.
//
//	error                 what to do                                                    HTTP
//	ErrPanic              mend the function of the host that panicked                   500
//	ErrInvalidOptions     mend the options; the error names each fault                  400
//	ErrRestoreUnfinished  keep the store stopped; restore again with the same paths     503
//	ErrBusy               try again when the other call has ended                       409
//	ErrNoSnapshot         list the snapshots; look at the stamp and the BackupDir       404
//	ErrSnapshotExists     nothing, if metadata are returned: the snapshot is there      409
//	ErrInvalidArchive     get the archive again; export it again                        422
//	ErrInvalidBackup      read the report; take another snapshot, or DespiteFindings    422
//	ErrProtected          do what the error says first, or keep the snapshot            409
//	ErrOtherStore         look at DatabasePath and Host; set FromOtherStore to restore  409
//	ErrDatabaseInUse      stop the users of the database; try again                     409
//	ErrCannotReplace      make the place writable; or restore the other Parts           409
//	ErrSourceChanged      try again; make the writers take the guard                    503
//	ErrSourceInvalid      mend the source that the error names                          500
//	ErrUnsupportedFile    remove the file that the error names from the source          500
//	ErrNoSpace            make space, by a prune for example; try again                 507
//	ErrCrossDevice        put BackupDir and its snapshots on one file system            500
//	context.Canceled      nothing; the caller ended the call                            499
//	context.DeadlineExceeded  try again, with more time                                 504
//
// # Untrusted input
//
// Stamps, metadata, manifests, records and the trees of snapshots are treated as
// untrusted. No link in a snapshot is followed, nothing outside a snapshot is
// opened, and the amount of data read from any one file into memory is bounded.
//
// # Interchange
//
// The Python AtoCore module lists and validates these snapshots, and this
// package lists and validates snapshots of that module. Both use the same JSON
// names.
package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/pyjson"
	"github.com/atocore/backup/internal/restorer"
)

// Errors that a caller can act on. Match them with errors.Is. Conditions of
// single files match fs.ErrNotExist, fs.ErrPermission and so on, and
// errors.As finds the *fs.PathError. If ctx ended, the error matches
// context.Canceled or context.DeadlineExceeded.
var (
	// ErrInvalidOptions: the call cannot work with these Options. The error
	// names every fault. Nothing was done.
	ErrInvalidOptions = errdefs.ErrInvalidOptions

	// ErrNoSnapshot is returned by every call that takes a stamp if there is no
	// snapshot of that name, or no backup directory, and by LatestRuntimeBackup
	// if no snapshot qualifies. It also matches fs.ErrNotExist. A call that
	// validates the snapshot returns a report, too, and its error matches
	// ErrInvalidBackup as well: nothing is there that could be trusted.
	ErrNoSnapshot = errdefs.ErrNoSnapshot

	// ErrInvalidBackup is returned for a snapshot that must not be trusted: by
	// ValidateBackup and ValidateDir together with the report, by
	// RestoreRuntimeBackup, ExportRuntimeBackup and ImportRuntimeBackup, and by
	// CreateRuntimeBackup with Options.Verify together with the metadata. In
	// each case errors.As finds an *InvalidBackupError with the report.
	ErrInvalidBackup = errdefs.ErrInvalidBackup

	// ErrInvalidArchive is returned by ImportRuntimeBackup for input that is not
	// a whole archive of ExportRuntimeBackup: something else, compressed, cut
	// off, changed, or with anything in it that a snapshot does not have.
	// Nothing is left of it.
	ErrInvalidArchive = errdefs.ErrInvalidArchive

	// ErrSnapshotExists is returned by ImportRuntimeBackup if the backup
	// directory has a snapshot of the archive's stamp. If it is the same one, the
	// call also returns its metadata. It also matches fs.ErrExist. Nothing was
	// changed.
	ErrSnapshotExists = errdefs.ErrSnapshotExists

	// ErrProtected is returned by RemoveRuntimeBackup for a snapshot that it does
	// not remove; the error says why. Nothing was done.
	ErrProtected = errdefs.ErrProtected

	// ErrSourceChanged is returned by CreateRuntimeBackup if the registry or a
	// file of the Chroma directory kept changing while it was read, so the
	// ingestion guard did not keep every writer out; or if another file took
	// the database's place. Nothing was published; trying again is safe.
	ErrSourceChanged = errdefs.ErrSourceChanged

	// ErrSourceInvalid is returned by CreateRuntimeBackup if a source file
	// cannot be backed up as what it should be: a database file that is empty
	// or not an SQLite database, one that is reached by another name than its
	// users', a file of Options.Capture that is not a copy, or a registry of more
	// than 16 MiB.
	ErrSourceInvalid = errdefs.ErrSourceInvalid

	// ErrUnsupportedFile is returned by CreateRuntimeBackup if the Chroma
	// directory contains a symbolic link, FIFO, socket or device, a mount
	// point, a hard link to the live database, or a file whose path exceeds a
	// manifest line of 64 KiB. The error names it.
	ErrUnsupportedFile = errdefs.ErrUnsupportedFile

	// ErrNoSpace is returned by CreateRuntimeBackup if the file system of
	// BackupDir is too full for the snapshot, before anything is copied. A
	// disk that fills up later is reported as syscall.ENOSPC.
	ErrNoSpace = errdefs.ErrNoSpace

	// ErrCrossDevice is returned by CreateRuntimeBackup if
	// BackupDir/snapshots is on another file system than BackupDir, so that no
	// single rename can publish a snapshot.
	ErrCrossDevice = errdefs.ErrCrossDevice

	// ErrRestoreUnfinished is returned by every function while the store is
	// half restored: a restore was interrupted by a kill or a power cut, or
	// could not be undone after it had failed. RestoreRuntimeBackup with the
	// same paths finishes or undoes it. ListRuntimeBackups and ValidateBackup
	// return their result together with it.
	ErrRestoreUnfinished = errdefs.ErrRestoreUnfinished

	// ErrBusy is returned by RestoreRuntimeBackup while a create, an import, a
	// prune or another restore is using the same backup directory, by these calls
	// beside a restore of the store that is running, and by RemoveRuntimeBackup
	// also while somebody validates, restores or exports the snapshot. All but the
	// last are waited for first, if Options.Wait is set. Nothing was done.
	ErrBusy = errdefs.ErrBusy

	// ErrDatabaseInUse is returned by RestoreRuntimeBackup while somebody has
	// the live database open; nothing was replaced. CreateRuntimeBackup returns
	// it if the database could not be read for Options.Wait, or if its users lock
	// it in a way that SQLite here does not see; nothing was made.
	ErrDatabaseInUse = errdefs.ErrDatabaseInUse

	// ErrCannotReplace is returned by RestoreRuntimeBackup if a part of the store
	// differs from the snapshot and can't be replaced: it is on a read-only mount,
	// immutable, or in a directory in which nothing may be created. The error
	// names every such part, and what Options.Parts would have to be to restore the
	// others. Nothing was done.
	ErrCannotReplace = errors.New("a part of the store cannot be replaced")

	// ErrOtherStore is returned by RestoreRuntimeBackup for a snapshot of another
	// store than the one that it would replace, unless Options.FromOtherStore is
	// set, and by RemoveRuntimeBackup for one of another store than
	// Options.DatabasePath. Nothing was done.
	ErrOtherStore = errors.New("the snapshot is of another store")

	// ErrPanic is returned if a function of the host (InitDB, Capture, Locker,
	// Confirm, OnProgress, Clock, Logger) panicked, or the writer or reader of an
	// archive. The error carries the value and the stack. Everything was released and removed, as after any other error.
	// (A panic of the Logger at the message that a snapshot was created, or
	// restored, is ignored.)
	ErrPanic = errdefs.ErrPanic
)

// wrapStep adds the step that failed and its path to err. The path is left out
// if err names one itself.
func wrapStep(what, path string, err error) error {
	var pathErr *fs.PathError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &pathErr):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %s: %w", what, path, err)
}

// wrapCall, deferred, adds to an error which call failed.
func wrapCall(err *error, call string, args ...any) {
	if *err != nil {
		*err = fmt.Errorf(call+": %w", append(args, *err)...)
	}
}

// wrapJournal adds to err that the journal of a restore could not be written.
func wrapJournal(err error) error { return wrapStep("write journal", restorer.JournalName, err) }

// joinInLine joins errors with "; ", because a problem's detail is one line.
func joinInLine(errs []error) error {
	joined := errs[0]
	for _, err := range errs[1:] {
		joined = fmt.Errorf("%w; %w", joined, err)
	}
	return joined
}

// cannotReplace returns the ErrCannotReplace for a restore that meets these
// obstacles, with the way out.
func (r *restore) cannotReplace(obstacles []restorer.Obstacle) error {
	rest := r.parts
	var reasons []error
	for _, o := range obstacles {
		part := partCalled(o.Part)
		rest &^= part
		what := map[Parts]string{
			PartDatabase: "the database " + r.DatabasePath, PartRegistry: "the registry " + r.RegistryPath, PartChroma: "the Chroma directory " + r.ChromaPath,
		}[part]
		if part == 0 { // the journal of any restore
			what, rest = "the directory of the database, in which a restore keeps its journal", 0
		}
		reasons = append(reasons, fmt.Errorf("%s: %w", what, o.Err))
	}
	way := "; nothing was touched"
	if rest != 0 {
		way += fmt.Sprintf("; to restore the rest, set Parts to %s (restore --only %s)", rest, rest)
	}
	return fmt.Errorf("%w: %w%s", ErrCannotReplace, joinInLine(reasons), way)
}

// reasonIn returns an error's text, with the name of a file below the directory
// dir and without other paths.
func reasonIn(dir string, err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		if below, ok := strings.CutPrefix(pathErr.Path, dir+string(filepath.Separator)); ok {
			return below + ": " + pathErr.Err.Error()
		}
	}
	return fsat.Cause(err)
}

// maxDetail bounds one detail, which may quote untrusted bytes.
const maxDetail = 1 << 10

// addProblem appends a problem. Beyond maxProblems it appends one more that
// says so, and nothing after that.
func addProblem(problems []Problem, code Code, path, detail string) []Problem {
	switch {
	case len(problems) < maxProblems:
		return append(problems, Problem{Code: code, Path: path, Detail: oneLine(detail)})
	case len(problems) == maxProblems:
		return append(problems, Problem{Code: CodeTooManyProblems})
	}
	return problems
}

// oneLine replaces control characters by spaces and cuts what is too long,
// because a detail may quote untrusted bytes.
func oneLine(s string) string {
	if len(s) > maxDetail {
		s = strings.ToValidUTF8(s[:maxDetail], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// Progress describes how far a call has come. Fields may be added.
//
// The first report of each phase is made when it begins, and the last one at the
// latest when the next phase begins. Of the reports between, at most one is made
// in 50 ms of Options.Clock; all are made if that clock stands still, as in tests.
// If a call made any and succeeds, the last one has Share 1. A host that panics in
// it changes nothing any more; the panic is logged.
type Progress struct {
	// Phase is the part of the call that is running.
	Phase Phase `json:"phase"`
	// Path is the file or directory being worked on; it may be empty.
	Path string `json:"path"`
	// Files and TotalFiles count files within the phase. TotalFiles is 0
	// while the total is unknown.
	Files      int64 `json:"files"`
	TotalFiles int64 `json:"total_files"`
	// Bytes and TotalBytes count bytes within the phase. TotalBytes is 0
	// while the total is unknown.
	Bytes      int64 `json:"bytes"`
	TotalBytes int64 `json:"total_bytes"`
	// Share is the part of the whole call that is done, from 0 to 1. It is an
	// estimate by the bytes that the call will read and write, so it is not a part
	// of the time. It never goes back, and it is 1 only in the last report of a call
	// that has done its work.
	Share float64 `json:"share"`
}

// MarshalJSON returns a JSON object in ASCII, as all results of this package are.
func (p Progress) MarshalJSON() ([]byte, error) {
	type fields Progress
	return pyjson.Marshal(struct {
		fields
		Phase pyjson.String `json:"phase"`
		Path  pyjson.String `json:"path"`
	}{fields(p), pyjson.String(p.Phase), pyjson.String(p.Path)})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (p *Progress) UnmarshalJSON(data []byte) error {
	type fields Progress
	var in struct {
		fields
		Phase pyjson.String `json:"phase"`
		Path  pyjson.String `json:"path"`
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*p = Progress(in.fields)
	p.Phase, p.Path = Phase(in.Phase), string(in.Path)
	return nil
}

// Phase names a part of a call. Each phase is reported at least once, when it
// begins. Phases may be added.
type Phase string

// The phases of creating a snapshot, in order, and then those of the other
// calls.
const (
	PhaseInit     Phase = "init"     // checking options, removing stale staging, InitDB
	PhaseWait     Phase = "wait"     // waiting for the database or the backup directory, at Path; only if it is busy, and again while it is
	PhaseGuard    Phase = "guard"    // waiting for the ingestion guard
	PhaseDatabase Phase = "database" // capturing the database
	PhaseRegistry Phase = "registry" // capturing the registry
	PhaseChroma   Phase = "chroma"   // capturing the Chroma directory
	PhaseSeal     Phase = "seal"     // putting the database copy into its final form
	PhaseHash     Phase = "hash"     // hashing the copies while they are written to disk
	PhaseSync     Phase = "sync"     // making everything durable
	PhasePublish  Phase = "publish"  // writing metadata and manifest, renaming

	PhasePrune Phase = "prune" // removing snapshots

	PhaseExport Phase = "export" // writing a snapshot to an archive
	PhaseImport Phase = "import" // reading an archive; then sync, validate_files, validate_database and publish

	PhaseCompare Phase = "compare" // finding out which parts of the live store differ from a snapshot
	PhaseOffline Phase = "offline" // calling Options.Offline
	PhaseStage   Phase = "stage"   // copying a snapshot beside the live store
	PhaseSwap    Phase = "swap"    // replacing the live store with it
	PhaseVerify  Phase = "verify"  // comparing what was restored with the snapshot

	PhaseValidateFiles    Phase = "validate_files"    // comparing files with the manifest
	PhaseValidateDatabase Phase = "validate_database" // SQLite's own checks
)
