package backupdir

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// A Record is what is known about a snapshot and is not in it, because a
// snapshot never changes: records/<stamp>.json in the backup directory. Records
// are untrusted and may be lost; then nothing is known.
type Record struct {
	Version int    `json:"version"`
	Stamp   string `json:"stamp"`
	// Manifest is the SHA-256 of the snapshot's SHA256SUMS that the verdict is
	// about, in hexadecimal; empty if the snapshot has none.
	Manifest string `json:"manifest_sha256"`
	// VerifiedAt is when the snapshot was last validated; zero if it never was.
	VerifiedAt time.Time `json:"verified_at,omitzero"`
	// Valid and Intact are that verdict, and Findings what was found, in part.
	Valid    bool     `json:"valid"`
	Intact   bool     `json:"intact"`
	Findings []string `json:"findings,omitempty"`
	// Protected keeps a prune from removing the snapshot.
	Protected bool `json:"protected"`
	// Note is the host's.
	Note string `json:"note,omitempty"`
}

const (
	recordVersion = 1
	recordSuffix  = ".json"

	// maxRecordSize bounds what is read of a record.
	maxRecordSize = 64 << 10
	// MaxNote bounds the host's note in bytes, so that a record stays small.
	MaxNote = 4 << 10
	// maxFindings and maxFinding bound the findings in a record and the length
	// of each. JSON needs at most six bytes for one, so that a record which is
	// full stays below maxRecordSize.
	maxFindings = 10
	maxFinding  = 512
	// maxManifest bounds what is read of a manifest to compare its sum: some two
	// million files.
	maxManifest = 256 << 20

	// maxWait bounds the wait for another update.
	maxWait = 5 * time.Second
)

// OpenRecords opens the directory of the records in the backup directory dir.
// It returns nil if there is none, or something else in its place.
func OpenRecords(dir *fsat.Dir) (*fsat.Dir, error) {
	records, err := dir.OpenIfExists(format.RecordsName)
	return records, withoutMissing(err)
}

// ReadRecord returns what is recorded about the snapshot stamp, which is open
// as snapshot, in records, which may be nil. A record that is missing, damaged
// or of another form is an empty one. A verdict about another manifest than the
// snapshot's is left out; to know that, ReadRecord reads the manifest, unless
// ctx ends. It opens no file of which forbidden, which may be nil, reports
// true. An error means that there may be a record that says more than the result:
// a file could not be read.
func ReadRecord(ctx context.Context, records *fsat.Dir, stamp string, snapshot *fsat.Dir, forbidden func(fsat.Info) bool) (Record, error) {
	if records == nil {
		return Record{}, nil
	}
	r, err := readRecord(records, stamp, forbidden)
	if err != nil || r.VerifiedAt.IsZero() {
		return r, err
	}
	sum, err := ManifestSum(ctx, snapshot, forbidden)
	if err != nil || sum != r.Manifest {
		r.forgetVerdict()
	}
	if errors.Is(err, fsat.ErrTooLarge) {
		err = nil
	}
	return r, err
}

func (r *Record) forgetVerdict() {
	r.Manifest, r.VerifiedAt, r.Valid, r.Intact, r.Findings = "", time.Time{}, false, false, nil
}

func readRecord(records *fsat.Dir, stamp string, forbidden func(fsat.Info) bool) (Record, error) {
	empty := Record{Version: recordVersion, Stamp: inJSON(stamp)}
	data, err := records.ReadSmall(stamp+recordSuffix, maxRecordSize, forbidden, nil)
	switch {
	case errors.Is(err, fsat.ErrNotRegular), errors.Is(err, fsat.ErrTooLarge), fsat.IsMissing(err):
		return empty, nil
	case err != nil:
		return empty, err
	}
	var r Record
	if json.Unmarshal(data, &r) != nil || r.Version != recordVersion || r.Stamp != inJSON(stamp) {
		return empty, nil
	}
	// In UTC, a time may be of a year that JSON cannot have.
	if r.VerifiedAt = r.VerifiedAt.UTC(); r.VerifiedAt.Year() < 1 || r.VerifiedAt.Year() > 9999 {
		r.forgetVerdict()
	}
	return r, nil
}

// inJSON returns a name, which may be any bytes, as JSON has it.
func inJSON(name string) string { return string([]rune(name)) }

// withoutMissing returns err unless it says that something is missing.
func withoutMissing(err error) error {
	if fsat.IsMissing(err) {
		return nil
	}
	return err
}

// UpdateRecord changes what is recorded about the snapshot stamp in the backup
// directory dir, atomically and durably. Updates wait for each other by an
// exclusive flock(2) on the directory of the records, so that a verdict does
// not cost a snapshot its protection; whoever holds it for longer than maxWait
// makes an update fail.
// It opens no file of which forbidden, which may be nil, reports true.
func UpdateRecord(ctx context.Context, dir *fsat.Dir, stamp string, forbidden func(fsat.Info) bool, change func(*Record)) error {
	err := dir.Mkdir(format.RecordsName, 0o700)
	if err == nil {
		err = dir.Sync()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	records, err := dir.OpenDir(format.RecordsName)
	if err != nil {
		return err
	}
	defer records.Close()
	wait, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	err = poll.Until(wait, time.Millisecond, 20*time.Millisecond, func() (bool, error) {
		return !errors.Is(records.TryLock(), fsat.ErrLocked), nil // there may be no locks on this file system
	})
	if err != nil {
		return fmt.Errorf("lock %s: %w", records.Path(), err)
	}
	r, err := readRecord(records, stamp, forbidden)
	if err != nil {
		return err
	}
	change(&r)
	r.Findings = r.Findings[:min(len(r.Findings), maxFindings)]
	for i, text := range r.Findings {
		if len(text) > maxFinding {
			r.Findings[i] = strings.ToValidUTF8(text[:maxFinding], "") + "…"
		}
	}
	if len(r.Note) > MaxNote {
		return fmt.Errorf("a note has at most %d bytes", MaxNote)
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeRecord(records, stamp+recordSuffix, append(data, '\n'))
}

// writeRecord replaces the file name, durably.
func writeRecord(records *fsat.Dir, name string, data []byte) (err error) {
	for range 3 {
		// A prune may take the draft for one that a dead process left.
		if err = writeRecordOnce(records, name, data); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

func writeRecordOnce(records *fsat.Dir, name string, data []byte) (err error) {
	draft := format.NewStagingName()
	f, err := records.Create(draft, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			err = errors.Join(err, withoutMissing(records.Remove(draft, false)))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := records.Replace(draft, records, name); err != nil {
		return err
	}
	return records.Sync()
}

// RemoveRecord removes what is recorded about the snapshot stamp.
func RemoveRecord(dir *fsat.Dir, stamp string) error {
	records, err := dir.OpenIfExists(format.RecordsName)
	if err != nil || records == nil {
		return withoutMissing(err)
	}
	defer records.Close()
	return withoutMissing(records.Remove(stamp+recordSuffix, false))
}

// ReapRecords removes the records of snapshots that do not exist, and drafts
// that a dead process left. dir is the backup directory. left are those that
// could not be removed.
func ReapRecords(dir *fsat.Dir) (left []Remains, err error) {
	snapshots, err := OpenSnapshotsIn(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer snapshots.Close()
	records, err := dir.OpenIfExists(format.RecordsName)
	if err != nil || records == nil {
		return nil, withoutMissing(err)
	}
	defer records.Close()
	entries, err := records.ReadDir()
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		orphaned := format.IsStagingName(entry.Name)
		if stamp, isRecord := strings.CutSuffix(entry.Name, recordSuffix); isRecord {
			there, err := snapshots.Has(stamp)
			orphaned = orphaned || err == nil && !there
		}
		if !orphaned || !entry.Type.IsRegular() {
			continue
		}
		if err := records.Remove(entry.Name, false); withoutMissing(err) != nil {
			left = append(left, Remains{filepath.Join(records.Path(), entry.Name), err})
		}
	}
	return left, nil
}

// ManifestSum returns the SHA-256 of a snapshot's manifest in hexadecimal, or
// an empty text if it has none that may be opened: forbidden, which may be nil,
// reports which files may not. A manifest of more than maxManifest bytes is
// fsat.ErrTooLarge. ctx is heeded.
func ManifestSum(ctx context.Context, snapshot *fsat.Dir, forbidden func(fsat.Info) bool) (string, error) {
	info, err := snapshot.Lstat(format.ManifestName)
	switch {
	case fsat.IsMissing(err), err == nil && (!info.Mode.IsRegular() || forbidden != nil && forbidden(info)):
		return "", nil
	case err != nil:
		return "", err
	case info.Size > maxManifest:
		return "", fsat.ErrTooLarge
	}
	f, err := snapshot.Open(format.ManifestName)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	source := io.LimitReader(f, maxManifest)
	for ctx.Err() == nil {
		_, err := io.CopyN(h, source, 1<<20)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", ctx.Err()
}
