package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/registry"
	"github.com/atocore/backup/internal/sqlitedb"
)

// The capture: the live store is copied into staging, the database first, then
// the registry, then the Chroma directory, all under the ingestion guard if the
// Chroma directory is included.

// captureUnderGuard holds the ingestion guard, if the Chroma directory is
// included, exactly as long as the live store is being read.
func (s *settings) captureUnderGuard(ctx context.Context, st *backupdir.Staging, c *capture, safety *safety) error {
	if s.IncludeChroma {
		unlock, err := s.takeGuard(ctx)
		if err != nil {
			return err
		}
		defer unlock()
	}
	return s.captureStore(ctx, st, c, safety)
}

// takeGuard takes the ingestion guard, if there is one.
func (s *settings) takeGuard(ctx context.Context) (unlock func(), err error) {
	if s.Locker == nil {
		return func() {}, nil
	}
	s.progress(Progress{Phase: PhaseGuard})
	unlock, err = s.Locker.Lock(ctx)
	switch {
	case err != nil:
		return nil, fmt.Errorf("take ingestion guard: %w", err)
	case unlock == nil:
		return nil, errors.New("take ingestion guard: Locker returned no unlock function")
	}
	return unlock, nil
}

// captureStore copies the live store into staging.
func (s *settings) captureStore(ctx context.Context, st *backupdir.Staging, c *capture, safety *safety) error {
	if err := ctx.Err(); err != nil {
		return wrapStep("capture", s.DatabasePath, err)
	}
	s.progress(Progress{Phase: PhaseDatabase, Path: s.DatabasePath})
	database := s.databaseCapture(safety)
	err := st.In(format.DBDir, func(dir *fsat.Dir) (err error) {
		c.db, err = database.CopyTo(ctx, dir)
		return err
	})
	if err != nil {
		return wrapStep("capture database", s.DatabasePath, err)
	}
	c.paths.db = filepath.Join(format.DBDir, filepath.Base(s.DatabasePath))

	s.progress(Progress{Phase: PhaseRegistry, Path: s.RegistryPath})
	if err := st.In(format.ConfigDir, func(dir *fsat.Dir) error { return s.captureRegistry(ctx, dir, c) }); err != nil {
		return wrapStep("capture registry", s.RegistryPath, err)
	}

	if s.IncludeChroma {
		s.progress(Progress{Phase: PhaseChroma, Path: s.ChromaPath})
		if c.chroma, err = s.captureChroma(ctx, st); err != nil {
			return wrapStep("capture Chroma directory", s.ChromaPath, err)
		}
		if c.chroma != nil {
			c.paths.chroma = format.ChromaDir
		}
	}
	return nil
}

func (s *settings) databaseCapture(safety *safety) *sqlitedb.Capture {
	c := &sqlitedb.Capture{
		Path:   s.DatabasePath,
		Handle: s.DB,
		Online: s.OnlineBackup,
		// While the guard is held, the CPUs should only copy.
		Hash: !s.IncludeChroma,
		Progress: func(done, total int64) {
			s.progress(Progress{Phase: PhaseDatabase, Path: s.DatabasePath, Bytes: done, TotalBytes: total})
		},
	}
	if safety != nil {
		c.Source = safety.source
	}
	return c
}

func (s *settings) captureRegistry(ctx context.Context, dir *fsat.Dir, c *capture) error {
	if s.RegistryPath == "" {
		return nil
	}
	size, ok, err := registry.Copy(ctx, s.RegistryPath, dir)
	switch {
	case err != nil:
		return err
	case !ok:
		s.log.Info("registry_snapshot_skipped_missing", "path", s.RegistryPath)
		return nil
	}
	c.registryBytes = size
	c.paths.registry = filepath.Join(format.ConfigDir, filepath.Base(s.RegistryPath))
	return nil
}

// captureChroma copies the whole Chroma directory into staging. It filters
// nothing by name: the layout is Chroma's own affair, and after a purge the
// vectors are in the segment files only. It returns nil if there is no Chroma
// directory.
func (s *settings) captureChroma(ctx context.Context, st *backupdir.Staging) (copied *filetree.Copied, err error) {
	src, err := s.openChroma()
	if src == nil {
		return nil, err
	}
	defer src.Close()
	err = st.In(format.ChromaDir, func(dst *fsat.Dir) error {
		copied, err = filetree.Copy(ctx, src, dst, filetree.CopyOptions{
			KeepSums:  true,
			Forbidden: sqlitedb.FilesOf(s.DatabasePath).Contains,
			Progress: func(path string, files, bytes int64) {
				s.progress(Progress{Phase: PhaseChroma, Path: path, Files: files, Bytes: bytes})
			},
		})
		return err
	})
	return copied, err
}

// openChroma opens the Chroma directory. It returns nil if there is none.
func (s *settings) openChroma() (*fsat.Dir, error) {
	dir, err := fsat.OpenDir(s.ChromaPath)
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	if err := s.checkChromaLink(); err != nil {
		return nil, err
	}
	s.log.Info("chroma_snapshot_skipped_missing", "path", s.ChromaPath)
	return nil, nil
}

// checkChromaLink returns an error that matches fs.ErrNotExist if ChromaPath is a
// symbolic link whose target is missing: a volume that is not mounted, for
// example. Such a directory must be taken neither for an empty one nor for one
// that may be created.
func (s *settings) checkChromaLink() error {
	_, err := fsat.Stat(s.ChromaPath)
	if link, linkErr := fsat.IsSymlink(s.ChromaPath); linkErr == nil && link && errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
