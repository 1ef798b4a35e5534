package restorer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
	"github.com/atocore/backup/internal/pyjson"
)

// JournalName is the name of the journal of a restore, which is in the
// directory of the live database, and of the pointer to it in the backup
// directory.
const JournalName = ".atocore-restore.journal"

// RemainsPrefix begins the names of the staging directories of a restore.
const RemainsPrefix = ".atocore-restore-"

// journalVersion is the version of the journal's form. Version 1 had neither
// checksums nor a line for each step.
const journalVersion = 2

// maxJournalSize allows four paths of 4,096 bytes, each byte escaped as six.
const maxJournalSize = 160 << 10

// ErrNotJournal is returned for a file that is not exactly what a restore
// writes. Nothing is inferred from such a file and nothing is touched.
var ErrNotJournal = errors.New("not a journal of a restore")

// A Journal makes a restore all or nothing. It is a file of lines that are only
// ever appended, each with a checksum of everything up to its end, and each
// durable before what it announces begins:
//
//	{"version":2, "id":…, …}  staging is being created; the store is untouched
//	safety STAMP              this safety snapshot was taken; or
//	safety-in-use STAMP       this one was, while the store was in use: what was
//	                          written since is in the old parts only; or
//	keep-old                  none could be: the old parts are kept
//	swapping                  staging is complete
//	begin PART                the part is being swapped
//	split PART                a directory of the part is moved file by file
//	out PART                  the old part is completely in old/
//	end PART                  the new part is in place
//	done                      the new store is in place and was verified
//	undo                      the old store is being brought back
//	aside PART                the live part is not what was staged: it is kept
//	cleared PART              the live place is empty
//	undone PART               the old part is back
//	cleaned PART              the staging directory is empty
//
// How far a restore got is read from these lines and never inferred from what
// is missing on disk: a volume that is not mounted looks like a step that was
// done. Only prefixes of the sequences that a restore can write are accepted.
// An incomplete last line was never acted upon and is ignored; if the first line
// is incomplete, nothing had been begun.
//
// The file is locked with flock(2) as long as a Journal is open.
type Journal struct {
	// Stamp is the snapshot that is restored, from BackupDir.
	Stamp, BackupDir string
	// Live are the places of the parts that are restored, with links resolved.
	// That of the database is always set, because the journal lies beside it; see
	// LeavesDatabase.
	Live Places
	// Started is when the restore began.
	Started time.Time
	// Warn, if it is set, is called with conditions that are no failure.
	Warn func(message, path string, err error)
	// Unlock, if it is set, is called before files are removed that were live: the
	// caller must close them now, and releases its locks on them. They would stay
	// under another name on FUSE and NFS.
	Unlock func()
	// Undone, if it is set, is called by RollBack when the old store is back,
	// and the journal still there.
	Undone func()

	id    string
	isOwn bool                                      // whether this call began the restore
	had   struct{ database, registry, chroma bool } // whether the part existed before
	// inPlace is set for a file that is a mount point, over which nothing can
	// be renamed: it is overwritten.
	inPlace struct{ database, registry bool }
	// leavesDatabase is set if the database is not restored.
	leavesDatabase bool
	handedOver     bool // the new parts are in use already

	progress
	parts []part
	dir   *fsat.Dir
	file  *fsat.File
	size  int64  // of the lines that count
	sum   uint32 // of the same
}

// progress is what a journal says about how far its restore got.
type progress struct {
	empty    bool // the first line is incomplete
	safety   string
	hot      bool // the safety snapshot was taken while the store was in use
	keepOld  bool
	swapping bool
	done     bool
	undo     bool
	steps    map[string]map[string]bool // part → lines
}

// reached reports whether the journal has this line for the part.
func (p *progress) reached(line, part string) bool { return p.steps[part][line] }

// A State is how far a restore got.
type State int

// The states of a journal.
const (
	StateEmpty    State = iota // nothing was begun
	StateStaging               // the store is untouched
	StateSwapping              // the store is half old and half new
	StateSwapped               // the store is new, but was not verified
	StateUndoing               // the old store is being brought back
	StateDone                  // the store is new and was verified
)

// State returns how far the restore got.
func (j *Journal) State() State {
	switch {
	case j.empty:
		return StateEmpty
	case j.done:
		return StateDone
	case j.undo:
		return StateUndoing
	case !j.swapping:
		return StateStaging
	}
	for _, name := range j.partNames() {
		if !j.reached("end", name) {
			return StateSwapping
		}
	}
	return StateSwapped
}

// Safety returns the stamp of the safety snapshot that was taken. It is empty
// if there was no store, or if none could be taken; KeepsOld tells these apart.
func (j *Journal) Safety() string { return j.safety }

// SavedInUse reports whether the safety snapshot was taken while the store was in
// use, so that the old parts may have more.
func (j *Journal) SavedInUse() bool { return j.hot }

// KeepsOld reports whether the old parts are to be kept, because no safety
// snapshot has them.
func (j *Journal) KeepsOld() bool { return j.keepOld }

// LeavesDatabase reports whether the restore leaves the database alone.
func (j *Journal) LeavesDatabase() bool { return j.leavesDatabase }

// ID returns the identifier that the restore's staging directories have in
// their names.
func (j *Journal) ID() string { return j.id }

// Path returns the path of the journal.
func (j *Journal) Path() string { return filepath.Join(j.dir.Path(), JournalName) }

// partNames returns the names of the parts, in the order in which they are
// swapped. The database is last, because the other parts do no harm beside the
// old database.
func (j *Journal) partNames() (names []string) {
	for _, p := range []struct{ name, live string }{
		{format.ChromaDir, j.Live.Chroma}, {format.ConfigDir, j.Live.Registry}, {format.DBDir, j.Live.Database},
	} {
		if p.live != "" && (p.name != format.DBDir || !j.leavesDatabase) {
			names = append(names, p.name)
		}
	}
	return names
}

// apply records a line, or returns an error if no restore writes it here.
func (j *Journal) apply(line string) error {
	verb, arg, hasArg := strings.Cut(line, " ")
	if hasArg && arg == "" || !j.follows(verb, arg) {
		return fmt.Errorf("%w: %q is out of place", ErrNotJournal, line)
	}
	switch verb {
	case "safety", "safety-in-use":
		j.safety, j.hot = arg, verb == "safety-in-use"
	case "keep-old":
		j.keepOld = true
	case "swapping":
		j.swapping = true
	case "done":
		j.done = true
	case "undo":
		j.undo = true
	default:
		if j.steps == nil {
			j.steps = make(map[string]map[string]bool)
		}
		if j.steps[arg] == nil {
			j.steps[arg] = make(map[string]bool)
		}
		j.steps[arg][verb] = true
	}
	return nil
}

// follows reports whether a restore writes this line after the ones so far.
func (j *Journal) follows(verb, arg string) bool {
	names := j.partNames()
	at := slices.Index(names, arg)
	all := func(line string, names []string) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return !j.reached(line, name) })
	}
	switch verb {
	case "safety", "safety-in-use":
		return format.IsStamp(arg) && !j.swapping && !j.undo && j.safety == "" && !j.keepOld
	case "keep-old":
		return arg == "" && !j.swapping && !j.undo && j.safety == "" && !j.keepOld
	case "swapping":
		return arg == "" && !j.swapping && !j.undo
	case "done":
		return arg == "" && j.swapping && all("end", names) && !j.done && !j.undo
	case "undo":
		return arg == "" && !j.done && !j.undo
	}
	if at < 0 || j.reached(verb, arg) {
		return false
	}
	switch verb {
	case "begin":
		return j.swapping && !j.undo && all("end", names[:at])
	case "split":
		return j.reached("begin", arg) && arg == format.ChromaDir && !j.reached("end", arg) && !j.reached("undone", arg)
	case "out":
		return j.reached("begin", arg) && !j.undo && !j.reached("end", arg)
	case "end":
		return j.reached("begin", arg) && !j.undo && (arg != format.ChromaDir || j.reached("out", arg))
	case "aside", "cleared":
		return j.undo && j.reached("begin", arg) && !j.reached("cleared", arg) && !j.reached("undone", arg)
	case "undone":
		return j.undo && j.reached("begin", arg)
	case "cleaned":
		if j.undo {
			return !slices.ContainsFunc(names, func(name string) bool {
				return j.reached("begin", name) && !j.reached("undone", name)
			})
		}
		return j.done
	}
	return false
}

// leftField is missing in journals that were written before a restore could
// leave the database alone.
const leftField = "db_left"

func (j *Journal) fields() []pyjson.Field {
	version := journalVersion
	return []pyjson.Field{
		{Name: "version", At: &version},
		{Name: "id", At: &j.id},
		{Name: "started_at", At: &j.Started},
		{Name: "stamp", At: &j.Stamp},
		{Name: "backup_dir", At: &j.BackupDir},
		{Name: "db_path", At: &j.Live.Database},
		{Name: "registry_path", At: &j.Live.Registry},
		{Name: "chroma_path", At: &j.Live.Chroma},
		{Name: "had_db", At: &j.had.database},
		{Name: "had_registry", At: &j.had.registry},
		{Name: "had_chroma", At: &j.had.chroma},
		{Name: "db_in_place", At: &j.inPlace.database},
		{Name: "registry_in_place", At: &j.inPlace.registry},
		{Name: leftField, At: &j.leavesDatabase},
	}
}

// create writes the first line into a new journal beside the database. If there
// is a journal already, the error matches fs.ErrExist.
func (j *Journal) create(ctx context.Context) (err error) {
	beside := filepath.Dir(j.Live.Database)
	if err := filetree.MkdirAll(beside); err != nil {
		return err
	}
	if j.dir, err = fsat.OpenDir(beside); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			j.Close()
		}
	}()
	if j.file, err = j.dir.Create(JournalName, 0o600); err != nil {
		return err
	}
	// Whoever looks for a journal locks it for a moment, and may remove it as one
	// in which nothing was begun.
	err = poll.Until(ctx, time.Millisecond, 20*time.Millisecond, func() (bool, error) {
		return !errors.Is(j.file.TryLock(), fsat.ErrLocked), nil
	})
	if err != nil {
		return errors.Join(err, j.dir.Remove(JournalName, false))
	}
	if named, err := j.isNamed(); err != nil || !named {
		return errors.Join(err, fsat.ErrLocked)
	}
	if err := j.add(pyjson.EncodeObject(j.fields(), nil)); err != nil {
		return errors.Join(err, j.dir.Remove(JournalName, false))
	}
	if err := j.dir.Sync(); err != nil {
		return errors.Join(err, j.remove())
	}
	return nil
}

// isNamed reports whether the journal's name leads to the open file.
func (j *Journal) isNamed() (bool, error) {
	there, err := j.dir.Lstat(JournalName)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	mine, err := j.file.Stat()
	return err == nil && there.Ino == mine.Ino, err
}

// write appends a line, durably, and records it. If it fails it is not known
// whether the line is on disk; the next line takes its place.
func (j *Journal) write(line string) error {
	before := j.progress.clone()
	if err := j.apply(line); err != nil {
		return err
	}
	if err := j.add(line); err != nil {
		j.progress = before
		return err
	}
	return nil
}

func (p *progress) clone() progress {
	c := *p
	c.steps = make(map[string]map[string]bool, len(p.steps))
	for part, lines := range p.steps {
		c.steps[part] = make(map[string]bool, len(lines))
		for line := range lines {
			c.steps[part][line] = true
		}
	}
	return c
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal returns the line with the checksum of all lines up to it.
func seal(sum uint32, line string) (sealed string, next uint32) {
	next = crc32.Update(sum, castagnoli, []byte(line+"\n"))
	return fmt.Sprintf("%s %08x\n", line, next), next
}

func (j *Journal) add(line string) error {
	sealed, sum := seal(j.sum, line)
	if err := j.file.Truncate(j.size); err != nil {
		return err
	}
	if _, err := j.file.WriteAt([]byte(sealed), j.size); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.size += int64(len(sealed))
	j.sum = sum
	return nil
}

// remove removes the pointer and then the journal, durably. In this order a
// pointer without a journal means that the journal's volume is missing.
func (j *Journal) remove() error {
	if err := removePointer(j.BackupDir, j.Path()); err != nil {
		return err
	}
	return j.removeFile()
}

func (j *Journal) removeFile() error {
	if err := j.dir.Remove(JournalName, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return j.dir.Sync()
}

// Close unlocks and closes the journal, and leaves the file. It closes the
// files of the live store that were compared, too; that drops this process's
// locks on them.
func (j *Journal) Close() {
	for _, part := range j.parts {
		part.close()
	}
	j.file.Close()
	j.dir.Close()
}

// OpenJournal opens and locks the journal beside the database at the real path
// database. It returns nil if there is none. Errors: fsat.ErrLocked while
// somebody works with the journal, ErrNotJournal, or an *fs.PathError.
func OpenJournal(database string) (_ *Journal, err error) {
	dir, err := fsat.OpenDir(filepath.Dir(database))
	if fsat.IsMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j := &Journal{dir: dir}
	defer func() {
		if err != nil || j.file == nil {
			j.Close()
		}
	}()
	for {
		info, err := dir.Lstat(JournalName)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if !info.Mode.IsRegular() {
			return nil, fmt.Errorf("%s: %w: %w", j.Path(), ErrNotJournal, fsat.ErrNotRegular)
		}
		if j.file, err = dir.OpenRW(JournalName); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		if err := j.file.TryLock(); errors.Is(err, fsat.ErrLocked) {
			return nil, err
		}
		// Whoever had the lock before may have removed the journal.
		if named, err := j.isNamed(); err != nil {
			return nil, err
		} else if named {
			break
		}
		j.file.Close()
		j.file = nil
	}
	if err := j.read(); err != nil {
		return nil, fmt.Errorf("%s: %w", j.Path(), err)
	}
	if j.empty {
		return j, nil
	}
	// A call that was killed may have written the last line and not synced it.
	// Whoever reads the line acts on it.
	if err := j.file.Sync(); err != nil {
		return nil, err
	}
	if want := filepath.Dir(j.Live.Database); want != filepath.Dir(database) {
		return nil, fmt.Errorf("%s: %w: it was written in %s", j.Path(), ErrNotJournal, want)
	}
	return j, nil
}

// AwaitJournal is OpenJournal, and waits for readers, which lock a journal for
// moments.
func AwaitJournal(ctx context.Context, database string) (journal *Journal, err error) {
	attempts := 0
	perr := poll.Until(ctx, time.Millisecond, 20*time.Millisecond, func() (bool, error) {
		attempts++
		journal, err = OpenJournal(database)
		return !errors.Is(err, fsat.ErrLocked) || attempts == 15, nil
	})
	if perr != nil {
		return nil, perr
	}
	return journal, err
}

// read reads the lines of the journal, which are untrusted.
func (j *Journal) read() error {
	info, err := j.file.Stat()
	if err != nil {
		return err
	}
	if info.Size > maxJournalSize {
		return fmt.Errorf("%w: %w", ErrNotJournal, fsat.ErrTooLarge)
	}
	data := make([]byte, info.Size)
	n, err := j.file.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return j.parse(data[:n])
}

// parse reads the lines of a journal.
func (j *Journal) parse(data []byte) error {
	for first := true; ; first = false {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		switch {
		case !whole && j.isDamagedLine(data):
			return fmt.Errorf("%w: the end of a line is wrong", ErrNotJournal)
		case !whole && first:
			j.empty = true
			return nil
		case !whole: // the incomplete last line, or nothing
			j.parts = j.makeParts(Places{})
			return nil
		}
		text, err := j.unseal(string(line))
		if err != nil {
			return err
		}
		if first {
			err = j.parseHeader(text)
		} else {
			err = j.apply(text)
		}
		if err != nil {
			return err
		}
		data = rest
	}
}

// isDamagedLine reports whether data, which has no newline, is a whole line in
// which that was replaced. Such a line may have been acted upon.
func (j *Journal) isDamagedLine(data []byte) bool {
	if len(data) == 0 {
		return false
	}
	probe := Journal{sum: j.sum}
	_, err := probe.unseal(string(data[:len(data)-1]))
	return err == nil
}

// unseal returns a line without its checksum, which it compares.
func (j *Journal) unseal(line string) (string, error) {
	at := strings.LastIndexByte(line, ' ')
	if at < 0 {
		return "", fmt.Errorf("%w: a line has no checksum", ErrNotJournal)
	}
	sealed, sum := seal(j.sum, line[:at])
	if sealed != line+"\n" {
		return "", fmt.Errorf("%w: the checksum of a line is wrong", ErrNotJournal)
	}
	j.size += int64(len(sealed))
	j.sum = sum
	return line[:at], nil
}

func (j *Journal) parseHeader(line string) error {
	fields := j.fields()
	if err := pyjson.ReadFields(fields, line); err != nil {
		return fmt.Errorf("%w: %w", ErrNotJournal, err)
	}
	if version := pyjson.Find(fields, "version").Raw; version != fmt.Sprint(journalVersion) {
		return fmt.Errorf("%w: it is of version %s", ErrNotJournal, version)
	}
	for i := range fields {
		f := &fields[i]
		switch {
		case f.Raw == "" && f.Name == leftField:
			continue
		case f.Raw == "":
			return fmt.Errorf("%w: %s is missing", ErrNotJournal, f.Name)
		}
		if err := f.Decode(); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrNotJournal, f.Name, err)
		}
	}
	if !format.IsHexID(j.id) {
		return fmt.Errorf("%w: the id is malformed", ErrNotJournal)
	}
	for _, path := range []string{j.Live.Database, j.Live.Registry, j.Live.Chroma} {
		if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
			return fmt.Errorf("%w: %q is not a clean absolute path", ErrNotJournal, path)
		}
	}
	if j.Live.Database == "" {
		return fmt.Errorf("%w: it has no database", ErrNotJournal)
	}
	if len(j.partNames()) == 0 {
		return fmt.Errorf("%w: it has no part", ErrNotJournal)
	}
	return nil
}
