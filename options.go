package backup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
	"github.com/atocore/backup/internal/progress"
	"github.com/atocore/backup/internal/restorer"
	"github.com/atocore/backup/internal/sqlitedb"
)

// Options configures every call of this package, so that a host fills it in
// once. Listing, validating, exporting and importing need only BackupDir;
// creating and restoring need DatabasePath and BackupDir, and so do pruning,
// removing and the search for the latest snapshot if BackupDir has those of
// several stores. Every other zero value is useful. Relative paths are resolved
// against the working directory at the time of the call.
type Options struct {
	// Where things are. Every call needs BackupDir.

	// BackupDir holds the snapshots, in BackupDir/snapshots. It is created with
	// mode 0700 if it does not exist, and should keep that: who may read it may
	// hold a lock on it that keeps every create, prune and restore from working. It
	// must be on the same file system as BackupDir/snapshots, and outside the
	// Chroma directory.
	BackupDir string

	// DatabasePath is the live SQLite database. It must exist after InitDB
	// ran; it is never created here. It must be the path that its users open,
	// links aside: SQLite finds the WAL by the name. A hard link, or a file that
	// is mounted alone, is refused with ErrSourceInvalid where it can be seen
	// that the WAL is or may be beside another name.
	DatabasePath string

	// RegistryPath is the project-registry JSON file, which must not be inside
	// the Chroma directory. If it is empty, or if the file does not exist, the
	// snapshot has no registry.
	RegistryPath string

	// ChromaPath is the Chroma persistence directory. It may be a symbolic
	// link to one. It is read only if IncludeChroma is set.
	ChromaPath string

	// What a create does.

	// IncludeChroma includes the Chroma directory in the snapshot. If the
	// directory does not exist, the snapshot is made without it, and its
	// metadata says so.
	IncludeChroma bool

	// Locker is the ingestion guard. It is taken only if IncludeChroma is
	// set, for as long as database, registry and Chroma directory are being
	// read, and released exactly once. A database that is busy is waited for
	// before; if it is busy again by the time the guard is taken, the guard is
	// released, and taken anew later. If it is nil, the caller must hold its
	// own guard around the call.
	Locker Locker

	// InitDB is called before the database is read, so that the host can create
	// or migrate its schema. It may be nil.
	InitDB func(ctx context.Context) error

	// Verify validates the snapshot that was just made, in the same call, and
	// records the verdict. If the snapshot is not valid, or cannot be validated,
	// it stays, and its metadata are returned together with the error, which
	// matches ErrInvalidBackup in the first case. Notes are logged.
	Verify bool

	// Note is kept beside the snapshot that a create or an import makes, and is
	// listed with it. It has at most 4 KiB.
	Note string

	// For hosts that have the database open by another driver, in memory, or with
	// collations and functions of their own.

	// DB is the host's own database handle. If it is set, the database is
	// captured through one of the handle's connections, which is occupied for
	// that time, and no other connection is opened. It is for hosts that use
	// another driver than modernc.org/sqlite, and for databases in memory. An
	// encrypted one works if the copies that the driver's VACUUM INTO writes are
	// not encrypted, since a snapshot is checked without the key. If it is nil,
	// which is the usual case, DatabasePath is opened.
	//
	// A connection of modernc.org/sqlite is captured with the online backup
	// API. Any other runs VACUUM INTO, which leaves out free pages, may
	// renumber the rows of tables without an INTEGER PRIMARY KEY
	// (sqlite.org/lang_vacuum.html), reports no progress, and waits for locks
	// as long as the driver does. It fails for a database that is in a VFS of the
	// driver's own, such as an encrypting one, because SQLite writes the copy
	// through the same VFS; see Capture.
	//
	// A call takes a connection from the pool and waits for one. So with a pool
	// of one connection, a caller within a transaction, or an OnProgress that
	// queries DB, waits for itself, until Wait or ctx ends; so does a caller that
	// holds an EXCLUSIVE lock on the database.
	//
	// DatabasePath names the copy. If that file exists, it must be the one that
	// DB has open; for a database in memory it is only a name.
	DB *sql.DB

	// Capture writes a copy of the database by the means of the host's own driver.
	// It is for what neither of the former can copy: a driver without database/sql,
	// an encrypted database, one in a VFS of the driver's; docs/hosts.md has code.
	// path is absolute, in the staging directory, and nothing is there yet. Capture
	// must write the committed state of one moment, as one plain SQLite file, and
	// close it before it returns nil. It is called once in each create, under the
	// guard if that is taken, and must heed ctx.
	//
	// The copy is ErrSourceInvalid if there is none, if it is encrypted, which could
	// not be validated, if it has no table, if it is a link, if it is still open, or
	// if there is a journal beside it; a WAL beside it is folded in. With Options.DB
	// or OnlineBackup, Capture is ErrInvalidOptions.
	//
	// DatabasePath then only names the copy and the store, and a create does not
	// open that file. So Capture must make sure that it copies the right database,
	// by the name that its users open, and that no other file takes its place; if
	// the database is busy, it must wait, which Wait does not bound.
	// RestoreRuntimeBackup calls Capture for its safety snapshot with Offline, or if
	// Parts leaves the database alone. Otherwise it saves the file that was at
	// DatabasePath by its own means, or sets it aside if that is not a plain
	// database. What it writes there is one.
	Capture func(ctx context.Context, path string) error

	// Connect registers what the databases' schemas need: collations, and functions
	// that are used in indexes and generated columns. Without it, the checks of a
	// snapshot leave out what needs any of these, and note that. The argument is a
	// new driver value of modernc.org/sqlite (*sqlite.Driver), with its methods
	// RegisterCollationUtf8 and RegisterFunction; functions must be deterministic.
	// What is registered with modernc.org/sqlite for all connections is used in any
	// case, though a collation is several times as fast by Connect.
	//
	// It is called for each connection that such a check opens, so perhaps never, and
	// for the two databases of a snapshot concurrently. What is registered is called
	// with values of the snapshot, which are untrusted, and not interrupted.
	Connect func(driver *sqlitedb.Driver) error

	// OnlineBackup forces the use of SQLite's online backup API. By default, on
	// Linux, the kernel copies the file and its WAL while a read transaction
	// keeps them still, which is as safe and several times as fast.
	//
	// With or without it, on Linux a few descriptors of each live database stay
	// open for the life of the process, or until the file is removed, because
	// closing them would drop the host's own locks. They are at most one in 16 of
	// those that the process may have (RLIMIT_NOFILE); further databases are captured
	// by the online backup, and in fewer cases noticed to be in use by another name.
	OnlineBackup bool

	// For restores.

	// Parts are the parts of the store that a restore replaces. The others stay as
	// they are, and may be in use, so that the store is a mixture of two points in
	// time afterwards, on purpose. If it is 0, the restore is of all parts that
	// the snapshot has.
	Parts Parts

	// Confirm is called by a restore with what it is about to do, while everybody
	// is kept away from the store (but see Offline) and before anything is touched. If it returns
	// an error, the restore ends with that. It may be nil.
	Confirm func(ctx context.Context, plan []RestorePart) error

	// Offline lets a restore run while the store is in use; if it is nil, nobody
	// may have the store open meanwhile. It is called when everything is
	// validated, saved in the safety snapshot (through DB, if that is set) and
	// staged. The host lets nobody use the store any more, closes its connections,
	// and returns. The restore makes sure that nobody has the parts open, renames
	// them, and calls resume, which opens the store again; resume may be nil. The
	// size of the store does not matter, except that a file that is mounted alone
	// is overwritten, and that what was renamed is read where inode numbers change.
	//
	// If Offline returns an error, nothing is replaced. Otherwise resume is called
	// exactly once, whatever becomes of the restore, with a ctx that is not
	// cancelled with ctx. The new store is in place then, and the journal says so,
	// or the old one is back; no file of it is open here or locked. Only after
	// ErrRestoreUnfinished, the ctx of resume is cancelled, with that as its cause:
	// the store must not be opened. If resume fails, a restore that is done stays
	// done, and its result is returned with the error.
	//
	// What was written between the safety snapshot and Offline is not lost: after
	// resume, an old part is removed only if everything that it has is found in the
	// safety snapshot. Otherwise it is set aside whole, and is named in
	// RestoreResult.SetAside; so is all if ctx ends meanwhile, and in any case a
	// database saved by VACUUM INTO (see DB) or Capture, or with page checksums.
	// Locker is held meanwhile: Offline must not wait for who waits for that.
	//
	// An earlier restore that was interrupted is recovered before, while nobody may
	// have the store open: a host that was killed must restore before it opens it.
	Offline func(ctx context.Context) (resume func(ctx context.Context) error, err error)

	// DespiteFindings restores or imports a snapshot although SQLite, or the JSON check of
	// the registry, objects to its content, provided that nothing shows damage;
	// see Problem.Finding. Without it, such a snapshot is refused with an error
	// that matches ErrInvalidBackup and lists the findings.
	DespiteFindings bool

	// FromOtherStore restores a snapshot of another store than the one that
	// would be replaced. Without it, that is ErrOtherStore, unless there is
	// nothing at any of the paths.
	FromOtherStore bool

	// For every call.

	// Host names the machine of the store, in the metadata of its snapshots:
	// a store is the same if host and DatabasePath are. If it is empty, the
	// name that the system reports is used; set it where that changes, as in
	// containers. It has at most 255 bytes.
	Host string

	// RecordVerdicts makes ValidateBackup, and RestoreRuntimeBackup and
	// ImportRuntimeBackup, which validate the snapshot too, record the verdict
	// beside the snapshot, for lists and prunes. A verdict that cannot be recorded, on a
	// read-only disk, for example, is logged and is no failure.
	RecordVerdicts bool

	// Wait bounds each wait of a call: for a busy database (then ErrDatabaseInUse),
	// for the guard (context.DeadlineExceeded), and for a backup directory in use by
	// a restore or, if the call is one, by a create or a prune (ErrBusy). If it is 0,
	// only ctx ends a wait for the database or the guard, and a backup directory in
	// use is not waited for. Locks for which the driver of DB waits by itself, and
	// Lockers that do not heed their context, are not bounded by it.
	Wait time.Duration

	// Clock provides the time: the one that names a snapshot, and those from
	// which the Cost of a call and the rate of progress reports are computed. If
	// it is nil, the system clock is used.
	Clock Clock

	// Logger receives structured messages about what was done. If it is nil,
	// they are discarded. An error that is returned is not logged as well.
	Logger *slog.Logger

	// OnProgress receives progress reports, about 20 a second at most. It runs on
	// the goroutine that made the call, never concurrently, so it should be quick.
	OnProgress func(Progress)
}

// Locker is the ingestion guard: while it is held, nothing writes to the
// store's Chroma directory.
// It can fail and be cancelled, so that a backup can give up waiting for a busy
// ingestion. [SyncLocker] makes one of a mutex.
type Locker interface {
	// Lock waits until nothing writes to the Chroma directory, or until ctx is
	// done, and returns a function that ends the exclusion. That function is
	// called exactly once, on the goroutine that called Lock. If Lock returns
	// an error, nothing is held and the function is not called.
	Lock(ctx context.Context) (unlock func(), err error)
}

// LockerFunc is a function that implements [Locker].
type LockerFunc func(ctx context.Context) (unlock func(), err error)

// Lock calls f.
func (f LockerFunc) Lock(ctx context.Context) (unlock func(), err error) { return f(ctx) }

// Clock provides the current time. Tests use their own clock.
type Clock interface {
	// Now returns the present instant. Its zone does not matter.
	Now() time.Time
}

// SystemClock returns the Clock of a call whose Options have none.
func SystemClock() Clock { return systemClock{} }

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// settings is a checked copy of Options with every default filled in.
type settings struct {
	Options
	log *slog.Logger

	began   time.Time                 // when a create began
	guarded time.Duration             // how long the guard was held
	meter   *progress.Meter[Progress] // nil if OnProgress is
	// planFor plans the steps of the call for the meter, once the metadata of its
	// snapshot are read. It is nil if they are planned.
	planFor func(*Metadata)

	manifestSum string // of the snapshot that was validated, for its record
}

// resolve fills in the defaults and makes paths absolute. If forCreate is set,
// it also checks what creating a snapshot needs. It reports every fault, in words
// that a user of the command understands as well: no fault names a field. A nil
// context is one, because goroutines would panic with it.
func (o Options) resolve(ctx context.Context, forCreate bool) (settings, error) {
	s := settings{Options: o, log: o.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.Clock == nil {
		s.Clock = SystemClock()
	}
	if s.OnProgress != nil {
		s.meter = progress.New(s.Clock.Now, func(p Progress, share float64) {
			p.Share = share
			o.OnProgress(p)
		})
	}
	if s.Host == "" {
		s.Host, _ = os.Hostname() // empty if the system has none
	}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if ctx == nil {
		fault("the context is nil")
	}
	for _, p := range []struct {
		name     string
		path     *string
		required bool
	}{
		{"backup directory", &s.BackupDir, true},
		{"database", &s.DatabasePath, forCreate},
		{"registry", &s.RegistryPath, false},
		{"Chroma directory", &s.ChromaPath, forCreate && s.IncludeChroma},
	} {
		switch {
		case *p.path == "" && p.required:
			fault("the path of the %s is empty", p.name)
		case *p.path == "":
		case strings.ContainsRune(*p.path, 0):
			fault("the path of the %s, %q, has a NUL byte", p.name, *p.path)
		default:
			abs, err := filepath.Abs(*p.path)
			if err != nil {
				fault("the path of the %s: %w", p.name, err)
				continue
			}
			*p.path = abs
		}
	}
	const maxHost = 255 // of a DNS name
	for _, text := range []struct {
		name, text string
		most       int
	}{{"note", s.Note, backupdir.MaxNote}, {"host name", s.Host, maxHost}} {
		if len(text.text) > text.most {
			fault("the %s has %d bytes, more than %d", text.name, len(text.text), text.most)
		}
	}
	if s.Capture != nil && (s.DB != nil || s.OnlineBackup) {
		fault("Capture is set together with a database handle or the online backup: only one of them can capture the database")
	}
	if s.Wait < 0 {
		fault("the time to wait is negative: %s", s.Wait)
	}
	if len(faults) == 0 && forCreate {
		faults = s.checkPlaces()
	}
	if len(faults) > 0 {
		return s, fmt.Errorf("%w: %w", ErrInvalidOptions, errors.Join(faults...))
	}
	return s, nil
}

// checkPlaces refuses paths at which a store or its snapshots would come to harm.
func (s *settings) checkPlaces() []error {
	return restorer.CheckPlaces(s.BackupDir, restorer.Places{Database: s.DatabasePath, Registry: s.RegistryPath, Chroma: s.ChromaPath}, s.IncludeChroma)
}

// untilFree calls enter until it does not return ErrBusy any more, or Wait is
// over. Without Wait it is called once.
func (s *settings) untilFree(ctx context.Context, enter func() (*fsat.Dir, error)) (dir *fsat.Dir, err error) {
	if s.Wait == 0 {
		return enter()
	}
	waiting, cancel := s.bounded(ctx)
	defer cancel()
	said := false
	ended := poll.Until(waiting, 10*time.Millisecond, 250*time.Millisecond, func() (bool, error) {
		if dir, err = enter(); !errors.Is(err, ErrBusy) {
			return true, nil
		}
		if !said {
			said = true
			s.log.Info("waiting_for_backup_directory", "path", s.BackupDir, "reason", err.Error())
		}
		s.progress(Progress{Phase: PhaseWait, Path: s.BackupDir})
		return false, nil
	})
	switch {
	case ended == nil:
		return dir, err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("%w, and was for %s", err, s.Wait)
}

// checkRestore refuses what a create takes and a restore does not, and parts that
// there are not.
func (s *settings) checkRestore() error {
	if unknown := s.Parts &^ allParts; unknown != 0 {
		return fmt.Errorf("%w: unknown parts are asked for: %#x", ErrInvalidOptions, uint8(unknown))
	}
	if s.DB != nil && s.Offline == nil && (s.Parts == 0 || s.Parts&PartDatabase != 0) {
		return fmt.Errorf("%w: a database handle is given: without Offline, a database is restored while nobody has it open", ErrInvalidOptions)
	}
	return nil
}

// progress reports p to the host, if it wants reports.
func (s *settings) progress(p Progress) {
	done, total := p.Bytes, p.TotalBytes
	if total == 0 && p.TotalFiles > 0 {
		done, total = p.Files, p.TotalFiles
	}
	s.meter.Report(string(p.Phase), done, total, p)
}

// begin makes the first report of a call with these phases, which are taken to be
// equal parts of it.
func (s *settings) begin(p Progress, phases ...Phase) {
	var steps []progress.Step
	for _, phase := range phases {
		steps = append(steps, progress.Step{Phase: string(phase), Weight: 1})
	}
	s.meter.Plan(steps)
	s.progress(p)
}

// finished makes the last report of a call that has succeeded, and returns err.
func (s *settings) finished(err error) error {
	if err == nil {
		s.finishProgress()
	}
	return err
}

// finishProgress makes the last report of a call that has done its work.
func (s *settings) finishProgress() {
	defer func() { _ = recover() }() // of the Logger
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("progress_panicked", "panic", fmt.Sprint(v))
		}
	}()
	s.meter.Finish()
}
