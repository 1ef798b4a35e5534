// Package errdefs holds the sentinel errors that more than one package
// returns, so that mechanism can report what the root package documents
// without importing it. Package backup exports them under the same names and
// says when each occurs. It must not know about any other package.
package errdefs

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
)

// The errors that package backup re-exports and documents.
var (
	ErrInvalidOptions    = errors.New("invalid options")
	ErrInvalidBackup     = errors.New("invalid backup")
	ErrInvalidArchive    = errors.New("invalid archive")
	ErrProtected         = errors.New("the snapshot is protected from removal")
	ErrSourceChanged     = errors.New("source changed while it was copied")
	ErrSourceInvalid     = errors.New("source is not valid")
	ErrUnsupportedFile   = errors.New("unsupported kind of file")
	ErrNoSpace           = errors.New("not enough space for the snapshot")
	ErrCrossDevice       = errors.New("snapshots are on another file system than the backup directory")
	ErrRestoreUnfinished = errors.New("a restore is unfinished")
	ErrBusy              = errors.New("the backup directory is in use")
	ErrDatabaseInUse     = errors.New("the database is in use")
	ErrPanic             = errors.New("panic during backup")

	ErrNoSnapshot     error = &fileError{"no such snapshot", fs.ErrNotExist}
	ErrSnapshotExists error = &fileError{"the snapshot exists already", fs.ErrExist}
)

// A fileError is a sentinel that also matches one of package io/fs.
type fileError struct {
	text  string
	match error
}

func (e *fileError) Error() string { return e.text }

// Is reports whether target is the error of package io/fs that e matches.
func (e *fileError) Is(target error) bool { return target == e.match }

// Recover turns a panic into an error that matches ErrPanic and carries the
// value and the stack. It must be deferred directly. Only functions of the
// host can panic: callbacks, lockers, clocks, loggers.
//
// The error is joined to the one that *err holds already, which deferred
// functions set after the panic: what could not be undone or removed. So
// Recover must be deferred in the function whose deferred functions do that,
// and before them. No earlier error may be left in *err where a panic is
// possible.
func Recover(err *error) {
	var panicked error
	switch v := recover().(type) {
	case nil:
		return
	case error:
		panicked = fmt.Errorf("%w: %w\n%s", ErrPanic, v, debug.Stack())
	default:
		panicked = fmt.Errorf("%w: %v\n%s", ErrPanic, v, debug.Stack())
	}
	if *err != nil {
		panicked = errors.Join(panicked, *err)
	}
	*err = panicked
}
