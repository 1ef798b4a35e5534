package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/atocore/backup/internal/fsat"
)

// beginJournal writes down what is about to be restored, and where. It lies in
// the backup directory; beside the database if that is an empty place, whose
// affairs concern nobody else, or if the backup directory is read-only.
func (r *restore) beginJournal(backupDir, snapshot *fsat.Dir) error {
	j := &restoreJournal{id: randomHex(), stamp: r.result.Stamp, setAside: r.setAside}
	j.database = realPath(r.DatabasePath)
	j.hadDatabase = isThere(j.database)
	if r.meta.RegistrySnapshotPath != "" {
		j.registry = realPath(r.RegistryPath)
		j.hadRegistry = isThere(j.registry)
	}
	if r.meta.ChromaSnapshotPath != "" {
		j.chroma = realPath(r.ChromaPath)
		j.hadChroma = isThere(j.chroma)
		chroma, err := snapshot.Lstat(chromaDirName)
		if err != nil {
			return err
		}
		j.chromaMode, j.chromaMtime = int64(chroma.Mode&^fs.ModeDir), chroma.MtimeNano
	}
	r.journal = j
	if r.empty {
		// Nobody else was kept away from an empty place until here.
		if still, err := r.nothingThere(); err != nil {
			return err
		} else if !still {
			return fmt.Errorf("%w: somebody put something where there was nothing to restore over", ErrBusy)
		}
	} else {
		dir, err := backupDir.Reopen()
		if err != nil {
			return err
		}
		if err = j.begin(dir); err == nil || !isReadOnly(err) {
			return err
		}
	}
	beside := filepath.Dir(j.database)
	if err := makeDir(beside); err != nil {
		return err
	}
	dir, err := fsat.OpenDir(beside)
	if err != nil {
		return err
	}
	return j.begin(dir)
}

// isReadOnly tells of a directory in which this process may make nothing.
func isReadOnly(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}

func isThere(path string) bool {
	_, err := fsat.Stat(path)
	return err == nil
}

// snapshotPath gives the place in the snapshot of a part that is recorded.
func (r *restore) snapshotPath(recorded string) (rel string, err error) {
	rel, ok := relativeTo(r.meta.BackupRoot, recorded)
	if !ok {
		return "", fmt.Errorf("%w: %q leads out of it", ErrInvalidBackup, recorded)
	}
	return rel, nil
}

// stage copies the snapshot beside the live store and makes the copy durable.
func (r *restore) stage(ctx context.Context, snapshot *fsat.Dir) error {
	r.report(Progress{Phase: PhaseStage})
	for _, part := range r.journal.parts() {
		var err error
		switch p := part.(type) {
		case *treeSwap:
			err = r.stageTree(ctx, snapshot, p)
		case *fileSwap:
			err = r.stageFile(ctx, snapshot, p)
		}
		if err != nil {
			return err
		}
		if err := part.sync(ctx); err != nil {
			return err
		}
	}
	// Nobody gets at the new database before everything is in place. Not before
	// it was synced: that opens and closes the file, which drops locks.
	var err error
	database := r.journal.database
	r.fresh, err = lockDatabase(ctx, filepath.Join(filepath.Dir(database), r.journal.stagingName(dbDirName), newDirName, filepath.Base(database)))
	return err
}

func (r *restore) stageTree(ctx context.Context, snapshot *fsat.Dir, p *treeSwap) error {
	dst, err := p.stage()
	if err != nil {
		return err
	}
	defer dst.Close()
	src, err := snapshot.OpenDir(chromaDirName)
	if err != nil {
		return err
	}
	defer src.Close()
	tree := treeCopy{
		alien: func(fsat.Info) bool { return false },
		progress: func(path string, files, bytes int64) {
			r.report(Progress{Phase: PhaseStage, Path: path, Files: files, Bytes: bytes})
		},
	}
	files, bytes, err := tree.copyTree(ctx, src, dst, copyWorkers())
	if err != nil {
		return err
	}
	r.result.Files += files
	r.result.Bytes += bytes
	// It became like the snapshot's, which may be read-only; all of it is to be
	// moved out.
	if err := dst.Chmod(0o700); err != nil {
		return err
	}
	live, err := fsat.Stat(p.dir)
	if err != nil {
		return err
	}
	return giveTree(ctx, dst, live)
}

func (r *restore) stageFile(ctx context.Context, snapshot *fsat.Dir, p *fileSwap) error {
	database := p.sidecars != nil
	if err := makeDir(p.dir); err != nil {
		return err
	}
	dst, err := p.stage()
	if err != nil {
		return err
	}
	defer dst.Close()
	recorded := r.meta.RegistrySnapshotPath
	if database {
		recorded = r.meta.DBSnapshotPath
	}
	rel, err := r.snapshotPath(recorded)
	if err != nil {
		return err
	}
	srcDir, err := snapshot.OpenDir(path.Dir(rel))
	if err != nil {
		return err
	}
	defer srcDir.Close()
	src, err := srcDir.Open(path.Base(rel))
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	f, err := dst.Create(p.name, 0o600)
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			f.Close()
		}
	}()
	var copier fsat.Copier
	n, err := copier.Copy(ctx, f, src, info, func(n int64) {
		r.result.Bytes += n
		r.report(Progress{Phase: PhaseStage, Path: src.Path(), Files: r.result.Files, Bytes: r.result.Bytes})
	})
	if err != nil {
		return err
	}
	if n != info.Size {
		return fmt.Errorf("%w: %s became shorter", ErrSourceChanged, src.Path())
	}
	r.result.Files++
	mode := info.Mode.Perm()
	old, oldErr := fsat.Stat(filepath.Join(p.dir, p.name))
	if database && oldErr == nil {
		mode = old.Mode.Perm()
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if oldErr == nil {
		if err := give(dst, p.name, old); err != nil {
			return err
		}
	}
	if database {
		// The new database will be read through this descriptor: closing
		// another one would drop the lock on it.
		keep, r.freshDB = true, f
	}
	return dst.Chtimes(p.name, info.MtimeNano)
}

// give makes the owner of old the owner of the entry name, if this process may
// do that.
func give(dir *fsat.Dir, name string, old fsat.Info) error {
	if os.Geteuid() != 0 || old.UID < 0 {
		return nil
	}
	info, err := dir.Lstat(name)
	if err != nil || info.UID == old.UID && info.GID == old.GID {
		return err
	}
	return dir.Chown(name, old.UID, old.GID)
}

func giveTree(ctx context.Context, dir *fsat.Dir, owner fsat.Info) error {
	if os.Geteuid() != 0 || owner.UID < 0 {
		return nil
	}
	entries, err := dir.ReadDir()
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if entry.Type.IsDir() {
			sub, err := dir.OpenDir(entry.Name)
			if err != nil {
				return err
			}
			err = giveTree(ctx, sub, owner)
			sub.Close()
			if err != nil {
				return err
			}
		}
		if err := give(dir, entry.Name, owner); err != nil {
			return err
		}
	}
	return nil
}

// swap lets old and new change places. It is not cancelled half-way.
func (r *restore) swap(ctx context.Context) error {
	r.report(Progress{Phase: PhaseSwap})
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := r.journal.reach(journalSwapping); err != nil {
		return err
	}
	for _, part := range r.journal.parts() {
		if err := part.swap(); err != nil {
			return err
		}
	}
	return nil
}

// verify compares what is in place now with what the snapshot holds.
func (r *restore) verify(ctx context.Context) error {
	r.report(Progress{Phase: PhaseVerify, TotalFiles: r.result.Files, TotalBytes: r.result.Bytes})
	j := r.journal
	if err := r.verifyFile(ctx, r.freshDB, j.database, r.meta.DBSnapshotPath); err != nil {
		return err
	}
	r.result.DatabasePath = r.DatabasePath
	if j.registry != "" {
		f, err := fsat.OpenFile(j.registry)
		if err != nil {
			return err
		}
		err = r.verifyFile(ctx, f, j.registry, r.meta.RegistrySnapshotPath)
		f.Close()
		if err != nil {
			return err
		}
		r.result.RegistryPath = r.RegistryPath
	}
	if j.chroma != "" {
		if err := r.verifyTree(ctx); err != nil {
			return err
		}
		r.result.ChromaPath = r.ChromaPath
	}
	return nil
}

var errRestoredDiffers = errors.New("what was restored is not what the snapshot holds")

func (r *restore) verifyFile(ctx context.Context, f *fsat.File, place, recorded string) error {
	rel, err := r.snapshotPath(recorded)
	if err != nil {
		return err
	}
	there, err := fsat.Stat(place)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Dev != there.Dev || info.Ino != there.Ino {
		return fmt.Errorf("%w: %s was replaced", errRestoredDiffers, place)
	}
	want, ok := r.sumOf(rel)
	sum, err := hashAll(ctx, f, info.Size)
	if err != nil {
		return err
	}
	if !ok || sum != want {
		return fmt.Errorf("%w: %s", errRestoredDiffers, place)
	}
	return nil
}

func (r *restore) sumOf(rel string) (sum [sha256.Size]byte, ok bool) {
	for _, entry := range r.expected {
		if entry.path == rel {
			return entry.sum, true
		}
	}
	return sum, false
}

// hashAll hashes a file that was written through the same descriptor.
func hashAll(ctx context.Context, f *fsat.File, size int64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	buf := make([]byte, hashChunk)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		n, err := f.ReadAt(buf[:min(hashChunk, size-off)], off)
		h.Write(buf[:n])
		off += int64(n)
		if err != nil {
			return sum, err
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}

func (r *restore) verifyTree(ctx context.Context) error {
	root, err := fsat.OpenDir(r.journal.chroma)
	if err != nil {
		return err
	}
	defer root.Close()
	var want []manifestEntry
	for _, entry := range r.expected {
		if strings.HasPrefix(entry.path, chromaDirName+"/") {
			want = append(want, entry)
		}
	}
	staging := r.journal.stagingName(chromaDirName)
	files := scan{
		root: root, hash: true,
		skip: func(path string) bool { return path == staging },
		progress: func(path string, files, bytes int64) {
			r.report(Progress{Phase: PhaseVerify, Path: path, Files: files, TotalFiles: r.result.Files, Bytes: bytes, TotalBytes: r.result.Bytes})
		},
	}
	err = files.run(ctx, func(f *scannedFile) error {
		if f.isDir() {
			return nil
		}
		if len(want) == 0 || f.irregular || chromaDirName+"/"+f.path != want[0].path || f.sum != want[0].sum {
			return fmt.Errorf("%w: %s/%s", errRestoredDiffers, r.journal.chroma, f.path)
		}
		want = want[1:]
		return nil
	})
	if err == nil && len(want) > 0 {
		err = fmt.Errorf("%w: %s is missing", errRestoredDiffers, want[0].path)
	}
	return err
}

// leave ends the call's work with the journal: what was not done is undone.
func (r *restore) leave() (err error) {
	j := r.journal
	defer j.dir.Close()
	if j.state == journalStaging || j.state == journalSwapping {
		if err = j.rollBack(); err != nil {
			err = fmt.Errorf("%w: undo: %w", ErrRestoreUnfinished, err)
		}
	}
	// Of two that have the same file open, the one whose end drops the other's
	// lock goes first.
	r.freshDB.Close()
	if r.fresh != nil {
		r.fresh.Close()
	}
	return err
}

// rollBack brings the old store back and removes what was staged.
func (j *restoreJournal) rollBack() error {
	if j.doubtful {
		if err := j.add(lineUndo); err != nil {
			return err
		}
	}
	parts := j.parts()
	for _, part := range parts {
		if j.state == journalSwapping {
			if err := part.undo(); err != nil {
				return err
			}
		}
	}
	for _, part := range parts {
		if _, err := part.clean(""); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if tree, ok := part.(*treeSwap); ok {
			if err := tree.removeEmpty(); err != nil {
				return err
			}
		}
	}
	return j.end()
}

// finish removes the old store or sets it aside, and ends the journal.
func (r *restore) finish() error {
	j := r.journal
	for _, part := range j.parts() {
		setAside := ""
		if j.setAside {
			switch p := part.(type) {
			case *treeSwap:
				setAside = j.setAsideName(filepath.Base(p.dir), chromaDirName)
			case *fileSwap:
				setAside = j.setAsideName(p.name, strings.TrimPrefix(p.staging, j.stagingName("")))
			}
		}
		kept, err := part.clean(setAside)
		if err != nil {
			return fmt.Errorf("remove what was replaced: %w", err)
		}
		if kept != "" {
			r.result.SetAside = append(r.result.SetAside, kept)
		}
	}
	if j.chroma != "" {
		// Last, for all that came before has changed its time.
		if err := restoreTimes(j); err != nil {
			return err
		}
	}
	return j.end()
}

func restoreTimes(j *restoreJournal) error {
	dir, err := fsat.OpenDir(j.chroma)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Chmod(fs.FileMode(j.chromaMode) | fs.ModeDir); err != nil {
		return err
	}
	return dir.Chtimes(".", j.chromaMtime)
}
