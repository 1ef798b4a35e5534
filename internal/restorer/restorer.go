// Package restorer puts a snapshot in the place of a live store, under a
// journal.
//
// It promises that the store is wholly old or wholly new afterwards: an error
// before the new store is verified brings the old one back, and a replacement
// that is interrupted, at any point, can be finished or undone from its journal
// alone. It must not know who asked for the restore: which snapshot may be
// trusted, who has to be kept away from the store, whether the old store is
// saved before, and what the host is told are decisions of the caller.
package restorer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

// errDiffers is returned by Verify. The guide to restoring quotes it.
var errDiffers = errors.New("what was restored is not what the snapshot holds")

// Places are the places of the three parts of a store: the database file, the
// registry file and the Chroma directory. A part that is not concerned has an
// empty place.
type Places struct{ Database, Registry, Chroma string }

// A Replacement replaces the parts of a live store that a snapshot has. Its
// exported fields but Files and Bytes are set by the caller, and its methods
// are called in the order Plan, Begin, Stage, Swap, Verify, Commit, Finish.
// After Begin, Close must be called in the end, whatever happened.
type Replacement struct {
	// Stamp is the snapshot's name, for the journal.
	Stamp string
	// Snapshot is the snapshot's directory, which nobody removes or changes.
	Snapshot *fsat.Dir
	// From are the places in Snapshot, relative and with slashes: files in a
	// directory of Snapshot, and the Chroma directory right below it. There is
	// always a database.
	From Places
	// Contents are the hashes of the snapshot's files, in the order of their
	// paths.
	Contents []format.Entry
	// Live are the places in the live store of the parts in From, absolute and
	// with links resolved.
	Live Places
	// SetAside asks for the old parts to be kept under other names.
	SetAside bool
	// OnStage and OnVerify are called on the caller's goroutine with the file
	// in work and the number of files and bytes done.
	OnStage, OnVerify func(path string, files, bytes int64)

	// Files and Bytes count what Stage has copied.
	Files, Bytes int64

	journal *Journal
	parts   []part
	staged  *sqlitedb.Source // the new database, locked
}

// Plan records what is at the live places now. It changes nothing.
func (r *Replacement) Plan() error {
	j := &Journal{id: format.RandomHex(), stamp: r.Stamp, Live: r.Live, setAside: r.SetAside}
	j.hadDatabase = fsat.Exists(j.Live.Database)
	if j.Live.Registry != "" {
		j.hadRegistry = fsat.Exists(j.Live.Registry)
	}
	if j.Live.Chroma != "" {
		j.hadChroma = fsat.Exists(j.Live.Chroma)
		chroma, err := r.Snapshot.Lstat(r.From.Chroma)
		if err != nil {
			return err
		}
		j.chromaMode, j.chromaMtime = int64(chroma.Mode&^fs.ModeDir), chroma.MtimeNano
	}
	r.journal, r.parts = j, j.parts(r.From)
	return nil
}

// Begin writes the journal into backupDir, durably. If backupDir is nil or
// cannot be written to, it writes the journal beside the database, whose
// directory it creates if necessary.
func (r *Replacement) Begin(backupDir *fsat.Dir) error {
	if backupDir != nil {
		dir, err := backupDir.Reopen()
		if err != nil {
			return err
		}
		if err = r.journal.begin(dir); err == nil || !fsat.IsReadOnly(err) {
			return err
		}
	}
	beside := filepath.Dir(r.Live.Database)
	if err := fsat.MkdirAll(beside); err != nil {
		return err
	}
	dir, err := fsat.OpenDir(beside)
	if err != nil {
		return err
	}
	return r.journal.begin(dir)
}

// Stage copies the parts beside the live store, makes the copies durable and
// locks the new database, with the errors of [sqlitedb.Lock].
func (r *Replacement) Stage(ctx context.Context) error {
	for _, part := range r.parts {
		if err := part.stage(ctx, r); err != nil {
			return err
		}
		if err := part.sync(ctx); err != nil {
			return err
		}
	}
	// Nobody gets at the new database before everything is in place. It is
	// locked after it was synced, not before: syncing opens and closes the file,
	// which drops this process's locks on it.
	var err error
	database := r.Live.Database
	r.staged, err = sqlitedb.Lock(ctx, filepath.Join(filepath.Dir(database), r.journal.stagingName(format.DBDir), newDirName, filepath.Base(database)))
	return err
}

// Swap puts the new parts in the place of the old ones. ctx is checked at the
// beginning only, so that it is not cancelled half-way.
func (r *Replacement) Swap(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.journal.advance(StateSwapping); err != nil {
		return err
	}
	for _, part := range r.parts {
		if err := part.swap(); err != nil {
			return err
		}
	}
	return nil
}

// Verify compares what is in place now with Contents. It reads everything that
// was restored.
func (r *Replacement) Verify(ctx context.Context) error {
	for _, part := range slices.Backward(r.parts) {
		if err := part.verify(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// Commit records in the journal, durably, that the new store is in place and
// was verified. If it fails, Close brings the old store back.
func (r *Replacement) Commit() error { return r.journal.advance(StateDone) }

// Finish removes the old parts, or sets them aside, and removes the journal. It
// returns the directories into which old parts were set aside. If it fails, the
// new store is in place and the journal is left, to be finished later.
func (r *Replacement) Finish() (setAside []string, err error) { return r.journal.Finish() }

// Close brings the old store back, unless Commit succeeded, and releases the
// locks. If it fails, the journal is left, to be rolled back later.
func (r *Replacement) Close() (err error) {
	defer r.journal.Close()
	if r.journal.state == StateStaging || r.journal.state == StateSwapping {
		err = r.journal.RollBack()
	}
	// The files that stage left open go first. Closing a descriptor drops all
	// locks of this process on the file (fcntl(2), "Advisory record locking"),
	// and until the new database is unlocked nobody else can hold any.
	for _, part := range r.parts {
		part.close()
	}
	if r.staged != nil {
		r.staged.Close()
	}
	return err
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
