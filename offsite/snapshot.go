package offsite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atocore/backup"
)

// A snapshot is one that is pushed. What is in it is untrusted.
type snapshot struct {
	dir   string
	root  *os.Root
	stamp string // of its metadata
	meta  *backup.Metadata
	live  []fs.FileInfo // the live database's files, which must not be opened
	// lines and manifest are the content of SHA256SUMS, and its hash.
	lines    []line
	manifest sum
	dirs     []folder
	files    []file
}

// openSnapshot opens the snapshot in dir and reads its metadata and SHA256SUMS.
// An error that matches backup.ErrInvalidBackup has a report.
func openSnapshot(dir, databasePath string) (_ *snapshot, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	s := &snapshot{dir: dir, root: root, stamp: filepath.Base(dir), live: liveFiles(databasePath)}
	defer func() {
		if err != nil {
			_ = root.Close()
		}
	}()
	if err := s.readMetadata(); err != nil {
		return nil, err
	}
	f, info, err := s.open(manifestName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, s.damaged(backup.CodeManifestMissing, "", "nothing proves the snapshot intact")
	case err != nil:
		return nil, err
	}
	defer f.Close()
	if s.lines, s.manifest, err = readManifest(f); errors.Is(err, errManifest) {
		return nil, s.damaged(backup.CodeManifestMalformed, "", err.Error())
	} else if err != nil {
		return nil, fmt.Errorf("read %s: %w", info.Name(), err)
	}
	return s, nil
}

// Close closes the snapshot.
func (s *snapshot) Close() error { return s.root.Close() }

// damaged returns the error for a snapshot that must not be pushed.
func (s *snapshot) damaged(code backup.Code, path, detail string) error {
	return &backup.InvalidBackupError{Report: &backup.Report{
		Stamp: s.stamp, Path: s.dir, Exists: true, Metadata: s.meta,
		Problems: []backup.Problem{{Code: code, Path: path, Detail: detail}},
	}}
}

// liveFiles returns the live database and its sidecars, as far as there are any. A
// hard link to one of them must not be opened, because closing it would drop the
// locks that the host has on it (sqlite.org/howtocorrupt.html, section 2.2).
func liveFiles(database string) (live []fs.FileInfo) {
	if database == "" {
		return nil
	}
	if real, err := filepath.EvalSymlinks(database); err == nil {
		database = real
	}
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if info, err := os.Stat(database + suffix); err == nil {
			live = append(live, info)
		}
	}
	return live
}

// open opens a regular file of the snapshot.
func (s *snapshot) open(name string) (*os.File, fs.FileInfo, error) {
	info, err := s.root.Lstat(filepath.FromSlash(name))
	if err != nil {
		return nil, nil, err
	}
	isLive := slices.ContainsFunc(s.live, func(live fs.FileInfo) bool { return os.SameFile(live, info) })
	if !info.Mode().IsRegular() || isLive {
		return nil, nil, s.damaged(backup.CodeFileNotRegular, name, "")
	}
	f, err := s.root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, nil, err
	}
	opened, err := f.Stat()
	if err == nil && !os.SameFile(opened, info) {
		err = s.damaged(backup.CodeFileChanged, name, "it was replaced meanwhile")
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, opened, nil
}

// readMetadata reads and checks backup-metadata.json.
func (s *snapshot) readMetadata() error {
	f, _, err := s.open(metadataName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.damaged(backup.CodeMetadataMissing, "", "")
	case err != nil:
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMetadata+1))
	if err != nil {
		return err
	}
	if len(data) > maxMetadata {
		return s.damaged(backup.CodeMetadataTooLarge, "", "")
	}
	meta, err := parseMetadata(data)
	if err != nil {
		return s.damaged(backup.CodeMetadataShape, "", err.Error())
	}
	s.meta, s.stamp = meta, meta.Stamp
	return nil
}

// parseMetadata reads untrusted metadata. Those of the Python module have no stamp,
// and are refused.
func parseMetadata(data []byte) (*backup.Metadata, error) {
	meta := new(backup.Metadata)
	if err := meta.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	meta.Cost = nil // the file has none (docs/format.md)
	if meta.FormatVersion == 0 {
		return nil, errors.New("it is a snapshot of the Python module, and nothing proves it intact")
	}
	if second, _, _ := strings.Cut(meta.Stamp, "-"); !isStamp(meta.Stamp) || second != meta.CreatedAt.UTC().Format(stampLayout) {
		return nil, fmt.Errorf("%q is no stamp of that time", meta.Stamp)
	}
	return meta, nil
}

// walk reads the names and sizes of everything in the snapshot, and compares them
// with SHA256SUMS.
func (s *snapshot) walk(ctx context.Context) error {
	info, err := s.root.Lstat(".")
	if err != nil {
		return err
	}
	s.dirs = append(s.dirs, folder{"", info.Mode(), info.ModTime()})
	if err := s.walkDir(ctx, "", 1); err != nil {
		return err
	}
	slices.SortFunc(s.dirs, func(a, b folder) int { return strings.Compare(a.path, b.path) })
	slices.SortFunc(s.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	lines := s.lines
	for i := range s.files {
		f := &s.files[i]
		switch {
		case f.path == manifestName:
			f.sum = s.manifest
			continue
		case len(lines) == 0 || lines[0].path > f.path:
			return s.damaged(backup.CodeFileUnknown, f.path, "")
		case lines[0].path < f.path:
			return s.damaged(backup.CodeFileMissing, lines[0].path, "")
		}
		f.sum, lines = lines[0].sum, lines[1:]
	}
	if len(lines) > 0 {
		return s.damaged(backup.CodeFileMissing, lines[0].path, "")
	}
	return nil
}

func (s *snapshot) walkDir(ctx context.Context, dir string, depth int) error {
	if depth > maxDepth || len(s.dirs) > maxEntries || len(s.files) > maxEntries {
		return fmt.Errorf("%w: %s: a copy has at most %d levels of directories, and %d files", backup.ErrUnsupportedFile, s.dir, maxDepth, maxEntries)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := s.root.Open(filepath.FromSlash(path.Join(".", dir)))
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if len(entries) == 0 && !mayBeEmpty(dir) {
		return s.damaged(backup.CodeFileUnknown, dir+"/", "")
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		info, err := s.root.Lstat(filepath.FromSlash(p))
		switch {
		case err != nil:
			return err
		case !isPath(p) || !isYear(info.ModTime()):
			return fmt.Errorf("%w: %.200q in %s", backup.ErrUnsupportedFile, p, s.dir)
		case info.IsDir():
			s.dirs = append(s.dirs, folder{p, info.Mode(), info.ModTime()})
			err = s.walkDir(ctx, p, depth+1)
		case info.Mode().IsRegular():
			s.files = append(s.files, file{path: p, size: info.Size(), mode: info.Mode(), mtime: info.ModTime()})
		default:
			err = s.damaged(backup.CodeFileNotRegular, p, "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}
