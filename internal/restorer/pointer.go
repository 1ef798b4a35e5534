package restorer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
	"github.com/atocore/backup/internal/pyjson"
)

// A pointer is a file in the backup directory with the path of a journal, so
// that calls that know only the backup directory find it. It has one line with
// a checksum, like the journal's. It exists as long as its journal does. dir tells
// the journal's directory from another one that is at its path while its volume
// is not mounted; it is empty if the system gives no inode numbers.
type pointer struct{ journal, database, dir string }

func (p *pointer) fields() []pyjson.Field {
	version := journalVersion
	return []pyjson.Field{
		{Name: "version", At: &version},
		{Name: "journal", At: &p.journal},
		{Name: "db_path", At: &p.database},
		{Name: "dir", At: &p.dir, Optional: true},
	}
}

// describeDir returns what the pointer to a journal says of its directory.
func describeDir(journal string) string {
	info, err := fsat.Stat(filepath.Dir(journal))
	if err != nil || info.Ino == 0 {
		return ""
	}
	return fmt.Sprintf("inode %d", info.Ino)
}

// PointerIsStale reports whether the pointer in a backup directory leads nowhere,
// and not because a volume is missing: it was not written to its end, or the
// directory of its journal is there, without the journal. So the restore was
// finished or undone while this backup directory could not be reached.
func PointerIsStale(backupDir string) bool {
	p, err := readPointer(backupDir)
	if err != nil || p == nil {
		return err == nil
	}
	return p.dir != "" && p.dir == describeDir(p.journal) && !fsat.Exists(p.journal)
}

// writePointer writes the pointer to j into its backup directory, durably. A
// backup directory in which nothing can be created has none.
func (j *Journal) writePointer() error {
	dir, err := fsat.OpenDir(j.BackupDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// One that is there leads nowhere, or was not written to its end.
	if err := dir.Remove(JournalName, false); err != nil && !errors.Is(err, fs.ErrNotExist) && !fsat.IsReadOnly(err) {
		return err
	}
	f, err := dir.Create(JournalName, 0o600)
	if fsat.IsReadOnly(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	p := pointer{j.Path(), j.Live.Database, describeDir(j.Path())}
	line, _ := seal(0, pyjson.EncodeObject(p.fields(), nil))
	if _, err := f.Write([]byte(line)); err != nil {
		return err
	}
	return errors.Join(f.Sync(), dir.Sync())
}

// readPointer reads the pointer in a backup directory. It returns nil if there
// is none, or if it was not written to its end: then nothing had been begun.
func readPointer(backupDir string) (*pointer, error) {
	dir, err := fsat.OpenDir(backupDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	path := filepath.Join(backupDir, JournalName)
	data, err := dir.ReadSmall(JournalName, maxJournalSize, nil, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, fsat.ErrNotRegular), errors.Is(err, fsat.ErrTooLarge):
		return nil, fmt.Errorf("%s: %w: %w", path, ErrNotJournal, err)
	case err != nil:
		return nil, err
	}
	if !bytes.Contains(data, []byte("\n")) {
		if new(Journal).isDamagedLine(data) {
			return nil, fmt.Errorf("%s: %w: the end of its line is wrong", path, ErrNotJournal)
		}
		return nil, nil
	}
	var p pointer
	if err := p.parse(string(data)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &p, nil
}

func (p *pointer) parse(text string) error {
	line, rest, whole := strings.Cut(text, "\n")
	if !whole || rest != "" {
		return fmt.Errorf("%w: it does not have one line", ErrNotJournal)
	}
	var reader Journal // for the checksum
	line, err := reader.unseal(line)
	if err != nil {
		return err
	}
	fields := p.fields()
	if err := pyjson.ReadFields(fields, line); err != nil {
		return fmt.Errorf("%w: %w", ErrNotJournal, err)
	}
	for i := range fields {
		if err := fields[i].Decode(); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrNotJournal, fields[i].Name, err)
		}
	}
	if version := pyjson.Find(fields, "version").Raw; version != fmt.Sprint(journalVersion) {
		return fmt.Errorf("%w: it is of version %s", ErrNotJournal, version)
	}
	// Backups are untrusted: a pointer must not lead to a file of another kind.
	if !filepath.IsAbs(p.journal) || filepath.Clean(p.journal) != p.journal || filepath.Base(p.journal) != JournalName {
		return fmt.Errorf("%w: %q is not the path of a journal", ErrNotJournal, p.journal)
	}
	return nil
}

// removePointer removes the pointer to the journal at path from a backup
// directory, durably, also if it was not written to its end. One that leads
// elsewhere stays. A backup directory that is missing or read-only is none of the
// store's concern.
func removePointer(backupDir, path string) error {
	p, err := readPointer(backupDir)
	if err != nil || p != nil && p.journal != path {
		return nil
	}
	dir, err := fsat.OpenDir(backupDir)
	if err != nil {
		return nil
	}
	defer dir.Close()
	err = dir.Remove(JournalName, false)
	if fsat.IsReadOnly(err) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// If it was gone, a call that was killed may have removed it and not synced.
	return dir.Sync()
}

// Pending describes a restore that was begun and has not ended.
type Pending struct {
	// Journal is the path of its journal.
	Journal string
	// Database is the database that it is about, if a pointer led to it.
	Database string
	// Running reports whether somebody holds the journal's lock.
	Running bool
	// Missing reports that only the pointer to the journal was found: the
	// volume of the store is not mounted, or somebody removed the journal.
	Missing bool
}

// FindPending looks for a restore that has not ended: for the journal beside
// the database at databasePath, which may be empty, and for one that the
// backup directory points to. It returns nil if there is none. A pointer
// whose journal is gone while its database is there is stale and ignored.
func FindPending(backupDir, databasePath string) (*Pending, error) {
	if databasePath != "" {
		database := fsat.RealPath(databasePath)
		if found, err := pendingAt(filepath.Join(filepath.Dir(database), JournalName)); found != nil || err != nil {
			return found, err
		}
	}
	p, err := readPointer(backupDir)
	if err != nil || p == nil {
		return nil, err
	}
	found, err := pendingAt(p.journal)
	if err == nil && found == nil && !fsat.Exists(p.database) {
		found = &Pending{Journal: p.journal, Missing: true}
	}
	if found != nil {
		found.Database = p.database
	}
	return found, err
}

// pendingAt looks at the journal at path. It returns nil if there is none.
func pendingAt(path string) (*Pending, error) {
	if _, err := fsat.Stat(path); fsat.IsMissing(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	// A restore that begins creates its journal and then locks it, for which it
	// waits while a reader has the lock; one that ends removes its journal and then
	// unlocks it. Seen between the two, a journal is not that of a restore which was
	// interrupted, so such a one is looked at again.
	found, settled := lookAt(path)
	for pause := time.Millisecond; !settled && pause < 100*time.Millisecond; pause *= 2 {
		_ = poll.Sleep(context.Background(), pause)
		found, settled = lookAt(path)
	}
	return found, nil
}

// lookAt is one look at the journal at path. It reports whether a restore that is
// beginning or ending just now would look different.
func lookAt(path string) (found *Pending, settled bool) {
	found = &Pending{Journal: path}
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if err != nil {
		return found, true
	}
	defer dir.Close()
	info, err := dir.Lstat(JournalName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, true
	case err != nil || !info.Mode.IsRegular():
		return found, true
	}
	f, err := dir.Open(JournalName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true
	}
	if err != nil {
		return found, true
	}
	defer f.Close()
	if found.Running = errors.Is(f.TryRLock(), fsat.ErrLocked); found.Running {
		return found, true
	}
	named, err := dir.Lstat(JournalName)
	switch mine, statErr := f.Stat(); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, true
	case err != nil || statErr != nil:
		return found, true
	case named.Ino != mine.Ino:
		return found, false
	default:
		return found, mine.Size > 0
	}
}

// Remains returns the staging directories of restores at the places of a
// store. Without a journal they are of a restore whose journal was removed, or
// whose volume was not mounted when it was undone. Places that cannot be read
// are skipped. A staging directory in which nothing was left but removed files that
// were open is removed, or passed over while they are still open.
func Remains(live Places) (paths []string) {
	seen := make(map[string]bool)
	for _, place := range []string{live.Chroma, parentOf(live.Registry), parentOf(live.Database)} {
		if place == "" || seen[place] {
			continue
		}
		seen[place] = true
		dir, err := fsat.OpenDir(place)
		if err != nil {
			continue
		}
		defer dir.Close()
		entries, err := dir.ReadDir()
		if err != nil {
			continue
		}
		for _, entry := range entries {
			switch {
			case !isRemains(entry):
			case strings.HasSuffix(entry.Name, removedSuffix):
				_ = dir.RemoveTree(context.Background(), entry.Name) // it stays while a file is open
			default:
				paths = append(paths, filepath.Join(place, entry.Name))
			}
		}
	}
	return paths
}

// IsReserved reports whether a part of a store must not have the given name,
// because a restore would take it for a file of its own: for its journal or a
// staging directory. Case does not count, since on some file systems it doesn't.
func IsReserved(name string) bool {
	return strings.HasPrefix(strings.ToLower(name), RemainsPrefix) || strings.EqualFold(name, JournalName)
}

// removedSuffix ends the name of a staging directory of which nothing is needed
// any more, and which could not be removed.
const removedSuffix = "removed"

func parentOf(path string) string {
	if path == "" {
		return ""
	}
	return filepath.Dir(path)
}

// isRemains reports whether an entry is the staging directory of a restore.
func isRemains(entry fsat.Entry) bool { return entry.Type.IsDir() && IsRemainsName(entry.Name) }

// IsNoPartOfChroma reports whether an entry of the Chroma directory, by its name,
// is neither copied nor restored nor touched: the lost+found of a volume, and the
// staging directory of a restore.
func IsNoPartOfChroma(name string) bool { return name == format.LostFound || IsRemainsName(name) }

// IsRemainsName reports whether name is that of a staging directory of a restore.
func IsRemainsName(name string) bool {
	rest, ok := strings.CutPrefix(name, RemainsPrefix)
	id, part, found := strings.Cut(rest, "-")
	return ok && found && format.IsHexID(id) && strings.Trim(part, "abcdefghijklmnopqrstuvwxyz") == ""
}

// ClearRemains removes the staging directories that Remains finds and that hold
// nothing of a live store. It calls removed for each.
func ClearRemains(ctx context.Context, live Places, removed func(path string)) error {
	for _, path := range Remains(live) {
		if fsat.HasEntries(filepath.Join(path, oldDirName), nil) {
			continue
		}
		dir, err := fsat.OpenDir(filepath.Dir(path))
		if err != nil {
			return err
		}
		err = dir.RemoveTree(ctx, filepath.Base(path))
		dir.Close()
		if err != nil {
			return err
		}
		removed(path)
	}
	return nil
}

// NothingAt reports whether there is nothing at the places of a store: no
// database and nothing of one, no registry, nothing in the Chroma directory, and
// nothing that a restore has left.
func NothingAt(live Places) (bool, error) {
	paths := []string{live.Database, live.Database + "-wal", live.Database + "-journal"}
	if live.Registry != "" {
		paths = append(paths, live.Registry)
	}
	for _, path := range paths {
		if _, err := fsat.Stat(path); err == nil {
			return false, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return len(Remains(live)) == 0 && (live.Chroma == "" || !fsat.HasEntries(live.Chroma, IsNoPartOfChroma)), nil
}
