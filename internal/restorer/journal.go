package restorer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/pyjson"
)

// JournalName is the name of the journal of a restore. It is in the backup
// directory, or beside the database if the restore began with an empty place,
// or if the backup directory is read-only.
const JournalName = ".atocore-restore.journal"

// JournalPaths returns the paths at which the journal of a restore can be.
// databasePath may be empty.
func JournalPaths(backupDir, databasePath string) []string {
	paths := []string{filepath.Join(backupDir, JournalName)}
	if databasePath != "" {
		paths = append(paths, filepath.Join(filepath.Dir(fsat.RealPath(databasePath)), JournalName))
	}
	return paths
}

// Pending returns the first of paths at which there is a journal, or an empty
// path if there is none. It does not read the journal.
func Pending(paths []string) (path string, err error) {
	for _, path := range paths {
		if _, err := fsat.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

// A Journal makes a restore all or nothing. It is a file to which lines are
// only ever appended, each made durable before what it announces begins:
//
//	{"version":1, "id":…, …}   staging is being created; the store is untouched
//	swapping                   staging is complete; the parts are being swapped
//	done                       the new store is in place and was verified
//
// A restore that was interrupted in the first state has its staging removed, in
// the second it is undone, in the third the old parts are removed. Each of
// these can itself be interrupted and repeated. An incomplete last line is
// ignored. If the first line is incomplete, nothing had been started.
type Journal struct {
	// Live are the places of the parts that are restored, with links resolved.
	Live Places

	dir  *fsat.Dir // where the journal is
	name string

	id    string
	stamp string
	// These report whether the part existed before.
	hadDatabase, hadRegistry, hadChroma bool
	// setAside: the old parts are kept.
	setAside bool
	// The mode and modification time that the Chroma directory itself gets.
	chromaMode, chromaMtime int64

	state State
	// doneUncertain: writing "done" failed, so the line may or may not be on
	// disk.
	doneUncertain bool
}

// A State is how far a restore got.
type State int

// The states of a journal.
const (
	StateEmpty    State = iota // nothing was started
	StateStaging               // the store is untouched
	StateSwapping              // the store may be half old and half new
	StateDone                  // the store is new
)

const (
	lineSwapping = "swapping\n"
	lineDone     = "done\n"
	// lineUndo is written after a "done" whose fsync failed; the restore then
	// counts as not done.
	lineUndo = "undo\n"

	// maxJournalSize allows three paths of 4,096 bytes, each byte escaped as
	// six.
	maxJournalSize = 128 << 10
)

// State returns how far the restore got.
func (j *Journal) State() State { return j.state }

// Close closes the journal and leaves the file.
func (j *Journal) Close() { j.dir.Close() }

func (j *Journal) fields() []pyjson.Field {
	version := format.Version
	return []pyjson.Field{
		{Name: "version", At: &version},
		{Name: "id", At: &j.id},
		{Name: "stamp", At: &j.stamp},
		{Name: "db_path", At: &j.Live.Database},
		{Name: "registry_path", At: &j.Live.Registry},
		{Name: "chroma_path", At: &j.Live.Chroma},
		{Name: "had_db", At: &j.hadDatabase},
		{Name: "had_registry", At: &j.hadRegistry},
		{Name: "had_chroma", At: &j.hadChroma},
		{Name: "set_aside", At: &j.setAside},
		{Name: "chroma_mode", At: &j.chromaMode},
		{Name: "chroma_mtime_ns", At: (*pyjson.Signed)(&j.chromaMtime)},
	}
}

// begin writes the first line into a new journal in dir, which is closed by
// Close, or by begin after an error.
func (j *Journal) begin(dir *fsat.Dir) (err error) {
	j.dir, j.name = dir, JournalName
	defer func() {
		if err != nil {
			dir.Close()
		}
	}()
	f, err := dir.Create(j.name, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.Remove(j.name, false))
		}
	}()
	if _, err := f.Write([]byte(pyjson.EncodeObject(j.fields(), nil) + "\n")); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), dir.Sync()); err != nil {
		return err
	}
	j.state = StateStaging
	return nil
}

// advance appends the line of a state, durably.
func (j *Journal) advance(state State) error {
	line := lineSwapping
	if state == StateDone {
		line, j.doneUncertain = lineDone, true
	}
	if err := j.add(line); err != nil {
		return err
	}
	j.state, j.doneUncertain = state, false
	return nil
}

func (j *Journal) add(line string) error {
	f, err := j.dir.OpenRW(j.name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte(line), info.Size); err != nil {
		return err
	}
	return f.Sync()
}

// end removes the journal, durably.
func (j *Journal) end() error {
	if err := j.dir.Remove(j.name, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return j.dir.Sync()
}

// ReadJournal reads the journal at path, which is untrusted. It returns nil if
// there is none. The caller must close the journal.
func ReadJournal(path string) (_ *Journal, err error) {
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dir.Close()
		}
	}()
	data, err := dir.ReadSmall(filepath.Base(path), maxJournalSize, nil, nil)
	if errors.Is(err, fs.ErrNotExist) {
		dir.Close()
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	j := &Journal{dir: dir, name: filepath.Base(path)}
	first, rest, whole := bytes.Cut(data, []byte("\n"))
	if !whole {
		return j, nil
	}
	if err := j.parse(first); err != nil {
		return nil, fmt.Errorf("%s is no journal of a restore: %w", path, err)
	}
	switch string(rest) {
	case lineSwapping + lineDone:
		j.state = StateDone
	default:
		j.state = StateStaging
		if bytes.HasPrefix(rest, []byte(lineSwapping)) {
			j.state = StateSwapping
		}
	}
	return j, nil
}

func (j *Journal) parse(line []byte) error {
	if !json.Valid(line) {
		return errors.New("not JSON")
	}
	fields := j.fields()
	if err := pyjson.ReadFields(fields, string(line)); err != nil {
		return err
	}
	for i := range fields {
		f := &fields[i]
		if f.Raw == "" {
			return fmt.Errorf("%s is missing", f.Name)
		}
		if err := f.Decode(); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	if version := pyjson.Find(fields, "version").Raw; version != fmt.Sprint(format.Version) {
		return fmt.Errorf("it is of version %s", version)
	}
	if !format.IsHexID(j.id) {
		return errors.New("the id is malformed")
	}
	return nil
}

// parts returns the parts of the store that are restored, in the order in which
// they are swapped. The database is last, because the other parts do no harm
// beside the old database. from has the places in the snapshot, which only
// staging and verifying need.
func (j *Journal) parts(from Places) []part {
	var parts []part
	if j.Live.Chroma != "" {
		parts = append(parts, &treePart{place: j.placeOf(format.ChromaDir, j.Live.Chroma, filepath.Base(j.Live.Chroma), j.hadChroma), from: from.Chroma})
	}
	if j.Live.Registry != "" {
		dir, name := filepath.Dir(j.Live.Registry), filepath.Base(j.Live.Registry)
		parts = append(parts, &filePart{place: j.placeOf(format.ConfigDir, dir, name, j.hadRegistry), name: name, from: from.Registry})
	}
	if j.Live.Database != "" {
		dir, name := filepath.Dir(j.Live.Database), filepath.Base(j.Live.Database)
		parts = append(parts, &filePart{place: j.placeOf(format.DBDir, dir, name, j.hadDatabase), name: name, from: from.Database, isDatabase: true})
	}
	return parts
}

// placeOf returns the place dir of a part. name is the part's own name there.
func (j *Journal) placeOf(part, dir, name string, had bool) place {
	// A file name has at most 255 bytes. If the part's own name is too long for
	// what follows, the part's name in a snapshot is taken instead.
	if len(name) > 200 {
		name = part
	}
	return place{dir: dir, staging: j.stagingName(part), setAside: name + ".set-aside-" + j.id, had: had}
}

// stagingName returns the name of the staging directory of a part.
func (j *Journal) stagingName(part string) string {
	return ".atocore-restore-" + j.id + "-" + part
}

// RollBack brings the old store back, removes what was staged and then the
// journal. If nothing was started, it only removes the journal. It can be
// repeated after an error.
func (j *Journal) RollBack() error {
	if j.doneUncertain {
		if err := j.add(lineUndo); err != nil {
			return err
		}
	}
	parts := j.parts(Places{})
	if j.state == StateSwapping {
		for _, part := range parts {
			if err := part.undo(); err != nil {
				return err
			}
		}
	}
	for _, part := range parts {
		if err := part.discard(); err != nil {
			return err
		}
	}
	return j.end()
}

// Finish removes the old store or sets it aside, and then removes the journal.
// It returns the directories into which old parts were set aside. It can be
// repeated after an error.
func (j *Journal) Finish() (setAside []string, err error) {
	for _, part := range j.parts(Places{}) {
		kept, err := part.finish(j.setAside)
		if err != nil {
			return setAside, fmt.Errorf("remove what was replaced: %w", err)
		}
		if kept != "" {
			setAside = append(setAside, kept)
		}
	}
	if j.Live.Chroma != "" {
		// This comes last, because everything before has changed the
		// modification time.
		if err := j.finishChroma(); err != nil {
			return setAside, err
		}
	}
	return setAside, j.end()
}

// finishChroma gives the Chroma directory the mode and time of the snapshot's.
func (j *Journal) finishChroma() error {
	dir, err := fsat.OpenDir(j.Live.Chroma)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Chmod(fs.FileMode(j.chromaMode) | fs.ModeDir); err != nil {
		return err
	}
	return dir.Chtimes(".", j.chromaMtime)
}
