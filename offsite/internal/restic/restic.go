// Package restic runs the program restic, versions 0.14 to 0.19: it never
// prompts, gives up when nothing goes on any more, waits while the repository is
// locked, and turns restic's exit codes and messages into errors.
//
// What restic prints is bounded and escaped before it gets into an error or a
// log, and credentials in it are replaced by ***.
package restic

import (
	"cmp"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Errors that a caller can act on. Match them with errors.Is.
var (
	// ErrNoProgram: there is no program at Program.Path or in PATH, or it is not
	// restic.
	ErrNoProgram = errors.New("restic is not installed")
	// ErrTooOld: the program is older than 0.14.
	ErrTooOld = errors.New("restic is too old")
	// ErrNoRepository: no repository is named, or there is none at that place.
	ErrNoRepository = errors.New("there is no repository")
	// ErrPassword: no password is given, or it does not open the repository.
	ErrPassword = errors.New("the password is missing or wrong")
	// ErrBusy: the repository was locked for longer than Program.Patience.
	ErrBusy = errors.New("the repository is in use")
	// ErrStuck: nothing went on for Program.Patience.
	ErrStuck = errors.New("restic made no progress")
	// ErrIncomplete: Backup stored a snapshot that lacks what could not be read.
	// Its Summary has the snapshot's ID.
	ErrIncomplete = errors.New("restic could not read everything")
	// ErrDamaged: something in the repository is missing or has changed, so a file
	// or the list of files could not be read. Check has it in its list of problems.
	ErrDamaged = errors.New("the copy is damaged")
	// ErrTooMuch: restic printed more than the caller can take.
	ErrTooMuch = errors.New("restic printed too much")
	// ErrOutput: restic printed something that cannot be understood.
	ErrOutput = errors.New("restic's output cannot be understood")
)

// DefaultPatience is used if Program.Patience is 0.
const DefaultPatience = 5 * time.Minute

// A Program is a restic, and the repository that it works on. Its methods run the
// program once or more, and may be called by several goroutines at a time. They
// return the errors above, an *[ExitError] if restic failed for another reason,
// or ctx's error.
type Program struct {
	// Path is the program; if it is empty, "restic" in PATH.
	Path string
	// Location is the repository in restic's notation. If it is empty,
	// RESTIC_REPOSITORY or RESTIC_REPOSITORY_FILE names it. It is passed in the
	// environment, because everybody can read a command line.
	Location string
	// PasswordFile has the password. If it is empty, RESTIC_PASSWORD_FILE,
	// RESTIC_PASSWORD_COMMAND or RESTIC_PASSWORD is used.
	PasswordFile string
	// Args precede the arguments of each command. Env is added to the environment
	// of this process.
	Args, Env []string
	// Patience is how long nothing may go on, and how long a lock is waited for. If
	// it is 0, DefaultPatience.
	Patience time.Duration
	// Cache is the directory of restic's cache; if it is empty, restic's own choice.
	Cache string
	// Inherit are files that restic has open for as long as it runs, so that a lock
	// on one of them outlives a parent that is killed. Windows does not do this.
	Inherit []*os.File
	// Log gets a line for each run; if it is nil, nothing is logged.
	Log *slog.Logger
	// Progress is called by another goroutine while a Backup or a Restore runs, but
	// by one at a time, and never after that. It may be nil.
	Progress func(Status)

	mu      sync.Mutex
	version *Version
}

// A Status says how far a Backup or a Restore is. Restic finds out how much there
// is while it works, so the totals grow; a Restore before restic 0.16 has none.
type Status struct {
	Files, TotalFiles int64
	Bytes, TotalBytes int64
}

// A Snapshot is one of restic's. Host, Tags and Paths are what its maker wanted.
type Snapshot struct {
	ID    string    `json:"id"` // 64 hexadecimal digits
	Time  time.Time `json:"time"`
	Host  string    `json:"hostname"`
	Tags  []string  `json:"tags"`
	Paths []string  `json:"paths"`
}

// BackupArgs say what a Backup stores: the directory Dir and all in it, with "/"
// as its name. The paths of Dir, which is made absolute, and Host choose the
// snapshot that restic compares files with, so they should stay the same.
type BackupArgs struct {
	Dir  string
	Host string
	Tags []string  // without commas
	Time time.Time // restic keeps the seconds
}

// Summary is the result of a Backup.
type Summary struct {
	ID    string // 64 hexadecimal digits
	Added int64  // bytes that were added to the repository; compressed since 0.17, raw before
	Files int64  // that were read or found unchanged
	Bytes int64  // size of these
}

// A Node is a file, directory or something else in a snapshot.
type Node struct {
	Path  string    `json:"path"` // begins with "/"
	Type  string    `json:"type"` // "file", "dir", "symlink" and so on
	Size  int64     `json:"size"`
	Mode  uint32    `json:"mode"` // an fs.FileMode
	MTime time.Time `json:"mtime"`
}

// Rules are the rules of restic forget. -1 means no limit.
type Rules struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	// Within is in restic's notation, such as "1y5m7d2h".
	Within string
}

// A Plan says what restic forget would do.
type Plan struct {
	Keep   []Kept
	Remove []Snapshot
}

// Kept is a snapshot that a rule keeps.
type Kept struct {
	Snapshot
	Reasons []string // in restic's words, such as "daily snapshot"
}

func (p *Program) patience() time.Duration { return cmp.Or(max(p.Patience, 0), DefaultPatience) }

func (p *Program) log() *slog.Logger {
	if p.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return p.Log
}
