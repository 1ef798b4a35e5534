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

	"github.com/atocore/backup/internal/fsat"
)

// Options configures every call of this package, so that a host fills it in
// once. Listing and validating need only BackupDir; creating needs
// DatabasePath and BackupDir. Every other zero value is useful. Relative paths
// are resolved against the working directory at the time of the call.
type Options struct {
	// DatabasePath is the live SQLite database. It must exist after InitDB
	// ran; it is never created here.
	DatabasePath string

	// DB is the host's own handle of the database. With it the database is
	// captured through one of the handle's connections, which is busy
	// meanwhile, and no other is opened. It is for hosts that use another
	// driver than modernc.org/sqlite, and for databases in memory. Nil, the
	// usual case, means that DatabasePath is opened.
	//
	// A connection of modernc.org/sqlite is captured by the online backup API.
	// Any other runs VACUUM INTO, which leaves out free pages and may number
	// anew the rows of tables without an INTEGER PRIMARY KEY
	// (sqlite.org/lang_vacuum.html), reports no progress, and waits for locks
	// as long as the driver does.
	//
	// DatabasePath names the copy. If it exists it must be the file that DB
	// has open; for a database in memory it is a mere name.
	DB *sql.DB

	// RegistryPath is the project-registry JSON file. Empty, or naming a file
	// that does not exist: the snapshot has no registry.
	RegistryPath string

	// ChromaPath is the Chroma persistence directory. It may be a symbolic
	// link to one. It is read only if IncludeChroma is set.
	ChromaPath string

	// BackupDir holds the snapshots, in BackupDir/snapshots. It is made, with
	// mode 0700, if it does not exist. It must be on the same file system as
	// BackupDir/snapshots, and outside the Chroma directory.
	BackupDir string

	// IncludeChroma asks for the Chroma directory as well. If the directory
	// does not exist the snapshot is made without it, and its metadata says
	// so.
	IncludeChroma bool

	// Locker is the ingestion guard. It is taken only if IncludeChroma is
	// set, for as long as database, registry and Chroma directory are being
	// read, and released exactly once. Nil means that the caller holds its own
	// guard around the call.
	Locker Locker

	// Clock tells the time that names a snapshot. Nil means the system clock.
	Clock Clock

	// InitDB is called before the database is read, so that the host can make
	// or migrate its schema. Nil means that there is nothing to do.
	InitDB func(ctx context.Context) error

	// OnlineBackup insists on SQLite's online backup API for the database. By
	// default, on Linux, the file and its WAL are copied by the kernel while a
	// read transaction keeps them still, which is as safe and several times as
	// fast; that keeps one descriptor of each database open for the life of
	// the process, because closing it would drop the host's own locks.
	OnlineBackup bool

	// Logger receives what happened as structured messages. Nil discards them.
	// An error that is returned is not logged as well.
	Logger *slog.Logger

	// OnProgress is told how far a call has come. It runs on the goroutine
	// that made the call, never concurrently, so it should be quick. Nil means
	// that nobody wants to know.
	OnProgress func(Progress)

	// restoring is set while a restore takes its safety snapshot.
	restoring *safety
}

// Locker is the ingestion guard: what a host holds so that nothing writes to
// the store's Chroma directory.
//
// It is not a [sync.Locker] because that can neither fail nor be cancelled,
// and a backup must be able to give up waiting for a busy ingestion.
// [SyncLocker] adapts one.
type Locker interface {
	// Lock waits until nothing writes to the Chroma directory, or until ctx is
	// done, and returns a function that ends the exclusion. The function is
	// called exactly once, on the goroutine that called Lock. On an error
	// nothing is held and the function is not called.
	Lock(ctx context.Context) (unlock func(), err error)
}

// LockerFunc is a [Locker] that is one function.
type LockerFunc func(ctx context.Context) (unlock func(), err error)

// Lock calls f.
func (f LockerFunc) Lock(ctx context.Context) (unlock func(), err error) { return f(ctx) }

// SyncLocker makes a [Locker] of a mutex that every writer to the Chroma
// directory holds.
//
// If l has a TryLock method, as *sync.Mutex and *sync.RWMutex do, the wait is
// a poll (1 ms apart, rising to 20 ms) that ends when ctx is done; writers
// that hand such a mutex to each other without a gap can keep the poll
// waiting. Any other l is waited for with its Lock, which cannot be cancelled.
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
		for wait := time.Millisecond; !try.TryLock(); wait = min(2*wait, 20*time.Millisecond) {
			if err := sleep(ctx, wait); err != nil {
				return nil, err
			}
		}
		return l.Unlock, nil
	})
}

// Clock tells the time. A test gives its own.
type Clock interface {
	// Now returns the present instant. Its zone does not matter.
	Now() time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// sleep waits for d or until ctx is done, whichever comes first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Progress tells how far a call has come. Fields may be added.
type Progress struct {
	// Phase is what is being done.
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

// Phase names a part of a call. Each phase is reported at least once, at its
// beginning. Phases may be added.
type Phase string

// The phases of creating a snapshot, in order, and then those of the other
// calls.
const (
	PhaseInit     Phase = "init"     // checking options, clearing remains, InitDB
	PhaseGuard    Phase = "guard"    // waiting for the ingestion guard
	PhaseDatabase Phase = "database" // capturing the database
	PhaseRegistry Phase = "registry" // capturing the registry
	PhaseChroma   Phase = "chroma"   // capturing the Chroma directory
	PhaseSeal     Phase = "seal"     // putting the database copy into its final form
	PhaseHash     Phase = "hash"     // hashing the copies while they are written out
	PhaseSync     Phase = "sync"     // making everything durable
	PhasePublish  Phase = "publish"  // writing metadata and manifest, renaming

	PhasePrune Phase = "prune" // removing snapshots

	PhaseStage  Phase = "stage"  // copying a snapshot beside the live store
	PhaseSwap   Phase = "swap"   // putting it in the live store's place
	PhaseVerify Phase = "verify" // comparing what was restored with the snapshot

	PhaseValidateFiles    Phase = "validate_files"    // comparing files with the manifest
	PhaseValidateDatabase Phase = "validate_database" // SQLite's own checks
)

// settings is a checked copy of Options with every default filled in.
type settings struct {
	Options
	log *slog.Logger
}

// resolve fills in the defaults and makes paths absolute. forCreate asks for
// what creating a snapshot needs too. Every fault is reported.
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

// checkPlaces refuses places that would make a backup copy itself, or open and
// close a live database file: closing any descriptor of one drops this
// process's POSIX locks on it, the host's own included (fcntl(2), "Advisory
// record locking"; sqlite.org/howtocorrupt.html, section 2.2).
func (s *settings) checkPlaces() (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	backupDir, database := realPath(s.BackupDir), realPath(s.DatabasePath)
	if s.ChromaPath != "" {
		chroma := realPath(s.ChromaPath)
		switch {
		case within(backupDir, chroma):
			fault("BackupDir %s lies inside ChromaPath %s", s.BackupDir, s.ChromaPath)
		case within(chroma, backupDir):
			fault("ChromaPath %s lies inside BackupDir %s", s.ChromaPath, s.BackupDir)
		}
		if within(database, chroma) {
			fault("DatabasePath %s lies inside ChromaPath %s", s.DatabasePath, s.ChromaPath)
		}
	}
	for _, dir := range []string{filepath.Join(backupDir, snapshotsName)} {
		if within(database, dir) {
			fault("DatabasePath %s lies inside %s", s.DatabasePath, dir)
		}
	}
	if s.RegistryPath != "" {
		if registry, err := fsat.Stat(s.RegistryPath); err == nil {
			for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
				if live, err := fsat.Stat(database + suffix); err == nil && live.SameFile(registry) {
					fault("RegistryPath %s is the database file %s", s.RegistryPath, database+suffix)
				}
			}
		}
	}
	if base := filepath.Base(s.DatabasePath); base == string(filepath.Separator) {
		fault("DatabasePath %s names no file", s.DatabasePath)
	}
	// SQLite opens no path that its journal's would be longer than, and a copy
	// that cannot be opened cannot be checked (mxPathname in os_unix.c).
	const longest = 512 - len("-journal")
	root := filepath.Join(backupDir, snapshotsName, stampLayout+"-1000")
	deepest := len(filepath.Join(root, dbDirName, filepath.Base(s.DatabasePath)))
	if s.IncludeChroma {
		deepest = max(deepest, len(filepath.Join(root, chromaDirName, chromaDBName)))
	}
	if deepest > longest {
		fault("BackupDir %s is %d bytes too long for SQLite to open a copy in it", s.BackupDir, deepest-longest)
	}
	return faults
}

// realPath resolves the links in path as far as it exists.
func realPath(path string) string {
	rest := ""
	for dir := path; ; {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(real, rest)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return path
		}
		rest = filepath.Join(filepath.Base(dir), rest)
		dir = parent
	}
}

// within tells whether path is dir or lies below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// report tells the host about progress. It does nothing without a listener.
func (s *settings) report(p Progress) {
	if s.OnProgress != nil {
		s.OnProgress(p)
	}
}
