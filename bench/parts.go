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

// stores creates the three stores, each with a database, a registry and a tree.
func (b *bench) stores(ctx context.Context) (stores []store, err error) {
	db, err := b.ensure(ctx, "database", 100*mib/b.scale)
	if err != nil {
		return nil, err
	}
	registry, err := b.ensure(ctx, "registry", 20)
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
		tree, err := b.ensure(ctx, t.data, t.n)
		if err != nil {
			return nil, err
		}
		stores = append(stores, store{t.name, db, registry, tree, t.data == "small-files"})
	}
	return stores, nil
}

// guard measures how long the ingestion guard is held, and how long a plain copy
// takes.
func (b *bench) guard(ctx context.Context) error {
	stores, err := b.stores(ctx)
	if err != nil {
		return err
	}
	b.note(fmt.Sprintf("Each store is a tree and a database of %d MiB. For the library, the time is from the return of `Lock` to the call", 100/b.scale),
		"of `unlock`. With the other tools, ingestion would be paused for the whole copy.")
	rows := [][]string{{"store", "method", "×", "median s", "least", "most"}}
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
		results, err := b.compare(ctx, comparison{what: "guard, " + s.name, manyFiles: s.manyFiles, candidates: present(b.cp(s.paths()), b.create(s))})
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
		results, err := b.compare(ctx, comparison{what: "guard, " + s.name, dir: dir, candidates: present(full, b.cp(s.paths()), b.create(s))})
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
	db, err := b.ensure(ctx, "database", gib/b.scale)
	if err != nil {
		return err
	}
	s := store{name: "database", db: db}
	results, err := b.compare(ctx, comparison{what: "create", candidates: present(
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
	b.note(fmt.Sprintf("A WAL database of %d MiB without writers. Only the library hashes and publishes the copy. The library, `sync -f` and", gib/mib/b.scale),
		"SQLite's own methods wait until the data is on the disk.")
	subject := fmt.Sprintf("%d MiB", gib/mib/b.scale)
	b.table(2, times(nil, subject, cpSyncName, results)...)
	whole := find(results, ours).median(seconds)
	b.aim("create, database", "of "+pythonBackupName, whole/find(results, pythonBackupName).median(seconds), 0.7)
	b.aim("create, database", "of "+cpSyncName, whole/find(results, cpSyncName).median(seconds), 1.5)
	b.aimMemory("create", results, 64)
	return nil
}

// createTree measures snapshots of stores with a Chroma directory.
func (b *bench) createTree(ctx context.Context) error {
	stores, err := b.stores(ctx)
	if err != nil {
		return err
	}
	b.note(fmt.Sprintf("Each store is a tree and a database of %d MiB. The library hashes, syncs and publishes the copy; the others hash", 100/b.scale),
		"nothing, and those without `sync` don't wait for the disk. copytree and otiai10/copy copy only the tree.")
	var rows [][]string
	for _, s := range stores {
		results, err := b.compare(ctx, comparison{what: "create, " + s.name, manyFiles: s.manyFiles, candidates: present(
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
		b.aimMemory("create", results, 64)
	}
	b.table(2, rows...)
	return nil
}

// validate measures the validation of complete snapshots.
func (b *bench) validate(ctx context.Context) error {
	db, err := b.ensure(ctx, "database", gib/b.scale)
	if err != nil {
		return err
	}
	small, err := b.ensure(ctx, "small-rows", 100*mib/b.scale)
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
		results, err := b.compare(ctx, comparison{what: "validate, " + s.name, candidates: present(
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
		b.aimMemory("validate", results, 64)
		if err := removeAll(made); err != nil {
			return err
		}
	}
	b.table(2, rows...)
	return nil
}

// list measures listing many snapshots.
func (b *bench) list(ctx context.Context) error {
	b.note("The snapshots contain only metadata.")
	var rows [][]string
	for _, n := range []int64{1000 / b.scale, 10000 / b.scale} {
		backups, err := b.ensure(ctx, "snapshots", n)
		if err != nil {
			return err
		}
		results, err := b.compare(ctx, comparison{what: fmt.Sprintf("list of %d", n), candidates: present(
			b.tool(b.self, ours, func(string) []string { return []string{"child", "list", "-backups", backups} }),
			b.pythonList(backups),
		)})
		if err != nil {
			return err
		}
		rows = times(rows, fmt.Sprint(n), pythonListName, results)
		if n == 10000/b.scale {
			o := find(results, ours)
			b.aim(fmt.Sprintf("list of %d", n), "of Python", o.median(seconds)/find(results, pythonListName).median(seconds), 0.8)
			b.aim("memory of list, a snapshot", "KiB", (o.median(peak)-b.floor)/float64(n)/float64(kib), 4)
		}
	}
	b.table(2, rows...)
	return nil
}

// growth measures only the library, with growing stores.
func (b *bench) growth(ctx context.Context) error {
	small, err := b.ensure(ctx, "database", mib)
	if err != nil {
		return err
	}
	rows := [][]string{{"store", "median s", "least", "most", "per unit", "peak MiB"}}
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
			path, err := b.ensure(ctx, g.data, n)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("database, %d MiB", n/mib)
			if g.data == "small-files" {
				name = fmt.Sprintf("%d × 4 KiB", n)
			}
			results, err := b.compare(ctx, comparison{what: "growth, " + name, manyFiles: g.data == "small-files", candidates: []candidate{b.create(g.store(path))}})
			if err != nil {
				return err
			}
			r := results[0]
			least, most := r.extremes(seconds)
			perUnit := r.median(seconds) / float64(n) * float64(g.unit)
			rows = append(rows, []string{name, figure(r.median(seconds)), figure(least), figure(most),
				figure(perUnit) + " " + g.name, fmt.Sprintf("%.0f", r.median(peak)/float64(mib))})
			b.aimMemory("create", results, 64)
		}
	}
	b.table(1, rows...)
	return nil
}

// aimMemory records the largest peak memory of a call of the library so far.
func (b *bench) aimMemory(call string, results []result, limit float64) {
	what := "peak memory of " + call + ", maximum"
	got := find(results, ours).median(peak) / float64(mib)
	for i := range b.goals {
		if b.goals[i].what == what {
			b.goals[i].got = max(b.goals[i].got, got)
			return
		}
	}
	b.aim(what, "MiB", got, limit)
}

// note prints a paragraph above a table.
func (b *bench) note(lines ...string) {
	fmt.Fprintf(b.out, "%s\n\n", strings.Join(lines, "\n"))
}

// onXFS calls do with a directory on a new XFS of size bytes on a loop device. If
// such a file system cannot be created, it logs that and does nothing.
func (b *bench) onXFS(ctx context.Context, size int64, do func(dir string) error) (err error) {
	if b.tools.mkfsXFS == "" || os.Geteuid() != 0 {
		b.say("XFS is left out: it needs root and mkfs.xfs")
		return nil
	}
	image, dir := filepath.Join(b.dir, "xfs.img"), filepath.Join(b.dir, "xfs")
	defer func() { _ = os.Remove(dir); _ = os.Remove(image) }()
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := f.Truncate(max(size, 400*mib)); err != nil { // mkfs.xfs requires 300 MB
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
		// Not with ctx: it must also be unmounted after an interrupt.
		if _, uerr := output(context.WithoutCancel(ctx), "umount", dir); err == nil {
			err = uerr
		}
	}()
	return do(dir)
}
