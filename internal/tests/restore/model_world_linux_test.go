package restore

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/atocore/backup/internal/backuptest"
)

// The world of the model: a store on some volumes, two backup directories, and
// a look at everything that is on the disk.

// The parts of a store. A slot is a part in one of its two places: in the
// directory of the store, or in the volume that may be mounted over it.
const (
	modelDB = iota
	modelRegistry
	modelChroma
	modelParts
)

var modelPartNames = [modelParts]string{"db", "registry", "chroma"}

// A modelState says what is in each slot; that of the part p is p*2 in the
// directory itself and p*2+1 in the volume. Equal texts mean equal contents.
type modelState [modelParts * 2]string

// missingPart is the state of a slot in which there is nothing.
const missingPart = "-"

// A modelWorld is a store in a directory of its own. What is in a volume, and
// what is below one that is mounted, can be read at any time.
type modelWorld struct {
	t       *testing.T
	root    string
	flat    bool            // the registry lies beside the database
	volumes map[string]bool // the directories of the store that are volumes
	mounted map[string]bool // those that are mounted
	hidden  map[string]bool // the backup directories that are away
	files   map[int]bool    // the parts whose file is a mount point of its own, always
	canSee  string          // the store's directory without what is mounted in it

	unsure    map[string]bool                     // units in a database that SQLite may overwrite by itself
	databases map[[sha256.Size]byte]modelDatabase // those that were read
	snapshots map[string]*modelSnapshot           // those that were read
}

type modelDatabase struct {
	state string
	units []string
}

// newModelWorld makes the directories of a store, with nothing in them. The
// words of the layout are:
//
//	flat                 the registry lies beside the database
//	db, config, chroma   this directory is a volume
//	file:db, file:registry   this file is a mount point
func newModelWorld(t *testing.T, root string, layout ...string) (*modelWorld, error) {
	w := &modelWorld{
		t: t, root: root, canSee: filepath.Join(root, "live"), files: make(map[int]bool),
		volumes: make(map[string]bool), mounted: make(map[string]bool), hidden: make(map[string]bool),
		unsure: make(map[string]bool), databases: make(map[[sha256.Size]byte]modelDatabase), snapshots: make(map[string]*modelSnapshot),
	}
	for _, dir := range []string{"live/db", "live/config", "volumes/db", "volumes/config", "volumes/chroma", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return nil, err
		}
	}
	for _, word := range layout {
		name, isFile := strings.CutPrefix(word, "file:")
		switch {
		case word == "flat":
			w.flat = true
		case isFile:
			w.files[slices.Index(modelPartNames[:], name)] = true
		default:
			w.volumes[word] = true
		}
	}
	return w, w.mountAll()
}

// mountAll makes and mounts the volumes.
func (w *modelWorld) mountAll() error {
	if len(w.volumes)+len(w.files) == 0 {
		return nil
	}
	w.canSee = filepath.Join(w.root, "base")
	if err := errors.Join(os.Mkdir(w.canSee, 0o755), os.Mkdir(filepath.Join(w.root, "live", "chroma"), 0o755)); err != nil {
		return err
	}
	if err := unix.Mount(filepath.Join(w.root, "live"), w.canSee, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Mount("", w.canSee, "", unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for dir := range w.volumes {
		if err := w.mount(dir); err != nil {
			return err
		}
	}
	for part := range w.files {
		path, volume := w.liveFile(part), filepath.Join(w.root, "volumes", modelPartNames[part]+"-file")
		for _, empty := range []string{path, volume} {
			if err := os.WriteFile(empty, nil, 0o600); err != nil {
				return err
			}
		}
		if err := unix.Mount(volume, path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// remove unmounts and removes everything.
func (w *modelWorld) remove() error {
	var errs []error
	for part := range w.files {
		errs = append(errs, unix.Unmount(w.liveFile(part), unix.MNT_DETACH))
	}
	for dir := range w.mounted {
		errs = append(errs, w.unmount(dir))
	}
	if len(w.volumes)+len(w.files) > 0 {
		errs = append(errs, unix.Unmount(w.canSee, unix.MNT_DETACH))
	}
	if err := errors.Join(errs...); err != nil {
		return err // removing would go through a mount
	}
	return os.RemoveAll(w.root)
}

func (w *modelWorld) mount(dir string) error {
	if !w.volumes[dir] || w.mounted[dir] {
		return nil
	}
	at := filepath.Join(w.root, "live", dir)
	if err := unix.Mount(filepath.Join(w.root, "volumes", dir), at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	w.mounted[dir] = true
	return nil
}

func (w *modelWorld) unmount(dir string) error {
	if !w.mounted[dir] {
		return nil
	}
	delete(w.mounted, dir)
	// The library keeps descriptors of databases open.
	return unix.Unmount(filepath.Join(w.root, "live", dir), unix.MNT_DETACH)
}

// setMounts mounts the volumes in want and unmounts the others.
func (w *modelWorld) setMounts(want map[string]bool) error {
	for dir := range w.volumes {
		change := w.unmount
		if want[dir] {
			change = w.mount
		}
		if err := change(dir); err != nil {
			return err
		}
	}
	return nil
}

// paths returns the paths of the store for a call with a backup directory.
func (w *modelWorld) paths(backupDir string) modelPaths {
	live := filepath.Join(w.root, "live")
	return modelPaths{
		Database:      filepath.Join(live, "db", "atocore.db"),
		Registry:      filepath.Join(live, w.dirOf(modelRegistry), "registry.json"),
		Chroma:        filepath.Join(live, "chroma"),
		BackupDir:     filepath.Join(w.root, backupDir),
		IncludeChroma: true,
	}
}

// dirOf returns the name of the directory in which a part lies.
func (w *modelWorld) dirOf(part int) string {
	switch {
	case part == modelChroma:
		return "chroma"
	case part == modelRegistry && !w.flat:
		return "config"
	}
	return "db"
}

// slot returns the slot of a part that the paths of the store lead to.
func (w *modelWorld) slot(part int) int {
	if w.mounted[w.dirOf(part)] {
		return part*2 + 1
	}
	return part * 2
}

// pathOf returns where the files of a slot are, or an empty path if there is no
// such slot.
func (w *modelWorld) pathOf(slot int) string {
	dir := w.dirOf(slot / 2)
	switch {
	case slot%2 == 0 && w.hasFile(dir): // what is below the file is of no interest
		return filepath.Join(w.root, "live", dir)
	case slot%2 == 0:
		return filepath.Join(w.canSee, dir)
	case w.volumes[dir]:
		return filepath.Join(w.root, "volumes", dir)
	}
	return ""
}

// hasFile reports whether a file in the directory is a mount point.
func (w *modelWorld) hasFile(dir string) bool {
	for part := range w.files {
		if w.dirOf(part) == dir {
			return true
		}
	}
	return false
}

// liveFile returns the path of a part's file, or of one in the Chroma directory.
func (w *modelWorld) liveFile(part int) string {
	live := filepath.Join(w.root, "live", w.dirOf(part))
	switch part {
	case modelDB:
		return filepath.Join(live, "atocore.db")
	case modelRegistry:
		return filepath.Join(live, "registry.json")
	}
	return filepath.Join(live, "same")
}

// owners returns to whom the file of each part belongs, or if there is none, its
// directory; and whether it is the file.
func (w *modelWorld) owners() (owners [modelParts]uint32, files [modelParts]bool) {
	for part := range modelParts {
		path := w.liveFile(part)
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		if files[part] = err == nil; err != nil {
			err = unix.Lstat(filepath.Dir(path), &st)
		}
		if err == nil {
			owners[part] = st.Uid
		}
	}
	return owners, files
}

// backupPath returns where a backup directory is now.
func (w *modelWorld) backupPath(name string) string {
	if w.hidden[name] {
		name += ".hidden"
	}
	return filepath.Join(w.root, name)
}

// A modelScan is what is on the disk.
type modelScan struct {
	state modelState
	// units says where each unit of content is: "live", "old ID" in a staging
	// directory of a restore, "aside", or a snapshot as in the keys of
	// snapshots.
	units map[string][]string
	// snapshots has the visible ones, by backup directory and stamp: "A/…".
	snapshots map[string]*modelSnapshot
	// journals are those of restores, by id.
	journals map[string]*modelJournal
	// aside has the names of the directories with what was set aside, and their
	// paths as the store's paths lead to them, or none.
	aside map[string]string
	// remains are the names of what restores have left, where the store's paths
	// lead, and hidden those elsewhere.
	remains, hidden []string
}

// A modelSnapshot is a snapshot as it was when it was seen first.
type modelSnapshot struct {
	dir, stamp string
	parts      [modelParts]string // the states of its parts; empty for one that it lacks
	units      []string
	aside      []string // names of set-aside directories in its Chroma directory
}

type modelJournal struct {
	slot      int    // that of the database beside which it lies
	ID        string `json:"id"`
	BackupDir string `json:"backup_dir"`
	lines     []string
}

const (
	journalFile   = ".atocore-restore.journal"
	remainsPrefix = ".atocore-restore"
	asideMark     = ".set-aside-"
)

func (s *modelScan) add(where string, units ...string) {
	for _, unit := range units {
		if !slices.Contains(s.units[unit], where) {
			s.units[unit] = append(s.units[unit], where)
		}
	}
}

// scan looks at everything.
func (w *modelWorld) scan() (*modelScan, error) {
	s := &modelScan{
		units: make(map[string][]string), snapshots: make(map[string]*modelSnapshot),
		journals: make(map[string]*modelJournal), aside: make(map[string]string),
	}
	seen := make(map[string]bool)
	for part := range modelParts {
		for slot := part * 2; slot <= part*2+1; slot++ {
			path := w.pathOf(slot)
			if path == "" {
				continue
			}
			state, units, err := w.readPart(part, path)
			if err != nil {
				return nil, err
			}
			s.state[slot] = state
			s.add("live", units...)
			if !seen[path] {
				seen[path] = true
				if err := w.scanRest(s, path, slot); err != nil {
					return nil, err
				}
			}
		}
	}
	// A Chroma directory that is no mount point is set aside beside itself.
	if err := w.scanRest(s, w.canSee, modelChroma*2); err != nil {
		return nil, err
	}
	if err := w.collect(s, filepath.Join(w.root, "cleared"), "aside"); err != nil {
		return nil, err
	}
	for _, name := range []string{"A", "B"} {
		if err := w.scanSnapshots(s, name); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// scanRest looks at what restores have left in a directory of the store.
func (w *modelWorld) scanRest(s *modelScan, path string, slot int) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	visible := path == w.canSee || w.slot(slot/2) == slot
	for _, entry := range entries {
		name, full := entry.Name(), filepath.Join(path, entry.Name())
		switch {
		case strings.Contains(name, asideMark):
			s.aside[name] = ""
			if path == w.canSee {
				s.aside[name] = filepath.Join(w.root, "live", name)
			} else if visible {
				s.aside[name] = filepath.Join(w.root, "live", w.dirOf(slot/2), name)
			}
			if err := w.collect(s, full, "aside"); err != nil {
				return err
			}
		case strings.HasPrefix(name, remainsPrefix):
			if visible {
				s.remains = append(s.remains, full)
			} else {
				s.hidden = append(s.hidden, full)
			}
			if name == journalFile {
				err = s.addJournal(full, slot)
			} else {
				id, _, _ := strings.Cut(strings.TrimPrefix(name, remainsPrefix+"-"), "-")
				err = w.collect(s, filepath.Join(full, "old"), "old "+id)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *modelScan) addJournal(path string, slot int) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	j := &modelJournal{slot: slot, ID: fmt.Sprint("torn in ", slot)}
	for _, line := range strings.SplitAfter(string(data), "\n") {
		if strings.HasSuffix(line, "\n") {
			j.lines = append(j.lines, line[:strings.LastIndexByte(line, ' ')])
		}
	}
	if len(j.lines) > 0 {
		if err := json.Unmarshal([]byte(j.lines[0]), j); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	s.journals[j.ID] = j
	return nil
}

func (w *modelWorld) scanSnapshots(s *modelScan, name string) error {
	root := filepath.Join(w.backupPath(name), "snapshots")
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		key := name + "/" + entry.Name()
		path := filepath.Join(root, entry.Name())
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		identity := fmt.Sprint(key, info.Sys().(*syscall.Stat_t).Ino, info.ModTime())
		if w.snapshots[identity] == nil {
			if w.snapshots[identity], err = w.readSnapshot(path, name, entry.Name()); err != nil {
				return err
			}
		}
		s.snapshots[key] = w.snapshots[identity]
		s.add(key, w.snapshots[identity].units...)
	}
	return nil
}

func (w *modelWorld) readSnapshot(path, dir, stamp string) (*modelSnapshot, error) {
	snapshot := &modelSnapshot{dir: dir, stamp: stamp}
	for part, below := range [modelParts]string{"db", "config", "chroma"} {
		state, units, err := w.readPart(part, filepath.Join(path, below))
		if err != nil {
			return nil, err
		}
		_, err = os.Stat(filepath.Join(path, "chroma"))
		if state != missingPart || part == modelChroma && err == nil {
			snapshot.parts[part] = state
		}
		snapshot.units = append(snapshot.units, units...)
	}
	// What was set aside in the Chroma directory is in the snapshot.
	found, err := filepath.Glob(filepath.Join(path, "chroma", "*"+asideMark+"*"))
	if err != nil {
		return nil, err
	}
	for _, aside := range found {
		snapshot.aside = append(snapshot.aside, filepath.Base(aside))
	}
	rest := &modelScan{units: make(map[string][]string)}
	if err := w.collect(rest, filepath.Join(path, "chroma"), "chroma"); err != nil {
		return nil, err
	}
	snapshot.units = append(snapshot.units, slices.Collect(maps.Keys(rest.units))...)
	return snapshot, nil
}

// readPart reads a part in the directory at path.
func (w *modelWorld) readPart(part int, path string) (state string, units []string, err error) {
	switch part {
	case modelDB:
		return w.readDatabase(filepath.Join(path, "atocore.db"))
	case modelRegistry:
		data, err := os.ReadFile(filepath.Join(path, "registry.json"))
		if errors.Is(err, fs.ErrNotExist) {
			return missingPart, nil, nil
		}
		return describeContent(data), unitsIn(data), err
	}
	var files []string
	err = filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == path {
			return nil
		}
		if err != nil {
			return err
		}
		if base := entry.Name(); strings.HasPrefix(base, remainsPrefix) || strings.Contains(base, asideMark) {
			return filepath.SkipDir
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(name)
		files = append(files, strings.TrimPrefix(name, path+"/")+"="+describeContent(data))
		units = append(units, unitsIn(data)...)
		return err
	})
	if len(files) == 0 {
		return missingPart, nil, err
	}
	slices.Sort(files)
	return strings.Join(files, " "), units, err
}

var unitPattern = regexp.MustCompile(`(unit|damage)-[0-9]+[a-z][0-9]*`)

// unitsIn returns the units of content that a file has.
func unitsIn(data []byte) []string {
	var units []string
	for _, found := range unitPattern.FindAll(data, -1) {
		units = append(units, string(found))
	}
	slices.Sort(units)
	return slices.Compact(units)
}

// describeContent names the units in a file and has a checksum of everything.
func describeContent(data []byte) string {
	sum := sha256.Sum256(data)
	return fmt.Sprintf("%s#%x", strings.Join(unitsIn(data), ","), sum[:2])
}

// readDatabase reads the rows of a copy of a database and the files beside it.
// If SQLite refuses the database, its units are the damage in it. A WAL whose
// database is missing or empty is a unit by itself.
func (w *modelWorld) readDatabase(path string) (state string, units []string, err error) {
	hash := sha256.New()
	suffixes := []string{"", "-wal", "-journal"}
	var files [3][]byte
	var there [3]bool
	for i, suffix := range suffixes {
		data, err := os.ReadFile(path + suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", nil, err
		}
		files[i], there[i] = data, err == nil
		fmt.Fprintln(hash, there[i], len(data))
		hash.Write(data)
	}
	key := [sha256.Size]byte(hash.Sum(nil))
	known, ok := w.databases[key]
	if !ok {
		known = w.judgeDatabase(files[0], there[0], func() (string, error) {
			copied := filepath.Join(w.root, "tmp", "atocore.db")
			for i, suffix := range suffixes {
				if err := os.Remove(copied + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return "", err
				}
				if there[i] {
					if err := os.WriteFile(copied+suffix, files[i], 0o600); err != nil {
						return "", err
					}
				}
			}
			return copied, nil
		})
		if strings.HasPrefix(known.state, "bad") && len(files[1])+len(files[2]) > 0 {
			// SQLite may still empty the WAL into the file.
			for _, unit := range append(known.units, unitOfWAL(files[1])) {
				w.unsure[unit] = true
			}
			known.units = nil
		}
		if len(files[1]) > 0 && len(files[0]) == 0 {
			known.units = append(known.units, unitOfWAL(files[1]))
		}
		w.databases[key] = known
	}
	return known.state, known.units, nil
}

// judgeDatabase reads the copy of a database that materialize makes.
func (w *modelWorld) judgeDatabase(data []byte, there bool, materialize func() (string, error)) (found modelDatabase) {
	switch {
	case !there:
		return modelDatabase{state: missingPart}
	case len(data) == 0:
		return modelDatabase{state: "empty"}
	}
	var bad modelDatabase
	for _, unit := range unitsIn(data) {
		if strings.HasPrefix(unit, "damage") {
			bad.units = append(bad.units, unit)
		}
	}
	bad.state = "bad " + strings.Join(bad.units, ",")
	path, err := materialize()
	if err != nil {
		return modelDatabase{state: err.Error()}
	}
	db, err := backuptest.Open(path)
	if err != nil {
		return bad
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&verdict); err != nil || verdict != "ok" {
		return bad
	}
	rows, err := db.Query("SELECT name FROM unit ORDER BY id")
	if err != nil {
		if strings.Contains(err.Error(), "no such table") {
			return modelDatabase{state: "rows none"}
		}
		return bad
	}
	defer rows.Close()
	for rows.Next() {
		var unit string
		if err := rows.Scan(&unit); err != nil {
			return bad
		}
		found.units = append(found.units, unit)
	}
	if rows.Err() != nil {
		return bad
	}
	found.state = "rows " + strings.Join(found.units, ",")
	return found
}

// isLive reports whether a file below a staging directory is the live database.
func (w *modelWorld) isLive(path string) bool {
	old, err := os.Stat(path)
	if err != nil {
		return false
	}
	live, err := os.Stat(filepath.Join(path, "..", "..", "..", "atocore.db"))
	return err == nil && os.SameFile(old, live)
}

// collectWAL adds a WAL that may belong to no database as a unit of its own.
func (w *modelWorld) collectWAL(s *modelScan, database, where string) error {
	data, err := os.ReadFile(database + "-wal")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if len(data) > 0 {
		s.add(where, unitOfWAL(data))
	}
	return err
}

func unitOfWAL(data []byte) string {
	sum := sha256.Sum256(data)
	return fmt.Sprintf("wal-%x", sum[:4])
}

var databaseName = regexp.MustCompile(`^atocore\.db(\.[0-9]+)?$`)

// collect looks at all files below path, which may be missing.
func (w *modelWorld) collect(s *modelScan, path, where string) error {
	return filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == path {
			return nil
		}
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if _, err := os.Stat(filepath.Join(name, "atocore.db")); err == nil {
				return nil
			}
			return w.collectWAL(s, filepath.Join(name, "atocore.db"), where)
		}
		if databaseName.MatchString(entry.Name()) {
			if w.isLive(name) {
				// It is a second name of the live database. A WAL beside it may belong
				// to what that was before.
				return w.collectWAL(s, name, where)
			}
			_, units, err := w.readDatabase(name)
			s.add(where, units...)
			return err
		}
		if strings.HasPrefix(entry.Name(), "atocore.db") {
			return nil
		}
		data, err := os.ReadFile(name)
		s.add(where, unitsIn(data)...)
		return err
	})
}
