package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/pyjson"
	"github.com/atocore/backup/internal/sqlitedb"
)

// Snapshot is one entry of a list.
type Snapshot struct {
	// Stamp is the snapshot's name, and Path its directory.
	Stamp, Path string
	// HasMetadata reports whether it contains anything that is called
	// backup-metadata.json.
	HasMetadata bool
	// Metadata is the content of that file. It is nil if it could not be read.
	Metadata *Metadata
	// MetadataError is the reason why Metadata is nil although HasMetadata is
	// true: "invalid_json", "wrong_shape", "unsupported_format", "too_large",
	// "not_a_file", or "unreadable: " and the cause. Otherwise it is empty.
	MetadataError string
	// Verified is the last verdict about the snapshot as it is, and VerifiedAt
	// its time. They are nil and zero if it was never validated with
	// Options.Verify or Options.RecordVerdicts, or if that was lost.
	Verified   *bool
	VerifiedAt time.Time
	// Protected reports that no prune removes the snapshot.
	Protected bool
	// Note is Options.Note of the create.
	Note string

	raw string // the file's JSON, unless it is that of Metadata
	// recordFault is the reason why its record could not be read, if it could
	// not: then it may be protected, and may have been found valid.
	recordFault string
}

// snapshotJSON is the form of a Snapshot in JSON.
type snapshotJSON struct {
	Stamp         pyjson.String   `json:"stamp"`
	Path          pyjson.String   `json:"path"`
	HasMetadata   bool            `json:"has_metadata"`
	Metadata      json.RawMessage `json:"metadata,omitempty"`
	MetadataError pyjson.String   `json:"metadata_error,omitempty"`
	Verified      *bool           `json:"verified"`
	VerifiedAt    *pyjson.Time    `json:"verified_at"`
	Protected     bool            `json:"protected"`
	Note          pyjson.String   `json:"note"`
}

// MarshalJSON returns the Python module's form. The metadata are whatever JSON
// the file holds, including unknown fields and wrong shapes.
func (s Snapshot) MarshalJSON() ([]byte, error) {
	out := snapshotJSON{
		Stamp: pyjson.String(s.Stamp), Path: pyjson.String(s.Path), HasMetadata: s.HasMetadata, MetadataError: pyjson.String(s.MetadataError),
		Verified: s.Verified, Protected: s.Protected, Note: pyjson.String(s.Note),
	}
	if !s.VerifiedAt.IsZero() {
		at := pyjson.Time(s.VerifiedAt)
		out.VerifiedAt = &at
	}
	if s.HasMetadata {
		out.Metadata = rawMetadata(s.Metadata, s.raw)
	}
	return pyjson.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Snapshot) UnmarshalJSON(data []byte) error {
	var in snapshotJSON
	if err := json.Unmarshal(data, &in); err != nil {
		return err
	}
	*s = Snapshot{
		Stamp: string(in.Stamp), Path: string(in.Path), HasMetadata: in.HasMetadata, MetadataError: string(in.MetadataError),
		Verified: in.Verified, Protected: in.Protected, Note: string(in.Note),
	}
	if in.VerifiedAt != nil {
		s.VerifiedAt = time.Time(*in.VerifiedAt).UTC()
	}
	s.Metadata, s.raw = foreignMetadata(in.Metadata)
	return nil
}

// ListRuntimeBackups returns every snapshot in opts.BackupDir, oldest first by
// stamp. It reads their metadata, what is recorded about them, and the manifest
// of those with a recorded verdict, so it does not find out whether they can be
// trusted; [ValidateBackup] does. A backup directory that does not exist has no
// snapshots. A damaged snapshot is listed with the fault of its metadata and
// does not hide any other.
//
// Every directory in snapshots/ is a snapshot. Anything else there, links
// included, is skipped. If opts.DatabasePath is set, a file that is a hard link
// to the live database is not opened. Each snapshot costs a few system calls,
// hashing its manifest if there is a verdict, and memory for its entry in the
// result.
//
// Errors: [ErrInvalidOptions] if BackupDir is empty, ctx's error, or an
// *fs.PathError if the directory cannot be read. [ErrRestoreUnfinished] comes
// with the whole list.
func ListRuntimeBackups(ctx context.Context, opts Options) (_ []Snapshot, err error) {
	defer wrapCall(&err, "list backups")
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return nil, err
	}
	list, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	return list, s.restoreCutOff()
}

// list reads the metadata of all snapshots, with as many workers as there are
// CPUs.
func (s *settings) list(ctx context.Context) ([]Snapshot, error) {
	root, err := backupdir.OpenSnapshots(s.BackupDir)
	if errors.Is(err, fs.ErrNotExist) {
		return []Snapshot{}, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	entries, err := root.ReadDir()
	if err != nil {
		return nil, err
	}
	entries = slices.DeleteFunc(entries, func(e fsat.Entry) bool { return !e.Type.IsDir() })
	backupDir, err := fsat.OpenDir(s.BackupDir)
	if err != nil {
		return nil, err
	}
	defer backupDir.Close()
	records, recordsErr := backupdir.OpenRecords(backupDir)
	if records != nil {
		defer records.Close()
	}
	live := sqlitedb.FilesOf(s.DatabasePath)
	path := filepath.Join(s.BackupDir, format.SnapshotsName) + string(filepath.Separator)
	snapshots := make([]Snapshot, len(entries))
	var next atomic.Int64
	var group sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(entries)) {
		group.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= len(entries) {
					return
				}
				if snapshot, ok := describeSnapshot(ctx, root, records, entries[i].Name, live); ok {
					snapshot.Path = path + snapshot.Stamp
					if recordsErr != nil {
						snapshot.recordFault = fsat.Cause(recordsErr)
					}
					snapshots[i] = snapshot
				}
			}
		})
	}
	group.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	snapshots = slices.DeleteFunc(snapshots, func(s Snapshot) bool { return s.Stamp == "" }) // gone by now
	slices.SortFunc(snapshots, func(a, b Snapshot) int { return format.CompareStamps(a.Stamp, b.Stamp) })
	return snapshots, nil
}

// describeSnapshot reads one snapshot's metadata and its record. ok is false if
// the directory no longer exists.
func describeSnapshot(ctx context.Context, root, records *fsat.Dir, name string, live sqlitedb.Files) (s Snapshot, ok bool) {
	s.Stamp = name
	dir, err := root.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false
	}
	if err != nil {
		// It is not known whether there are metadata, but if there are, they
		// cannot be read.
		s.HasMetadata, s.MetadataError = true, unreadable(err)
		return s, true
	}
	defer dir.Close()
	record, err := backupdir.ReadRecord(ctx, records, name, dir, live.Contains)
	if err != nil {
		s.recordFault = fsat.Cause(err)
	}
	s.Protected, s.Note = record.Protected, record.Note
	if !record.VerifiedAt.IsZero() {
		s.Verified, s.VerifiedAt = &record.Valid, record.VerifiedAt
	}
	text, err := readMetadataFile(dir, live)
	if errors.Is(err, fs.ErrNotExist) {
		return s, backupdir.IsStill(root, name, dir)
	}
	s.HasMetadata = true
	switch {
	case errors.Is(err, fsat.ErrNotRegular):
		s.MetadataError = "not_a_file"
	case errors.Is(err, fsat.ErrTooLarge):
		s.MetadataError = "too_large"
	case err != nil:
		s.MetadataError = unreadable(err)
	default:
		s.Metadata, err = parseMetadata(text)
		s.raw = foreignJSON(text, s.Metadata, err)
		switch {
		case errors.Is(err, pyjson.ErrNotJSON):
			s.MetadataError = "invalid_json"
		case errors.Is(err, errFormatVersion):
			s.MetadataError = "unsupported_format"
		case err != nil:
			s.MetadataError = "wrong_shape"
		}
	}
	return s, true
}

func unreadable(err error) string { return "unreadable: " + fsat.Cause(err) }

// Latest is the answer of LatestRuntimeBackup.
type Latest struct {
	// Snapshot is the one to restore.
	Snapshot Snapshot
	// Skipped lists newer snapshots that were passed over, newest first, with
	// the reasons, and then all those without readable metadata, of which
	// nobody knows the age.
	Skipped []SkippedSnapshot
	// WithChroma is the stamp of the newest snapshot that has a Chroma copy, if
	// Snapshot has none although opts.ChromaPath is set. Otherwise it is empty.
	WithChroma string
}

// LatestRuntimeBackup returns the newest snapshot that a restore should take:
// by the creation time in the metadata, of the store that opts.DatabasePath and
// opts.Host name. It passes over snapshots that are dated in the future, safety
// snapshots, snapshots without readable metadata, and those whose last recorded
// verdict is "not valid". It does not validate the snapshot. A call costs what
// a list costs.
//
// Errors: those of [ListRuntimeBackups], with the result together with
// [ErrRestoreUnfinished]; [ErrNoSnapshot] if no snapshot
// qualifies, which names those that were passed over; [ErrInvalidOptions] if
// DatabasePath is empty and there are snapshots of several stores.
func LatestRuntimeBackup(ctx context.Context, opts Options) (latest *Latest, err error) {
	defer wrapCall(&err, "find latest backup")
	defer errdefs.Recover(&err)
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return nil, err
	}
	list, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	own, err := s.ownSnapshots(list)
	if err != nil {
		return nil, err
	}
	latest = chooseLatest(own, s.Clock.Now(), s.ChromaPath != "")
	if latest.Snapshot.Stamp == "" {
		others := ""
		if len(own) < len(list) {
			others = "; there are snapshots of other stores: " + joinStores(storesOf(list))
		}
		return nil, fmt.Errorf("%w: no snapshot qualifies as the latest in %s%s%s", ErrNoSnapshot, s.BackupDir, listSkipped(latest.Skipped), others)
	}
	return latest, s.restoreCutOff()
}

// listSkipped returns the first skipped snapshots in one line.
func listSkipped(skipped []SkippedSnapshot) string {
	const most = 10
	var text strings.Builder
	for i, s := range skipped[:min(len(skipped), most)] {
		text.WriteString([]string{"; passed over: ", ", "}[min(i, 1)])
		fmt.Fprintf(&text, "%s (%s)", s.Stamp, s.Reason)
	}
	if len(skipped) > most {
		fmt.Fprintf(&text, " and %d more", len(skipped)-most)
	}
	return text.String()
}

// chooseLatest chooses among the snapshots of a store. If none qualifies, the
// result has no snapshot.
func chooseLatest(list []Snapshot, now time.Time, wantChroma bool) *Latest {
	latest := new(Latest)
	found := false
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Snapshot) int { return compareAges(b, a) })
	var unknown []SkippedSnapshot // without metadata, so of unknown age
	for _, s := range list {
		reason := ""
		switch {
		case s.Metadata == nil:
			unknown = append(unknown, SkippedSnapshot{s.Stamp, skipReason(s)})
			continue
		case s.Metadata.CreatedAt.After(now):
			reason = "dated in the future"
		case s.Metadata.SafetyOf != "":
			reason = "safety snapshot of a restore"
		case s.Verified != nil && !*s.Verified:
			reason = "not valid when it was last checked"
		}
		hasChroma := reason == "" && s.Metadata.ChromaSnapshotPath != ""
		switch {
		case reason != "" && !found:
			latest.Skipped = append(latest.Skipped, SkippedSnapshot{s.Stamp, reason})
		case reason != "":
		case !found:
			latest.Snapshot, found = s, true
			wantChroma = wantChroma && !hasChroma
		case wantChroma && hasChroma && latest.WithChroma == "":
			latest.WithChroma = s.Stamp
		}
	}
	latest.Skipped = append(latest.Skipped, unknown...)
	return latest
}

// ownSnapshots returns the snapshots of this store. If no database is given,
// all of them must be of one store.
func (s *settings) ownSnapshots(list []Snapshot) (own []Snapshot, err error) {
	owns := s.owner()
	for _, snapshot := range list {
		// Without metadata it is nobody's.
		if m := snapshot.Metadata; m == nil || s.DatabasePath == "" || owns(m) {
			own = append(own, snapshot)
		}
	}
	if stores := storesOf(list); s.DatabasePath == "" && len(stores) > 1 {
		return nil, fmt.Errorf("%w: %s has snapshots of several stores (%s): say which by the path of its database (--db)",
			ErrInvalidOptions, s.BackupDir, joinStores(stores))
	}
	return own, nil
}

// storesOf returns the names of the stores that snapshots are of. One that
// records nothing but its database's name is of any store with such a database.
// Safety snapshots do not count: those of a restore to another place than the
// store's lie here, too.
func storesOf(list []Snapshot) map[string]bool {
	list = slices.DeleteFunc(slices.Clone(list), func(s Snapshot) bool { return s.Metadata != nil && s.Metadata.SafetyOf != "" })
	stores, names := make(map[string]bool), make(map[string]bool)
	for _, s := range list {
		if s.Metadata != nil && s.Metadata.SourceDBPath != "" {
			stores[s.Metadata.store()] = true
			names[filepath.Base(s.Metadata.SourceDBPath)] = true
		}
	}
	for _, s := range list {
		if s.Metadata != nil && s.Metadata.SourceDBPath == "" && !names[s.Metadata.store()] {
			stores[s.Metadata.store()] = true
		}
	}
	return stores
}

func joinStores(stores map[string]bool) string {
	return oneLine(strings.Join(slices.Sorted(maps.Keys(stores)), ", "))
}

// warnOfOtherStores logs that the snapshot before the one just made is of
// another store: prunes and restores then need to know which store is meant. It
// looks at that one only, so that a create does not cost a list.
func (s *settings) warnOfOtherStores(made string) {
	defer func() { _ = recover() }() // a Logger that panics does not undo the create
	root, err := backupdir.OpenSnapshots(s.BackupDir)
	if err != nil {
		return
	}
	defer root.Close()
	entries, err := root.ReadDir()
	if err != nil {
		return
	}
	before := ""
	for _, e := range entries {
		if e.Type.IsDir() && e.Name != made && format.CompareStamps(e.Name, made) < 0 && format.CompareStamps(before, e.Name) <= 0 {
			before = e.Name
		}
	}
	if before == "" {
		return
	}
	snapshot, ok := describeSnapshot(context.Background(), root, nil, before, sqlitedb.FilesOf(s.DatabasePath))
	if ok && snapshot.Metadata != nil && !s.owner()(snapshot.Metadata) {
		s.log.Warn("backup_directory_has_other_stores", "path", s.BackupDir, "store", snapshot.Metadata.store())
	}
}

// owner returns a function that reports whether a snapshot is of this store: of
// the same database on the same host, or, if it does not record these, of a
// database of the same name.
func (s *settings) owner() func(*Metadata) bool {
	database := fsat.RealPath(s.DatabasePath)
	return func(m *Metadata) bool {
		if m.SourceDBPath == "" {
			return filepath.Base(m.DBSnapshotPath) == filepath.Base(s.DatabasePath)
		}
		return m.SourceDBPath == database && m.SourceHost == s.Host
	}
}

// store names the store that a snapshot is of, for messages.
func (m *Metadata) store() string {
	if m.SourceDBPath == "" {
		return filepath.Base(m.DBSnapshotPath)
	}
	return m.SourceHost + ":" + m.SourceDBPath
}

// warn logs a condition that is no failure.
func (r *restore) warn(message, path string, err error) {
	if err == nil {
		r.log.Warn(message, "path", path)
		return
	}
	r.log.Warn(message, "path", path, "reason", err.Error())
}
