package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite"
)

const plainName = "`restic backup`"

// A push is one step of the comparison: a snapshot, and what was changed since
// the one before.
type push struct {
	name     string
	snapshot backup.Metadata
	changed  int64 // bytes in blocks of 4 KiB that differ
}

// offsite measures copies in a restic repository, beside plain restic.
func (b *bench) offsite(ctx context.Context) (err error) {
	if b.tools.restic == "" {
		b.note("restic is not installed.")
		return nil
	}
	dir, err := os.MkdirTemp(b.dir, "offsite-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeAll(dir)) }()
	pushes, err := b.offsiteSnapshots(ctx, dir)
	if err != nil {
		return err
	}
	methods := []string{ours, plainName}
	results := make([][]result, len(pushes))
	for i := range results {
		for _, m := range methods {
			results[i] = append(results[i], result{name: m})
		}
	}
	for round := range b.rounds {
		b.say("offsite: round %d of %d", round+1, b.rounds)
		if err := b.offsiteRound(ctx, dir, pushes, results, round%2 == 1); err != nil {
			return err
		}
	}
	b.note(fmt.Sprintf("A database of %d MiB and a Chroma-like directory of %d MiB, pushed into a repository in a directory, five snapshots one", gib/mib/b.scale, 250/b.scale),
		"after the other. Plain restic backs up the directory of the same snapshot. “Changed” is the size of the 4 KiB blocks that differ",
		"from those of the snapshot before at the same place.")
	b.printOffsite(pushes, results)
	return nil
}

func (b *bench) printOffsite(pushes []push, results [][]result) {
	rows := [][]string{{"push", "method", "changed MB", "uploaded MB", "×", "CPU s", "×", "median s", "least", "most", "peak MiB"}}
	for i, p := range pushes {
		plain := find(results[i], plainName)
		for _, r := range results[i] {
			least, most := r.extremes(seconds)
			rows = append(rows, []string{p.name, r.name, figure(float64(p.changed) / 1e6),
				figure(r.median(uploaded) / 1e6), ratio(r.median(uploaded) / plain.median(uploaded)),
				figure(r.median(cpu)), ratio(r.median(cpu) / plain.median(cpu)),
				figure(r.median(seconds)), figure(least), figure(most), fmt.Sprintf("%.0f", r.median(peak)/float64(mib))})
		}
		own := find(results[i], ours)
		switch i {
		case 0:
			b.aim("uploaded by the first push", "of plain restic", own.median(uploaded)/plain.median(uploaded), 1.1)
		case 1:
			b.aim("uploaded for 1 % of the pages", "of plain restic", own.median(uploaded)/plain.median(uploaded), 0.03)
			b.aim("processor time for 1 % of the pages", "of plain restic", own.median(cpu)/plain.median(cpu), 0.3)
		}
		b.aimMemory("push", []result{own}, 256)
	}
	b.table(2, rows...)
}

// offsiteRound pushes all snapshots into new repositories, one of each method.
func (b *bench) offsiteRound(ctx context.Context, dir string, pushes []push, results [][]result, reverse bool) (err error) {
	repositories, err := os.MkdirTemp(dir, "repositories-")
	if err != nil {
		return err
	}
	backups := filepath.Join(dir, "backups")
	defer func() {
		err = errors.Join(err, removeAll(repositories), removeAll(filepath.Join(backups, ".atocore-offsite")))
	}()
	password := filepath.Join(repositories, "password")
	if err := os.WriteFile(password, []byte("a password for the benchmark\n"), 0o600); err != nil {
		return err
	}
	argv := func(repository string, args ...string) []string {
		return append([]string{b.tools.restic, "--repo", repository, "--password-file", password,
			"--cache-dir", filepath.Join(repositories, "cache"), "--quiet"}, args...)
	}
	run := map[string]func(repository string, p push) []string{
		plainName: func(repository string, p push) []string {
			return argv(repository, "backup", p.snapshot.BackupRoot)
		},
		ours: func(repository string, p push) []string {
			return []string{b.self, "child", "push", "-backups", backups, "-stamp", p.snapshot.Stamp,
				"-repository", repository, "-password-file", password, "-restic", b.tools.restic}
		},
	}
	places := make(map[string]string)
	for i, r := range results[0] {
		places[r.name] = filepath.Join(repositories, fmt.Sprint(i))
		if _, err := runProcess(ctx, argv(places[r.name], "init")); err != nil {
			return err
		}
	}
	for i, p := range pushes {
		order := []int{0, 1}
		if reverse {
			slices.Reverse(order)
		}
		for _, m := range order {
			r := &results[i][m]
			before, err := sizeOf(places[r.name])
			if err != nil {
				return err
			}
			syncDisks()
			s, err := runProcess(ctx, run[r.name](places[r.name], p))
			if err != nil {
				return fmt.Errorf("push %q: %w", p.name, err)
			}
			after, err := sizeOf(places[r.name])
			if err != nil {
				return err
			}
			s.Uploaded = after - before
			r.samples = append(r.samples, s)
		}
	}
	return nil
}

// offsiteSnapshots makes the snapshots that are pushed, in dir/backups.
func (b *bench) offsiteSnapshots(ctx context.Context, dir string) (pushes []push, err error) {
	database, err := b.ensure(ctx, "database", gib/b.scale)
	if err != nil {
		return nil, err
	}
	chroma, err := b.ensure(ctx, "chroma", 250*mib/b.scale)
	if err != nil {
		return nil, err
	}
	s := store{db: filepath.Join(dir, "atocore.db"), chroma: filepath.Join(dir, "chroma")}
	if err := copyFile(database, s.db); err != nil {
		return nil, err
	}
	if err := os.CopyFS(s.chroma, os.DirFS(chroma)); err != nil {
		return nil, err
	}
	for _, p := range []struct{ name, change, path string }{
		{"first", "", ""},
		{"1 % of the pages", "pages", s.db},
		{"1 % rows appended", "rows", s.db},
		{"HNSW links in place", "links", s.chroma},
		{"nothing", "", ""},
	} {
		b.say("offsite: making a snapshot for %q", p.name)
		if p.change != "" {
			if _, err := runProcess(ctx, []string{b.self, "child", "change", "-data", p.change, "-to", p.path}); err != nil {
				return nil, err
			}
		}
		if _, err := b.create(s).run(ctx, dir); err != nil {
			return nil, err
		}
		snapshots, err := backup.ListRuntimeBackups(ctx, backup.Options{BackupDir: filepath.Join(dir, "backups")})
		if err != nil {
			return nil, err
		}
		made := push{name: p.name, snapshot: *snapshots[len(snapshots)-1].Metadata}
		var former string
		if len(pushes) > 0 {
			former = pushes[len(pushes)-1].snapshot.BackupRoot
		}
		if made.changed, err = changedBytes(former, made.snapshot.BackupRoot); err != nil {
			return nil, err
		}
		pushes = append(pushes, made)
	}
	return pushes, nil
}

func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// timePush pushes a snapshot. The peak is that of this process or of restic,
// whichever is larger.
func timePush(ctx context.Context, opts backup.Options, stamp string, r offsite.Repository) (s sample, err error) {
	return timed(func() error {
		_, err := r.Push(ctx, opts, stamp)
		return err
	})
}

// change changes the store at path as the steps of offsite do.
func change(ctx context.Context, name, path string) error {
	switch name {
	case "pages":
		return changePages(ctx, path)
	case "rows":
		return changeRows(ctx, path)
	case "links":
		return changeLinks(path)
	}
	return fmt.Errorf("no change %q", name)
}

// changePages rewrites rows at random places, so that a hundredth of the database's
// pages change, in all its tables of large rows: 250 documents, 1,600 chunks and 800
// vectors take about 600, 600 and 800 pages.
func changePages(ctx context.Context, path string) error {
	const some = ` IN (SELECT rowid FROM %s ORDER BY random() LIMIT (SELECT max(page_count / %d, 1) FROM pragma_page_count()));`
	return execute(ctx, path, "BEGIN;"+
		fmt.Sprintf("UPDATE document SET body = hex(randomblob(length(body) / 2)) WHERE rowid"+some, "document", 1200)+
		fmt.Sprintf("UPDATE chunk SET text = hex(randomblob(length(text) / 2)) WHERE rowid"+some, "chunk", 330)+
		fmt.Sprintf("UPDATE embedding SET vector = randomblob(3072) WHERE rowid"+some, "embedding", 250)+"COMMIT")
}

// changeRows appends a hundredth of the database's size in vectors.
func changeRows(ctx context.Context, path string) error {
	return execute(ctx, path, `
		INSERT INTO embedding (vector)
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT (SELECT page_count / 100 FROM pragma_page_count()))
			SELECT randomblob(3072) FROM n`)
}

// changeLinks changes the links of every third vector of each collection, as
// vectors that are added do to their neighbors. In hnswlib a vector's links
// precede it; a vector of 768 numbers with 32 links takes 3212 bytes.
func changeLinks(chroma string) error {
	const element, links = 3212, 132
	from := filler(int64(element))
	files, err := filepath.Glob(filepath.Join(chroma, "*", "data_level0.bin"))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for at := 0; at+links <= len(data); at += 3 * element {
			if _, err := from.Read(data[at : at+links]); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(data, 0)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// changedBytes returns the size of the blocks of 4 KiB of all files below next
// that differ from those at the same place below former, or of all of them if
// former is empty.
func changedBytes(former, next string) (changed int64, err error) {
	a, b := make([]byte, 4*kib), make([]byte, 4*kib)
	err = filepath.WalkDir(next, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		var old io.Reader = strings.NewReader("")
		if former != "" {
			f, err := os.Open(filepath.Join(former, strings.TrimPrefix(path, next)))
			if err == nil {
				defer f.Close()
				old = f
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for {
			n, err := io.ReadFull(file, b)
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				return err
			}
			m, err := io.ReadFull(old, a)
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return err
			}
			if !bytes.Equal(a[:m], b[:n]) {
				changed += int64(n)
			}
		}
	})
	return changed, err
}

// sizeOf returns the size of all files below dir.
func sizeOf(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}
