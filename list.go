package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/atocore/backup/internal/backupdir"
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

	raw string // the file's JSON
}

// MarshalJSON returns the Python module's form. The metadata are whatever JSON
// the file holds, including unknown fields and wrong shapes.
func (s Snapshot) MarshalJSON() ([]byte, error) {
	entry := struct {
		Stamp         pyjson.String   `json:"stamp"`
		Path          pyjson.String   `json:"path"`
		HasMetadata   bool            `json:"has_metadata"`
		Metadata      json.RawMessage `json:"metadata,omitempty"`
		MetadataError pyjson.String   `json:"metadata_error,omitempty"`
	}{Stamp: pyjson.String(s.Stamp), Path: pyjson.String(s.Path), HasMetadata: s.HasMetadata, MetadataError: pyjson.String(s.MetadataError)}
	if s.HasMetadata {
		metadata, err := rawMetadata(s.Metadata, s.raw)
		if err != nil {
			return nil, err
		}
		entry.Metadata = json.RawMessage(metadata)
	}
	return pyjson.Marshal(entry)
}

// ListRuntimeBackups returns every snapshot in opts.BackupDir, oldest first by
// stamp. It reads their metadata and no other file, so it does not report
// whether they can be trusted; [ValidateBackup] does. A backup directory that
// does not exist has no snapshots. A damaged snapshot is listed with the fault
// of its metadata and does not hide any other.
//
// Every directory in snapshots/ is a snapshot. Anything else there, links
// included, is skipped. If opts.DatabasePath is set, a metadata file that is a
// hard link to the live database is not opened. Each snapshot costs a few
// system calls, and memory for its entry in the result.
//
// Errors: [ErrInvalidOptions] if BackupDir is empty, ctx's error, or an
// *fs.PathError if the directory cannot be read. [ErrRestoreUnfinished] comes
// with the whole list.
func ListRuntimeBackups(ctx context.Context, opts Options) (_ []Snapshot, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("list backups: %w", err)
		}
	}()
	s, err := opts.resolve(false)
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
				if snapshot, ok := describeSnapshot(root, entries[i].Name, live); ok {
					snapshot.Path = path + snapshot.Stamp
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

// describeSnapshot reads one snapshot's metadata. ok is false if the directory
// no longer exists.
func describeSnapshot(root *fsat.Dir, name string, live sqlitedb.Files) (s Snapshot, ok bool) {
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
		s.raw = foreignJSON(text, err)
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
