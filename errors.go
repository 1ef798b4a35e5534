package backup

import "errors"

// Errors that a caller can act on. Match them with errors.Is. Conditions of
// single files match fs.ErrNotExist, fs.ErrPermission and so on, and
// errors.As finds the *fs.PathError; a done ctx matches context.Canceled or
// context.DeadlineExceeded.
var (
	// ErrInvalidOptions: Options cannot work. The error names every fault.
	// Nothing was done.
	ErrInvalidOptions = errors.New("invalid options")

	// ErrInvalidBackup is returned by ValidateBackup when the snapshot is not
	// to be trusted. The report that comes with it lists every problem.
	ErrInvalidBackup = errors.New("invalid backup")

	// ErrSourceChanged is returned by CreateRuntimeBackup when the registry or
	// a file of the Chroma directory kept changing while it was read: the
	// ingestion guard did not keep every writer out; or when another file took
	// the database's place. Nothing was published; trying again is safe.
	ErrSourceChanged = errors.New("source changed while it was copied")

	// ErrSourceInvalid is returned by CreateRuntimeBackup when what it was
	// given to copy cannot be what it is meant to be: a database file that is
	// empty or no SQLite database, or a registry that is not JSON. A snapshot
	// of it would never validate.
	ErrSourceInvalid = errors.New("source is not valid")

	// ErrUnsupportedFile is returned by CreateRuntimeBackup when the Chroma
	// directory contains a symbolic link, FIFO, socket or device, a mount
	// point, a hard link to the live database, or a file whose path takes more
	// than a manifest's line of 64 KiB. The error names it.
	ErrUnsupportedFile = errors.New("unsupported kind of file")

	// ErrNoSpace is returned by CreateRuntimeBackup when the file system of
	// BackupDir is too full for the snapshot to fit, before anything is
	// copied. A disk that fills up later gives syscall.ENOSPC.
	ErrNoSpace = errors.New("not enough space for the snapshot")

	// ErrCrossDevice is returned by CreateRuntimeBackup when
	// BackupDir/snapshots is on another file system than BackupDir, so that no
	// single rename can publish a snapshot.
	ErrCrossDevice = errors.New("snapshots are on another file system than the backup directory")

	// ErrRestoreUnfinished is returned by every function while the store is
	// half restored: a restore was cut off by a kill or a power cut, or could
	// not undo what it had begun. RestoreRuntimeBackup with the same paths
	// finishes or undoes it. ListRuntimeBackups and ValidateBackup return
	// their result with it. CreateRuntimeBackup and PruneRuntimeBackups return
	// it beside a restore that is running, too; they did nothing then.
	ErrRestoreUnfinished = errors.New("a restore is unfinished")

	// ErrBusy is returned by RestoreRuntimeBackup while a create, a prune or
	// another restore is at work in the same backup directory. Nothing was
	// done.
	ErrBusy = errors.New("the backup directory is in use")

	// ErrDatabaseInUse is returned by RestoreRuntimeBackup while somebody has
	// the live database open. Nothing was replaced.
	ErrDatabaseInUse = errors.New("the database is in use")

	// ErrPanic is returned when a function of the host (InitDB, Locker,
	// OnProgress, Clock, Logger) panicked. The error carries the value and the
	// stack. Everything was released and removed, as for any other error. (A
	// Logger that panics at the message that a snapshot was made, or restored,
	// is ignored.)
	ErrPanic = errors.New("panic during backup")
)
