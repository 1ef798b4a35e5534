package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite"
)

// The exit statuses. Scripts and monitors act on them, so none changes its
// meaning.
const (
	exitDone    = 0
	exitInvalid = 1
	exitFailed  = 2
	exitMissing = 3
	// A signal that cancelled the command adds its number, as shells have it.
	exitSignal = 128
)

// exitStatuses says what each status means, in the help, in the manual page and
// in docs/command.md.
var exitStatuses = []struct{ status, meaning string }{
	{"0", "Done; what was checked is valid."},
	{"1", "Not valid: the snapshot, or one of them, has damage or findings, or a copy or its repository is damaged. Or too old: status was given a limit that the snapshots exceed."},
	{"2", "The command could not be done, or its command line is wrong. A message says why."},
	{"3", "There is no such snapshot or copy, or no such backup directory."},
	{"130", "Interrupted by Ctrl-C (SIGINT); 143 by SIGTERM, 129 by SIGHUP. Nothing was left behind."},
}

// exitStatus returns the status for the error of a command.
func exitStatus(ctx context.Context, err error) int {
	var stopped signalError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &stopped):
		return exitSignal + int(stopped.Signal)
	case errors.Is(err, errNotPushed):
		return exitFailed
	case isMissing(err):
		return exitMissing
	case isInvalid(err), errors.Is(err, errLimit), errors.Is(err, backup.ErrInvalidArchive), errors.Is(err, offsite.ErrDamaged):
		return exitInvalid
	}
	return exitFailed
}

// errLimit is the error of a status that exceeds a limit. The result says which.
var errLimit = errors.New("the snapshots exceed a limit")

// isReported reports whether the result of the command has said already what err
// says.
func isReported(err error) bool {
	if errors.Is(err, errNotPushed) {
		return false
	}
	return isInvalid(err) || errors.Is(err, errLimit) || errors.Is(err, errProblems) || errors.Is(err, errNoCommand)
}

// isMissing reports whether err means only that there is no such snapshot, copy or
// backup directory, and not also that a restore is unfinished.
func isMissing(err error) bool {
	missing := errors.Is(err, backup.ErrNoSnapshot) || errors.Is(err, offsite.ErrNoCopy)
	return missing && !errors.Is(err, backup.ErrRestoreUnfinished)
}

// checkExists returns an error if the backup directory does not exist: the
// library takes that for a directory without snapshots, as it is before the
// first create, and a wrong path would pass for an empty one. It must come after
// the call of the library, which may have found that a restore is unfinished.
func (f *storeFlags) checkExists() error {
	if _, err := os.Stat(f.BackupDir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no backup directory %s", backup.ErrNoSnapshot, f.BackupDir)
	}
	return nil
}
