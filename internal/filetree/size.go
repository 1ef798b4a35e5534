package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/atocore/backup/internal/fsat"
)

// copyWorkers is how many files are copied at once.
func copyWorkers() int { return min(8, max(2, runtime.GOMAXPROCS(0))) }

func isSymlink(path string) (bool, error) {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0, err
}

// liveFiles are the inodes of the live database and what SQLite keeps beside
// it. They are told by stat alone: no descriptor of one may be closed in this
// process (see checkPlaces).
type liveFiles []fsat.Info

func (s *settings) liveDatabase() (live liveFiles) {
	if s.DatabasePath == "" {
		return nil
	}
	database := realPath(s.DatabasePath)
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if info, err := fsat.Stat(database + suffix); err == nil {
			live = append(live, info)
		}
	}
	return live
}

func (l liveFiles) contains(info fsat.Info) bool {
	for _, live := range l {
		if live.SameFile(info) {
			return true
		}
	}
	return false
}

// checkSpace tells early that a snapshot cannot fit. It is a guess: others
// write too, and a file system that shares blocks between copies may need
// nothing at all, so there it is not asked.
func (s *settings) checkSpace(ctx context.Context) error {
	dir, err := nearestDir(s.BackupDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	free, inodes, clones, err := dir.Space()
	if err != nil || clones {
		return nil
	}
	need, files, err := s.storeSize(ctx)
	if err != nil {
		return err
	}
	if need > free {
		return fmt.Errorf("%w: it needs about %d bytes and %d are free", ErrNoSpace, need, free)
	}
	if inodes >= 0 && files > inodes {
		return fmt.Errorf("%w: it needs %d inodes and %d are free", ErrNoSpace, files, inodes)
	}
	return nil
}

// nearestDir opens path or its nearest ancestor that exists.
func nearestDir(path string) (*fsat.Dir, error) {
	for {
		dir, err := fsat.OpenDir(path)
		parent := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || parent == path {
			return dir, err
		}
		path = parent
	}
}

// storeSize gives the bytes and files that a snapshot takes at least. What
// cannot be looked at is left for the capture to complain about.
func (s *settings) storeSize(ctx context.Context) (bytes, files int64, err error) {
	for _, path := range []string{s.DatabasePath, s.DatabasePath + "-wal", s.RegistryPath} {
		if info, err := fsat.Stat(path); err == nil {
			bytes += info.Allocated
		}
	}
	const own = 8 // directories, metadata, manifest and the like
	files = own
	if !s.IncludeChroma {
		return bytes, files, nil
	}
	dir, err := fsat.OpenDir(s.ChromaPath)
	if err != nil {
		return bytes, files, nil
	}
	defer dir.Close()
	err = sumTree(ctx, dir, &bytes, &files)
	return bytes, files, err
}

func sumTree(ctx context.Context, dir *fsat.Dir, bytes, files *int64) error {
	entries, err := dir.ReadDir()
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		*files++
		if entry.Type.IsDir() {
			sub, err := dir.OpenDir(entry.Name)
			if err != nil {
				continue
			}
			err = sumTree(ctx, sub, bytes, files)
			sub.Close()
			if err != nil {
				return err
			}
		} else if info, err := dir.Lstat(entry.Name); err == nil {
			*bytes += info.Allocated
		}
	}
	return nil
}
