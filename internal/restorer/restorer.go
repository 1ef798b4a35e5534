// Package restorer puts a snapshot in the place of a live store, under a
// journal.
//
// It promises that the store is wholly old or wholly new afterwards: an error
// before the new store is verified brings the old one back, and a replacement
// that is interrupted, at any point, can be finished or undone from its journal
// and its staging directories alone. An undo destroys no byte that the
// replacement did not put there: what is in place is compared with what was
// staged, and set aside if it differs. How far a replacement got is read from
// the journal and never inferred from what is missing.
//
// It must not know who asked for the restore: which snapshot may be trusted,
// who has to be kept away from the store, whether the old store is saved
// before, whether an interrupted restore is finished or undone, and what the
// host is told are decisions of the caller.
package restorer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

// errDiffers is returned by Verify. The guide to restoring quotes it.
var errDiffers = errors.New("what was restored is not what the snapshot holds")

func differs(path string) error { return fmt.Errorf("%w: %s", errDiffers, path) }

// Places are the places of the three parts of a store: the database file, the
// registry file and the Chroma directory. A part that is not concerned has an
// empty place.
type Places struct{ Database, Registry, Chroma string }

// A Replacement replaces the parts of a live store that a snapshot has. Its
// exported fields but Files and Bytes are set by the caller, and its methods
// are called in the order Begin, Saved or KeepOld, Stage, Swap, Verify, Commit,
// Finish. If the store is in use until the swap, they are called in the order
// Begin, Saved or KeepOld, Stage, Inspect, CheckUnchanged, Swap, VerifyPlaced,
// Commit, HandOver, Finish. After Begin, Close must be called in the end, whatever
// happened.
type Replacement struct {
	// Stamp is the snapshot's name in BackupDir, for the journal.
	Stamp, BackupDir string
	// Started is the time of the journal.
	Started time.Time
	// Snapshot is the snapshot's directory, which nobody removes or changes.
	Snapshot *fsat.Dir
	// From are the places in Snapshot, relative and with slashes: files in a
	// directory of Snapshot, and the Chroma directory right below it. Parts that
	// are empty here are not replaced; there must be at least one.
	From Places
	// Contents are the hashes of the snapshot's files, in the order of their
	// paths.
	Contents []format.Entry
	// Live are the places in the live store of the parts in From, absolute and
	// with links resolved. That of the database is set in any case, because the
	// journal lies beside it.
	Live Places
	// Broken allows a database that SQLite cannot open.
	Broken bool
	// OnStage and OnVerify are called on the caller's goroutine with the file
	// in work and the number of files and bytes done.
	OnStage, OnVerify func(path string, files, bytes int64)
	// Warn is called with conditions that are no failure. It may be nil.
	Warn func(message, path string, err error)
	// Unlock is called before the old files, or after an undo the new ones, are
	// removed: the caller closes what it has open of the live store. It may be nil.
	Unlock func()
	// Undone is called by Close when the old store is back, and the journal
	// still there. It may be nil.
	Undone func()

	// Files and Bytes count what Stage has copied.
	Files, Bytes int64
	// NotKept is called by Stage with what could not be kept of the files that
	// are replaced; see [filetree.Dresser]. It may be nil.
	NotKept func(part, what, path string, reason error)

	journal  *Journal
	staged   *sqlitedb.Source             // the new database, locked
	dressers map[string]*filetree.Dresser // by part
	unkept   fsat.Unkept                  // of what is staged
}

// Choose sets From and Live to the places of those parts that are chosen, by their
// names: format.DBDir, ConfigDir and ChromaDir.
func (r *Replacement) Choose(from, live Places, chosen func(part string) bool) {
	r.Live.Database = live.Database // the journal lies beside it
	if chosen(format.DBDir) {
		r.From.Database = from.Database
	}
	if chosen(format.ConfigDir) {
		r.From.Registry, r.Live.Registry = from.Registry, live.Registry
	}
	if chosen(format.ChromaDir) {
		r.From.Chroma, r.Live.Chroma = from.Chroma, live.Chroma
	}
}

// dresser returns the dresser of a part.
func (r *Replacement) dresser(part string) *filetree.Dresser {
	if r.dressers == nil {
		r.dressers = make(map[string]*filetree.Dresser)
	}
	if r.dressers[part] == nil {
		d := &filetree.Dresser{Unkept: &r.unkept}
		if r.NotKept != nil {
			d.NotKept = func(what, path string, reason error) { r.NotKept(part, what, path, reason) }
		}
		r.dressers[part] = d
	}
	return r.dressers[part]
}

// Owners returns to whom the files belong that are put in place of a part, which
// is format.DBDir, ConfigDir or ChromaDir, as "user:group". It is known when Stage
// has succeeded.
func (r *Replacement) Owners(part string) (owners []string) {
	for _, owner := range r.dresser(part).Owners() {
		owners = append(owners, fmt.Sprintf("%d:%d", owner.UID, owner.GID))
	}
	return owners
}

// Begin records what is at the live places now and writes the journal beside
// the database, durably. If point is set, it also writes a pointer to it into
// BackupDir. If there is a journal already, the error matches fs.ErrExist or
// fsat.ErrLocked.
func (r *Replacement) Begin(ctx context.Context, point bool) error {
	j := &Journal{
		Stamp: r.Stamp, BackupDir: r.BackupDir, Started: r.Started, Live: r.Live, Warn: r.Warn, Undone: r.Undone,
		Unlock: r.unlock,
		id:     format.RandomHex(), isOwn: true, leavesDatabase: r.From.Database == "",
	}
	var err error
	if !j.leavesDatabase {
		if j.had.database, j.inPlace.database, err = examine(j.Live.Database); err != nil {
			return err
		}
	}
	if j.Live.Registry != "" {
		if j.had.registry, j.inPlace.registry, err = examine(j.Live.Registry); err != nil {
			return err
		}
	}
	j.had.chroma = j.Live.Chroma != "" && fsat.Exists(j.Live.Chroma)
	j.parts = j.makeParts(r.From)
	if err := j.create(ctx); err != nil {
		return err
	}
	r.journal = j
	if point {
		return j.writePointer()
	}
	return nil
}

// examine reports whether there is a file at path, and whether it is a mount
// point.
func examine(path string) (there, mounted bool, err error) {
	if !fsat.Exists(path) {
		return false, false, nil
	}
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if err != nil {
		return true, false, err
	}
	defer dir.Close()
	mounted, err = dir.IsMountPoint(filepath.Base(path))
	return true, mounted, err
}

// Saved records the safety snapshot that has the old store. If inUse is set, it
// has what the old store was then: before anything is removed, Finish compares.
func (r *Replacement) Saved(stamp string, inUse bool) error {
	if inUse {
		return r.journal.write("safety-in-use " + stamp)
	}
	return r.journal.write("safety " + stamp)
}

// KeepOld records that the old parts are to be kept in the end, because no
// snapshot could be taken of them.
func (r *Replacement) KeepOld() error { return r.journal.write("keep-old") }

// Stage copies the parts beside the live store, makes the copies durable and
// locks the new database, if that is one of them, with the errors of
// [sqlitedb.Lock].
func (r *Replacement) Stage(ctx context.Context) error {
	for _, part := range r.journal.parts {
		if err := part.stage(ctx, r); err != nil {
			return err
		}
	}
	r.unkept.Each(func(message string, err error) { r.journal.warn(message, filepath.Dir(r.Live.Database), err) })
	if r.From.Database == "" {
		return nil
	}
	// Nobody gets at the new database before everything is in place. It is
	// locked after it was synced, not before: syncing opens and closes the file,
	// which drops this process's locks on it.
	var err error
	database := r.Live.Database
	r.staged, err = sqlitedb.Lock(ctx, filepath.Join(filepath.Dir(database), r.journal.stagingName(format.DBDir), newDirName, filepath.Base(database)))
	if r.Broken && errors.Is(err, errdefs.ErrSourceInvalid) {
		return nil // then nobody else can open it either
	}
	return err
}

// Swap puts the new parts in the place of the old ones. ctx is checked at the
// beginning only, so that it is not cancelled half-way.
func (r *Replacement) Swap(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.journal.write("swapping"); err != nil {
		return err
	}
	for _, part := range r.journal.parts {
		if err := part.swap(r.journal); err != nil {
			return err
		}
	}
	return nil
}

// Verify compares what is in place now with Contents. It reads everything that
// was restored.
func (r *Replacement) Verify(ctx context.Context) error {
	for _, part := range slices.Backward(r.journal.parts) {
		if err := part.verify(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// Commit records in the journal, durably, that the new store is in place and
// was verified. If it fails, Close brings the old store back.
func (r *Replacement) Commit() error { return r.journal.Commit() }

// Finish removes the old parts, or sets them aside if KeepOld was called, gives
// the Chroma directory the mode and time of the snapshot's and removes the
// journal. It returns the paths of what was set aside. If it fails, the new
// store is in place and the journal is left, to be finished later. See
// [Journal.Finish] for saved.
func (r *Replacement) Finish(ctx context.Context, saved *SafetySnapshot) (setAside []string, err error) {
	return r.journal.Finish(ctx, r.journal.keepOld, saved, r.Snapshot)
}

// Close brings the old store back, unless Commit succeeded, and releases the
// locks. setAside are the paths of what was in place and was not what had been
// staged. If Close fails, the journal is left, to be rolled back later.
func (r *Replacement) Close() (setAside []string, err error) {
	if r.journal == nil {
		return nil, nil
	}
	if !r.journal.done {
		setAside, err = r.journal.RollBack(context.Background())
	}
	r.closeParts()
	r.journal.Close()
	return setAside, err
}

// unlock closes what is about to be removed: the old database and, unless it is in
// place now, the new one.
func (r *Replacement) unlock() {
	if !r.journal.done || r.journal.inPlace.database {
		r.closeParts()
	}
	if r.Unlock != nil {
		r.Unlock()
	}
}

func (r *Replacement) sumOf(path string) (sum [sha256.Size]byte, ok bool) {
	for _, entry := range r.Contents {
		if entry.Path == path {
			return entry.Sum, true
		}
	}
	return sum, false
}

// Contents returns the hashes of the files of the snapshot dir, in the order of
// their paths. It takes them from the manifest or, since a snapshot of the
// Python module has none, from the files themselves, which it reads for that.
func Contents(ctx context.Context, dir *fsat.Dir) (entries []format.Entry, err error) {
	f, err := dir.Open(format.ManifestName)
	if errors.Is(err, fs.ErrNotExist) {
		err = filetree.Scan(ctx, dir, filetree.ScanOptions{Hash: true}, func(f *filetree.File) error {
			if !f.IsDir() && !f.Irregular {
				entries = append(entries, format.Entry{Sum: f.Sum, Path: f.Path})
			}
			return nil
		})
		return entries, err
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for manifest := format.NewReader(f); ; {
		entry, err := manifest.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
}
