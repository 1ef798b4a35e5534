package backup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
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

	// ErrInvalidBackup is returned for a snapshot that must not be trusted: by
	// ValidateBackup together with the report, by RestoreRuntimeBackup, and by
	// CreateRuntimeBackup with Options.Verify together with the metadata. In
	// each case errors.As finds an *InvalidBackupError with the report.
	ErrInvalidBackup = errdefs.ErrInvalidBackup

	// ErrSourceChanged is returned by CreateRuntimeBackup if the registry or a
	// file of the Chroma directory kept changing while it was read, so the
	// ingestion guard did not keep every writer out; or if another file took
	// the database's place. Nothing was published; trying again is safe.
	ErrSourceChanged = errdefs.ErrSourceChanged

	// ErrSourceInvalid is returned by CreateRuntimeBackup if a source file
	// cannot be backed up as what it should be: a database file that is empty
	// or not an SQLite database, one that is reached by another name than its
	// users', a file of Options.Capture that is not a copy, or a registry of more than 16 MiB.
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
	// return their result together with it. CreateRuntimeBackup and
	// PruneRuntimeBackups also return it beside a restore that is running;
	// they did nothing then.
	ErrRestoreUnfinished = errdefs.ErrRestoreUnfinished

	// ErrBusy is returned by RestoreRuntimeBackup while a create, a prune or
	// another restore is using the same backup directory. Nothing was done.
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
	// set. Nothing was done.
	ErrOtherStore = errors.New("the snapshot is of another store")

	// ErrPanic is returned if a function of the host (InitDB, Capture, Locker,
	// Confirm, OnProgress, Clock, Logger) panicked. The error carries the value and the
	// stack. Everything was released and removed, as after any other error.
	// (A panic of the Logger at the message that a snapshot was created, or
	// restored, is ignored.)
	ErrPanic = errdefs.ErrPanic
)

// wrapStep adds the step that failed and its path to err. The path is left out
// if err names one itself.
func wrapStep(what, path string, err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %s: %w", what, path, err)
}

// wrapJournal adds to err that the journal of a restore could not be written.
func wrapJournal(err error) error {
	if err == nil {
		return nil
	}
	return wrapStep("write journal", restorer.JournalName, err)
}

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
