package backup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
	"github.com/atocore/backup/internal/sqlitedb"
)

// Options configures every call of this package, so that a host fills it in
// once. Listing, validating and pruning need only BackupDir; creating needs
// DatabasePath and BackupDir. Every other zero value is useful. Relative paths
// are resolved against the working directory at the time of the call.
type Options struct {
	// DatabasePath is the live SQLite database. It must exist after InitDB
	// ran; it is never created here.
	DatabasePath string

	// DB is the host's own database handle. If it is set, the database is
	// captured through one of the handle's connections, which is occupied for
	// that time, and no other connection is opened. It is for hosts that use
	// another driver than modernc.org/sqlite, and for databases in memory. If
	// it is nil, which is the usual case, DatabasePath is opened.
	//
	// A connection of modernc.org/sqlite is captured with the online backup
	// API. Any other runs VACUUM INTO, which leaves out free pages, may
	// renumber the rows of tables without an INTEGER PRIMARY KEY
	// (sqlite.org/lang_vacuum.html), reports no progress, and waits for locks
	// as long as the driver does.
	//
	// DatabasePath names the copy. If that file exists, it must be the one that
	// DB has open; for a database in memory it is only a name.
	DB *sql.DB

	// RegistryPath is the project-registry JSON file, which must not be inside
	// the Chroma directory. If it is empty, or if the file does not exist, the
	// snapshot has no registry.
	RegistryPath string

	// ChromaPath is the Chroma persistence directory. It may be a symbolic
	// link to one. It is read only if IncludeChroma is set.
	ChromaPath string

	// BackupDir holds the snapshots, in BackupDir/snapshots. It is created with
	// mode 0700 if it does not exist. It must be on the same file system as
	// BackupDir/snapshots, and outside the Chroma directory.
	BackupDir string

	// IncludeChroma includes the Chroma directory in the snapshot. If the
	// directory does not exist, the snapshot is made without it, and its
	// metadata says so.
	IncludeChroma bool

	// Locker is the ingestion guard. It is taken only if IncludeChroma is
	// set, for as long as database, registry and Chroma directory are being
	// read, and released exactly once. If it is nil, the caller must hold its
	// own guard around the call.
	Locker Locker

	// Clock provides the time that names a snapshot. If it is nil, the system
	// clock is used.
	Clock Clock

	// InitDB is called before the database is read, so that the host can create
	// or migrate its schema. It may be nil.
	InitDB func(ctx context.Context) error

	// OnlineBackup forces the use of SQLite's online backup API. By default, on
	// Linux, the kernel copies the file and its WAL while a read transaction
	// keeps them still, which is as safe and several times as fast. It keeps
	// one descriptor of each database open for the life of the process,
	// because closing it would drop the host's own locks.
	OnlineBackup bool

	// Logger receives structured messages about what was done. If it is nil,
	// they are discarded. An error that is returned is not logged as well.
	Logger *slog.Logger

	// OnProgress receives progress reports. It runs on the goroutine that made
	// the call, never concurrently, so it should be quick. If it is nil,
	// progress is not reported.
	OnProgress func(Progress)
}

// Locker is the ingestion guard: while it is held, nothing writes to the
// store's Chroma directory.
//
// It is not a [sync.Locker] because that can neither fail nor be cancelled,
// and a backup must be able to give up waiting for a busy ingestion.
// [SyncLocker] adapts one.
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

// SyncLocker returns a [Locker] for a mutex that every writer to the Chroma
// directory holds.
//
// If l has a TryLock method, as *sync.Mutex and *sync.RWMutex do, it is polled
// (after 1 ms at first, up to every 20 ms) until ctx is done. Writers that
// hand such a mutex to each other without a gap can keep the poll waiting.
// Any other l is locked with its Lock method, which cannot be cancelled.
func SyncLocker(l sync.Locker) Locker {
	return LockerFunc(func(ctx context.Context) (func(), error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		try, ok := l.(interface{ TryLock() bool })
		if !ok {
			l.Lock()
			return l.Unlock, nil
		}
		err := poll.Until(ctx, time.Millisecond, 20*time.Millisecond, func() (bool, error) { return try.TryLock(), nil })
		if err != nil {
			return nil, err
		}
		return l.Unlock, nil
	})
}

// Clock provides the current time. Tests use their own clock.
type Clock interface {
	// Now returns the present instant. Its zone does not matter.
	Now() time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// Progress describes how far a call has come. Fields may be added.
type Progress struct {
	// Phase is the part of the call that is running.
	Phase Phase
	// Path is the file or directory being worked on; it may be empty.
	Path string
	// Files and TotalFiles count files within the phase. TotalFiles is 0
	// while the total is unknown.
	Files, TotalFiles int64
	// Bytes and TotalBytes count bytes within the phase. TotalBytes is 0
	// while the total is unknown.
	Bytes, TotalBytes int64
}

// Phase names a part of a call. Each phase is reported at least once, when it
// begins. Phases may be added.
type Phase string

// The phases of creating a snapshot, in order, and then those of the other
// calls.
const (
	PhaseInit     Phase = "init"     // checking options, removing stale staging, InitDB
	PhaseGuard    Phase = "guard"    // waiting for the ingestion guard
	PhaseDatabase Phase = "database" // capturing the database
	PhaseRegistry Phase = "registry" // capturing the registry
	PhaseChroma   Phase = "chroma"   // capturing the Chroma directory
	PhaseSeal     Phase = "seal"     // putting the database copy into its final form
	PhaseHash     Phase = "hash"     // hashing the copies while they are written to disk
	PhaseSync     Phase = "sync"     // making everything durable
	PhasePublish  Phase = "publish"  // writing metadata and manifest, renaming

	PhasePrune Phase = "prune" // removing snapshots

	PhaseStage  Phase = "stage"  // copying a snapshot beside the live store
	PhaseSwap   Phase = "swap"   // replacing the live store with it
	PhaseVerify Phase = "verify" // comparing what was restored with the snapshot

	PhaseValidateFiles    Phase = "validate_files"    // comparing files with the manifest
	PhaseValidateDatabase Phase = "validate_database" // SQLite's own checks
)

// settings is a checked copy of Options with every default filled in.
type settings struct {
	Options
	log *slog.Logger
}

// resolve fills in the defaults and makes paths absolute. If forCreate is set,
// it also checks what creating a snapshot needs. It reports every fault.
func (o Options) resolve(forCreate bool) (settings, error) {
	s := settings{Options: o, log: o.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.Clock == nil {
		s.Clock = systemClock{}
	}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for _, p := range []struct {
		name     string
		path     *string
		required bool
	}{
		{"BackupDir", &s.BackupDir, true},
		{"DatabasePath", &s.DatabasePath, forCreate},
		{"RegistryPath", &s.RegistryPath, false},
		{"ChromaPath", &s.ChromaPath, forCreate && s.IncludeChroma},
	} {
		switch {
		case *p.path == "" && p.required:
			fault("%s is empty", p.name)
		case *p.path == "":
		case strings.ContainsRune(*p.path, 0):
			fault("%s %q has a NUL byte", p.name, *p.path)
		default:
			abs, err := filepath.Abs(*p.path)
			if err != nil {
				fault("%s: %w", p.name, err)
				continue
			}
			*p.path = abs
		}
	}
	if len(faults) == 0 && forCreate {
		faults = s.checkPlaces()
	}
	if len(faults) > 0 {
		return s, fmt.Errorf("%w: %w", ErrInvalidOptions, errors.Join(faults...))
	}
	return s, nil
}

// checkPlaces refuses paths that would make a backup copy itself, or would
// make it open and close a live database file: closing any descriptor of such
// a file drops all POSIX locks that this process holds on it, the host's own
// included (fcntl(2), "Advisory record locking";
// sqlite.org/howtocorrupt.html, section 2.2). It also refuses parts that lie
// inside each other or among the snapshots, because a restore replaces the
// Chroma directory as a whole, and a prune removes snapshots.
func (s *settings) checkPlaces() (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	backupDir, database, registry := fsat.RealPath(s.BackupDir), fsat.RealPath(s.DatabasePath), fsat.RealPath(s.RegistryPath)
	if s.ChromaPath != "" {
		chroma := fsat.RealPath(s.ChromaPath)
		switch {
		case fsat.Within(backupDir, chroma):
			fault("BackupDir %s lies inside ChromaPath %s", s.BackupDir, s.ChromaPath)
		case fsat.Within(chroma, backupDir):
			fault("ChromaPath %s lies inside BackupDir %s", s.ChromaPath, s.BackupDir)
		}
		if fsat.Within(database, chroma) {
			fault("DatabasePath %s lies inside ChromaPath %s", s.DatabasePath, s.ChromaPath)
		}
		if s.RegistryPath != "" && fsat.Within(registry, chroma) {
			fault("RegistryPath %s lies inside ChromaPath %s", s.RegistryPath, s.ChromaPath)
		}
	}
	snapshots := filepath.Join(backupDir, format.SnapshotsName)
	if fsat.Within(database, snapshots) {
		fault("DatabasePath %s lies inside %s", s.DatabasePath, snapshots)
	}
	if s.RegistryPath != "" {
		if fsat.Within(registry, snapshots) {
			fault("RegistryPath %s lies inside %s", s.RegistryPath, snapshots)
		}
		opened, openedErr := fsat.Stat(s.RegistryPath)
		for _, suffix := range sqlitedb.Suffixes {
			live, err := fsat.Stat(database + suffix)
			if registry == database+suffix || openedErr == nil && err == nil && live.SameFile(opened) {
				fault("RegistryPath %s is the database file %s", s.RegistryPath, database+suffix)
			}
		}
	}
	if base := filepath.Base(s.DatabasePath); base == string(filepath.Separator) {
		fault("DatabasePath %s names no file", s.DatabasePath)
	}
	// SQLite refuses a path if its journal's path would be longer than 512
	// bytes (mxPathname in os_unix.c), and a copy that cannot be opened cannot
	// be checked.
	const longest = 512 - len("-journal")
	root := filepath.Join(backupDir, format.SnapshotsName, format.StampLayout+"-1000")
	deepest := len(filepath.Join(root, format.DBDir, filepath.Base(s.DatabasePath)))
	if s.IncludeChroma {
		deepest = max(deepest, len(filepath.Join(root, format.ChromaDir, format.ChromaDBName)))
	}
	if deepest > longest {
		fault("BackupDir %s is %d bytes too long for SQLite to open a copy in it", s.BackupDir, deepest-longest)
	}
	return faults
}

// checkRestore refuses the one option with which a create works and a restore
// does not.
func (s *settings) checkRestore() error {
	if s.DB != nil {
		return fmt.Errorf("%w: DB is set: a database is restored while nobody has it open", ErrInvalidOptions)
	}
	return nil
}

// progress reports p to the host, if it wants reports.
func (s *settings) progress(p Progress) {
	if s.OnProgress != nil {
		s.OnProgress(p)
	}
}
