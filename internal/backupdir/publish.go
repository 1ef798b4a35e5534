package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup/internal/fsat"
)

// syncFSFrom is the number of files from which one syncfs(2) is cheaper than
// an fsync(2) of each, many in flight. Below it fsync is preferred: syncfs
// also waits for what everybody else has written.
const syncFSFrom = 1000

// hashAndSync makes all that was captured durable, and writes the manifest's
// lines for it into SHA256SUMS. The manifest's first line, which is the
// metadata's, is left for publish: its stamp is not known yet.
func (st *staging) hashAndSync(ctx context.Context, s *settings, captured *capture) (*fsat.File, error) {
	files, bytes := captured.total()
	manifest, err := st.Create(manifestName, 0o600)
	if err != nil {
		return nil, err
	}
	handedOver := false
	defer func() { // when OnProgress panics too
		if !handedOver {
			manifest.Close()
		}
	}()
	useSyncFS := fsat.CanSyncFS && files >= syncFSFrom
	out := manifestWriter{f: manifest, off: int64(len(manifestLine([sha256.Size]byte{}, metadataName)))}
	hashing := scan{
		root:      st.Dir,
		hash:      true,
		sync:      !useSyncFS,
		writeback: !useSyncFS,
		copied:    captured.chroma,
		database:  st.dbHash,
		skip:      func(path string) bool { return path == manifestName },
		progress: func(path string, doneFiles, doneBytes int64) {
			s.report(Progress{Phase: PhaseHash, Path: path,
				Files: doneFiles, TotalFiles: files, Bytes: doneBytes, TotalBytes: bytes})
		},
	}
	s.report(Progress{Phase: PhaseHash, TotalFiles: files, TotalBytes: bytes})

	// Writing out is the disk's work and hashing the processor's, so they go
	// on side by side. The descriptor was opened before anything was written,
	// so syncfs reports every write that was lost, and it is called once: a
	// failed sync must never be repeated into a success.
	var group errgroup.Group
	defer group.Wait()
	if useSyncFS {
		group.Go(st.SyncFS)
	}
	err = hashing.run(ctx, func(f *scannedFile) error {
		if f.isDir() {
			return nil
		}
		if f.irregular {
			return fmt.Errorf("%s is no regular file", f.path)
		}
		line := manifestLine(f.sum, f.path)
		if len(line) > maxManifestLine { // no reader would take it
			return fmt.Errorf("%w: the path %.100q… of %d bytes is too long for the manifest", ErrUnsupportedFile, f.path, len(f.path))
		}
		return out.add(line)
	})
	if err != nil {
		return nil, err
	}
	s.report(Progress{Phase: PhaseSync, TotalFiles: files, TotalBytes: bytes})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := out.flush(); err != nil {
		return nil, err
	}
	s.report(Progress{Phase: PhaseSync, Files: files, TotalFiles: files, Bytes: bytes, TotalBytes: bytes})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	handedOver = true
	return manifest, nil
}

// A manifestWriter collects lines and writes them in large pieces.
type manifestWriter struct {
	f   *fsat.File
	off int64
	buf []byte
}

func (w *manifestWriter) add(line string) error {
	w.buf = append(w.buf, line...)
	if len(w.buf) < 64<<10 {
		return nil
	}
	return w.flush()
}

func (w *manifestWriter) flush() error {
	n, err := w.f.WriteAt(w.buf, w.off)
	w.off += int64(n)
	w.buf = w.buf[:0]
	return err
}

// publish writes the metadata, completes the manifest, makes both durable and
// renames staging to the first stamp of its second that is free. meta lacks
// the stamp and the paths; rel has those below the snapshot.
func (st *staging) publish(ctx context.Context, s *settings, manifest *fsat.File, meta *Metadata, rel paths) error {
	defer manifest.Close()
	s.report(Progress{Phase: PhasePublish})
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		stamp := newStamp(meta.CreatedAt, n)
		if _, err := st.snapshots.Lstat(stamp); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		meta.Stamp = stamp
		meta.BackupRoot = filepath.Join(s.BackupDir, snapshotsName, stamp)
		meta.DBSnapshotPath = rel.under(meta.BackupRoot, rel.db)
		meta.RegistrySnapshotPath = rel.under(meta.BackupRoot, rel.registry)
		meta.ChromaSnapshotPath = rel.under(meta.BackupRoot, rel.chroma)
		sum, err := st.writeMetadata(meta)
		if err != nil {
			return err
		}
		if _, err := manifest.WriteAt([]byte(manifestLine(sum, metadataName)), 0); err != nil {
			return err
		}
		if err := manifest.Sync(); err != nil {
			return err
		}
		if err := st.Sync(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err = st.backupDir.Rename(st.name, st.snapshots, stamp)
		if errors.Is(err, fs.ErrExist) {
			continue // another create took the stamp just now
		}
		if err != nil {
			return err
		}
		return st.settle(stamp)
	}
}

// settle makes the rename durable. If that fails the snapshot is taken back:
// it is not known whether it would survive a power cut.
func (st *staging) settle(stamp string) error {
	err := st.snapshots.Sync()
	if err == nil {
		// Where it came from as well: after a power cut it must not be in both.
		err = st.backupDir.Sync()
	}
	if err == nil {
		st.published = true
		return nil
	}
	if back := st.snapshots.Rename(stamp, st.backupDir, st.name); back != nil {
		st.published = true // visible, so it is not ours to remove
		return fmt.Errorf("%w; snapshot %s is visible but may not survive a power cut: %w", err, stamp, back)
	}
	return err
}

// writeMetadata writes backup-metadata.json anew and makes it durable.
func (st *staging) writeMetadata(meta *Metadata) (sum [sha256.Size]byte, err error) {
	data, err := encodeMetadata(meta)
	if err != nil {
		return sum, err
	}
	if err := st.Remove(metadataName, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return sum, err
	}
	f, err := st.Create(metadataName, 0o600)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return sum, err
	}
	if err := f.Sync(); err != nil {
		return sum, err
	}
	return sha256.Sum256(data), f.Close()
}

// paths are those of a snapshot's parts below it; empty for what it lacks.
type paths struct{ db, registry, chroma string }

func (paths) under(root, rel string) string {
	if rel == "" {
		return ""
	}
	return filepath.Join(root, rel)
}

// truncateToMicroseconds gives the precision that metadata keeps, in UTC and
// without a monotonic reading.
func truncateToMicroseconds(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
