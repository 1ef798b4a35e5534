package restorer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
)

// What a journal can do with its restore, within the call that made it and in a
// later one.

// makeParts returns the parts of the store that are restored, in the order in
// which they are swapped. from has the places in the snapshot, which only
// staging and verifying need.
func (j *Journal) makeParts(from Places) []part {
	var parts []part
	for _, name := range j.partNames() {
		switch name {
		case format.ChromaDir:
			at := j.placeOf(name, j.Live.Chroma, filepath.Dir(j.Live.Chroma), filepath.Base(j.Live.Chroma), j.had.chroma)
			parts = append(parts, &treePart{place: at, from: from.Chroma})
		case format.ConfigDir:
			dir, base := filepath.Dir(j.Live.Registry), filepath.Base(j.Live.Registry)
			at := j.placeOf(name, dir, dir, base, j.had.registry)
			parts = append(parts, &filePart{place: at, name: base, from: from.Registry, inPlace: j.inPlace.registry})
		case format.DBDir:
			dir, base := filepath.Dir(j.Live.Database), filepath.Base(j.Live.Database)
			at := j.placeOf(name, dir, dir, base, j.had.database)
			parts = append(parts, &filePart{place: at, name: base, from: from.Database, isDatabase: true, inPlace: j.inPlace.database})
		}
	}
	return parts
}

// placeOf returns the place of a part in dir. name is the part's own name.
func (j *Journal) placeOf(part, dir, parent, name string, had bool) place {
	// A file name has at most 255 bytes. If the part's own name is too long for
	// what follows, the part's name in a snapshot is taken instead.
	if len(name) > 200 {
		name = part
	}
	return place{
		part: part, dir: dir, parent: parent, staging: j.stagingName(part), setAside: name + ".set-aside-" + j.id, had: had,
		isOwn: j.isOwn,
	}
}

// stagingName returns the name of the staging directory of a part.
func (j *Journal) stagingName(part string) string { return RemainsPrefix + j.id + "-" + part }

func (j *Journal) warn(message, path string, err error) {
	if j.Warn != nil {
		j.Warn(message, path, err)
	}
}

// Matches reports whether what is in place is exactly what was staged: every
// byte of it, and nothing else. It reads all of it.
func (j *Journal) Matches(ctx context.Context) (bool, error) {
	if err := j.check(); err != nil {
		return false, err
	}
	for _, part := range j.parts {
		if same, err := part.matches(ctx); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// check returns an error if a volume is missing that undoing or finishing needs,
// before any part is touched.
func (j *Journal) check() error {
	for _, part := range j.parts {
		if err := part.check(j); err != nil {
			return err
		}
	}
	return nil
}

// PartsAreThere reports whether there is something in the place of each part of
// which something was staged.
func (j *Journal) PartsAreThere() (bool, error) {
	for _, part := range j.parts {
		if there, err := part.isThere(); err != nil || !there {
			return false, err
		}
	}
	return true, nil
}

// Commit records, durably, that the new store is in place and good.
func (j *Journal) Commit() error { return j.write("done") }

// RollBack brings the old store back, removes what was staged, calls Undone, and
// removes the journal. What is in place and is not what was staged is set aside;
// RollBack returns where. It can be repeated after an error.
func (j *Journal) RollBack(ctx context.Context) (setAside []string, err error) {
	if j.empty {
		return nil, j.removeFile()
	}
	if j.swapping {
		if !j.undo {
			if err := j.write("undo"); err != nil {
				return nil, err
			}
		}
		if err := j.check(); err != nil {
			return nil, err
		}
		for _, part := range slices.Backward(j.parts) {
			if err := part.undo(ctx, j); err != nil {
				return nil, err
			}
		}
	}
	for _, part := range j.parts {
		part.close()
	}
	j.unlock()
	if err := j.clean(); err != nil {
		return nil, err
	}
	if j.Undone != nil {
		j.Undone()
	}
	return j.end()
}

// Finish removes the old parts, or sets them aside if keepOld is set, and then
// the journal. It returns the paths of what was set aside. If snapshot is not
// nil, the Chroma directory gets the mode and time of the snapshot's. Finish
// can be repeated after an error.
//
// If SavedInUse, a part is removed only if everything that it has is in the
// safety snapshot, saved; otherwise, or if that cannot be compared, or if ctx
// ends, or if saved is nil, it is set aside as well. That reads all old parts.
func (j *Journal) Finish(ctx context.Context, keepOld bool, saved *SafetySnapshot, snapshot *fsat.Dir) (setAside []string, err error) {
	if err := j.check(); err != nil {
		return nil, err
	}
	j.unlock()
	for _, part := range j.parts {
		keep := !j.reached("cleaned", part.called()) && j.keeps(ctx, part, keepOld, saved)
		if err := part.clean(j, keep); err != nil {
			return nil, err
		}
	}
	if !j.handedOver {
		j.dress(snapshot)
	}
	return j.end()
}

func (j *Journal) unlock() {
	if j.Unlock != nil {
		j.Unlock()
	}
}

// dress gives the Chroma directory the mode and time of the snapshot's, if that
// is not nil.
func (j *Journal) dress(snapshot *fsat.Dir) {
	if j.Live.Chroma == "" || snapshot == nil {
		return
	}
	// Everything before has changed the modification time.
	if err := j.dressChroma(snapshot); err != nil {
		j.warn("chroma_mode_not_restored", j.Live.Chroma, err)
	}
}

func (j *Journal) clean() error {
	for _, part := range j.parts {
		if err := part.clean(j, false); err != nil {
			return err
		}
	}
	return nil
}

// end removes the journal and returns the paths of what was set aside, in this
// call or an earlier one.
func (j *Journal) end() (setAside []string, err error) {
	for _, part := range j.parts {
		kept, err := part.kept()
		if err != nil {
			return nil, err
		}
		if kept != "" {
			setAside = append(setAside, kept)
		}
	}
	err = j.remove()
	if err != nil && len(setAside) > 0 { // the next call may find no journal to tell it from
		err = fmt.Errorf("%w (what was in the way is in %s)", err, strings.Join(setAside, ", "))
	}
	return setAside, err
}

// dressChroma gives the Chroma directory the mode and time of the snapshot's.
// If the directory belongs to somebody else, that may not be permitted.
func (j *Journal) dressChroma(snapshot *fsat.Dir) error {
	info, err := snapshot.Lstat(format.ChromaDir)
	if errors.Is(err, fs.ErrNotExist) { // it was empty, and went through an object store
		return nil
	}
	if err != nil {
		return err
	}
	dir, err := fsat.OpenDir(j.Live.Chroma)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Chmod(info.Mode &^ fs.ModeSetuid); err != nil {
		return err
	}
	if err := dir.Chtimes(".", info.Mtime); err != nil {
		return err
	}
	return dir.Sync()
}
