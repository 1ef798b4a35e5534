package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/atocore/backup/internal/fsat"
)

// A restoreJournal makes a restore all or nothing. It is a file of lines that
// are only ever appended, each durable before what it announces begins:
//
//	{"version":1, "id":…, …}   staging is being made; the store is untouched
//	swapping                   staging is complete; parts are changing places
//	done                       the new store is in place and was checked
//
// A restore that was cut off in the first state has its staging removed, in the
// second it is undone, in the third its remains are removed. All of these can
// be cut off and done again. A line without its newline was never reached; a
// first line without one, so that nothing was begun.
type restoreJournal struct {
	dir  *fsat.Dir // where it lies
	name string

	id    string
	stamp string
	// The places of the parts that are restored, links resolved; empty for one
	// that is not.
	database, registry, chroma string
	// Whether there was one before.
	hadDatabase, hadRegistry, hadChroma bool
	// setAside: the old parts are kept.
	setAside bool
	// The mode and time that the Chroma directory itself is to have.
	chromaMode, chromaMtime int64

	state journalState
	// doubtful: done may have been written, but that is not known.
	doubtful bool
}

type journalState int

const (
	journalEmpty journalState = iota // nothing was begun
	journalStaging
	journalSwapping
	journalDone
)

const (
	lineSwapping = "swapping\n"
	lineDone     = "done\n"
	lineUndo     = "undo\n" // after done: it is not known to be, so it is not

	// maxJournalSize allows three paths of 4,096 bytes, each byte escaped as
	// six.
	maxJournalSize = 128 << 10
)

func (j *restoreJournal) fields() []metadataField {
	version := formatVersion
	return []metadataField{
		{name: "version", at: &version},
		{name: "id", at: &j.id},
		{name: "stamp", at: &j.stamp},
		{name: "db_path", at: &j.database},
		{name: "registry_path", at: &j.registry},
		{name: "chroma_path", at: &j.chroma},
		{name: "had_db", at: &j.hadDatabase},
		{name: "had_registry", at: &j.hadRegistry},
		{name: "had_chroma", at: &j.hadChroma},
		{name: "set_aside", at: &j.setAside},
		{name: "chroma_mode", at: &j.chromaMode},
		{name: "chroma_mtime_ns", at: (*signed)(&j.chromaMtime)},
	}
}

func (j *restoreJournal) path() string { return filepath.Join(j.dir.Path(), j.name) }

// begin writes the first line. dir is then the journal's to close; after an
// error it is closed.
func (j *restoreJournal) begin(dir *fsat.Dir) (err error) {
	var b bytes.Buffer
	for i, f := range j.fields() {
		fmt.Fprintf(&b, `%s%q:%s`, comma(i), f.name, f.encode())
	}
	j.dir, j.name = dir, journalName
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
	if _, err := f.Write([]byte("{" + b.String() + "}\n")); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), dir.Sync()); err != nil {
		return err
	}
	j.state = journalStaging
	return nil
}

// reach appends a state's line, durably.
func (j *restoreJournal) reach(state journalState) error {
	line := lineSwapping
	if state == journalDone {
		line, j.doubtful = lineDone, true
	}
	if err := j.add(line); err != nil {
		return err
	}
	j.state, j.doubtful = state, false
	return nil
}

func (j *restoreJournal) add(line string) error {
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
func (j *restoreJournal) end() error {
	if err := j.dir.Remove(j.name, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return j.dir.Sync()
}

// readJournal reads the journal at path, or gives nil if there is none.
func readJournal(path string) (_ *restoreJournal, err error) {
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
	data, err := readSmall(dir, filepath.Base(path), maxJournalSize, nil, nil)
	if errors.Is(err, fs.ErrNotExist) {
		dir.Close()
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	j := &restoreJournal{dir: dir, name: filepath.Base(path)}
	first, rest, whole := bytes.Cut(data, []byte("\n"))
	if !whole {
		return j, nil
	}
	if err := j.parse(first); err != nil {
		return nil, fmt.Errorf("%s is no journal of a restore: %w", path, err)
	}
	switch string(rest) {
	case lineSwapping + lineDone:
		j.state = journalDone
	default:
		j.state = journalStaging
		if bytes.HasPrefix(rest, []byte(lineSwapping)) {
			j.state = journalSwapping
		}
	}
	return j, nil
}

func (j *restoreJournal) parse(line []byte) error {
	if !json.Valid(line) {
		return errors.New("not JSON")
	}
	fields := j.fields()
	if err := readFields(fields, string(line)); err != nil {
		return err
	}
	for _, f := range fields {
		if f.raw == "" {
			return fmt.Errorf("%s is missing", f.name)
		}
		if err := f.decode(); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if version := findField(fields, "version").raw; version != fmt.Sprint(formatVersion) {
		return fmt.Errorf("it is of version %s", version)
	}
	if !isStagingName(stagingPrefix + j.id) {
		return errors.New("the id is malformed")
	}
	return nil
}

// parts gives the parts of the store that the journal is about, in the order
// in which they change places: the database last, because the others take no
// harm from being seen beside the old one.
func (j *restoreJournal) parts() []swapper {
	var parts []swapper
	if j.chroma != "" {
		parts = append(parts, &treeSwap{dir: j.chroma, staging: j.stagingName(chromaDirName), had: j.hadChroma})
	}
	if j.registry != "" {
		parts = append(parts, &fileSwap{
			dir: filepath.Dir(j.registry), name: filepath.Base(j.registry),
			staging: j.stagingName(configDirName), had: j.hadRegistry,
		})
	}
	if j.database != "" {
		parts = append(parts, &fileSwap{
			dir: filepath.Dir(j.database), name: filepath.Base(j.database), sidecars: []string{"-wal", "-shm", "-journal"},
			staging: j.stagingName(dbDirName), had: j.hadDatabase,
		})
	}
	return parts
}

// stagingName is what the staging directory of a part is called. It lies in
// the directory in which the part changes places.
func (j *restoreJournal) stagingName(part string) string {
	return ".atocore-restore-" + j.id + "-" + part
}

// setAsideName is what an old part that is kept is called in the end. A name
// has at most 255 bytes, so a long one gives way to that of the part.
func (j *restoreJournal) setAsideName(base, part string) string {
	if len(base) > 200 {
		base = part
	}
	return base + ".set-aside-" + j.id
}
