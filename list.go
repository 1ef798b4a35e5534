package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/atocore/backup/internal/fsat"
)

const snapshotsName = "snapshots"

// Snapshot is one entry of a list.
type Snapshot struct {
	// Stamp is the snapshot's name, and Path its directory.
	Stamp, Path string
	// HasMetadata tells whether there is anything of the name
	// backup-metadata.json in it.
	HasMetadata bool
	// Metadata is what that file records; nil if it could not be read.
	Metadata *Metadata
	// MetadataError tells why Metadata is nil although HasMetadata is true:
	// "invalid_json", "wrong_shape", "unsupported_format", "too_large", "not_a_file", or
	// "unreadable: " and the reason. It is empty otherwise.
	MetadataError string

	raw string // the file's JSON
}

// MarshalJSON gives the Python module's form. The metadata is whatever JSON the
// file holds, unknown fields and wrong shapes included.
func (s Snapshot) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"stamp":%s,"path":%s,"has_metadata":%t`, quoteASCII(s.Stamp), quoteASCII(s.Path), s.HasMetadata)
	if s.HasMetadata {
		raw, err := rawMetadata(s.Metadata, s.raw)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, `,"metadata":%s`, raw)
	}
	if s.MetadataError != "" {
		fmt.Fprintf(&b, `,"metadata_error":%s`, quoteASCII(s.MetadataError))
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func rawMetadata(m *Metadata, raw string) (string, error) {
	switch {
	case raw != "":
		return raw, nil
	case m != nil:
		data, err := m.MarshalJSON()
		return string(data), err
	}
	return "null", nil
}

// ListRuntimeBackups returns every snapshot in opts.BackupDir, oldest first by
// stamp, and reads no file but their metadata. It does not say whether they
// can be trusted; [ValidateBackup] does. A backup directory that does not
// exist has no snapshots. A damaged snapshot is listed with what is wrong with
// its metadata and hides no other.
//
// Every directory in snapshots/ is one; anything else there, links included,
// is passed over. If opts.DatabasePath is set, metadata that are a hard link
// to the live database are not opened. The cost is a few system calls a
// snapshot, and memory for the result.
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

func (s *settings) list(ctx context.Context) ([]Snapshot, error) {
	root, err := openSnapshots(s.BackupDir)
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
	live := s.liveDatabase()
	path := filepath.Join(s.BackupDir, snapshotsName) + string(filepath.Separator)
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
	slices.SortFunc(snapshots, func(a, b Snapshot) int { return compareStamps(a.Stamp, b.Stamp) })
	return snapshots, nil
}

// openSnapshots opens BackupDir/snapshots and refuses a link in its place.
func openSnapshots(backupDir string) (*fsat.Dir, error) {
	dir, err := fsat.OpenDir(backupDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.OpenDir(snapshotsName)
}

// describeSnapshot reads one snapshot's metadata. ok is false if the directory
// is gone by now.
func describeSnapshot(root *fsat.Dir, name string, live liveFiles) (s Snapshot, ok bool) {
	s.Stamp = name
	dir, err := root.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false
	}
	if err != nil {
		// Whether there is metadata cannot be told; that it could not be
		// read can.
		s.HasMetadata, s.MetadataError = true, unreadable(err)
		return s, true
	}
	defer dir.Close()
	text, err := readMetadataFile(dir, live)
	if errors.Is(err, fs.ErrNotExist) {
		return s, isStill(root, name, dir)
	}
	s.HasMetadata = true
	switch {
	case errors.Is(err, errNotRegular):
		s.MetadataError = "not_a_file"
	case errors.Is(err, errTooLarge):
		s.MetadataError = "too_large"
	case err != nil:
		s.MetadataError = unreadable(err)
	default:
		s.Metadata, err = parseMetadata(text)
		s.raw = foreignJSON(text, err)
		switch {
		case errors.Is(err, errNotJSON):
			s.MetadataError = "invalid_json"
		case errors.Is(err, errFormatVersion):
			s.MetadataError = "unsupported_format"
		case err != nil:
			s.MetadataError = "wrong_shape"
		}
	}
	return s, true
}

// isStill tells whether dir has the name in root that it was opened by: one
// that is being removed loses that before its files.
func isStill(root *fsat.Dir, name string, dir *fsat.Dir) bool {
	there, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	mine, mineErr := dir.Stat()
	return err != nil || mineErr != nil || there.Ino == mine.Ino
}

func unreadable(err error) string { return "unreadable: " + cause(err) }

// cause leaves out the path from an error.
func cause(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return err.Error()
}

var (
	errNotRegular = errors.New("not a regular file")
	errTooLarge   = errors.New("too large")
)

// readMetadataFile reads the metadata of the snapshot dir, at most
// maxMetadataSize bytes of it.
func readMetadataFile(dir *fsat.Dir, live liveFiles) (string, error) {
	var usual [4 << 10]byte // on the stack
	data, err := readSmall(dir, metadataName, maxMetadataSize, live, usual[:])
	return string(data), err
}

// readSmall reads the regular file name, which is untrusted, into buf if that
// is large enough. What is no regular file, or the live database's, is not
// opened.
func readSmall(dir *fsat.Dir, name string, limit int64, live liveFiles, buf []byte) ([]byte, error) {
	info, err := dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode.IsRegular() || live.contains(info) {
		return nil, errNotRegular
	}
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err = f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode.IsRegular():
		return nil, errNotRegular
	case info.Size > limit:
		return nil, errTooLarge
	case info.Size > int64(len(buf)):
		buf = make([]byte, info.Size)
	}
	buf = buf[:info.Size]
	n, err := f.ReadAt(buf, 0)
	if err != nil && n < len(buf) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return buf[:n], nil
}
