package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/atocore/backup"
)

const ours = "this library"

// stores makes the three stores: a database, a registry and a tree each.
func (b *bench) stores(ctx context.Context) (stores []store, err error) {
	db, err := b.have(ctx, "database", 100*mib/b.scale)
	if err != nil {
		return nil, err
	}
	registry, err := b.have(ctx, "registry", 20)
	if err != nil {
		return nil, err
	}
	for _, t := range []struct {
		name, data string
		n          int64
	}{
		{fmt.Sprintf("A: %d × 4 KiB", 20000/b.scale), "small-files", 20000 / b.scale},
		{fmt.Sprintf("B: 8 × %d MiB", 256/b.scale), "large-files", 2 * gib / b.scale},
		{fmt.Sprintf("C: Chroma-like, %d MiB", 700/b.scale), "chroma", 700 * mib / b.scale},
	} {
		tree, err := b.have(ctx, t.data, t.n)
		if err != nil {
			return nil, err
		}
		stores = append(stores, store{t.name, db, registry, tree, t.data == "small-files"})
	}
	return stores, nil
}

// guard measures how long the ingestion guard is held.
func (b *bench) guard(ctx context.Context) error {
	stores, err := b.stores(ctx)
	if err != nil {
		return err
	}
	b.note(fmt.Sprintf("Store: a tree, and a database of %d MiB. For the library the time from `Lock`'s return to the call of", 100/b.scale),
		"`unlock`; without it, ingestion would have to stand still for the whole copy.")
	rows := [][]string{{"store", "way", "×", "median s", "least", "most"}}
	add := func(name string, results []result, base result) {
		for _, r := range results {
			held := seconds
			if strings.HasPrefix(r.name, ours) {
				held = guard
			}
			least, most := r.extremes(held)
			rows = append(rows, []string{name, r.name, ratio(r.median(held) / base.median(seconds)),
				figure(r.median(held)), figure(least), figure(most)})
		}
	}
	for _, s := range stores {
		results, err := b.compare(ctx, contest{what: "guard, " + s.name, manyFiles: s.manyFiles, ways: present(b.cp(s.paths()), b.create(s))})
		if err != nil {
			return err
		}
		base := find(results, cpName)
		add(s.name, results, base)
		b.aim("guard held, "+s.name, "of `cp -a`", find(results, ours).median(guard)/base.median(seconds), 0.6)
	}
	err = b.onXFS(ctx, 8*gib/b.scale, func(dir string) error {
		s := stores[1]
		for _, path := range []*string{&s.db, &s.registry, &s.chroma} {
			copied := filepath.Join(dir, filepath.Base(*path))
			if _, err := runProcess(ctx, []string{b.tools.cp, "-a", *path, copied}); err != nil {
				return err
			}
			*path = copied
		}
		syncDisks()
		s.name += ", on XFS with reflink"
		const plain = "--reflink=never"
		full := b.cp(s.paths(), plain)
		results, err := b.compare(ctx, contest{what: "guard, " + s.name, dir: dir, ways: present(full, b.cp(s.paths()), b.create(s))})
		if err != nil {
			return err
		}
		base := find(results, full.name)
		add(s.name, results, base)
		b.aim("guard held, "+s.name, "of "+full.name, find(results, ours).median(guard)/base.median(seconds), 0.05)
		return nil
	})
	b.table(2, rows...)
	return err
}

// createDatabase measures a snapshot of a large database alone.
func (b *bench) createDatabase(ctx context.Context) error {
	db, err := b.have(ctx, "database", gib/b.scale)
	if err != nil {
		return err
	}
	s := store{name: "database", db: db}
	results, err := b.compare(ctx, contest{what: "create", ways: present(
		b.create(s),
		b.create(s, "-online"),
		b.cp(s.paths()),
		b.cpSync(s.paths()),
		b.rsync(s.paths()),
		b.shell("`sqlite3`: `.backup`", db, ".backup '%s'"),
		b.shell("`sqlite3`: `VACUUM INTO`", db, "VACUUM INTO '%s'"),
		b.pythonBackup(db),
		b.goPeer("mattn", "Go: mattn/go-sqlite3 `Backup`", db),
	)})
	if err != nil {
		return err
	}
	b.note(fmt.Sprintf("A WAL database of %d MiB that nobody writes to. Only the library hashes and publishes. It waits for the disk, and", gib/mib/b.scale),
		"so do `sync -f` and SQLite's own ways.")
	subject := fmt.Sprintf("%d MiB", gib/mib/b.scale)
	b.table(2, times(nil, subject, cpSyncName, results)...)
	whole := find(results, ours).median(seconds)
	b.aim("create, database", "of "+pythonBackupName, whole/find(results, pythonBackupName).median(seconds), 0.7)
	b.aim("create, database", "of "+cpSyncName, whole/find(results, cpSyncName).median(seconds), 1.5)
	b.aimMemory("create", results)
	return nil
}

// createTree measures snapshots of stores with a Chroma directory.
func (b *bench) createTree(ctx context.Context) error {
	stores, err := b.stores(ctx)
	if err != nil {
		return err
	}
	b.note("The stores of the guard's table, hashed, synced and published by the library; the peers hash nothing, and those",
		"without `sync` wait for no disk. copytree and otiai10/copy copy the tree only.")
	var rows [][]string
	for _, s := range stores {
		results, err := b.compare(ctx, contest{what: "create, " + s.name, manyFiles: s.manyFiles, ways: present(
			b.create(s),
			b.cp(s.paths()),
			b.cpSync(s.paths()),
			b.rsync(s.paths()),
			b.pythonCopytree(s.chroma),
			b.goPeer("otiai10", "Go: otiai10/copy", s.chroma),
		)})
		if err != nil {
			return err
		}
		rows = times(rows, s.name, cpSyncName, results)
		limit := 0.9
		if strings.HasPrefix(s.name, "A") {
			limit = 0.7
		}
		b.aim("create, "+s.name, "of "+cpSyncName, find(results, ours).median(seconds)/find(results, cpSyncName).median(seconds), limit)
		b.aimMemory("create", results)
	}
	b.table(2, rows...)
	return nil
}

// validate measures the check of finished snapshots.
func (b *bench) validate(ctx context.Context) error {
	db, err := b.have(ctx, "database", gib/b.scale)
	if err != nil {
		return err
	}
	small, err := b.have(ctx, "small-rows", 100*mib/b.scale)
	if err != nil {
		return err
	}
	stores, err := b.stores(ctx)
	if err != nil {
		return err
	}
	b.note("The library hashes every byte and runs SQLite's integrity check; the others do one of the two.")
	var rows [][]string
	for i, s := range append([]store{
		{name: fmt.Sprintf("database, %d MiB", gib/mib/b.scale), db: db},
		{name: fmt.Sprintf("database of small rows, %d MiB", 100/b.scale), db: small},
	}, stores...) {
		made := filepath.Join(b.dir, "validated")
		if err := removeAll(made); err != nil {
			return err
		}
		if _, err := b.create(s).run(ctx, made); err != nil {
			return err
		}
		backups := filepath.Join(made, "backups")
		snapshots, err := backup.ListRuntimeBackups(ctx, backup.Options{BackupDir: backups})
		if err != nil {
			return err
		}
		meta := snapshots[0].Metadata
		copied := meta.DBSnapshotPath
		results, err := b.compare(ctx, contest{what: "validate, " + s.name, ways: present(
			b.tool(b.self, ours, func(string) []string {
				return []string{"child", "validate", "-backups", backups, "-stamp", meta.Stamp}
			}),
			b.shell(shellCheckName, copied, "PRAGMA integrity_check"),
			b.sha256sum(meta.BackupRoot),
		)})
		if err != nil {
			return err
		}
		rows = times(rows, s.name, shellCheckName, results)
		if i == 0 {
			b.aim("validate, database", "of "+shellCheckName,
				find(results, ours).median(seconds)/find(results, shellCheckName).median(seconds), 1)
		}
		b.aimMemory("validate", results)
		if err := removeAll(made); err != nil {
			return err
		}
	}
	b.table(2, rows...)
	return nil
}

// list measures listing many snapshots.
func (b *bench) list(ctx context.Context) error {
	b.note("Snapshots of which only the metadata are there.")
	var rows [][]string
	for _, n := range []int64{1000 / b.scale, 10000 / b.scale} {
		backups, err := b.have(ctx, "snapshots", n)
		if err != nil {
			return err
		}
		results, err := b.compare(ctx, contest{what: fmt.Sprintf("list of %d", n), ways: present(
			b.tool(b.self, ours, func(string) []string { return []string{"child", "list", "-backups", backups} }),
			b.pythonList(backups),
		)})
		if err != nil {
			return err
		}
		rows = times(rows, fmt.Sprint(n), pythonListName, results)
		if n == 10000/b.scale {
			o := find(results, ours)
			b.aim(fmt.Sprintf("list of %d", n), "of Python", o.median(seconds)/find(results, pythonListName).median(seconds), 0.3)
			b.aim("memory of list, a snapshot", "KiB", (o.median(peak)-b.floor)/float64(n)/float64(kib), 4)
		}
	}
	b.table(2, rows...)
	return nil
}

// growth measures the library alone at growing sizes.
func (b *bench) growth(ctx context.Context) error {
	small, err := b.have(ctx, "database", mib)
	if err != nil {
		return err
	}
	rows := [][]string{{"store", "median s", "least", "most", "a unit", "peak MiB"}}
	for _, g := range []struct {
		data  string
		n     []int64
		unit  int64
		name  string
		store func(path string) store
	}{
		{"database", []int64{gib / 10, gib, 4 * gib}, gib / 10, "s per 0.1 GiB", func(path string) store { return store{db: path} }},
		{"small-files", []int64{1000, 10000, 100000}, 1000, "s per 1,000 files", func(path string) store { return store{db: small, chroma: path} }},
	} {
		for _, n := range g.n {
			n /= b.scale
			path, err := b.have(ctx, g.data, n)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("database, %d MiB", n/mib)
			if g.data == "small-files" {
				name = fmt.Sprintf("%d × 4 KiB", n)
			}
			results, err := b.compare(ctx, contest{what: "growth, " + name, manyFiles: g.data == "small-files", ways: []way{b.create(g.store(path))}})
			if err != nil {
				return err
			}
			r := results[0]
			least, most := r.extremes(seconds)
			perUnit := r.median(seconds) / float64(n) * float64(g.unit)
			rows = append(rows, []string{name, figure(r.median(seconds)), figure(least), figure(most),
				figure(perUnit) + " " + g.name, fmt.Sprintf("%.0f", r.median(peak)/float64(mib))})
			b.aimMemory("create", results)
		}
	}
	b.table(1, rows...)
	return nil
}

// aimMemory notes the most memory that a call of the library took so far.
func (b *bench) aimMemory(call string, results []result) {
	what := "peak memory of " + call + ", the most of all"
	got := find(results, ours).median(peak) / float64(mib)
	for i := range b.goals {
		if b.goals[i].what == what {
			b.goals[i].got = max(b.goals[i].got, got)
			return
		}
	}
	b.aim(what, "MiB", got, 64)
}

// note prints the text above a table.
func (b *bench) note(lines ...string) {
	fmt.Fprintf(b.out, "%s\n\n", strings.Join(lines, "\n"))
}

// onXFS calls do with a directory on a new XFS of size bytes, on a loop
// device, if that can be had.
func (b *bench) onXFS(ctx context.Context, size int64, do func(dir string) error) (err error) {
	if b.tools.mkfsXFS == "" || os.Geteuid() != 0 {
		b.say("XFS is left out: it takes root and mkfs.xfs")
		return nil
	}
	image, dir := filepath.Join(b.dir, "xfs.img"), filepath.Join(b.dir, "xfs")
	defer func() { _ = os.Remove(dir); _ = os.Remove(image) }()
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := f.Truncate(max(size, 400*mib)); err != nil { // mkfs.xfs wants 300 MB
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{b.tools.mkfsXFS, "-q", "-m", "reflink=1", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if _, err := output(ctx, argv...); err != nil {
			b.say("XFS is left out: %v", err)
			return ctx.Err()
		}
	}
	defer func() {
		// Not with ctx: it must come off after an interrupt too.
		if _, uerr := output(context.WithoutCancel(ctx), "umount", dir); err == nil {
			err = uerr
		}
	}()
	return do(dir)
}
