package restorer

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"path/filepath"

	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

// What can be known of the live parts before anything is touched: whether they
// have to be replaced, and whether they can be.

// LeaveEqual takes the parts out of From whose content is the snapshot's already,
// and returns their names: format.DBDir, ConfigDir and ChromaDir. Modes, owners,
// times and extended attributes are not compared. database is the live database,
// locked; nil if it can't be locked, and then it is not equal. A part that can't
// be read is not equal either. It reads those parts completely whose sizes are
// the snapshot's. Errors: ctx's only.
func (r *Replacement) LeaveEqual(ctx context.Context, database *sqlitedb.Source) (equal []string, err error) {
	for _, part := range []struct {
		name   string
		from   *string
		live   *string
		equals func() (bool, error)
	}{
		{format.ChromaDir, &r.From.Chroma, &r.Live.Chroma, func() (bool, error) { return r.treeIsEqual(ctx) }},
		{format.ConfigDir, &r.From.Registry, &r.Live.Registry, func() (bool, error) { return r.registryIsEqual(ctx) }},
		{format.DBDir, &r.From.Database, nil, func() (bool, error) { return r.databaseIsEqual(ctx, database) }},
	} {
		if *part.from == "" {
			continue
		}
		same, err := part.equals()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil || !same {
			continue
		}
		equal = append(equal, part.name)
		*part.from = ""
		if part.live != nil {
			*part.live = ""
		}
	}
	return equal, nil
}

// sizeOf returns the size of a file in the snapshot.
func (r *Replacement) sizeOf(name string) (int64, error) {
	dir, err := r.Snapshot.OpenDir(path.Dir(name))
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	info, err := dir.Lstat(path.Base(name))
	return info.Size, err
}

// databaseIsEqual compares what a snapshot of the live database would have. Its
// journal mode, which a snapshot does not have, does not count.
func (r *Replacement) databaseIsEqual(ctx context.Context, database *sqlitedb.Source) (bool, error) {
	if database == nil {
		return false, nil
	}
	live, err := fsat.Stat(r.Live.Database)
	if err != nil {
		return false, err
	}
	if size, err := r.sizeOf(r.From.Database); err != nil || size != live.Size {
		return false, err
	}
	sum, err := database.Sum(ctx)
	want, ok := r.sumOf(r.From.Database)
	return ok && err == nil && sum == want, err
}

func (r *Replacement) registryIsEqual(ctx context.Context) (bool, error) {
	live, err := fsat.Stat(r.Live.Registry)
	if err != nil || !live.Mode.IsRegular() {
		return false, err
	}
	if size, err := r.sizeOf(r.From.Registry); err != nil || size != live.Size {
		return false, err
	}
	sum, err := sumOfFile(ctx, r.Live.Registry)
	want, ok := r.sumOf(r.From.Registry)
	return ok && err == nil && sum == want, err
}

// treeIsEqual compares names and sizes first, and then the content of all files.
func (r *Replacement) treeIsEqual(ctx context.Context) (bool, error) {
	src, err := r.Snapshot.OpenIfExists(r.From.Chroma) // an object store keeps no empty directory
	if err != nil {
		return false, err
	}
	defer src.Close()
	live, err := fsat.OpenDir(r.Live.Chroma)
	if err != nil {
		return false, err
	}
	defer live.Close()
	type entry struct {
		path string
		size int64
	}
	var want []entry
	if src != nil {
		err = filetree.Scan(ctx, src, filetree.ScanOptions{Skip: IsNoPartOfChroma}, func(f *filetree.File) error {
			want = append(want, entry{f.Path, f.Info.Size})
			return nil
		})
	}
	if err != nil {
		return false, err
	}
	err = filetree.Scan(ctx, live, filetree.ScanOptions{Skip: IsNoPartOfChroma}, func(f *filetree.File) error {
		if f.Irregular || len(want) == 0 || want[0] != (entry{f.Path, f.Info.Size}) {
			return errDiffers
		}
		want = want[1:]
		return nil
	})
	if err != nil || len(want) > 0 {
		return false, ignore(err, errDiffers)
	}
	sums := (&treePart{from: r.From.Chroma}).expected(r)
	err = filetree.Scan(ctx, live, filetree.ScanOptions{Hash: true, Skip: IsNoPartOfChroma}, func(f *filetree.File) error {
		if f.IsDir() {
			return nil
		}
		if f.Irregular || len(sums) == 0 || sums[0].Path != f.Path || sums[0].Sum != f.Sum {
			return errDiffers
		}
		sums = sums[1:]
		return nil
	})
	return err == nil && len(sums) == 0, ignore(err, errDiffers)
}

func ignore(err, ignored error) error {
	if errors.Is(err, ignored) {
		return nil
	}
	return err
}

// Target returns what happens to a part that is restored: "create" if nothing is
// in its place, "overwrite" if it is a file that is mounted alone, or "replace".
func (r *Replacement) Target(part string) string {
	var there, mounted bool
	switch part {
	case format.DBDir:
		there, mounted, _ = examine(r.Live.Database)
	case format.ConfigDir:
		there, mounted, _ = examine(r.Live.Registry)
	case format.ChromaDir:
		there = fsat.HasEntries(r.Live.Chroma, IsNoPartOfChroma)
	}
	switch {
	case mounted:
		return "overwrite"
	case there:
		return "replace"
	}
	return "create"
}

// An Obstacle is why a part can't be replaced.
type Obstacle struct {
	// Part is format.DBDir, ConfigDir or ChromaDir. It is empty for the directory
	// of the database, which every restore needs for the journal.
	Part string
	// Err names the file and the reason.
	Err error
}

// Obstacles looks for reasons why the parts in From can't be replaced, without
// touching anything: read-only mounts, immutable files, mount points in the
// Chroma directory, directories in which this process may create nothing.
// Whatever it does not find, Stage and Swap still do. Errors: ctx's.
func (r *Replacement) Obstacles(ctx context.Context) (found []Obstacle, err error) {
	if o := DatabaseObstacle(r.Live.Database); o.Err != nil && (o.Part == "" || r.From.Database != "") {
		found = append(found, o)
	}
	if r.From.Registry != "" {
		if err := fileObstacle(r.Live.Registry); err != nil {
			found = append(found, Obstacle{format.ConfigDir, err})
		}
	}
	if r.From.Chroma != "" {
		if err := treeObstacle(ctx, r.Live.Chroma); ctx.Err() != nil {
			return nil, ctx.Err()
		} else if err != nil {
			found = append(found, Obstacle{format.ChromaDir, err})
		}
	}
	return found, nil
}

// writeObstacle returns why nothing can be created in the directory at path or,
// if it is missing, in the one in which it would be created.
func writeObstacle(path string) error {
	for {
		err := fsat.CheckWrite(path)
		parent := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || parent == path {
			return err
		}
		path = parent
	}
}

// DatabaseObstacle returns why the database at path, without links, can't be
// replaced. Err is nil if nothing is known. It touches nothing.
func DatabaseObstacle(path string) Obstacle {
	if err := writeObstacle(filepath.Dir(path)); err != nil {
		return Obstacle{"", err}
	}
	return Obstacle{format.DBDir, fileObstacle(path)}
}

// fileObstacle returns why the file at path can't be replaced.
func fileObstacle(path string) error {
	if err := writeObstacle(filepath.Dir(path)); err != nil {
		return err
	}
	there, mounted, err := examine(path)
	switch {
	case err != nil || !there:
		return nil // staging finds out
	case mounted: // its content is replaced
		return fsat.CheckWrite(path)
	}
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.CheckMove(filepath.Base(path))
}

// treeObstacle returns why what is in the directory at path can't be replaced.
// Directories that this process may not read are passed over.
func treeObstacle(ctx context.Context, path string) error {
	if err := writeObstacle(path); err != nil {
		return err
	}
	dir, err := fsat.OpenDir(path)
	if err != nil {
		return ignore(err, fs.ErrNotExist)
	}
	defer dir.Close()
	return filetree.CheckMoves(ctx, dir, IsNoPartOfChroma)
}
