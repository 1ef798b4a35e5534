package filetree

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"

	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
)

// A Copied is the result of a Copy: how much was copied, and for Scan the
// hashes that are known of the copy.
//
// It has one record per directory, in the order of the walk: a directory comes
// before its subdirectories, and these come in the order of fsat.Dir.ReadDir.
// Records have no names, to save memory; a walk finds the record of a directory
// by counting the directories it has visited. So three walks have to visit
// directories in the same order: that of Copy, which makes the records; that of
// compare over the source; and that of Scan over the copy.
//
// Both later walks stay correct if directories have come or gone in between.
// compare fails then: a new directory in the source has none to match it in the
// copy, which ends the walk before it is counted, and a missing one makes its
// parent differ, so it does not matter with which records the later ones are
// compared. Scan loses count if the copy was changed, or if it skips a
// directory there, and then hashes files whose sums are known. It never uses a
// wrong sum, because a sum counts only for the file whose fingerprint is kept
// with it.
type Copied struct {
	Files, Bytes int64

	seed maphash.Seed
	dirs []*dirRecord
}

// A dirRecord is what a directory looked like when its copy began: the
// fingerprints of the directory itself and of each entry but subdirectories, in
// order. Eight bytes per entry are 8 MB for a million files.
type dirRecord struct {
	self    uint64
	entries []uint64
	sums    []keptSum // of the copies, entry by entry; empty if not kept
}

// A keptSum is the hash of the bytes written to a copy, and the fingerprint of
// that file after the last change to it. The hash counts only as long as the
// file still looks so. The zero value matches no file.
type keptSum struct {
	print uint64
	sum   filehash.Sum
}

// fingerprint returns a hash of everything about a file that is compared.
func (c *Copied) fingerprint(name string, info fsat.Info) uint64 {
	type key struct {
		name         string
		mode         fs.FileMode
		dev, ino     uint64
		size         int64
		mtime, ctime fsat.Time
	}
	return maphash.Comparable(c.seed, key{name, info.Mode, info.Dev, info.Ino, info.Size, info.Mtime, info.Ctime})
}

// sumsOf returns the known hashes of the copies in the dir-th directory of the
// walk, if there are sums and it still has that many entries.
func (c *Copied) sumsOf(dir, entries int) []keptSum {
	if c == nil || dir >= len(c.dirs) || len(c.dirs[dir].sums) != entries {
		return nil
	}
	return c.dirs[dir].sums
}

// sumOf returns the hash of a copy if it still looks as it did when it was made.
func (c *Copied) sumOf(kept *keptSum, name string, info fsat.Info) (sum filehash.Sum, ok bool) {
	if kept == nil || kept.print != c.fingerprint(name, info) {
		return sum, false
	}
	return kept.sum, true
}

// compare walks the source again and compares it with the records, several
// directories at once.
func (t *treeCopy) compare(ctx context.Context, src, dst *fsat.Dir) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(Workers())
	next := 0
	var visit func(src, dst *fsat.Dir) error
	visit = func(src, dst *fsat.Dir) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		record := t.copied.dirs[next]
		entries, err := t.readDir(src, next == 0)
		next++
		if err != nil {
			return err
		}
		if len(entries) != len(record.entries) {
			return changed(src, dst, entries)
		}
		for _, entry := range entries {
			if !entry.Type.IsDir() {
				continue
			}
			// A directory that is new in src is not in dst, so it ends the walk
			// before it is counted.
			subDst, err := dst.OpenDir(entry.Name)
			if err != nil {
				return changed(src, dst, entries)
			}
			subSrc, err := src.OpenDir(entry.Name)
			if err == nil {
				err = visit(subSrc, subDst)
				subSrc.Close()
			}
			subDst.Close()
			if err != nil {
				return err
			}
		}
		again := func(src, dst *fsat.Dir) error { return t.compareDir(ctx, src, dst, entries, record) }
		if len(entries) < 100 { // not worth a goroutine
			return again(src, dst)
		}
		ownSrc, err := src.Reopen()
		if err != nil {
			return err
		}
		ownDst, err := dst.Reopen()
		if err != nil {
			ownSrc.Close()
			return err
		}
		group.Go(func() error {
			defer ownSrc.Close()
			defer ownDst.Close()
			return again(ownSrc, ownDst)
		})
		return nil
	}
	err := visit(src, dst)
	if groupErr := group.Wait(); groupErr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = groupErr
	}
	return err
}

// compareDir compares a directory and its files with their record.
func (t *treeCopy) compareDir(ctx context.Context, src, dst *fsat.Dir, entries []fsat.Entry, record *dirRecord) error {
	for i, entry := range entries {
		if entry.Type.IsDir() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := src.Lstat(entry.Name)
		if err != nil {
			return err
		}
		if t.copied.fingerprint(entry.Name, info) != record.entries[i] {
			return changed(src, dst, entries)
		}
	}
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if t.copied.fingerprint("", info) != record.self {
		return fmt.Errorf("%w: %s", errdefs.ErrSourceChanged, src.Path())
	}
	return nil
}

// changed returns an ErrSourceChanged that names the entry by which a directory
// differs from its copy.
func changed(src, dst *fsat.Dir, entries []fsat.Entry) error {
	copied, err := dst.ReadDir()
	if err != nil {
		return err
	}
	for i := 0; i < len(entries) || i < len(copied); i++ {
		switch {
		case i >= len(copied) || i < len(entries) && isLess(entries[i], copied[i]):
			return fmt.Errorf("%w: %s/%s appeared", errdefs.ErrSourceChanged, src.Path(), entries[i].Name)
		case i >= len(entries) || isLess(copied[i], entries[i]):
			return fmt.Errorf("%w: %s/%s vanished", errdefs.ErrSourceChanged, src.Path(), copied[i].Name)
		}
		if entries[i].Type.IsDir() {
			continue
		}
		// Size and modification time were copied, so most changes show here.
		was, err := dst.Lstat(copied[i].Name)
		if err != nil {
			return err
		}
		is, err := src.Lstat(entries[i].Name)
		if err != nil {
			return err
		}
		if was.Size != is.Size || was.Mtime != is.Mtime || was.Mode != copiedMode(is.Mode) {
			return fmt.Errorf("%w: %s/%s was written to", errdefs.ErrSourceChanged, src.Path(), entries[i].Name)
		}
	}
	return fmt.Errorf("%w: a file in %s", errdefs.ErrSourceChanged, src.Path())
}

func isLess(a, b fsat.Entry) bool {
	return fsat.ComparePaths(a.Name, a.Type.IsDir(), b.Name, b.Type.IsDir()) < 0
}
