package offsite

import (
	"errors"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite/internal/restic"
)

// Errors that a caller can act on, beside those of package backup. Match them
// with errors.Is.
var (
	// ErrNoProgram: there is no restic at Repository.Program or in PATH.
	ErrNoProgram = restic.ErrNoProgram
	// ErrProgramTooOld: restic is older than 0.14.
	ErrProgramTooOld = restic.ErrTooOld
	// ErrNoRepository: nothing at Repository.Location is a restic repository.
	ErrNoRepository = restic.ErrNoRepository
	// ErrPassword: no password is given, or it does not open the repository.
	ErrPassword = restic.ErrPassword
	// ErrBusy: another program held the repository, or another push the local
	// state, for longer than Repository.Patience.
	ErrBusy = restic.ErrBusy
	// ErrNoCopy: the repository has no copy of that snapshot. The error lists
	// what there is.
	ErrNoCopy = errors.New("there is no such copy")
	// ErrOtherStore: several stores have copies in the repository, and the
	// options do not say which of them is meant. The error lists them.
	ErrOtherStore = errors.New("the repository has copies of several stores")
	// ErrDamaged: what is stored is damaged, or is not what a push stores.
	ErrDamaged = restic.ErrDamaged
	// ErrStuck: nothing went on for Repository.Patience.
	ErrStuck = restic.ErrStuck
)

// A Repository is a place where copies are kept, as restic knows it. Every zero
// value is useful if the environment has restic's variables. Its methods may be
// called by several goroutines at a time, and run restic: without a terminal, so
// that nothing ever asks for a password, and in UTC. What restic says is shortened
// and escaped before it gets into an error or a log, and passwords in it, those of
// Location and of Env among them, are replaced by ***.
type Repository struct {
	// Location is the repository in restic's notation: "s3:https://host/bucket/dir",
	// "sftp:user@host:dir", "rest:https://host/", or a directory. If it is empty,
	// restic's RESTIC_REPOSITORY or RESTIC_REPOSITORY_FILE is used. restic gets it by
	// its environment: everybody can read a command line.
	Location string
	// PasswordFile is the file with the repository's password. If it is empty,
	// RESTIC_PASSWORD_FILE, RESTIC_PASSWORD_COMMAND or RESTIC_PASSWORD is used. Without
	// the password nothing can be read any more.
	PasswordFile string
	// Program is the restic to run, 0.14 or newer; by default that in PATH.
	Program string
	// Args are further flags of restic's for every command, such as --cacert or
	// --limit-upload. Env are further variables of its environment, such as
	// AWS_ACCESS_KEY_ID=….
	Args, Env []string
	// Patience is how long nothing may go on before a call gives up with ErrStuck,
	// and how long a lock is waited for before it gives up with ErrBusy. If it is
	// 0, that is 5 minutes. On Linux, any bytes that restic moves and any work of its
	// show that it gets on; elsewhere only its output does, which is silent for a
	// while at the end of a push of much data. restic's own retries, of up to a quarter
	// of an hour, end early by it.
	Patience time.Duration
}

// Copy is a snapshot's copy in a repository.
type Copy struct {
	ID        string    `json:"id"` // restic's, in full
	Stamp     string    `json:"stamp"`
	CreatedAt time.Time `json:"created_at"` // of the snapshot, to the second, in UTC
	// Host and DatabasePath name the snapshot's store; they are empty if its
	// metadata do not.
	Host         string `json:"host"`
	DatabasePath string `json:"db_path"`
	// ManifestSHA256 is the hash of its SHA256SUMS in hexadecimal.
	ManifestSHA256 string `json:"manifest_sha256"`
}

// Pushed is the result of a push.
type Pushed struct {
	Copy
	// AlreadyThere reports that the repository had the same copy, so that nothing
	// was done.
	AlreadyThere bool `json:"already_there"`
	// ReadBytes were read of the snapshot. ChangedBytes are in files that were not
	// in the last push as they are, or in their deltas. UploadedBytes were added to
	// the repository, as restic says.
	ReadBytes     int64 `json:"read_bytes"`
	ChangedBytes  int64 `json:"changed_bytes"`
	UploadedBytes int64 `json:"uploaded_bytes"`
}

// VerifyOptions say what a Verify does.
type VerifyOptions struct {
	// ReadData is how much of the stored data is read: a share such as "5%", which
	// is chosen at random and is the default, "100%" for all, or "0" for none.
	ReadData string
	// Stamp, if not empty, is the snapshot that is pulled into a scratch directory,
	// validated and thrown away, instead of a check of the repository.
	Stamp string
	// Options are those of the validation (Connect, Clock, OnProgress and so on),
	// and name the store if there are several (DatabasePath, Host). BackupDir is
	// where the scratch directory is made.
	Options backup.Options
}

// Report is the result of a Verify.
type Report struct {
	OK bool `json:"ok"`
	// Copies is the number of copies whose recipes were checked: 0 if the repository
	// is damaged, and 1 if one copy was pulled and is valid.
	Copies int `json:"copies"`
	// ReadData is how much of the data was read, such as "5%"; it is empty if one
	// copy was pulled.
	ReadData string `json:"read_data"`
	// Problems say what is wrong, one line each.
	Problems []string `json:"problems"`
	// Validation is that of the copy that was pulled, if VerifyOptions.Stamp was set.
	Validation *backup.Report `json:"validation,omitempty"`
}

// Forgotten is the result of a Forget, newest first.
type Forgotten struct {
	Kept    []KeptCopy `json:"kept"`
	Removed []Copy     `json:"removed"` // with DryRun, what would have been removed
	DryRun  bool       `json:"dry_run"`
}

// KeptCopy is a copy that was kept, with at least one reason.
type KeptCopy struct {
	Copy
	Reasons []string `json:"reasons"`
}
